"""How was a stream over the last hour? Its lag, answers and dead letters; time comes in."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, TypeVar

from headrace.control.streams.status import Lagging
from headrace.streaming.settings import StreamStatus

STEP_S: Final = 10.0
KEPT_S: Final = 3600.0
_KEPT: Final = int(KEPT_S / STEP_S)
T = TypeVar("T", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPoint:
    """What happened in the `seconds` that ended `at` (Unix time).

    `lag_records`, `lag_s`: the most there was; None while nobody knew. `running`: workers that took
    records at its end.
    """

    at: float
    seconds: float
    answered: int
    dead_letters: int
    lag_records: int | None
    lag_s: float | None
    running: int


@dataclass(slots=True)
class StreamTrack:
    """Remembers an hour of one stream, in steps of ten seconds.

    What a worker had counted before it was first heard of is left out: nobody knows when it did.
    """

    _points: deque[StreamPoint] = field(default_factory=lambda: deque(maxlen=_KEPT))
    _step: StreamPoint | None = None
    """The step that goes on."""
    _totals: dict[str, tuple[int, int]] = field(default_factory=dict)

    def note(
        self, statuses: Sequence[StreamStatus], lag: Lagging, *, running: int, now: float
    ) -> None:
        """Take in what workers say now; those that ended say nothing, and begin at 0 again."""
        answered, letters = self._news(statuses)
        step = self._step
        if step is not None and now < step.at:  # the clock was set back
            self._points.clear()
            step = None
        step = _begun(now, running) if step is None else step
        step = StreamPoint(
            at=now,
            seconds=step.seconds + now - step.at,
            answered=step.answered + answered,
            dead_letters=step.dead_letters + letters,
            lag_records=_most((step.lag_records, lag.records)),
            lag_s=_most((step.lag_s, lag.seconds)),
            running=running,
        )
        if step.seconds >= STEP_S:
            self._points.append(step)
            step = _begun(now, running)
        self._step = step

    def dead_letters_within(self, seconds: float, *, now: float) -> int:
        """How many dead letters came lately, by whole steps."""
        found = sum(one.dead_letters for one in self._points if 0 <= now - one.at < seconds)
        return found + (0 if self._step is None else self._step.dead_letters)

    def points(self, seconds: float, *, now: float, most: int) -> list[StreamPoint]:
        """The steps of the last `seconds`, oldest first, joined so that there are about `most`."""
        found = [one for one in self._points if 0 <= now - one.at < seconds]
        size_s = math.ceil(min(seconds, KEPT_S) / most / STEP_S) * STEP_S
        # By the time, not by their number: what is joined once stays so while new steps come.
        groups = groupby(found, lambda one: one.at // size_s)
        return [_joined(list(group)) for _, group in groups]

    def _news(self, statuses: Iterable[StreamStatus]) -> tuple[int, int]:
        """How many were answered, and became dead letters, since the last look."""
        answered = letters = 0
        totals = dict.fromkeys(self._totals, (0, 0))
        for status in statuses:
            now = status.answered, status.dead_letters
            before = self._totals.get(status.member, now)
            if now[0] < before[0] or now[1] < before[1]:
                before = 0, 0  # another process, which begins anew
            answered += now[0] - before[0]
            letters += now[1] - before[1]
            totals[status.member] = now
        self._totals = totals
        return answered, letters


def _begun(now: float, running: int) -> StreamPoint:
    """A step in which nothing happened yet."""
    return StreamPoint(
        at=now,
        seconds=0.0,
        answered=0,
        dead_letters=0,
        lag_records=None,
        lag_s=None,
        running=running,
    )


def _joined(points: Sequence[StreamPoint]) -> StreamPoint:
    return StreamPoint(
        at=points[-1].at,
        seconds=sum(one.seconds for one in points),
        answered=sum(one.answered for one in points),
        dead_letters=sum(one.dead_letters for one in points),
        lag_records=_most([one.lag_records for one in points]),
        lag_s=_most([one.lag_s for one in points]),
        running=points[-1].running,
    )


def _most(values: Iterable[T | None]) -> T | None:
    return max((value for value in values if value is not None), default=None)
