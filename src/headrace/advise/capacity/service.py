"""How long does a replica take for a batch of so many rows? Of a profile, or given by hand."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from headrace.core import InvalidArgumentError
from headrace.engine.engine import INLINE_LIMIT_ALONE_S, INLINE_LIMIT_S

MOST_ROWS: Final = 128
"""Larger batches are reckoned as if the engine made none: their queue takes too long to solve."""
MOST_RUNS: Final = 1024
_WORTH: Final = 1.05
"""As the engine: a smaller batch is preferred if its time per row is within this factor."""
_UNSURE: Final = 2.0 * math.sqrt(2.0 * 0.2 / 1.8)
"""The engine compares moving averages of weight 0.2; their ratio errs by half as much of a run's
cv. Where the larger batch gains less than twice that, it often makes the smaller one."""
_GAPS: Final = 64
_EDGES: Final = (
    *(i / 40 for i in range(36)),
    *(0.9 + i / 200 for i in range(18)),
    *(0.99 + i / 1000 for i in range(9)),
    *(0.999, 0.9995, 0.9999, 1.0),
)
"""A spread is kept as the means between these quantiles: fine where a p99 is decided."""
_FEW_EDGES: Final = (*(i / 10 for i in range(10)), 0.95, 0.98, 0.99, 0.997, 0.999, 0.9997, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How single runs vary: time over the mean, each with its probability; their mean is 1."""

    ratios: tuple[float, ...] = (1.0,)
    weights: tuple[float, ...] = (1.0,)

    @property
    def squared_cv(self) -> float:
        """Variance over the squared mean."""
        return sum(w * (r - 1.0) ** 2 for r, w in zip(self.ratios, self.weights, strict=True))

    def coarse(self) -> "Spread":
        """The same in fewer parts."""
        return _condensed(np.asarray(self.ratios), np.asarray(self.weights), _FEW_EDGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceCurve:
    """What runs of one replica take.

    `rows`, `mean_s`: ascending, what was measured or said. `max_rows`: that the spec allows in a
    batch. `runs`: at once. `may_inline`: short runs happen on the event loop, one at a time.
    `wake_s`, `request_s`: of the event loop, for each batch and each request in it. `fixed_s`: what
    a caller waits besides.
    """

    rows: tuple[int, ...]
    mean_s: tuple[float, ...]
    spread: Spread = Spread()
    max_rows: int = 32
    runs: int = 1
    may_inline: bool = True
    wake_s: float = 0.0
    request_s: float = 0.0
    fixed_s: float = 0.0

    def run_s(self, rows: int) -> float:
        """Mean seconds of a batch: on a line between two that are known, in proportion beyond."""
        if rows >= self.rows[-1]:
            model_s = self.mean_s[-1] * rows / self.rows[-1]
        else:
            model_s = float(np.interp(rows, self.rows, self.mean_s))
        return model_s + self.wake_s + rows * self.request_s

    @property
    def best_rows(self) -> int:
        """The largest batch that the engine makes: beyond it time per row no longer falls."""
        limit = min(self.max_rows, MOST_ROWS)
        sizes = [1 << i for i in range(limit.bit_length()) if 1 << i <= limit]
        row_s = {size: self._bucket_row_s(size) for size in sizes}
        least = min(row_s.values())
        worth = _WORTH * (1.0 + _UNSURE * math.sqrt(self.spread.squared_cv))
        best = next(size for size in sizes if row_s[size] <= least * worth)
        return limit if best == sizes[-1] else best

    def _bucket_row_s(self, size: int) -> float:
        """Time per row of batches from over half of `size` on: the buckets that the engine has."""
        rows = range(size // 2 + 1, size + 1)
        return sum(self.run_s(k) / k for k in rows) / len(rows)

    @property
    def places(self) -> int:
        """Runs that really happen at once: the event loop does one after the other."""
        limit_s = INLINE_LIMIT_S if self.runs > 1 else INLINE_LIMIT_ALONE_S
        is_inline = self.may_inline and float(np.interp(1, self.rows, self.mean_s)) < limit_s
        return 1 if is_inline else self.runs

    @property
    def capacity(self) -> float:
        """Requests of one row a second that one replica can keep up with."""
        return self.places * self.best_rows / self.run_s(self.best_rows)

    def slower(self, ratio: float) -> "ServiceCurve":
        """The same with every run taking `ratio` times as long."""
        return replace(
            self,
            mean_s=tuple(mean * ratio for mean in self.mean_s),
            wake_s=self.wake_s * ratio,
            request_s=self.request_s * ratio,
            fixed_s=self.fixed_s * ratio,
        )


def curve_by_hand(
    times_s: Mapping[int, float], *, cv: float = 0.0, runs: int = 1, max_rows: int = 0
) -> ServiceCurve:
    """A curve from a few figures.

    Args:
        times_s: Mean seconds of a run by rows.
        cv: Standard deviation over the mean of a run's time; log-normal, as one that is never
            negative and has a tail.
        max_rows: 0 for the largest that is given.

    Raises:
        InvalidArgumentError: A figure makes no sense.
    """
    if not times_s:
        raise InvalidArgumentError("no service time is given; say --service-time 4ms")
    rows = tuple(sorted(times_s))
    mean_s = tuple(times_s[one] for one in rows)
    if rows[0] < 1 or not all(math.isfinite(s) and s > 0.0 for s in mean_s):
        raise InvalidArgumentError("service times are seconds above 0 for batches of 1 row or more")
    if any(after < before for before, after in pairwise(mean_s)):
        msg = "a larger batch cannot take less time than a smaller one; check --service-time"
        raise InvalidArgumentError(msg)
    if not (math.isfinite(cv) and 0.0 <= cv <= 10.0):  # noqa: PLR2004  # beyond, no queue theory helps
        raise InvalidArgumentError(f"a service time's variation (cv) is from 0 to 10, not {cv:g}")
    if not 1 <= runs <= MOST_RUNS:
        raise InvalidArgumentError(f"runs at once are from 1 to {MOST_RUNS}, not {runs}")
    return ServiceCurve(
        rows=rows,
        mean_s=mean_s,
        spread=log_normal(cv),
        max_rows=max_rows or rows[-1],
        runs=runs,
    )


def log_normal(cv: float) -> Spread:
    """A log-normal spread with this coefficient of variation, exact in its mean.

    Means between quantiles by its partial expectation: E[X; X < x] = mean x Phi(z - sigma).
    """
    if cv == 0.0:
        return Spread()
    sigma = math.sqrt(math.log1p(cv * cv))
    normal = NormalDist()
    reached = [0.0, *(normal.cdf(normal.inv_cdf(q) - sigma) for q in _EDGES[1:-1]), 1.0]
    weights = [b - a for a, b in pairwise(_EDGES)]
    shares = [b - a for a, b in pairwise(reached)]
    ratios = [share / weight for share, weight in zip(shares, weights, strict=True)]
    return Spread(ratios=tuple(ratios), weights=tuple(weights))


def spread_of(samples_s: Sequence[float]) -> Spread:
    """The spread of measured times, as means between quantiles."""
    return _condensed(np.asarray(samples_s, dtype=np.float64), np.ones(len(samples_s)), _EDGES)


def spaced(spread: Spread, places: int) -> Spread:
    """How times between the ends of runs vary, where `places` run at once and none knows of others.

    `c` points by chance on a circle: a gap is longer than x with probability (1 - x)^(c - 1)
    (Whitworth, "Choice and Chance", 1897), times how runs themselves vary.
    """
    if places == 1:
        return spread.coarse()
    steps = (np.arange(_GAPS) + 0.5) / _GAPS
    gaps = 1.0 - (1.0 - steps) ** (1.0 / (places - 1))
    gaps /= gaps.mean()
    values = np.outer(spread.ratios, gaps)
    weights = np.outer(spread.weights, np.full(_GAPS, 1.0 / _GAPS))
    return _condensed(values.ravel(), weights.ravel(), _FEW_EDGES)


def _condensed(
    values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], edges: Sequence[float]
) -> Spread:
    """Means between quantiles, over the mean of all."""
    order = np.argsort(values)
    values, weights = values[order], weights[order] / weights.sum()
    mean = float(values @ weights)
    place = np.searchsorted(edges, np.cumsum(weights) - weights / 2.0)
    sums = np.bincount(place, weights * values)
    parts = np.bincount(place, weights)
    some = parts > 0.0
    return Spread(
        ratios=tuple((sums[some] / parts[some] / mean).tolist()),
        weights=tuple(parts[some].tolist()),
    )
