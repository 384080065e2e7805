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
from headrace.runtimes.file_bytes import FlatbufferTable
from headrace.runtimes.rows.operators import (
    OperatorCall,
    Results,
    elementwise,
    folding,
    run_operator,
    shape_of,
    transposed,
    unknown_operator,
    unsqueezed,
    window_widths,
)
from headrace.runtimes.rows.symbols import ZERO, Size, divide, multiply, product
from headrace.runtimes.rows.transfer import SliceMasks, Transfer
from headrace.runtimes.rows.values import (
    FOLDS,
    MAX_ELEMENTS,
    MixedRowsError,
    RowVerdict,
    Value,
    constant,
    constants,
    judge,
    known_elements,
    mixed,
    model_input,
    normal_axis,
    with_rows,
)

_DTYPES: Final = {0: "<f4", 2: "<i4", 4: "<i8", 6: "?", 7: "<i2", 9: "i1", 3: "u1"}
_PLACEHOLDER: Final = 127


@dataclass(slots=True)
class _Call(OperatorCall):
    """One operator with the values of its inputs."""

    options: FlatbufferTable | None

    def option(self, field: int, layout: str = "<i", default: int = 0) -> int:
        return default if self.options is None else int(self.options.number(field, layout, default))

    def listed(self) -> list[int]:
        """Return the first option, a list of numbers."""
        return [] if self.options is None else self.options.array(0, "<i4").tolist()


_Operator = Callable[[_Call], Results]


def analyse_tflite(
    data: bytes, inputs: Mapping[int, TensorSpec], outputs: Mapping[int, TensorSpec]
) -> RowVerdict:
    """Return whether each output row of a TFLite model depends on its own input row alone.

    Args:
        data: The file, accepted by `read_tflite`.
        inputs: By number of tensor; axis 0 of each is the batch.
        outputs: By number of tensor.
    """
    try:
        return _analysed(FlatbufferTable.root(data), inputs, outputs)
    except (ValueError, LookupError, struct.error) as error:
        return RowVerdict(why_not=f"the graph cannot be read: {error}")


def _analysed(
    root: FlatbufferTable, inputs: Mapping[int, TensorSpec], outputs: Mapping[int, TensorSpec]
) -> RowVerdict:
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
    for index, table in enumerate(graph.tables(3)):
        code = codes[int(table.number(0, "<I", 0))]
        operator = _OPERATORS.get(code, unknown_operator)
        description = f"operator {index} ({_NAMES.get(code, code)})"
        numbers = [int(number) for number in table.array(1, "<i4")]
        taken = [values.get(number) if number >= 0 else None for number in numbers]
        if any(value is None and number >= 0 for value, number in zip(taken, numbers, strict=True)):
            taken = [mixed(f"{description} takes a tensor that nothing gives")]
        gives = [int(number) for number in table.array(2, "<i4")]
        call = _Call(transfer, taken, len(gives), table.table(4))
        results = run_operator(
            description,
            "",
            call,
            operator,
            may_count=code in _SIZED,
            is_deterministic=code in _OPERATORS,
        )
        values.update(zip(gives, results, strict=False))
    missing = mixed("nothing gives an output")
    return judge({spec.name: values.get(number, missing) for number, spec in outputs.items()})


def _code(table: FlatbufferTable) -> int:
    old, new = int(table.number(0, "<b", 0)), int(table.number(3, "<i", 0))
    return new if old == _PLACEHOLDER else max(old, new)


def _constant(table: FlatbufferTable, buffers: Sequence[FlatbufferTable]) -> Value | None:
    """Return the value of a tensor stored in the file; None if it is computed."""
    shape = [int(size) for size in table.array(0, "<i4")]
    kind, number = int(table.number(1, "<b", 0)), int(table.number(2, "<I", 0))
    buffer = buffers[number]
    data = buffer.array(0, "u1")
    behind = int(buffer.number(1, "<Q", 0)) > 1
    if not data.size and not behind:
        return None
    dtype = _DTYPES.get(kind)
    count = int(np.prod(shape, dtype=np.int64))
    symbolic = Value(shape=tuple(map(Size, shape)), is_integer=kind not in {0, 1, 10})
    is_plain = dtype is not None and data.size == count * np.dtype(dtype).itemsize
    if behind or not is_plain or count > MAX_ELEMENTS:
        return symbolic
    return constant(np.frombuffer(data.tobytes(), dtype).reshape(shape))


def _select(call: _Call) -> Results:
    """Return a selection; a condition of lower rank would select whole entries of axis 0."""
    if len({call.value(number).rank for number in range(3)}) > 1:
        raise MixedRowsError("chooses rows by their position")
    return folding(FOLDS["Where"])(call)


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
    return call.transfer.reduce(call.value(), call.axes(1), keep=bool(call.option(0, "<b")))


def _reduce_product(call: _Call) -> Results:
    keep = bool(call.option(0, "<b"))
    return call.transfer.reduce(call.value(), call.axes(1), keep=keep, fold=FOLDS["Mul"])


def _arg(call: _Call) -> Results:
    return call.transfer.reduce(call.value(), call.axes(1), keep=False, is_integer=True)


def _windowed(
    call: _Call,
    width: list[int],
    options: tuple[int, int, int],
    dilation: tuple[int, int],
    channels: Size | None,
) -> Results:
    """Return a window over axes 1 and 2; `options`: the fields of padding and both strides."""
    value, is_same = call.value(), call.option(options[0], "<b") == 0
    sizes = []
    for i, size in enumerate((value.shape or ())[1:3]):
        stride = call.option(options[2 - i], "<i", 1)
        factor = call.option(dilation[1 - i], "<i", 1) if dilation[0] >= 0 else 1
        slid = call.transfer.slid_same(size, stride)
        sizes.append(
            slid if is_same else call.transfer.slid(size, width[i], stride, dilation=factor)
        )
    return call.transfer.window(value, call.present()[1:], channels, sizes, channel_axis=-1)


def _conv(call: _Call) -> Results:
    """Return a convolution; filters are [out, height, width, in]."""
    filters = call.value(1).shape or ()
    return _windowed(call, window_widths(filters[1:3]), (0, 1, 2), (4, 5), filters[0])


def _depthwise(call: _Call) -> Results:
    """Return a depthwise convolution; filters are [1, height, width, out]."""
    filters = call.value(1).shape or ()
    return _windowed(call, window_widths(filters[1:3]), (0, 1, 2), (5, 6), filters[3])


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
    return with_rows(tuple(call.transfer.sized(sizes)), value.rows)


def _dense(call: _Call) -> Results:
    """Return a dense layer; weights are [out, in]; `keep_num_dims` keeps leading axes."""
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
    left, right = (
        call.transfer.swapped(call.value(i)) if call.option(i, "<b") else call.value(i)
        for i in range(2)
    )
    return call.transfer.matmul(left, right)


def _reshape(call: _Call) -> Results:
    listed = [Size(size) for size in call.listed()]
    return call.transfer.reshape(call.value(), call.sizes(1) if len(call.inputs) > 1 else listed)


def _pack(call: _Call) -> Results:
    axis = call.option(1)
    parts = [call.transfer.unsqueeze(value, [axis]) for value in call.present()]
    return call.transfer.concat(parts, axis)


def _unpack(call: _Call) -> Results:
    value = call.value()
    axis = normal_axis(call.option(1), value.rank)
    parts = [call.transfer.cut(value, axis, Size(i), Size(i + 1), 1) for i in range(call.count)]
    return [call.transfer.squeeze(part, [axis]) for part in parts]


def _slice(call: _Call) -> Results:
    """Return a slice of `size` entries from `begin`, -1 for all remaining."""
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


def _pad(call: _Call) -> Results:
    call.uniform(2)
    pads = known_elements(call.value(1)).reshape(-1, 2)
    return call.transfer.padded(call.value(), dict(enumerate(pads.tolist())))


def _fill(call: _Call) -> Results:
    call.uniform(1)
    sizes = call.transfer.sized(call.sizes(0))
    filled = call.transfer.filled(tuple(sizes))
    return call.transfer.expand(call.value(1), sizes) if filled.rows is None else filled


def _zeros(call: _Call) -> Results:
    value = call.value()
    return Value(shape=value.shape, rows=value.rows)


def _resize(call: _Call) -> Results:
    sizes = call.transfer.sized(call.sizes(1))
    return call.transfer.window(call.value(), (), None, sizes, channel_axis=-1)


def _space_depth(*, into_depth: bool) -> _Operator:
    def operator(call: _Call) -> Results:
        block = Size(call.option(0, "<i", 1))
        return call.transfer.exchange_depth(
            call.value(), block, into_depth=into_depth, channel_axis=-1
        )

    return operator


def _space_batch(*, into: bool) -> _Operator:
    """Return the operator that moves spatial blocks into outer rows, or back."""

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
    numbers = call.transfer.count(*(call.value(number) for number in range(3)))
    return mixed(numbers.mixed) if numbers.row_numbers else numbers


_NAMES: Final[Mapping[int, str]] = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D",
    9: "FULLY_CONNECTED", 22: "RESHAPE", 25: "SOFTMAX", 32: "CUSTOM", 39: "TRANSPOSE", 40: "MEAN",
    44: "UNIDIRECTIONAL_SEQUENCE_LSTM", 45: "STRIDED_SLICE", 48: "TOPK_V2", 56: "ARG_MAX",
    65: "SLICE", 74: "SUM", 82: "REDUCE_MAX", 89: "REDUCE_MIN", 96: "RANGE", 103: "UNIQUE",
    105: "REVERSE_V2", 109: "WHERE", 118: "IF", 119: "WHILE", 128: "CUMSUM", 148: "RANDOM_UNIFORM",
    130: "BROADCAST_TO", 126: "BATCH_MATMUL", 36: "GATHER", 69: "TILE", 83: "PACK", 88: "UNPACK",
}  # fmt: skip
"""Operator names for reasons; other operators are shown by number."""
_ELEMENTWISE: Final = (
    6, 8, 14, 19, 20, 21, 28, 47, 54, 66, 73, 75, 76, 78, 80, 84, 86, 87, 92, 98, 99, 101, 104,
    108, 111, 114, 116, 117, 150, 152, 156, 158, 160, 161, 147,
)  # fmt: skip
"""DEQUANTIZE, FLOOR, LOGISTIC, RELU, RELU_N1_TO_1, RELU6, TANH, EXP, PRELU, SIN, LOG, SQRT, RSQRT,
POW, FAKE_QUANT, LOGICAL_OR, LOGICAL_AND, LOGICAL_NOT, SQUARE, LEAKY_RELU, SQUARED_DIFFERENCE, ABS,
CEIL, COS, ELU, QUANTIZE, ROUND, HARD_SWISH, GELU, RELU_0_TO_1, ATAN2, SIGN, BITWISE_XOR,
RIGHT_SHIFT, BUCKETIZE."""
_FOLDED: Final = {
    0: "Add", 106: "Add", 41: "Sub", 18: "Mul", 42: "Div", 90: "Div", 95: "Mod", 59: "Neg",
    55: "Max", 57: "Min", 71: "Equal", 58: "Less", 61: "Greater", 62: "GreaterOrEqual",
    63: "LessOrEqual", 123: "Where",
}  # fmt: skip
"""Operators that follow sizes, with their ONNX names."""
_OPERATORS: Final[Mapping[int, _Operator]] = {
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **{code: folding(FOLDS[name]) for code, name in _FOLDED.items()},
    72: elementwise,
    64: _select,
    53: _cast,
    **dict.fromkeys((25, 50, 11), _last_axis),
    **dict.fromkeys((40, 74, 82, 89, 91, 140), _reduce),
    81: _reduce_product,
    **dict.fromkeys((56, 79), _arg),
    48: lambda call: call.transfer.ranked(call.value(), -1, call.size(1)),
    128: lambda call: call.transfer.along(call.value(), call.axes(1)),
    105: lambda call: call.transfer.along(call.value(), call.axes(1), "reverses"),
    3: _conv,
    4: _depthwise,
    **dict.fromkeys((1, 17, 12), _pool),
    67: _transposed_conv,
    9: _dense,
    126: _matmul,
    77: shape_of,
    22: _reshape,
    43: lambda call: call.transfer.squeeze(call.value(), call.listed() or None),
    70: unsqueezed,
    39: transposed,
    2: lambda call: call.transfer.concat(call.present(), call.option(0)),
    83: _pack,
    88: _unpack,
    49: lambda call: call.transfer.split(call.value(1), call.axis(0), call.count),
    102: lambda call: call.transfer.parts(call.value(), call.axis(2), call.sizes(1)),
    65: _slice,
    45: _strided_slice,
    36: _gather,
    7: lambda call: call.transfer.gather(call.value(1), call.value(0), 0),
    **dict.fromkeys((34, 60, 100), _pad),
    69: lambda call: call.transfer.tile(call.value(), call.sizes(1)),
    130: lambda call: call.transfer.expand(call.value(), call.sizes(1)),
    94: _fill,
    93: _zeros,
    85: lambda call: call.uniform(1, 2, 3).transfer.one_hot(
        call.value(), call.option(0), call.size(1)
    ),
    **dict.fromkeys((23, 97), _resize),
    5: _space_depth(into_depth=False),
    26: _space_depth(into_depth=True),
    38: _space_batch(into=True),
    37: _space_batch(into=False),
    96: _range,
}
_SIZED: Final = frozenset(_FOLDED) | {
    2, 22, 23, 36, 39, 43, 45, 49, 53, 64, 65, 67, 69, 70, 77, 81, 83, 88, 94, 96, 97, 130,
}  # fmt: skip
"""Operators that may take elements that depend on the number of rows; others may not."""
