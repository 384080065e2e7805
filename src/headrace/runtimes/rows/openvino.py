"""Row analysis of models that OpenVINO has read, whichever format they are stored in.

Operators: https://docs.openvino.ai/latest/documentation/openvino-ir-format/operation-sets.html
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from headrace.core import TensorSpec
from headrace.runtimes.rows.folds import (
    MakeFold,
    comparison,
    difference,
    extreme,
    negation,
    product_of,
    quotient,
    remainder,
    selection,
    sum_of,
    whole,
)
from headrace.runtimes.rows.symbols import ONE, ZERO, Size, divide, multiply, product
from headrace.runtimes.rows.transfer import (
    MOVES_NUMBERS,
    Results,
    SliceMasks,
    Transfer,
    follow_row_numbers,
    followed,
)
from headrace.runtimes.rows.values import (
    MAX_ELEMENTS,
    BatchRows,
    MixedRowsError,
    Value,
    Verdict,
    constant,
    constants,
    judge,
    known_axes,
    known_sizes,
    mixed,
    model_input,
    normal_axis,
    shape_value,
)

_ONNX_NAMES: Final = {
    "Multiply": "Mul",
    "ShapeOf": "Shape",
    "Convert": "Cast",
    "Broadcast": "Expand",
}
"""Of operations that may take the rows' positions, where ONNX has another name."""
_MOVES: Final = MOVES_NUMBERS | {"Convert", "Broadcast"}
_WHOLE: Final = ("i", "u", "boolean")
_OPEN: Final = Size(1 << 40)


@dataclass(slots=True)
class _Call:
    """One operation with the values of its inputs."""

    transfer: Transfer
    inputs: list[Value]
    attributes: Mapping[str, Any]
    count: int

    def value(self, number: int = 0) -> Value:
        if number >= len(self.inputs):
            raise MixedRowsError("lacks an input")
        return self.inputs[number]

    def number(self, name: str, default: int = 0) -> int:
        return int(self.attributes.get(name, default))

    def numbers(self, name: str) -> list[int]:
        return [int(item) for item in self.attributes.get(name, ())]

    def text(self, name: str) -> str:
        return str(self.attributes.get(name, "")).lower()

    def sizes(self, number: int) -> list[Size | None]:
        return known_sizes(self.value(number))

    def axes(self, number: int) -> list[int]:
        return known_axes(self.value(number))

    def uniform(self, *numbers: int) -> None:
        for number in numbers:
            if number < len(self.inputs) and not self.inputs[number].is_uniform:
                raise MixedRowsError("has parameters that depend on the batch")


_Operation = Callable[[_Call], Results]
_Port = tuple[str, int]
"""The name of a node and the number of its output."""


def analyse_openvino(
    model: Any,  # noqa: ANN401  # ships no types that mypy reads
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> Verdict:
    """Whether the rows of a model's outputs depend on their own input rows alone.

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
        return Verdict(why_not=f"the graph cannot be read: {error}")
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
    """The outputs of an operation."""
    if kind == "Constant":
        return [_constant(node)]
    missing = mixed("nothing gives an input of an operation")
    taken = [values.get(_source(port), missing) for port in node.inputs()]
    count = node.get_output_size()
    operation = _OPERATIONS.get(kind)
    call = _Call(transfer, taken, node.get_attributes(), count)
    if operation is not None:
        numbered = follow_row_numbers(
            _ONNX_NAMES.get(kind, kind), list(taken), transfer, _again(operation, call)
        )
        if numbered is not None:
            return [numbered]
    results = followed(
        f"node '{node.get_friendly_name()}' ({kind})",
        taken,
        count,
        _applied(operation, call),
        may_count=kind in _SIZED,
        is_deterministic=operation is not None,
    )
    if kind in _MOVES and taken and taken[0].below is not None:
        results = [replace(results[0], below=taken[0].below)]
    return [_with_known_shape(value, node, i) for i, value in enumerate(results[:count])]


def _again(operation: _Operation, call: _Call) -> Callable[[list[Value | None]], Results]:
    def apply(values: list[Value | None]) -> Results:
        inputs = [value for value in values if value is not None]
        return operation(_Call(call.transfer, inputs, call.attributes, call.count))

    return apply


def _with_known_shape(value: Value, node: Any, number: int) -> Value:  # noqa: ANN401  # ships no types that mypy reads
    """The value with the shape that OpenVINO knows, if it is the same for every batch."""
    shape = node.get_output_partial_shape(number)
    if value.shape is not None or not value.is_uniform or shape.is_dynamic:
        return value
    return replace(value, shape=tuple(Size(size.get_length()) for size in shape))


def _applied(operation: _Operation | None, call: _Call) -> Callable[[], Results]:
    def apply() -> Results:
        if operation is None:
            raise MixedRowsError("is an operation that is not known to keep rows apart")
        return operation(call)

    return apply


def _constant(node: Any) -> Value:  # noqa: ANN401  # ships no types that mypy reads
    shape = tuple(int(size) for size in node.get_output_shape(0))
    kind = node.get_output_element_type(0).get_type_name()
    if int(np.prod(shape, dtype=np.int64)) > MAX_ELEMENTS or kind in {
        "string",
        "bf16",
        "i4",
        "u4",
        "nf4",
        "u1",
    }:
        return Value(shape=tuple(map(Size, shape)), is_integer=kind.startswith(_WHOLE))
    return constant(np.asarray(node.get_data()).reshape(shape))


def _elementwise(call: _Call) -> Results:
    if call.attributes.get("auto_broadcast", "numpy") not in {"numpy", "none"}:
        raise MixedRowsError("broadcasts in a way that is not followed")
    return call.transfer.elementwise(call.inputs)


def _folding(fold: MakeFold) -> _Operation:
    def operation(call: _Call) -> Results:
        if call.attributes.get("auto_broadcast", "numpy") not in {"numpy", "none"}:
            raise MixedRowsError("broadcasts in a way that is not followed")
        is_integer = all(value.is_integer for value in call.inputs)
        return call.transfer.elementwise(call.inputs, fold(call.transfer, is_integer))

    return operation


def _prelu(call: _Call) -> Results:
    """The slope lies along axis 1 if it is a vector."""
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
        return replace(value, elements=None, is_integer=kind.startswith(_WHOLE))
    return replace(value, is_integer=kind.startswith("i"))


def _along(default: int) -> _Operation:
    def operation(call: _Call) -> Results:
        return call.transfer.along(call.value(), [call.number("axis", default)], "normalises")

    return operation


def _along_input(what: str) -> _Operation:
    def operation(call: _Call) -> Results:
        return call.transfer.along(call.value(), call.axes(1), what)

    return operation


def _reduce(call: _Call) -> Results:
    value = call.value()
    if value.counts_rows:
        raise MixedRowsError("computes with the number of rows")
    return call.transfer.reduce(value, call.axes(1), keep=bool(call.number("keep_dims")))


def _reduce_product(call: _Call) -> Results:
    value = call.value()
    if value.elements is None or value.elements.ndim != 1 or call.axes(1) not in ([0], [-1]):
        return _reduce(call)
    items = [item for item in value.elements if item is not None]
    if len(items) < value.elements.size:
        return _reduce(call)
    elements = np.empty((1,) if call.number("keep_dims") else (), np.object_)
    elements[...] = product(items)
    return Value(shape=tuple(map(Size, elements.shape)), elements=elements, is_integer=True)


def _top(call: _Call) -> Results:
    (count,) = call.sizes(1)
    size = call.transfer.symbols.unknown() if count is None else count
    value, axis = call.value(), call.number("axis", -1)
    result = call.transfer.resized(value, {axis: size}, "ranks")
    below = value.shape[axis] if value.shape else None
    return [result, replace(result, is_integer=True, below=below)]


def _matmul(call: _Call) -> Results:
    parts = []
    for number, name in ((0, "transpose_a"), (1, "transpose_b")):
        value = call.value(number)
        if call.attributes.get(name) and value.rank > 1:
            order = list(range(value.rank))
            order[-2], order[-1] = order[-1], order[-2]
            value = call.transfer.transpose(value, order)
        parts.append(value)
    return call.transfer.matmul(*parts)


def _spatial(call: _Call, widths: Sequence[int]) -> list[Size]:
    """The sizes that a window gives along all axes but the first two."""
    shape = (call.value().shape or ())[2:]
    symbols = call.transfer.symbols
    strides = call.numbers("strides") or [1] * len(shape)
    dilations = call.numbers("dilations") or [1] * len(shape)
    begins, ends = call.numbers("pads_begin"), call.numbers("pads_end")
    auto = call.text("auto_pad")
    sizes = []
    for i, size in enumerate(shape):
        stride = Size(strides[i])
        if auto.startswith("same"):
            sizes.append(symbols.floor_divide(symbols.add(size, Size(strides[i] - 1)), stride))
            continue
        pads = 0 if auto == "valid" else begins[i] + ends[i]
        free = symbols.add(size, Size(pads - dilations[i] * (widths[i] - 1) - 1))
        if call.text("rounding_type").startswith("ceil") and divide(free, stride) is None:
            sizes.append(symbols.of("ceil", free, strides[i], pads))
            continue
        sizes.append(symbols.add(symbols.floor_divide(free, stride), ONE))
    return sizes


def _known(sizes: Sequence[Size]) -> list[int]:
    if not all(size.is_constant for size in sizes):
        raise MixedRowsError("has weights of unknown shape")
    return [size.number for size in sizes]


def _conv(call: _Call) -> Results:
    """Filters are [out, in, ...]."""
    filters = call.value(1).shape or ()
    sizes = _spatial(call, _known(filters[2:]))
    return call.transfer.window(call.value(), call.inputs[1:], filters[0], sizes)


def _group_conv(call: _Call) -> Results:
    """Filters are [groups, out, in, ...]."""
    filters = call.value(1).shape or ()
    sizes = _spatial(call, _known(filters[3:]))
    return call.transfer.window(
        call.value(), call.inputs[1:], multiply(filters[0], filters[1]), sizes
    )


def _transposed_conv(call: _Call) -> Results:
    filters = call.value(1).shape or ()
    is_grouped = "groups" in call.attributes or len(filters) > call.value().rank
    channels = multiply(filters[0], filters[2]) if is_grouped else filters[1]
    sizes = [call.transfer.symbols.unknown(minimum=1) for _ in (call.value().shape or ())[2:]]
    return call.transfer.window(call.value(), call.inputs[1:], channels, sizes)


def _pool(call: _Call) -> Results:
    pooled = call.transfer.window(call.value(), (), None, _spatial(call, call.numbers("kernel")))
    return [pooled, mixed("counts its indices through all rows")][: call.count]


def _adaptive_pool(call: _Call) -> Results:
    sizes = [call.transfer.symbols.unknown() if size is None else size for size in call.sizes(1)]
    return call.transfer.window(call.value(), (), None, sizes)


def _shape(call: _Call) -> Results:
    return shape_value(call.value())


def _reshape(call: _Call) -> Results:
    value, target = call.value(), call.sizes(1)
    if call.attributes.get("special_zero"):
        for axis, size in enumerate(target):
            if size == ZERO:
                target[axis] = (value.shape or ())[axis]
    return call.transfer.reshape(value, target)


def _squeeze(call: _Call) -> Results:
    return call.transfer.squeeze(call.value(), call.axes(1) if len(call.inputs) > 1 else None)


def _unsqueeze(call: _Call) -> Results:
    return call.transfer.unsqueeze(call.value(), call.axes(1))


def _transpose(call: _Call) -> Results:
    order = call.axes(1)
    return call.transfer.transpose(call.value(), order or None)


def _concat(call: _Call) -> Results:
    return call.transfer.concat(call.inputs, call.number("axis"))


def _split(call: _Call) -> Results:
    value = call.value()
    (axis,) = call.axes(1)
    axis = normal_axis(axis, value.rank)
    even = divide((value.shape or ())[axis], Size(call.count))
    if even is None or not even.is_constant:
        part = call.transfer.symbols.unknown() if even is None else even
        return [call.transfer.resized(value, {axis: part}, "splits")] * call.count
    step = even.number
    bounds = [(Size(i * step), Size((i + 1) * step)) for i in range(call.count)]
    return [call.transfer.cut(value, axis, start, end, 1) for start, end in bounds]


def _split_sizes(call: _Call) -> Results:
    (axis,) = call.axes(1)
    sizes = [
        call.transfer.symbols.unknown() if size in (None, Size(-1)) or size is None else size
        for size in call.sizes(2)
    ]
    return [call.transfer.resized(call.value(), {axis: size}, "splits") for size in sizes]


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
        known = step.number if step is not None and step.is_constant else None
        value = call.transfer.cut(value, axis, start, end, known)
    return value


def _gather(call: _Call) -> Results:
    if call.number("batch_dims"):
        raise MixedRowsError("has axes of batches, which are not followed")
    (axis,) = call.axes(2)
    return call.transfer.gather(call.value(0), call.value(1), axis)


def _scatter(call: _Call) -> Results:
    return call.transfer.scatter(call.value(0), call.value(1), call.value(2))


def _take_along(call: _Call) -> Results:
    return call.transfer.take_along(call.value(0), call.value(1), call.number("axis"))


def _look_up(call: _Call) -> Results:
    return call.transfer.look_up(call.value(0), call.value(1), call.number("batch_dims"))


def _range(call: _Call) -> Results:
    return call.transfer.count(*(call.value(number) for number in range(3)))


def _same(call: _Call) -> Results:
    return call.value()


def _pad(call: _Call) -> Results:
    value = call.value()
    call.uniform(3)
    if value.counts_rows:
        raise MixedRowsError("computes with the number of rows")
    sizes: dict[int, Size] = {}
    symbols = call.transfer.symbols
    for axis, both in enumerate(zip(call.sizes(1), call.sizes(2), strict=True)):
        if both == (ZERO, ZERO):
            continue
        size = (value.shape or ())[axis]
        for pad in both:
            size = symbols.unknown() if pad is None else symbols.add(size, pad)
        sizes[axis] = size
    return call.transfer.resized(replace(value, elements=None), sizes, "pads")


def _tile(call: _Call) -> Results:
    repeats = call.sizes(1)
    missing = call.value().rank - len(repeats)
    return call.transfer.tile(call.value(), [*[ONE] * missing, *repeats])


def _broadcast(call: _Call) -> Results:
    if call.text("mode") not in {"numpy", "bidirectional"}:
        raise MixedRowsError("broadcasts in a way that is not followed")
    return call.transfer.expand(call.value(), call.sizes(1))


def _one_hot(call: _Call) -> Results:
    call.uniform(1, 2, 3)
    axis = call.number("axis", -1)
    wide = call.transfer.unsqueeze(replace(call.value(), elements=None), [axis])
    (depth,) = call.sizes(1)
    size = call.transfer.symbols.unknown() if depth is None else depth
    return call.transfer.resized(wide, {axis: size})


def _interpolate(call: _Call) -> Results:
    """Version 4 and 11: sizes or scales of the axes that are listed last."""
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


def _batch_norm(call: _Call) -> Results:
    call.uniform(1, 2, 3, 4)
    return call.transfer.window(call.value(), (), None, (call.value().shape or ())[2:])


def _group_norm(call: _Call) -> Results:
    return call.transfer.window(call.value(), call.inputs[1:], None, (call.value().shape or ())[2:])


def _recurrent(call: _Call) -> Results:
    """Sequences of rows: [batch, length, width]; states are [batch, directions, hidden]."""
    kind_inputs = call.count  # an LSTM has one more state, and gives it
    states = call.inputs[1:kind_inputs]
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


def _space_depth(*, wider: bool) -> _Operation:
    def operation(call: _Call) -> Results:
        block = Size(call.number("block_size", 1))
        _, channels, *spatial = call.value().shape or ()
        divided, area = call.transfer.symbols.floor_divide, product([block] * len(spatial))
        if wider:
            sizes = [multiply(size, block) for size in spatial]
            return call.transfer.window(call.value(), (), divided(channels, area), sizes)
        sizes = [divided(size, block) for size in spatial]
        return call.transfer.window(call.value(), (), multiply(channels, area), sizes)

    return operation


def _attention(call: _Call) -> Results:
    """Products over the last two axes; all before them broadcast."""
    query, key, value = (call.value(number) for number in range(3))
    order = list(range(key.rank))
    order[-2], order[-1] = order[-1], order[-2]
    scores = call.transfer.matmul(query, call.transfer.transpose(key, order))
    if len(call.inputs) > 3:  # noqa: PLR2004  # the mask is optional
        scores = call.transfer.elementwise([scores, call.value(3)])
    call.uniform(4)
    scores = call.transfer.along(scores, [-1], "normalises")
    return call.transfer.matmul(scores, value)


_ELEMENTWISE: Final = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Clamp",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "FakeQuantize",
    "GELU",
    "Gelu",
    "HSigmoid",
    "HSwish",
    "HardSigmoid",
    "Log",
    "LogicalAnd",
    "LogicalNot",
    "LogicalOr",
    "LogicalXor",
    "Mish",
    "NotEqual",
    "Power",
    "ReLU",
    "Relu",
    "SELU",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "SoftPlus",
    "SoftSign",
    "Sqrt",
    "SquaredDifference",
    "Swish",
    "Tan",
    "Tanh",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "BitwiseNot",
    "IsNaN",
    "IsInf",
    "IsFinite",
]
_OPERATIONS: Final[Mapping[str, _Operation]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    "Add": _folding(sum_of),
    "Subtract": _folding(difference),
    "Multiply": _folding(product_of),
    "Divide": _folding(quotient),
    "Negative": _folding(negation),
    "FloorMod": _folding(remainder),
    "Mod": _folding(remainder),
    "Maximum": _folding(extreme(max)),
    "Minimum": _folding(extreme(min)),
    "Equal": _folding(comparison(equal=True, otherwise=False)),
    "Greater": _folding(comparison(equal=False, otherwise=False)),
    "Less": _folding(comparison(equal=False, otherwise=False)),
    "GreaterEqual": _folding(comparison(equal=True, otherwise=True)),
    "LessEqual": _folding(comparison(equal=True, otherwise=True)),
    "Select": _folding(selection),
    "Floor": _folding(whole),
    "Ceiling": _folding(whole),
    "Round": _folding(whole),
    "PRelu": _prelu,
    "Convert": _convert,
    "Softmax": _along(1),
    "LogSoftmax": _along(1),
    "MVN": _along_input("normalises"),
    "NormalizeL2": _along_input("normalises"),
    "CumSum": _along_input("runs"),
    **dict.fromkeys(
        (
            "ReduceL1",
            "ReduceL2",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceSum",
            "ReduceLogicalAnd",
            "ReduceLogicalOr",
        ),
        _reduce,
    ),
    "ReduceProd": _reduce_product,
    "TopK": _top,
    "MatMul": _matmul,
    "Convolution": _conv,
    "GroupConvolution": _group_conv,
    "ConvolutionBackpropData": _transposed_conv,
    "GroupConvolutionBackpropData": _transposed_conv,
    "MaxPool": _pool,
    "AvgPool": _pool,
    "AdaptiveAvgPool": _adaptive_pool,
    "BatchNormInference": _batch_norm,
    "GroupNormalization": _group_norm,
    "ShapeOf": _shape,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "VariadicSplit": _split_sizes,
    "StridedSlice": _strided_slice,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _take_along,
    "GatherND": _look_up,
    "ScatterNDUpdate": _scatter,
    "Range": _range,
    "Identity": _same,
    "Pad": _pad,
    "Tile": _tile,
    "Broadcast": _broadcast,
    "OneHot": _one_hot,
    "Interpolate": _interpolate,
    "LSTMSequence": _recurrent,
    "GRUSequence": _recurrent,
    "RNNSequence": _recurrent,
    "DepthToSpace": _space_depth(wider=True),
    "SpaceToDepth": _space_depth(wider=False),
    "ScaledDotProductAttention": _attention,
}
_SIZED: Final = frozenset(
    [
        "Range",
        "Identity",
        "Interpolate",
        "Add",
        "Subtract",
        "Multiply",
        "Divide",
        "Negative",
        "FloorMod",
        "Mod",
        "Maximum",
        "Minimum",
        "Equal",
        "Greater",
        "Less",
        "GreaterEqual",
        "LessEqual",
        "Select",
        "Floor",
        "Ceiling",
        "Round",
        "Convert",
        "ReduceProd",
        "ShapeOf",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Concat",
        "Split",
        "StridedSlice",
        "Slice",
        "Gather",
        "Tile",
        "Broadcast",
        "Pad",
    ]
)
"""Operations that follow elements that depend on the number of rows; no others may take them."""
