"""How often does something happen at one place? Bounds of a rate that hold at all times at once.

For a version that is measured against a fixed number instead of another version: an SLO, or the
share of a shadow's answers that may differ. The bets are those of `betting`, with the values 1 and
0. Valid also where the rate moves, as long as it stays on the null's side.
"""

from typing import Final

import msgspec
import numpy as np

from headrace.rollout.betting import Array, log_growth, mixture, refuted_down_to, refuted_up_to

_VALUES: Final = np.array([1.0, 0.0])
_SCALE: Final = 5.0
"""So that the stakes reach from 0.05 to 330: rates from a half down to a thousandth."""


class Rate(msgspec.Struct):
    """How often there was a yes, of how many; `part` as in `RateDifferences`."""

    yes: float = 0.0
    trials: float = 0.0
    part: float = 1.0

    def add(self, yes: float, trials: float) -> None:
        """Count some more."""
        self.yes += yes
        self.trials += trials

    @property
    def estimate(self) -> float | None:
        """The rate seen; None before the first trial."""
        return self.yes / self.trials if self.trials else None

    def log_evidence(self, rates: Array | float, *, above: bool) -> Array:
        """The logarithm of the evidence against "at most" each rate, or against "at least" it."""
        counts = self.part * np.array([self.yes, self.trials - self.yes])
        means = np.atleast_1d(np.asarray(rates, float))
        growth = log_growth(_VALUES, _SCALE, means, above=above)
        return mixture(np.einsum("c,...cs->...s", counts, growth))

    def bounds(self, level: float) -> tuple[float, float]:
        """Lower and upper bound; each holds at all times at once with probability 1 - `level`."""
        needed = np.array([-np.log(level)])
        low = refuted_up_to(
            lambda rates: self.log_evidence(rates, above=True), needed, span=(0.0, 1.0)
        )
        high = refuted_down_to(
            lambda rates: self.log_evidence(rates, above=False), needed, span=(0.0, 1.0)
        )
        return float(low[0]), float(high[0])
