"""INT8 in OpenVINO: NNCF finds the scales by examples.

It has to be told that a model is a transformer. Without, all is rounded, and many answers are wrong
with nothing said: that is a recipe too, for the gate to find out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headrace.core import Tensors
from headrace.optimize.candidate import Candidate, ModelClass, Workshop
from headrace.optimize.recipes.building import (
    NO_EXAMPLES,
    check_can_quantize,
    check_no_text,
    examples_in_time,
    facts_of,
    missing_package,
    told_by,
    versions,
)
from headrace.optimize.recipes.openvino_ir import (
    Graph,
    ir_candidate,
    read_graph,
    save,
    silent_nncf,
)

_BF16: Final = "-bf16"
_RUNS: Final = 6
"""Of the model, as long as which it takes to look at an example, up to three times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostTrainingInt8:
    """Weights and activations in INT8, what is left in FP32 or, in a second candidate, BF16.

    `tells_class`: whether NNCF is told of a transformer. `has_bf16`: whether the processor has it.
    """

    name: str
    title: str
    tells_class: bool
    has_bf16: bool

    def why_not(self, workshop: Workshop) -> str:
        """Without examples, or the packages."""
        return missing_package("openvino", "nncf") or ("" if workshop.calibration else NO_EXAMPLES)

    def build(self, workshop: Workshop) -> Sequence[Candidate]:
        """One IR, run in one or two ways."""
        facts = facts_of(workshop)
        check_no_text(facts)
        check_can_quantize(facts)
        graph = read_graph(workshop)
        examples = examples_in_time(workshop, runs=_RUNS)
        workshop.say(f"calibrating with {len(examples)} examples")
        transformer = self.tells_class and workshop.model_class is ModelClass.TRANSFORMER
        file = save(
            _quantized(graph, examples, transformer=transformer), workshop.folder, halve=False
        )
        told = {
            "model_type": "transformer" if transformer else "not told",
            "bias_correction": "fast",
            "examples": str(len(examples)),
            **versions("nncf"),
        }
        ways = [(self.name, self.title, "f32")]
        if self.has_bf16:
            ways.append((self.name + _BF16, f"{self.title}, the rest in BF16", "bf16"))
        return [
            ir_candidate(file, workshop, name=name, title=title, precision=precision, told=told)
            for name, title, precision in ways
        ]


def _quantized(graph: Graph, examples: Sequence[Tensors], *, transformer: bool) -> Graph:
    with told_by("NNCF"), silent_nncf() as nncf:
        return nncf.quantize(
            graph,
            nncf.Dataset(list(examples)),
            subset_size=len(examples),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            fast_bias_correction=True,
        )
