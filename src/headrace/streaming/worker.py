"""Stream worker that joins its group, polls, and joins again after errors.

The thread that calls `run` owns the session. Other threads may pause, resume, stop and read the
status.
"""

import contextlib
import logging
import threading
from collections.abc import Callable
from random import Random
from typing import Final

import msgspec

from headrace.core import Clock, ConflictError, HeadraceError, NotFoundError, SystemClock
from headrace.core.backoff import Backoff
from headrace.core.errors import Code
from headrace.streaming.broker import Broker, ConsumerSession, Membership
from headrace.streaming.metrics import Counters
from headrace.streaming.poll_loop import PollLoop, Runner, StoppedByRecordError
from headrace.streaming.records import PartitionLag, TopicPartition
from headrace.streaming.settings import PartitionStatus, StreamStatus, WorkerSettings, WorkerState
from headrace.streaming.windows.session import Windows

_log = logging.getLogger(__name__)

REJOIN: Final = Backoff(first_s=0.5, limit_s=30.0)
STATUS_EVERY_S: Final = 0.5
LAST_FLUSH_S: Final = 5.0
MAX_CONFLICTS: Final = 3
"""Consecutive times that a member may be replaced; the first time, it may have been considered
dead by mistake."""
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
        self._status = StreamStatus(stream=settings.name, member=settings.member)
        self._broker = broker
        self._clock = clock or SystemClock()
        self._random = random or Random()  # noqa: S311  # jitter, no secret
        self._wait = wait
        self._row_problem = row_problem
        self._session: ConsumerSession | None = None
        self._stopping = threading.Event()
        self._is_paused = settings.paused
        self._has_topics = False
        self._last_error = ""
        self._status_at = 0.0
        self._lag: dict[TopicPartition, PartitionLag] = {}
        self._progress_at = self._assigned_at = self._clock.monotonic()

    @property
    def status(self) -> StreamStatus:
        """Current status; safe to read from any thread."""
        still_s = self._clock.monotonic() - self._progress_at
        return msgspec.structs.replace(self._status, still_s=still_s)

    def run(self, runner: Runner) -> None:
        """Stream until `stop` is called.

        Raises:
            StoppedByRecordError: By policy, at a record without an answer.
            ConflictError: Another member has the same name.
            HeadraceError: The group cannot be joined with these settings.
        """
        failures = 0
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
                ran_s = self._clock.monotonic() - before[1]
                failures = 1 if has_joined and ran_s > REJOIN.limit_s else failures + 1
                if isinstance(error, ConflictError) and failures >= MAX_CONFLICTS:
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
        if not self._has_topics:
            # Created output topics have as many partitions as the first input topic.
            partitions = len(broker.ends(settings.topics[0])) if broker.abilities.partitions else 1
            for topic in filter(None, (settings.sink, settings.dead_letters)):
                broker.create_topic(topic, partitions=partitions)
            self._has_topics = True
        self._record_progress()
        windows = None
        if settings.windows is not None:
            windows = Windows(settings, broker, self.counters.windows, clock=self._clock)
        poll_loop = PollLoop(
            settings,
            runner,
            self.counters,
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
        )
        try:
            session = broker.join(membership, poll_loop)
        except BaseException:
            if windows is not None:
                windows.close()
            raise
        self.counters.sessions += 1
        poll_loop.session = self._session = session
        _log.info("joined", extra={"stream": settings.name, "group": settings.group})
        try:
            while not self._stopping.is_set():
                self._record_progress()
                poll_loop.is_paused = self._is_paused
                poll_loop.run_once()
                self._update_status(poll_loop, session)
            self._update_status(poll_loop, session, WorkerState.STOPPING, force=True)
            poll_loop.drain(until=self._clock.monotonic() + settings.drain_timeout_s)
        except StoppedByRecordError:
            session.flush(LAST_FLUSH_S)
            raise
        finally:
            self._last_error = poll_loop.last_error or self._last_error
            self._session = None
            session.close()
            if windows is not None:
                windows.close()
            self._lag = {}
            self._update_status(poll_loop, session, WorkerState.STOPPED, force=True)

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
        self._wait(self._stopping, REJOIN.jittered_s(failures, chance=self._random.random()))

    def _update_status(
        self,
        poll_loop: PollLoop,
        session: ConsumerSession,
        state: WorkerState | None = None,
        *,
        force: bool = False,
    ) -> None:
        """Replace the status, if it is due."""
        now = self._clock.monotonic()
        if now < self._status_at and not force:
            return
        self._status_at = now + STATUS_EVERY_S
        is_over = state is WorkerState.STOPPED
        if poll_loop.partitions:
            self._assigned_at = now
        if not is_over:
            with contextlib.suppress(HeadraceError):  # the previous lag is kept
                self._lag = dict(session.lag())
        if state is None and self._is_paused:
            state = WorkerState.PAUSED
        elif state is None:
            is_retrying = session.problem or poll_loop.in_flight.waiting()
            state = WorkerState.RETRYING if is_retrying else WorkerState.RUNNING
        partitions = (
            []
            if is_over
            else [_partition_status(p, self._lag.get(p)) for p in sorted(poll_loop.partitions)]
        )
        self._status = msgspec.structs.replace(
            self._status_of_counters(),
            state=state,
            partitions=[] if is_over else partitions,
            waiting=len(poll_loop.prefetch),
            in_flight=poll_loop.in_flight.records,
            problem="" if is_over else poll_loop.problem(now),
            last_error=poll_loop.last_error or self._last_error,
        )

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
            row_problem=self._row_problem(),
        )


def _partition_status(partition: TopicPartition, lag: PartitionLag | None) -> PartitionStatus:
    return PartitionStatus(
        topic=partition.topic,
        partition=partition.partition,
        lag_records=None if lag is None else lag.records,
        lag_s=None if lag is None else lag.seconds,
    )
