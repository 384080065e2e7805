"""Abstract tensors of the row analysis.

A model is run on abstract tensors: each knows its shape as products of symbols, and the axis along
which the rows of a batch lie. A tensor without such an axis has the same values whatever the batch
is, unless its elements are sizes that count rows.

An axis may hold more than rows: `[batch * heads]` after a reshape has rows of `heads` entries
each, and `[length * batch]` has `length` blocks of one entry of each row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.core import VARIABLE, Array, TensorSpec
from headrace.runtimes.rows.symbols import BATCH, ONE, Size, Symbols, product

MAX_ELEMENTS: Final = 256
"""Values of larger tensors are not followed; sizes are far smaller."""
_MAX_RANK: Final = 64
_OPEN_END: Final = 1_000_000_000
"""Slices end at this or more where they mean the end: no batch has so many rows."""

Shape = tuple[Size, ...]


class MixedRowsError(Exception):
    """An operator whose output rows may depend on more than their own input row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRows:
    """Where the rows of a batch lie: `before * batch * after` entries of one axis.

    The entries of a row are those of equal middle index.
    """

    axis: int
    before: Size = ONE
    after: Size = ONE

    @property
    def size(self) -> Size:
        """The size of the axis."""
        return product((self.before, BATCH, self.after))


@dataclass(frozen=True, slots=True, kw_only=True)
class RowNumbers:
    """Integers that count rows: of row i they are in [i * stride, i * stride + width).

    `is_first`: only the first one along the last axis counts rows.
    """

    stride: Size = ONE
    width: Size = ONE
    is_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """What is known of a tensor.

    `shape`: None if not even the rank is known. `rows`: None if no axis has rows. `elements`: an
    object array of `Size`, or of None where an element is not known, of a small tensor that has
    no rows.
    `is_integer`: whether division rounds. `mixed`: why rows may depend on each other; empty if they
    do not. `row_numbers`: how each row holds its own position in the batch, of which only an
    operator that looks rows up makes something that does not depend on it; `mixed` says so, too.
    `below`: a bound of integers that are not negative.
    """

    shape: Shape | None = None
    rows: BatchRows | None = None
    elements: Array | None = None
    is_integer: bool = False
    mixed: str = ""
    row_numbers: RowNumbers | None = None
    below: Size | None = None

    @property
    def is_uniform(self) -> bool:
        """Whether it is the same for every batch."""
        return self.rows is None and not self.mixed and not self.counts_rows

    @property
    def counts_rows(self) -> bool:
        """Whether an element depends on the number of rows."""
        elements = self.elements
        return elements is not None and any(
            item is not None and item.has_batch for item in elements.flat
        )

    @property
    def rank(self) -> int:
        """The number of dimensions.

        Raises:
            MixedRowsError: It is not known.
        """
        if self.shape is None:
            raise MixedRowsError("takes a tensor of unknown shape")
        return len(self.shape)


UNIFORM: Final = Value()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of a row analysis.

    `why_not`: the operator that may mix rows, or what else keeps the analysis from a proof; empty
    for a proof.
    """

    why_not: str

    @property
    def is_proven(self) -> bool:
        """Whether each output row depends on its own input row alone."""
        return not self.why_not


def model_input(symbols: Symbols, spec: TensorSpec, number: int) -> Value:
    """An input of a model, with the batch on axis 0."""
    inner = (
        symbols.input(f"input{number}[{axis}]") if size == VARIABLE else Size(size)
        for axis, size in enumerate(spec.shape[1:], 1)
    )
    is_integer = spec.datatype.dtype.kind in "iub"
    return with_rows((BATCH, *inner), BatchRows(axis=0), is_integer=is_integer)


def judge(outputs: Mapping[str, Value]) -> Verdict:
    """The verdict on a model with these outputs."""
    for name, value in outputs.items():
        if value.mixed:
            return Verdict(why_not=value.mixed)
        if value.rows != BatchRows(axis=0):
            return Verdict(why_not=f"axis 0 of output '{name}' is not the number of rows")
    return Verdict(why_not="")


def mixed(reason: str) -> Value:
    """A tensor whose rows may depend on each other."""
    return Value(mixed=reason)


def constant(array: Array) -> Value:
    """A tensor of the model's own; what it holds is kept if it is small and of whole numbers."""
    shape = tuple(Size(size) for size in array.shape)
    is_integer = array.dtype.kind in "iub"
    if array.size > MAX_ELEMENTS or array.dtype.kind not in "iubf":
        return Value(shape=shape, is_integer=is_integer)
    elements = np.empty(array.shape, np.object_)
    for index, item in np.ndenumerate(array):
        is_whole = np.isfinite(item) and item == int(item)
        elements[index] = Size(int(item)) if is_whole else None
    return Value(shape=shape, elements=elements, is_integer=is_integer)


def sizes_value(sizes: Sequence[Size | None]) -> Value:
    """A vector of sizes, as an operator gives that asks for a shape."""
    elements = np.empty(len(sizes), np.object_)
    elements[:] = sizes
    return Value(shape=(Size(len(sizes)),), elements=elements, is_integer=True)


def with_rows(shape: Shape | None, rows: BatchRows | None, *, is_integer: bool = False) -> Value:
    """A value whose shape has the batch where `rows` says, and nowhere else.

    Raises:
        MixedRowsError: It has it elsewhere.
    """
    for axis, size in enumerate(shape or ()):
        expected = rows is not None and axis == rows.axis
        if size.has_batch and not (expected and rows is not None and size == rows.size):
            raise MixedRowsError("makes a tensor whose size depends on the number of rows")
    return Value(shape=shape, rows=rows, is_integer=is_integer)


def bound(value: Value) -> Size | None:
    """A size that all elements are below, where none is negative; None if there is none."""
    numbers = constants(value)
    if numbers:
        return Size(max(numbers) + 1) if min(numbers) >= 0 else None
    return value.below


def known_elements(value: Value) -> Array:
    """The elements.

    Raises:
        MixedRowsError: They are not known.
    """
    if value.elements is None:
        raise MixedRowsError("takes sizes that are computed while it runs")
    return value.elements


def constants(value: Value | None) -> list[int] | None:
    """The elements as numbers; None if they are not all known."""
    if value is None or value.elements is None:
        return None
    items = [
        item.number if item is not None and item.is_constant else None
        for item in value.elements.flat
    ]
    return None if None in items else [item for item in items if item is not None]


def known_sizes(value: Value) -> list[Size | None]:
    """The elements of a list of sizes; None for those of which nothing is known.

    Raises:
        MixedRowsError: They depend on rows, or not even their number is known.
    """
    if value.elements is not None:
        return list(value.elements.flat)
    if value.is_uniform and value.shape is not None and len(value.shape) <= 1:
        count = product(value.shape)
        if count.is_constant and 0 <= count.number <= MAX_ELEMENTS:
            return [None] * count.number
    raise MixedRowsError("takes sizes that are computed while it runs")


def known_axes(value: Value) -> list[int]:
    """The elements of a list of axes.

    Raises:
        MixedRowsError: They are not all known.
    """
    axes = constants(value)
    if axes is None:
        raise MixedRowsError("takes axes that are computed while it runs")
    return axes


def shape_value(value: Value) -> Value:
    """The tensor of the sizes of `value`.

    Raises:
        MixedRowsError: Its shape is not known.
    """
    if value.shape is None:
        raise MixedRowsError("takes a tensor of unknown shape")
    return sizes_value(value.shape)


def normal_axis(axis: int, rank: int) -> int:
    """An axis counted from the front.

    Raises:
        MixedRowsError: The tensor has no such axis.
    """
    if not -rank <= axis < rank:
        raise MixedRowsError(f"names axis {axis} of a tensor with {rank} dimensions")
    return axis % rank if rank else 0
