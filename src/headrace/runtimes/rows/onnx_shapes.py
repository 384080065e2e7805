"""ONNX operators that are element-wise, change shapes, or look up elements."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from headrace.runtimes.rows.onnx_graph import Call, Operator
from headrace.runtimes.rows.operators import (
    OperatorCall,
    Results,
    counted,
    elementwise,
    folding,
    for_names,
    is_scalar,
    narrowed,
    same,
    scattered,
)
from headrace.runtimes.rows.symbols import ZERO, Size, divide, product
from headrace.runtimes.rows.values import (
    FOLDS,
    MAX_ELEMENTS,
    MixedRowsError,
    Value,
    constants,
    normal_axis,
    sizes_value,
    with_rows,
)

_FLOATS: Final = frozenset({1, 10, 11, 16})
_BOOL: Final = 9
_EXACT: Final = frozenset({1, 6, 7, 11, 12, 13})
"""Datatypes that can represent any number of rows: FLOAT, INT32, INT64, DOUBLE, UINT32, UINT64."""
_ELEMENTWISE: Final = """
Abs Acos Acosh And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
Celu Clip Cos Cosh Elu Erf Exp Gelu HardSigmoid HardSwish IsInf IsNaN LeakyRelu Log Mean
Mish Not Or PRelu Pow Reciprocal Relu Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt
StringConcat RegexFullMatch Swish Tan Tanh ThresholdedRelu Xor ImageScaler Affine
ParametricSoftplus ScaledTanh
"""


def _cast(call: Call) -> Results:
    kind = call.integer("to", 0)
    value = call.value()
    if kind not in _EXACT:
        if value.counts_rows:
            raise MixedRowsError("computes with the number of rows")
        items = constants(value) if kind == _BOOL else None
        elements = None
        if items is not None and value.elements is not None:
            elements = np.empty(len(items), np.object_)
            elements[:] = [Size(int(item != 0)) for item in items]
            elements = elements.reshape(value.elements.shape)
        value = replace(narrowed(value), elements=elements)
    return replace(value, is_integer=kind not in _FLOATS)


def _cast_like(call: Call) -> Results:
    """Return the first input in the datatype of the second, whose shape does not matter."""
    value = call.value()
    if value.counts_rows:
        raise MixedRowsError("computes with the number of rows")
    return replace(narrowed(value), is_integer=call.value(1).is_integer)


def _dropout(call: Call) -> Results:
    training = call.optional(2)
    if training is not None and constants(training) != [0]:
        raise MixedRowsError("may drop values at random")
    if call.opset < 7 and not call.integer("is_test", 0):  # noqa: PLR2004
        raise MixedRowsError("may drop values at random")
    value = call.value()
    return [value, replace(value, elements=None)]


def _by_channel(call: Call) -> Results:
    """Return an element-wise result with two parameters that are scalars or lie along `axis`."""
    value = call.value()
    call.uniform(1, 2)
    if value.shape is None and value.rows is None:
        return Value()
    for parameter in call.inputs[1:]:
        if parameter is None or is_scalar(parameter):
            continue
        axes = [call.integer("axis", 1)]
        if parameter.shape is None or len(parameter.shape) != 1:
            axes = list(range(value.rank))
        call.transfer.along(value, axes, "has parameters")
    return with_rows(value.shape, value.rows, is_integer=call.node.operator == "QuantizeLinear")


def dynamic_quantisation(_: OperatorCall) -> Results:
    """Return a quantisation whose scale depends on the whole tensor."""
    raise MixedRowsError("takes the scale of its quantisation over the whole batch")


def _quantised_elementwise(input_numbers: Sequence[int]) -> Operator:
    def operator(call: Call) -> Results:
        call.uniform(*(i for i in range(len(call.inputs)) if i not in input_numbers))
        for number, value in enumerate(call.inputs):
            if number not in input_numbers and value is not None and not is_scalar(value):
                raise MixedRowsError("has parameters by position")
        return call.transfer.elementwise([call.value(number) for number in input_numbers])

    return operator


def _quantised_concat(call: Call) -> Results:
    parts = [call.value(number) for number in range(2, len(call.inputs), 3)]
    call.uniform(*(i for i in range(len(call.inputs)) if i < 2 or i % 3 != 2))  # noqa: PLR2004
    return call.transfer.concat(parts, call.integer("axis", 1))


def _shape(call: Call) -> Results:
    shape = call.value().shape
    if shape is None:
        raise MixedRowsError("takes a tensor of unknown shape")
    if call.node.operator == "Size":
        return _scalar(product(shape))
    start, end = call.integer("start", 0), call.integer("end", len(shape))
    return sizes_value(shape[start:end])


def _scalar(size: Size | None) -> Value:
    elements = np.empty((), np.object_)
    elements[()] = size
    return Value(shape=(), elements=elements, is_integer=True)


def _reshape(call: Call) -> Results:
    value, target = call.value(), call.listed("shape", 1)
    if not call.integer("allowzero", 0):
        for axis, size in enumerate(target):
            if size == ZERO:
                shape = value.shape
                if shape is None or axis >= len(shape):
                    raise MixedRowsError("takes a tensor of unknown shape")
                target[axis] = shape[axis]
    return call.transfer.reshape(value, target)


def _flatten(call: Call) -> Results:
    value = call.value()
    if value.shape is None:
        return Value()
    axis = call.integer("axis", 1)
    axis = axis + len(value.shape) if axis < 0 else axis
    target = (product(value.shape[:axis]), product(value.shape[axis:]))
    return call.transfer.reshape(value, target)


def _expand(call: Call) -> Results:
    target = [None if size == Size(-1) else size for size in call.sizes(1)]
    return call.transfer.expand(call.value(), target)


def _constant_of_shape(call: Call) -> Results:
    attribute = call.node.attributes.get("value")
    tensor = None if attribute is None else attribute.tensor()
    fill = _scalar(ZERO) if tensor is None else tensor.value
    shape = tuple(call.transfer.sized(call.sizes(0)))
    is_integer = fill.is_integer and tensor is not None
    filled = call.transfer.filled(shape, is_integer=is_integer)
    numbers = [size.number for size in shape if size.is_constant]
    if (
        len(numbers) == len(shape)
        and 0 <= np.prod(numbers) <= MAX_ELEMENTS
        and min(numbers, default=0) >= 0
    ):
        elements = np.empty(numbers, np.object_)
        elements[...] = None if fill.elements is None else fill.elements.flat[0]
        return replace(filled, elements=elements)
    return filled


def _split(call: Call) -> Results:
    value, count = call.value(), call.count
    if value.shape is None and value.rows is None:
        return [Value(is_integer=value.is_integer)] * count
    lengths = call.ints("split") or constants(call.optional(1))
    if value.counts_rows:
        lengths = lengths or [1] * count
        if value.rank != 1 or (Size(sum(lengths)),) != value.shape:
            raise MixedRowsError("computes with the number of rows")
        starts = np.cumsum([0, *lengths[:-1]]).tolist()
        return [
            call.transfer.cut(value, 0, Size(start), Size(start + length), 1)
            for start, length in zip(starts, lengths, strict=True)
        ]
    axis = normal_axis(call.integer("axis", 0), value.rank)
    sizes: list[Size | None] = [None] * count
    if lengths is not None and len(lengths) == count:
        sizes = [Size(number) for number in lengths]
    elif lengths is not None or call.optional(1) is None:
        sizes = [divide((value.shape or ())[axis], Size(count))] * count
    return call.transfer.parts(value, axis, sizes)


def _slice(call: Call) -> Results:
    value = call.value()
    if value.shape is None and value.rows is None:
        return Value(is_integer=value.is_integer)
    starts, ends = call.listed("starts", 1), call.listed("ends", 2)
    axes: list[int] | None = None
    steps = [1] * len(starts)
    if "starts" in call.node.attributes:
        axes = call.ints("axes")
    else:
        if call.optional(3) is not None:
            axes = call.axes(3)
        if call.optional(4) is not None:
            steps = [
                size.number if size is not None and size.is_constant else 0
                for size in call.sizes(4)
            ]
    axes = list(range(len(starts))) if axes is None else axes
    if not len(axes) == len(starts) == len(ends) == len(steps):
        raise MixedRowsError("takes shapes that do not fit")
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        value = call.transfer.cut(value, axis, start, end, step or None)
    return value


def _scatter_elements(call: Call) -> Results:
    data = call.value(0)
    parts = call.present()
    if all(part.rows is None for part in parts):
        return Value(shape=data.shape, is_integer=data.is_integer)
    axis = normal_axis(call.integer("axis", 0), data.rank)
    if any(part.rows != data.rows for part in parts) or data.rows is None or data.rows.axis == axis:
        raise MixedRowsError("writes to other rows")
    return with_rows(data.shape, data.rows, is_integer=data.is_integer)


ELEMENTS: Final[Mapping[str, Operator]] = {
    **for_names(_ELEMENTWISE, elementwise),
    **{name: folding(fold) for name, fold in FOLDS.items()},
    "Sum": folding(FOLDS["Add"]),
    "Identity": same,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Dropout": _dropout,
    **for_names("QuantizeLinear DequantizeLinear", _by_channel),
    "DynamicQuantizeLinear": dynamic_quantisation,
    **for_names("Shape Size", _shape),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": lambda call: call.transfer.transpose(call.value(), call.ints("perm")),
    "Unsqueeze": lambda call: call.transfer.unsqueeze(call.value(), call.named_axes() or []),
    "Squeeze": lambda call: call.transfer.squeeze(call.value(), call.named_axes()),
    "Expand": _expand,
    "Tile": lambda call: call.transfer.tile(call.value(), call.sizes(1)),
    "ConstantOfShape": _constant_of_shape,
    "Concat": lambda call: call.transfer.concat(call.present(), call.integer("axis", 1)),
    "Split": _split,
    "Slice": _slice,
    "Gather": lambda call: call.transfer.gather(
        call.value(0), call.value(1), call.integer("axis", 0)
    ),
    "GatherElements": lambda call: call.transfer.take_along(
        call.value(0), call.value(1), call.integer("axis", 0)
    ),
    "GatherND": lambda call: call.transfer.look_up(
        call.value(0), call.value(1), call.integer("batch_dims", 0)
    ),
    **for_names("ScatterElements Scatter", _scatter_elements),
    "ScatterND": scattered,
    "Range": counted,
}
"""Operators of `ai.onnx`."""
CONTRIB_ELEMENTS: Final[Mapping[str, Operator]] = {
    **for_names("Gelu BiasGelu FastGelu QuickGelu", elementwise),
    **for_names("QuantizeLinear DequantizeLinear", _by_channel),
    **for_names("QLinearAdd QLinearMul", _quantised_elementwise((0, 3))),
    **for_names("QLinearSigmoid QLinearLeakyRelu", _quantised_elementwise((0,))),
    "QLinearConcat": _quantised_concat,
    **for_names("DynamicQuantizeMatMul DynamicQuantizeLSTM", dynamic_quantisation),
}
"""Operators of `com.microsoft`."""
