"""ONNX operators that ask for shapes, change them, or look elements up."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from headrace.runtimes.rows.onnx_graph import Call, Operator
from headrace.runtimes.rows.symbols import ONE, ZERO, Size, divide, product
from headrace.runtimes.rows.transfer import Results
from headrace.runtimes.rows.values import (
    MAX_ELEMENTS,
    MixedRowsError,
    Value,
    constants,
    normal_axis,
    sizes_value,
    with_rows,
)


def _shape(call: Call) -> Results:
    shape = call.value().shape
    if shape is None:
        raise MixedRowsError("takes a tensor of unknown shape")
    start, end = call.integer("start", 0), call.integer("end", len(shape))
    return sizes_value(shape[start:end])


def _size(call: Call) -> Results:
    shape = call.value().shape
    if shape is None:
        raise MixedRowsError("takes a tensor of unknown shape")
    return _scalar(product(shape))


def _scalar(size: Size | None) -> Value:
    elements = np.empty((), np.object_)
    elements[()] = size
    return Value(shape=(), elements=elements, is_integer=True)


def _reshape(call: Call) -> Results:
    value = call.value()
    target: list[Size | None]
    target = (
        [Size(number) for number in call.ints("shape") or []]
        if "shape" in call.node.attributes
        else call.sizes(1)
    )
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


def _transpose(call: Call) -> Results:
    return call.transfer.transpose(call.value(), call.ints("perm"))


def _unsqueeze(call: Call) -> Results:
    return call.transfer.unsqueeze(call.value(), call.axes("axes", 1) or [])


def _squeeze(call: Call) -> Results:
    return call.transfer.squeeze(call.value(), call.axes("axes", 1))


def _expand(call: Call) -> Results:
    target = call.sizes(1)
    return call.transfer.expand(
        call.value(), [None if size == Size(-1) else size for size in target]
    )


def _tile(call: Call) -> Results:
    return call.transfer.tile(call.value(), call.sizes(1))


def _constant_of_shape(call: Call) -> Results:
    sizes = call.sizes(0)
    attribute = call.node.attributes.get("value")
    tensor = None if attribute is None else attribute.tensor()
    fill = _scalar(ZERO) if tensor is None else tensor.value
    whole = fill.is_integer and tensor is not None
    shape = tuple(call.transfer.symbols.unknown() if size is None else size for size in sizes)
    filled = call.transfer.filled(shape, is_integer=whole)
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


def _concat(call: Call) -> Results:
    return call.transfer.concat(call.present(), call.integer("axis", 1))


def _split(call: Call) -> Results:
    value = call.value()
    count = len(call.node.outputs)
    if value.shape is None and value.rows is None:
        return [Value(is_integer=value.is_integer)] * count
    if value.counts_rows:
        axis, parts = 0, call.ints("split") or constants(call.optional(1)) or [1] * count
        if value.rank != 1 or sum(parts) != len(
            value.elements if value.elements is not None else ()
        ):
            raise MixedRowsError("computes with the number of rows")
        results, start = [], 0
        for length in parts:
            results.append(call.transfer.cut(value, 0, Size(start), Size(start + length), 1))
            start += length
        return results
    axis = normal_axis(call.integer("axis", 0), value.rank)
    checked = call.transfer.along(value, [axis], "splits")
    size = (checked.shape or ())[axis]
    parts_given = call.ints("split") or constants(call.optional(1))
    if parts_given is None and call.optional(1) is not None:
        lengths = [call.transfer.symbols.unknown() for _ in range(count)]
    elif parts_given is not None and len(parts_given) == count:
        lengths = [Size(number) for number in parts_given]
    else:
        even = divide(size, Size(count))
        lengths = [call.transfer.symbols.unknown() if even is None else even] * count
    return [
        call.transfer.resized(replace(value, elements=None), {axis: length}) for length in lengths
    ]


def _slice(call: Call) -> Results:
    value = call.value()
    if value.shape is None and value.rows is None:
        return Value(is_integer=value.is_integer)
    starts: list[Size | None]
    ends: list[Size | None]
    if "starts" in call.node.attributes:
        starts = [Size(number) for number in call.ints("starts") or []]
        ends = [Size(number) for number in call.ints("ends") or []]
        axes = call.ints("axes")
        steps: list[int] | None = None
    else:
        starts, ends = call.sizes(1), call.sizes(2)
        axes = None
        if call.optional(3) is not None:
            axes = constants(call.optional(3))
            if axes is None:
                raise MixedRowsError("takes axes that are computed while it runs")
        steps = None
        if call.optional(4) is not None:
            steps = [
                1 if size == ONE else size.number if size is not None and size.is_constant else 0
                for size in call.sizes(4)
            ]
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(axes) == len(starts) == len(ends) == len(steps):
        raise MixedRowsError("takes shapes that do not fit")
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        value = call.transfer.cut(value, axis, start, end, step or None)
    return value


def _gather(call: Call) -> Results:
    return call.transfer.gather(call.value(0), call.value(1), call.integer("axis", 0))


def _gather_elements(call: Call) -> Results:
    return call.transfer.take_along(call.value(0), call.value(1), call.integer("axis", 0))


def _gather_nd(call: Call) -> Results:
    return call.transfer.look_up(call.value(0), call.value(1), call.integer("batch_dims", 0))


def _scatter_elements(call: Call) -> Results:
    data = call.value(0)
    parts = call.present()
    if all(part.rows is None for part in parts):
        return Value(shape=data.shape, is_integer=data.is_integer)
    axis = normal_axis(call.integer("axis", 0), data.rank)
    if any(part.rows != data.rows for part in parts) or data.rows is None or data.rows.axis == axis:
        raise MixedRowsError("writes to other rows")
    return with_rows(data.shape, data.rows, is_integer=data.is_integer)


def _scatter_nd(call: Call) -> Results:
    return call.transfer.scatter(call.value(0), call.value(1), call.value(2))


def _range(call: Call) -> Results:
    return call.transfer.count(*(call.value(number) for number in range(3)))


SHAPES: Final[Mapping[str, Operator]] = {
    "Shape": _shape,
    "Size": _size,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Expand": _expand,
    "Tile": _tile,
    "ConstantOfShape": _constant_of_shape,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements,
    "Scatter": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Range": _range,
}
"""Of `ai.onnx`."""
