"""What is remembered of a stream's workers, and what does the end of one mean?"""

import hashlib
import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from headrace.autoscale.stream import StreamScaleState
from headrace.control.backoff import CANNOT_LOAD, CRASHED, MANY_FAILURES, STABLE_AFTER_S
from headrace.control.streams.driver import WorkerRecord
from headrace.control.streams.plan import Phase, Seen
from headrace.control.streams.status import WorkerView
from headrace.control.streams.track import StreamTrack
from headrace.core.processes import Process
from headrace.streaming.settings import (
    EXIT_CANNOT_JOIN,
    EXIT_CANNOT_LISTEN,
    EXIT_CANNOT_LOAD,
    EXIT_REPLACED,
    EXIT_SETTINGS,
    EXIT_STOPPED_BY_RECORD,
    State,
    StreamSettings,
    StreamStatus,
)

_SLOWLY: Final = frozenset(
    {EXIT_SETTINGS, EXIT_CANNOT_LOAD, EXIT_CANNOT_LISTEN, EXIT_CANNOT_JOIN, EXIT_REPLACED}
)
"""Ends of a worker that another try will hardly change."""
_JOINED: Final = frozenset({State.RUNNING, State.PAUSED, State.RETRYING})
_SILENT_TOLD_S: Final = 10.0
"""After so long people are told that a worker does not answer."""
_STILL_TOLD_S: Final = 30.0
"""After so long, that a call of its broker's client does not return."""


@dataclass(slots=True, kw_only=True)
class Worker:
    """A member and its process; None once that ended.

    `since`: when its phase began, in monotonic time. `message` and `code`: of its last end.
    `silent_since`: as in `Seen`. `killed_for`: why its process is being ended; empty if it is not.
    """

    record: WorkerRecord
    process: Process | None
    since: float
    phase: Phase = Phase.STARTING
    failures: int = 0
    start_at: float = 0.0
    message: str = ""
    code: int | None = None
    asks_endpoint: bool = False
    status: StreamStatus | None = None
    rate: float = 0.0
    silent_since: float | None = None
    killed_for: str = ""

    def seen(self) -> Seen:
        """As planning sees it."""
        return Seen(
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
        """Send its process a signal, if there is one."""
        if self.process is not None:
            self.process.send(signum)

    @property
    def is_dead_end(self) -> bool:
        """Whether it ended for a reason that will hardly pass by itself."""
        return self.phase is Phase.ENDED and self.code in {*_SLOWLY, EXIT_STOPPED_BY_RECORD}

    @property
    def is_failing(self) -> bool:
        """Whether it ended several times in a row, and has not run for long since."""
        return self.failures >= MANY_FAILURES

    @property
    def is_stuck(self) -> bool:
        """Whether it hardly runs without somebody's help; an endpoint may soon be there."""
        if self.phase is not Phase.ENDED or self.is_waiting_for_endpoint:
            return False
        return self.is_dead_end or self.is_failing

    @property
    def is_waiting_for_endpoint(self) -> bool:
        """Whether it ended because the endpoint that it asks is not there yet."""
        return self.asks_endpoint and self.code == EXIT_CANNOT_LOAD


@dataclass(slots=True, kw_only=True)
class Team:
    """What is remembered of a stream that should run, or has workers left.

    `told`: the state that events know of. `hold_until`: no process is started before, in monotonic
    time, as the last ones could not be, because of `start_error`.
    """

    scale: StreamScaleState
    workers: dict[int, Worker] = field(default_factory=dict)
    scaling: str = ""
    restarts: int = 0
    told: str = ""
    start_failures: int = 0
    start_error: str = ""
    track: StreamTrack = field(default_factory=StreamTrack)
    hold_until: float = -math.inf

    def running(self) -> Iterator[Worker]:
        """Those with a process."""
        return (worker for worker in self.workers.values() if worker.process is not None)

    def statuses(self) -> list[StreamStatus]:
        """What they said last."""
        return [one.status for one in self.workers.values() if one.status is not None]


def note_end(worker: Worker, code: int | None, *, said: str, now: float) -> bool:
    """Note that a worker's process ended, and when it starts again; whether that was unasked.

    Args:
        said: The last line of its log.
        now: Monotonic time.
    """
    was, worker.phase, worker.status, worker.rate = worker.phase, Phase.ENDED, None, 0.0
    killed_for, worker.killed_for, worker.silent_since = worker.killed_for, "", None
    if was is Phase.STOPPING:
        worker.failures, worker.start_at, worker.message, worker.code = 0, 0.0, "", None
        return False
    if was is Phase.READY and now - worker.since >= STABLE_AFTER_S:
        worker.failures = 0
    worker.failures += 1
    worker.code = code
    worker.message = killed_for or _why(code, said)
    # An endpoint that cannot be asked yet is soon there; a model stays as it is.
    is_slow = code in _SLOWLY and not worker.is_waiting_for_endpoint
    policy = CANNOT_LOAD if is_slow else CRASHED
    # By its policy it stopped before a record: a person has to see to that.
    is_over = code == EXIT_STOPPED_BY_RECORD
    worker.start_at = math.inf if is_over else now + policy.delay_s(worker.failures)
    return True


def note_status(worker: Worker, status: StreamStatus, *, rate: float, now: float) -> bool:
    """Note what a worker says; whether it is a member from now on.

    Args:
        rate: Records that it answers per second.
        now: Monotonic time.
    """
    worker.status, worker.rate = status, rate
    if worker.phase is Phase.READY and now - worker.since >= STABLE_AFTER_S:
        worker.failures = 0
    if worker.phase is not Phase.STARTING or status.state not in _JOINED:
        return False
    worker.phase, worker.since, worker.message = Phase.READY, now, ""
    return True


def note_answer(worker: Worker, *, answered: bool, now: float, begins: bool) -> None:
    """Note whether a worker answered when it was asked.

    Args:
        now: Monotonic time.
        begins: Whether nobody asked for a while, so that what was noted before says nothing: this
            process may have been the one that was stopped.
    """
    if answered:
        worker.silent_since = None
    elif worker.silent_since is None or begins:
        worker.silent_since = now


def _why(code: int | None, said: str) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return said or f"ended with status {code}"


def revision_of(settings: StreamSettings) -> str:
    """The digest of everything that a running worker depends on; whether it is paused is not."""
    same = msgspec.structs.replace(settings, paused=False)
    return hashlib.sha256(msgspec.json.encode(same, order="deterministic")).hexdigest()[:16]


def worker_view(worker: Worker, revision: str, *, now: float) -> WorkerView:
    """How a worker is at `now`, in monotonic time; `revision`: what it should run."""
    status, hangs = worker.status, _hangs(worker, now)
    match worker.phase:
        case Phase.ENDED:
            state = "waiting"
        case Phase.STOPPING:
            state = str(worker.phase)
        case _ if hangs:
            state = "silent"
        case _:
            state = "starting" if status is None else str(status.state)
    message = worker.message if status is None else status.trouble or worker.message
    places = [] if status is None else status.places
    lags = [place.lag_records for place in places if place.lag_records is not None]
    return WorkerView(
        member=worker.record.name,
        state=state,
        pid=None if worker.process is None else worker.process.pid,
        restarts=worker.record.restarts,
        partitions=tuple(f"{place.topic}/{place.partition}" for place in places),
        lag_records=sum(lags) if lags else None,
        rate=worker.rate,
        answered=0 if status is None else status.answered,
        dead_letters=0 if status is None else status.dead_letters,
        message=hangs if state == "silent" else message,
        outdated=worker.record.revision != revision,
    )


def _hangs(worker: Worker, now: float) -> str:
    """What is unusual about how long it takes, for people; empty if nothing is."""
    if worker.phase is not Phase.READY:
        return ""
    silent_s = 0.0 if worker.silent_since is None else now - worker.silent_since
    if silent_s >= _SILENT_TOLD_S:
        return f"has not answered for {silent_s:.0f} s"
    status = worker.status
    # One that reconnects says so itself, and waits up to half a minute.
    is_member = status is not None and status.state is not State.RECONNECTING
    if status is not None and is_member and status.still_s >= _STILL_TOLD_S:
        return f"has waited for its broker's client for {status.still_s:.0f} s"
    return ""
