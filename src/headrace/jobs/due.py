"""Due moments of scheduled jobs, and moments that passed while nothing could run.

Pure: the time, the newest moment that ran and the number of runs are arguments. A cron line means
what it means to Debian's cron, which differs from croniter in two things. A line whose minute and
hour both begin with a number runs once at a time that the clocks show twice, and right after an
hour that they leave out; if one of the two begins with `*` (`*/30 2 * * *`), it runs whenever the
clocks show such a time. And a day such as `*/10` counts as any day beside a day of the week. Monday
is 1, 0 and 7 are Sunday; a day of the month and one of the week are alternatives.
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
"""So many moments that passed are told one by one, the newest ones."""
_ON_TIME_S: Final = 60.0
"""A moment that passed no longer ago needs no catching up."""
_WEEK_S: Final = 7 * 86_400.0


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """A moment for which nothing ran, and why."""

    due_at: float
    why: str


class DueRuns(msgspec.Struct, frozen=True, kw_only=True):
    """What to do now. `starts`: the moments whose runs begin, the oldest first."""

    starts: tuple[float, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    waits: tuple[float, ...] = ()

    @property
    def handled_to(self) -> float | None:
        """The newest moment that need not be looked at again; None where none was handled."""
        handled = [*self.starts, *(skipped.due_at for skipped in self.skipped)]
        return max(
            (moment for moment in handled if not self.waits or moment < min(self.waits)),
            default=None,
        )


def moments(schedule: JobScheduleSpec, after: float) -> Iterator[float]:
    """The moments of a schedule after a time, exclusive, in Unix time; ends where there are none.

    Raises:
        CronSimError, ZoneInfoNotFoundError: The schedule is malformed; the spec refuses such.
    """
    start = datetime.fromtimestamp(after, UTC).astimezone(ZoneInfo(schedule.timezone))
    for moment in CronSim(schedule.cron, start):
        moment_s = moment.timestamp()
        if moment_s > after:  # a moment within a skipped hour is told as the time right after
            yield moment_s


def next_moment(schedule: JobScheduleSpec, after: float) -> float | None:
    """The first moment after a time; None where there is none for decades."""
    return next(moments(schedule, after), None)


def due(schedule: JobScheduleSpec, *, handled: float, now: float, running: int) -> DueRuns:
    """What to start now, and what is left out.

    Args:
        handled: The newest moment that was started or left out; where there is none, the time at
            which the schedule came into force. Moments are looked at after it.
        running: How many runs of this job have not ended.
    """
    to_run, skipped = _to_run(schedule, _passed(schedule, handled, now), now)
    if schedule.overlap == "allow":
        return DueRuns(starts=to_run, skipped=skipped)
    if not running:
        # One after the other: what is left is due as soon as the first has ended.
        return DueRuns(starts=to_run[:1], skipped=skipped, waits=to_run[1:])
    if schedule.overlap == "wait":
        return DueRuns(skipped=skipped, waits=to_run)
    on_time = tuple(
        Skipped(due_at=moment, why="the run before had not ended")
        for moment in to_run
        if _is_on_time(moment, now)
    )
    waits = tuple(moment for moment in to_run if not _is_on_time(moment, now))
    return DueRuns(skipped=(*skipped, *on_time), waits=waits)


def _passed(schedule: JobScheduleSpec, after: float, now: float) -> list[float]:
    """The moments in (after, now]; of very many the newest."""
    # What is too old to be made up for is not gone through, after years of standing still.
    since = max(after, now - schedule.catch_up_within_s - _WEEK_S)
    return list(takewhile(lambda at: at <= now, moments(schedule, since)))[-MAX_MISSED:]


def _to_run(
    schedule: JobScheduleSpec, passed: Sequence[float], now: float
) -> tuple[tuple[float, ...], tuple[Skipped, ...]]:
    """The moments that are to run, and those that nobody will make up for."""
    skipped: dict[float, str] = {}
    for moment in passed:
        if now - moment > max(schedule.catch_up_within_s, _ON_TIME_S):
            skipped[moment] = f"over {schedule.catch_up_within_s:g} s had passed"
        elif schedule.catch_up == "none" and not _is_on_time(moment, now):
            skipped[moment] = "nothing could run it then"
    to_run = [moment for moment in passed if moment not in skipped]
    if schedule.catch_up != "all":
        skipped |= dict.fromkeys(to_run[:-1], "a later moment had passed too")
        to_run = to_run[-1:]
    return tuple(to_run), tuple(
        Skipped(due_at=moment, why=skipped[moment]) for moment in sorted(skipped)
    )


def _is_on_time(at: float, now: float) -> bool:
    return now - at <= _ON_TIME_S
