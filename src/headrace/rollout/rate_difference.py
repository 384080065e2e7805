"""Difference of two rates, with the design effect of requests that fail together.

The bets of `rate_difference` take requests as independent given the past. Stalls and slow noise
affect one arm's requests in clusters, so sums over intervals vary more than those of independent
requests. The factor is estimated from squared differences of successive sums (von Neumann 1941,
"Distribution of the ratio of the mean square successive difference to the variance"), over blocks
of several lengths (batch means). A lasting difference between the arms does not affect them, and a
version that deteriorates once affects at most two of them, so the two largest are left out.

Each request then counts as one part in `factor`. Capital to a power below 1 reaches a bound of at
least 1 only if the capital itself does (Jensen), so a factor that was estimated from the same data
costs power: a level of 1 in c becomes one of 1 in c - 1 at most (Bernoulli's inequality).

Each request goes to the candidate with a known probability, the share in force. Weighting the
outcome (`yes` is 1, `no` is 0) by the inverse of that probability,

    D = (X - centre) * (1{candidate} / share - 1{baseline} / (1 - share)),

gives a value whose mean, given all earlier data, is exactly the difference of both arms'
probabilities at that moment, *however the base rate varies over time*: an incident, a busy hour or
a client that sends invalid requests affects both arms equally. At a difference of 0 and a centre of
0 this is the test of Lindon and Malek (NeurIPS 2022, arXiv 2011.03567): given that a request
failed, it belongs to an arm with that arm's share of the traffic. `centre` is any number known
before the request (the recent share of `yes`, rounded); it changes no mean and reduces variance.

When the share or the rollout's step changes, counts go to a new stratum. Over several strata the
capitals multiply; a test of one step uses that step's strata alone. The bets are those of
`betting`, so everything is exact at any sample size.
"""

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.rollout.bernoulli import Forgiven
from headrace.rollout.betting import (
    STAKES,
    Array,
    log_growth,
    mixture,
    refuted_down_to,
    refuted_up_to,
)
from headrace.rollout.readings import ONE_SECOND, When

_BLOCKS: Final = np.array([1.0, 8.0])
"""Block lengths in intervals."""
_PRIOR_BLOCKS: Final = 20.0
"""Assumed number of blocks of independent requests before the first one."""
_LEFT_OUT: Final = 2


class Dispersion(msgspec.Struct):
    """Running estimate of the design effects of several tests."""

    open: Array
    """Sums of the current and the last block, `[lengths, tests]`; `open_expected` is the variance
    of the current one for independent requests."""
    open_expected: Array
    size: Array
    """Number of intervals of the current block."""
    closed: Array
    """See `open`."""
    observed: Array
    """Sum over the `pairs` of successive blocks."""
    expected: Array
    """Sum over the `pairs` of successive blocks."""
    pairs: Array
    largest: Array
    """Two largest observed values, `[lengths, tests, 2]`."""

    @classmethod
    def start(cls, tests: int) -> "Dispersion":
        """Return the state without counts."""
        zeros = np.zeros((len(_BLOCKS), tests))
        return cls(
            open=zeros,
            open_expected=zeros,
            size=zeros,
            closed=np.full_like(zeros, np.nan),
            observed=zeros,
            expected=zeros,
            pairs=zeros,
            largest=np.zeros((*zeros.shape, _LEFT_OUT)),
        )

    def add(self, sums: Array, expected: Array) -> None:
        """Count one interval.

        Args:
            sums: Sums over the requests of the interval, `[tests]`.
            expected: The sum of their squares, `[tests]`; 0 counts as no interval.
        """
        counts = expected > 0.0
        self.open = self.open + sums
        self.open_expected = self.open_expected + expected
        self.size = self.size + counts
        full = self.size >= _BLOCKS[:, None]
        paired = full & ~np.isnan(self.closed)
        step = np.where(paired, self.open - np.nan_to_num(self.closed), 0.0)
        square = step**2 / 2.0
        self.observed = self.observed + square
        ranked = np.sort(np.concatenate([self.largest, square[..., None]], axis=-1), axis=-1)
        self.largest = ranked[..., 1:]
        self.expected = self.expected + np.where(paired, self.open_expected, 0.0)
        self.pairs = self.pairs + paired
        self.closed = np.where(full, self.open, self.closed)
        self.open = np.where(full, 0.0, self.open)
        self.open_expected = np.where(full, 0.0, self.open_expected)
        self.size = np.where(full, 0.0, self.size)

    def restart(self, tests: NDArray[np.bool_]) -> None:
        """Do not pair earlier blocks with later ones: another share has other sums."""
        self.open = np.where(tests, 0.0, self.open)
        self.open_expected = np.where(tests, 0.0, self.open_expected)
        self.size = np.where(tests, 0.0, self.size)
        self.closed = np.where(tests, np.nan, self.closed)

    def append(self, like: int) -> None:
        """Add a test with the history of the test `like`."""
        for name in self.__struct_fields__:
            values: Array = getattr(self, name)
            setattr(self, name, np.concatenate([values, values[:, [like]]], axis=1))

    @property
    def factor(self) -> Array:
        """Return the number of requests that count as one, at least 1, `[tests]`."""
        observed = self.observed - self.largest.sum(axis=-1)
        ratio = observed / np.maximum(self.expected, 1e-300)
        estimate = (_PRIOR_BLOCKS + self.pairs * ratio) / (_PRIOR_BLOCKS + self.pairs)
        result: Array = np.maximum(estimate, 1.0).max(axis=0)
        return result


CELLS: Final = 4
"""Number of cells: candidate yes, candidate no, baseline yes, baseline no."""
_FORGETS: Final = 0.97
_PRIOR_TRIALS: Final = 10.0
_SHARE_DIGITS: Final = 12
_CENTRES: Final = 10


class Stratum(msgspec.Struct):
    """Counts under one share and one centre (in tenths) in one step, `[tests, cells]`."""

    share: float
    centre: int
    counts: Array
    step: int = 0

    def values(self) -> Array:
        """Return the value of one request of each cell, `[cells]`."""
        share, centre = self.share, self.centre / _CENTRES
        return np.array(
            [
                (1 - centre) / share,
                -centre / share,
                -(1 - centre) / (1 - share),
                centre / (1 - share),
            ]
        )

    @property
    def scale(self) -> float:
        """Return one over the variance of a value, without the rate's part."""
        return self.share * (1 - self.share)


class RateDifferences(msgspec.Struct):
    """Tests of several differences over the same requests: `[tests]` everywhere."""

    recent: Array
    """Exponentially decaying counts of yes and of all requests; `[tests, 2]`."""
    forgiven: Forgiven
    dispersion: Dispersion
    step: Array
    """Rollout step that was counted last."""
    watched: float | None = None
    """Difference beyond which the candidate is worse than tolerated; `forgiven` is the growth of
    the capitals against it in the worst intervals, without `part`."""
    centre: int | None = None
    """Centre in tenths; None for the recent rate."""
    part: float = 1.0
    """Part of an independent observation that each request is. If `k` requests depend on one
    another (rows of one request, requests of one user), each is the `k`-th part of one: a gambler
    who bets on their mean gains at least the mean of separate bets (Jensen). `dispersion` detects
    such dependence between requests of a moment, and the smaller part counts."""
    strata: list[Stratum] = []

    @classmethod
    def start(
        cls, tests: int, *, centre: int | None = None, watched: float | None = None
    ) -> "RateDifferences":
        """Return the state without counts."""
        return cls(
            recent=np.zeros((tests, 2)),
            forgiven=Forgiven.start(0 if watched is None else tests),
            dispersion=Dispersion.start(tests),
            step=np.zeros(tests),
            watched=watched,
            centre=centre,
        )

    def add(
        self,
        share: float,
        candidate: tuple[Array, Array],
        baseline: tuple[Array, Array],
        when: When = ONE_SECOND,
    ) -> None:
        """Count one interval: for each arm the number of `yes`, and of all requests; `[tests]`.

        A share of 0 or 1 carries no evidence and is ignored.
        """
        share = round(share, _SHARE_DIGITS)
        if not 0.0 < share < 1.0:
            return
        (yes_b, all_b), (yes_a, all_a) = candidate, baseline
        cells = np.stack([yes_b, all_b - yes_b, yes_a, all_a - yes_a], axis=-1).astype(float)
        if not cells.any():
            return
        counted = cells.any(axis=-1)
        self.dispersion.restart(counted & (self.step != when.step))
        self.step = np.where(counted, when.step, self.step)
        centres, growth = self._centres(), np.zeros((len(cells), len(STAKES)))
        sums, expected = np.zeros((2, len(cells)))
        for centre in np.unique(centres):
            stratum = self._stratum(share, int(centre), when.step)
            here = np.where((centres == centre)[:, None], cells, 0.0)
            stratum.counts += here
            sums += here @ stratum.values()
            expected += here @ stratum.values() ** 2
            if self.watched is not None:
                growth += here @ _growth(stratum, self.watched, above=True)
        self.dispersion.add(sums, expected)
        if self.watched is not None:
            self.forgiven.add(growth, when.duration_s)
        totals = np.stack([yes_a + yes_b, all_a + all_b], axis=-1)
        self.recent = self.recent * _FORGETS + totals

    @property
    def parts(self) -> Array:
        """Return the part of an independent observation that each request counts as, `[tests]`."""
        result: Array = np.minimum(self.part, 1.0 / self.dispersion.factor)
        return result

    def log_evidence(self, mean: float, *, above: bool, step: Array | int | None = None) -> Array:
        """Return the log evidence against "the difference is at most `mean`", `[tests]`.

        With `above` false, against "at least `mean`". At `log(1 / alpha)` it is refuted. With
        `step`, only that step's counts are used.
        """
        return mixture(self.parts[:, None] * self._log_capitals(mean, above=above, step=step))

    def log_evidence_of_harm(self) -> Array:
        """Return the evidence against "at most `watched`" without the worst intervals."""
        assert self.watched is not None, "harm is looked for"
        capitals = self._log_capitals(self.watched, above=True)
        return mixture(self.parts[:, None] * (capitals - self.forgiven.growth))

    def log_evidence_at_observed_shares(self, mean: float) -> Array:
        """Return the evidence against "at most `mean`" at the observed shares, `[tests]`.

        For a split that was not followed, where the planned share is meaningless.
        """
        capitals = np.zeros((len(self.recent), len(STAKES)))
        for share in {stratum.share for stratum in self.strata}:
            strata = [stratum for stratum in self.strata if stratum.share == share]
            counts = sum((s.counts for s in strata), np.zeros((len(self.recent), CELLS)))
            for test in range(len(counts)):
                of_candidate, of_both = counts[test, :2].sum(), counts[test].sum()
                if 0.0 < of_candidate < of_both:
                    for stratum in strata:
                        observed = Stratum(of_candidate / of_both, stratum.centre, stratum.counts)
                        growth = _growth(observed, mean, above=True)
                        capitals[test] += stratum.counts[test] @ growth
        return mixture(self.parts[:, None] * capitals)

    def bounds(self, level_low: Array | float, level_high: Array | float) -> tuple[Array, Array]:
        """Return bounds of each difference, `[tests]`; each holds at all times at its level."""
        return self.lower_bounds(level_low), self.upper_bounds(level_high)

    def lower_bounds(self, level: Array | float, *, step: int | None = None) -> Array:
        """Return the lower bound of each difference, `[tests]`; with `step`, of that step alone."""
        return refuted_up_to(
            lambda means: self._log_evidence(means, above=True, step=step),
            -np.log(np.broadcast_to(level, self.step.shape)),
            span=(-1.0, 1.0),
        )

    def upper_bounds(self, level: Array | float, *, step: int | None = None) -> Array:
        """Return the upper bound of each difference, `[tests]`; with `step`, of that step alone."""
        return refuted_down_to(
            lambda means: self._log_evidence(means, above=False, step=step),
            -np.log(np.broadcast_to(level, self.step.shape)),
            span=(-1.0, 1.0),
        )

    def totals(self) -> tuple[Array, Array, Array, Array]:
        """Return the sums of all strata, `[tests]`: yes and all of the candidate, the baseline."""
        counts = sum((s.counts for s in self.strata), np.zeros((len(self.recent), CELLS)))
        return counts[:, 0], counts[:, :2].sum(-1), counts[:, 2], counts[:, 2:].sum(-1)

    def differences(self) -> Array:
        """Return the differences of the rates, weighted by the requests per share, `[tests]`.

        The difference of the totals would be distorted by a base rate that changes between two
        shares (Simpson's paradox).
        """
        shares = sorted({stratum.share for stratum in self.strata})
        weighted = np.zeros(len(self.recent))
        weights = np.zeros(len(self.recent))
        for share in shares:
            counts = np.sum([s.counts for s in self.strata if s.share == share], axis=0)
            candidate, baseline = counts[:, :2].sum(-1), counts[:, 2:].sum(-1)
            both = (candidate > 0) & (baseline > 0)
            rate_b = counts[:, 0] / np.maximum(candidate, 1e-12)
            rate_a = counts[:, 2] / np.maximum(baseline, 1e-12)
            weight = np.where(both, candidate + baseline, 0.0)
            weighted += weight * (rate_b - rate_a)
            weights += weight
        return weighted / np.maximum(weights, 1e-12)

    def append(self, like: int) -> None:
        """Add a test with the history of the test `like`: so far both events coincided."""
        assert self.watched is None, "the worst intervals of another test are not this one's"
        self.recent = np.vstack([self.recent, self.recent[like]])
        self.step = np.append(self.step, self.step[like])
        self.dispersion.append(like)
        for stratum in self.strata:
            stratum.counts = np.vstack([stratum.counts, stratum.counts[like]])

    def _log_capitals(self, mean: float, *, above: bool, step: Array | int | None = None) -> Array:
        """Return the gamblers' log capitals, `[tests, stakes]`, without `parts`."""
        capitals = np.zeros((len(self.recent), len(STAKES)))
        for stratum in self.strata:
            counts = stratum.counts
            if step is not None:
                counts = np.where(np.equal(stratum.step, step)[..., None], counts, 0.0)
            capitals = capitals + counts @ _growth(stratum, mean, above=above)
        return capitals

    def _log_evidence(self, means: Array, *, above: bool, step: int | None = None) -> Array:
        """Return the evidence against several differences for each test, `[tests, means]`."""
        strata = [s for s in self.strata if step is None or s.step == step]
        if not strata:
            return np.zeros(means.shape)
        values = np.stack([stratum.values() for stratum in strata])
        scales = np.array([stratum.scale for stratum in strata])
        counts = np.concatenate([stratum.counts for stratum in strata], axis=1)
        growth = log_growth(values, scales, means[..., None], above=above)
        flat = growth.reshape(*means.shape, counts.shape[1], len(STAKES))
        return mixture(self.parts[:, None, None] * np.einsum("tc,tmcs->tms", counts, flat))

    def _centres(self) -> NDArray[np.int64]:
        if self.centre is not None:
            return np.full(len(self.recent), self.centre)
        yes, trials = self.recent[:, 0], self.recent[:, 1]
        return np.rint(_CENTRES * yes / (trials + _PRIOR_TRIALS)).astype(np.int64)

    def _stratum(self, share: float, centre: int, step: int) -> Stratum:
        for stratum in self.strata:
            if (stratum.share, stratum.centre, stratum.step) == (share, centre, step):
                return stratum
        stratum = Stratum(share, centre, np.zeros((len(self.recent), CELLS)), step)
        self.strata.append(stratum)
        return stratum


def _growth(stratum: Stratum, mean: float, *, above: bool) -> Array:
    return log_growth(stratum.values(), stratum.scale, mean, above=above)
