"""How many times as long is a latency quantile on the candidate as on the baseline?

For a factor `f`: if the candidate were exactly `f` times as slow, its requests would exceed
`f * tau` as often as the baseline's exceed `tau`, for any `tau`. So each factor is a difference of
two rates (`rate_difference`), tested against 0, with `tau` near the baseline's quantile. `tau` is
chosen anew before each interval from the intervals before it, which is what the bets allow; with
`f` = 1 and equal versions the test is exact, whatever latency itself does over time.

Histograms know counts at bucket edges only, so `tau` is an edge; `f * tau` falls within a bucket,
which is counted against whatever is to be shown: as slow when "not slower than f times" is to be
shown, as fast when "slower" is. For the former `tau` is picked among edges near the quantile so
that little is lost. Exceedance instead of whole distributions because the uniform band (Howard and
Ramdas, Bernoulli 2022, arXiv 1906.09712) is far too wide for a tail; Lindon, Sanden and Shirikian
(KDD 2022, arXiv 2205.14762) use it for the shape.
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.rollout.betting import Array
from headrace.rollout.rate_difference import RateDifferences
from headrace.rollout.readings import LatencyCounts
from headrace.rollout.turn import Turn

_Arm: TypeAlias = tuple[Array, Array]

_FACTORS: Final = (0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0)
_NEAR: Final = (0.5, 2.0)
_STRAY_COST: Final = 0.02
WINDOW_TAILS: Final = 20.0
"""The threshold is chosen from the latest requests, twenty of them beyond the quantile or more."""
_LEAST_TAILS: Final = 2.0
_ROUND: Final = 1e-6


class Histogram(msgspec.Struct):
    """Buckets `lower < latency <= upper` with how many requests each had; ascending, seconds."""

    lower: Array
    upper: Array
    counts: Array

    @classmethod
    def empty(cls) -> "Histogram":
        """Nothing counted yet."""
        return cls(np.zeros(0), np.zeros(0), np.zeros(0))

    @classmethod
    def of(cls, latency: LatencyCounts) -> "Histogram":
        """One reading."""
        lower = np.asarray(latency.lower_s, float)
        upper = lower + np.asarray(latency.width_s, float)
        return cls(lower, upper, np.asarray(latency.counts, float))

    @property
    def total(self) -> float:
        """All requests."""
        return float(self.counts.sum())

    def merged(self, other: "Histogram", *, keep: float = 1.0) -> "Histogram":
        """Both together, this one's counts times `keep`. Equal lower edges are one bucket."""
        lower = np.concatenate([self.lower, other.lower])
        if not lower.size:
            return self
        keys, first, place = np.unique(np.round(lower, 9), return_index=True, return_inverse=True)
        upper = np.concatenate([self.upper, other.upper])
        counts = np.zeros(len(keys))
        np.add.at(counts, place, np.concatenate([self.counts * keep, other.counts]))
        return Histogram(lower[first], upper[first], counts)

    def above(self, thresholds: Array, *, whole: bool) -> Array:
        """How many took longer than each threshold; a bucket across it counts if `whole`."""
        edges = self.upper if whole else self.lower
        sign = 1.0 if whole else -1.0
        # An edge that equals the threshold but for rounding is below it as an upper one, and above
        # it as a lower one: either way the count is exact.
        over = edges[None, :] > thresholds[:, None] * (1.0 + sign * _ROUND)
        return np.asarray(over @ self.counts)

    def quantile(self, quantile: float) -> float | None:
        """Seconds that this share of the requests did not exceed, straight within a bucket."""
        if self.total <= 0.0:
            return None
        up_to = np.cumsum(self.counts)
        wanted = quantile * up_to[-1]
        at = min(int(np.searchsorted(up_to, wanted * (1 - _ROUND))), len(up_to) - 1)
        inside = (wanted - (up_to[at] - self.counts[at])) / max(self.counts[at], 1e-12)
        return float(self.lower[at] + inside * (self.upper[at] - self.lower[at]))


def threshold_named(counts: Array, quantile: float) -> NDArray[np.bool_]:
    """Whether each row of counts `[rows, buckets]` has enough to tell its quantile, `[rows]`."""
    named: NDArray[np.bool_] = counts.sum(axis=-1) * (1.0 - quantile) >= _LEAST_TAILS
    return named


def thresholds_near(
    upper: Array, counts: Array, *, quantile: float, factors: Sequence[float]
) -> list[Array]:
    """Edges near each row's quantile, such that `factor` times the edge is little below an edge.

    Args:
        upper: Upper edges, ascending, `[buckets]`.
        counts: Requests by bucket, `[rows, buckets]`.
        quantile: 0 to 1.
        factors: 1 gives the edge next to the quantile. Buckets are taken to have two significant
            digits; if they have not, the result is only a worse choice.

    Returns:
        For each factor the rows' edges in seconds, `[rows]`.
    """
    total = counts.sum(axis=-1, keepdims=True)
    tail = (total - np.cumsum(counts, axis=-1)) / ((1.0 - quantile) * np.maximum(total, 1e-12))
    near = (tail >= _NEAR[0]) & (tail <= _NEAR[1]) & (counts > 0.0)
    columns = np.flatnonzero(near.any(axis=0))
    # Where no edge is near (few, wide buckets), the first one past the quantile.
    past = upper[np.argmax(tail <= 1.0 + _ROUND, axis=-1)]
    if not columns.size:
        return [past for _ in factors]
    stray = np.where(
        near[:, columns],
        _STRAY_COST * np.abs(np.log(np.maximum(tail[:, columns], 1e-12))),
        np.inf,
    )
    is_near = near.any(axis=-1)
    found = []
    for factor in factors:
        best = np.argmin(stray + _slack(factor * upper[columns]), axis=-1)
        found.append(np.where(is_near, upper[columns][best], past))
    return found


def _slack(edges: Array) -> Array:
    """By which part each value is below the next number of two digits."""
    edges = np.maximum(edges, 1e-9)
    unit = 10.0 ** (np.floor(np.log10(edges * (1 + _ROUND))) - 1.0)
    slack: Array = np.maximum(np.ceil(edges / unit * (1 - _ROUND)) * unit / edges - 1.0, 0.0)
    return slack


class LatencyRatios(msgspec.Struct):
    """The ratio of one quantile, tested against each factor from both sides.

    `recent`: the baseline's latest requests, from which `tau` is chosen. `slower` and `faster`:
    by factor, whether the candidate is slower, or faster, than that many times. `turn`: whether it
    has become slower than the margin.
    """

    quantile: float
    margin: float
    recent: Histogram
    baseline: Histogram
    candidate: Histogram
    slower: RateDifferences
    faster: RateDifferences
    turn: Turn

    @classmethod
    def start(cls, quantile: float, margin: float) -> "LatencyRatios":
        """Nothing counted yet; `margin` is one of the factors."""
        tests, centre = len(factors(margin)), round(10 * (1.0 - quantile))
        return cls(
            quantile=quantile,
            margin=margin,
            recent=Histogram.empty(),
            baseline=Histogram.empty(),
            candidate=Histogram.empty(),
            slower=RateDifferences.start(tests, centre=centre),
            faster=RateDifferences.start(tests, centre=centre),
            turn=Turn.start(1, 0.0),
        )

    def add(
        self,
        share: float,
        baseline: LatencyCounts,
        candidate: LatencyCounts,
        *,
        duration_s: float = 1.0,
    ) -> None:
        """Count one interval."""
        a, b = Histogram.of(baseline), Histogram.of(candidate)
        counts = self.recent.counts[None, :]
        if threshold_named(counts, self.quantile)[0]:
            taus = thresholds_near(
                self.recent.upper, counts, quantile=self.quantile, factors=(1.0, self.margin)
            )
            over_b, over_a = self._over((a, b), float(taus[0][0]), whole=False)
            self.slower.add(share, over_b, over_a)
            at_margin = factors(self.margin).index(self.margin)
            one_b, one_a = (
                (over[[at_margin]], total[[at_margin]]) for over, total in (over_b, over_a)
            )
            self.turn.add(share, one_b, one_a, duration_s=duration_s)
            self.faster.add(share, *self._over((a, b), float(taus[1][0]), whole=True))
        fades = self.recent.total > WINDOW_TAILS / (1.0 - self.quantile)
        self.recent = self.recent.merged(a, keep=0.5 if fades else 1.0)
        self.baseline, self.candidate = self.baseline.merged(a), self.candidate.merged(b)

    def refuted(self, level_low: float, level_high: float) -> tuple[float | None, float | None]:
        """The largest factor that the ratio exceeds, and the smallest that it stays below."""
        all_factors = np.array(factors(self.margin))
        slower = self.slower.log_evidence(0.0, above=True) >= -np.log(level_low)
        faster = self.faster.log_evidence(0.0, above=False) >= -np.log(level_high)
        low = float(all_factors[slower].max()) if slower.any() else None
        high = float(all_factors[faster].min()) if faster.any() else None
        return low, high

    def _over(
        self, arms: tuple[Histogram, Histogram], tau: float, *, whole: bool
    ) -> tuple[_Arm, _Arm]:
        """Who took longer than `tau`, or on the candidate than each factor of it, of how many."""
        a, b = arms
        over_b = b.above(tau * np.array(factors(self.margin)), whole=whole)
        over_a = np.full_like(over_b, a.above(np.array([tau]), whole=not whole)[0])
        return (over_b, np.full_like(over_b, b.total)), (over_a, np.full_like(over_a, a.total))


def factors(margin: float) -> tuple[float, ...]:
    """The factors that are tested: round ones, and the margin."""
    return tuple(sorted({*_FACTORS, margin}))
