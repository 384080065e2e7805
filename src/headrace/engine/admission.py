"""Admission check: whether a request can meet its deadline behind the queued work."""

from typing import Final

from headrace.core import DeadlineExceededError

CERTAINTY: Final = 0.8
"""Share of the time left that the estimated wait and run may take for a request to be let in."""
_WEIGHT: Final = 0.1
"""Weight of a new observation in the moving average."""


class Pace:
    """Moving average of the seconds per row between the ends of runs: how fast rows leave."""

    def __init__(self, row_interval_s: float) -> None:
        self.row_interval_s = row_interval_s
        self._ended_at = 0.0

    def observe(self, *, rows: int, started_at: float, ended_at: float) -> None:
        """Record the end of a run of `rows`; concurrent runs count from the last end."""
        interval_s = (ended_at - max(started_at, self._ended_at)) / rows
        self.row_interval_s += _WEIGHT * (interval_s - self.row_interval_s)
        self._ended_at = ended_at

    def wait_s(self, *, waiting: int, running: int) -> float:
        """Return the seconds until `waiting` rows and the runs of `running` rows are done."""
        return (waiting + running / 2) * self.row_interval_s


def check_deadline(*, left_s: float, wait_s: float, run_s: float) -> None:
    """Check that a request will most likely be answered in time.

    Raises:
        DeadlineExceededError: It will not be. `retry_after_s` is set if a shorter queue would help.
    """
    if wait_s + run_s <= left_s * CERTAINTY:
        return
    msg = (
        f"the deadline in {left_s:.3g} s cannot be met: about {wait_s:.3g} s in the queue "
        f"and {run_s:.3g} s to run"
    )
    error = DeadlineExceededError(msg)
    error.retry_after_s = wait_s if run_s <= left_s else None
    raise error
