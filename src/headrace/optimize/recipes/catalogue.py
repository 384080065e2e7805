"""Recipes for each kind of model, in the order in which they are tried.

No list says which of them spoil a model or slow it down: that is measured.

Two options are in no recipe of their own: the baseline has both, and what is served has neither.
An arena saved no time at any size that was tried (a perceptron, an encoder, conv nets), and keeps
the largest batch's memory. Threads that spin between runs take the cores from whatever else runs:
beside other load a run on two threads took 1.2 to 1.7 times as long, and a search, which times a
model alone, would not see what they cost other models.

One core each wins while all that runs at once fits in the caches. Where it does not (long inputs,
many rows, large models) fewer runs on more cores each may. In OpenVINO this is fewer streams.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from headrace.optimize.candidate import BASELINE, Candidate, ModelClass, Recipe, Workshop
from headrace.optimize.recipes.building import versions
from headrace.optimize.recipes.onnx_int8 import HALF, INT8, DynamicInt8, StaticInt8
from headrace.optimize.recipes.openvino import (
    ByteWeights,
    HalfWeights,
    InPrecision,
    PostTrainingInt8,
)
from headrace.runtimes.base import UNTUNED, Tuning

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
_EIGHT_BITS: Final = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_BF16: Final = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
_FP16: Final = frozenset({"amx_fp16", "avx512_fp16", "asimdhp"})
_PRODUCTS: Final = ("MatMul", "Gemm")
_DYNAMIC: Final = DynamicInt8(
    name="onnxruntime-int8-dynamic",
    title="ONNX Runtime, dynamic INT8, per channel",
    per_channel=True,
)
_PER_TENSOR: Final = DynamicInt8(
    name="onnxruntime-int8-dynamic-per-tensor",
    title="ONNX Runtime, dynamic INT8, as its tool does it",
    per_channel=False,
)
_REDUCED: Final = DynamicInt8(
    name="onnxruntime-int8-dynamic-reduced",
    title="ONNX Runtime, dynamic INT8 with weights of 7 bits",
    per_channel=True,
    reduce_range=True,
)


def recipes_for(
    model_class: ModelClass, runtime: str, processor_features: Collection[str]
) -> Sequence[Recipe]:
    """What to try, the most promising first; the baseline is the first of all.

    Each says in `why_not` if it does not apply here.

    Args:
        runtime: Of the source; only ONNX is rewritten.
        processor_features: By Linux's names, `avx512_vnni`.
    """
    if runtime != "onnx":
        return ()
    if model_class is ModelClass.TREES:
        return (BASELINE_RECIPE, SERVED)
    has = frozenset(processor_features)
    fp32, bf16, fp16 = _in_precisions(has)
    int8 = _dynamic_and_static(model_class, has)
    nncf, *forgotten = _post_training(model_class, has)
    options = EXTENDED if model_class is ModelClass.CONV_NET else BASIC
    small = (HalfWeights(), ByteWeights())
    first = (BASELINE_RECIPE, SERVED, HALF, INT8, bf16, nncf)
    return (*first, *int8, *forgotten, fp32, options, fp16, *small)


def _in_precisions(has: frozenset[str]) -> tuple[InPrecision, InPrecision, InPrecision]:
    return (
        InPrecision(name="openvino-fp32", title="OpenVINO, FP32", precision="f32"),
        InPrecision(
            name="openvino-bf16",
            title="OpenVINO, BF16",
            precision="bf16",
            lacking="" if has & _BF16 else "instructions for BF16",
        ),
        InPrecision(
            name="openvino-fp16",
            title="OpenVINO, FP16",
            precision="f16",
            lacking="" if has & _FP16 else "instructions for FP16",
        ),
    )


def _post_training(model_class: ModelClass, has: frozenset[str]) -> tuple[PostTrainingInt8, ...]:
    told = PostTrainingInt8(
        name="openvino-int8",
        title="OpenVINO, INT8 by NNCF",
        tells_class=True,
        has_bf16=bool(has & _BF16),
    )
    if model_class is not ModelClass.TRANSFORMER:
        return (told,)
    untold = PostTrainingInt8(
        name="openvino-int8-no-model-type",
        title="OpenVINO, INT8 by NNCF, not told that it is a transformer",
        tells_class=False,
        has_bf16=False,
    )
    return (told, untold)


def _dynamic_and_static(model_class: ModelClass, has: frozenset[str]) -> tuple[Recipe, ...]:
    # Without instructions for products of 8 bits, sums of two overflow 16.
    saturates = "avx2" in has and not _EIGHT_BITS & has
    dynamic = (_DYNAMIC, *((_REDUCED,) if saturates else ()))
    all_operators = _static("-all-ops", "every operator", None, reduce_range=saturates)
    match model_class:
        case ModelClass.TRANSFORMER:
            products = _static("", "matrix products", _PRODUCTS, reduce_range=saturates)
            return (*dynamic, products, _PER_TENSOR, all_operators)
        case ModelClass.CONV_NET:
            everything = _static("", "every operator", None, reduce_range=saturates)
            return (everything, *dynamic)
        case _:
            layers = _static("", "layers", (*_PRODUCTS, "Conv"), reduce_range=saturates)
            return (*dynamic, layers, all_operators)


def _static(
    suffix: str, what: str, operators: tuple[str, ...] | None, *, reduce_range: bool
) -> StaticInt8:
    return StaticInt8(
        name=f"onnxruntime-int8-static{suffix}",
        title=f"ONNX Runtime, static INT8, {what}",
        operators=operators,
        reduce_range=reduce_range,
    )


_WORTH_IT: Final = frozenset(
    {"onnxruntime-fp32-served", "onnxruntime-int8-dynamic", "openvino-bf16", "openvino-int8"}
)
"""Recipes whose candidates are the fastest: each takes a few seconds more with every number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InMoreThreads:
    """What another recipe makes, and the same with several cores for each run."""

    recipe: Recipe

    @property
    def name(self) -> str:
        """The other's."""
        return self.recipe.name

    @property
    def title(self) -> str:
        """The other's."""
        return self.recipe.title

    def why_not(self, workshop: Workshop) -> str:
        """As the other says."""
        return self.recipe.why_not(workshop)

    def build(self, workshop: Workshop) -> Sequence[Candidate]:
        """The other's candidates first; the files are the same.

        Raises:
            CannotBuildError: The other cannot be built.
        """
        made = self.recipe.build(workshop)
        counts = thread_counts(workshop.threads)
        return [*made, *(_in_threads(one, count) for one in made for count in counts)]


def in_more_threads(recipes: Sequence[Recipe]) -> list[Recipe]:
    """All recipes, the most promising of them in more threads too."""
    return [InMoreThreads(recipe=one) if one.name in _WORTH_IT else one for one in recipes]


def thread_counts(cores: int) -> tuple[int, ...]:
    """How many threads inside a run are tried besides one: all cores, and some between. Pure.

    Both are powers of two, as cores divided by threads run at once.
    """
    if cores <= 1:
        return ()
    power = int(math.log2(cores))
    return tuple(sorted({1 << power, 1 << (power + 1) // 2} - {1}))


def _in_threads(candidate: Candidate, count: int) -> Candidate:
    return replace(
        candidate,
        name=f"{candidate.name}-{count}-threads",
        title=f"{candidate.title}, {count} cores for each run",
        tuning=msgspec.structs.replace(candidate.tuning, intra_op_threads=count),
        recipe={**candidate.recipe, "intra_op_threads": str(count)},
    )
