"""Stream worker that joins its group, polls, and joins again after errors.

The thread that calls `run` owns the session. Other threads may pause, resume, stop, read the
status, and check for a stall.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from random import Random
from typing import Final

import msgspec

from headrace.core import Clock, ConflictError, HeadraceError, NotFoundError, SystemClock
from headrace.core.backoff import Backoff
from headrace.core.errors import Code
from headrace.streaming.broker import Broker, ConsumerSession, Membership, ReplacedError
from headrace.streaming.metrics import Counters
from headrace.streaming.poll_loop import PollLoop, Runner, StoppedByRecordError
from headrace.streaming.records import PartitionLag, TopicPartition
from headrace.streaming.settings import PartitionStatus, StreamStatus, WorkerSettings, WorkerState
from headrace.streaming.windows.session import Windows
from headrace.streaming.writer import ResultWriter

_log = logging.getLogger(__name__)

_REJOIN: Final = Backoff(first_s=0.5, limit_s=4.0)
_STABLE_S: Final = 30.0
"""A session that lasted longer ends a series of failures."""
STATUS_EVERY_S: Final = 0.5
LAST_FLUSH_S: Final = 5.0
MAX_CONFLICTS: Final = 3
"""Consecutive times that a member may be fenced: a broker also fences a producer whose transaction
timed out."""
CHECK_EVERY_S: Final = 1.0
STALL_TIMEOUT_S: Final = 20.0
"""Longest iteration of the poll loop. A transaction ends within 17 s, and a client that has not
returned from a call by then never does."""
_REVOKE_S: Final = 15.0
"""Longest time that a revocation may take in addition to `handover_s`."""
JOIN_TIMEOUT_S: Final = 60.0
"""Longest step of joining; no partition is assigned meanwhile."""
_PERMANENT: Final = frozenset({Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED})
"""Errors of joining that waiting does not resolve."""


class WorkerLoop:
    """Runs one stream. `runner` must call `wake` when it has finished a batch.

    Args:
        wait: Waits for an event with a timeout in seconds; replaced in tests with a virtual clock.
        row_problem: Returns `StreamStatus.row_problem`.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        broker: Broker,
        *,
        clock: Clock | None = None,
        random: Random | None = None,
        wait: Callable[[threading.Event, float], object] = threading.Event.wait,
        row_problem: Callable[[], str] = lambda: "",
    ) -> None:
        self.settings = settings
        self.counters = Counters()
        self.limits: dict[str, int] = {}
        """Largest record in bytes of each output topic, as far as the broker tells it."""
        self.writer = ResultWriter(settings, self.limits)
        self._status = StreamStatus(stream=settings.name, member=settings.member)
        self._broker = broker
        self._clock = clock or SystemClock()
        self._random = random or Random()  # noqa: S311  # jitter, no secret
        self._wait = wait
        self._row_problem = row_problem
        self._session: ConsumerSession | None = None
        self._stopping = threading.Event()
        self._is_paused = settings.paused
        self._last_error = ""
        self._status_at = 0.0
        self._progress_at = self._assigned_at = self._clock.monotonic()
        self._expired_before = 0
        """Value of the counter at the start of the session."""
        self._checked_progress_at = self._progress_at
        self._checks = 0
        """Checks for a stall since the last progress."""

    @property
    def status(self) -> StreamStatus:
        """Current status; safe to read from any thread."""
        still_s = self._clock.monotonic() - self._progress_at
        return msgspec.structs.replace(self._status, still_s=still_s)

    def stall(self) -> str:
        """Return what the worker does that must end its process; empty if it need not end.

        Call it every `CHECK_EVERY_S` from another thread. It counts calls, not seconds: a process
        that was frozen, or whose model held the interpreter lock, has not stalled.
        """
        if self._progress_at != self._checked_progress_at:
            self._checked_progress_at, self._checks = self._progress_at, 0
            return ""
        if self._status.state is WorkerState.STOPPING:
            return ""  # it delivers, for a time that the watchdog limits
        self._checks += 1
        still_s, limit_s = self._checks * CHECK_EVERY_S, JOIN_TIMEOUT_S
        if self._session is not None:
            limit_s = max(STALL_TIMEOUT_S, self.settings.handover_s + _REVOKE_S)
        if still_s < limit_s:
            return ""
        return f"has waited for its broker's client for {still_s:.0f} s"

    def run(self, runner: Runner) -> None:
        """Stream until `stop` is called.

        Raises:
            StoppedByRecordError: By policy, at a record without an answer.
            ConflictError: Another member has the same name.
            HeadraceError: The group cannot be joined with these settings.
        """
        failures = conflicts = 0
        while not self._stopping.is_set():
            before = self.counters.sessions, self._clock.monotonic()
            try:
                self._run_session(runner)
            except StoppedByRecordError:
                raise
            except HeadraceError as error:
                has_joined = self.counters.sessions > before[0]
                if not has_joined and error.code in _PERMANENT:
                    raise
                if has_joined and self._clock.monotonic() - before[1] > _STABLE_S:
                    failures = conflicts = 0
                failures += 1
                conflicts = conflicts + 1 if isinstance(error, ConflictError) else 0
                if isinstance(error, ReplacedError) or conflicts >= MAX_CONFLICTS:
                    raise
                self._pause_after(error, failures)

    def pause(self) -> None:
        """Read no more records until `resume`; stay a member."""
        self._is_paused = True
        self.wake()

    def resume(self) -> None:
        """Read records again."""
        self._is_paused = False
        self.wake()

    def stop(self) -> None:
        """Make `run` produce the records in flight and return."""
        self._stopping.set()
        self.wake()

    def wake(self) -> None:
        """Make a waiting poll return."""
        session = self._session
        if session is not None:
            session.wake()

    def _run_session(self, runner: Runner) -> None:
        settings, broker = self.settings, self._broker
        self._record_progress()
        # Each session creates the output topics, as they may have been deleted.
        for topic in filter(None, (settings.sink, settings.dead_letters)):
            self._record_progress()
            limit_bytes = broker.create_topic(topic, like=settings.topics[0])
            if limit_bytes is not None:
                self.limits[topic] = limit_bytes
        self._record_progress()
        with ExitStack() as stack:
            windows = None
            if settings.windows is not None:
                windows = Windows(settings, broker, self.counters.windows, clock=self._clock)
                stack.callback(windows.close)
            poll_loop = PollLoop(
                settings,
                runner,
                self.counters,
                self.writer,
                clock=self._clock,
                chance=self._random.random,
                windows=windows,
            )
            membership = Membership(
                group=settings.group,
                member=settings.member,
                topics=tuple(settings.topics),
                delivery=settings.delivery,
                start=settings.start,
                start_s=settings.start_s,
                session_timeout_s=settings.session_timeout_s,
                protocol=settings.group_protocol,
            )
            session = broker.join(membership, poll_loop)
            self.counters.sessions += 1
            self._expired_before = self.counters.expired
            poll_loop.session = self._session = session
            _log.info("joined", extra={"stream": settings.name, "group": settings.group})
            try:
                while not self._stopping.is_set():
                    self._record_progress()
                    poll_loop.is_paused = self._is_paused
                    poll_loop.run_once()
                    self._update_status(poll_loop, session)
                self._update_status(poll_loop, session, WorkerState.STOPPING)
                poll_loop.drain(until=self._clock.monotonic() + settings.drain_timeout_s)
            except StoppedByRecordError:
                session.flush(LAST_FLUSH_S)
                raise
            finally:
                self._last_error = poll_loop.last_error or self._last_error
                self._record_progress()
                session.close()
                self._session = None
                self._update_status(poll_loop, session, WorkerState.STOPPED)

    def _record_progress(self) -> None:
        self._progress_at = self._clock.monotonic()

    def _pause_after(self, error: HeadraceError, failures: int) -> None:
        """Wait before the next session, and report the reason."""
        text = str(error)
        _log.warning("cannot stay in the group; joining again", extra={"error": text})
        self._last_error = text
        self._status = msgspec.structs.replace(
            self._status_of_counters(),
            state=WorkerState.RECONNECTING,
            problem=text,
            last_error=text,
            lacks_topic=isinstance(error, NotFoundError),
        )
        self._record_progress()
        self._wait(self._stopping, _REJOIN.jittered_s(failures, chance=self._random.random()))

    def _update_status(
        self, poll_loop: PollLoop, session: ConsumerSession, state: WorkerState | None = None
    ) -> None:
        """Replace the status: with a state of the session's end at once, else if it is due."""
        now = self._clock.monotonic()
        if now < self._status_at and state is None:
            return
        self._status_at = now + STATUS_EVERY_S
        self.counters.expired = self._expired_before + session.expired
        if poll_loop.partitions:
            self._assigned_at = now
        status = msgspec.structs.replace(
            self._status_of_counters(),
            state=state or self._state(poll_loop, session),
            waiting=len(poll_loop.prefetch),
            in_flight=poll_loop.in_flight.records,
            last_error=poll_loop.last_error or self._last_error,
        )
        if state is not WorkerState.STOPPED:
            lag: Mapping[TopicPartition, PartitionLag] = {}
            lag_problem = ""
            try:
                lag = session.lag()
            except HeadraceError as error:
                lag_problem = str(error)
            status = msgspec.structs.replace(
                status,
                partitions=[_partition_status(p, lag.get(p)) for p in sorted(poll_loop.partitions)],
                problem=poll_loop.problem(now),
                lag_problem=lag_problem,
            )
        self._status = status

    def _state(self, poll_loop: PollLoop, session: ConsumerSession) -> WorkerState:
        if not session.is_member:
            is_new = self._status.state is WorkerState.STARTING
            return WorkerState.STARTING if is_new else WorkerState.RECONNECTING
        if self._is_paused:
            return WorkerState.PAUSED
        is_retrying = session.problem or poll_loop.in_flight.waiting()
        return WorkerState.RETRYING if is_retrying else WorkerState.RUNNING

    def _status_of_counters(self) -> StreamStatus:
        counters = self.counters
        return StreamStatus(
            stream=self.settings.name,
            member=self.settings.member,
            unassigned_s=self._clock.monotonic() - self._assigned_at,
            lag_measured_at=self._clock.now(),
            read=counters.read,
            answered=counters.answered,
            dead_letters=counters.dead_letters,
            without_answer=sum(counters.failed.values()),
            retries=counters.retries,
            expired=counters.expired,
            row_problem=self._row_problem(),
        )


def _partition_status(partition: TopicPartition, lag: PartitionLag | None) -> PartitionStatus:
    return PartitionStatus(
        topic=partition.topic,
        partition=partition.partition,
        lag_records=None if lag is None else lag.records,
        lag_s=None if lag is None else lag.seconds,
    )
