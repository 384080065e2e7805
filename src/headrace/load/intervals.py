"""Confidence intervals of latency quantiles and error ratios of one run. Pure.

Consecutive requests share a queue, so their latencies are correlated and a run carries less
information than as many independent requests. Batch means estimate how much less: the run is cut
into batches, and the variance of their means, times their number, is divided by that of independent
requests (the design effect; Meketon and Schmeiser 1984 for the method, Kish 1965 for the term).
Several batch lengths are tried and the worst one counts. The interval is then that of order
statistics (Woodruff 1952), with the effective number of requests in place of the counted one.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

LEVEL: Final = 0.95
_TAIL: Final = (1 - LEVEL) / 2
_Z: Final = NormalDist().inv_cdf(1 - _TAIL)
_BATCHES: Final = {10: 2.262, 20: 2.093, 40: 2.023}
"""Numbers of batches, with Student's t at 97.5 % for their variance."""
_SMALLEST_BATCH: Final = 2
_FEWEST: Final = 15
"""Effective requests below which there is no interval, as even the longest batches are correlated.
"""
_TAIL_REQUESTS: Final = 100
"""Tail size that suffices to estimate the design effect."""
_NORMAL_ABOVE: Final = 200.0
"""Variance above which a binomial is approximated by a normal distribution."""

Floats = NDArray[np.float64]
Hits = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceInterval:
    """Measured value with its 95 % confidence interval."""

    value: float
    """Measured value; infinite for a quantile that fell on a failed request."""
    low: float | None
    """Lower bound; None if the run is too short for one."""
    high: float | None
    """Upper bound; None if the run is too short for one."""
    effective: float
    """Effective sample size: number of independent requests with the same information."""
    needed: int = 0
    """Requests that such a run needs for both bounds; 0 if it had enough."""

    @property
    def is_known(self) -> bool:
        """Whether both bounds are known."""
        return self.low is not None and self.high is not None


def design_effect(hits: Hits) -> float:
    """Return the variance of a share over that of independent requests, at least 1.

    Args:
        hits: Whether each request counts for the share, in order of time.
    """
    n = len(hits)
    share = float(np.mean(hits)) if n else 0.0
    alone = share * (1 - share)
    if alone == 0.0:
        return 1.0
    worst = 1.0
    for batches, t in _BATCHES.items():
        size = n // batches
        if size < _SMALLEST_BATCH:
            continue
        means = hits[: size * batches].reshape(batches, size).mean(axis=1)
        together = float(np.var(means, ddof=1)) * size
        worst = max(worst, together / alone * (t / _Z) ** 2)
    return min(worst, float(n))


def quantile_interval(values: Floats, quantile: float) -> ConfidenceInterval | None:
    """Return a latency quantile with its bounds; None without values.

    Args:
        values: In order of time; infinite for requests that failed.
        quantile: Above 0, below 1.
    """
    n = len(values)
    if not n:
        return None
    ranked = np.sort(values)
    rank = min(max(math.ceil(quantile * n) - 1, 0), n - 1)
    measured = float(ranked[rank])
    # A tail of few requests may look independent by chance when an interval first becomes possible,
    # so the effect on a longer tail counts too.
    beyond = n - rank
    longer = float(ranked[max(n - min(max(beyond, _TAIL_REQUESTS), 10 * beyond), 0)])
    effect = max(design_effect(values >= measured), design_effect(values >= longer))
    effective = n / effect
    above = tail_bounds(int(effective), 1 - quantile) if effective >= _FEWEST else None
    low = high = None
    if above is not None:
        fewest, maximum = above
        if fewest is not None:
            high = float(ranked[n - 1 - min(math.floor(fewest * effect), n - 1)])
        if maximum is not None:
            low = float(ranked[max(n - 1 - math.ceil(maximum * effect), 0)])
    needed = 0 if high is not None and low is not None else least_requests(quantile, effect)
    return ConfidenceInterval(
        value=measured, low=low, high=high, effective=effective, needed=needed
    )


def least_requests(quantile: float, effect: float = 1.0) -> int:
    """Return the number of requests that a quantile with two bounds needs.

    Fewer independent ones may all lie on one side of it by chance. Rounding up must not give a
    number that the run already had.
    """
    side = max(quantile, 1 - quantile)
    return math.ceil((math.ceil(math.log(_TAIL) / math.log(side)) + 1) * effect)


def tail_bounds(trials: int, chance: float) -> tuple[int | None, int | None] | None:
    """Return the 95 % range of a binomial, as ranks from the top.

    Returns:
        The largest `j` with P(count <= j) <= 2.5 %, and the smallest `k` with
        P(count > k) <= 2.5 %; None for one that no count reaches. None for no trials.
    """
    if trials < 1:
        return None
    mean, variance = trials * chance, trials * chance * (1 - chance)
    if variance > _NORMAL_ABOVE:
        half = _Z * math.sqrt(variance)
        return math.floor(mean - half - 0.5), math.ceil(mean + half + 0.5)
    log_chance, log_other = math.log(chance), math.log1p(-chance)
    fewest: int | None = None
    below = 0.0
    for count in range(trials + 1):
        below += math.exp(
            math.lgamma(trials + 1)
            - math.lgamma(count + 1)
            - math.lgamma(trials - count + 1)
            + count * log_chance
            + (trials - count) * log_other
        )
        if below <= _TAIL:
            fewest = count
        if below >= 1 - _TAIL:
            return fewest, (count if count < trials else None)
    return fewest, None


def wilson_interval(hits: Hits) -> ConfidenceInterval | None:
    """Return a share with Wilson's bounds (1927) for the effective sample; None without requests.

    Args:
        hits: In order of time.
    """
    n = len(hits)
    if not n:
        return None
    effective = n / design_effect(hits)
    share = float(np.mean(hits))
    scale = 1 + _Z**2 / effective
    centre = (share + _Z**2 / (2 * effective)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / effective + (_Z / (2 * effective)) ** 2)
    return ConfidenceInterval(
        value=share,
        low=max(centre - half, 0.0) if share > 0 else 0.0,
        high=min(centre + half, 1.0) if share < 1 else 1.0,
        effective=effective,
    )
