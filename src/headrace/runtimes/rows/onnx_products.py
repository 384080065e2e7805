"""ONNX operators for products, convolutions, windows, recurrent nets and attention."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from headrace.runtimes.rows.onnx_graph import Call, Operator
from headrace.runtimes.rows.operators import Results, for_names, is_scalar
from headrace.runtimes.rows.symbols import ONE, Size, divide, multiply
from headrace.runtimes.rows.values import (
    BatchRows,
    MixedRowsError,
    Shape,
    Value,
    mixed,
    with_rows,
)


def _fused_matmul(call: Call) -> Results:
    if call.integer("transBatchA", 0) or call.integer("transBatchB", 0):
        raise MixedRowsError("moves the batch axis")
    left, right = (
        call.transfer.swapped(call.value(i)) if call.integer(name, 0) else call.value(i)
        for i, name in enumerate(("transA", "transB"))
    )
    return call.transfer.matmul(left, right)


def _gemm(call: Call) -> Results:
    result = _fused_matmul(call)
    assert isinstance(result, Value)
    bias = call.optional(2)
    return result if bias is None else call.transfer.elementwise([result, bias])


def _quantised_matmul(left: int, right: int, by_column: Sequence[int]) -> Operator:
    """Return an operator that multiplies integers.

    Args:
        left: Number of the input that is the first factor.
        right: Number of the input that is the second factor.
        by_column: Parameters of the second, one for all or one for each column.
    """

    def operator(call: Call) -> Results:
        factors = call.value(left), call.value(right)
        for number, value in enumerate(call.inputs):
            if number in {left, right} or value is None or is_scalar(value):
                continue
            columns = None if factors[1].shape is None else factors[1].shape[-1:]
            if number not in by_column or factors[1].rows is not None or value.shape != columns:
                raise MixedRowsError("has parameters by row")
        call.uniform(*({*range(len(call.inputs))} - {left, right}))
        return call.transfer.matmul(*factors)

    return operator


def _packed_matmul(call: Call) -> Results:
    """Return `MatMulNBits`: the product with a matrix that is packed in blocks."""
    return call.uniform(*range(1, len(call.inputs))).transfer.resized(
        call.value(), {-1: Size(call.integer("N", 0))}, "sums"
    )


def _spatial(call: Call, shape: Shape, kernel: list[int | None]) -> list[Size]:
    """Return the output sizes of a window along all axes but the first two."""
    count = len(shape) - 2
    strides = call.ints("strides") or [1] * count
    dilations = call.ints("dilations") or [1] * count
    pads = call.ints("pads") or [0] * (2 * count)
    auto = call.text("auto_pad", "NOTSET")
    symbols = call.transfer.symbols
    sizes = []
    for i in range(count):
        width, size = kernel[i] if i < len(kernel) else None, shape[i + 2]
        if width is None or not strides[i]:
            sizes.append(symbols.unknown(minimum=1))
            continue
        if auto.startswith("SAME"):
            sizes.append(call.transfer.slid_same(size, strides[i]))
            continue
        total = 0 if auto == "VALID" else pads[i] + pads[i + count]
        ceil = bool(call.integer("ceil_mode", 0))
        sizes.append(call.transfer.slid(size, width, strides[i], total, dilations[i], ceil=ceil))
    return sizes


def _conv(call: Call, *, data: int = 0, weight: int = 1) -> Results:
    value, weights = call.value(data), call.value(weight)
    others = [item for i, item in enumerate(call.inputs) if i != data and item is not None]
    if value.shape is None or weights.shape is None:
        if value.rows is None and all(item.is_uniform for item in others):
            return Value()
        if weights.shape is None:
            raise MixedRowsError("takes a tensor of unknown shape")
    shape = value.shape or ()
    kernel = [size.number if size.is_constant else None for size in (weights.shape or ())[2:]]
    return call.transfer.window(
        value, others, (weights.shape or (ONE,))[0], _spatial(call, shape, kernel)
    )


def _fused_conv(call: Call) -> Results:
    added = call.optional(3)
    result = _conv(replace(call, inputs=call.inputs[:3]))
    assert isinstance(result, Value)
    return result if added is None else call.transfer.elementwise([result, added])


def _conv_transpose(call: Call) -> Results:
    value, weights = call.value(0), call.value(1)
    others = [item for item in call.inputs[1:] if item is not None]
    shape = value.shape or ()
    count = max(0, len(shape) - 2)
    symbols = call.transfer.symbols
    kernel = [size.number if size.is_constant else None for size in (weights.shape or ())[2:]]
    strides = call.ints("strides") or [1] * count
    dilations = call.ints("dilations") or [1] * count
    pads = call.ints("pads") or [0] * (2 * count)
    extra = call.ints("output_padding") or [0] * count
    is_plain = (
        call.text("auto_pad", "NOTSET") in {"NOTSET", "VALID"} and call.ints("output_shape") is None
    )
    sizes = []
    for i in range(count):
        width = kernel[i] if i < len(kernel) else None
        if width is None or not is_plain:
            sizes.append(symbols.unknown(minimum=1))
            continue
        scaled = multiply(symbols.add(shape[i + 2], Size(-1)), Size(strides[i]))
        more = extra[i] + dilations[i] * (width - 1) + 1 - pads[i] - pads[i + count]
        sizes.append(symbols.add(scaled, Size(more)))
    channels = (weights.shape or (ONE, ONE))[1]
    wide = multiply(channels, Size(call.integer("group", 1)))
    return call.transfer.window(value, others, wide, sizes)


def _pool(call: Call) -> Results:
    value = call.value()
    call.uniform(*range(1, len(call.inputs)))
    if value.shape is None and value.rows is None:
        return [Value(), Value()]
    kernel: list[int | None] = list(call.ints("kernel_shape") or [])
    pooled = call.transfer.window(value, (), None, _spatial(call, value.shape or (), kernel))
    return [pooled, pooled if value.is_uniform else mixed("counts its indices through all rows")]


def _global_pool(call: Call) -> Results:
    value = call.value()
    call.uniform(*range(1, len(call.inputs)))
    if value.shape is None and value.rows is None:
        return Value()
    channel_axis = -1 if call.integer("channels_last", 0) else 1
    sizes = [ONE] * (value.rank - 2)
    return call.transfer.window(value, (), None, sizes, channel_axis=channel_axis)


def _quantised_conv(call: Call) -> Results:
    if call.integer("channels_last", 0):
        raise MixedRowsError("has another order of axes, which is not followed")
    return _conv(call, data=0, weight=3)


def _space_depth(call: Call) -> Results:
    into_depth = call.node.operator == "SpaceToDepth"
    block = Size(call.integer("blocksize", 1))
    return call.transfer.exchange_depth(call.value(), block, into_depth=into_depth)


def _grid_sample(call: Call) -> Results:
    value, grid = call.value(0), call.value(1)
    if value.shape is None or grid.shape is None:
        raise MixedRowsError("takes a tensor of unknown shape")
    return call.transfer.by_row([value, grid], [value.shape[1], *grid.shape[1:-1]])


def _recurrent(call: Call) -> Results:
    value, weights = call.value(0), call.value(2)
    call.uniform(1, 2, 3, 7)
    outputs = 3
    if value.rows is None and all(item.rows is None for item in call.present()):
        return [Value()] * outputs
    by_batch = call.integer("layout", 0) == 1
    if value.rows is None or value.rank != 3 or weights.rank != 3:  # noqa: PLR2004
        raise MixedRowsError("combines rows with a sequence of all rows")
    axis = 0 if by_batch else 1
    if value.rows.axis != axis:
        raise MixedRowsError("runs along the batch axis")
    lengths = call.optional(4)
    if lengths is not None and lengths.rows != replace(value.rows, axis=0):
        raise MixedRowsError("has lengths by position")
    for number in (5, 6):
        state = call.optional(number)
        if state is not None and state.rows != value.rows:
            raise MixedRowsError("begins with a state by position")
    directions, hidden = (
        weights.shape[0] if weights.shape else ONE,
        (weights.shape or (ONE,) * 3)[2],
    )
    rows, (first, second, _) = value.rows, value.shape or (ONE,) * 3
    if by_batch:
        whole = with_rows((first, second, directions, hidden), rows)
        last = with_rows((first, directions, hidden), rows)
    else:
        whole = with_rows((first, directions, second, hidden), replace(rows, axis=2))
        last = with_rows((directions, second, hidden), rows)
    return [whole, last, last]


def _reverse_sequence(call: Call) -> Results:
    value, lengths = call.value(0), call.value(1)
    if value.rows is None and lengths.rows is None:
        return Value(shape=value.shape, is_integer=value.is_integer)
    batch, time = call.integer("batch_axis", 1), call.integer("time_axis", 0)
    if value.rows is None or value.rows.axis == time:
        raise MixedRowsError("reverses the batch axis")
    if value.rows.axis == batch:
        if lengths.rows != replace(value.rows, axis=0):
            raise MixedRowsError("has lengths by position")
    elif lengths.rows is not None:
        raise MixedRowsError("combines each row with other rows")
    return with_rows(value.shape, value.rows, is_integer=value.is_integer)


def _attention(call: Call) -> Results:
    """Return `Attention` of ONNX 23: query, key, value and past by row; the mask broadcasts."""
    query, key, value = (call.value(number) for number in range(3))
    mask, past_key, past_value = (call.optional(number) for number in (3, 4, 5))
    if call.optional(6) is not None:
        raise MixedRowsError("has lengths, which are not followed")
    parts = [query, key, value, *(item for item in (past_key, past_value) if item is not None)]
    if mask is not None and mask.rows is not None:
        if mask.rank != 4 or mask.rows.axis != 0:  # noqa: PLR2004
            raise MixedRowsError("has a mask by position")
        parts.append(mask)
    elif mask is not None and mask.shape is None:
        raise MixedRowsError("has a mask of unknown shape")
    elif mask is not None and mask.rank == 4 and (mask.shape or ())[0] != ONE:  # noqa: PLR2004
        raise MixedRowsError("has a mask by position")
    if all(part.rows is None for part in parts):
        return [Value()] * 4
    inner = list((query.shape or ())[1:-1])
    heads = {call.integer("q_num_heads", 0), call.integer("kv_num_heads", 0)}
    wide = value.shape[-1] if value.shape and len(heads) == 1 else None
    result = call.transfer.by_row(parts, [*inner, wide])
    sized = call.transfer.by_row(parts, [None, None, None])
    return [result, sized, sized, sized]


def _contrib_attention(call: Call) -> Results:
    value = call.value()
    call.uniform(1, 2)
    mask = call.optional(3)
    if value.rows is None:
        raise MixedRowsError("combines rows with a sequence of all rows")
    if value.rank != 3 or any(call.optional(number) is not None for number in (4, 6, 7)):  # noqa: PLR2004
        raise MixedRowsError("has a past, which is not followed")
    parts = [value]
    if mask is not None:
        if mask.rows is None or (mask.rank == 1 and mask.rows != BatchRows(axis=0)):
            raise MixedRowsError("has a mask by position")
        parts.append(mask)
    bias = call.optional(5)
    if bias is not None:
        if bias.rows is not None:
            parts.append(bias)
        elif bias.shape is None or bias.shape[0] != ONE:
            raise MixedRowsError("has a mask by position")
    hidden = None
    if (weights := call.value(1)).shape is not None and call.ints("qkv_hidden_sizes") is None:
        hidden = divide((weights.shape or (ONE, ONE))[-1], Size(3))
    return [
        call.transfer.by_row(parts, [(value.shape or (ONE, ONE))[1], hidden]),
        mixed("is not followed"),
    ]


def _rotary(call: Call) -> Results:
    value, positions = call.value(0), call.optional(1)
    call.uniform(2, 3)
    if positions is not None and positions.rows is None and not is_scalar(positions):
        raise MixedRowsError("has positions by row")
    parts = [value] if positions is None or positions.rows is None else [value, positions]
    return call.transfer.by_row(parts, (value.shape or (ONE,))[1:])


PRODUCTS: Final[Mapping[str, Operator]] = {
    "MatMul": lambda call: call.transfer.matmul(call.value(0), call.value(1)),
    "Gemm": _gemm,
    "Einsum": lambda call: call.transfer.einsum(call.text("equation"), call.present()),
    "MatMulInteger": _quantised_matmul(0, 1, (3,)),
    "QLinearMatMul": _quantised_matmul(0, 3, (4, 5)),
    **for_names("Conv ConvInteger", _conv),
    "ConvTranspose": _conv_transpose,
    "QLinearConv": _quantised_conv,
    **for_names("MaxPool AveragePool LpPool", _pool),
    **for_names("GlobalAveragePool GlobalMaxPool GlobalLpPool", _global_pool),
    **for_names("DepthToSpace SpaceToDepth", _space_depth),
    "GridSample": _grid_sample,
    **for_names("RNN GRU LSTM", _recurrent),
    "ReverseSequence": _reverse_sequence,
    "Attention": _attention,
}
"""Operators of `ai.onnx`."""
CONTRIB_PRODUCTS: Final[Mapping[str, Operator]] = {
    "FusedMatMul": _fused_matmul,
    "FusedGemm": _gemm,
    "FusedConv": _fused_conv,
    "Attention": _contrib_attention,
    "MatMulNBits": _packed_matmul,
    "RotaryEmbedding": _rotary,
    "QLinearConv": _quantised_conv,
    "QLinearGlobalAveragePool": _global_pool,
}
"""Operators of `com.microsoft`."""
