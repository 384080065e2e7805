"""Symbolic integers that depend on the sizes of a model's inputs, in a normal form.

A dimension of a tensor is a product: a number times symbols, such as `3 * batch * length`. Sums and
quotients that do not simplify become symbols themselves, named by their operands, so that equal
computations give equal dimensions.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Final

_BATCH: Final = "batch"
_MAX_NAME: Final = 2000
"""A longer name is replaced by a new symbol, which equals no other."""
_MAX_TERMS: Final = 32
MAX_NUMBER: Final = 1 << 80
"""Larger than any 64-bit graph computes; repeated squaring ends here."""
_MAX_SYMBOLS: Final = 64


@dataclass(frozen=True, slots=True)
class Size:
    """A number times symbols. `symbols` is sorted; a power repeats its symbol."""

    number: int
    symbols: tuple["Symbol", ...] = ()

    def __post_init__(self) -> None:
        """Raise OverflowError for a number beyond the limit; its operator is then not followed."""
        if abs(self.number) > MAX_NUMBER or len(self.symbols) > _MAX_SYMBOLS:
            raise OverflowError("a size is too large to be followed")

    @property
    def is_constant(self) -> bool:
        """Whether it has no symbols."""
        return not self.symbols

    @property
    def has_batch(self) -> bool:
        """Whether its value depends on the number of rows in a batch."""
        return any(symbol.has_batch for symbol in self.symbols)

    @property
    def minimum(self) -> int | None:
        """Lower bound if no input is empty; None if there is none."""
        minimum = self.number
        for symbol in self.symbols:
            if symbol.minimum is None or symbol.minimum < 0 or self.number < 0:
                return None
            minimum *= symbol.minimum
        return minimum

    @property
    def is_positive(self) -> bool:
        """Whether it is positive, if no input is empty."""
        return (self.minimum or 0) > 0

    def __str__(self) -> str:
        """Return a text for display: `3*batch`."""
        names = [symbol.name for symbol in self.symbols]
        if self.number != 1 or not names:
            names.insert(0, str(self.number))
        return "*".join(names)


@dataclass(frozen=True, slots=True, order=True)
class Symbol:
    """An integer determined by the inputs' sizes."""

    name: str
    has_batch: bool = False
    minimum: int | None = None
    """Lower bound if no input is empty; None if there is none."""
    terms: tuple[Size, ...] = ()
    """Terms of the sum that it stands for, if any."""


ZERO: Final = Size(0)
ONE: Final = Size(1)
BATCH: Final = Size(1, (Symbol(_BATCH, has_batch=True, minimum=1),))
"""Number of rows in a batch."""


class Symbols:
    """Factory of one model's symbols."""

    def __init__(self) -> None:
        self._count = 0

    def input(self, name: str) -> Size:
        """Return the size of an input's variable dimension, equal for all requests of a batch."""
        return Size(1, (Symbol(name, minimum=1),))

    def unknown(self, *, has_batch: bool = False, minimum: int | None = None) -> Size:
        """Return a new size with only these facts."""
        self._count += 1
        return Size(1, (Symbol(f"?{self._count}", has_batch, minimum),))

    def of(self, function: str, *arguments: Size | int, minimum: int | None = None) -> Size:
        """Return a function's value; the same for the same arguments."""
        has_batch = any(isinstance(item, Size) and item.has_batch for item in arguments)
        name = f"{function}({','.join(map(str, arguments))})"
        if len(name) > _MAX_NAME:
            return self.unknown(has_batch=has_batch, minimum=minimum)
        return Size(1, (Symbol(name, has_batch, minimum),))

    def add(self, left: Size, right: Size, *, sign: int = 1) -> Size:
        """Return the sum, or with a sign of -1 the difference."""
        terms: Counter[tuple[Symbol, ...]] = Counter()
        for size, factor in ((left, 1), (right, sign)):
            for term in _terms(size):
                terms[term.symbols] += factor * term.number
        sizes = [Size(number, symbols) for symbols, number in sorted(terms.items()) if number]
        if not sizes:
            return ZERO
        if len(sizes) == 1:
            return sizes[0]
        if len(sizes) > _MAX_TERMS:
            has_batch = left.has_batch or right.has_batch
            return self.unknown(has_batch=has_batch)
        number = math.gcd(*(size.number for size in sizes))
        shared = Counter(sizes[0].symbols)
        for size in sizes[1:]:
            shared &= Counter(size.symbols)
        common = Size(number, tuple(sorted(shared.elements())))
        rest = tuple(quotient for size in sizes if (quotient := divide(size, common)) is not None)
        name = "(" + "+".join(map(str, rest)) + ")"
        has_batch = any(size.has_batch for size in rest)
        if len(name) > _MAX_NAME:
            return self.unknown(has_batch=left.has_batch or right.has_batch)
        lower = [size.minimum for size in rest]
        minimums = [number for number in lower if number is not None]
        minimum = sum(minimums) if len(minimums) == len(lower) else None
        return multiply(common, Size(1, (Symbol(name, has_batch, minimum, rest),)))

    def floor_divide(self, left: Size, right: Size) -> Size:
        """Return the quotient rounded down; for positive sizes also that of integer division."""
        exact = divide(left, right)
        if exact is not None:
            return exact
        if left.is_constant and right.is_constant and right.number:
            return Size(left.number // right.number)
        is_natural = (left.minimum or 0) > 0 or left.minimum == 0
        minimum = 0 if is_natural and (right.minimum or 0) > 0 else None
        return self.of("floor", left, right, minimum=minimum)


def multiply(left: Size, right: Size) -> Size:
    """Return the product of two sizes."""
    number = left.number * right.number
    return Size(number, tuple(sorted((*left.symbols, *right.symbols)))) if number else ZERO


def product(sizes: "tuple[Size, ...] | list[Size]") -> Size:
    """Return the product of all sizes."""
    result = ONE
    for size in sizes:
        result = multiply(result, size)
    return result


def divide(left: Size, right: Size) -> Size | None:
    """Return the quotient; None unless the remainder is 0 for all values of the symbols."""
    if not right.number or left.number % right.number:
        return None
    rest = Counter(left.symbols)
    rest.subtract(right.symbols)
    if any(count < 0 for count in rest.values()):
        return None
    number = left.number // right.number
    return Size(number, tuple(sorted(rest.elements()))) if number else ZERO


def _terms(size: Size) -> tuple[Size, ...]:
    """Return the terms of a size's sum: one, or those of its only symbol."""
    sums = [symbol for symbol in size.symbols if symbol.terms]
    if len(sums) != 1 or size.symbols.count(sums[0]) != 1:
        return (size,)
    others = list(size.symbols)
    others.remove(sums[0])
    factor = Size(size.number, tuple(others))
    return tuple(multiply(factor, term) for term in sums[0].terms)
