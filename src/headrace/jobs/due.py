"""Due times of scheduled jobs, and missed ones that are caught up or skipped.

Pure: the time, the newest handled moment and the number of runs are arguments. A cron line has the
meaning of Debian's cron, which differs from croniter in two points. A line whose minute and hour
both begin with a number runs once at a time that the clocks show twice, and right after an hour
that they skip; if one of the two begins with `*` (`*/30 2 * * *`), it runs whenever the clocks show
such a time. And a day of the month such as `*/10` counts as any day if a day of the week is set.
Monday is 1, 0 and 7 are Sunday; a day of the month and a day of the week are alternatives.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import Final
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim

from headrace.core.spec.jobs import JobScheduleSpec

MAX_MISSED: Final = 1_000
"""Number of missed moments that are reported one by one, the newest ones."""
_ON_TIME_S: Final = 60.0
"""A moment that passed no longer ago is not missed."""
_WEEK_S: Final = 7 * 86_400.0


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """A moment without a run."""

    due_at: float
    """Unix time of the moment."""
    why: str
    """Reason, as text for users."""


class DueRuns(msgspec.Struct, frozen=True, kw_only=True):
    """Runs to start now."""

    starts: tuple[float, ...] = ()
    """Moments whose runs start, oldest first."""
    skipped: tuple[Skipped, ...] = ()
    """Moments that are skipped."""
    waits: tuple[float, ...] = ()
    """Moments whose runs wait for an earlier run."""

    @property
    def handled_to(self) -> float | None:
        """The newest handled moment; None if none was handled."""
        handled = [*self.starts, *(skipped.due_at for skipped in self.skipped)]
        return max(
            (moment for moment in handled if not self.waits or moment < min(self.waits)),
            default=None,
        )


def moments(schedule: JobScheduleSpec, after: float) -> Iterator[float]:
    """Yield the moments of a schedule after a time (exclusive), in Unix time.

    Raises:
        CronSimError, ZoneInfoNotFoundError: The schedule is invalid; the spec rejects such.
    """
    start = datetime.fromtimestamp(after, UTC).astimezone(ZoneInfo(schedule.timezone))
    for moment in CronSim(schedule.cron, start):
        moment_s = moment.timestamp()
        if moment_s > after:  # CronSim moves a moment in a skipped hour to its end
            yield moment_s


def next_moment(schedule: JobScheduleSpec, after: float) -> float | None:
    """Return the first moment after a time; None if there is none for decades."""
    return next(moments(schedule, after), None)


def due(schedule: JobScheduleSpec, *, handled: float, now: float, running: int) -> DueRuns:
    """Return what to start now, and what to skip.

    Args:
        handled: The newest moment that was started or skipped; initially the time at which the
            schedule was applied. Later moments are considered.
        running: Number of unfinished runs of this job.
    """
    to_run, skipped = _to_run(schedule, _passed(schedule, handled, now), now)
    if schedule.overlap == "allow":
        return DueRuns(starts=to_run, skipped=skipped)
    if not running:
        # Runs are sequential: the remaining moments are due when the first run has ended.
        return DueRuns(starts=to_run[:1], skipped=skipped, waits=to_run[1:])
    if schedule.overlap == "wait":
        return DueRuns(skipped=skipped, waits=to_run)
    on_time = tuple(
        Skipped(due_at=moment, why="the previous run had not ended")
        for moment in to_run
        if _is_on_time(moment, now)
    )
    waits = tuple(moment for moment in to_run if not _is_on_time(moment, now))
    return DueRuns(skipped=(*skipped, *on_time), waits=waits)


def _passed(schedule: JobScheduleSpec, after: float, now: float) -> list[float]:
    """Return the moments in (after, now], at most the newest `MAX_MISSED`."""
    # Moments too old to catch up are not enumerated, for instance after years of downtime.
    since = max(after, now - schedule.catch_up_within_s - _WEEK_S)
    return list(takewhile(lambda moment: moment <= now, moments(schedule, since)))[-MAX_MISSED:]


def _to_run(
    schedule: JobScheduleSpec, passed: Sequence[float], now: float
) -> tuple[tuple[float, ...], tuple[Skipped, ...]]:
    """Return the moments to run, and those to skip."""
    skipped: dict[float, str] = {}
    for moment in passed:
        if now - moment > max(schedule.catch_up_within_s, _ON_TIME_S):
            skipped[moment] = f"over {schedule.catch_up_within_s:g} s too late"
        elif schedule.catch_up == "none" and not _is_on_time(moment, now):
            skipped[moment] = "the scheduler was not running then"
    to_run = [moment for moment in passed if moment not in skipped]
    if schedule.catch_up != "all":
        skipped |= dict.fromkeys(to_run[:-1], "a later moment replaced it")
        to_run = to_run[-1:]
    return tuple(to_run), tuple(
        Skipped(due_at=moment, why=skipped[moment]) for moment in sorted(skipped)
    )


def _is_on_time(moment: float, now: float) -> bool:
    return now - moment <= _ON_TIME_S
