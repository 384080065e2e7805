"""Evidence of harm without the worst intervals of each hour.

A stall (a page that is swapped in, a collector that stops the world, a neighbour that takes the
core) hits all requests of a moment together. They are counted as many and are one event, so a few
stalls would condemn a good version. Therefore harm must show without the worst intervals, too.

Leaving an interval out is the capital of a gambler who abstained there, and the smallest capital
over all choices of what to leave out is at most that of the gambler who never abstained, for whom
Ville's inequality holds already. So it costs power and no validity. It is also at most that of the
gambler who abstained exactly where the stalls were, for whom requests need to be independent
nowhere else. Each stake leaves out its own worst intervals; that is at most the least of all.

Stalls that come more often than `FORGIVEN` an hour are the business of `dispersion`.
"""

from typing import Final

import msgspec
import numpy as np

from headrace.rollout.betting import STAKES, Array

FORGIVEN: Final = 3
"""Intervals between two readings that do not count, per hour."""
_HOUR_S: Final = 3600.0


class Forgiven(msgspec.Struct):
    """The growth of the intervals that do not count, as logarithms.

    `worst`: of the present hour, `[tests, stakes, forgiven]`, descending, at least 0. `past`: the
    sum over the hours before, `[tests, stakes]`. `counted_s`: counted seconds of the present hour.
    """

    worst: Array
    past: Array
    counted_s: float = 0.0

    @classmethod
    def start(cls, tests: int) -> "Forgiven":
        """Nothing counted yet."""
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
        """What all left-out intervals would have added, `[tests, stakes]`."""
        total: Array = self.past + self.worst.sum(axis=-1)
        return total


def grown(capitals: Array, growth: Array) -> Array:
    """Capitals after one more interval, which is left out where that makes them smaller.

    For capital that came in at several times, where what is left out cannot be told afterwards.

    Args:
        capitals: Logarithms by how many intervals may be left out, `[..., 1 + forgiven]`.
        growth: A logarithm, `[...]`.
    """
    result = capitals + growth[..., None]
    result[..., 1:] = np.minimum(result[..., 1:], capitals[..., :-1])
    return result
