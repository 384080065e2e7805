"""Effect of operators on abstract tensors and on the axis that holds rows.

A function returns an operator's output for its inputs, or raises `MixedRowsError` where an output
row may depend on another row, on the number of rows, or on a row's position in the batch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np

from headrace.runtimes.rows.symbols import (
    BATCH,
    ONE,
    ZERO,
    Size,
    Symbols,
    divide,
    multiply,
    product,
)
from headrace.runtimes.rows.values import (
    MAX_ELEMENTS,
    BatchRows,
    Fold,
    MixedRowsError,
    RowNumbers,
    Shape,
    Value,
    constants,
    exact_quotient,
    known_elements,
    normal_axis,
    quotient,
    sizes_value,
    with_rows,
)

_MAX_RANK: Final = 64
_OPEN_END: Final = 1_000_000_000
"""Slice bounds from this on mean the end of the axis: no batch has so many rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceMasks:
    """Omissions of a strided slice: a bit for each of its bounds."""

    begin: int
    end: int
    ellipsis: int
    new_axis: int
    shrink: int

    @staticmethod
    def has(mask: int, number: int) -> bool:
        """Whether the mask has this bit."""
        return bool(mask >> number & 1)


class Transfer:
    """The effect of operators on abstract tensors of one model."""

    def __init__(self) -> None:
        self.symbols = Symbols()

    # Element-wise operators

    def elementwise(
        self,
        values: Sequence[Value],
        fold: Fold | None = None,
        *,
        is_integer: bool | None = None,
    ) -> Value:
        """Return the result of an operator that broadcasts and combines elements by position."""
        takes_integers = all(value.is_integer for value in values)
        whole = takes_integers if is_integer is None else is_integer
        if fold is quotient and not takes_integers:
            fold = exact_quotient
        counts = any(value.counts_rows for value in values)
        if counts or (fold is not None and all(value.elements is not None for value in values)):
            folded = self._folded(values, fold, is_integer=whole)
            if folded is not None:
                return folded
            if counts:
                raise MixedRowsError("computes with the number of rows")
        shape, rows = self.broadcast(values)
        return with_rows(shape, rows, is_integer=whole)

    def _folded(
        self, values: Sequence[Value], fold: Fold | None, *, is_integer: bool
    ) -> Value | None:
        """Return the elements combined one by one; None if they are not followed."""
        arrays = [value.elements for value in values]
        if fold is None or any(array is None for array in arrays):
            return None
        try:
            parts = np.broadcast_arrays(*[array for array in arrays if array is not None])
        except ValueError:
            raise MixedRowsError("takes shapes that do not fit") from None
        elements = np.empty(parts[0].shape, np.object_)
        if elements.size > MAX_ELEMENTS:
            return None
        counts = any(value.counts_rows for value in values)
        for index in np.ndindex(elements.shape):
            elements[index] = fold(self.symbols, *(part[index] for part in parts))
            if elements[index] is None and counts:
                raise MixedRowsError("computes with the number of rows")
        return Value(
            shape=tuple(map(Size, elements.shape)), elements=elements, is_integer=is_integer
        )

    def broadcast(self, values: Sequence[Value]) -> tuple[Shape | None, BatchRows | None]:
        """Return the common shape of values and the location of its rows.

        Raises:
            MixedRowsError: Rows meet other rows, or values that differ by row position.
        """
        with_batch = [value for value in values if value.rows is not None]
        if any(value.shape is None for value in values):
            if with_batch:
                raise MixedRowsError("combines rows with a tensor of unknown shape")
            return None, None
        shapes = [value.shape or () for value in values]
        rank = max(map(len, shapes), default=0)
        rows = None
        for value in with_batch:
            own = value.rows
            assert own is not None
            moved = replace(own, axis=own.axis + rank - value.rank)
            if rows not in (None, moved):
                raise MixedRowsError("combines each row with other rows")
            rows = moved
        for value, shape in zip(values, shapes, strict=True):
            if rows is None or value.rows is not None:
                continue
            axis = rows.axis - (rank - len(shape))
            if axis >= 0 and shape[axis] != ONE:
                raise MixedRowsError(
                    f"combines the batch axis with an axis of size {shape[axis]}, row by position"
                )
        sizes = []
        for axis in range(rank):
            column = [
                shape[axis - (rank - len(shape))] for shape in shapes if axis >= rank - len(shape)
            ]
            sizes.append(self.common(column))
        return tuple(sizes), rows

    def common(self, sizes: Sequence[Size]) -> Size:
        """Return the size to which axes of these sizes broadcast."""
        others = list(dict.fromkeys(size for size in sizes if size != ONE))
        if len(others) > 1:
            # A slice `[0:size]` is as long as `size`, or does not fit.
            tails = tuple(f",0,{size},1)" for size in others)
            others = [
                size for size in others if not (_is_slice(size) and str(size).endswith(tails))
            ]
        if not others:
            return ONE
        if len(others) == 1:
            return others[0]
        numbers = [size for size in others if size.is_constant]
        if numbers:
            return numbers[0]
        return self.symbols.of("broadcast", *sorted(others, key=str), minimum=1)

    # Operators along axes

    def along(self, value: Value, axes: Iterable[int], description: str = "runs") -> Value:
        """Return a value of the same shape, from an operator that combines entries along `axes`."""
        if value.shape is None and value.rows is None:
            return Value()
        rank = value.rank
        run_axes = {normal_axis(axis, rank) for axis in axes}
        if value.rows is not None and value.rows.axis in run_axes:
            raise MixedRowsError(f"{description} along the batch axis")
        return Value(shape=value.shape, rows=value.rows, is_integer=value.is_integer)

    def reduce(
        self,
        value: Value,
        axes: Sequence[int] | None,
        *,
        keep: bool,
        is_integer: bool | None = None,
        fold: Fold | None = None,
    ) -> Value:
        """Return the value without `axes`, or with these of size 1; None for all axes.

        Args:
            fold: Reduction of a vector of sizes.
        """
        whole = value.is_integer if is_integer is None else is_integer
        is_vector = value.elements is not None and value.elements.ndim == 1
        if fold is not None and is_vector and axes in (None, [0], [-1]):
            size = fold(self.symbols, *known_elements(value))
            if size is not None:
                elements = np.empty((1,) if keep else (), np.object_)
                elements[...] = size
                shape = tuple(map(Size, elements.shape))
                return Value(shape=shape, elements=elements, is_integer=whole)
        if value.counts_rows:
            raise MixedRowsError("computes with the number of rows")
        if value.shape is None and value.rows is None:
            return Value(is_integer=whole)
        rank = value.rank
        reduced_axes = (
            set(range(rank)) if axes is None else {normal_axis(axis, rank) for axis in axes}
        )
        checked = self.along(value, reduced_axes, "reduces")
        shape = checked.shape or ()
        if keep:
            sizes = [ONE if axis in reduced_axes else size for axis, size in enumerate(shape)]
            return with_rows(tuple(sizes), value.rows, is_integer=whole)
        rows = value.rows
        if rows is not None:
            rows = replace(rows, axis=rows.axis - sum(axis < rows.axis for axis in reduced_axes))
        sizes = [size for axis, size in enumerate(shape) if axis not in reduced_axes]
        return with_rows(tuple(sizes), rows, is_integer=whole)

    def resized(self, value: Value, sizes: dict[int, Size], description: str = "runs") -> Value:
        """Return the value with other sizes of some axes, none of them the batch axis."""
        checked = self.along(value, sizes, description)
        if checked.shape is None:
            return checked
        rank = len(checked.shape)
        new_sizes = {normal_axis(axis, rank): size for axis, size in sizes.items()}
        shape = tuple(new_sizes.get(axis, size) for axis, size in enumerate(checked.shape))
        return with_rows(shape, value.rows, is_integer=value.is_integer)

    def ranked(self, value: Value, axis: int, count: Size | None) -> list[Value]:
        """Return the `count` largest entries along an axis, and their positions."""
        (size,) = self.sized([count])
        result = self.resized(value, {axis: size}, "ranks")
        below = value.shape[axis] if value.shape else None
        return [result, replace(result, is_integer=True, below=below)]

    def padded(self, value: Value, pads: Mapping[int, Sequence[Size | None]]) -> Value:
        """Return the value with entries added before and after its own, by axis."""
        if value.counts_rows:
            raise MixedRowsError("computes with the number of rows")
        sizes: dict[int, Size] = {}
        for axis, both in pads.items():
            if all(pad == ZERO for pad in both):
                continue
            size = (value.shape or ())[axis]
            for pad in both:
                size = self.symbols.unknown() if pad is None else self.symbols.add(size, pad)
            sizes[axis] = size
        return self.resized(replace(value, elements=None), sizes, "pads")

    def one_hot(self, value: Value, axis: int, depth: Size | None) -> Value:
        """Return a value with a one-hot vector along a new axis for each class number."""
        wide = self.unsqueeze(replace(value, elements=None, below=None), [axis])
        (size,) = self.sized([depth])
        return self.resized(wide, {axis: size})

    # Shapes

    def sized(self, sizes: Sequence[Size | None]) -> list[Size]:
        """Return the sizes, with a new symbol for each unknown one."""
        return [self.symbols.unknown() if size is None else size for size in sizes]

    def swapped(self, value: Value) -> Value:
        """Return the value with its last two axes swapped; a vector unchanged."""
        if (value.shape is None and value.rows is None) or value.rank < 2:  # noqa: PLR2004
            return value
        return self.transpose(value, [*range(value.rank - 2), value.rank - 1, value.rank - 2])

    def split(self, value: Value, axis: int, count: int) -> list[Value]:
        """Return the value in parts of equal size."""
        axis = normal_axis(axis, value.rank)
        even = divide((value.shape or ())[axis], Size(count))
        if even is None or not even.is_constant:
            return self.parts(value, axis, [even] * count)
        bounds = [Size(i * even.number) for i in range(count + 1)]
        return [self.cut(value, axis, *pair, 1) for pair in pairwise(bounds)]

    def parts(self, value: Value, axis: int, sizes: Sequence[Size | None]) -> list[Value]:
        """Return the value in parts of these sizes."""
        return [self.resized(value, {axis: size}, "splits") for size in self.sized(sizes)]

    def transpose(self, value: Value, order: Sequence[int] | None) -> Value:
        """Return the value with its axes in another order; None reverses them."""
        if value.shape is None and value.rows is None:
            return Value(is_integer=value.is_integer)
        rank = value.rank
        order = (
            list(reversed(range(rank))) if order is None else [normal_axis(a, rank) for a in order]
        )
        if sorted(order) != list(range(rank)):
            raise MixedRowsError("has no order of all axes")
        shape = value.shape or ()
        rows = value.rows
        if rows is not None:
            rows = replace(rows, axis=order.index(rows.axis))
        elements = None if value.elements is None else value.elements.transpose(order)
        return replace(
            value, shape=tuple(shape[axis] for axis in order), rows=rows, elements=elements
        )

    def reshape(self, value: Value, target: Sequence[Size | None]) -> Value:
        """Return the value in another shape, row-major; None is an unknown size.

        One size of -1 is computed from the others. Equal element counts are checked during the run.
        """
        if len(target) > _MAX_RANK:
            raise MixedRowsError(f"makes more than {_MAX_RANK} dimensions")
        sizes = self.sized(target)
        rest = [axis for axis, size in enumerate(sizes) if size == Size(-1)]
        if len(rest) > 1:
            raise MixedRowsError("leaves several sizes open")
        total = None if value.shape is None else product(value.shape)
        for axis in rest:
            others = product([size for i, size in enumerate(sizes) if i != axis])
            quotient = None if total is None else divide(total, others)
            if quotient is None:
                if value.rows is not None and not others.has_batch:
                    raise MixedRowsError("folds the batch axis into another one")
                # The batch is in `others`, once, so that it is not in the computed size.
                quotient = self.symbols.unknown()
            sizes[axis] = quotient
        if value.rows is None:
            elements = value.elements
            numbers = [size.number if size.is_constant else -1 for size in sizes]
            if elements is not None and numbers.count(-1) <= 1:
                try:
                    elements = elements.reshape(numbers)
                except ValueError:
                    raise MixedRowsError("takes shapes that do not fit") from None
                shape = tuple(Size(size) for size in elements.shape)
                return replace(value, shape=shape, elements=elements)
            if value.counts_rows:
                raise MixedRowsError("computes with the number of rows")
            return with_rows(tuple(sizes), None, is_integer=value.is_integer)
        rows = self._reshaped_rows(value, sizes)
        return with_rows(tuple(sizes), rows, is_integer=value.is_integer)

    def _reshaped_rows(self, value: Value, sizes: Sequence[Size]) -> BatchRows:
        """Return the location of rows after a reshape; entries before and after each row stay."""
        assert value.rows is not None
        shape = value.shape or ()
        axes = [axis for axis, size in enumerate(sizes) if size.has_batch]
        if len(axes) != 1:
            raise MixedRowsError("folds the batch axis into another one")
        (axis,) = axes
        inner = divide(sizes[axis], BATCH)
        if inner is None or inner.has_batch:
            raise MixedRowsError("folds the batch axis into another one")
        before = multiply(product(shape[: value.rows.axis]), value.rows.before)
        after = multiply(value.rows.after, product(shape[value.rows.axis + 1 :]))
        # Only one of the two needs to be known: the number of elements is the same.
        own_before = divide(before, product(list(sizes[:axis])))
        own_after = None if own_before is None else divide(inner, own_before)
        if own_before is None or own_after is None:
            own_after = divide(after, product(list(sizes[axis + 1 :])))
            own_before = None if own_after is None else divide(inner, own_after)
        if own_before is None or own_after is None or ZERO in (own_before, own_after):
            raise MixedRowsError("folds the batch axis into another one")
        return BatchRows(axis=axis, before=own_before, after=own_after)

    def unsqueeze(self, value: Value, axes: Sequence[int]) -> Value:
        """Return the value with new axes of size 1; positions count in the result."""
        if value.shape is None and value.rows is None:
            return Value(is_integer=value.is_integer)
        rank = value.rank + len(axes)
        added = {normal_axis(axis, rank) for axis in axes}
        left = iter(enumerate(value.shape or ()))
        sizes: list[Size] = []
        rows = value.rows
        for axis in range(rank):
            if axis in added:
                sizes.append(ONE)
                continue
            old, size = next(left)
            sizes.append(size)
            if value.rows is not None and value.rows.axis == old:
                rows = replace(value.rows, axis=axis)
        elements = value.elements
        if elements is not None:
            elements = elements.reshape([size.number for size in sizes])
        return replace(value, shape=tuple(sizes), rows=rows, elements=elements)

    def squeeze(self, value: Value, axes: Sequence[int] | None) -> Value:
        """Return the value without axes of size 1; None for all of them."""
        if value.shape is None and value.rows is None:
            return Value(is_integer=value.is_integer)
        shape = value.shape or ()
        if axes is None:
            if value.rows is not None or not all(size.is_constant for size in shape):
                if value.rows is None:
                    return Value(is_integer=value.is_integer)
                raise MixedRowsError("removes the batch axis where there is one row")
            axes = [axis for axis, size in enumerate(shape) if size == ONE]
        removed = {normal_axis(axis, value.rank) for axis in axes}
        rows = value.rows
        if rows is not None:
            if rows.axis in removed:
                raise MixedRowsError("removes the batch axis")
            rows = replace(rows, axis=rows.axis - sum(axis < rows.axis for axis in removed))
        sizes = tuple(size for axis, size in enumerate(shape) if axis not in removed)
        elements = value.elements
        if elements is not None:
            elements = elements.reshape([size.number for size in sizes])
        return replace(value, shape=sizes, rows=rows, elements=elements)

    def expand(self, value: Value, target: Sequence[Size | None]) -> Value:
        """Return the value broadcast to a shape; sizes as in `reshape`."""
        sizes = tuple(self.sized(target))
        filled = self.filled(sizes)
        if value.rows is None and filled.rows is not None:
            if value.shape is None:
                raise MixedRowsError("repeats a tensor of unknown shape for each row")
            if value.counts_rows:
                raise MixedRowsError("computes with the number of rows")
        if value.rows is not None and filled.rows is not None:
            # A filled tensor is equal everywhere, so its rows may lie along any axis.
            axis = filled.rows.axis + value.rank - len(sizes)
            if axis == value.rows.axis and sizes[filled.rows.axis] == value.rows.size:
                filled = replace(filled, rows=replace(value.rows, axis=filled.rows.axis))
        shape, rows = self.broadcast([value, filled])
        if value.elements is not None and shape is not None and rows is None:
            numbers = [size.number for size in shape if size.is_constant]
            if len(numbers) == len(shape) and 0 <= np.prod(numbers) <= MAX_ELEMENTS:
                try:
                    elements = np.broadcast_to(value.elements, numbers)
                except ValueError:
                    raise MixedRowsError("takes shapes that do not fit") from None
                return replace(value, shape=shape, elements=elements)
        if value.counts_rows:
            raise MixedRowsError("computes with the number of rows")
        return with_rows(shape, rows, is_integer=value.is_integer)

    def filled(self, sizes: Shape, *, is_integer: bool = False) -> Value:
        """Return a tensor of one value; its rows are equal where its shape has the batch."""
        axes = [axis for axis, size in enumerate(sizes) if size.has_batch]
        if not axes:
            return Value(shape=sizes, is_integer=is_integer)
        after = divide(sizes[axes[0]], BATCH)
        if len(axes) > 1 or after is None or after.has_batch or not after.is_positive:
            raise MixedRowsError("makes a tensor whose size depends on the number of rows")
        return Value(shape=sizes, rows=BatchRows(axis=axes[0], after=after), is_integer=is_integer)

    def tile(self, value: Value, repeats: Sequence[Size | None]) -> Value:
        """Return the value repeated along each axis."""
        if value.shape is None and value.rows is None:
            if any(size is not None and size.has_batch for size in repeats):
                raise MixedRowsError("repeats a tensor of unknown shape for each row")
            return Value(is_integer=value.is_integer)
        if value.counts_rows:
            raise MixedRowsError("computes with the number of rows")
        if len(repeats) != value.rank:
            raise MixedRowsError("takes shapes that do not fit")
        sizes, rows = [], value.rows
        for axis, (size, times) in enumerate(zip(value.shape or (), repeats, strict=True)):
            if rows is not None and rows.axis == axis and times != ONE:
                raise MixedRowsError("repeats the batch axis")
            if times is not None and times.has_batch:
                after = divide(multiply(size, times), BATCH)
                if rows is not None or after is None or after.has_batch:
                    raise MixedRowsError("makes a tensor whose size depends on the number of rows")
                rows = BatchRows(axis=axis, after=after)
            sizes.append(self.symbols.unknown() if times is None else multiply(size, times))
        return with_rows(tuple(sizes), rows, is_integer=value.is_integer)

    def concat(self, values: Sequence[Value], axis: int) -> Value:  # noqa: C901, PLR0912  # sequential checks
        """Return the values concatenated along an axis."""
        if all(value.shape is None and value.rows is None for value in values):
            return Value(is_integer=values[0].is_integer)
        with_batch = [value for value in values if value.rows is not None]
        if any(value.shape is None for value in values):
            if with_batch:
                raise MixedRowsError("joins rows to a tensor of unknown shape")
            return Value(is_integer=values[0].is_integer)
        rank = values[0].rank
        axis = normal_axis(axis, rank)
        if any(value.rank != rank for value in values):
            raise MixedRowsError("takes shapes that do not fit")
        if with_batch:
            rows = with_batch[0].rows
            if len(with_batch) < len(values) or any(value.rows != rows for value in values):
                raise MixedRowsError("joins rows to what has no batch axis")
            if rows is not None and rows.axis == axis:
                raise MixedRowsError("joins along the batch axis")
        elements = None
        if all(value.elements is not None for value in values):
            try:
                elements = np.concatenate([known_elements(value) for value in values], axis=axis)
            except ValueError:
                raise MixedRowsError("takes shapes that do not fit") from None
            if elements.size > MAX_ELEMENTS:
                elements = None
        if elements is None and any(value.counts_rows for value in values):
            raise MixedRowsError("computes with the number of rows")
        total = ZERO
        for value in values:
            total = self.symbols.add(total, (value.shape or ())[axis])
        sizes = []
        for i in range(rank):
            column = [(value.shape or ())[i] for value in values]
            # All have to be equal during the run; a number gives the most information.
            sizes.append(total if i == axis else min(column, key=lambda size: len(size.symbols)))
        rows = values[0].rows
        shaped = with_rows(tuple(sizes), rows, is_integer=all(v.is_integer for v in values))
        numbers = values[0].row_numbers
        if numbers is not None:
            if rank == 1 or axis != rank - 1 or (values[0].shape or ())[-1] != ONE:
                raise MixedRowsError("joins positions of rows")
            numbers = replace(numbers, is_first=True)
        return replace(shaped, elements=elements, row_numbers=numbers)

    def cut(
        self, value: Value, axis: int, start: Size | None, end: Size | None, step: int | None
    ) -> Value:
        """Return a slice of one axis; None is an unknown bound."""
        if value.shape is None and value.rows is None:
            return Value(is_integer=value.is_integer)
        axis = normal_axis(axis, value.rank)
        shape = value.shape or ()
        size = shape[axis]
        is_whole = start == ZERO and step == 1 and (end == size or _is_open(end))
        if is_whole:
            return value
        if value.rows is not None and value.rows.axis == axis:
            raise MixedRowsError("takes some rows of the batch")
        if any(bound is not None and bound.has_batch for bound in (start, end)):
            raise MixedRowsError("takes as much as there are rows")
        elements = value.elements
        if elements is not None:
            numbers = [
                bound.number if bound is not None and bound.is_constant else None
                for bound in (start, end)
            ]
            if None in numbers or step is None:
                if value.counts_rows:
                    raise MixedRowsError("computes with the number of rows")
                elements = None
            else:
                last = (
                    None
                    if step < 0 and numbers[1] is not None and numbers[1] <= -_OPEN_END
                    else numbers[1]
                )
                index = [slice(None)] * axis + [slice(numbers[0], last, step)]
                elements = elements[tuple(index)]
                cut_shape = tuple(Size(length) for length in elements.shape)
                return replace(value, shape=cut_shape, elements=elements)
        length = self._length(size, start, end, step)
        sizes = (*shape[:axis], length, *shape[axis + 1 :])
        return replace(value, shape=sizes, elements=None)

    def strided_slice(
        self,
        value: Value,
        starts: Sequence[Size | None],
        ends: Sequence[Size | None],
        steps: Sequence[int] | None,
        masks: SliceMasks,
    ) -> Value:
        """Return slices of all axes, as in TensorFlow; None for unknown steps."""
        if value.shape is None and value.rows is None:
            return Value(is_integer=value.is_integer)
        axis = 0
        for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
            step = None if steps is None else steps[i]
            if masks.has(masks.ellipsis, i):
                later = [j for j in range(i + 1, len(starts)) if not masks.has(masks.new_axis, j)]
                axis = value.rank - len(later)
            elif masks.has(masks.new_axis, i):
                value = self.unsqueeze(value, [axis])
                axis += 1
            elif masks.has(masks.shrink, i):
                if start is None or not start.is_constant:
                    raise MixedRowsError("takes a place that is computed while it runs")
                last = Size(_OPEN_END) if start == Size(-1) else Size(start.number + 1)
                value = self.squeeze(self.cut(value, axis, start, last, 1), [axis])
            else:
                is_masked = masks.has(masks.begin, i), masks.has(masks.end, i)
                first = ZERO if is_masked[0] and step == 1 else start
                final = Size(_OPEN_END) if is_masked[1] and step == 1 else end
                if step is None or (step != 1 and any(is_masked)):
                    first = final = None
                value = self.cut(value, axis, first, final, step)
                axis += 1
        return value

    def _length(self, size: Size, start: Size | None, end: Size | None, step: int | None) -> Size:
        if start is None or end is None or not step:
            return self.symbols.unknown()
        if size.is_constant and start.is_constant and end.is_constant:
            first, last = start.number, end.number
            if step < 0 and last <= -_OPEN_END:
                return Size(len(range(size.number)[first::step]))
            return Size(len(range(size.number)[first:last:step]))
        is_tail = step == 1 and start.is_constant and 0 <= start.number < _OPEN_END
        if is_tail and _is_open(end) and start.number <= (size.minimum or 0):
            return self.symbols.add(size, start, sign=-1)
        return self.symbols.of("slice", size, start, end, step)

    # Products

    def einsum(self, equation: str, values: Sequence[Value]) -> Value:  # noqa: C901  # by letter
        """Return a sum of products by Einstein's convention; rows must have a separate letter.

        Args:
            equation: With an arrow, and without an ellipsis.
        """
        if all(value.rows is None and value.shape is None for value in values):
            return Value()
        equation = equation.replace(" ", "")
        left, arrow, result = equation.partition("->")
        terms = left.split(",")
        if not arrow or len(terms) != len(values) or "." in equation:
            raise MixedRowsError(f"has the equation '{equation[:80]}', which is not followed")
        sizes: dict[str, Size] = {}
        row_letter, rows = "", None
        for term, value in zip(terms, values, strict=True):
            if len(term) != value.rank:
                raise MixedRowsError("takes shapes that do not fit")
            for name, size in zip(term, value.shape or (), strict=True):
                sizes[name] = size if sizes.get(name, ONE) == ONE else sizes[name]
            if value.rows is not None:
                own, layout = term[value.rows.axis], replace(value.rows, axis=0)
                if (row_letter, rows) not in (("", None), (own, layout)) or term.count(own) > 1:
                    raise MixedRowsError("combines each row with other rows")
                row_letter, rows = own, layout
        if not set(result) <= sizes.keys():
            raise MixedRowsError("takes shapes that do not fit")
        shape = tuple(sizes[name] for name in result)
        if rows is None:
            return with_rows(shape, None)
        if any(
            value.rows is None and row_letter in term
            for term, value in zip(terms, values, strict=True)
        ):
            raise MixedRowsError("combines rows by their position")
        if result.count(row_letter) != 1:
            raise MixedRowsError("sums over the batch axis")
        return with_rows(shape, replace(rows, axis=result.index(row_letter)))

    def matmul(self, left: Value, right: Value) -> Value:
        """Return NumPy's `matmul`."""
        if left.rows is None and right.rows is None and (left.shape is None or right.shape is None):
            return Value(is_integer=left.is_integer and right.is_integer)
        if left.rank == 0 or right.rank == 0:
            raise MixedRowsError("takes shapes that do not fit")
        if left.rank == 1:
            return self.squeeze(self.matmul(self.unsqueeze(_plain(left), [0]), right), [-2])
        if right.rank == 1:
            return self.squeeze(self.matmul(left, self.unsqueeze(_plain(right), [1])), [-1])
        left_rows, right_rows = left.rows, right.rows
        if left_rows is not None and left_rows.axis == left.rank - 1:
            raise MixedRowsError("sums over the batch axis")
        if right_rows is not None and right_rows.axis == right.rank - 2:
            raise MixedRowsError("sums over the batch axis")
        left_shape, right_shape = left.shape or (), right.shape or ()
        # A vector broadcasts; the missing side of the matrix counts as 1.
        wide_left = Value(shape=(*left_shape[:-1], ONE), rows=left_rows)
        wide_right = Value(shape=(*right_shape[:-2], ONE, right_shape[-1]), rows=right_rows)
        shape, rows = self.broadcast([wide_left, wide_right])
        return with_rows(shape, rows, is_integer=left.is_integer and right.is_integer)

    # Lookups

    def gather(self, data: Value, indices: Value, axis: int) -> Value:  # noqa: C901, PLR0912  # cases
        """Return NumPy's `take`."""
        numbers = indices.row_numbers
        if numbers is not None:
            # Each row looks up entries of its own block of rows.
            block = BatchRows(axis=0, after=numbers.stride)
            is_inside = numbers.width in {ONE, numbers.stride} and not numbers.is_first
            if data.rows != block or axis or not is_inside or indices.rows is None:
                raise MixedRowsError("looks rows up by their position")
            sizes = (*(indices.shape or ()), *(data.shape or ())[1:])
            return with_rows(sizes, indices.rows, is_integer=data.is_integer)
        if data.shape is None and data.rows is None and indices.rows is None:
            return Value(is_integer=data.is_integer)
        axis = normal_axis(axis, data.rank)
        if data.elements is not None and indices.elements is not None:
            constant_indices = constants(indices)
            if constant_indices is not None:
                taken_indices = np.array(constant_indices, np.int64).reshape(indices.elements.shape)
                try:
                    elements = data.elements.take(taken_indices, axis)
                except IndexError:
                    raise MixedRowsError("takes what is not there") from None
                taken = np.empty(np.shape(elements), np.object_)
                taken[...] = elements
                return replace(data, shape=tuple(map(Size, taken.shape)), elements=taken)
        if data.counts_rows or indices.counts_rows:
            raise MixedRowsError("computes with the number of rows")
        if indices.shape is None:
            if data.rows is None and indices.rows is None:
                return Value(is_integer=data.is_integer)
            raise MixedRowsError("takes a tensor of unknown shape")
        data_shape, index_shape = data.shape or (), indices.shape
        rows = None
        if data.rows is not None:
            if indices.rows is not None:
                raise MixedRowsError("looks each row's indices up in all rows")
            if data.rows.axis == axis:
                raise MixedRowsError("takes some rows of the batch")
            moved = data.rows.axis + (len(index_shape) - 1 if data.rows.axis > axis else 0)
            rows = replace(data.rows, axis=moved)
        elif indices.rows is not None:
            rows = replace(indices.rows, axis=indices.rows.axis + axis)
        shape = (*data_shape[:axis], *index_shape, *data_shape[axis + 1 :])
        return with_rows(shape, rows, is_integer=data.is_integer)

    def take_along(self, data: Value, indices: Value, axis: int) -> Value:
        """Return NumPy's `take_along_axis`."""
        if data.rows is None and indices.rows is None:
            return Value(shape=indices.shape, is_integer=data.is_integer)
        axis = normal_axis(axis, data.rank)
        if indices.rows is None:
            raise MixedRowsError("takes elements of rows by their position")
        if data.rows is None:
            # The index's position selects along the table's other axes.
            sizes = data.shape or ()
            if indices.rows.axis != axis or len(sizes) != indices.rank:
                raise MixedRowsError("looks rows up by their position")
        elif data.rows != indices.rows or axis == data.rows.axis:
            raise MixedRowsError("takes elements of other rows")
        return with_rows(indices.shape, indices.rows, is_integer=data.is_integer)

    def look_up(self, data: Value, indices: Value, batch_dims: int) -> Value:  # noqa: C901  # four cases of two inputs
        """Return ONNX's `GatherND`: the last axis of the indices is a position."""
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
            # The first index of each row is the row's own number.
            is_own = replace(indices.row_numbers, is_first=False) == RowNumbers() and (
                indices.row_numbers.is_first or depth == 1
            )
            if (
                data.rows != BatchRows(axis=0)
                or batch_dims
                or indices.rows != BatchRows(axis=0)
                or not is_own
            ):
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

    def count(self, start: Value, end: Value, step_value: Value) -> Value:
        """Return numbers from one to another, in steps."""
        parts = (start, end, step_value)
        if any(part.rows is not None for part in parts):
            raise MixedRowsError("counts up to a value of some rows")
        first, last, step = (part.only for part in parts)
        if any(part.counts_rows for part in parts):
            if (first, step) == (ZERO, ONE) and last == BATCH:
                reason = "numbers the rows of the batch"
                return Value(
                    shape=(BATCH,),
                    rows=BatchRows(axis=0),
                    is_integer=True,
                    row_numbers=RowNumbers(),
                    mixed=reason,
                )
            raise MixedRowsError("counts the rows of the batch")
        whole = all(part.is_integer for part in parts)
        if first is None or last is None or step is None or not whole:
            return Value(shape=(self.symbols.unknown(),), is_integer=whole)
        if first.is_constant and last.is_constant and step.is_constant and step.number:
            numbers = range(first.number, last.number, step.number)
            if len(numbers) <= MAX_ELEMENTS:
                return sizes_value([Size(number) for number in numbers])
            return Value(shape=(Size(len(numbers)),), is_integer=True)
        if (first, step) == (ZERO, ONE):
            return Value(shape=(last,), is_integer=True, below=last)
        return Value(shape=(self.symbols.of("range", first, last, step),), is_integer=True)

    def scatter(self, data: Value, indices: Value, updates: Value) -> Value:
        """Return ONNX's `ScatterND`: the data, with updates written at positions."""
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

    def window(
        self,
        value: Value,
        others: Sequence[Value],
        channels: Size | None,
        spatial: Sequence[Size],
        *,
        channel_axis: int = 1,
    ) -> Value:
        """Return a convolution or pooling: axis 0 has independent entries, others are combined."""
        if not all(other.is_uniform for other in others):
            raise MixedRowsError("has weights that depend on the batch")
        if value.shape is None and value.rows is None:
            return Value(is_integer=value.is_integer)
        if value.rows is not None and value.rows.axis != 0:
            raise MixedRowsError("runs along the batch axis")
        shape = value.shape or ()
        channel_axis = normal_axis(channel_axis, value.rank)
        count = shape[channel_axis] if channels is None else channels
        sizes = iter(spatial)
        result = tuple(
            size if axis == 0 else count if axis == channel_axis else next(sizes)
            for axis, size in enumerate(shape)
        )
        return with_rows(result, value.rows)

    def slid(  # with one axis
        self,
        size: Size,
        width: int,
        stride: int = 1,
        pads: int = 0,
        dilation: int = 1,
        *,
        ceil: bool = False,
    ) -> Size:
        """Return the number of window positions along an axis of this size."""
        free = self.symbols.add(size, Size(pads - dilation * (width - 1) - 1))
        if ceil and divide(free, Size(stride)) is None:
            return self.symbols.of("ceil", free, stride, pads)
        return self.symbols.add(self.symbols.floor_divide(free, Size(stride)), ONE)

    def slid_same(self, size: Size, stride: int) -> Size:
        """Return the number of window positions with padding, one at every `stride`th entry."""
        wide = self.symbols.add(size, Size(stride - 1))
        return self.symbols.floor_divide(wide, Size(stride))

    def exchange_depth(
        self, value: Value, block: Size, *, into_depth: bool, channel_axis: int = 1
    ) -> Value:
        """Return spatial blocks moved into channels, or channels into blocks."""
        if value.shape is None and value.rows is None:
            return Value()
        shape = list(value.shape or ())
        channels = shape.pop(channel_axis)
        spatial, divided = shape[1:], self.symbols.floor_divide
        area = product([block] * len(spatial))
        if into_depth:
            sizes = [divided(size, block) for size in spatial]
            count = multiply(channels, area)
        else:
            sizes = [multiply(size, block) for size in spatial]
            count = divided(channels, area)
        return self.window(value, (), count, sizes, channel_axis=channel_axis)

    def by_row(self, values: Sequence[Value], shape: Sequence[Size | None] | None) -> Value:
        """Return the result of an operator that handles entries of axis 0 independently.

        Args:
            shape: Of an entry of the result; None if not even the rank is known.
        """
        rows = next((value.rows for value in values if value.rows is not None), None)
        if any(value.counts_rows for value in values):
            raise MixedRowsError("computes with the number of rows")
        if rows is None:
            return Value()
        if rows.axis != 0 or any(value.rows != rows for value in values):
            raise MixedRowsError("combines the batch axis with another one")
        if shape is None:
            raise MixedRowsError("makes a tensor of unknown shape")
        return with_rows((rows.size, *self.sized(shape)), rows)


def _plain(value: Value) -> Value:
    return replace(value, elements=None) if not value.counts_rows else value


def _is_slice(size: Size) -> bool:
    return size.number == 1 and len(size.symbols) == 1 and size.symbols[0].name.startswith("slice(")


def _is_open(end: Size | None) -> bool:
    return end is not None and end.is_constant and end.number >= _OPEN_END
