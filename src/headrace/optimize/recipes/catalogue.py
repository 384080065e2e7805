"""Recipe catalogue by model class, in the order of trial.

Harm to accuracy or speed is measured, not listed.

Two options have no separate recipe: the baseline has both, and served models have neither. An arena
saved no time at any size that was tried (a perceptron, an encoder, conv nets), and holds the
largest batch's memory. Threads that spin between runs take CPU time from other work: beside other
load a run on two threads took 1.2 to 1.7 times as long, and a search, which times a model alone,
would not measure the cost for other models.

One core per run is fastest while all concurrent runs fit in the caches. Otherwise (long inputs,
many rows, large models) fewer runs on more cores each may be faster. In OpenVINO these are fewer
streams.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import msgspec

from headrace.optimize.candidate import BASELINE, Candidate, ModelClass, Recipe, RecipeContext
from headrace.optimize.recipes.building import versions
from headrace.optimize.recipes.onnx_int8 import HALF, INT8, dynamic_int8, static_int8
from headrace.optimize.recipes.openvino import SMALL_RECIPES, in_precision, post_training_int8
from headrace.runtimes.base import UNTUNED, Tuning

_DEFAULTS: Final = Tuning(disabled_optimizers=(), arena=True, spinning=True)
"""Default options of ONNX Runtime."""


def _unchanged(name: str, title: str, tuning: Tuning) -> Recipe:
    """Return a recipe that runs the unchanged model with other options."""

    def build(context: RecipeContext) -> Sequence[Candidate]:
        details = {"graph_optimizations": tuning.graph_optimizations}
        return [
            Candidate(
                name=name,
                title=title,
                runtime=context.runtime,
                path=context.source,
                tuning=tuning,
                recipe={"what": "nothing is rewritten", **details, **versions("onnxruntime")},
            )
        ]

    return Recipe(name, title, build)


BASELINE_RECIPE: Final = _unchanged(BASELINE, "ONNX Runtime, FP32, default options", _DEFAULTS)
SERVED: Final = _unchanged(
    "onnxruntime-fp32-served", "ONNX Runtime, FP32, as Headrace serves it", UNTUNED
)
BASIC: Final = _unchanged(
    "onnxruntime-basic",
    "ONNX Runtime, FP32, no fused operators",
    Tuning(graph_optimizations="basic"),
)
EXTENDED: Final = _unchanged(
    "onnxruntime-extended",
    "ONNX Runtime, FP32, layout of images left alone",
    Tuning(graph_optimizations="extended"),
)
_EIGHT_BITS: Final = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_BF16: Final = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
_FP16: Final = frozenset({"amx_fp16", "avx512_fp16", "asimdhp"})
_PRODUCTS: Final = ("MatMul", "Gemm")
_DYNAMIC: Final = dynamic_int8(
    "onnxruntime-int8-dynamic", "ONNX Runtime, dynamic INT8, per channel", per_channel=True
)
_PER_TENSOR: Final = dynamic_int8(
    "onnxruntime-int8-dynamic-per-tensor",
    "ONNX Runtime, dynamic INT8, the tool's defaults",
    per_channel=False,
)
_REDUCED: Final = dynamic_int8(
    "onnxruntime-int8-dynamic-reduced",
    "ONNX Runtime, dynamic INT8 with weights of 7 bits",
    per_channel=True,
    reduce_range=True,
)


_UNTOLD: Final = post_training_int8(
    "openvino-int8-no-model-type",
    "OpenVINO, INT8 by NNCF, without the transformer model type",
    tells_class=False,
    has_bf16=False,
)


def recipes_for(
    model_class: ModelClass, runtime: str, processor_features: Collection[str]
) -> Sequence[Recipe]:
    """Return the recipes to try: the baseline, then the most promising first.

    Each reports by `inapplicable_reason` whether it applies.

    Args:
        runtime: Runtime of the source; only ONNX is rewritten.
        processor_features: Linux's names, such as `avx512_vnni`.
    """
    if runtime != "onnx":
        return ()
    if model_class is ModelClass.TREES:
        return (BASELINE_RECIPE, SERVED)
    has = frozenset(processor_features)
    # Without instructions for 8-bit products, sums of two overflow 16 bits.
    saturates = "avx2" in has and not _EIGHT_BITS & has
    dynamic = (_DYNAMIC, *((_REDUCED,) if saturates else ()))

    def static(suffix: str, description: str, operators: tuple[str, ...] | None) -> Recipe:
        name, title = (
            f"onnxruntime-int8-static{suffix}",
            f"ONNX Runtime, static INT8, {description}",
        )
        return static_int8(name, title, operators, reduce_range=saturates)

    options = BASIC
    match model_class:
        case ModelClass.TRANSFORMER:
            products = static("", "matrix products", _PRODUCTS)
            every = static("-all-ops", "every operator", None)
            int8: tuple[Recipe, ...] = (*dynamic, products, _PER_TENSOR, every, _UNTOLD)
        case ModelClass.CONV_NET:
            int8 = (static("", "every operator", None), *dynamic)
            options = EXTENDED
        case _:
            layers = static("", "layers", (*_PRODUCTS, "Conv"))
            int8 = (*dynamic, layers, static("-all-ops", "every operator", None))
    lacking = {
        "bf16": "" if has & _BF16 else "instructions for BF16",
        "fp16": "" if has & _FP16 else "instructions for FP16",
    }
    return (
        *(BASELINE_RECIPE, SERVED, HALF, INT8),
        in_precision("openvino-bf16", "OpenVINO, BF16", "bf16", lacking=lacking["bf16"]),
        post_training_int8(
            "openvino-int8",
            "OpenVINO, INT8 by NNCF",
            tells_class=True,
            has_bf16=bool(has & _BF16),
        ),
        *int8,
        in_precision("openvino-fp32", "OpenVINO, FP32", "f32"),
        options,
        in_precision("openvino-fp16", "OpenVINO, FP16", "f16", lacking=lacking["fp16"]),
        *SMALL_RECIPES,
    )


_WORTH_IT: Final = frozenset(
    {"onnxruntime-fp32-served", "onnxruntime-int8-dynamic", "openvino-bf16", "openvino-int8"}
)
"""Recipes worth trying with more threads; each thread count costs a few seconds."""


def in_more_threads(recipes: Sequence[Recipe]) -> list[Recipe]:
    """Return all recipes; the most promising also build candidates with several threads per run."""
    return [
        replace(recipe, build=partial(_in_more_threads, recipe.build))
        if recipe.name in _WORTH_IT
        else recipe
        for recipe in recipes
    ]


def _in_more_threads(
    build: Callable[[RecipeContext], Sequence[Candidate]], context: RecipeContext
) -> Sequence[Candidate]:
    """Build a recipe's candidates, and variants with more threads per run."""
    candidates = build(context)
    return [
        *candidates,
        *(
            replace(
                candidate,
                name=f"{candidate.name}-{count}-threads",
                title=f"{candidate.title}, {count} cores for each run",
                tuning=msgspec.structs.replace(candidate.tuning, intra_op_threads=count),
                recipe={**candidate.recipe, "intra_op_threads": str(count)},
            )
            for candidate in candidates
            for count in thread_counts(context.threads)
        ),
    ]


def thread_counts(cores: int) -> tuple[int, ...]:
    """Return the thread counts to try besides one: all cores, and one in between. Pure.

    Both are powers of two, as the number of concurrent runs is cores divided by threads.
    """
    if cores <= 1:
        return ()
    power = int(math.log2(cores))
    return tuple(sorted({1 << power, 1 << (power + 1) // 2} - {1}))
