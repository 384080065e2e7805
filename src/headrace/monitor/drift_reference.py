"""Reference of a model's features: a small sketch of data, and the design effect of its rows.

Successive rows are often similar: they come from one caller, one batch or one market. A share over
`n` such rows varies like that over `n / effect` independent ones (Kish, "Survey Sampling", 1965;
"statistical inefficiency" in simulation). The effect is measured by batch means: the shares of
blocks of rows against the binomial variance, for blocks of several lengths, because an effect shows
in full only where blocks are longer than the dependence (Flyvbjerg and Petersen, "Error estimates
on averages of correlated data", J. Chem. Phys. 91, 1989). Neighbouring blocks are compared with
each other and not with the mean of all (von Neumann, Annals of Mathematical Statistics 12, 1941),
and the weight of one difference is limited: a drift moves the level once and must not count as
dependence.

The reference fixes the bins: about twenty with equally many of its values, or one for each of a few
categories. If the times of the rows are known and cover days, the sketch also has the counts of
each hour of the day.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.core import Array
from headrace.observe.features import (
    MAX_TEXTS,
    FeatureBins,
    FeatureKind,
    TensorFeatures,
    ValueCounts,
    count_column,
)

Floats: TypeAlias = NDArray[np.float64]
BATCH_ROWS: Final = 50
"""Length of the shortest blocks that are compared. Unit: rows."""
UNKNOWN_EFFECT: Final = 10.0
"""Effect assumed for rows without measurements; it weighs as much as one difference."""
_STEADY_PAIRS: Final = 8.0
"""Weight of the mean over all lengths in the estimate of one length. Unit: differences."""
_RATIO_SPREAD: Final = 0.8
"""Standard deviation of one ratio over its mean, for about three independent events."""
_FEWEST_BLOCKS: Final = 8
"""Minimum number of blocks for a comparison of pairs of blocks."""
_ROUNDS: Final = 4
_LARGEST: Final = 6.0
"""Upper limit of one difference, as a multiple of its expectation."""


def ratios(
    seen: Floats, total: Floats, *, expected: Floats | float = 0.0, more: Floats | float = 0.0
) -> tuple[Floats, Floats]:
    """Return squared differences of neighbouring blocks, relative to those of independent rows.

    Args:
        seen: Values for which each event is true, `[blocks, events]`.
        total: Values, `[blocks]`; more than 0.
        expected: Shares that the reference expects of each block, `[blocks, events]`.
        more: Contribution of the expected shares' error to the sum of the inverse numbers of rows,
            `[blocks - 1]`.

    Returns:
        The ratios and the values of the shorter block, `[differences]`; neighbours without any
        variance are left out.
    """
    residual = seen / total[:, None] - expected
    pooled = (seen[1:] + seen[:-1]) / (total[1:] + total[:-1])[:, None]
    inverse = 1.0 / total[1:] + 1.0 / total[:-1] + more
    variance = (pooled * (1.0 - pooled)).sum(axis=1) * inverse
    moved = ((residual[1:] - residual[:-1]) ** 2).sum(axis=1)
    usable = variance > 0
    return moved[usable] / variance[usable], np.minimum(total[1:], total[:-1])[usable]


def design_effect(
    ratio: Floats, rows: Floats, *, prior: float = 1.0, prior_pairs: float = 1.0
) -> float:
    """Return the largest design effect over the lengths of blocks, at least 1.

    Args:
        ratio: Ratios of `ratios`, `[differences]`.
        rows: Rows of the shorter block of each difference.
        prior: The effect assumed before any difference was measured.
        prior_pairs: Weight of the prior, in differences.
    """
    overall = _shrunk(ratio, prior, prior_pairs)
    levels = np.floor(np.log2(np.maximum(rows, 1.0))).astype(int)
    largest = overall * (1.0 - _error(len(ratio)))
    for level in set(levels.tolist()):
        of_length = ratio[levels == level]
        effect = _shrunk(of_length, overall, _STEADY_PAIRS)
        largest = max(largest, effect * (1.0 - 2.0 * _error(len(of_length))))
    return max(1.0, largest)


def _error(count: int) -> float:
    """Return an estimate's relative standard error; the largest of several is too large by it."""
    return _RATIO_SPREAD / math.sqrt(_STEADY_PAIRS + count)


def effect_in_order(occurrences: Floats, total: Floats) -> float:
    """Return the design effect of successive rows, from blocks of them.

    Args:
        seen: Values for which each event is true, `[blocks, events]`.
        total: Values, `[blocks]`.
    """
    parts = [ratios(occurrences, total)]
    while len(total) >= _FEWEST_BLOCKS:
        pairs = len(total) // 2
        occurrences = occurrences[: 2 * pairs].reshape(pairs, 2, -1).sum(axis=1)
        total = total[: 2 * pairs].reshape(pairs, 2).sum(axis=1)
        parts.append(ratios(occurrences, total))
    ratio, rows = (np.concatenate(part) for part in zip(*parts, strict=True))
    return design_effect(ratio, rows)


def _shrunk(ratio: Floats, prior: float, pairs: float) -> float:
    """Return the mean of the ratios with a prior; ratios far above it count up to a bound."""
    count, effect = len(ratio), prior
    largest = float(ratio.max()) if count else 0.0
    for _ in range(_ROUNDS):
        bound = _LARGEST * max(effect, 1.0)
        total = float(np.minimum(ratio, bound).sum())
        effect = (prior * pairs + total) / (pairs + count)
        if largest <= bound:
            break
    return effect


MIN_ROWS: Final = 100
"""Minimum number of a feature's values in the reference; features with fewer are not judged."""
WINDOW: Final = "window"
"""Source of a reference: the first requests."""
DATA: Final = "data"
"""Source of a reference: supplied data."""
HOURS: Final = 24
"""Hours of a day, in UTC."""
HOURLY_S: Final = 2 * 86_400.0
"""Minimum time that a reference with counts by hour of the day covers. Unit: seconds."""
_SLACK_S: Final = 3600.0
_BINS: Final = 20
_FEW_VALUES: Final = 20
_ROWS_EACH: Final = 10
_WIDEST: Final = 2.0**53
"""Limit beyond which float64 does not represent all integers."""


class FeatureReference(msgspec.Struct, frozen=True, kw_only=True):
    """Bins of one feature, and the reference's counts in them."""

    bins: FeatureBins
    counts: ValueCounts
    single: int = 0
    """Number of values that occur once, for features with categories; the expected share of unseen
    categories is estimated from it (Good and Turing)."""
    hours: list[list[int]] = []
    """Counts of the bins for each hour of the day, `[24][bins]`; empty if the reference does not
    cover two days."""
    effect: float = 0.0
    """Design effect of the rows (`drift_dependence`); 0 if unknown, as for rows without times."""


class DriftReference(msgspec.Struct, frozen=True, kw_only=True):
    """Expected distributions of one model version's features."""

    features: list[FeatureReference] = []
    source: str = WINDOW
    """Source: supplied `data`, or the first `window` of requests."""
    rows: int = 0
    """Number of rows. `at`: seconds since 1970."""
    created_at: float = msgspec.field(name="at", default=0.0)
    covers_s: float = 0.0
    """Time from the first row to the last; 0 if unknown."""

    @property
    def is_hourly(self) -> bool:
        """Whether values are compared with those of the same hour of the day."""
        return any(feature.hours for feature in self.features)

    def of(self, name: str) -> FeatureReference | None:
        """Return the feature of this name."""
        return next((feature for feature in self.features if feature.bins.name == name), None)


def reference_of(
    features: Sequence[TensorFeatures],
    blocks: Mapping[str, Array],
    *,
    source: str,
    created_at: float,
    times: Floats | None = None,
) -> DriftReference:
    """Create a reference from data.

    Args:
        blocks: Blocks of `TensorFeatures.block` by tensor; missing ones get no reference.
        times: Times of the rows, `[rows]`, seconds since 1970; None if unknown.
    """
    referenced = [
        feature_reference(name, tensor.role, blocks[tensor.tensor][:, i], times=times)
        for tensor in features
        if tensor.tensor in blocks
        for i, name in enumerate(tensor.names)
    ]
    rows = max((tensor.counts.rows for tensor in referenced), default=0)
    covers_s = float(np.ptp(times)) if times is not None and len(times) else 0.0
    return DriftReference(
        features=referenced, source=source, rows=rows, created_at=created_at, covers_s=covers_s
    )


def feature_reference(
    name: str, role: str, column: Array, *, times: Floats | None = None
) -> FeatureReference:
    """Create the reference of one feature.

    Args:
        column: Values of the feature, `[rows]`: float64, or texts.
        times: Times of the rows, `[rows]`, seconds since 1970; None if unknown.
    """
    reference = _without_times(name, role, column)
    return reference if times is None or not len(times) else _timed(reference, column, times)


def _timed(reference: FeatureReference, column: Array, times: Floats) -> FeatureReference:
    """Return the reference with its design effect, and with hours if the times cover days."""
    order = np.argsort(times, kind="stable")
    column, times = column[order], times[order]
    bins = reference.bins
    if times[-1] - times[0] < HOURLY_S - _SLACK_S:
        steps = np.arange(BATCH_ROWS, len(column), BATCH_ROWS)
        blocks = [count_column(part, bins) for part in np.split(column, steps)]
        effect = effect_in_order(*_event_counts(reference, blocks))
        return msgspec.structs.replace(reference, effect=effect)
    # Each hour of each day is a block whose neighbour is the same hour of the next day.
    hour, day = (times // 3600 % HOURS).astype(int), (times // 86_400).astype(int)
    order = np.lexsort((day, hour))
    cell = hour[order] * (day.max() + 2) + day[order]
    starts = np.flatnonzero(np.diff(cell)) + 1
    cells = [count_column(part, bins) for part in np.split(column[order], starts)]
    hour_of = hour[order][np.concatenate([[0], starts])]
    hours = [[0] * bins.size for _ in range(HOURS)]
    for index, counts in zip(hour_of, cells, strict=True):
        hours[index] = [
            previous + added for previous, added in zip(hours[index], counts.bins, strict=True)
        ]
    hour_ratios = [
        ratios(
            *_event_counts(
                reference,
                [cell_counts for i, cell_counts in zip(hour_of, cells, strict=True) if i == index],
            )
        )
        for index in range(HOURS)
    ]
    ratio, rows = (np.concatenate(parts) for parts in zip(*hour_ratios, strict=True))
    effect = design_effect(ratio, rows)
    return msgspec.structs.replace(reference, hours=hours, effect=effect)


def _event_counts(
    reference: FeatureReference, blocks: Sequence[ValueCounts]
) -> tuple[Floats, Floats]:
    """Return events and values of each block that has any, `[blocks, events]` and `[blocks]`."""
    filled = [block.bins for block in blocks if block.valid]
    bins = np.array(filled, dtype=float).reshape(-1, reference.bins.size)
    return events(reference, bins), bins.sum(axis=1)


def _without_times(name: str, role: str, column: Array) -> FeatureReference:
    if column.dtype.kind == "O":
        return _of_texts(name, role, column)
    finite = column[np.isfinite(column)]
    whole = bool(len(finite)) and bool((finite == np.floor(finite)).all())
    values, frequencies = np.unique(finite, return_counts=True)
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
        return FeatureReference(bins=bins, counts=counts, single=int((frequencies == 1).sum()))
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


def events(reference: FeatureReference, bins: Floats) -> Floats:
    """Return values below each edge, or per category, `[spans, events]`, of the bins' counts."""
    if reference.bins.kind is FeatureKind.NUMBERS:
        summed: Floats = np.cumsum(bins, axis=1)[:, :-1]
        return summed
    return bins


def _edges(finite: Array) -> list[float]:
    """Return edges that divide the reference into equal parts; fewer where values repeat."""
    if not len(finite):
        return []
    shares = np.arange(1, _BINS) / _BINS
    edges = np.unique(np.quantile(finite, shares, method="inverted_cdf"))
    inner_edges: list[float] = edges[edges > finite.min()].tolist()
    return inner_edges


def _of_texts(name: str, role: str, column: Array) -> FeatureReference:
    frequencies = Counter(text for text in column if text)
    categories = [text for text, _ in frequencies.most_common(MAX_TEXTS)]
    bins = FeatureBins(
        name=name,
        role=role,
        kind=FeatureKind.TEXTS,
        categories=categories,
        closed=len(frequencies) <= MAX_TEXTS,
    )
    single = sum(count == 1 for count in frequencies.values())
    return FeatureReference(bins=bins, counts=count_column(column, bins), single=single)
