"""Delays before a failed action is retried."""

from dataclasses import dataclass
from typing import Final

_MAX_DOUBLINGS: Final = 64
"""2.0**1024 is an OverflowError, and a loop may fail for weeks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Delays that double with each failure in a row, from `first_s` to `limit_s`."""

    first_s: float
    limit_s: float

    def delay_s(self, failures: int) -> float:
        """Return the seconds to wait after the `failures`-th failure in a row; counts from 1."""
        assert failures >= 1
        return min(self.first_s * 2.0 ** min(failures - 1, _MAX_DOUBLINGS), self.limit_s)

    def jittered_s(self, failures: int, *, chance: float) -> float:
        """Return between half of the delay and all of it, so that simultaneous failures spread.

        Args:
            chance: Uniformly distributed in [0, 1).
        """
        return self.delay_s(failures) * (0.5 + 0.5 * chance)
