"""Arithmetic on sizes that graphs compute: what becomes of elements that are sizes.

Each function makes, for a model and for whole numbers or not, the function of elements that
`Transfer.elementwise` takes; None stands for an element that is not known.
"""

from collections.abc import Callable

from headrace.runtimes.rows.symbols import ZERO, Size, divide, multiply
from headrace.runtimes.rows.transfer import Transfer
from headrace.runtimes.rows.values import MixedRowsError

Fold = Callable[..., Size | None]
MakeFold = Callable[[Transfer, bool], Fold]


def sum_of(transfer: Transfer, _: bool) -> Callable[..., Size | None]:  # noqa: FBT001  # one table's
    """The sum of all."""

    def fold(*items: Size | None) -> Size | None:
        total: Size | None = ZERO
        for item in items:
            total = None if total is None or item is None else transfer.symbols.add(total, item)
        return total

    return fold


def difference(transfer: Transfer, _: bool) -> Callable[..., Size | None]:  # noqa: FBT001
    """The first without the second."""
    return lambda left, right: (
        None if left is None or right is None else transfer.symbols.add(left, right, sign=-1)
    )


def product_of(_: Transfer, __: bool) -> Callable[..., Size | None]:  # noqa: FBT001
    """The product of two."""

    def fold(left: Size | None, right: Size | None) -> Size | None:
        return None if left is None or right is None else multiply(left, right)

    return fold


def quotient(transfer: Transfer, whole: bool) -> Callable[..., Size | None]:  # noqa: FBT001
    """The quotient of two; of whole numbers rounded down."""

    def fold(left: Size | None, right: Size | None) -> Size | None:
        if left is None or right is None or right == ZERO:
            return None
        exact = divide(left, right)
        if exact is not None or not whole or left.has_batch or right.has_batch:
            return exact
        if left.minimum is None or left.minimum < 0 or not right.is_positive:
            return None
        return transfer.symbols.floor_divide(left, right)

    return fold


def comparison(equal: bool, otherwise: bool) -> Callable[..., Callable[..., Size | None]]:  # noqa: FBT001
    """What `Equal` and its like say of two sizes that are surely equal, or surely not."""

    def make(_: Transfer, __: bool) -> Callable[..., Size | None]:  # noqa: FBT001
        def fold(left: Size | None, right: Size | None) -> Size | None:
            if left is None or right is None:
                return None
            if left == right:
                return Size(int(equal))
            if left.is_constant and right.is_constant:
                return Size(int(otherwise)) if otherwise != equal else None
            pairs = ((left, right), (right, left))
            if otherwise != equal and any(
                a.is_positive and b.is_constant and b.number <= 0 for a, b in pairs
            ):
                return Size(int(otherwise))
            return None

        return fold

    return make


def selection(_: Transfer, __: bool) -> Callable[..., Size | None]:  # noqa: FBT001
    """The second where the first is true, else the third."""

    def fold(condition: Size | None, yes: Size | None, no: Size | None) -> Size | None:
        if yes == no:
            return yes
        if condition is None or not condition.is_constant:
            if any(item is not None and item.has_batch for item in (condition, yes, no)):
                raise MixedRowsError("computes with the number of rows")
            return None
        return yes if condition.number else no

    return fold


def extreme(choose: Callable[..., int]) -> Callable[..., Callable[..., Size | None]]:
    """The largest or smallest, as `choose` says."""

    def make(_: Transfer, __: bool) -> Callable[..., Size | None]:  # noqa: FBT001
        def fold(*items: Size | None) -> Size | None:
            if len(set(items)) == 1:
                return items[0]
            numbers = [item.number for item in items if item is not None and item.is_constant]
            return Size(choose(numbers)) if len(numbers) == len(items) else None

        return fold

    return make


def whole(_: Transfer, __: bool) -> Callable[..., Size | None]:  # noqa: FBT001
    """The same: whole numbers have no fraction."""
    return lambda item: item


def remainder(_: Transfer, __: bool) -> Callable[..., Size | None]:  # noqa: FBT001
    """The remainder of two."""

    def fold(left: Size | None, right: Size | None) -> Size | None:
        numbers = [item.number for item in (left, right) if item is not None and item.is_constant]
        if len(numbers) < 2 or numbers[0] < 0 or numbers[1] <= 0:  # noqa: PLR2004  # two operands
            return None
        return Size(numbers[0] % numbers[1])

    return fold


def negation(_: Transfer, __: bool) -> Callable[..., Size | None]:  # noqa: FBT001
    """The negative."""
    return lambda item: None if item is None else multiply(item, Size(-1))
