"""OpenVINO recipes: precisions, compressed weights, and INT8 by NNCF.

It has to be told that a model is a transformer. Without, all is rounded, and many answers are wrong
with nothing said: that is a recipe too, for the gate to find out.
"""

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from headrace.core import Tensors
from headrace.optimize.candidate import Candidate, ModelClass, Recipe, Workshop
from headrace.optimize.recipes.building import (
    NO_EXAMPLES,
    check_can_quantize,
    check_no_text,
    checked,
    examples_in_time,
    facts_of,
    missing_package,
    told_by,
    versions,
)
from headrace.runtimes.base import Tuning
from headrace.runtimes.libraries import without_frameworks
from headrace.runtimes.onnx_file import find_onnx_file
from headrace.runtimes.openvino import import_openvino

FILE: Final = "model.xml"
OPENVINO: Final = "OpenVINO"
Graph = Any  # an `openvino.Model`; OpenVINO ships no types that mypy reads


@dataclass(frozen=True, slots=True, kw_only=True)
class InPrecision:
    """The model as it is, computed in one precision, which is pinned.

    `lacking`: what the processor would have to have; empty if it has it.
    """

    name: str
    title: str
    precision: str
    lacking: str = ""

    def why_not(self, _: Workshop) -> str:
        """Without the package, or on a processor that would only imitate it."""
        if self.lacking:
            return f"the processor has no {self.lacking}, and would compute it more slowly"
        return missing_package("openvino")

    def build(self, workshop: Workshop) -> Sequence[Candidate]:
        """An IR with all digits, whatever it is computed in."""
        check_no_text(facts_of(workshop))
        file = save(read_graph(workshop), workshop.folder, halve=False)
        told = {"precision": self.precision}
        return [_candidate(self, file, workshop, self.precision, told)]


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfWeights:
    """Weights of 16 bits in the file, computed in FP32."""

    name: str = "openvino-fp16-weights"
    title: str = "OpenVINO, weights of 16 bits: a smaller file, no faster"

    def why_not(self, _: Workshop) -> str:
        """Without the package."""
        return missing_package("openvino")

    def build(self, workshop: Workshop) -> Sequence[Candidate]:
        """A smaller IR."""
        check_no_text(facts_of(workshop))
        file = save(read_graph(workshop), workshop.folder, halve=True)
        told = {"weights": "FP16 in the file, FP32 in memory"}
        return [_candidate(self, file, workshop, "f32", told)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteWeights:
    """Weights of 8 bits, computed in FP32."""

    name: str = "openvino-int8-weights"
    title: str = "OpenVINO, weights of 8 bits: a smaller file, no faster"

    def why_not(self, _: Workshop) -> str:
        """Without the packages."""
        return missing_package("openvino", "nncf")

    def build(self, workshop: Workshop) -> Sequence[Candidate]:
        """A smaller IR."""
        facts = facts_of(workshop)
        check_no_text(facts)
        check_can_quantize(facts)
        graph = read_graph(workshop)
        with told_by("NNCF"), silent_nncf() as nncf:
            graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
        file = save(graph, workshop.folder, halve=False)
        told = {"weights": "INT8, a scale for each channel", **versions("nncf")}
        return [_candidate(self, file, workshop, "f32", told)]


def read_graph(workshop: Workshop) -> Graph:
    """The source, as OpenVINO reads it.

    Raises:
        CannotBuildError: It does not; the message says why.
    """
    with told_by(OPENVINO):
        return import_openvino().Core().read_model(find_onnx_file(workshop.source))


def save(graph: Graph, folder: Path, *, halve: bool) -> Path:
    """Write an IR, and return its `.xml`; `halve` makes its weights FP16."""
    file = folder / FILE
    with told_by(OPENVINO):
        import_openvino().save_model(graph, file, compress_to_fp16=halve)
    return file


def ir_candidate(
    file: Path, workshop: Workshop, *, name: str, title: str, precision: str, told: dict[str, str]
) -> Candidate:
    """A candidate of an IR, which loads and takes and gives what the source does."""
    made = Candidate(
        name=name,
        title=title,
        runtime="openvino",
        path=file,
        tuning=Tuning(precision=precision),
        recipe={"what": title, **told, **versions("openvino")},
    )
    return checked(made, workshop)


def _candidate(
    recipe: Recipe, file: Path, workshop: Workshop, precision: str, told: dict[str, str]
) -> Candidate:
    name, title = recipe.name, recipe.title
    return ir_candidate(file, workshop, name=name, title=title, precision=precision, told=told)


@contextmanager
def silent_nncf() -> Iterator[ModuleType]:
    """NNCF, which tells nobody what it does: no bars, no log, no telemetry.

    Standard output goes nowhere meanwhile. NNCF imports PyTorch only to see what a model is.
    """
    import_openvino()  # first, and so without the telemetry that NNCF shares
    kind = logging.getLoggerClass()
    with without_frameworks():
        try:
            import nncf  # noqa: PLC0415  # takes seconds, and an extra brings it
        finally:
            logging.setLoggerClass(kind)  # else every later logger would be one of its own kind
        # Its own `set_log_level` would change handlers too, which others may have added.
        logging.getLogger("nncf").setLevel(logging.CRITICAL)
        with contextlib.redirect_stdout(io.StringIO()):
            yield nncf


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
