"""What is faster on a GPU: numbers of 16 bits, and for TensorRT also of 8.

A candidate runs on what the model is loaded on; these recipes only write files that suit a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import onnxruntime as ort

from headrace.optimize.candidate import Candidate, Workshop
from headrace.optimize.recipes.building import (
    check_can_quantize,
    checked,
    facts_of,
    missing_package,
    told_by,
    versions,
)
from headrace.optimize.recipes.onnx_int8 import StaticInt8
from headrace.optimize.recipes.simplify import simplified
from headrace.runtimes.onnx_providers import CUDA, TENSORRT, short

_FILE: Final = "model.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnGpu:
    """Another recipe, where ONNX Runtime has one of some providers."""

    recipe: "Half | StaticInt8"
    providers: tuple[str, ...]

    @property
    def name(self) -> str:
        """As its candidate's."""
        return self.recipe.name

    @property
    def title(self) -> str:
        """For people."""
        return self.recipe.title

    def why_not(self, workshop: Workshop) -> str:
        """Without a GPU that ONNX Runtime was built for."""
        if not set(self.providers) & set(ort.get_available_providers()):
            wanted = " or ".join(map(short, self.providers))
            return f"needs {wanted}, which this build of ONNX Runtime has not: onnxruntime-gpu has"
        return self.recipe.why_not(workshop)

    def build(self, workshop: Workshop) -> Sequence[Candidate]:
        """As the other recipe."""
        return self.recipe.build(workshop)


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """All of the model in FP16, but for what it takes and gives."""

    name: str = "onnxruntime-gpu-fp16"
    title: str = "ONNX Runtime on the GPU, FP16"

    def why_not(self, _: Workshop) -> str:
        """Only without the package."""
        return missing_package("onnx")

    def build(self, workshop: Workshop) -> Sequence[Candidate]:
        """One file, half as large."""
        check_can_quantize(facts_of(workshop))
        target = workshop.folder / _FILE
        simple = simplified(workshop)
        with told_by("ONNX Runtime's converter to FP16"):
            import onnx  # noqa: PLC0415  # an extra brings it
            from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415

            model = convert_float_to_float16(onnx.load(simple), keep_io_types=True)
            onnx.save(model, target)
        simple.unlink()
        made = Candidate(
            name=self.name,
            title=self.title,
            runtime="onnx",
            path=target,
            recipe={"what": self.title, "device": "gpu", **versions("onnxruntime", "onnx")},
        )
        return [checked(made, workshop)]


HALF: Final = OnGpu(recipe=Half(), providers=(TENSORRT, CUDA))
INT8: Final = OnGpu(
    recipe=StaticInt8(
        name="onnxruntime-tensorrt-int8",
        title="TensorRT by ONNX Runtime, static INT8",
        operators=("MatMul", "Gemm", "Conv"),
        signed=True,
    ),
    providers=(TENSORRT,),
)
