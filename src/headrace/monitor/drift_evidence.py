"""Is a difference from the reference more than chance, however often one looks? Bets that lose.

For each edge of a feature's bins, the share of values below it is tested against what the reference
allows: its own share, widened by what a sample of its size may be wrong by, and by the margin. For
a category it is the category's share; for what is missing or wrong, the share of that.

Each test is a bet at the odds of the worst distribution that is allowed: the likelihood ratio of a
larger share against it multiplies a capital that, as long as nothing has drifted, is not expected
to grow. So it reaches `1 / alpha` with a chance of at most `alpha`, whenever one looks (Ville 1939;
Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2024,
arXiv 2010.09686). The capital of a feature is the mean over its bets: a mean of such capitals is
one too, and nobody has to know beforehand which bet will win.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.monitor.drift_reference import FeatureReference
from headrace.observe.feature_counts import FeatureCounts, FeatureKind

Floats: TypeAlias = NDArray[np.float64]

_STEPS: Final[Floats] = np.array([0.01, 0.025, 0.06, 0.15, 0.35, 0.7])
"""Shares that are bet on: so far from the largest one allowed towards 1."""
_HALVINGS: Final = 40
_ALMOST: Final = 1.0 - 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Nulls:
    """What may be without drift: the largest share that each of a feature's bets allows, `[bets]`.

    1 where every share is allowed. `of_valid`: whether the share is of valid values, or of all.
    """

    largest: Floats
    of_valid: "NDArray[np.bool_]"


def nulls_of(
    reference: FeatureReference, *, alpha: float, margin: float, violations_margin: float
) -> Nulls:
    """The bets on one feature.

    Args:
        alpha: The chance that the reference is further off than the bets allow.
    """
    counts = reference.counts
    below = _events(reference, [counts])[0]
    bad = _violations([counts])[0]
    # The bins were made from the same values, and unseen categories were not seen: one more, and
    # those seen once, stand for what the reference cannot know of itself.
    extra = _unknown(reference, len(below))
    wrong_extra = np.array([0.0, 0.0, 2.0 + reference.single, 0.0])
    each = alpha / (2 * len(below) + len(bad))
    upper = [
        _highest(x + 1 + more, counts.valid, each) for x, more in zip(below, extra, strict=True)
    ]
    lower = [1.0 - _highest(counts.valid - x + 1, counts.valid, each) for x in below]
    wrong = [
        _highest(x + more, total, each)
        for x, more, total in zip(bad, wrong_extra, _totals(counts), strict=True)
    ]
    largest = np.concatenate(
        [
            np.asarray(upper) + margin,
            1.0 - (np.asarray(lower) - margin),
            np.asarray(wrong) + violations_margin,
        ]
    )
    of_valid = np.array([True] * (2 * len(below)) + [False, False, True, True])
    return Nulls(largest=np.minimum(largest, 1.0), of_valid=of_valid)


def log_evidence(
    reference: FeatureReference, nulls: Nulls, live: Sequence[FeatureCounts]
) -> Floats:
    """The capital of a feature against "it has not drifted", `[live]`, as natural logarithms.

    Args:
        live: Counts of several spans of time, each judged for itself.
    """
    capital = _capital(reference, nulls, live)
    most = capital.max(axis=(1, 2))
    mean = np.exp(capital - most[:, None, None]).mean(axis=(1, 2))
    found: Floats = most + np.log(mean)
    return found


def strongest(reference: FeatureReference, nulls: Nulls, live: FeatureCounts) -> int:
    """The bet that won most: an edge or category (twice, for more and for less), or a violation."""
    return int(_capital(reference, nulls, [live])[0].max(axis=1).argmax())


def _capital(reference: FeatureReference, nulls: Nulls, live: Sequence[FeatureCounts]) -> Floats:
    """What each bet has made of its stake, `[live, bets, steps]`, as natural logarithms."""
    below = _events(reference, live)
    valid = np.array([float(one.valid) for one in live])[:, None]
    rows = np.array([float(one.rows) for one in live])[:, None]
    seen = np.concatenate([below, valid - below, _violations(live)], axis=1)
    total = np.where(nulls.of_valid, valid, rows)
    worst = np.minimum(nulls.largest, _ALMOST)
    bets = worst[:, None] + (1.0 - worst[:, None]) * _STEPS
    gain = np.log(bets / worst[:, None])
    loss = np.log1p(-bets) - np.log1p(-worst)[:, None]
    capital = seen[:, :, None] * gain + (total - seen)[:, :, None] * loss
    found: Floats = np.where((nulls.largest < 1.0)[:, None], capital, 0.0)
    return found


def _events(reference: FeatureReference, counts: Sequence[FeatureCounts]) -> Floats:
    """Values below each edge, or of each category, `[counts, events]`."""
    size = reference.bins.size
    bins = np.array([one.bins or [0] * size for one in counts], dtype=float)
    if reference.bins.kind is FeatureKind.NUMBERS:
        return np.cumsum(bins, axis=1)[:, :-1]
    return bins


def _violations(counts: Sequence[FeatureCounts]) -> Floats:
    return np.array(
        [[one.missing, one.non_finite, one.out_of_range, one.not_whole] for one in counts],
        dtype=float,
    )


def _totals(counts: FeatureCounts) -> tuple[int, int, int, int]:
    return counts.rows, counts.rows, counts.valid, counts.valid


def _unknown(reference: FeatureReference, events: int) -> Floats:
    extra = np.zeros(events)
    if reference.bins.kind is not FeatureKind.NUMBERS:
        extra[-1] = reference.single
    return extra


def _highest(seen: float, total: int, alpha: float) -> float:
    """The largest share under which as few as `seen` of `total` have a chance of `alpha`.

    By Chernoff's bound, so never too small.
    """
    if not total or seen >= total:
        return 1.0
    share, needed = seen / total, math.log(1.0 / alpha) / total
    low, high = share, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _divergence(share, middle) < needed:
            low = middle
        else:
            high = middle
    return high


def _divergence(share: float, other: float) -> float:
    """Kullback and Leibler's, of two coins."""
    if other >= 1.0:
        return math.inf
    first = share * math.log(share / other) if share > 0 else 0.0
    rest = (1.0 - share) * math.log((1.0 - share) / (1.0 - other)) if share < 1 else 0.0
    return first + rest
