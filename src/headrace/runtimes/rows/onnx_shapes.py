"""ONNX operators that ask for shapes, change them, or look elements up."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from headrace.runtimes.rows.onnx_call import Call, Operator, Results
from headrace.runtimes.rows.symbols import BATCH, ONE, ZERO, Size, divide, product
from headrace.runtimes.rows.values import (
    MAX_ELEMENTS,
    MixedRowsError,
    RowNumbers,
    Rows,
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
    first, *others = call.present()
    axis = call.integer("axis", 1)
    joined = call.transfer.concat([first, *others], axis)
    if first.row_numbers is None:
        return joined
    if (
        first.rank == 1
        or normal_axis(axis, first.rank) != first.rank - 1
        or (first.shape or ())[-1] != ONE
    ):
        raise MixedRowsError("joins positions of rows")
    return replace(joined, row_numbers=replace(first.row_numbers, is_first=True))


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
    data, indices = call.value(0), call.value(1)
    axis = call.integer("axis", 0)
    numbers = indices.row_numbers
    if numbers is not None:
        # Each row looks up entries of its own block of rows.
        block = Rows(axis=0, after=numbers.stride)
        inside = numbers.width in (ONE, numbers.stride) and not numbers.is_first
        if data.rows != block or axis or not inside or indices.rows is None:
            raise MixedRowsError("looks rows up by their position")
        shape = (*(indices.shape or ()), *(data.shape or ())[1:])
        return with_rows(shape, indices.rows, is_integer=data.is_integer)
    return call.transfer.gather(data, indices, axis)


def _gather_elements(call: Call) -> Results:
    data, indices = call.value(0), call.value(1)
    if data.rows is None and indices.rows is None:
        return Value(shape=indices.shape, is_integer=data.is_integer)
    axis = normal_axis(call.integer("axis", 0), data.rank)
    if indices.rows is None:
        raise MixedRowsError("takes elements of rows by their position")
    if data.rows is None:
        # The table's other axes are looked up by the position of the index.
        sizes = data.shape or ()
        if indices.rows.axis != axis or len(sizes) != indices.rank:
            raise MixedRowsError("looks rows up by their position")
    elif data.rows != indices.rows or axis == data.rows.axis:
        raise MixedRowsError("takes elements of other rows")
    return with_rows(indices.shape, indices.rows, is_integer=data.is_integer)


def _gather_nd(call: Call) -> Results:  # noqa: C901  # four cases of two inputs
    data, indices = call.value(0), call.value(1)
    batch_dims = call.integer("batch_dims", 0)
    if data.shape is None and data.rows is None and indices.rows is None:
        return Value(is_integer=data.is_integer)
    data_shape, index_shape = data.shape or (), indices.shape
    if data.shape is None or not index_shape or not index_shape[-1].is_constant:
        raise MixedRowsError("takes a tensor of unknown shape")
    depth = index_shape[-1].number
    inner = data_shape[batch_dims + depth :]
    shape = (*index_shape[:-1], *inner)
    rows = None
    if indices.row_numbers is not None:
        # Each row's first index is its own number.
        is_own = replace(indices.row_numbers, is_first=False) == RowNumbers()
        if data.rows != Rows(axis=0) or batch_dims or indices.rows != Rows(axis=0) or not is_own:
            raise MixedRowsError("looks rows up by their position")
        rows = indices.rows
    elif data.rows is not None and indices.rows is not None:
        if data.rows != indices.rows or data.rows.axis >= batch_dims:
            raise MixedRowsError("looks each row's indices up in all rows")
        rows = data.rows
    elif indices.rows is not None:
        if indices.rows.axis < batch_dims or indices.rows.axis == len(index_shape) - 1:
            raise MixedRowsError("looks rows up by their position")
        rows = indices.rows
    elif data.rows is not None:
        if data.rows.axis < batch_dims + depth:
            raise MixedRowsError("takes some rows of the batch")
        moved = len(index_shape) - 1 + data.rows.axis - batch_dims - depth
        rows = replace(data.rows, axis=moved)
    return with_rows(shape, rows, is_integer=data.is_integer)


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
    data, indices, updates = call.value(0), call.value(1), call.value(2)
    if data.rows is None and indices.rows is None and updates.rows is None:
        return Value(shape=data.shape, is_integer=data.is_integer)
    if (
        data.rows is None
        or indices.rows is not None
        or indices.shape is None
        or updates.rows is None
    ):
        raise MixedRowsError("writes to rows by their position")
    depth = indices.shape[-1]
    if not depth.is_constant or data.rows.axis < depth.number:
        raise MixedRowsError("writes to rows by their position")
    moved = replace(data.rows, axis=len(indices.shape) - 1 + data.rows.axis - depth.number)
    if updates.rows != moved:
        raise MixedRowsError("writes to other rows")
    return with_rows(data.shape, data.rows, is_integer=data.is_integer)


def _range(call: Call) -> Results:
    parts = [call.value(number) for number in range(3)]
    if any(part.rows is not None for part in parts):
        raise MixedRowsError("counts up to a value of some rows")
    first, last, step = (
        part.elements.flat[0] if part.elements is not None and part.elements.size else None
        for part in parts
    )
    if any(part.counts_rows for part in parts):
        if (first, step) == (ZERO, ONE) and last == BATCH:
            reason = "numbers the rows of the batch"
            return Value(
                shape=(BATCH,),
                rows=Rows(axis=0),
                is_integer=True,
                row_numbers=RowNumbers(),
                mixed=reason,
            )
        raise MixedRowsError("counts the rows of the batch")
    whole = all(part.is_integer for part in parts)
    if first is None or last is None or step is None or not whole:
        return Value(shape=(call.transfer.symbols.unknown(),), is_integer=whole)
    if first.is_constant and last.is_constant and step.is_constant and step.number:
        numbers = range(first.number, last.number, step.number)
        if len(numbers) <= MAX_ELEMENTS:
            return sizes_value([Size(number) for number in numbers])
        return Value(shape=(Size(len(numbers)),), is_integer=True)
    if (first, step) == (ZERO, ONE):
        return Value(shape=(last,), is_integer=True, below=last)
    return Value(shape=(call.transfer.symbols.of("range", first, last, step),), is_integer=True)


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
