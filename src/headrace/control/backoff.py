"""When is a replica that ended started again? Later each time, until it proves stable."""

from dataclasses import dataclass
from typing import Final

EXIT_CANNOT_LOAD: Final = 3
"""A replica's exit status that says: this model cannot be loaded here."""

STABLE_AFTER_S: Final = 60.0
"""A replica that was ready for this long starts again with a clean record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Delays that double from `first_s` to `limit_s`."""

    first_s: float
    limit_s: float

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after the `failures`-th failure in a row; counts from 1."""
        assert failures >= 1
        # The exponent is bounded: 2.0**1024 is an OverflowError, and a loop may fail for weeks.
        return min(self.first_s * 2.0 ** min(failures - 1, 64), self.limit_s)


MANY_FAILURES: Final = 3
"""Ends in a row, without having been ready, after which something is called failed."""
CRASHED: Final = Backoff(first_s=0.1, limit_s=30.0)
CANNOT_LOAD: Final = Backoff(first_s=5.0, limit_s=300.0)


def restart_delay_s(*, failures: int, exit_code: int | None) -> float:
    """Seconds until the next start after `failures` in a row, the last with `exit_code`.

    A model that cannot be loaded is tried again because its cause may pass (memory, a missing
    library), but seldom, for loading is costly. `exit_code` is None where nobody could read it.
    """
    policy = CANNOT_LOAD if exit_code == EXIT_CANNOT_LOAD else CRASHED
    return policy.delay_s(failures)
