"""Effect of PyTorch's operators on rows: shapes, lookups, reductions and element by element.

Names and parameters are those of `native_functions.yaml`:
https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/native_functions.yaml
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from headrace.runtimes.rows.aten import AtenCall, Operator, OperatorTable, as_value, is_whole
from headrace.runtimes.rows.aten_products import PRODUCTS, RANDOM_PRODUCTS
from headrace.runtimes.rows.operators import Results, for_names, narrowed
from headrace.runtimes.rows.symbols import BATCH, ONE, ZERO, Size, divide, multiply, product
from headrace.runtimes.rows.values import (
    FOLDS,
    MAX_ELEMENTS,
    BatchRows,
    Fold,
    MixedRowsError,
    RowNumbers,
    Value,
    exact_quotient,
    mixed,
    normal_axis,
    with_rows,
)

C10_DTYPES: Final = {
    0: "uint8",
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "float16",
    6: "float32",
    7: "float64",
    11: "bool",
    15: "bfloat16",
}
"""Codes of datatypes in TorchScript."""
_EXACT: Final = frozenset({"int32", "int64", "float32", "float64"})
_END: Final = Size(1 << 62)

# Element-wise operators


def _operands(call: AtenCall) -> list[Value]:
    values = []
    for number, item in enumerate(call.positional):
        call.used.add(number)
        if isinstance(item, Value | Size | bool | float):
            values.append(as_value(item))
        elif isinstance(item, list):
            raise MixedRowsError("takes a list that is not followed")
    return values


def _all_operands(call: AtenCall) -> list[Value]:
    """Return positional operands, then named numbers, such as the `value` of `masked_fill`."""
    values = _operands(call)
    call.used |= set(call.named)
    named = [
        as_value(item)
        for item in call.named.values()
        if isinstance(item, Value | Size | float) and not isinstance(item, bool)
    ]
    positional = set(map(id, values))
    return [
        *values,
        *(value for value in named if value.shape != () and id(value) not in positional),
    ]


def _test(call: AtenCall) -> Results:
    """Return truth values, which are not used to compute sizes."""
    return call.transfer.elementwise(_all_operands(call), is_integer=True)


def _folding(fold: Fold, *, is_integer: bool | None = None) -> Operator:
    def operator(call: AtenCall) -> Results:
        values = _operands(call)
        call.used |= {"self", "other", "input"}
        is_scaled = call.get(-1, "alpha") not in {None, ONE, 1.0}
        return call.transfer.elementwise(values, None if is_scaled else fold, is_integer=is_integer)

    return operator


def _divide(call: AtenCall) -> Results:
    values = _operands(call)
    call.used |= {"self", "other"}
    mode = call.get(-1, "rounding_mode")
    is_floor = call.name == "floor_divide" or mode in {"floor", "trunc"}
    is_integer = is_floor and all(value.is_integer for value in values)
    fold = FOLDS["Div"] if is_floor else exact_quotient
    return call.transfer.elementwise(values, fold, is_integer=is_integer)


def _where(call: AtenCall) -> Results:
    values = _operands(call)
    call.used |= set(call.named)
    if len(values) != 3:  # noqa: PLR2004  # with fewer it lists positions
        raise MixedRowsError("lists positions in all rows")
    return call.transfer.elementwise(values, is_integer=all(v.is_integer for v in values[1:]))


def _prelu(call: AtenCall) -> Results:
    """Return the result; the slope lies along axis 1 if it is more than one number."""
    value, slope = call.value(), call.value(1, "weight")
    call.uniform((1, "weight"))
    if value.rows is not None and value.rows.axis != 0 and product(slope.shape or ()) != ONE:
        raise MixedRowsError("has parameters along the batch axis")
    return Value(shape=value.shape, rows=value.rows)


def _fill(call: AtenCall) -> Results:
    value = call.value()
    other = call.optional(1, "value")
    if call.name == "copy":
        other = call.value(1, "src")
        call.flag(2, "non_blocking")
    if other is None:
        return replace(value, elements=None, below=None)
    return call.transfer.elementwise([replace(value, elements=None), other])


def _converted(call: AtenCall) -> Results:
    value = call.value()
    dtype = _dtype(call)
    for number in range(1, len(call.positional)):
        call.used.add(number)
    call.used |= {"other", "dtype"}
    if dtype in _EXACT:
        return replace(value, is_integer=is_whole(dtype))
    if dtype is None and call.name in {"to", "_to_copy"}:
        return value
    if value.counts_rows:
        raise MixedRowsError("computes with the number of rows")
    is_integer = is_whole(dtype) if dtype else False
    return replace(narrowed(value), is_integer=is_integer)


CONVERSIONS: Final = {
    "long": "int64",
    "int": "int32",
    "float": "float32",
    "double": "float64",
    "half": "float16",
    "bool": "bool",
    "bfloat16": "bfloat16",
    "short": "int16",
    "char": "int8",
    "byte": "uint8",
}


def _dtype(call: AtenCall) -> str | None:
    """Return the datatype that a call names; None for none, empty for an unknown one."""
    if call.name in CONVERSIONS:
        return CONVERSIONS[call.name]
    item = call.named.get("dtype")
    if item is None and call.name in {"to", "type_as"}:
        item = call.positional[1] if len(call.positional) > 1 else None
    if isinstance(item, str):
        is_type = item.startswith(("int", "uint", "float", "bool", "bfloat", "complex"))
        return item if is_type else None
    if isinstance(item, Size):
        return C10_DTYPES.get(item.number, "")
    return "" if isinstance(item, Value) or "other" in call.named else None


# Shapes


def _same(call: AtenCall) -> Results:
    call.get(1, "dtype")
    return call.value(0, "input" if "input" in call.named else "self")


def _dropout(call: AtenCall) -> Results:
    value = call.value(0, "input")
    call.get(1, "p")
    if call.flag(2, "train"):
        raise MixedRowsError("drops values at random")
    return [value, replace(value, elements=None)][: call.count]


def _reshape(call: AtenCall) -> Results:
    value, item = call.value(), call.get(1, "size" if "size" in call.named else "shape")
    if not isinstance(item, list):
        raise MixedRowsError("reads elements as another type")
    return call.transfer.reshape(value, call.sizes(1, "size" if "size" in call.named else "shape"))


def _reshape_as(call: AtenCall) -> Results:
    value, other = call.value(), call.value(1, "other")
    if other.shape is None:
        raise MixedRowsError("takes a tensor of unknown shape")
    if call.name == "expand_as":
        return call.transfer.expand(value, other.shape)
    return call.transfer.reshape(value, other.shape)


def _flatten(call: AtenCall) -> Results:
    value = call.value()
    if value.shape is None and value.rows is None:
        return Value(is_integer=value.is_integer)
    shape = value.shape or ()
    first = normal_axis(call.integer(1, "start_dim", 0), value.rank)
    last = normal_axis(call.integer(2, "end_dim", -1), value.rank)
    if not shape:
        return call.transfer.reshape(value, [ONE])
    return call.transfer.reshape(
        value, [*shape[:first], product(shape[first : last + 1]), *shape[last + 1 :]]
    )


def _unflatten(call: AtenCall) -> Results:
    value = call.value()
    axis = normal_axis(call.integer(1, "dim"), value.rank)
    sizes, shape = call.sizes(2, "sizes"), value.shape or ()
    if Size(-1) in sizes:
        rest = product([size for size in sizes if size is not None and size != Size(-1)])
        left = divide(shape[axis], rest) if None not in sizes else None
        sizes = [left if size == Size(-1) else size for size in sizes]
    return call.transfer.reshape(value, [*shape[:axis], *sizes, *shape[axis + 1 :]])


def _squeeze(call: AtenCall) -> Results:
    value, axes = call.value(), call.integers(1, "dim")
    if axes is None:
        return call.transfer.squeeze(value, None)
    removed = []
    for axis in axes:
        size = None if value.shape is None else value.shape[normal_axis(axis, value.rank)]
        is_batch = value.rows is not None and value.rows.axis == normal_axis(axis, value.rank)
        if size == ONE or is_batch:
            removed.append(axis)
        elif size is None or not size.is_constant:
            raise MixedRowsError("removes an axis if it has the size 1")
    return call.transfer.squeeze(value, removed)


def _transpose(call: AtenCall) -> Results:
    value = call.value()
    if value.shape is None and value.rows is None:
        return Value(is_integer=value.is_integer)
    order = list(range(value.rank))
    if call.name in {"t", "mT", "adjoint"}:
        first, second = (-2, -1) if value.rank > 1 else (-1, -1)
    else:
        first, second = call.integer(1, "dim0"), call.integer(2, "dim1")
    if not order:
        return value
    first, second = normal_axis(first, value.rank), normal_axis(second, value.rank)
    order[first], order[second] = order[second], order[first]
    return call.transfer.transpose(value, order)


def _permute(call: AtenCall) -> Results:
    order = None if call.name == "numpy_T" else call.integers(1, "dims")
    return call.transfer.transpose(call.value(), order)


def _movedim(call: AtenCall) -> Results:
    value = call.value()
    sources = [normal_axis(axis, value.rank) for axis in call.integers(1, "source") or []]
    targets = [normal_axis(axis, value.rank) for axis in call.integers(2, "destination") or []]
    rest = iter(axis for axis in range(value.rank) if axis not in sources)
    moved = dict(zip(targets, sources, strict=True))
    order = [moved[axis] if axis in moved else next(rest) for axis in range(value.rank)]
    return call.transfer.transpose(value, order)


def _expand(call: AtenCall) -> Results:
    value, sizes = call.value(), call.sizes(1, "size")
    added = len(sizes) - value.rank
    whole_shape = [
        (value.shape or ())[axis - added] if size == Size(-1) and axis >= added else size
        for axis, size in enumerate(sizes)
    ]
    return call.transfer.expand(value, whole_shape)


def _repeat(call: AtenCall) -> Results:
    value, repeats = call.value(), call.sizes(1, "repeats")
    if value.shape is None or len(repeats) < value.rank:
        raise MixedRowsError("takes shapes that do not fit")
    added = list(range(len(repeats) - value.rank))
    wide = call.transfer.unsqueeze(replace(value, elements=None, below=None), added)
    if value.counts_rows:
        raise MixedRowsError("computes with the number of rows")
    return call.transfer.tile(wide, repeats)


def _repeat_interleave(call: AtenCall) -> Results:
    value = call.value()
    times = call.integer(1, "repeats")
    axis = call.integer(2, "dim")
    call.get(-1, "output_size")
    size = multiply((value.shape or ())[normal_axis(axis, value.rank)], Size(times))
    return call.transfer.resized(replace(value, elements=None, below=None), {axis: size}, "repeats")


def _concat(call: AtenCall) -> Results:
    values = call.values(0, "tensors")
    axis = call.integer(1, "dim", 0)
    if call.name == "stack":
        values = [call.transfer.unsqueeze(value, [axis]) for value in values]
    return call.transfer.concat(values, axis)


def _pieces(call: AtenCall, value: Value, axis: int, lengths: Sequence[Size | None]) -> Results:
    """Return the value cut into parts of these lengths."""
    axis = normal_axis(axis, value.rank)
    pieces, start = [], ZERO
    for length in lengths:
        if length is None:
            raise MixedRowsError("takes sizes that are computed while it runs")
        end = call.transfer.symbols.add(start, length)
        part = call.transfer.cut(value, axis, start, end, 1)
        shape = part.shape or ()
        # The lengths add up to the axis's size, so each part has its own length.
        pieces.append(replace(part, shape=(*shape[:axis], length, *shape[axis + 1 :])))
        start = end
    return pieces


def _split(call: AtenCall) -> Results:
    value = call.value()
    axis = normal_axis(call.integer(2, "dim", 0), value.rank)
    sizes_name = "split_size" if "split_size" in call.named else "split_sizes"
    if value.rows is not None and value.rows.axis == axis:
        raise MixedRowsError("takes some rows of the batch")
    if isinstance(call.get(1, sizes_name), list):
        return _pieces(call, value, axis, call.sizes(1, sizes_name))
    size, total = call.integer(1, sizes_name), (value.shape or ())[axis]
    if call.name == "chunk":
        call.get(1, "chunks")
        if not total.is_constant:
            even = divide(total, Size(size))
            if even is None:
                raise MixedRowsError("takes sizes that are computed while it runs")
            return _pieces(call, value, axis, [even] * size)
        size = -(-total.number // size)
    if not total.is_constant or size <= 0:
        raise MixedRowsError("takes sizes that are computed while it runs")
    starts = range(0, total.number, size)
    return _pieces(call, value, axis, [Size(min(size, total.number - i)) for i in starts])


def _chunk(call: AtenCall) -> Results:
    if "chunks" in call.named:
        call.named["split_size"] = call.named["chunks"]
        call.used.add("chunks")
    return _split(call)


def _unbind(call: AtenCall) -> Results:
    value = call.value()
    axis = normal_axis(call.integer(1, "dim", 0), value.rank)
    size = (value.shape or ())[axis]
    if not size.is_constant or size.number > MAX_ELEMENTS:
        raise MixedRowsError("takes an axis apart whose size is not known")
    return [_selected(call, value, axis, i) for i in range(size.number)]


def _selected(call: AtenCall, value: Value, axis: int, index: int) -> Value:
    end = _END if index == -1 else Size(index + 1)
    part = call.transfer.cut(value, axis, Size(index), end, 1)
    shape, axis = part.shape or (), normal_axis(axis, part.rank)
    # An index out of range is an error, so one entry is left.
    return call.transfer.squeeze(
        replace(part, shape=(*shape[:axis], ONE, *shape[axis + 1 :])), [axis]
    )


def _select(call: AtenCall) -> Results:
    value = call.value()
    if value.shape is None and value.rows is None:
        return Value(is_integer=value.is_integer)
    axis = normal_axis(call.integer(1, "dim"), value.rank)
    index = call.size(2, "index")
    if index is not None and index.is_constant:
        return _selected(call, value, axis, index.number)
    if index is not None and index.has_batch:
        raise MixedRowsError("takes as much as there are rows")
    stripped = replace(value, elements=None, below=None)
    if value.counts_rows:
        raise MixedRowsError("computes with the number of rows")
    return call.transfer.reduce(stripped, [axis], keep=False)


def _slice(call: AtenCall) -> Results:
    value = call.value()
    axis = call.integer(1, "dim", 0)
    start = call.size(2, "start", 0)
    end = call.size(3, "end", 1 << 62)
    step = call.integer(4, "step", 1)
    return call.transfer.cut(value, axis, start, end, step)


def _narrow(call: AtenCall) -> Results:
    value, axis = call.value(), normal_axis(call.integer(1, "dim"), call.value().rank)
    start, length = call.size(2, "start"), call.size(3, "length")
    if start is None or length is None:
        return call.transfer.resized(
            replace(value, elements=None), {axis: call.transfer.symbols.unknown()}, "cuts"
        )
    end = call.transfer.symbols.add(start, length)
    part = call.transfer.cut(value, axis, start, end, 1)
    shape = part.shape or ()
    return replace(part, shape=(*shape[:axis], length, *shape[axis + 1 :]))


def _unfold(call: AtenCall) -> Results:
    value = call.value()
    axis, size = call.integer(1, "dimension"), call.size(2, "size")
    call.integer(3, "step")
    symbols = call.transfer.symbols
    cut = call.transfer.resized(value, {axis: symbols.unknown(minimum=1)}, "slides")
    width = symbols.unknown() if size is None else size
    return replace(cut, shape=(*(cut.shape or ()), width))


def _pad(call: AtenCall) -> Results:
    value = call.value()
    pads = call.sizes(1, "padding" if "padding" in call.named else "pad")
    call.get(2, "mode" if call.name == "pad" else "value")
    call.get(3, "value")
    axes = range(value.rank - 1, -1, -1)
    both = dict(zip(axes, zip(pads[::2], pads[1::2], strict=True), strict=False))
    return call.transfer.padded(replace(value, below=None), both)


# Operators that create tensors from sizes


def _full(call: AtenCall) -> Results:
    sizes = call.sizes(0, "size")
    fill = call.optional(1, "fill_value") if call.name == "full" else None
    return _filled(call, sizes, fill)


def _new_full(call: AtenCall) -> Results:
    call.value()
    fill = call.optional(2, "fill_value") if call.name == "new_full" else None
    return _filled(call, call.sizes(1, "size"), fill)


def _filled(call: AtenCall, sizes: Sequence[Size | None], fill: Value | None) -> Value:
    if fill is not None and not fill.is_uniform:
        raise MixedRowsError("fills with what depends on the batch")
    known_sizes = call.transfer.sized(sizes)
    value = call.transfer.filled(
        tuple(known_sizes), is_integer=fill is not None and fill.is_integer
    )
    numbers = [size.number for size in known_sizes if size.is_constant]
    first = fill.elements.flat[0] if fill is not None and fill.elements is not None else None
    number = {"zeros": ZERO, "new_zeros": ZERO, "ones": ONE, "new_ones": ONE}.get(call.name, first)
    if number is not None and len(numbers) == len(known_sizes) and np.prod(numbers) <= MAX_ELEMENTS:
        elements = np.full(numbers, None, np.object_)
        elements[...] = number
        return replace(value, elements=elements)
    return value


def _like(call: AtenCall) -> Results:
    value = call.value()
    if call.name == "full_like":
        call.uniform((1, "fill_value"))
    return Value(shape=value.shape, rows=value.rows, is_integer=value.is_integer)


def _arange(call: AtenCall) -> Results:
    """Return `arange(end)`, `arange(start, end)` or `arange(start, end, step)`."""
    parts = [call.get(i, "") for i in range(3)] if not call.named.keys() & {"end"} else None
    if parts is None:
        items = [call.get(-1, name) for name in ("start", "end", "step")]
    else:
        items = [item for item in parts if isinstance(item, Size | Value | float)]
        items = [None, *items] if len(items) == 1 else items
    call.used |= {0, 1, 2, "start", "end", "step"}
    start, end, step, *_ = [*items, None]
    first, last, stride = (
        default if item is None else item
        for item, default in ((start, ZERO), (end, None), (step, ONE))
    )
    if not all(isinstance(item, Size | Value | float) for item in (first, last, stride)):
        raise MixedRowsError("lacks an end")
    bounds = [
        as_value(item) for item in (first, last, stride) if isinstance(item, Size | Value | float)
    ]
    begin, total, width = (bound.only for bound in bounds)
    is_exact = _dtype(call) in {None, *_EXACT}
    if begin == ZERO and total is not None and width is not None and width != ONE:
        is_even = width.is_positive and not width.has_batch
        if is_even and divide(total, width) == BATCH and is_exact:
            # The first position of each row, if all rows lie in sequence.
            return Value(
                shape=(BATCH,),
                rows=BatchRows(axis=0),
                is_integer=True,
                row_numbers=RowNumbers(stride=width),
                mixed="numbers the rows of the batch",
            )
    numbers = call.transfer.count(*bounds)
    return numbers if is_exact else narrowed(numbers)


def _uniform_only(call: AtenCall) -> Results:
    """Return a tensor that depends only on uniform arguments."""
    call.ignore_rest()
    if any(isinstance(item, Value) and not item.is_uniform for item in call.positional):
        raise MixedRowsError("has parameters that depend on the batch")
    return Value()


def _scalar_tensor(call: AtenCall) -> Results:
    value = call.value(0, "s" if "s" in call.named else "data")
    call.get(1, "dtype")
    return value


# Operators along axes


def _along(description: str = "normalises") -> Operator:
    def operator(call: AtenCall) -> Results:
        axes = call.integers(1, "dims" if "dims" in call.named else "dim")
        if axes is None:
            raise MixedRowsError("runs through all elements")
        call.ignore_rest()
        value = call.value(0, "input" if "input" in call.named else "self")
        return [call.transfer.along(value, axes, description)] * max(call.count, 1)

    return operator


def _roll(call: AtenCall) -> Results:
    axes = call.integers(2, "dims")
    call.get(1, "shifts")
    if not axes:
        raise MixedRowsError("shifts all elements")
    return call.transfer.along(call.value(), axes, "shifts")


def _sort(call: AtenCall) -> Results:
    result = call.transfer.along(call.value(), [call.integer(1, "dim", -1)], "sorts")
    call.ignore_rest()
    indices = replace(result, is_integer=True)
    return indices if call.name == "argsort" else [result, indices]


def _top(call: AtenCall) -> Results:
    value, count = call.value(), call.size(1, "k")
    axis = call.integer(2, "dim", -1)
    call.ignore_rest()
    return call.transfer.ranked(value, axis, count)


def _reduced(call: AtenCall, parameter: int = 1, *, is_test: bool | None = None) -> Value:
    """Return a reduction over the axes in the parameter of this number; over all if none."""
    item = call.get(parameter, "dim")
    if isinstance(item, bool):  # `std(self, unbiased)`
        item = None
    axes = None if item is None else (call.integers(parameter, "dim") or None)
    rest = [call.get(i, "") for i in range(parameter + 1, len(call.positional))]
    flags = [flag for flag in rest if isinstance(flag, bool)]
    keep = call.flag(-1, "keepdim") or bool(flags and flags[-1])
    if call.name in {"std", "var", "std_mean", "var_mean"} and len(flags) == 1:
        # A single positional flag is `unbiased`.
        keep = call.flag(-1, "keepdim")
    value = call.value()
    call.ignore_rest()
    return call.transfer.reduce(value, axes, keep=keep, is_integer=is_test)


def _reduce(parameter: int = 1, *, is_test: bool | None = None, outputs: int = 1) -> Operator:
    return lambda call: [_reduced(call, parameter, is_test=is_test)] * outputs


def _chosen(call: AtenCall) -> Results:
    """Return `max`, `min` or `median` of all elements, or along an axis with the positions."""
    other = call.named.get("other") or (call.positional[1] if len(call.positional) > 1 else None)
    if isinstance(other, Value):
        return _folding(FOLDS["Max" if call.name == "max" else "Min"])(call)
    reduced = _reduced(call)
    has_axis = len(call.positional) > 1 or "dim" in call.named
    return [reduced, replace(reduced, is_integer=True)] if has_axis else reduced


def _kth(call: AtenCall) -> Results:
    call.get(1, "k")
    reduced = _reduced(call, 2)
    return [reduced, replace(reduced, is_integer=True)]


def _similarity(call: AtenCall) -> Results:
    first, second = call.value(0, "x1"), call.value(1, "x2")
    axis = call.integer(2, "dim", 1 if call.name == "cosine_similarity" else -1)
    call.ignore_rest()
    return call.transfer.reduce(call.transfer.elementwise([first, second]), [axis], keep=False)


# Lookups


def _embedding(call: AtenCall) -> Results:
    call.used |= {2, 3, 4, "padding_idx", "scale_grad_by_freq", "sparse"}
    return call.transfer.gather(call.value(0, "weight"), call.value(1, "indices"), 0)


def _embedding_bag(call: AtenCall) -> Results:
    """Return the result; bags are rows where offsets are their first positions."""
    weight, indices, offsets = (
        call.value(i, name) for i, name in enumerate(("weight", "indices", "offsets"))
    )
    call.ignore_rest()
    weights = call.optional(6, "per_sample_weights")
    numbers = offsets.row_numbers
    if weight.rows is not None or numbers is None or numbers.width != ONE or numbers.is_first:
        raise MixedRowsError("has bags that need not be rows")
    block = BatchRows(axis=0, after=numbers.stride)
    if indices.rows != block or call.flag(7, "include_last_offset"):
        raise MixedRowsError("has bags that are not rows")
    if weights is not None and weights.rows != block:
        raise MixedRowsError("has weights that are not of the rows")
    bag = with_rows((BATCH, (weight.shape or ())[1]), BatchRows(axis=0))
    return [bag, *[mixed("numbers the rows of the batch")] * (max(call.count, 4) - 1)]


def _gather(call: AtenCall) -> Results:
    axis = call.integer(1, "dim")
    call.get(-1, "sparse_grad")
    return call.transfer.take_along(call.value(), call.value(2, "index"), axis)


def _indices(call: AtenCall) -> tuple[int, list[Value]]:
    """Return the first indexed axis, and the indices of it and of the following axes."""
    items = call.get(1, "indices")
    if not isinstance(items, list):
        raise MixedRowsError("lacks indices")
    indices = [i for i, item in enumerate(items) if item is not None]
    values = [item for item in items if isinstance(item, Value)]
    if not indices or len(values) != len(indices):
        raise MixedRowsError("lacks indices")
    if indices != list(range(indices[0], indices[0] + len(indices))):
        raise MixedRowsError("has indices of axes that are apart")
    return indices[0], values


def _is_position(call: AtenCall, value: Value) -> bool:
    """Whether an index is certainly not a mask."""
    dtype = call.dtypes.get(id(value), "")
    return value.row_numbers is not None or (is_whole(dtype) and dtype not in {"bool", "uint8"})


def _index(call: AtenCall) -> Results:  # noqa: C901  # cases
    data = call.value()
    first, indices = _indices(call)
    if not all(_is_position(call, value) for value in indices):
        raise MixedRowsError("has an index that may be a mask")
    if len(indices) == 1:
        return call.transfer.gather(data, indices[0], first)
    if data.shape is None:
        raise MixedRowsError("takes a tensor of unknown shape")
    last = first + len(indices)
    inner = (*data.shape[:first], *data.shape[last:])
    numbers = indices[0].row_numbers
    shape, rows = call.transfer.broadcast([replace(v, row_numbers=None) for v in indices])
    if shape is None:
        raise MixedRowsError("takes a tensor of unknown shape")
    if numbers is not None:
        is_own = numbers == RowNumbers() and data.rows == BatchRows(axis=0) and first == 0
        if not is_own or any(value.row_numbers is not None for value in indices[1:]):
            raise MixedRowsError("looks rows up by their position")
        return with_rows((*shape, *inner), rows, is_integer=data.is_integer)
    if any(value.row_numbers is not None for value in indices):
        raise MixedRowsError("looks rows up by their position")
    if data.rows is not None:
        if rows is not None or first <= data.rows.axis < last:
            raise MixedRowsError("takes some rows of the batch")
        moved = data.rows.axis + (len(shape) - len(indices) if data.rows.axis >= last else 0)
        rows = replace(data.rows, axis=moved)
    elif rows is not None:
        rows = replace(rows, axis=rows.axis + first)
    sizes = (*data.shape[:first], *shape, *data.shape[last:])
    return with_rows(sizes, rows, is_integer=data.is_integer)


def _index_put(call: AtenCall) -> Results:
    """Write one number at positions of axes other than the rows', or under a mask."""
    data, written = call.value(), call.value(2, "values")
    call.flag(3, "accumulate")
    first, indices = _indices(call)
    if product(written.shape or (ZERO,)) != ONE or not written.is_uniform:
        raise MixedRowsError("writes a tensor at positions")
    (mask, *others) = indices
    if not others and call.dtypes.get(id(mask)) == "bool":
        if first or mask.rows is None or mask.rows != data.rows:
            raise MixedRowsError("has a mask that is not of the rows")
    elif not all(_is_position(call, value) and value.is_uniform for value in indices) or (
        data.rows is None or first <= data.rows.axis < first + len(indices)
    ):
        raise MixedRowsError("writes to rows by their position")
    return Value(shape=data.shape, rows=data.rows, is_integer=data.is_integer)


def _scatter(call: AtenCall) -> Results:
    """Write to each row's own entries."""
    data, index = call.value(), call.value(2, "index")
    axis = normal_axis(call.integer(1, "dim"), data.rank)
    written = call.value(3, "value" if "value" in call.named else "src")
    call.used |= {4, 5, "reduce", "include_self"}
    is_number = written.shape == () and written.is_uniform
    parts = [data, index] if is_number else [data, index, written]
    if data.rows is None or any(part.rows != data.rows for part in parts):
        raise MixedRowsError("writes to rows by their position")
    if data.rows.axis == axis:
        raise MixedRowsError("writes to other rows")
    return Value(shape=data.shape, rows=data.rows, is_integer=data.is_integer)


def _slice_scatter(call: AtenCall) -> Results:
    """Return the value with another one written to a slice, as in functional programs."""
    data, written = call.value(), call.value(1, "src")
    axis = call.integer(2, "dim", 0)
    if call.name == "select_scatter":
        call.get(3, "index")
        written = call.transfer.unsqueeze(replace(written, elements=None), [axis])
    else:
        call.used |= {3, 4, 5, "start", "end", "step"}
    is_whole_axis = call.name == "slice_scatter" and written.shape == data.shape
    if data.rows is not None and data.rows.axis == normal_axis(axis, data.rank):
        start, end = call.get(3, "start"), call.get(4, "end")
        is_all = start in {None, ZERO} and (
            end is None or (isinstance(end, Size) and end.number >= 1 << 61)
        )
        if not is_whole_axis or not is_all:
            raise MixedRowsError("writes to some rows of the batch")
    if written.rows != data.rows and not (written.rows is None and written.is_uniform):
        raise MixedRowsError("writes to rows by their position")
    if written.rows is None and data.rows is not None:
        size = (written.shape or ())[data.rows.axis - (data.rank - written.rank)]
        if size != ONE:
            raise MixedRowsError("writes to rows by their position")
    return Value(shape=data.shape, rows=data.rows, is_integer=data.is_integer)


def _one_hot(call: AtenCall) -> Results:
    value, count = call.value(), call.size(1, "num_classes")
    if count is None or not count.is_constant or count.number <= 0:
        raise MixedRowsError("counts the classes in all rows")
    return replace(call.transfer.one_hot(value, -1, count), is_integer=True)


def _bucketize(call: AtenCall) -> Results:
    is_search = call.name == "searchsorted"
    call.uniform((0 if is_search else 1, "sorted_sequence" if is_search else "boundaries"))
    value = call.value(1 if is_search else 0, "self")
    sequence = call.value(0 if is_search else 1, "sorted_sequence" if is_search else "boundaries")
    if sequence.shape is None or len(sequence.shape) != 1:
        raise MixedRowsError("searches in a table by position")
    call.ignore_rest()
    return Value(shape=value.shape, rows=value.rows, is_integer=True)


_COMPARED: Final = {
    "eq": "Equal",
    "gt": "Greater",
    "lt": "Less",
    "ge": "GreaterOrEqual",
    "le": "LessOrEqual",
}
_COMPUTED: Final = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "neg": "Neg",
    "remainder": "Mod",
    "maximum": "Max",
    "minimum": "Min",
    "floor": "Floor",
    "ceil": "Ceil",
    "round": "Round",
    "trunc": "Floor",
}
_FOLDED: Final[Mapping[str, Operator]] = {
    **{name: _folding(FOLDS[onnx]) for name, onnx in _COMPUTED.items()},
    **{name: _folding(FOLDS[onnx], is_integer=True) for name, onnx in _COMPARED.items()},
    "ne": _test,
    **for_names("div floor_divide true_divide", _divide),
}
_VIEWS: Final[Mapping[str, Operator]] = {
    **for_names("contiguous detach alias lift_fresh positive requires_grad resolve_conj", _same),
    **for_names("resolve_neg lift_fresh_copy", _same),
    **for_names("dropout feature_dropout alpha_dropout feature_alpha_dropout", _dropout),
    **for_names("to type_as float double half long int bool bfloat16 short char byte", _converted),
    **for_names("view reshape _unsafe_view _reshape_alias view_copy", _reshape),
    **for_names("view_as reshape_as expand_as", _reshape_as),
    "flatten": _flatten,
    "unflatten": _unflatten,
    "squeeze": _squeeze,
    "unsqueeze": lambda call: call.transfer.unsqueeze(call.value(), [call.integer(1, "dim")]),
    **for_names("transpose swapaxes swapdims t mT adjoint", _transpose),
    **for_names("permute numpy_T", _permute),
    "movedim": _movedim,
    "expand": _expand,
    **for_names("split split_with_sizes unsafe_split", _split),
    "chunk": _chunk,
    "unbind": _unbind,
    "select": _select,
    "slice": _slice,
    "narrow": _narrow,
    "unfold": _unfold,
}
_SHAPED: Final[Mapping[str, Operator]] = {
    "clone": _same,
    "_to_copy": _converted,
    "repeat": _repeat,
    **for_names("cat concat stack", _concat),
    **for_names("zeros ones full", _full),
    **for_names("new_zeros new_ones new_full", _new_full),
    "arange": _arange,
    **for_names("scalar_tensor tensor", _scalar_tensor),
    **for_names("zeros_like ones_like full_like", _like),
    "slice_scatter": _slice_scatter,
    "select_scatter": _slice_scatter,
}
_FRACTIONS: Final = """
acos acosh asin asinh atan atan2 atanh celu cos cosh deg2rad digamma elu erf erfc erfinv exp exp2
expm1 gelu hardsigmoid hardswish lgamma log log10 log1p log2 log_sigmoid logaddexp logaddexp2 logit
mish rad2deg reciprocal rsqrt selu sigmoid silu sin sinc sinh softplus sqrt tan tanh xlogy
"""
_KEEPING: Final = """
abs absolute addcdiv addcmul bitwise_and bitwise_left_shift bitwise_not bitwise_or
bitwise_right_shift bitwise_xor clamp clamp_max clamp_min clip copysign fix fmax fmin fmod frac
hardshrink hardtanh heaviside hypot leaky_relu lerp masked_fill nan_to_num pow relu relu6 rsub
sgn sign softshrink square threshold __and__ __or__ __xor__
"""
_TESTS: Final = (
    "isfinite isinf isnan isneginf isposinf logical_and logical_not logical_or logical_xor"
)
_OTHERS: Final[Mapping[str, Operator]] = {
    **for_names(
        _FRACTIONS, lambda call: call.transfer.elementwise(_all_operands(call), is_integer=False)
    ),
    **for_names(_KEEPING, lambda call: call.transfer.elementwise(_all_operands(call))),
    **for_names(_TESTS, _test),
    "where": _where,
    **for_names("prelu _prelu_kernel", _prelu),
    **for_names("fill copy zero", _fill),
    "native_dropout": _dropout,
    "repeat_interleave": _repeat_interleave,
    **for_names("pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d", _pad),
    **for_names("replication_pad1d replication_pad2d replication_pad3d", _pad),
    **for_names("eye linspace hann_window hamming_window", _uniform_only),
    **for_names("softmax log_softmax _softmax _log_softmax softmin", _along()),
    **for_names("cumsum cumprod logcumsumexp cummax cummin", _along("runs")),
    "flip": _along("reverses"),
    "roll": _roll,
    **for_names("sort argsort", _sort),
    "topk": _top,
    **for_names("sum mean prod amax amin nansum nanmean logsumexp", _reduce()),
    **for_names("std var", _reduce()),
    **for_names("std_mean var_mean", _reduce(outputs=2)),
    **for_names("norm linalg_vector_norm", _reduce(2)),
    **for_names("all any argmax argmin count_nonzero", _reduce(is_test=True)),
    **for_names("max min median", _chosen),
    "kthvalue": _kth,
    **for_names("cosine_similarity pairwise_distance", _similarity),
    "embedding": _embedding,
    **for_names("embedding_bag _embedding_bag", _embedding_bag),
    "gather": _gather,
    "index_select": lambda call: call.transfer.gather(
        call.value(), call.value(2, "index"), call.integer(1, "dim")
    ),
    "index": _index,
    "index_put": _index_put,
    **for_names("scatter scatter_add scatter_reduce", _scatter),
    "one_hot": _one_hot,
    **for_names("bucketize searchsorted", _bucketize),
}
ATEN: Final = OperatorTable(
    operators={**_FOLDED, **_VIEWS, **_SHAPED, **_OTHERS, **PRODUCTS},
    views=frozenset(_VIEWS) | {"pixel_shuffle", "pixel_unshuffle", "einsum"},
    sized=frozenset(_FOLDED) | frozenset(_VIEWS) | frozenset(_SHAPED) | {"native_group_norm"},
    random=frozenset({"dropout", "feature_dropout", "alpha_dropout", "native_dropout"})
    | frozenset({"feature_alpha_dropout"})
    | RANDOM_PRODUCTS,
    onnx={
        **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten"), "Reshape"),
        **dict.fromkeys(("to", "_to_copy", "long", "int"), "Cast"),
        **dict.fromkeys(("clone", "contiguous", "detach", "alias"), "Identity"),
        "unsqueeze": "Unsqueeze",
        "squeeze": "Squeeze",
        "expand": "Expand",
        "mul": "Mul",
        "add": "Add",
        "cat": "Concat",
        "index": "GatherND",
        "index_select": "Gather",
        **dict.fromkeys(("embedding_bag", "_embedding_bag"), "EmbeddingBag"),
    },
)
"""Operators with a known effect on rows."""
