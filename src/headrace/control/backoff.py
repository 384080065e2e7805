"""Restart policy of processes: later with each failure, until one proves stable."""

from typing import Final

from headrace.core.backoff import Backoff

EXIT_CANNOT_LOAD: Final = 3
"""A replica's exit status that says: this model cannot be loaded here."""

STABLE_AFTER_S: Final = 60.0
"""A replica that was ready for this long starts again with a clean record."""


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
