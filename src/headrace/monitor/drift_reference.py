"""What do a feature's values look like when all is well? A small sketch of training data.

Its bins are fixed by it: about twenty with equally many of the reference's values each, or one for
each of a few categories.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from headrace.core import Array
from headrace.observe.feature_counts import (
    MAX_TEXTS,
    FeatureBins,
    FeatureCounts,
    FeatureKind,
    count_column,
)
from headrace.observe.features import TensorFeatures

MIN_ROWS: Final = 100
"""A feature with fewer values in the reference is not judged."""
_BINS: Final = 20
_FEW_VALUES: Final = 20
_ROWS_EACH: Final = 10
_WIDEST: Final = 2.0**53
"""Whole numbers beyond are not told apart as float64."""


class FeatureReference(msgspec.Struct, frozen=True, kw_only=True):
    """One feature's bins, and what the reference has in them.

    `single`: how many values stood there once only, for features with categories; how often unseen
    ones are to be expected is estimated from it (Good and Turing).
    """

    bins: FeatureBins
    counts: FeatureCounts
    single: int = 0


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """The features of one model version, when all is well.

    `source`: `data` that was given, or the first `window` of requests. `rows`: how many there were.
    `at`: seconds since 1970.
    """

    features: list[FeatureReference] = []
    source: str = "window"
    rows: int = 0
    at: float = 0.0

    def of(self, name: str) -> FeatureReference | None:
        """The feature of this name."""
        return next((one for one in self.features if one.bins.name == name), None)


def reference_of(
    features: Sequence[TensorFeatures], blocks: Mapping[str, Array], *, source: str, at: float
) -> Reference:
    """The reference that data make.

    Args:
        blocks: By tensor, as `TensorFeatures.block` makes them; what is missing has no reference.
    """
    found = [
        feature_reference(name, one.role, blocks[one.tensor][:, i])
        for one in features
        if one.tensor in blocks
        for i, name in enumerate(one.names)
    ]
    rows = max((one.counts.rows for one in found), default=0)
    return Reference(features=found, source=source, rows=rows, at=at)


def feature_reference(name: str, role: str, column: Array) -> FeatureReference:
    """The reference of one feature, from its values, `[rows]`: float64, or texts."""
    if column.dtype.kind == "O":
        return _of_texts(name, role, column)
    finite = column[np.isfinite(column)]
    whole = bool(len(finite)) and bool((finite == np.floor(finite)).all())
    values, often = np.unique(finite, return_counts=True)
    few = len(values) <= _FEW_VALUES and len(finite) >= _ROWS_EACH * len(values)
    if whole and few and bool(np.abs(finite).max() < _WIDEST):
        bins = FeatureBins(
            name=name,
            role=role,
            kind=FeatureKind.VALUES,
            categories=[str(int(value)) for value in values],
            whole=True,
            closed=True,
            low=float(values[0]),
            high=float(values[-1]),
        )
        counts = count_column(column, bins)
        return FeatureReference(bins=bins, counts=counts, single=int((often == 1).sum()))
    bins = FeatureBins(
        name=name,
        role=role,
        kind=FeatureKind.NUMBERS,
        edges=_edges(finite),
        low=float(finite.min()) if len(finite) else 0.0,
        high=float(finite.max()) if len(finite) else 0.0,
        whole=whole,
    )
    return FeatureReference(bins=bins, counts=count_column(column, bins))


def _edges(finite: Array) -> list[float]:
    """Values that cut the reference into parts of equal size; fewer where values repeat."""
    if not len(finite):
        return []
    shares = np.arange(1, _BINS) / _BINS
    edges = np.unique(np.quantile(finite, shares, method="inverted_cdf"))
    kept: list[float] = edges[edges > finite.min()].tolist()
    return kept


def _of_texts(name: str, role: str, column: Array) -> FeatureReference:
    often = Counter(text for text in column if text)
    categories = [text for text, _ in often.most_common(MAX_TEXTS)]
    bins = FeatureBins(
        name=name,
        role=role,
        kind=FeatureKind.TEXTS,
        categories=categories,
        closed=len(often) <= MAX_TEXTS,
    )
    single = sum(count == 1 for count in often.values())
    return FeatureReference(bins=bins, counts=count_column(column, bins), single=single)
