"""Row analysis of TFLite models.

Operators and the order of their options: the schema and the kernels of LiteRT,
https://github.com/google-ai-edge/LiteRT/tree/main/tflite.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from headrace.core import TensorSpec
from headrace.runtimes.file_bytes import Table
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
)
from headrace.runtimes.rows.symbols import ZERO, Size, divide, multiply, product
from headrace.runtimes.rows.transfer import Results, SliceMasks, Transfer, followed
from headrace.runtimes.rows.values import (
    MAX_ELEMENTS,
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
    with_rows,
)

_DTYPES: Final = {0: "<f4", 2: "<i4", 4: "<i8", 6: "?", 7: "<i2", 9: "i1", 3: "u1"}
_PLACEHOLDER: Final = 127


@dataclass(slots=True)
class _Call:
    """One operator with the values of its inputs."""

    transfer: Transfer
    inputs: list[Value | None]
    options: Table | None
    count: int

    def value(self, number: int = 0) -> Value:
        value = self.inputs[number] if number < len(self.inputs) else None
        if value is None:
            raise MixedRowsError("lacks an input")
        return value

    def option(self, field: int, layout: str = "<i", default: int = 0) -> int:
        return default if self.options is None else int(self.options.number(field, layout, default))

    def sizes(self, number: int) -> list[Size | None]:
        return known_sizes(self.value(number))

    def axes(self, number: int) -> list[int]:
        return known_axes(self.value(number))

    def uniform(self, *numbers: int) -> None:
        for number in numbers:
            value = self.inputs[number] if number < len(self.inputs) else None
            if value is not None and not value.is_uniform:
                raise MixedRowsError("has parameters that depend on the batch")


_Operator = Callable[[_Call], Results]


def analyse_tflite(
    data: bytes, inputs: Mapping[int, TensorSpec], outputs: Mapping[int, TensorSpec]
) -> Verdict:
    """Whether the rows of a TFLite model's outputs depend on their own input rows alone.

    Args:
        data: The file, which `read_tflite` did not refuse.
        inputs: By number of tensor; axis 0 of each is the batch.
        outputs: By number of tensor.
    """
    try:
        return _analysed(Table.root(data), inputs, outputs)
    except (ValueError, LookupError, struct.error) as error:
        return Verdict(why_not=f"the graph cannot be read: {error}")


def _analysed(
    root: Table, inputs: Mapping[int, TensorSpec], outputs: Mapping[int, TensorSpec]
) -> Verdict:
    codes = [_code(code) for code in root.tables(1)]
    buffers = list(root.tables(4))
    graph = next(root.tables(2))
    transfer = Transfer()
    values: dict[int, Value] = {}
    for number, table in enumerate(graph.tables(0)):
        value = _constant(table, buffers)
        if value is not None:
            values[number] = value
    for number, spec in inputs.items():
        values[number] = model_input(transfer.symbols, spec, number)
    for place, table in enumerate(graph.tables(3)):
        code = codes[int(table.number(0, "<I", 0))]
        operator = _OPERATORS.get(code)
        what = f"operator {place} ({_NAMES.get(code, code)})"
        numbers = [int(number) for number in table.array(1, "<i4")]
        taken = [values.get(number) if number >= 0 else None for number in numbers]
        if any(value is None and number >= 0 for value, number in zip(taken, numbers, strict=True)):
            taken = [mixed(f"{what} takes a tensor that nothing gives")]
        made = [int(number) for number in table.array(2, "<i4")]
        call = _Call(transfer, taken, table.table(4), len(made))
        results = followed(
            what,
            [value for value in taken if value is not None],
            len(made),
            _applied(operator, call),
            may_count=code in _SIZED,
            is_deterministic=operator is not None,
        )
        values.update(zip(made, results, strict=False))
    return judge(
        {
            spec.name: values.get(number, mixed("nothing gives an output"))
            for number, spec in outputs.items()
        }
    )


def _applied(operator: _Operator | None, call: _Call) -> Callable[[], Results]:
    def apply() -> Results:
        if operator is None:
            raise MixedRowsError("is an operator that is not known to keep rows apart")
        return operator(call)

    return apply


def _code(table: Table) -> int:
    old, new = int(table.number(0, "<b", 0)), int(table.number(3, "<i", 0))
    return new if old == _PLACEHOLDER else max(old, new)


def _constant(table: Table, buffers: Sequence[Table]) -> Value | None:
    """The value of a tensor that the file holds; None if it is computed."""
    shape = [int(size) for size in table.array(0, "<i4")]
    kind, number = int(table.number(1, "<b", 0)), int(table.number(2, "<I", 0))
    buffer = buffers[number]
    data = buffer.array(0, "u1")
    behind = int(buffer.number(1, "<Q", 0)) > 1
    if not data.size and not behind:
        return None
    dtype = _DTYPES.get(kind)
    count = int(np.prod(shape, dtype=np.int64))
    bare = Value(shape=tuple(map(Size, shape)), is_integer=kind not in {0, 1, 10})
    is_plain = dtype is not None and data.size == count * np.dtype(dtype).itemsize
    if behind or not is_plain or count > MAX_ELEMENTS:
        return bare
    return constant(np.frombuffer(data.tobytes(), dtype).reshape(shape))


def _elementwise(call: _Call) -> Results:
    return call.transfer.elementwise([value for value in call.inputs if value is not None])


def _folding(fold: MakeFold) -> _Operator:
    def operator(call: _Call) -> Results:
        values = [value for value in call.inputs if value is not None]
        is_integer = all(value.is_integer for value in values)
        return call.transfer.elementwise(values, fold(call.transfer, is_integer))

    return operator


def _select(call: _Call) -> Results:
    """Of tensors of one rank: a condition of lower rank would choose whole entries of axis 0."""
    if len({call.value(number).rank for number in range(3)}) > 1:
        raise MixedRowsError("chooses rows by their position")
    return _folding(selection)(call)


def _cast(call: _Call) -> Results:
    value = call.value()
    kind = call.option(1, "<b")
    if kind not in {0, 2, 4}:
        if value.counts_rows:
            raise MixedRowsError("computes with the number of rows")
        return replace(value, elements=None)
    return replace(value, is_integer=kind != 0)


def _last_axis(call: _Call) -> Results:
    return call.transfer.along(call.value(), [-1], "normalises")


def _reduce(call: _Call) -> Results:
    value, axes = call.value(), call.axes(1)
    keep = bool(call.option(0, "<b"))
    if value.counts_rows:
        raise MixedRowsError("computes with the number of rows")
    return call.transfer.reduce(value, axes, keep=keep)


def _reduce_product(call: _Call) -> Results:
    value, axes = call.value(), call.axes(1)
    if value.elements is None or value.elements.ndim != 1 or axes not in ([0], [-1]):
        return _reduce(call)
    items = [item for item in value.elements if item is not None]
    if len(items) < value.elements.size:
        return _reduce(call)
    elements = np.empty((1,) if call.option(0, "<b") else (), np.object_)
    elements[...] = product(items)
    return Value(shape=tuple(map(Size, elements.shape)), elements=elements, is_integer=True)


def _arg(call: _Call) -> Results:
    return call.transfer.reduce(call.value(), call.axes(1), keep=False, is_integer=True)


def _top(call: _Call) -> Results:
    (count,) = call.sizes(1)
    size = call.transfer.symbols.unknown() if count is None else count
    result = call.transfer.resized(call.value(), {-1: size}, "ranks")
    return [result, replace(result, is_integer=True)]


def _cumulative(call: _Call) -> Results:
    return call.transfer.along(call.value(), call.axes(1))


def _reverse(call: _Call) -> Results:
    return call.transfer.along(call.value(), call.axes(1), "reverses")


def _windowed(
    call: _Call,
    width: list[int],
    options: tuple[int, int, int],
    dilation: tuple[int, int],
    channels: Size | None,
) -> Results:
    """A window over axes 1 and 2; `options`: the fields of padding and of the two strides."""
    value = call.value()
    shape = value.shape or ()
    symbols = call.transfer.symbols
    same = call.option(options[0], "<b") == 0
    sizes = []
    for i, axis in enumerate((1, 2)):
        stride = Size(call.option(options[2 - i], "<i", 1))
        factor = call.option(dilation[1 - i], "<i", 1) if dilation[0] >= 0 else 1
        whole_width = factor * (width[i] - 1) + 1
        free = symbols.add(shape[axis], Size(stride.number - (1 if same else whole_width)))
        sizes.append(symbols.floor_divide(free, stride))
    others = [item for item in call.inputs[1:] if item is not None]
    return call.transfer.window(value, others, channels, sizes, channel_axis=-1)


def _numbers(sizes: Sequence[Size]) -> list[int]:
    if not all(size.is_constant for size in sizes):
        raise MixedRowsError("has weights of unknown shape")
    return [size.number for size in sizes]


def _conv(call: _Call) -> Results:
    """Filters are [out, height, width, in]."""
    filters = call.value(1).shape or ()
    return _windowed(call, _numbers(filters[1:3]), (0, 1, 2), (4, 5), filters[0])


def _depthwise(call: _Call) -> Results:
    """Filters are [1, height, width, out]."""
    filters = call.value(1).shape or ()
    return _windowed(call, _numbers(filters[1:3]), (0, 1, 2), (5, 6), filters[3])


def _pool(call: _Call) -> Results:
    width = [call.option(4, "<i", 1), call.option(3, "<i", 1)]
    return _windowed(call, width, (0, 1, 2), (-1, -1), None)


def _transposed_conv(call: _Call) -> Results:
    sizes = call.sizes(0)
    value = call.value(2)
    call.uniform(1, 3)
    if value.rows is None:
        return Value()
    if len(sizes) != 4 or sizes[0] != value.rows.size or value.rows.axis:  # noqa: PLR2004  # NHWC
        raise MixedRowsError("makes a fixed number of rows")
    shape = tuple(call.transfer.symbols.unknown() if size is None else size for size in sizes)
    return with_rows(shape, value.rows)


def _dense(call: _Call) -> Results:
    """Weights are [out, in]; without `keep_num_dims` all leading axes become one."""
    value, weights = call.value(0), call.value(1)
    call.uniform(2)
    weight_shape = weights.shape or ()
    if call.option(1, "<b") or len(weight_shape) != 2 or weights.rows is not None or weights.mixed:  # noqa: PLR2004
        raise MixedRowsError("has weights that depend on the batch")
    out, width = weight_shape
    if value.rows is not None and value.rank and not call.option(2, "<b"):
        total = divide(product(value.shape or ()), width)
        if total is None:
            raise MixedRowsError("folds the batch axis into another one")
        value = call.transfer.reshape(value, [total, width])
    if value.rows is None:
        return Value()
    return call.transfer.resized(value, {-1: out}, "sums")


def _matmul(call: _Call) -> Results:
    left, right = call.value(0), call.value(1)
    if call.option(0, "<b"):
        left = _swapped(call.transfer, left)
    if call.option(1, "<b"):
        right = _swapped(call.transfer, right)
    return call.transfer.matmul(left, right)


def _swapped(transfer: Transfer, value: Value) -> Value:
    order = list(range(value.rank))
    order[-2], order[-1] = order[-1], order[-2]
    return transfer.transpose(value, order)


def _shape(call: _Call) -> Results:
    return shape_value(call.value())


def _reshape(call: _Call) -> Results:
    value = call.value()
    if len(call.inputs) > 1:
        return call.transfer.reshape(value, call.sizes(1))
    sizes = (
        [] if call.options is None else [Size(int(size)) for size in call.options.array(0, "<i4")]
    )
    return call.transfer.reshape(value, sizes)


def _squeeze(call: _Call) -> Results:
    axes = [] if call.options is None else [int(axis) for axis in call.options.array(0, "<i4")]
    return call.transfer.squeeze(call.value(), axes or None)


def _expand(call: _Call) -> Results:
    return call.transfer.unsqueeze(call.value(), call.axes(1))


def _transpose(call: _Call) -> Results:
    return call.transfer.transpose(call.value(), call.axes(1))


def _concat(call: _Call) -> Results:
    values = [value for value in call.inputs if value is not None]
    return call.transfer.concat(values, call.option(0))


def _pack(call: _Call) -> Results:
    axis = call.option(1)
    values = [value for value in call.inputs if value is not None]
    return call.transfer.concat([call.transfer.unsqueeze(value, [axis]) for value in values], axis)


def _unpack(call: _Call) -> Results:
    value = call.value()
    axis = normal_axis(call.option(1), value.rank)
    parts = [call.transfer.cut(value, axis, Size(i), Size(i + 1), 1) for i in range(call.count)]
    return [call.transfer.squeeze(part, [axis]) for part in parts]


def _split(call: _Call) -> Results:
    (axis,) = call.axes(0)
    value = call.value(1)
    axis = normal_axis(axis, value.rank)
    size = (value.shape or ())[axis]
    even = divide(size, Size(call.count))
    if even is None or not even.is_constant:
        part = call.transfer.symbols.unknown()
        return [call.transfer.resized(value, {axis: part}, "splits")] * call.count
    step = even.number
    return [
        call.transfer.cut(value, axis, Size(i * step), Size((i + 1) * step), 1)
        for i in range(call.count)
    ]


def _split_sizes(call: _Call) -> Results:
    value = call.value()
    (axis,) = call.axes(2)
    return [
        call.transfer.resized(
            value, {axis: call.transfer.symbols.unknown() if size is None else size}, "splits"
        )
        for size in call.sizes(1)
    ]


def _slice(call: _Call) -> Results:
    """From `begin` as many as `size`, -1 for the rest."""
    value = call.value()
    for axis, (start, size) in enumerate(zip(call.sizes(1), call.sizes(2), strict=True)):
        if start is None or size is None:
            value = call.transfer.cut(value, axis, None, None, 1)
        elif start == ZERO and size in (Size(-1), (value.shape or ())[axis]):
            continue
        else:
            end = Size(1 << 40) if size == Size(-1) else call.transfer.symbols.add(start, size)
            value = call.transfer.cut(value, axis, start, end, 1)
    return value


def _strided_slice(call: _Call) -> Results:
    if call.option(5, "<b"):
        raise MixedRowsError("has offsets, which are not followed")
    begin, end, ellipsis, new_axis, shrink = (call.option(i) for i in range(5))
    masks = SliceMasks(begin=begin, end=end, ellipsis=ellipsis, new_axis=new_axis, shrink=shrink)
    steps = constants(call.value(3))
    return call.transfer.strided_slice(call.value(), call.sizes(1), call.sizes(2), steps, masks)


def _gather(call: _Call) -> Results:
    if call.option(1):
        raise MixedRowsError("has axes of batches, which are not followed")
    return call.transfer.gather(call.value(0), call.value(1), call.option(0))


def _embedding(call: _Call) -> Results:
    return call.transfer.gather(call.value(1), call.value(0), 0)


def _pad(call: _Call) -> Results:
    value, pads = call.value(), call.value(1)
    call.uniform(2)
    if pads.elements is None or value.counts_rows:
        raise MixedRowsError("takes sizes that are computed while it runs")
    sizes: dict[int, Size] = {}
    symbols = call.transfer.symbols
    for axis, both in enumerate(pads.elements.reshape(-1, 2)):
        if all(item == ZERO for item in both):
            continue
        size: Size = (value.shape or ())[axis]
        for pad in both:
            size = symbols.unknown() if pad is None else symbols.add(size, pad)
        sizes[axis] = size
    return call.transfer.resized(replace(value, elements=None), sizes, "pads")


def _tile(call: _Call) -> Results:
    return call.transfer.tile(call.value(), call.sizes(1))


def _broadcast(call: _Call) -> Results:
    return call.transfer.expand(call.value(), call.sizes(1))


def _fill(call: _Call) -> Results:
    call.uniform(1)
    sizes = [call.transfer.symbols.unknown() if size is None else size for size in call.sizes(0)]
    filled = call.transfer.filled(tuple(sizes))
    return call.transfer.expand(call.value(1), sizes) if filled.rows is None else filled


def _zeros(call: _Call) -> Results:
    value = call.value()
    return Value(shape=value.shape, rows=value.rows)


def _one_hot(call: _Call) -> Results:
    call.uniform(1, 2, 3)
    axis = call.option(0)
    wide = call.transfer.unsqueeze(replace(call.value(), elements=None), [axis])
    (depth,) = call.sizes(1)
    return call.transfer.resized(
        wide, {axis: call.transfer.symbols.unknown() if depth is None else depth}
    )


def _resize(call: _Call) -> Results:
    sizes = [call.transfer.symbols.unknown() if size is None else size for size in call.sizes(1)]
    return call.transfer.window(call.value(), (), None, sizes, channel_axis=-1)


def _space_depth(*, wider: bool) -> _Operator:
    def operator(call: _Call) -> Results:
        block = Size(call.option(0, "<i", 1))
        area = multiply(block, block)
        _, height, width, channels = call.value().shape or ()
        divided = call.transfer.symbols.floor_divide
        if wider:
            sizes = [multiply(height, block), multiply(width, block)]
            return call.transfer.window(
                call.value(), (), divided(channels, area), sizes, channel_axis=-1
            )
        sizes = [divided(height, block), divided(width, block)]
        return call.transfer.window(
            call.value(), (), multiply(channels, area), sizes, channel_axis=-1
        )

    return operator


def _space_batch(*, into: bool) -> _Operator:
    """Blocks of places become rows, outside of the rows that there are; and back."""

    def operator(call: _Call) -> Results:
        value = call.value()
        blocks, pads = constants(call.value(1)), constants(call.value(2))
        if value.rows is None or blocks is None or pads is None or value.rows.axis:
            raise MixedRowsError("moves places into the batch axis")
        count = Size(int(np.prod(blocks)))
        symbols = call.transfer.symbols
        if into:
            rows = replace(value.rows, before=multiply(count, value.rows.before))
        else:
            before = divide(value.rows.before, count)
            if before is None or value.rows.before.symbols:
                raise MixedRowsError("takes rows for places")
            rows = replace(value.rows, before=before)
        shape = [rows.size]
        for i, size in enumerate((value.shape or ())[1:]):
            if i >= len(blocks):
                shape.append(size)
                continue
            changed = Size(pads[2 * i] + pads[2 * i + 1])
            if into:
                shape.append(symbols.floor_divide(symbols.add(size, changed), Size(blocks[i])))
            else:
                shape.append(symbols.add(multiply(size, Size(blocks[i])), changed, sign=-1))
        return with_rows(tuple(shape), rows)

    return operator


def _range(call: _Call) -> Results:
    counted = call.transfer.count(*(call.value(number) for number in range(3)))
    return mixed(counted.mixed) if counted.row_numbers else counted


_NAMES: Final[Mapping[int, str]] = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D",
    9: "FULLY_CONNECTED", 22: "RESHAPE", 25: "SOFTMAX", 32: "CUSTOM", 39: "TRANSPOSE", 40: "MEAN",
    44: "UNIDIRECTIONAL_SEQUENCE_LSTM", 45: "STRIDED_SLICE", 48: "TOPK_V2", 56: "ARG_MAX",
    65: "SLICE", 74: "SUM", 82: "REDUCE_MAX", 89: "REDUCE_MIN", 96: "RANGE", 103: "UNIQUE",
    105: "REVERSE_V2", 109: "WHERE", 118: "IF", 119: "WHILE", 128: "CUMSUM", 148: "RANDOM_UNIFORM",
    130: "BROADCAST_TO", 126: "BATCH_MATMUL", 36: "GATHER", 69: "TILE", 83: "PACK", 88: "UNPACK",
}  # fmt: skip
"""Of operators that reasons name; others are named by their number."""
_ELEMENTWISE: Final = (
    6, 8, 14, 19, 20, 21, 28, 47, 54, 66, 73, 75, 76, 78, 80, 84, 86, 87, 92, 98, 99, 101, 104,
    108, 111, 114, 116, 117, 150, 152, 156, 158, 160, 161, 147,
)  # fmt: skip
"""DEQUANTIZE, FLOOR, LOGISTIC, RELU, RELU_N1_TO_1, RELU6, TANH, EXP, PRELU, SIN, LOG, SQRT, RSQRT,
POW, FAKE_QUANT, LOGICAL_OR, LOGICAL_AND, LOGICAL_NOT, SQUARE, LEAKY_RELU, SQUARED_DIFFERENCE, ABS,
CEIL, COS, ELU, QUANTIZE, ROUND, HARD_SWISH, GELU, RELU_0_TO_1, ATAN2, SIGN, BITWISE_XOR,
RIGHT_SHIFT, BUCKETIZE."""
_OPERATORS: Final[Mapping[int, _Operator]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    0: _folding(sum_of),
    106: _folding(sum_of),
    41: _folding(difference),
    18: _folding(product_of),
    42: _folding(quotient),
    90: _folding(quotient),
    95: _folding(remainder),
    59: _folding(negation),
    55: _folding(extreme(max)),
    57: _folding(extreme(min)),
    71: _folding(comparison(equal=True, otherwise=False)),
    72: _elementwise,
    58: _folding(comparison(equal=False, otherwise=False)),
    61: _folding(comparison(equal=False, otherwise=False)),
    62: _folding(comparison(equal=True, otherwise=True)),
    63: _folding(comparison(equal=True, otherwise=True)),
    123: _folding(selection),
    64: _select,
    53: _cast,
    25: _last_axis,
    50: _last_axis,
    11: _last_axis,
    40: _reduce,
    74: _reduce,
    82: _reduce,
    89: _reduce,
    91: _reduce,
    140: _reduce,
    81: _reduce_product,
    56: _arg,
    79: _arg,
    48: _top,
    128: _cumulative,
    105: _reverse,
    3: _conv,
    4: _depthwise,
    1: _pool,
    17: _pool,
    12: _pool,
    67: _transposed_conv,
    9: _dense,
    126: _matmul,
    77: _shape,
    22: _reshape,
    43: _squeeze,
    70: _expand,
    39: _transpose,
    2: _concat,
    83: _pack,
    88: _unpack,
    49: _split,
    102: _split_sizes,
    65: _slice,
    45: _strided_slice,
    36: _gather,
    7: _embedding,
    34: _pad,
    60: _pad,
    100: _pad,
    69: _tile,
    130: _broadcast,
    94: _fill,
    93: _zeros,
    85: _one_hot,
    23: _resize,
    97: _resize,
    5: _space_depth(wider=True),
    26: _space_depth(wider=False),
    38: _space_batch(into=True),
    37: _space_batch(into=False),
    96: _range,
}
_SIZED: Final = frozenset(
    {
        0,
        106,
        41,
        18,
        42,
        90,
        95,
        59,
        55,
        57,
        71,
        58,
        61,
        62,
        63,
        123,
        64,
        53,
        81,
        77,
        22,
        43,
        70,
        2,
        83,
        88,
    }
    | {49, 65, 45, 36, 69, 130, 94, 39, 67, 96, 23, 97}
)
"""Operators that follow elements that depend on the number of rows; no others may take them."""
