"""Counts of a feature's values by bins that were fixed before, so that counts add up.

What many replicas count of one feature is the sum of their counts, and takes the same few bytes
however many values there were.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec
import numpy as np

from headrace.core import Array

_TOGETHER: Final = 5
"""From so many features on it is faster to count them together."""
MAX_TEXTS: Final = 50
"""Categories of one feature that are told apart."""


class FeatureKind(StrEnum):
    """How a feature's values are told apart."""

    NUMBERS = "numbers"
    """By the bin between two edges."""
    VALUES = "values"
    """A few whole numbers: by the number itself."""
    TEXTS = "texts"
    """By the text itself."""


class FeatureBins(msgspec.Struct, frozen=True, kw_only=True):
    """The bins of one feature.

    `edges` of `numbers`: inner ones, rising; a value on an edge is above it. `categories` of the
    other kinds; a last bin more is for all others. `low` and `high`: the range of the reference.
    `whole`: the reference had whole numbers only. `closed`: it had no others than `categories`.
    `label`: the column's name in the data that it was made of, for people.
    """

    name: str
    role: str
    kind: FeatureKind
    edges: list[float] = []
    categories: list[str] = []
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    closed: bool = False
    label: str = ""

    @property
    def size(self) -> int:
        """How many bins there are."""
        cells = self.edges if self.kind is FeatureKind.NUMBERS else self.categories
        return len(cells) + 1


class FeatureCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Values of one feature: how many, how many of them in each bin, and what was wrong.

    `missing`: NaN, or an empty text. `non_finite`: infinite. The bins hold all others.
    `out_of_range`: beyond the reference's range, or none of its categories. `not_whole`: fractions
    where the reference had none.
    """

    rows: int = 0
    missing: int = 0
    non_finite: int = 0
    out_of_range: int = 0
    not_whole: int = 0
    bins: list[int] = []

    @property
    def valid(self) -> int:
        """How many are in the bins."""
        return self.rows - self.missing - self.non_finite

    def plus(self, other: "FeatureCounts") -> "FeatureCounts":
        """Both together; one without bins has counted nothing."""
        if not other.rows:
            return self
        if not self.rows:
            return other
        return FeatureCounts(
            rows=self.rows + other.rows,
            missing=self.missing + other.missing,
            non_finite=self.non_finite + other.non_finite,
            out_of_range=self.out_of_range + other.out_of_range,
            not_whole=self.not_whole + other.not_whole,
            bins=[one + two for one, two in zip(self.bins, other.bins, strict=True)],
        )


def count_column(column: Array, bins: FeatureBins) -> FeatureCounts:
    """The counts of one feature's values, `[rows]`: float64, or texts."""
    if bins.kind is FeatureKind.TEXTS:
        return _count_texts(column, bins)
    finite = column[np.isfinite(column)]
    missing = int(np.isnan(column).sum())
    whole = int((finite != np.floor(finite)).sum()) if bins.whole else 0
    if bins.kind is FeatureKind.VALUES:
        cells = _cells_of_values(finite, bins)
        strange = int((cells == bins.size - 1).sum()) if bins.closed else 0
    else:
        cells = np.searchsorted(np.asarray(bins.edges), finite, side="right")
        strange = int(((finite < bins.low) | (finite > bins.high)).sum())
    return FeatureCounts(
        rows=len(column),
        missing=missing,
        non_finite=len(column) - len(finite) - missing,
        out_of_range=strange,
        not_whole=whole,
        bins=np.bincount(cells, minlength=bins.size).tolist(),
    )


def count_columns(table: Array, bins: Sequence[FeatureBins]) -> list[FeatureCounts]:
    """The counts of several features, `[rows, features]`."""
    numbers = [i for i, one in enumerate(bins) if one.kind is FeatureKind.NUMBERS]
    if len(numbers) < _TOGETHER:
        return [count_column(table[:, i], one) for i, one in enumerate(bins)]
    found = dict(
        zip(numbers, _count_numbers(table[:, numbers], [bins[i] for i in numbers]), strict=True)
    )
    return [found.get(i) or count_column(table[:, i], one) for i, one in enumerate(bins)]


def _count_numbers(table: Array, bins: Sequence[FeatureBins]) -> list[FeatureCounts]:
    """As `count_column` for each, all at once: NumPy is slow for many small arrays."""
    rows, features = table.shape
    size = max(one.size for one in bins)
    edges = np.full((features, size - 1), np.inf)
    for i, one in enumerate(bins):
        edges[i, : len(one.edges)] = one.edges
    finite = np.isfinite(table)
    cells = np.zeros(table.shape, dtype=np.int64)
    for column in edges.T:
        cells += table >= column
    cells[~finite] = size
    flat = (cells + np.arange(features) * (size + 1)).ravel()
    counted = np.bincount(flat, minlength=features * (size + 1)).reshape(features, size + 1)
    low, high = (np.array([getattr(one, end) for one in bins]) for end in ("low", "high"))
    strange = (finite & ((table < low) | (table > high))).sum(axis=0)
    fractions = (finite & (table != np.floor(table))).sum(axis=0)
    missing = np.isnan(table).sum(axis=0)
    return [
        FeatureCounts(
            rows=rows,
            missing=int(missing[i]),
            non_finite=rows - int(finite[:, i].sum()) - int(missing[i]),
            out_of_range=int(strange[i]),
            not_whole=int(fractions[i]) if one.whole else 0,
            bins=counted[i, : one.size].tolist(),
        )
        for i, one in enumerate(bins)
    ]


def _cells_of_values(values: Array, bins: FeatureBins) -> Array:
    known = np.array([float(category) for category in bins.categories])
    cells = np.minimum(np.searchsorted(known, values), len(known) - 1)
    others = len(known)
    return np.where(known[cells] == values, cells, others)


def _count_texts(column: Array, bins: FeatureBins) -> FeatureCounts:
    cell_of = {text: i for i, text in enumerate(bins.categories)}
    counts = [0] * bins.size
    missing = 0
    for text in column:
        if text:
            counts[cell_of.get(text, -1)] += 1
        else:
            missing += 1
    return FeatureCounts(
        rows=len(column),
        missing=missing,
        out_of_range=counts[-1] if bins.closed else 0,
        bins=counts,
    )
