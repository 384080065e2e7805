"""Ratio of a latency quantile on the candidate to the same quantile on the baseline.

For a factor `f`: if the candidate were exactly `f` times as slow, its requests would exceed `f *
tau` as often as the baseline's exceed `tau`, for any `tau`. So each factor is a difference of two
rates (`rate_difference`), tested against 0, with `tau` near the baseline's quantile. `tau` is
chosen before each interval from the preceding intervals, which the bets allow; with `f` = 1 and
equal versions the test is exact, however latency varies over time.

Histograms contain counts at bucket edges only, so `tau` is an edge; `f * tau` falls within a
bucket, which is counted conservatively: as slow in the test of "not slower than f times", as fast
in the test of "slower". For the former, `tau` is chosen among edges near the quantile so that the
loss is small. The tolerance is one more such comparison, with `reach` in place of `f * tau`: the
larger of a factor and of an addition of seconds, whatever the current quantile is.

If no request of the baseline takes longer than the bucket that holds its quantile (a constant
service time), nothing exceeds `tau` on either arm and no evidence ever accumulates. So there is a
second way: if the baseline exceeds an edge `low` more often than its quantile allows, its quantile
is above `low`; if the candidate exceeds `reach(low)` less often, its quantile is below
`reach(low)`, which is tolerated. If it were not, one of both statements would be wrong, and so the
smaller of both capitals does not grow in expectation, as long as the same one is wrong all the
time. A fifth of the capital for "tolerated" is used this way.

At a cliff, where hardly any request of the tail lies between an edge and its tolerance, the
quantile may be on either side by chance, and its ratio is meaningless: with 0.9 % of requests in a
slow mode p99 is that of the fast mode, with 1.3 % that of the slow mode. There the shares of
requests beyond the cliff are compared: `CLIFF_MARGIN` of the quantile's tail is tolerated. If the
baseline's quantile is in the slow mode, its ratio must be within the tolerance as well.

Exceedances are used instead of whole distributions because the uniform band (Howard and Ramdas,
Bernoulli 2022, arXiv 1906.09712) is far too wide for a tail; Lindon, Sanden and Shirikian (KDD
2022, arXiv 2205.14762) use it for the shape.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.rollout.bernoulli import Rate
from headrace.rollout.betting import Array
from headrace.rollout.change_detector import ChangeDetector
from headrace.rollout.rate_difference import RateDifferences
from headrace.rollout.readings import ONE_SECOND, Buckets, When

_Arm: TypeAlias = tuple[Array, Array]

MEDIAN: Final = 0.5
"""Quantile that is judged beside any other: a general slowdown shows there first."""
FACTORS: Final = np.array([0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0])
"""Factors that the ratio is compared with."""
_NEAR: Final = (0.5, 2.0)
_STRAY_COST: Final = 0.02
WINDOW_TAILS: Final = 20.0
"""Window of requests from which the threshold is chosen: at least twenty of them beyond the
quantile."""
_MIN_TAILS: Final = 2.0
_ROUND: Final = 1e-6
_LOW_TAILS: Final = 3.0
_BOUNDED_PART: Final = 0.2
CLIFF_MARGIN: Final = 0.25
"""Tolerated increase of the share of requests beyond a cliff, in tails of the quantile."""
_CLIFF_NEAR: Final = (0.3, 1.25)
_CLIFF_MASS: Final = 0.1
"""Maximum part of the tail within 1.25 times an edge at a cliff. A smooth tail has more: a quarter,
for a log-normal of spread 2."""
_CLIFF_QUANTILE: Final = 0.9
"""Minimum quantile for cliffs: below it, requests around a quantile are no tail, and few of them
near an edge are no gap."""
_CLIFF_TAILS: Final = 2.0
_DOUBT: Final = 2.0
"""Standard errors of uncertainty of the share beyond a cliff."""


class LatencyMargin(msgspec.Struct, frozen=True):
    """Tolerated latency quantile of the candidate: the larger of `ratio` times and `seconds` more.

    Without both, the baseline's quantile is the limit.
    """

    ratio: float = 1.0
    seconds: float = 0.0

    def __call__(self, latency_s: Array) -> Array:
        """Return the tolerated latency for these latencies of the baseline, same shape."""
        result: Array = np.maximum(self.ratio * latency_s, latency_s + self.seconds)
        return result

    def factor(self, latency_s: float) -> float:
        """Return the tolerated latency as a factor."""
        return max(self.ratio, 1.0 + self.seconds / latency_s) if latency_s > 0.0 else self.ratio


class LatencyBuckets(msgspec.Struct):
    """Request counts of buckets `lower < latency <= upper`; ascending, in seconds."""

    lower: Array
    upper: Array
    counts: Array

    @classmethod
    def empty(cls) -> "LatencyBuckets":
        """Return buckets without counts."""
        return cls(np.zeros(0), np.zeros(0), np.zeros(0))

    @classmethod
    def of(cls, latency: Buckets) -> "LatencyBuckets":
        """Return the buckets of one reading."""
        edges = np.array(list(latency), float).reshape(-1, 2)
        return cls(edges[:, 0], edges.sum(axis=1), np.array(list(latency.values()), float))

    @property
    def total(self) -> float:
        """Return the number of all requests."""
        return float(self.counts.sum())

    def merged(self, other: "LatencyBuckets", *, keep: float = 1.0) -> "LatencyBuckets":
        """Return the sum, with this one's counts times `keep`. Equal lower edges are one bucket."""
        lower = np.concatenate([self.lower, other.lower])
        if not lower.size:
            return self
        keys, first, bucket = np.unique(np.round(lower, 9), return_index=True, return_inverse=True)
        upper = np.concatenate([self.upper, other.upper])
        counts = np.zeros(len(keys))
        np.add.at(counts, bucket, np.concatenate([self.counts * keep, other.counts]))
        return LatencyBuckets(lower[first], upper[first], counts)

    def above(self, thresholds: Array, *, whole: bool) -> Array:
        """Return the requests above each threshold; a bucket across it counts if `whole`."""
        edges = self.upper if whole else self.lower
        sign = 1.0 if whole else -1.0
        # An edge that equals the threshold except for rounding counts as below it as an upper edge,
        # and as above it as a lower edge: either way the count is exact.
        over = edges[None, :] > thresholds[:, None] * (1.0 + sign * _ROUND)
        return np.asarray(over @ self.counts)

    def quantile(self, quantile: float) -> float | None:
        """Return the seconds that this share of the requests did not exceed; linear in a bucket."""
        if self.total <= 0.0:
            return None
        up_to = np.cumsum(self.counts)
        rank = quantile * up_to[-1]
        index = min(int(np.searchsorted(up_to, rank * (1 - _ROUND))), len(up_to) - 1)
        inside = (rank - (up_to[index] - self.counts[index])) / max(self.counts[index], 1e-12)
        return float(self.lower[index] + inside * (self.upper[index] - self.lower[index]))


def threshold_named(counts: Array, quantile: float) -> NDArray[np.bool_]:
    """Whether each row of counts `[rows, buckets]` suffices for its quantile, `[rows]`."""
    named: NDArray[np.bool_] = counts.sum(axis=-1) * (1.0 - quantile) >= _MIN_TAILS
    return named


def thresholds_near(
    upper: Array, counts: Array, *, quantile: float, reaches: Sequence[Callable[[Array], Array]]
) -> list[Array]:
    """Return edges near each row's quantile whose reach is slightly below another edge.

    Args:
        upper: Upper edges, ascending, `[buckets]`.
        counts: Requests by bucket, `[rows, buckets]`.
        quantile: 0 to 1.
        reaches: The identity gives the edge next to the quantile. Buckets are taken to have two
            significant digits; if they have not, the result is only a worse choice.

    Returns:
        For each of `reaches` the rows' edges in seconds, `[rows]`.
    """
    total = counts.sum(axis=-1, keepdims=True)
    tail = (total - np.cumsum(counts, axis=-1)) / ((1.0 - quantile) * np.maximum(total, 1e-12))
    near = (tail >= _NEAR[0]) & (tail <= _NEAR[1]) & (counts > 0.0)
    columns = np.flatnonzero(near.any(axis=0))
    # If no edge is near (few, wide buckets), the first one past the quantile.
    past = upper[np.argmax(tail <= 1.0 + _ROUND, axis=-1)]
    if not columns.size:
        return [past for _ in reaches]
    beyond = np.where(
        near[:, columns],
        _STRAY_COST * np.abs(np.log(np.maximum(tail[:, columns], 1e-12))),
        np.inf,
    )
    is_near = near.any(axis=-1)
    edges = []
    for reach in reaches:
        best = np.argmin(beyond + _slack(reach(upper[columns])), axis=-1)
        edges.append(np.where(is_near, upper[columns][best], past))
    return edges


def cliffs(
    edges: tuple[Array, Array],
    counts: Array,
    *,
    quantile: float,
    reach: Callable[[Array], Array],
) -> tuple[Array, Array]:
    """Return the edge near each row's quantile with the fewest requests within its tolerance.

    Args:
        edges: Lower and upper edges, ascending, `[buckets]`; buckets may be missing.
        counts: Requests by bucket, `[rows, buckets]`.
        quantile: 0 to 1.
        reach: Function from a latency to its tolerance.

    Returns:
        The edges in seconds, `[rows]`, and which part of the quantile's tail is beyond each, a
        number about 1, `[rows]`; NaN where it is no cliff, or there are too few requests to say so.
    """
    lower, upper = edges
    share = (1.0 - quantile) * np.maximum(counts.sum(axis=-1, keepdims=True), 1e-12)
    above = np.cumsum(counts[:, ::-1], axis=-1)[:, ::-1]
    above = np.append(above, np.zeros((len(counts), 1)), axis=-1)
    beyond = above[:, 1:]
    between = beyond - above[:, np.searchsorted(lower, reach(upper) * (1.0 - _ROUND))]
    tails = beyond / share
    maximum = _CLIFF_NEAR[1] + _DOUBT / np.sqrt(np.maximum(share, 1.0))
    near = (tails >= _CLIFF_NEAR[0]) & (tails <= maximum)
    mass = np.where(near, between / np.maximum(beyond, 1e-12), np.inf)
    index = np.argmin(mass, axis=-1)
    rows = np.arange(len(counts))
    is_cliff = (mass[rows, index] <= _CLIFF_MASS) & (share[:, 0] >= _CLIFF_TAILS)
    is_cliff &= quantile >= _CLIFF_QUANTILE
    return upper[index], np.where(is_cliff, tails[rows, index], np.nan)


def cliff_margin(quantile: float) -> float:
    """Return the tolerated increase of the share of requests beyond a cliff on the candidate."""
    return CLIFF_MARGIN * (1.0 - quantile)


def threshold_well_below(lower: Array, counts: Array, *, quantile: float) -> Array:
    """Return the highest lower edge that clearly more requests exceed than the quantile's share.

    Args:
        lower: Lower edges, ascending, `[buckets]`.
        counts: Requests by bucket, `[rows, buckets]`.
        quantile: 0 to 1.
    """
    share = 1.0 - quantile
    minimum = min(_LOW_TAILS * share, (1.0 + share) / 2.0) * counts.sum(axis=-1, keepdims=True)
    exceeding = np.cumsum(counts[:, ::-1], axis=-1)[:, ::-1]
    enough = exceeding >= minimum * (1.0 - _ROUND)
    return np.asarray(lower[len(lower) - 1 - np.argmax(enough[:, ::-1], axis=-1)])


def tolerated_evidence(near: Array, over_low: Array, under_reach: Array) -> Array:
    """Return the log evidence that the candidate is within the tolerance, `[tests]`.

    Args:
        near: Evidence of the differences near the quantile.
        over_low: Evidence that the baseline's quantile is above an edge.
        under_reach: Evidence that the candidate's is below the edge's reach.
    """
    bounded = np.minimum(over_low, under_reach)
    both: Array = np.logaddexp(np.log1p(-_BOUNDED_PART) + near, np.log(_BOUNDED_PART) + bounded)
    return both


def _slack(edges: Array) -> Array:
    """Return the relative distance of each value to the next number of two digits."""
    edges = np.maximum(edges, 1e-9)
    unit = 10.0 ** (np.floor(np.log10(edges * (1 + _ROUND))) - 1.0)
    slack: Array = np.maximum(np.ceil(edges / unit * (1 - _ROUND)) * unit / edges - 1.0, 0.0)
    return slack


class LatencyRatios(msgspec.Struct):
    """Tests of one quantile's ratio against each factor from both sides, and of the tolerance.

    `recent`: the baseline's latest requests, from which `tau` is chosen. `slower` and `faster`: by
    factor, and last against `reach`, whether the candidate is slower, or faster, than that. `turn`:
    whether it has become slower than `reach`. `over_low` and `over_reach`: how often the baseline
    exceeded an edge well below its quantile, and the candidate that edge's reach. `beyond`: the
    share beyond the cliff, with a bucket across its reach counted as below, and as above.
    """

    quantile: float
    reach: LatencyMargin
    recent: LatencyBuckets
    baseline: LatencyBuckets
    candidate: LatencyBuckets
    slower: RateDifferences
    faster: RateDifferences
    turn: ChangeDetector
    over_low: Rate
    over_reach: Rate
    beyond: RateDifferences
    step: int = 0

    @classmethod
    def start(cls, quantile: float, reach: LatencyMargin) -> "LatencyRatios":
        """Return the state without counts."""
        tests, centre = len(FACTORS) + 1, round(10 * (1.0 - quantile))
        return cls(
            quantile=quantile,
            reach=reach,
            recent=LatencyBuckets.empty(),
            baseline=LatencyBuckets.empty(),
            candidate=LatencyBuckets.empty(),
            slower=RateDifferences.start(tests, centre=centre, watched=0.0),
            faster=RateDifferences.start(tests, centre=centre),
            turn=ChangeDetector.start(1, 0.0),
            over_low=Rate(),
            over_reach=Rate(),
            beyond=RateDifferences.start(2, centre=centre, watched=cliff_margin(quantile)),
        )

    def add(
        self,
        share: float,
        baseline: Buckets,
        candidate: Buckets,
        when: When = ONE_SECOND,
    ) -> None:
        """Count one interval."""
        if when.step != self.step:
            self.step, self.over_low, self.over_reach = when.step, Rate(), Rate()
        a, b = LatencyBuckets.of(baseline), LatencyBuckets.of(candidate)
        counts = self.recent.counts[None, :]
        if threshold_named(counts, self.quantile)[0]:
            near, near_reach = thresholds_near(
                self.recent.upper,
                counts,
                quantile=self.quantile,
                reaches=(LatencyMargin(), self.reach),
            )
            over_b, over_a = self._over((a, b), near, whole=False)
            self.slower.add(share, over_b, over_a, when)
            self.turn.part = self.slower.parts[-1:]
            turn_b, turn_a = ((over[-1:], total[-1:]) for over, total in (over_b, over_a))
            self.turn.add(share, turn_b, turn_a, when)
            self.faster.add(share, *self._over((a, b), near_reach, whole=True), when)
            low = threshold_well_below(self.recent.lower, counts, quantile=self.quantile)
            self.over_low.add(float(a.above(low, whole=False)[0]), a.total)
            self.over_reach.add(float(b.above(self.reach(low), whole=True)[0]), b.total)
            edge, tail = self.cliff
            if not math.isnan(tail):
                beyond_b = [b.above(self.reach(edge), whole=whole)[0] for whole in (False, True)]
                beyond_a = [a.above(edge, whole=whole)[0] for whole in (True, False)]
                self.beyond.add(
                    share,
                    (np.array(beyond_b), np.full(2, b.total)),
                    (np.array(beyond_a), np.full(2, a.total)),
                    when,
                )
        fades = self.recent.total > WINDOW_TAILS / (1.0 - self.quantile)
        self.recent = self.recent.merged(a, keep=0.5 if fades else 1.0)
        self.baseline, self.candidate = self.baseline.merged(a), self.candidate.merged(b)

    @property
    def cliff(self) -> tuple[Array, float]:
        """Return the edge with the widest gap above it near the baseline's quantile."""
        edge, tail = cliffs(
            (self.baseline.lower, self.baseline.upper),
            self.baseline.counts[None, :],
            quantile=self.quantile,
            reach=self.reach,
        )
        return edge, float(tail[0])

    def bounds(
        self, level_low: float, level_high: float, *, margin: float
    ) -> tuple[float | None, float | None]:
        """Return the largest factor that the ratio exceeds, and the smallest that it stays below.

        Both are among the factors, or are `margin`, which is the current value of `reach` as a
        factor. The second is of the current step.
        """
        factors = np.append(FACTORS, margin)
        slower = self.slower.log_evidence(0.0, above=True) >= -np.log(level_low)
        faster = self.faster.log_evidence(0.0, above=False, step=self.step) >= -np.log(level_high)
        faster[-1] = self.log_evidence_of_tolerance() >= -np.log(level_high)
        low = float(factors[slower].max()) if slower.any() else None
        high = float(factors[faster].min()) if faster.any() else None
        if low is not None and high is not None:
            low = min(low, high)
        return low, high

    def weigh(self, part: float) -> None:
        """Count each request as this part of an independent observation (`RateDifferences`)."""
        for tests in (self.slower, self.faster, self.beyond):
            tests.part = part
        self.over_low.part = self.over_reach.part = float(self.faster.parts[-1])

    def log_evidence_of_harm(self) -> float:
        """Return the log evidence of the whole rollout that it is slower than tolerated."""
        return float(self.slower.log_evidence_of_harm()[-1])

    def log_evidence_of_tolerance(self) -> float:
        """Return the current step's evidence that it is not slower; see `tolerated_evidence`."""
        share = 1.0 - self.quantile
        evidence = tolerated_evidence(
            self.faster.log_evidence(0.0, above=False, step=self.step)[-1:],
            self.over_low.log_evidence(share, above=True),
            self.over_reach.log_evidence(share, above=False),
        )
        return float(evidence[0])

    def _over(
        self, arms: tuple[LatencyBuckets, LatencyBuckets], tau: Array, *, whole: bool
    ) -> tuple[_Arm, _Arm]:
        """Return requests above `tau` (on the candidate above its reach) and all requests."""
        a, b = arms
        over_b = b.above(np.append(FACTORS * tau, self.reach(tau)), whole=whole)
        over_a = np.full_like(over_b, a.above(tau, whole=not whole)[0])
        return (over_b, np.full_like(over_b, b.total)), (over_a, np.full_like(over_a, a.total))
