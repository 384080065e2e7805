"""Effect on rows of PyTorch's matrix products, convolutions, normalisations and attention."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from headrace.runtimes.rows.aten import Argument, AtenCall, Operator
from headrace.runtimes.rows.operators import Results, for_names, is_scalar, window_widths
from headrace.runtimes.rows.symbols import Size, multiply
from headrace.runtimes.rows.values import MixedRowsError, Value, with_rows


def _matmul(call: AtenCall) -> Results:
    second = "vec" if call.name == "mv" else "mat2" if call.name in {"mm", "bmm"} else "other"
    return call.transfer.matmul(call.value(0), call.value(1, second))


def _linear(call: AtenCall) -> Results:
    value, weight = call.value(0, "input"), call.value(1, "weight")
    bias = call.optional(2, "bias")
    result = call.transfer.matmul(value, call.transfer.swapped(weight))
    return result if bias is None else call.transfer.elementwise([result, bias])


def _addmm(call: AtenCall) -> Results:
    """Return `beta * self + alpha * (mat1 @ mat2)`."""
    call.used |= {"beta", "alpha"}
    names = ("batch1", "batch2") if call.name == "baddbmm" else ("mat1", "mat2")
    result = call.transfer.matmul(call.value(1, names[0]), call.value(2, names[1]))
    return call.transfer.elementwise([call.value(), result])


def _distance(call: AtenCall) -> Results:
    """Return distances of all pairs, which depend on rows like a matrix product."""
    call.used |= {2, 3, "p", "compute_mode"}
    second = call.transfer.swapped(call.value(1, "x2"))
    return call.transfer.matmul(call.value(0, "x1"), second)


def _einsum(call: AtenCall) -> Results:
    equation, values = str(call.get(0, "equation")), call.values(1, "tensors")
    call.get(2, "path")
    return call.transfer.einsum(equation, values)


def _per_axis(call: AtenCall, number: int, name: str, count: int, default: int) -> list[int]:
    """Return an argument with a number for each spatial axis, or one for all."""
    numbers = call.integers(number, name) or [default]
    return numbers * count if len(numbers) == 1 else numbers


def _conv(call: AtenCall) -> Results:
    """Return a convolution; the operator's name decides the order of its parameters."""
    value, weight = call.value(0, "input"), call.value(1, "weight")
    bias = call.optional(2, "bias")
    others = [weight, *([] if bias is None else [bias])]
    if weight.shape is None or value.rank != len(weight.shape):
        raise MixedRowsError("takes axis 0 for channels")
    count = value.rank - 2
    strides = _per_axis(call, 3, "stride", count, 1)
    padding = call.get(4, "padding")
    is_named = isinstance(padding, str)
    pads = [0] * count if is_named else _per_axis(call, 4, "padding", count, 0)
    is_transposed = call.name.startswith("conv_transpose")
    if is_transposed:
        extra = _per_axis(call, 5, "output_padding", count, 0)
        groups = call.integer(6, "groups", 1)
        dilations = _per_axis(call, 7, "dilation", count, 1)
    else:
        dilations = _per_axis(call, 5, "dilation", count, 1)
        if call.name in {"convolution", "_convolution"}:
            is_transposed = call.flag(6, "transposed")
            extra = _per_axis(call, 7, "output_padding", count, 0)
            groups = call.integer(8, "groups", 1)
        else:
            groups = call.integer(6, "groups", 1)
            extra = [0] * count
    call.used |= {9, 10, 11, 12, "benchmark", "deterministic", "cudnn_enabled", "allow_tf32"}
    widths = window_widths(weight.shape[2:])
    symbols, shape = call.transfer.symbols, (value.shape or ())[2:]
    sizes = []
    for i, size in enumerate(shape):
        if is_transposed:
            scaled = multiply(symbols.add(size, Size(-1)), Size(strides[i]))
            more = extra[i] + dilations[i] * (widths[i] - 1) + 1 - 2 * pads[i]
            sizes.append(symbols.add(scaled, Size(more)))
        elif padding == "same":
            sizes.append(size)
        else:
            sizes.append(call.transfer.slid(size, widths[i], strides[i], 2 * pads[i], dilations[i]))
    channels = multiply(weight.shape[1], Size(groups)) if is_transposed else weight.shape[0]
    return call.transfer.window(value, others, channels, sizes)


def _spatial_count(call: AtenCall) -> int:
    """Return the number of trailing axes of an operator: the digit in its name."""
    return int(next(character for character in call.name if character.isdigit()))


def _resized_last(call: AtenCall, value: Value, sizes: list[Size]) -> Value:
    first = value.rank - len(sizes)
    if first < 1:
        raise MixedRowsError("takes shapes that do not fit")
    result = call.transfer.resized(value, {first + i: size for i, size in enumerate(sizes)})
    return replace(result, elements=None)


def _pool(call: AtenCall) -> Results:
    """Return a pooling; all axes but the last ones are independent."""
    value, count = call.value(), _spatial_count(call)
    kernel = _per_axis(call, 1, "kernel_size", count, 1)
    declared_strides = call.integers(2, "stride") or kernel
    strides = declared_strides * count if len(declared_strides) == 1 else declared_strides
    pads = _per_axis(call, 3, "padding", count, 0)
    is_max = call.name.startswith("max")
    dilations = _per_axis(call, 4, "dilation", count, 1) if is_max else [1] * count
    ceil = call.flag(5 if is_max else 4, "ceil_mode")
    call.used |= {5, 6, "count_include_pad", "divisor_override"}
    shape = (value.shape or ())[value.rank - count :]
    sizes = [
        call.transfer.slid(size, kernel[i], strides[i], 2 * pads[i], dilations[i], ceil=ceil)
        for i, size in enumerate(shape)
    ]
    pooled = _resized_last(call, value, sizes)
    return [pooled, replace(pooled, is_integer=True)]


def _adaptive_pool(call: AtenCall) -> Results:
    value, count = call.value(), _spatial_count(call)
    items = call.get(1, "output_size")
    output_sizes: list[Argument] = items if isinstance(items, list) else [items]
    output_sizes = output_sizes * count if len(output_sizes) == 1 else output_sizes
    shape = (value.shape or ())[value.rank - count :]
    if any(not isinstance(item, Size) and item is not None for item in output_sizes):
        raise MixedRowsError("takes sizes that are computed while it runs")
    sizes = [item if isinstance(item, Size) else shape[i] for i, item in enumerate(output_sizes)]
    pooled = _resized_last(call, value, sizes)
    return [pooled, replace(pooled, is_integer=True)]


def _upsample(call: AtenCall) -> Results:
    value, count = call.value(0, "input" if "input" in call.named else "self"), _spatial_count(call)
    call.ignore_rest()
    items = call.get(1, "output_size")
    symbols = call.transfer.symbols
    sizes = [symbols.unknown(minimum=1) for _ in range(count)]
    if isinstance(items, list):
        declared_sizes = call.sizes(1, "output_size")
        sizes = [
            size if new is None else new for size, new in zip(sizes, declared_sizes, strict=True)
        ]
    return _resized_last(call, value, sizes)


def _pixel_shuffle(call: AtenCall) -> Results:
    value = call.value()
    is_wider = call.name == "pixel_shuffle"
    factor = call.integer(1, "upscale_factor" if is_wider else "downscale_factor")
    channels, height, width = (value.shape or ())[-3:]
    area, symbols = Size(factor * factor), call.transfer.symbols
    if is_wider:
        sizes = [symbols.floor_divide(channels, area)]
        sizes += [multiply(size, Size(factor)) for size in (height, width)]
    else:
        sizes = [multiply(channels, area)]
        sizes += [symbols.floor_divide(size, Size(factor)) for size in (height, width)]
    return _resized_last(call, value, sizes)


def _grid_sample(call: AtenCall) -> Results:
    value, grid = call.value(0, "input"), call.value(1, "grid")
    call.used |= {2, 3, 4, "interpolation_mode", "padding_mode", "align_corners"}
    if value.shape is None or grid.shape is None:
        raise MixedRowsError("takes a tensor of unknown shape")
    return call.transfer.by_row([value, grid], [value.shape[1], *grid.shape[1:-1]])


def _normalised_planes(call: AtenCall, value: Value, *parameters: Value | None) -> Value:
    """Return a norm with parameters along axis 1, where axis 0 has independent entries."""
    others = [item for item in parameters if item is not None]
    return call.transfer.window(value, others, None, (value.shape or ())[2:])


def _batch_norm(call: AtenCall) -> Results:
    first = "input"
    value = call.value(0, first)
    names = ("weight", "bias", "running_mean", "running_var")
    parameters = [call.optional(i, name) for i, name in enumerate(names, 1)]
    has_flag = call.name in {"batch_norm", "native_batch_norm", "cudnn_batch_norm"}
    is_training = has_flag and call.flag(5, "training", default=True)
    if is_training or parameters[2] is None or parameters[3] is None:
        raise MixedRowsError("normalises over the batch")
    call.used |= {5, 6, 7, 8, "momentum", "eps", "cudnn_enabled"}
    result = _normalised_planes(call, value, *parameters)
    return [result, Value(), Value()][: max(call.count, 1)]


def _layer_norm(call: AtenCall) -> Results:
    value = call.value(0, "input")
    axes = len(call.sizes(1, "normalized_shape"))
    call.uniform((2, "weight"), (3, "bias"))
    call.used |= {4, 5, "eps", "cudnn_enable"}
    result = call.transfer.along(replace(value, elements=None), range(-axes, 0), "normalises")
    means = call.transfer.reduce(result, list(range(-axes, 0)), keep=True)
    return [result, means, means][: max(call.count, 1)]


def _group_norm(call: AtenCall) -> Results:
    value = call.value(0, "input")
    if call.name == "group_norm":
        call.integer(1, "num_groups")
        parameters = [call.optional(2, "weight"), call.optional(3, "bias")]
        call.used |= {4, 5, "eps", "cudnn_enabled"}
        return _normalised_planes(call, value, *parameters)
    parameters = [call.optional(1, "weight"), call.optional(2, "bias")]
    if call.size(3, "N") != (value.shape or (None,))[0]:
        raise MixedRowsError("divides the batch axis by position")
    call.used |= {4, 5, 6, 7, "C", "HxW", "group", "eps"}
    result = _normalised_planes(call, value, *parameters)
    if value.rows is None:
        return [result, Value(), Value()]
    means = with_rows(((value.shape or ())[0], Size(call.integer(6, "group"))), value.rows)
    return [result, means, means][: max(call.count, 1)]


def _instance_norm(call: AtenCall) -> Results:
    value = call.value(0, "input")
    names = ("weight", "bias", "running_mean", "running_var")
    parameters = [call.optional(i, name) for i, name in enumerate(names, 1)]
    if call.flag(5, "use_input_stats") and parameters[2] is not None:
        raise MixedRowsError("changes the model itself")
    call.used |= {6, 7, 8, "momentum", "eps", "cudnn_enabled"}
    return _normalised_planes(call, value, *parameters)


def _recurrent(call: AtenCall) -> Results:
    """Return whole sequences; states are [layers * directions, batch, hidden]."""
    value = call.value(0, "input")
    states = call.get(1, "hx")
    state_arguments = states if isinstance(states, list) else [states]
    parameters = call.get(2, "params")
    if not isinstance(parameters, list):  # packed sequences
        raise MixedRowsError("takes sequences that are packed together")
    call.flag(3, "has_biases")
    call.integer(4, "num_layers")
    call.get(5, "dropout")
    if call.flag(6, "train") and call.get(5, "dropout") not in {0.0, Size(0)}:
        raise MixedRowsError("drops values at random")
    directions = 2 if call.flag(7, "bidirectional") else 1
    axis = 0 if call.flag(8, "batch_first") else 1
    if any(not isinstance(item, Value) or not item.is_uniform for item in parameters):
        raise MixedRowsError("has weights that depend on the batch")
    if value.rank != 3 or value.rows is None or value.rows.axis != axis:  # noqa: PLR2004
        raise MixedRowsError("runs along the batch axis")
    moved = replace(value.rows, axis=1)
    values = [item for item in state_arguments if isinstance(item, Value)]
    if len(values) != len(state_arguments) or any(item.rows != moved for item in values):
        raise MixedRowsError("begins with a state by position")
    shape = values[0].shape or ()
    width = multiply(shape[-1], Size(directions))
    whole = with_rows((*(value.shape or ())[:2], width), value.rows)
    return [whole, *(with_rows(item.shape, moved) for item in values)]


def _recurrent_cell(call: AtenCall) -> Results:
    value = call.value(0, "input")
    states = call.get(1, "hx")
    state_arguments = states if isinstance(states, list) else [states]
    values = [item for item in state_arguments if isinstance(item, Value)]
    call.uniform((2, "w_ih"), (3, "w_hh"), (4, "b_ih"), (5, "b_hh"))
    if value.rank != 2 or len(values) != len(state_arguments):  # noqa: PLR2004
        raise MixedRowsError("takes shapes that do not fit")
    hidden = (values[0].shape or ())[-1]
    result = call.transfer.by_row([value, *values], [hidden])
    return [result] * len(values)


def _attention(call: AtenCall) -> Results:
    """Return products over the last two axes; the other axes broadcast."""
    query, key, value = (call.value(i, name) for i, name in enumerate(("query", "key", "value")))
    is_flash = call.name != "scaled_dot_product_attention"
    mask = call.optional(3 if not is_flash else -1, "attn_mask")
    if is_flash and call.name != "_scaled_dot_product_flash_attention_for_cpu":
        raise MixedRowsError("is not followed")
    dropout = call.get(3 if is_flash else 4, "dropout_p")
    if dropout not in {None, 0.0, Size(0)}:
        raise MixedRowsError("drops values at random")
    is_causal = call.flag(4 if is_flash else 5, "is_causal")
    call.used |= {6, 7, "scale", "enable_gqa"}
    scores = call.transfer.matmul(query, call.transfer.swapped(key))
    if mask is not None:
        scores = call.transfer.elementwise([scores, mask])
    scores = call.transfer.along(scores, [-1, -2] if is_causal else [-1], "normalises")
    result = call.transfer.matmul(scores, value)
    sums = call.transfer.reduce(scores, [-1], keep=False)
    return [result, sums][: max(call.count, 1)]


def _encoder_layer(call: AtenCall) -> Results:
    """Return the output of `_transformer_encoder_layer_fwd`: one encoder layer, batch first."""
    value = call.value(0, "src")
    call.ignore_rest()
    for number, item in enumerate(call.positional[1:], 1):
        if isinstance(item, Value) and not item.is_uniform:
            raise MixedRowsError(f"has argument {number} that depends on the batch")
    mask, kind = call.get(18, "mask"), call.get(19, "mask_type")
    if value.rank != 3 or mask is not None or kind is not None:  # noqa: PLR2004
        raise MixedRowsError("has a mask, which is not followed")
    return call.transfer.by_row([value], list((value.shape or ())[1:]))


def _triangle(call: AtenCall) -> Results:
    """Return entries of the last two axes selected by position."""
    call.get(1, "diagonal")
    return call.transfer.along(replace(call.value(), elements=None), [-1, -2], "cuts")


def _gated(call: AtenCall) -> Results:
    value = call.value()
    axis = call.integer(1, "dim", -1)
    size = (value.shape or ())[axis]
    return call.transfer.resized(
        value, {axis: call.transfer.symbols.floor_divide(size, Size(2))}, "halves"
    )


def _quantised(call: AtenCall) -> Results:
    """Return a quantised tensor; scales and zero points are numbers or one-element tensors."""
    for number, item in enumerate(call.positional[1:], 1):
        if isinstance(item, Value) and not (item.is_uniform and is_scalar(item)):
            raise MixedRowsError(f"has parameter {number} by row")
    call.ignore_rest()
    return replace(call.value(0, "input"), elements=None)


PRODUCTS: Final[Mapping[str, Operator]] = {
    **for_names("matmul mm bmm mv", _matmul),
    "linear": _linear,
    **for_names("addmm baddbmm", _addmm),
    **for_names("cdist _cdist_forward", _distance),
    "einsum": _einsum,
    **for_names("conv1d conv2d conv3d convolution _convolution", _conv),
    **for_names("conv_transpose1d conv_transpose2d conv_transpose3d", _conv),
    **for_names("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d", _pool),
    **for_names("max_pool2d_with_indices max_pool3d_with_indices", _pool),
    **{
        f"{prefix}adaptive_{kind}_pool{count}d": _adaptive_pool
        for prefix in ("", "_")
        for kind in ("avg", "max")
        for count in (1, 2, 3)
    },
    **for_names("upsample_nearest1d upsample_nearest2d upsample_nearest3d", _upsample),
    **for_names("upsample_linear1d upsample_bilinear2d upsample_trilinear3d", _upsample),
    "upsample_bicubic2d": _upsample,
    **for_names("pixel_shuffle pixel_unshuffle", _pixel_shuffle),
    **for_names("grid_sampler grid_sampler_2d grid_sampler_3d", _grid_sample),
    **for_names("batch_norm native_batch_norm _native_batch_norm_legit_no_training", _batch_norm),
    **for_names("layer_norm native_layer_norm rms_norm", _layer_norm),
    **for_names("group_norm native_group_norm", _group_norm),
    "instance_norm": _instance_norm,
    **for_names("lstm gru rnn_tanh rnn_relu", _recurrent),
    **for_names("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", _recurrent_cell),
    **for_names(
        "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu", _attention
    ),
    "_transformer_encoder_layer_fwd": _encoder_layer,
    **for_names("tril triu", _triangle),
    "glu": _gated,
    **for_names("quantize_per_tensor dequantize_per_tensor", _quantised),
}
RANDOM_PRODUCTS: Final = frozenset(
    {"lstm", "gru", "rnn_tanh", "rnn_relu", "scaled_dot_product_attention"}
)
