"""INT8 recipes for ONNX Runtime, and FP16 and INT8 recipes for GPUs.

A candidate runs on the device that loads the model; these recipes only write files that suit a GPU.

The tools' defaults, one scale for a whole weight and every operator in INT8, are recipes too: they
change answers of a transformer, which the quality gate detects.

A normalisation can no longer be merged into a convolution that is quantized, so merging comes
first. The tools do not support external weights, scales per channel in operators of before 2020,
biases that are a matrix of one row instead of a vector, and tensor names that collide with those
that they add.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from headrace.core import Tensors
from headrace.optimize.candidate import Candidate, CannotBuildError, Recipe, RecipeContext
from headrace.optimize.recipes.building import (
    NO_EXAMPLES,
    check_can_quantize,
    examples_in_time,
    facts_of,
    library_errors,
    missing_package,
    verified,
    versions,
)
from headrace.runtimes.onnx.facts import read_onnx_facts
from headrace.runtimes.onnx.file import find_onnx_file
from headrace.runtimes.onnx.providers import CUDA, TENSORRT, short

_SIMPLIFIED_FILE: Final = "simple.onnx"
_WHOLE: Final = "whole.onnx"
_PER_CHANNEL_OPSET: Final = 13
"""First opset in which a tensor of small integers may have several scales."""
_NO_LOGS: Final = 4
_BIAS: Final = 2
_ADDED: Final = ("_scale", "_zero_point", "_quantized")
"""Suffixes of the quantizer's tensor names."""
_MATRIX: Final = 2
Graph = Any  # an `onnx.ModelProto`; onnx ships no types


def simplified(context: RecipeContext) -> Path:
    """Write the source with folded constants and merged layers as one file; return it.

    Raises:
        CannotBuildError: ONNX or ONNX Runtime does not take the model.
    """
    import onnx  # noqa: PLC0415  # an extra brings it

    target, whole = context.folder / _SIMPLIFIED_FILE, context.folder / _WHOLE
    facts = facts_of(context)
    file = find_onnx_file(context.source)
    if facts.opset < _PER_CHANNEL_OPSET or facts.external:
        with library_errors("ONNX"):
            model = onnx.load(file)
            if facts.opset < _PER_CHANNEL_OPSET:
                model = onnx.version_converter.convert_version(model, _PER_CHANNEL_OPSET)
            onnx.save(model, whole)
        file = whole
    with library_errors("ONNX Runtime"):
        # ONNX Runtime applies the rules that are valid on every processor.
        options = ort.SessionOptions()
        options.log_severity_level = _NO_LOGS
        options.intra_op_num_threads = max(1, context.threads)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    whole.unlink(missing_ok=True)
    with library_errors("ONNX"):
        model = onnx.load(target)
        if any([_flatten_biases(model.graph), _rename(model.graph)]):
            onnx.save(model, target)
    return target


def _flatten_biases(graph: Graph) -> bool:
    """Flatten [1, n] biases of `Gemm` to [n]; return whether any changed."""
    uses: Counter[str] = Counter()
    biases: Counter[str] = Counter()
    for node in graph.node:
        uses.update(node.input)
        if node.op_type == "Gemm" and len(node.input) > _BIAS:
            biases[node.input[_BIAS]] += 1
    changed = False
    for tensor in graph.initializer:
        is_row = len(tensor.dims) == _MATRIX and tensor.dims[0] == 1
        if is_row and biases[tensor.name] and biases[tensor.name] == uses[tensor.name]:
            del tensor.dims[0]
            changed = True
    return changed


def _rename(graph: Graph) -> bool:
    """Rename constants that collide with the quantizer's names; return whether any changed."""
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    new = {}
    for tensor in graph.initializer:
        owners = (tensor.name.removesuffix(end) for end in _ADDED if tensor.name.endswith(end))
        if any(owner in taken for owner in owners):
            new[tensor.name] = f"{tensor.name}_of_the_model"
            tensor.name = new[tensor.name]
    for node in graph.node if new else ():
        for index, name in enumerate(node.input):
            node.input[index] = new.get(name, name)
    return bool(new)


_FILE: Final = "model.onnx"
_WARNING, _FATAL = 2, 4
"""Log levels of ONNX Runtime: the default, and fatal errors only."""
_RUNS: Final = 3
"""Cost of calibrating with one example, in runs of the model."""
_FLOAT: Final = 1
"""Output type of ONNX Runtime's own operators, which it does not infer: `TensorProto.FLOAT`."""
_WHAT: Final = "ONNX Runtime's quantizer"
_NO_LAYER: Final = "it has no operators that the quantizer supports"


def dynamic_int8(name: str, title: str, *, per_channel: bool, reduce_range: bool = False) -> Recipe:
    """Return a recipe of dynamic quantization: INT8 weights, activations quantized in each run."""

    def build(context: RecipeContext) -> Sequence[Candidate]:
        facts = facts_of(context)
        check_can_quantize(facts)
        target = context.folder / _FILE
        simple = simplified(context)
        context.on_progress("rounding the weights to INT8")
        with library_errors(_WHAT), _quiet():
            from onnxruntime.quantization import quantize_dynamic  # noqa: PLC0415  # needs onnx, which an extra brings

            quantize_dynamic(
                simple,
                target,
                per_channel=per_channel,
                reduce_range=reduce_range,
                extra_options={
                    "DefaultTensorType": _FLOAT,
                    "EnableSubgraph": facts.has_branches,
                },
            )
        simple.unlink()
        details = {
            "activations": "UINT8, each run's own scale",
            "weights": "INT8, a scale for each channel" if per_channel else "INT8, one scale",
            "reduce_range": str(reduce_range),
        }
        return [_quantized(name, title, target, context, details)]

    return Recipe(name, title, build, lambda _: missing_package("onnx"))


def static_int8(
    name: str,
    title: str,
    operators: tuple[str, ...] | None,
    *,
    reduce_range: bool = False,
    signed: bool = False,
) -> Recipe:
    """Return a recipe of static quantization with calibrated activation scales.

    Args:
        operators: Operators to quantize; None for all supported.
        signed: Whether activations are INT8 around zero, as TensorRT requires; other processors
            then run at half of their speed.
    """

    def build(context: RecipeContext) -> Sequence[Candidate]:
        check_can_quantize(facts_of(context))
        target = context.folder / _FILE
        simple = simplified(context)
        examples = examples_in_time(context, runs=_RUNS)
        context.on_progress(f"calibrating with {len(examples)} examples")
        with library_errors(_WHAT), _quiet():
            from onnxruntime.quantization import QuantType, quantize_static  # noqa: PLC0415  # needs onnx, which an extra brings

            quantize_static(
                simple,
                target,
                _Examples(examples),
                op_types_to_quantize=list(operators) if operators else None,
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"DefaultTensorType": _FLOAT, "ActivationSymmetric": signed},
            )
        simple.unlink()
        details = {
            "activations": f"{'INT8' if signed else 'UINT8'}, scales by the examples' range",
            "weights": "INT8, a scale for each channel",
            "operators": ", ".join(operators or ("all",)),
            "examples": str(len(examples)),
            "reduce_range": str(reduce_range),
        }
        return [_quantized(name, title, target, context, details)]

    def inapplicable_reason(context: RecipeContext) -> str:
        return missing_package("onnx") or ("" if context.calibration else NO_EXAMPLES)

    return Recipe(name, title, build, inapplicable_reason)


class _Examples:
    """Calibration data reader of ONNX Runtime over requests."""

    def __init__(self, examples: Sequence[Tensors]) -> None:
        self._left = iter(examples)

    def get_next(self) -> Tensors | None:
        """Return the next request; None at the end."""
        return next(self._left, None)


def _quantized(
    name: str, title: str, target: Path, context: RecipeContext, details: dict[str, str]
) -> Candidate:
    with library_errors(_WHAT):
        after = read_onnx_facts(target)
    if not after.is_quantized:
        raise CannotBuildError(_NO_LAYER)
    recipe = {"what": title, **details, **versions("onnxruntime", "onnx")}
    candidate = Candidate(name=name, title=title, runtime="onnx", path=target, recipe=recipe)
    return verified(candidate, context)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the quantizer's warnings in the block."""
    log, discard = logging.getLogger(), logging.NullHandler()
    log.addFilter(_is_not_theirs)
    log.addHandler(discard)  # its first warning would permanently add a handler if there is none
    ort.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNING)
        log.removeHandler(discard)
        log.removeFilter(_is_not_theirs)


def _is_not_theirs(record: logging.LogRecord) -> bool:
    return "onnxruntime" not in record.pathname


def _on_gpu(recipe: Recipe, *providers: str) -> Recipe:
    """Return a recipe that needs one of these execution providers."""

    def inapplicable_reason(context: RecipeContext) -> str:
        if not set(providers) & set(ort.get_available_providers()):
            required = " or ".join(map(short, providers))
            return (
                f"needs {required}, which this build of ONNX Runtime lacks; install onnxruntime-gpu"
            )
        return recipe.inapplicable_reason(context)

    return replace(recipe, inapplicable_reason=inapplicable_reason)


_HALF: Final = ("onnxruntime-gpu-fp16", "ONNX Runtime on the GPU, FP16")


def _half(context: RecipeContext) -> Sequence[Candidate]:
    """Build an FP16 model with the source's input and output datatypes."""
    check_can_quantize(facts_of(context))
    target = context.folder / _FILE
    simple = simplified(context)
    with library_errors("ONNX Runtime's converter to FP16"):
        import onnx  # noqa: PLC0415  # an extra brings it
        from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415

        model = convert_float_to_float16(onnx.load(simple), keep_io_types=True)
        onnx.save(model, target)
    simple.unlink()
    name, title = _HALF
    recipe = {"what": title, "device": "gpu", **versions("onnxruntime", "onnx")}
    candidate = Candidate(name=name, title=title, runtime="onnx", path=target, recipe=recipe)
    return [verified(candidate, context)]


HALF: Final = _on_gpu(Recipe(*_HALF, _half, lambda _: missing_package("onnx")), TENSORRT, CUDA)
INT8: Final = _on_gpu(
    static_int8(
        "onnxruntime-tensorrt-int8",
        "TensorRT by ONNX Runtime, static INT8",
        ("MatMul", "Gemm", "Conv"),
        signed=True,
    ),
    TENSORRT,
)
