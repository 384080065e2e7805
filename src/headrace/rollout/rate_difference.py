"""How much more often does something happen on the candidate than on the baseline?

Each request goes to the candidate with a known probability, the share in force. Weighting what
happened (`yes` is 1, `no` is 0) by the inverse of that probability,

    D = (X - centre) * (1{candidate} / share - 1{baseline} / (1 - share)),

gives a value whose mean, given everything before, is exactly the difference of both arms'
probabilities at that moment, *whatever the base rate does over time*: an incident, a busy hour or
a client that sends nonsense strikes both arms alike. At a difference of 0 and a centre of 0 this is
the test of Lindon and Malek (NeurIPS 2022, arXiv 2011.03567): given that a request failed, it
belongs to an arm with that arm's share of the traffic. `centre` is any number known before the
request (the share of `yes` of late, rounded); it changes no mean and takes noise away.

When the share changes, counts go to a new stratum and the capitals multiply. The bets are those of
`betting`, so everything is exact at any sample size.
"""

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.rollout.betting import (
    STAKES,
    Array,
    log_growth,
    mixture,
    refuted_down_to,
    refuted_up_to,
)
from headrace.rollout.forgiving import nothing_yet, with_interval

CELLS: Final = 4
"""Candidate yes, candidate no, baseline yes, baseline no."""
_FORGETS: Final = 0.97
_PRIOR_TRIALS: Final = 10.0
_SHARE_DIGITS: Final = 12
_CENTRES: Final = 10


class Stratum(msgspec.Struct):
    """Counts under one share and one centre (in tenths), `[tests, cells]`."""

    share: float
    centre: int
    counts: Array

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
    """Several differences side by side, all over the same requests: `[tests]` everywhere.

    `recent`: yes and all, fading; `[tests, 2]`. `centre`: in tenths; None for the rate of late.
    `part`: how much of a whole independent observation each request is. Where `k` requests depend
    on one another (rows of one request, requests of one user), each is the `k`-th part of one: a
    gambler who bets on their mean gains at least the mean of what bets on each would gain (Jensen).
    `watched`: the difference beyond which the candidate is worse than tolerated, and `worst` by how
    much the worst intervals multiplied the capitals against it (`forgiving`), without `part`.
    """

    recent: Array
    worst: Array
    watched: float | None = None
    centre: int | None = None
    part: float = 1.0
    strata: list[Stratum] = []

    @classmethod
    def start(
        cls, tests: int, *, centre: int | None = None, watched: float | None = None
    ) -> "RateDifferences":
        """Nothing counted yet."""
        return cls(
            recent=np.zeros((tests, 2)),
            worst=nothing_yet(0 if watched is None else tests),
            watched=watched,
            centre=centre,
        )

    def add(
        self, share: float, candidate: tuple[Array, Array], baseline: tuple[Array, Array]
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
        centres, grown = self._centres(), np.zeros((len(cells), len(STAKES)))
        for centre in np.unique(centres):
            stratum = self._stratum(share, int(centre))
            here = np.where((centres == centre)[:, None], cells, 0.0)
            stratum.counts += here
            if self.watched is not None:
                grown += here @ _growth(stratum, self.watched, above=True)
        if self.watched is not None:
            self.worst = with_interval(self.worst, grown)
        seen = np.stack([yes_a + yes_b, all_a + all_b], axis=-1)
        self.recent = self.recent * _FORGETS + seen

    def log_evidence(self, mean: float, *, above: bool) -> Array:
        """The logarithm of the evidence against "the difference is at most `mean`", `[tests]`.

        With `above` false, against "at least `mean`". At `log(1 / alpha)` it is refuted.
        """
        return mixture(self.part * self._log_capitals(mean, above=above))

    def log_evidence_of_harm(self) -> Array:
        """The same against "at most `watched`", without the worst intervals, `[tests]`."""
        assert self.watched is not None, "harm is looked for"
        capitals = self._log_capitals(self.watched, above=True)
        return mixture(self.part * (capitals - self.worst.sum(axis=-1)))

    def bounds(self, level_low: Array | float, level_high: Array | float) -> tuple[Array, Array]:
        """Bounds of each difference, `[tests]`; each holds at all times at once at its level."""
        shape = (len(self.recent),)
        low = refuted_up_to(
            lambda means: self._log_evidence(means, above=True),
            -np.log(np.broadcast_to(level_low, shape)),
            span=(-1.0, 1.0),
        )
        high = refuted_down_to(
            lambda means: self._log_evidence(means, above=False),
            -np.log(np.broadcast_to(level_high, shape)),
            span=(-1.0, 1.0),
        )
        return low, high

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
        for stratum in self.strata:
            stratum.counts = np.vstack([stratum.counts, stratum.counts[like]])

    def _log_capitals(self, mean: float, *, above: bool) -> Array:
        """What the gamblers have, `[tests, stakes]`, without `part`."""
        capitals = np.zeros((len(self.recent), len(STAKES)))
        for stratum in self.strata:
            capitals = capitals + stratum.counts @ _growth(stratum, mean, above=above)
        return capitals

    def _log_evidence(self, means: Array, *, above: bool) -> Array:
        """Against several differences for each test, `[tests, means]`."""
        if not self.strata:
            return np.zeros(means.shape)
        values = np.stack([stratum.values() for stratum in self.strata])
        scales = np.array([stratum.scale for stratum in self.strata])
        counts = np.concatenate([stratum.counts for stratum in self.strata], axis=1)
        growth = log_growth(values, scales, means[..., None], above=above)
        flat = growth.reshape(*means.shape, counts.shape[1], len(STAKES))
        return mixture(self.part * np.einsum("tc,tmcs->tms", counts, flat))

    def _centres(self) -> NDArray[np.int64]:
        if self.centre is not None:
            return np.full(len(self.recent), self.centre)
        yes, trials = self.recent[:, 0], self.recent[:, 1]
        return np.rint(_CENTRES * yes / (trials + _PRIOR_TRIALS)).astype(np.int64)

    def _stratum(self, share: float, centre: int) -> Stratum:
        for stratum in self.strata:
            if stratum.share == share and stratum.centre == centre:
                return stratum
        made = Stratum(share, centre, np.zeros((len(self.recent), CELLS)))
        self.strata.append(made)
        return made


def _growth(stratum: Stratum, mean: float, *, above: bool) -> Array:
    return log_growth(stratum.values(), stratum.scale, mean, above=above)
