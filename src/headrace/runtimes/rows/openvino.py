"""Row analysis of models that OpenVINO has read, whichever format they are stored in.

Operators: https://docs.openvino.ai/latest/documentation/openvino-ir-format/operation-sets.html
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from headrace.core import TensorSpec
from headrace.runtimes.rows.operators import (
    OperatorCall,
    Results,
    counted,
    elementwise,
    folding,
    for_names,
    narrowed,
    run_operator,
    same,
    scattered,
    shape_of,
    transposed,
    unknown_operator,
    unsqueezed,
    window_widths,
)
from headrace.runtimes.rows.symbols import ONE, ZERO, Size, multiply, product
from headrace.runtimes.rows.transfer import SliceMasks, Transfer
from headrace.runtimes.rows.values import (
    FOLDS,
    MAX_ELEMENTS,
    BatchRows,
    MixedRowsError,
    RowVerdict,
    Value,
    constant,
    constants,
    judge,
    mixed,
    model_input,
    normal_axis,
)

_ONNX_NAMES: Final = {
    "Multiply": "Mul",
    "Subtract": "Sub",
    "Divide": "Div",
    "Negative": "Neg",
    "FloorMod": "Mod",
    "Maximum": "Max",
    "Minimum": "Min",
    "GreaterEqual": "GreaterOrEqual",
    "LessEqual": "LessOrEqual",
    "Select": "Where",
    "Ceiling": "Ceil",
    "ShapeOf": "Shape",
    "Convert": "Cast",
    "Broadcast": "Expand",
}
"""ONNX names of operations that fold sizes or take row positions, where the names differ."""
_WHOLE: Final = ("i", "u", "boolean")
_NO_NUMBERS: Final = frozenset({"string", "bf16", "i4", "u4", "nf4", "u1"})
"""Element types that NumPy lacks."""
_Port = tuple[str, int]
"""Name of a node and number of its output."""


@dataclass(slots=True)
class _Call(OperatorCall):
    """One operation with the values of its inputs."""

    attributes: Mapping[str, Any]

    def number(self, name: str, default: int = 0) -> int:
        return int(self.attributes.get(name, default))

    def numbers(self, name: str) -> list[int]:
        return [int(item) for item in self.attributes.get(name, ())]

    def text(self, name: str) -> str:
        return str(self.attributes.get(name, "")).lower()


_Operation = Callable[[_Call], Results]


def analyse_openvino(
    model: Any,  # noqa: ANN401  # ships no types that mypy reads
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> RowVerdict:
    """Return whether each output row of a model depends on its own input row alone.

    Args:
        model: As `openvino.Core.read_model` returns it.
        inputs: In the order of its parameters; axis 0 of each is the batch.
        outputs: In the order of its results.
    """
    transfer = Transfer()
    values: dict[_Port, Value] = {}
    for number, (port, spec) in enumerate(zip(model.inputs, inputs, strict=True)):
        values[port.get_node().get_name(), 0] = model_input(transfer.symbols, spec, number)
    try:
        for node in model.get_ordered_ops():
            kind = node.get_type_name()
            if kind not in {"Parameter", "Result"}:
                for i, value in enumerate(_results(node, kind, transfer, values)):
                    values[node.get_name(), i] = value
        sources = [_source(port.get_node().input(0)) for port in model.outputs]
    except RuntimeError as error:
        return RowVerdict(why_not=f"the graph cannot be read: {error}")
    missing = mixed("nothing gives an output")
    return judge(
        {spec.name: values.get(key, missing) for spec, key in zip(outputs, sources, strict=True)}
    )


def _source(port: Any) -> _Port:  # noqa: ANN401  # ships no types that mypy reads
    source = port.get_source_output()
    return source.get_node().get_name(), source.get_index()


def _results(
    node: Any,  # noqa: ANN401  # ships no types that mypy reads
    kind: str,
    transfer: Transfer,
    values: Mapping[_Port, Value],
) -> list[Value]:
    """Return the outputs of an operation."""
    if kind == "Constant":
        return [_constant(node)]
    missing = mixed("nothing gives an input of an operation")
    taken: list[Value | None] = [values.get(_source(port), missing) for port in node.inputs()]
    call = _Call(transfer, taken, node.get_output_size(), node.get_attributes())
    operation = _OPERATIONS.get(kind, unknown_operator)
    results = run_operator(
        f"node '{node.get_friendly_name()}' ({kind})",
        _ONNX_NAMES.get(kind, kind) if kind in _OPERATIONS else "",
        call,
        operation,
        may_count=kind in _SIZED,
        is_deterministic=kind in _OPERATIONS,
    )
    return [_with_known_shape(value, node, i) for i, value in enumerate(results[: call.count])]


def _with_known_shape(value: Value, node: Any, number: int) -> Value:  # noqa: ANN401  # ships no types that mypy reads
    """Return the value with OpenVINO's shape, if that is the same for every batch."""
    shape = node.get_output_partial_shape(number)
    if value.shape is not None or not value.is_uniform or shape.is_dynamic:
        return value
    return replace(value, shape=tuple(Size(size.get_length()) for size in shape))


def _constant(node: Any) -> Value:  # noqa: ANN401  # ships no types that mypy reads
    shape = tuple(int(size) for size in node.get_output_shape(0))
    kind = node.get_output_element_type(0).get_type_name()
    if int(np.prod(shape, dtype=np.int64)) > MAX_ELEMENTS or kind in _NO_NUMBERS:
        return Value(shape=tuple(map(Size, shape)), is_integer=kind.startswith(_WHOLE))
    return constant(np.asarray(node.get_data()).reshape(shape))


def _broadcasting(apply: Callable[[OperatorCall], Results]) -> _Operation:
    """Return an element-wise operation on tensors that broadcast as in NumPy."""

    def operation(call: _Call) -> Results:
        if call.attributes.get("auto_broadcast", "numpy") not in {"numpy", "none"}:
            raise MixedRowsError("broadcasts in a way that is not followed")
        return apply(call)

    return operation


def _prelu(call: _Call) -> Results:
    """Return the result; the slope lies along axis 1 if it is a vector."""
    value, slope = call.value(0), call.value(1)
    call.uniform(1)
    if slope.shape is not None and product(slope.shape) == ONE:
        return call.transfer.elementwise([value])
    if value.rows is not None and value.rows.axis != 0:
        raise MixedRowsError("has parameters along the batch axis")
    if slope.shape is None or len(slope.shape) != 1:
        return call.transfer.elementwise([value, slope])
    return Value(shape=value.shape, rows=value.rows)


def _convert(call: _Call) -> Results:
    value = call.value()
    kind = call.text("destination_type")
    if kind not in {"i32", "i64", "f32", "f64"}:
        if value.counts_rows:
            raise MixedRowsError("computes with the number of rows")
        return replace(narrowed(value), is_integer=kind.startswith(_WHOLE))
    return replace(value, is_integer=kind.startswith("i"))


def _along_input(description: str) -> _Operation:
    def operation(call: _Call) -> Results:
        return call.transfer.along(call.value(), call.axes(1), description)

    return operation


def _reduce_product(call: _Call) -> Results:
    keep = bool(call.number("keep_dims"))
    return call.transfer.reduce(call.value(), call.axes(1), keep=keep, fold=FOLDS["Mul"])


def _matmul(call: _Call) -> Results:
    left, right = (
        call.transfer.swapped(call.value(i)) if call.attributes.get(name) else call.value(i)
        for i, name in enumerate(("transpose_a", "transpose_b"))
    )
    return call.transfer.matmul(left, right)


def _spatial(call: _Call, widths: Sequence[int]) -> list[Size]:
    """Return the output sizes of a window along all axes but the first two."""
    shape = (call.value().shape or ())[2:]
    strides = call.numbers("strides") or [1] * len(shape)
    dilations = call.numbers("dilations") or [1] * len(shape)
    starts, ends = call.numbers("pads_begin"), call.numbers("pads_end")
    auto, ceil = call.text("auto_pad"), call.text("rounding_type").startswith("ceil")
    if auto.startswith("same"):
        return [call.transfer.slid_same(size, strides[i]) for i, size in enumerate(shape)]
    pads = [0 if auto == "valid" else starts[i] + ends[i] for i in range(len(shape))]
    return [
        call.transfer.slid(size, widths[i], strides[i], pads[i], dilations[i], ceil=ceil)
        for i, size in enumerate(shape)
    ]


def _conv(call: _Call) -> Results:
    """Return a convolution; filters are [out, in, ...], or in groups [groups, out, in, ...]."""
    filters = list(call.value(1).shape or ())
    if "groups" in call.attributes or len(filters) > call.value().rank:
        filters[:2] = [multiply(*filters[:2])]
    sizes = _spatial(call, window_widths(filters[2:]))
    return call.transfer.window(call.value(), call.present()[1:], filters[0], sizes)


def _transposed_conv(call: _Call) -> Results:
    filters = call.value(1).shape or ()
    is_grouped = "groups" in call.attributes or len(filters) > call.value().rank
    channels = multiply(filters[0], filters[2]) if is_grouped else filters[1]
    sizes = [call.transfer.symbols.unknown(minimum=1) for _ in (call.value().shape or ())[2:]]
    return call.transfer.window(call.value(), call.present()[1:], channels, sizes)


def _pool(call: _Call) -> Results:
    pooled = call.transfer.window(call.value(), (), None, _spatial(call, call.numbers("kernel")))
    return [pooled, mixed("counts its indices through all rows")][: call.count]


def _adaptive_pool(call: _Call) -> Results:
    sizes = call.transfer.sized(call.sizes(1))
    return call.transfer.window(call.value(), (), None, sizes)


def _reshape(call: _Call) -> Results:
    value, target = call.value(), call.sizes(1)
    if call.attributes.get("special_zero"):
        for axis, size in enumerate(target):
            if size == ZERO:
                target[axis] = (value.shape or ())[axis]
    return call.transfer.reshape(value, target)


def _split_sizes(call: _Call) -> Results:
    (axis,) = call.axes(1)
    sizes = [None if size == Size(-1) else size for size in call.sizes(2)]
    return call.transfer.parts(call.value(), axis, sizes)


def _strided_slice(call: _Call) -> Results:
    begin, end, new_axis, shrink, ellipsis = (
        sum(bit << i for i, bit in enumerate(call.numbers(f"{name}_mask")))
        for name in ("begin", "end", "new_axis", "shrink_axis", "ellipsis")
    )
    masks = SliceMasks(begin=begin, end=end, ellipsis=ellipsis, new_axis=new_axis, shrink=shrink)
    starts = call.sizes(1)
    has_steps = len(call.inputs) > 3  # noqa: PLR2004  # data and two bounds come first
    steps = constants(call.value(3)) if has_steps else [1] * len(starts)
    return call.transfer.strided_slice(call.value(), starts, call.sizes(2), steps, masks)


def _slice(call: _Call) -> Results:
    value = call.value()
    starts, ends, steps = call.sizes(1), call.sizes(2), call.sizes(3)
    axes = call.axes(4) if len(call.inputs) > 4 else list(range(len(starts)))  # noqa: PLR2004  # optional
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        constant_step = step.number if step is not None and step.is_constant else None
        value = call.transfer.cut(value, axis, start, end, constant_step)
    return value


def _gather(call: _Call) -> Results:
    if call.number("batch_dims"):
        raise MixedRowsError("has axes of batches, which are not followed")
    return call.transfer.gather(call.value(0), call.value(1), call.axis(2))


def _pad(call: _Call) -> Results:
    call.uniform(3)
    both = zip(call.sizes(1), call.sizes(2), strict=True)
    return call.transfer.padded(call.value(), dict(enumerate(both)))


def _tile(call: _Call) -> Results:
    repeats = call.sizes(1)
    missing = call.value().rank - len(repeats)
    return call.transfer.tile(call.value(), [*[ONE] * missing, *repeats])


def _broadcast(call: _Call) -> Results:
    if call.text("mode") not in {"numpy", "bidirectional"}:
        raise MixedRowsError("broadcasts in a way that is not followed")
    return call.transfer.expand(call.value(), call.sizes(1))


def _interpolate(call: _Call) -> Results:
    """Return the result of versions 4 and 11: sizes or scales of the axes that are listed last."""
    value = call.value()
    if value.counts_rows:
        raise MixedRowsError("computes with the number of rows")
    by_size = call.text("shape_calculation_mode") == "sizes"
    last = len(call.inputs) - 1
    numbers = call.sizes(1)
    axes = call.axes(last) if last > (1 if "Interpolate-11" in call.attributes else 2) else None
    if axes is None or len(axes) != len(numbers):
        axes = list(range(value.rank)) if len(numbers) == value.rank else None
    if axes is None:
        raise MixedRowsError("takes axes that are computed while it runs")
    if any(call.numbers("pads_begin")) or any(call.numbers("pads_end")):
        raise MixedRowsError("pads along all axes")
    symbols = call.transfer.symbols
    sizes: dict[int, Size] = {}
    for axis, number in zip(axes, numbers, strict=True):
        size = (value.shape or ())[normal_axis(axis, value.rank)]
        if number == (size if by_size else ONE):
            continue
        is_known = by_size and number is not None
        sizes[axis] = number if is_known and number is not None else symbols.unknown(minimum=1)
    return call.transfer.resized(value, sizes, "resizes")


def _group_norm(call: _Call) -> Results:
    others = call.present()[1:]
    return call.transfer.window(call.value(), others, None, (call.value().shape or ())[2:])


def _recurrent(call: _Call) -> Results:
    """Return sequences [batch, length, width]; states are [batch, directions, hidden]."""
    kind_inputs = call.count  # an LSTM has one more state, as input and output
    states = call.present()[1:kind_inputs]
    lengths = call.value(kind_inputs)
    value = call.value()
    call.uniform(*range(kind_inputs + 1, len(call.inputs)))
    if value.rows is None or any(
        item.rows != BatchRows(axis=0) for item in (value, *states, lengths)
    ):
        raise MixedRowsError("begins with a state by position")
    _, directions, hidden = states[0].shape or ()
    by_row = call.transfer.by_row
    whole_sequence = by_row([value], [directions, (value.shape or ())[1], hidden])
    last = by_row([value], [directions, hidden])
    return [whole_sequence, *[last] * (call.count - 1)]


def _space_depth(*, into_depth: bool) -> _Operation:
    def operation(call: _Call) -> Results:
        block = Size(call.number("block_size", 1))
        return call.transfer.exchange_depth(call.value(), block, into_depth=into_depth)

    return operation


def _attention(call: _Call) -> Results:
    """Return products over the last two axes; the other axes broadcast."""
    query, key, value = (call.value(number) for number in range(3))
    scores = call.transfer.matmul(query, call.transfer.swapped(key))
    if len(call.inputs) > 3:  # noqa: PLR2004  # the mask is optional
        scores = call.transfer.elementwise([scores, call.value(3)])
    call.uniform(4)
    scores = call.transfer.along(scores, [-1], "normalises")
    return call.transfer.matmul(scores, value)


_ELEMENTWISE: Final = """
Abs Acos Acosh Asin Asinh Atan Atanh Clamp Cos Cosh Elu Erf Exp FakeQuantize GELU Gelu HSigmoid
HSwish HardSigmoid Log LogicalAnd LogicalNot LogicalOr LogicalXor Mish NotEqual Power ReLU Relu SELU
Selu Sigmoid Sign Sin Sinh SoftPlus SoftSign Sqrt SquaredDifference Swish Tan Tanh BitwiseAnd
BitwiseOr BitwiseXor BitwiseNot IsNaN IsInf IsFinite
"""
_FOLDED: Final = """
Add Subtract Multiply Divide Negative FloorMod Mod Maximum Minimum Equal Greater Less GreaterEqual
LessEqual Select Floor Ceiling Round
"""
_REDUCTIONS: Final = """
ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum ReduceLogicalAnd ReduceLogicalOr
"""
_CONVOLUTIONS_BACK: Final = "ConvolutionBackpropData GroupConvolutionBackpropData"
_OPERATIONS: Final[Mapping[str, _Operation]] = {
    **for_names(_ELEMENTWISE, _broadcasting(elementwise)),
    **{
        name: _broadcasting(folding(FOLDS[_ONNX_NAMES.get(name, name)])) for name in _FOLDED.split()
    },
    "PRelu": _prelu,
    "Convert": _convert,
    **for_names(
        "Softmax LogSoftmax",
        lambda call: call.transfer.along(call.value(), [call.number("axis", 1)], "normalises"),
    ),
    **for_names("MVN NormalizeL2", _along_input("normalises")),
    "CumSum": _along_input("runs"),
    **for_names(
        _REDUCTIONS,
        lambda call: call.transfer.reduce(
            call.value(), call.axes(1), keep=bool(call.number("keep_dims"))
        ),
    ),
    "ReduceProd": _reduce_product,
    "TopK": lambda call: call.transfer.ranked(call.value(), call.number("axis", -1), call.size(1)),
    "MatMul": _matmul,
    **for_names("Convolution GroupConvolution", _conv),
    **for_names(_CONVOLUTIONS_BACK, _transposed_conv),
    **for_names("MaxPool AvgPool", _pool),
    "AdaptiveAvgPool": _adaptive_pool,
    "BatchNormInference": lambda call: call.uniform(1, 2, 3, 4).transfer.window(
        call.value(), (), None, (call.value().shape or ())[2:]
    ),
    "GroupNormalization": _group_norm,
    "ShapeOf": shape_of,
    "Reshape": _reshape,
    "Squeeze": lambda call: call.transfer.squeeze(
        call.value(), call.axes(1) if len(call.inputs) > 1 else None
    ),
    "Unsqueeze": unsqueezed,
    "Transpose": transposed,
    "Concat": lambda call: call.transfer.concat(call.present(), call.number("axis")),
    "Split": lambda call: call.transfer.split(call.value(), call.axis(1), call.count),
    "VariadicSplit": _split_sizes,
    "StridedSlice": _strided_slice,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": lambda call: call.transfer.take_along(
        call.value(0), call.value(1), call.number("axis")
    ),
    "GatherND": lambda call: call.transfer.look_up(
        call.value(0), call.value(1), call.number("batch_dims")
    ),
    "ScatterNDUpdate": scattered,
    "Range": counted,
    "Identity": same,
    "Pad": _pad,
    "Tile": _tile,
    "Broadcast": _broadcast,
    "OneHot": lambda call: call.uniform(1, 2, 3).transfer.one_hot(
        call.value(), call.number("axis", -1), call.size(1)
    ),
    "Interpolate": _interpolate,
    **for_names("LSTMSequence GRUSequence RNNSequence", _recurrent),
    "DepthToSpace": _space_depth(into_depth=False),
    "SpaceToDepth": _space_depth(into_depth=True),
    "ScaledDotProductAttention": _attention,
}
_OTHER_SIZED: Final = """
Range Identity Interpolate Convert ReduceProd ShapeOf Reshape Squeeze Unsqueeze Transpose Concat
Split StridedSlice Slice Gather Tile Broadcast Pad
"""
_SIZED: Final = frozenset([*_FOLDED.split(), *_OTHER_SIZED.split()])
"""Operations that may take elements that depend on the number of rows; others may not."""
