"""Abstract tensors of the row analysis, and arithmetic on the sizes that they hold.

A model is run on abstract tensors: each has a shape as products of symbols, and the axis along
which the rows of a batch lie. A tensor without such an axis has the same values for every batch,
unless its elements are sizes that count rows.

An axis may hold more than rows: `[batch * heads]` after a reshape has rows of `heads` entries each,
and `[length * batch]` has `length` blocks of one entry of each row.

A fold computes an element of a tensor of sizes from the elements of equal position that an operator
combines; None is an unknown element.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.core import VARIABLE, Array, TensorSpec
from headrace.runtimes.rows.symbols import (
    BATCH,
    MAX_NUMBER,
    ONE,
    ZERO,
    Size,
    Symbols,
    divide,
    multiply,
    product,
)

MAX_ELEMENTS: Final = 256
"""Limit of elements whose values are followed; tensors of sizes are far smaller."""

Shape = tuple[Size, ...]
Fold = Callable[..., Size | None]
"""Function of the model's symbols and of one element per input of the operator."""


class MixedRowsError(Exception):
    """Raised for an operator whose output rows may depend on more than their own input row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRows:
    """Location of a batch's rows: `before * batch * after` entries of one axis.

    The entries of a row are those of equal middle index.
    """

    axis: int
    before: Size = ONE
    after: Size = ONE

    @property
    def size(self) -> Size:
        """Size of the axis."""
        return product((self.before, BATCH, self.after))


@dataclass(frozen=True, slots=True, kw_only=True)
class RowNumbers:
    """Integers that number rows: for row i they are in [i * stride, i * stride + width)."""

    stride: Size = ONE
    width: Size = ONE
    is_first: bool = False
    """Whether only the first integer along the last axis numbers rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """Facts about a tensor that the analysis derives."""

    shape: Shape | None = None
    """Sizes of the axes; None if not even the rank is known."""
    rows: BatchRows | None = None
    """Axis of the batch rows; None if no axis has rows."""
    elements: Array | None = None
    """Elements of a small tensor without rows: an object array of `Size`, or of None for an
    unknown element."""
    is_integer: bool = False
    """Whether division rounds."""
    mixed: str = ""
    """Why rows may depend on each other; empty if they do not."""
    row_numbers: RowNumbers | None = None
    """How each row holds its own position in the batch. Only an operator that indexes rows turns it
    into a value that does not depend on the position; until then `mixed` reports it too.
    """
    below: Size | None = None
    """Upper bound, exclusive, of non-negative integers."""

    @property
    def is_uniform(self) -> bool:
        """Whether the value is the same for every batch."""
        return self.rows is None and not self.mixed and not self.counts_rows

    @property
    def counts_rows(self) -> bool:
        """Whether an element depends on the number of rows."""
        elements = self.elements
        return elements is not None and any(
            item is not None and item.has_batch for item in elements.flat
        )

    @property
    def only(self) -> Size | None:
        """Return the only element; None if there are several, or it is unknown."""
        if self.elements is None or self.elements.size != 1:
            return None
        size: Size | None = self.elements.flat[0]
        return size

    @property
    def rank(self) -> int:
        """Number of dimensions.

        Raises:
            MixedRowsError: It is unknown.
        """
        if self.shape is None:
            raise MixedRowsError("takes a tensor of unknown shape")
        return len(self.shape)


UNIFORM: Final = Value()


@dataclass(frozen=True, slots=True, kw_only=True)
class RowVerdict:
    """The result of a row analysis."""

    why_not: str
    """The operator that may mix rows, or another reason why there is no proof; empty for a proof.
    """

    @property
    def is_proven(self) -> bool:
        """Whether each output row depends on its own input row alone."""
        return not self.why_not


def model_input(symbols: Symbols, spec: TensorSpec, number: int) -> Value:
    """Return an input of a model, with the batch on axis 0."""
    inner = (
        symbols.input(f"input{number}[{axis}]") if size == VARIABLE else Size(size)
        for axis, size in enumerate(spec.shape[1:], 1)
    )
    is_integer = spec.datatype.dtype.kind in "iub"
    return with_rows((BATCH, *inner), BatchRows(axis=0), is_integer=is_integer)


def judge(outputs: Mapping[str, Value]) -> RowVerdict:
    """Return the verdict on a model with these outputs."""
    for name, value in outputs.items():
        if value.mixed:
            return RowVerdict(why_not=value.mixed)
        if value.rows != BatchRows(axis=0):
            return RowVerdict(why_not=f"axis 0 of output '{name}' is not the number of rows")
    return RowVerdict(why_not="")


def mixed(reason: str) -> Value:
    """Return a tensor whose rows may depend on each other."""
    return Value(mixed=reason)


def constant(array: Array) -> Value:
    """Return a constant of the model, with its content if it is small and integer.

    Elements that are no sizes are None, such as the lowest float, which exports of attention add
    where the mask is 0.
    """
    shape = tuple(Size(size) for size in array.shape)
    is_integer = array.dtype.kind in "iub"
    if array.size > MAX_ELEMENTS or array.dtype.kind not in "iubf":
        return Value(shape=shape, is_integer=is_integer)
    elements = np.empty(array.shape, np.object_)
    for index, item in np.ndenumerate(array):
        if np.isfinite(item) and item == int(item) and abs(int(item)) <= MAX_NUMBER:
            elements[index] = Size(int(item))
    return Value(shape=shape, elements=elements, is_integer=is_integer)


def sizes_value(sizes: Sequence[Size | None]) -> Value:
    """Return a vector of sizes, as given by an operator that reads a shape."""
    elements = np.empty(len(sizes), np.object_)
    elements[:] = sizes
    return Value(shape=(Size(len(sizes)),), elements=elements, is_integer=True)


def with_rows(shape: Shape | None, rows: BatchRows | None, *, is_integer: bool = False) -> Value:
    """Return a value whose shape has the batch where `rows` says, and nowhere else.

    Raises:
        MixedRowsError: The batch is in another dimension.
    """
    for axis, size in enumerate(shape or ()):
        expected = rows is not None and axis == rows.axis
        if size.has_batch and not (expected and rows is not None and size == rows.size):
            raise MixedRowsError("makes a tensor whose size depends on the number of rows")
    return Value(shape=shape, rows=rows, is_integer=is_integer)


def bound(value: Value) -> Size | None:
    """Return an exclusive upper bound of non-negative elements; None if there is none."""
    numbers = constants(value)
    if numbers:
        return Size(max(numbers) + 1) if min(numbers) >= 0 else None
    return value.below


def known_elements(value: Value) -> Array:
    """Return the elements.

    Raises:
        MixedRowsError: They are unknown.
    """
    if value.elements is None:
        raise MixedRowsError("takes sizes that are computed while it runs")
    return value.elements


def constants(value: Value | None) -> list[int] | None:
    """Return the elements as numbers; None if some are unknown."""
    if value is None or value.elements is None:
        return None
    items = [
        item.number if item is not None and item.is_constant else None
        for item in value.elements.flat
    ]
    return None if None in items else [item for item in items if item is not None]


def known_sizes(value: Value) -> list[Size | None]:
    """Return the elements of a list of sizes; None for unknown ones.

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
    """Return the elements of a list of axes.

    Raises:
        MixedRowsError: Some are unknown.
    """
    axes = constants(value)
    if axes is None:
        raise MixedRowsError("takes axes that are computed while it runs")
    return axes


def shape_value(value: Value) -> Value:
    """Return the sizes of `value` as a tensor.

    Raises:
        MixedRowsError: Its shape is unknown.
    """
    if value.shape is None:
        raise MixedRowsError("takes a tensor of unknown shape")
    return sizes_value(value.shape)


def normal_axis(axis: int, rank: int) -> int:
    """Return an axis counted from the front.

    Raises:
        MixedRowsError: The tensor has no such axis.
    """
    if not -rank <= axis < rank:
        raise MixedRowsError(f"names axis {axis} of a tensor with {rank} dimensions")
    return axis % rank if rank else 0


def sum_of(symbols: Symbols, *items: Size | None) -> Size | None:
    """Return the sum of all."""
    total: Size | None = ZERO
    for item in items:
        total = None if total is None or item is None else symbols.add(total, item)
    return total


def difference(symbols: Symbols, left: Size | None, right: Size | None) -> Size | None:
    """Return the first minus the second."""
    return None if left is None or right is None else symbols.add(left, right, sign=-1)


def product_of(_: Symbols, *items: Size | None) -> Size | None:
    """Return the product of all."""
    sizes = [item for item in items if item is not None]
    return product(sizes) if len(sizes) == len(items) else None


def exact_quotient(_: Symbols, left: Size | None, right: Size | None) -> Size | None:
    """Return the quotient of two; None if there may be a remainder."""
    return None if left is None or right is None else divide(left, right)


def quotient(symbols: Symbols, left: Size | None, right: Size | None) -> Size | None:
    """Return the integer quotient of two, rounded down."""
    exact = exact_quotient(symbols, left, right)
    if left is None or right is None or exact is not None or left.has_batch or right.has_batch:
        return exact
    if left.minimum is None or left.minimum < 0 or not right.is_positive:
        return None
    return symbols.floor_divide(left, right)


def remainder(_: Symbols, *items: Size | None) -> Size | None:
    """Return the remainder of two."""
    numbers = [item.number for item in items if item is not None and item.is_constant]
    if len(numbers) < 2 or numbers[0] < 0 or numbers[1] <= 0:  # noqa: PLR2004  # two operands
        return None
    return Size(numbers[0] % numbers[1])


def negation(_: Symbols, item: Size | None) -> Size | None:
    """Return the negative."""
    return None if item is None else multiply(item, Size(-1))


def same(_: Symbols, item: Size | None) -> Size | None:
    """Return the value unchanged, as rounding does with integers."""
    return item


def selection(_: Symbols, condition: Size | None, yes: Size | None, no: Size | None) -> Size | None:
    """Return the second where the first is true, else the third."""
    if yes == no:
        return yes
    if condition is None or not condition.is_constant:
        if any(item is not None and item.has_batch for item in (condition, yes, no)):
            raise MixedRowsError("computes with the number of rows")
        return None
    return yes if condition.number else no


def extreme(choose: Callable[..., int]) -> Fold:
    """Return a fold for the largest or smallest, as selected by `choose`."""

    def fold(_: Symbols, *items: Size | None) -> Size | None:
        if len(set(items)) == 1:
            return items[0]
        numbers = [item.number for item in items if item is not None and item.is_constant]
        return Size(choose(numbers)) if len(numbers) == len(items) else None

    return fold


def comparison(*, equal: bool, otherwise: bool) -> Fold:
    """Return a fold for `Equal` and similar, for sizes that are surely equal or surely not."""

    def fold(_: Symbols, left: Size | None, right: Size | None) -> Size | None:
        if left is None or right is None:
            return None
        if left == right:
            return Size(int(equal))
        pairs = ((left, right), (right, left))
        if otherwise != equal and (
            (left.is_constant and right.is_constant)
            or any(a.is_positive and b.is_constant and b.number <= 0 for a, b in pairs)
        ):
            return Size(int(otherwise))
        return None

    return fold


FOLDS: Final[Mapping[str, Fold]] = {
    "Add": sum_of,
    "Sub": difference,
    "Mul": product_of,
    "Div": quotient,
    "Mod": remainder,
    "Neg": negation,
    "Max": extreme(max),
    "Min": extreme(min),
    "Equal": comparison(equal=True, otherwise=False),
    "Greater": comparison(equal=False, otherwise=False),
    "Less": comparison(equal=False, otherwise=False),
    "GreaterOrEqual": comparison(equal=True, otherwise=True),
    "LessOrEqual": comparison(equal=True, otherwise=True),
    "Where": selection,
    "Floor": same,
    "Ceil": same,
    "Round": same,
}
"""Folds by ONNX name of the operator."""
