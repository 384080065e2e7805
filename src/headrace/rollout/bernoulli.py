"""Rate of one event compared with a fixed number, with bounds that hold at all times.

It serves versions that are compared with a fixed number instead of another version: an SLO, or the
share of a shadow's responses that may differ. The bets are those of `betting`, with the values 1
and 0. They remain valid if the rate varies, as long as it satisfies the null hypothesis.

A stall (a page that is swapped in, a garbage collection pause, another process that uses the core)
affects all requests of a moment together. They are counted as many but are one event, so a few
stalls would condemn a good version. Therefore harm must show without the worst intervals, too.

Leaving an interval out is the capital of a gambler who abstained there, and the smallest capital
over all choices of what to leave out is at most that of the gambler who never abstained, for whom
Ville's inequality holds already. So it costs power and not validity. It is also at most that of the
gambler who abstained exactly in the stalls, for whom requests need to be independent only outside
the stalls. Each stake leaves out its own worst intervals; the result is at most the smallest of
all.

`dispersion` handles stalls that occur more often than `FORGIVEN` times an hour.
"""

from typing import Final

import msgspec
import numpy as np

from headrace.rollout.betting import (
    STAKES,
    Array,
    log_growth,
    mixture,
    refuted_down_to,
    refuted_up_to,
)

FORGIVEN: Final = 3
"""Number of intervals between two readings that are left out, per hour."""
_HOUR_S: Final = 3600.0


class Forgiven(msgspec.Struct):
    """Growth of the left-out intervals, as logarithms."""

    worst: Array
    """Growth in the current hour, `[tests, stakes, forgiven]`, descending, at least 0."""
    past: Array
    """Sum over the previous hours, `[tests, stakes]`."""
    counted_s: float = 0.0
    """Counted seconds of the current hour."""

    @classmethod
    def start(cls, tests: int) -> "Forgiven":
        """Return the state without counts."""
        return cls(
            worst=np.zeros((tests, len(STAKES), FORGIVEN)), past=np.zeros((tests, len(STAKES)))
        )

    def add(self, growth: Array, duration_s: float) -> None:
        """Count an interval that multiplied each capital by `exp(growth)`, `[tests, stakes]`."""
        if self.counted_s >= _HOUR_S:
            self.past = self.past + self.worst.sum(axis=-1)
            self.worst, self.counted_s = np.zeros_like(self.worst), 0.0
        self.counted_s += duration_s
        worst = self.worst.copy()
        for rank in range(FORGIVEN):
            larger = np.maximum(worst[..., rank], growth)
            growth = np.minimum(worst[..., rank], growth)
            worst[..., rank] = larger
        self.worst = worst

    @property
    def growth(self) -> Array:
        """Return the growth that all left-out intervals would have added, `[tests, stakes]`."""
        total: Array = self.past + self.worst.sum(axis=-1)
        return total


def trimmed_capitals(capitals: Array, growth: Array) -> Array:
    """Return the capitals after one more interval, left out where that makes them smaller.

    For capital that entered at several times, where left-out growth cannot be removed later.

    Args:
        capitals: Logarithms by how many intervals may be left out, `[..., 1 + forgiven]`.
        growth: A logarithm, `[...]`.
    """
    result = capitals + growth[..., None]
    result[..., 1:] = np.minimum(result[..., 1:], capitals[..., :-1])
    return result


_VALUES: Final = np.array([1.0, 0.0])
_SCALE: Final = 5.0
"""Scale of the stakes, which then range from 0.05 to 330: rates from a half down to a
thousandth."""


def log_evidence_each(yes: Array, trials: Array, rate: float, *, above: bool, part: Array) -> Array:
    """Return `Rate.log_evidence` of many rates against one number, each with its counts."""
    growth = log_growth(_VALUES, _SCALE, rate, above=above)
    return mixture(part[:, None] * (np.stack([yes, trials - yes], axis=-1) @ growth))


class Rate(msgspec.Struct):
    """Number of positive trials and of all trials; other fields are as in `RateDifferences`."""

    yes: float = 0.0
    trials: float = 0.0
    part: float = 1.0
    watched: float | None = None
    forgiven: Forgiven = msgspec.field(default_factory=lambda: Forgiven.start(1))

    def add(self, yes: float, trials: float, *, duration_s: float = 1.0) -> None:
        """Count one interval."""
        self.yes += yes
        self.trials += trials
        if self.watched is not None:
            growth = log_growth(_VALUES, _SCALE, self.watched, above=True)
            self.forgiven.add(np.array([[yes, trials - yes]]) @ growth, duration_s)

    @property
    def estimate(self) -> float | None:
        """Return the observed rate; None before the first trial."""
        return self.yes / self.trials if self.trials else None

    def log_evidence(self, rates: Array | float, *, above: bool) -> Array:
        """Return the log evidence against "at most" each rate, or against "at least" it."""
        return mixture(self.part * self._log_capitals(rates, above=above))

    def log_evidence_of_harm(self) -> float:
        """Return the log evidence against "at most `watched`", without the worst intervals."""
        assert self.watched is not None, "harm is looked for"
        capitals = self._log_capitals(self.watched, above=True) - self.forgiven.growth
        return float(mixture(self.part * capitals)[0])

    def bounds(self, level: float) -> tuple[float, float]:
        """Return lower and upper bound; each holds at all times with probability 1 - `level`."""
        needed = np.array([-np.log(level)])
        low = refuted_up_to(
            lambda rates: self.log_evidence(rates, above=True), needed, span=(0.0, 1.0)
        )
        high = refuted_down_to(
            lambda rates: self.log_evidence(rates, above=False), needed, span=(0.0, 1.0)
        )
        return float(low[0]), float(high[0])

    def _log_capitals(self, rates: Array | float, *, above: bool) -> Array:
        means = np.atleast_1d(np.asarray(rates, float))
        growth = log_growth(_VALUES, _SCALE, means, above=above)
        counts = np.array([self.yes, self.trials - self.yes])
        result: Array = np.einsum("c,...cs->...s", counts, growth)
        return result
