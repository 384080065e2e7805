"""Difference of two rates, with the design effect of requests that go wrong together.

The bets of `rate_difference` take requests as independent given the past. Stalls and slow noise
strike one arm's requests in clusters, so sums over intervals vary more than independent requests
would let them. The factor is estimated from squared differences of successive sums (von Neumann
1941, "Distribution of the ratio of the mean square successive difference to the variance"), over
blocks of several lengths (batch means). A lasting difference between the arms does not touch them,
and a version that turns bad once shows in two of them at most, so the two largest are left out.

Each request then counts as one part in `factor`. Capital to a power below 1 reaches a bound of at
least 1 only if the capital itself does (Jensen), so a factor that was estimated from the same data
costs power: a level of 1 in c becomes one of 1 in c - 1 at most (Bernoulli's inequality).

Each request goes to the candidate with a known probability, the share in force. Weighting what
happened (`yes` is 1, `no` is 0) by the inverse of that probability,

    D = (X - centre) * (1{candidate} / share - 1{baseline} / (1 - share)),

gives a value whose mean, given everything before, is exactly the difference of both arms'
probabilities at that moment, *whatever the base rate does over time*: an incident, a busy hour or
a client that sends nonsense strikes both arms alike. At a difference of 0 and a centre of 0 this is
the test of Lindon and Malek (NeurIPS 2022, arXiv 2011.03567): given that a request failed, it
belongs to an arm with that arm's share of the traffic. `centre` is any number known before the
request (the share of `yes` of late, rounded); it changes no mean and takes noise away.

When the share or the rollout's step changes, counts go to a new stratum. Over several strata the
capitals multiply; a question about one step uses that step's strata alone. The bets are those of
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
"""How many blocks of independent requests are assumed before the first one."""
_LEFT_OUT: Final = 2


class Dispersion(msgspec.Struct):
    """Running estimate for several tests side by side."""

    open: Array
    """The sums of the present and the last block, `[lengths, tests]`, and `open_expected` the
    variance of the present one if its requests are independent.
    """
    open_expected: Array
    size: Array
    """Its intervals."""
    closed: Array
    """See `open`."""
    observed: Array
    """Summed over the `pairs` of successive blocks."""
    expected: Array
    """Summed over the `pairs` of successive blocks."""
    pairs: Array
    largest: Array
    """Of the observed ones, `[lengths, tests, 2]`."""

    @classmethod
    def start(cls, tests: int) -> "Dispersion":
        """Nothing counted yet."""
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
            sums: What the requests of the interval sum to, `[tests]`.
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
        """Pair no block of before with one of after: another share has other sums."""
        self.open = np.where(tests, 0.0, self.open)
        self.open_expected = np.where(tests, 0.0, self.open_expected)
        self.size = np.where(tests, 0.0, self.size)
        self.closed = np.where(tests, np.nan, self.closed)

    def append(self, like: int) -> None:
        """One test more, with the history of the test `like`."""
        for name in self.__struct_fields__:
            values: Array = getattr(self, name)
            setattr(self, name, np.concatenate([values, values[:, [like]]], axis=1))

    @property
    def factor(self) -> Array:
        """How many requests count as one, at least 1, `[tests]`."""
        observed = self.observed - self.largest.sum(axis=-1)
        ratio = observed / np.maximum(self.expected, 1e-300)
        estimate = (_PRIOR_BLOCKS + self.pairs * ratio) / (_PRIOR_BLOCKS + self.pairs)
        result: Array = np.maximum(estimate, 1.0).max(axis=0)
        return result


CELLS: Final = 4
"""Candidate yes, candidate no, baseline yes, baseline no."""
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
        """What one request of each cell is worth, `[cells]`."""
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
        """One over the variance of a value, but for the rate's part."""
        return self.share * (1 - self.share)


class RateDifferences(msgspec.Struct):
    """Several differences side by side, all over the same requests: `[tests]` everywhere."""

    recent: Array
    """Yes and all, fading; `[tests, 2]`."""
    forgiven: Forgiven
    dispersion: Dispersion
    step: Array
    """The rollout's step that was counted last."""
    watched: float | None = None
    """The difference beyond which the candidate is worse than tolerated, and `forgiven` what the
    worst intervals added to the capitals against it, without `part`.
    """
    centre: int | None = None
    """In tenths; None for the rate of late."""
    part: float = 1.0
    """How much of a whole independent observation each request is. Where `k` requests depend on one
    another (rows of one request, requests of one user), each is the `k`-th part of one: a gambler
    who bets on their mean gains at least the mean of what bets on each would gain (Jensen).
    `dispersion` finds such dependence between requests of a moment, and the smaller part counts.
    """
    strata: list[Stratum] = []

    @classmethod
    def start(
        cls, tests: int, *, centre: int | None = None, watched: float | None = None
    ) -> "RateDifferences":
        """Nothing counted yet."""
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
        """Count one interval: for each arm how many were `yes`, and how many there were; `[tests]`.

        Nothing can be learnt from a share of 0 or 1: then this does nothing.
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
        """How much of an independent observation each request counts as, `[tests]`."""
        result: Array = np.minimum(self.part, 1.0 / self.dispersion.factor)
        return result

    def log_evidence(self, mean: float, *, above: bool, step: Array | int | None = None) -> Array:
        """The logarithm of the evidence against "the difference is at most `mean`", `[tests]`.

        With `above` false, against "at least `mean`". At `log(1 / alpha)` it is refuted. With
        `step`, of what was counted in that step alone.
        """
        return mixture(self.parts[:, None] * self._log_capitals(mean, above=above, step=step))

    def log_evidence_of_harm(self) -> Array:
        """The same against "at most `watched`", without the worst intervals, `[tests]`."""
        assert self.watched is not None, "harm is looked for"
        capitals = self._log_capitals(self.watched, above=True)
        return mixture(self.parts[:, None] * (capitals - self.forgiven.growth))

    def log_evidence_at_observed_shares(self, mean: float) -> Array:
        """Evidence against "at most `mean`" if each arm was meant to get what it got, `[tests]`.

        For a split that was not kept, where the planned share says nothing.
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
        """Bounds of each difference, `[tests]`; each holds at all times at once at its level."""
        return self.lower_bounds(level_low), self.upper_bounds(level_high)

    def lower_bounds(self, level: Array | float, *, step: int | None = None) -> Array:
        """What each difference is above, `[tests]`; with `step`, by that step's counts alone."""
        return refuted_up_to(
            lambda means: self._log_evidence(means, above=True, step=step),
            -np.log(np.broadcast_to(level, self.step.shape)),
            span=(-1.0, 1.0),
        )

    def upper_bounds(self, level: Array | float, *, step: int | None = None) -> Array:
        """What each difference is below, `[tests]`; with `step`, by that step's counts alone."""
        return refuted_down_to(
            lambda means: self._log_evidence(means, above=False, step=step),
            -np.log(np.broadcast_to(level, self.step.shape)),
            span=(-1.0, 1.0),
        )

    def totals(self) -> tuple[Array, Array, Array, Array]:
        """Over all strata, `[tests]`: candidate's yes and all, baseline's yes and all."""
        counts = sum((s.counts for s in self.strata), np.zeros((len(self.recent), CELLS)))
        return counts[:, 0], counts[:, :2].sum(-1), counts[:, 2], counts[:, 2:].sum(-1)

    def differences(self) -> Array:
        """The differences of the arms' rates, each share's weighted by its requests, `[tests]`.

        Not the difference of the totals, which a base rate that moved between two shares would
        distort (Simpson's paradox).
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
        """One test more, with the history of the test `like`: so far they were `yes` together."""
        assert self.watched is None, "the worst intervals of another test are not this one's"
        self.recent = np.vstack([self.recent, self.recent[like]])
        self.step = np.append(self.step, self.step[like])
        self.dispersion.append(like)
        for stratum in self.strata:
            stratum.counts = np.vstack([stratum.counts, stratum.counts[like]])

    def _log_capitals(self, mean: float, *, above: bool, step: Array | int | None = None) -> Array:
        """What the gamblers have, `[tests, stakes]`, without `parts`."""
        capitals = np.zeros((len(self.recent), len(STAKES)))
        for stratum in self.strata:
            counts = stratum.counts
            if step is not None:
                counts = np.where(np.equal(stratum.step, step)[..., None], counts, 0.0)
            capitals = capitals + counts @ _growth(stratum, mean, above=above)
        return capitals

    def _log_evidence(self, means: Array, *, above: bool, step: int | None = None) -> Array:
        """Against several differences for each test, `[tests, means]`."""
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
