"""The model as it is, in ONNX Runtime with one set of options or another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headrace.optimize.candidate import BASELINE, Candidate, Workshop
from headrace.optimize.recipes.building import versions
from headrace.runtimes.tuning import UNTUNED, Tuning

_DEFAULTS: Final = Tuning(disabled_optimizers=(), arena=True, spinning=True)
"""ONNX Runtime's own: whoever calls it without options gets these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AsItIs:
    """Nothing is rewritten."""

    name: str
    title: str
    tuning: Tuning

    def why_not(self, _: Workshop) -> str:
        """It always applies."""
        return ""

    def build(self, workshop: Workshop) -> Sequence[Candidate]:
        """The source itself."""
        told = {"graph_optimizations": self.tuning.graph_optimizations}
        return [
            Candidate(
                name=self.name,
                title=self.title,
                runtime=workshop.runtime,
                path=workshop.source,
                tuning=self.tuning,
                recipe={"what": "nothing is rewritten", **told, **versions("onnxruntime")},
            )
        ]


BASELINE_RECIPE: Final = AsItIs(
    name=BASELINE, title="ONNX Runtime, FP32, its own defaults", tuning=_DEFAULTS
)
SERVED: Final = AsItIs(
    name="onnxruntime-fp32-served",
    title="ONNX Runtime, FP32, as Headrace serves it",
    tuning=UNTUNED,
)
BASIC: Final = AsItIs(
    name="onnxruntime-basic",
    title="ONNX Runtime, FP32, no fused operators",
    tuning=Tuning(graph_optimizations="basic"),
)
EXTENDED: Final = AsItIs(
    name="onnxruntime-extended",
    title="ONNX Runtime, FP32, layout of images left alone",
    tuning=Tuning(graph_optimizations="extended"),
)
