"""Workers of a stream and their history: lag, answers, dead letters and how each worker ended."""

import hashlib
import math
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, TypeVar

import msgspec

from headrace.autoscale.stream import StreamScaleState
from headrace.control.model.observed import CANNOT_LOAD, CRASHED, MANY_FAILURES, STABLE_AFTER_S
from headrace.control.streams.driver import WorkerRecord
from headrace.control.streams.plan import ObservedWorker, WorkerPhase
from headrace.control.streams.status import Lagging, WorkerView
from headrace.core.processes import Process
from headrace.streaming.settings import (
    EXIT_CANNOT_JOIN,
    EXIT_CANNOT_LISTEN,
    EXIT_CANNOT_LOAD,
    EXIT_REPLACED,
    EXIT_SETTINGS,
    EXIT_STOPPED_BY_RECORD,
    StreamStatus,
    WorkerSettings,
    WorkerState,
)

STEP_S: Final = 10.0
RETENTION_S: Final = 3600.0
_KEPT: Final = int(RETENTION_S / STEP_S)
T = TypeVar("T", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPoint:
    """Stream counts of the `seconds` that ended `at` (Unix time)."""

    at: float
    seconds: float
    answered: int
    dead_letters: int
    lag_records: int | None
    """Largest lag in records; None if unknown."""
    lag_s: float | None
    """Largest lag in seconds; None if unknown."""
    running: int
    """Workers that consumed records at its end."""


@dataclass(slots=True)
class StreamTrack:
    """One hour of a stream's history, in steps of 10 s.

    A worker's counts before its first report are left out, because their time is unknown.
    """

    _points: deque[StreamPoint] = field(default_factory=lambda: deque(maxlen=_KEPT))
    _step: StreamPoint | None = None
    """The current step."""
    _totals: dict[str, tuple[int, int]] = field(default_factory=dict)

    def note(
        self, statuses: Sequence[StreamStatus], lag: Lagging, *, running: int, now: float
    ) -> None:
        """Add the workers' current statuses; ended workers have none and restart at 0."""
        answered, dead_letters = self._news(statuses)
        step = self._step
        if step is not None and now < step.at:  # the clock was set back
            self._points.clear()
            step = None
        step = _begun(now, running) if step is None else step
        step = StreamPoint(
            at=now,
            seconds=step.seconds + now - step.at,
            answered=step.answered + answered,
            dead_letters=step.dead_letters + dead_letters,
            lag_records=_most((step.lag_records, lag.records)),
            lag_s=_most((step.lag_s, lag.seconds)),
            running=running,
        )
        if step.seconds >= STEP_S:
            self._points.append(step)
            step = _begun(now, running)
        self._step = step

    def dead_letters_within(self, seconds: float, *, now: float) -> int:
        """Return the dead letters of the last `seconds`, by whole steps."""
        count = sum(point.dead_letters for point in self._points if 0 <= now - point.at < seconds)
        return count + (0 if self._step is None else self._step.dead_letters)

    def points(self, seconds: float, *, now: float, maximum: int) -> list[StreamPoint]:
        """Return the steps of the last `seconds`, oldest first, joined into about `most` points."""
        points = [point for point in self._points if 0 <= now - point.at < seconds]
        size_s = math.ceil(min(seconds, RETENTION_S) / maximum / STEP_S) * STEP_S
        # Join by time, not by number, so that joined points stay the same when steps are added.
        groups = groupby(points, lambda point: point.at // size_s)
        return [_joined(list(group)) for _, group in groups]

    def _news(self, statuses: Iterable[StreamStatus]) -> tuple[int, int]:
        """Return the answered records and dead letters since the last call."""
        answered = dead_letters = 0
        totals = dict.fromkeys(self._totals, (0, 0))
        for status in statuses:
            now = status.answered, status.dead_letters
            before = self._totals.get(status.member, now)
            if now[0] < before[0] or now[1] < before[1]:
                before = 0, 0  # another process, which counts from 0
            answered += now[0] - before[0]
            dead_letters += now[1] - before[1]
            totals[status.member] = now
        self._totals = totals
        return answered, dead_letters


def _begun(now: float, running: int) -> StreamPoint:
    """Return a new, empty step."""
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
        seconds=sum(point.seconds for point in points),
        answered=sum(point.answered for point in points),
        dead_letters=sum(point.dead_letters for point in points),
        lag_records=_most([point.lag_records for point in points]),
        lag_s=_most([point.lag_s for point in points]),
        running=points[-1].running,
    )


def _most(values: Iterable[T | None]) -> T | None:
    return max((value for value in values if value is not None), default=None)


_SLOWLY: Final = frozenset(
    {EXIT_SETTINGS, EXIT_CANNOT_LOAD, EXIT_CANNOT_LISTEN, EXIT_CANNOT_JOIN, EXIT_REPLACED}
)
"""Exit codes of a worker after which a restart will probably fail too."""
_JOINED: Final = frozenset({WorkerState.RUNNING, WorkerState.PAUSED, WorkerState.RETRYING})
_SILENT_REPORT_S: Final = 10.0
"""Seconds after which users see that a worker does not answer."""
_STALLED_REPORT_S: Final = 30.0
"""Seconds after which users see that a broker call does not return."""


@dataclass(slots=True, kw_only=True)
class StreamWorker:
    """A member and its process, which is None once it ended."""

    record: WorkerRecord
    process: Process | None
    since: float
    """Monotonic time at which its phase began."""
    phase: WorkerPhase = WorkerPhase.STARTING
    failures: int = 0
    start_at: float = 0.0
    message: str = ""
    """Message of its last end."""
    code: int | None = None
    """Exit code of its last end."""
    asks_endpoint: bool = False
    status: StreamStatus | None = None
    rate: float = 0.0
    silent_since: float | None = None
    """Time of the first unanswered poll, as in `ObservedWorker`."""
    killed_for: str = ""
    """Reason why it is being killed; empty if it is not."""

    def observed(self) -> ObservedWorker:
        """Return the worker in the planner's form."""
        return ObservedWorker(
            index=self.record.index,
            revision=self.record.revision,
            phase=self.phase,
            since=self.since,
            start_at=self.start_at,
            silent_since=self.silent_since,
            still_s=0.0 if self.status is None else self.status.still_s,
            kill_sent=bool(self.killed_for),
        )

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to its process, if it has one."""
        if self.process is not None:
            self.process.send(signum)

    @property
    def is_dead_end(self) -> bool:
        """Whether it ended for a reason that will probably not pass by itself."""
        return self.phase is WorkerPhase.ENDED and self.code in {*_SLOWLY, EXIT_STOPPED_BY_RECORD}

    @property
    def is_failing(self) -> bool:
        """Whether it ended several times in a row, and has not run for long since."""
        return self.failures >= MANY_FAILURES

    @property
    def is_stuck(self) -> bool:
        """Whether it probably cannot run without a change; a missing endpoint may appear soon."""
        if self.phase is not WorkerPhase.ENDED or self.is_waiting_for_endpoint:
            return False
        return self.is_dead_end or self.is_failing

    @property
    def is_waiting_for_endpoint(self) -> bool:
        """Whether it ended because the endpoint that it calls does not exist yet."""
        return self.asks_endpoint and self.code == EXIT_CANNOT_LOAD


@dataclass(slots=True, kw_only=True)
class Team:
    """State of a stream that is desired or has workers left."""

    scale: StreamScaleState
    workers: dict[int, StreamWorker] = field(default_factory=dict)
    scaling: str = ""
    restarts: int = 0
    stalls: int = 0
    announced_state: str = ""
    """State in the newest event."""
    start_failures: int = 0
    start_error: str = ""
    track: StreamTrack = field(default_factory=StreamTrack)
    hold_until: float = -math.inf
    """Monotonic time before which no process is started, after starts failed with `start_error`.
    """

    def running(self) -> Iterator[StreamWorker]:
        """Yield the workers with a process."""
        return (worker for worker in self.workers.values() if worker.process is not None)

    def statuses(self) -> list[StreamStatus]:
        """Return the newest statuses of the workers."""
        return [worker.status for worker in self.workers.values() if worker.status is not None]


def note_end(worker: StreamWorker, code: int | None, *, last_line: str, now: float) -> bool:
    """Record the end of a worker's process and its restart time; return whether it was unexpected.

    Args:
        last_line: The last line of its log.
        now: Monotonic time.
    """
    previous, worker.phase, worker.status, worker.rate = worker.phase, WorkerPhase.ENDED, None, 0.0
    killed_for, worker.killed_for, worker.silent_since = worker.killed_for, "", None
    if previous is WorkerPhase.STOPPING:
        worker.failures, worker.start_at, worker.message, worker.code = 0, 0.0, "", None
        return False
    if previous is WorkerPhase.READY and now - worker.since >= STABLE_AFTER_S:
        worker.failures = 0
    worker.failures += 1
    worker.code = code
    worker.message = killed_for or last_line or f"ended with status {code}"
    if not killed_for and code is not None and code < 0:
        worker.message = f"was ended by {signal.Signals(-code).name}"
    # A missing endpoint may appear soon; a broken model does not change.
    is_slow = code in _SLOWLY and not worker.is_waiting_for_endpoint
    policy = CANNOT_LOAD if is_slow else CRASHED
    # It stopped before a record by its policy, and a user has to act.
    is_over = code == EXIT_STOPPED_BY_RECORD
    worker.start_at = math.inf if is_over else now + policy.delay_s(worker.failures)
    return True


def note_status(worker: StreamWorker, status: StreamStatus, *, rate: float, now: float) -> bool:
    """Record a worker's status; return whether it became a member.

    Args:
        rate: Records that it answers per second.
        now: Monotonic time.
    """
    worker.status, worker.rate = status, rate
    if worker.phase is WorkerPhase.READY and now - worker.since >= STABLE_AFTER_S:
        worker.failures = 0
    if worker.phase is not WorkerPhase.STARTING or status.state not in _JOINED:
        return False
    worker.phase, worker.since, worker.message = WorkerPhase.READY, now, ""
    return True


def note_answer(worker: StreamWorker, *, answered: bool, now: float, starts: bool) -> None:
    """Record whether a worker answered a poll.

    Args:
        now: Monotonic time.
        begins: Whether the last poll is long ago, so that earlier silence does not count: this
            process itself may have been stopped.
    """
    if answered:
        worker.silent_since = None
    elif worker.silent_since is None or starts:
        worker.silent_since = now


def revision_of(settings: WorkerSettings) -> str:
    """Return the digest of all settings that a running worker depends on, except `paused`."""
    same = msgspec.structs.replace(settings, paused=False)
    return hashlib.sha256(msgspec.json.encode(same, order="deterministic")).hexdigest()[:16]


def worker_view(worker: StreamWorker, revision: str, *, now: float) -> WorkerView:
    """Return a worker's view at monotonic `now`; `revision` is its desired revision."""
    status, hangs = worker.status, _hangs(worker, now)
    match worker.phase:
        case WorkerPhase.ENDED:
            state = "waiting"
        case WorkerPhase.STOPPING:
            state = str(worker.phase)
        case _ if hangs:
            state = "silent"
        case _:
            state = "starting" if status is None else str(status.state)
    message = worker.message if status is None else status.problem or worker.message
    partitions = [] if status is None else status.partitions
    lags = [partition.lag_records for partition in partitions if partition.lag_records is not None]
    return WorkerView(
        member=worker.record.name,
        state=state,
        pid=None if worker.process is None else worker.process.pid,
        restarts=worker.record.restarts,
        partitions=tuple(f"{partition.topic}/{partition.partition}" for partition in partitions),
        lag_records=sum(lags) if lags else None,
        rate=worker.rate,
        answered=0 if status is None else status.answered,
        dead_letters=0 if status is None else status.dead_letters,
        message=hangs if state == "silent" else message,
        outdated=worker.record.revision != revision,
    )


def _hangs(worker: StreamWorker, now: float) -> str:
    """Return text about an unusually long wait; empty if there is none."""
    if worker.phase is not WorkerPhase.READY:
        return ""
    silent_s = 0.0 if worker.silent_since is None else now - worker.silent_since
    if silent_s >= _SILENT_REPORT_S:
        return f"has not answered for {silent_s:.0f} s"
    status = worker.status
    # A reconnecting worker reports that itself, and waits up to 30 s.
    is_member = status is not None and status.state is not WorkerState.RECONNECTING
    if status is not None and is_member and status.still_s >= _STALLED_REPORT_S:
        return f"has waited for its broker's client for {status.still_s:.0f} s"
    return ""
