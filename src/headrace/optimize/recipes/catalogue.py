"""Which recipes are tried with which kind of model? Those that promise most for least come first.

No list says which of them spoil a model or slow it down: that is measured.

Two options are in no recipe of their own: the baseline has both, and what is served has neither.
An arena saved no time at any size that was tried (a perceptron, an encoder, conv nets), and keeps
the largest batch's memory. Threads that spin between runs take the cores from whatever else runs:
beside other load a run on two threads took 1.2 to 1.7 times as long, and a search, which times a
model alone, would not see what they cost other models.
"""

from collections.abc import Collection, Sequence
from typing import Final

from headrace.optimize.candidate import ModelClass, Recipe
from headrace.optimize.recipes.as_it_is import BASELINE_RECIPE, BASIC, EXTENDED, SERVED
from headrace.optimize.recipes.gpu import HALF, INT8
from headrace.optimize.recipes.onnx_int8 import DynamicInt8, StaticInt8
from headrace.optimize.recipes.openvino_int8 import PostTrainingInt8
from headrace.optimize.recipes.openvino_ir import ByteWeights, HalfWeights, InPrecision

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
