"""Poll loop of a stream, which moves records from and to one session.

Each iteration collects finished batches, submits batches that are due, produces answers, and polls.
It polls often, regardless of the model's speed, so that membership is not lost.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from headrace.core import Clock, FailedPreconditionError, HeadraceError
from headrace.streaming.broker import ConsumerSession, Delivery
from headrace.streaming.codec import NO_ADDED_FIELDS
from headrace.streaming.in_flight import (
    InFlightBatches,
    Outcome,
    PrefetchBuffer,
    ScoringBatch,
    retry_at,
)
from headrace.streaming.metrics import Counters
from headrace.streaming.records import TopicPartition
from headrace.streaming.settings import WorkerSettings
from headrace.streaming.windows.session import Windows
from headrace.streaming.writer import ResultWriter

MAX_BATCHES: Final = 64
"""Batches in flight, also those that wait for an earlier one: a kill loses their answers."""
MAX_POLL_S: Final = 0.25
"""Longest wait of one poll."""
FAST_BATCH_S: Final = 0.002
"""Maximum seconds that an iteration waits for the model before it polls."""
COALESCE_S: Final = 0.02
"""Maximum seconds that answers wait for others while a full batch waits (at least once)."""
CHECKPOINT_TIMEOUT_S: Final = 0.5
"""Maximum seconds that a checkpoint of windows waits for acknowledgements."""
REPORT_SLOW_AFTER_S: Final = 60.0
"""Seconds with the same records after which the model is reported as slow; endpoints time out
earlier."""
PAUSE_AFTER_S: Final = 1.0
"""Seconds without a taken record after which partitions are paused. Kafka's client drops prefetched
records when it is paused: with a shorter time it fetches the same records repeatedly if the model
takes some tenths of a second."""


class StoppedByRecordError(FailedPreconditionError):
    """A record has no answer, and the stream's policy is to stop before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Result of running a batch."""

    batch: ScoringBatch
    result: Sequence[Outcome] | HeadraceError
    """Its outcomes, or the error that affects all of its records."""
    seconds: float
    """How long it took."""
    runs: int = 0
    """Number of runs of the model."""
    rows: int = 0
    """Number of rows in these runs."""


class Runner(Protocol):
    """Runs batches on other threads."""

    @property
    def is_free(self) -> bool:
        """Whether a submitted batch would run at once."""

    @property
    def has_room(self) -> bool:
        """Whether a batch may be submitted: it runs at once, or is the only one that waits."""

    def submit(self, batch: ScoringBatch) -> None:
        """Run a batch; the session is woken when it is finished."""

    def finished(self) -> list[Finished]:
        """Return batches that finished since the last call."""

    def wait(self, timeout_s: float) -> None:
        """Wait until a batch finishes, or until the timeout."""


class PollLoop:
    """Poll loop and rebalance listener of one session. Used by one thread."""

    session: ConsumerSession

    def __init__(
        self,
        settings: WorkerSettings,
        runner: Runner,
        counters: Counters,
        writer: ResultWriter,
        *,
        clock: Clock,
        chance: Callable[[], float],
        windows: Windows | None = None,
    ) -> None:
        self.windows = windows
        self.prefetch = PrefetchBuffer(
            max_batch_size=settings.max_batch_size, max_delay_s=settings.max_delay_s
        )
        self.in_flight = InFlightBatches()
        self.partitions: set[TopicPartition] = set()
        self.is_paused = False
        self.last_error = ""
        self._settings = settings
        self._is_exact = settings.delivery is Delivery.EXACTLY_ONCE
        """Whether deliveries are transactions, which are expensive regardless of their size."""
        self._runner = runner
        self._writer = writer
        self._errors = settings.errors
        self._counters = counters
        self._clock = clock
        self._chance = chance
        self._commit_at = 0.0
        self._full_since: float | None = None
        """Since when no record could be taken; None if there is room."""
        self._holds: bool | None = False
        """Whether the partitions are paused; None for newly assigned ones, which depends on the
        broker."""
        self._running: dict[ScoringBatch, float] = {}
        """Submitted batches, with the time since when each runs, the oldest first."""
        self._is_fast = False
        """Whether the model took less than `FAST_BATCH_S` for the last batch."""
        self._is_ending = False
        self._fatal_error: HeadraceError | None = None

    def run_once(self) -> None:
        """Run one iteration.

        Raises:
            StoppedByRecordError: By policy; all answers before that record were produced.
            HeadraceError: This session is over.
        """
        now = self._clock.monotonic()
        self._advance(now)
        if self._is_fast and self._running and not len(self.prefetch):
            # A poll of Kafka's client cannot be interrupted: a batch that finishes in a moment
            # would wait until the next record arrives.
            self._runner.wait(FAST_BATCH_S)
            self._advance(self._clock.monotonic())
        if self.windows is not None and self.windows.is_due(now):
            self._flush(CHECKPOINT_TIMEOUT_S, is_last=False)
        max_records = 0 if self.is_paused or self._is_ending else self.prefetch.room
        self._hold_or_resume(has_room=max_records > 0, now=now)
        records = self.session.poll(
            min(max_records, self._settings.max_batch_size),
            self._poll_timeout_s(self._clock.monotonic()),
        )
        if self._fatal_error is not None:
            raise self._fatal_error
        if records:
            if self.windows is not None:
                records = self.windows.count_restored(records)
            self._counters.read += len(records)
            self.prefetch.put(records, self._clock.monotonic())

    def drain(self, *, until: float) -> None:
        """Take no more records; produce those in flight until the monotonic time `until`.

        Raises:
            HeadraceError: As `run_once`.
        """
        self._is_ending = True
        self.prefetch.clear()
        while (
            len(self.in_flight) and not self.in_flight.waiting() and self._clock.monotonic() < until
        ):
            self.run_once()
        self._produce(force=True)
        self._flush(until - self._clock.monotonic())

    def on_assigned(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, int] | None:
        """Return the offsets of the windows' states, to read from; see `Rebalanced`."""
        self.partitions.update(partitions)
        self._holds = None
        self._counters.assigned += len(partitions)
        if self.windows is None:
            return None
        try:
            return self.windows.on_assigned(partitions)
        except HeadraceError as error:  # as in `on_revoked`
            self._fatal_error = error
            return None

    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Finish and produce records in flight within `handover_s`; see `Rebalanced`."""
        revoked = set(partitions)
        until = self._clock.monotonic() + self._settings.handover_s
        self.prefetch.drop(revoked)
        try:
            while self.in_flight.has_records_of(revoked) and not self.in_flight.waiting():
                left = until - self._clock.monotonic()
                if left <= 0:
                    break
                self._runner.wait(left)
                self._collect(self._clock.monotonic())
                self._produce(force=True)
            self._produce(force=True)
            self._flush(until - self._clock.monotonic(), revoked)
        except HeadraceError as error:  # the broker's client might not pass it on unchanged
            self._fatal_error = error
        self.in_flight.drop(revoked)
        self._remove_partitions(revoked)
        self._counters.revoked += len(partitions)

    def on_lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Drop records in flight from these partitions; see `Rebalanced`."""
        revoked = set(partitions)
        self.prefetch.drop(revoked)
        self.in_flight.drop(revoked)
        self._remove_partitions(revoked)  # with window states: the new owner counts them
        self._counters.lost += len(partitions)

    def problem(self, now: float) -> str:
        """Return the problem that blocks the stream: of broker, scorer or windows; empty for none.

        Args:
            now: Monotonic time.
        """
        if self.session.problem:
            return self.session.problem
        if self.in_flight.waiting():
            return self.last_error
        batch, since = next(iter(self._running.items()), (None, now))
        if batch is None or now - since < REPORT_SLOW_AFTER_S:
            return "" if self.windows is None else self.windows.problem
        first, count = batch.records[0], len(batch.records)
        topic, partition = first.topic_partition
        return (
            f"the model has had {count} record{'s' if count > 1 else ''} for {now - since:.0f} s, "
            f"starting with offset {first.offset} of {topic}, partition {partition}; if the model "
            "is not expected to take so long, stop the stream and check these records"
        )

    def _hold_or_resume(self, *, has_room: bool, now: float) -> None:
        """Pause the partitions if no record could be taken for a while; resume them with room.

        A full buffer alone is no reason to pause: it is often full for a moment, and a paused
        client may drop prefetched records.
        """
        if has_room:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = now
        holds = self._full_since is not None and (
            self.is_paused or now >= self._full_since + PAUSE_AFTER_S
        )
        if holds != self._holds:
            self._holds = holds
            (self.session.pause if holds else self.session.resume)(sorted(self.partitions))

    def _flush(
        self,
        within_s: float,
        partitions: set[TopicPartition] | None = None,
        *,
        is_last: bool = True,
    ) -> None:
        """Wait until produced records are acknowledged, then checkpoint the windows up to them."""
        is_flushed = self.session.flush(max(within_s, 0.0))
        if self.windows is not None and is_flushed:
            self.windows.checkpoint(partitions, is_last=is_last)
        elif self.windows is not None:
            self.windows.postpone()

    def _remove_partitions(self, revoked: set[TopicPartition]) -> None:
        self.partitions -= revoked
        if self.windows is not None:
            self.windows.close(revoked)

    def _advance(self, now: float) -> None:
        self._collect(now)
        for batch in self.in_flight.waiting():
            if batch.retry_at is not None and batch.retry_at <= now and self._runner.has_room:
                batch.retry_at = None
                self._counters.retries += 1
                self._run(batch)
        while self._has_room:
            due = self.prefetch.due_at(is_free=self._runner.is_free)
            if due is None or due > now or self.in_flight.is_failing():
                break
            records = self.prefetch.take()
            added = NO_ADDED_FIELDS if self.windows is None else self.windows.count(records)
            batch = ScoringBatch(records=records, taken_at=now, added=added)
            self._counters.batches.observe(len(batch.records))
            self.in_flight.add(batch)
            self._run(batch)
        self._produce(force=False)

    @property
    def _has_room(self) -> bool:
        """Whether a new batch may be submitted."""
        limit = max(MAX_BATCHES, 2 * (self._settings.model_threads or 0))
        return self._runner.has_room and len(self.in_flight) < limit

    def _run(self, batch: ScoringBatch) -> None:
        batch.attempts += 1
        self._running[batch] = self._clock.monotonic()
        self._runner.submit(batch)

    def _collect(self, now: float) -> None:
        for finished in self._runner.finished():
            self._running.pop(finished.batch, None)  # absent for a batch of the previous session
            self._is_fast = finished.seconds < FAST_BATCH_S
            self._counters.score.observe(finished.seconds)
            self._counters.runs += finished.runs
            self._counters.rows += finished.rows
            if isinstance(finished.result, HeadraceError):
                self._failed(finished.batch, finished.result, now)
            else:
                finished.batch.outcomes = finished.result
                finished.batch.failing_since = None

    def _failed(self, batch: ScoringBatch, error: HeadraceError, now: float) -> None:
        """Schedule a retry of a batch whose records all failed, or fail its records."""
        self.last_error = str(error)
        if batch.is_revoked:
            return
        if batch.failing_since is None:
            batch.failing_since = now
        batch.retry_at = retry_at(
            self._errors,
            attempts=batch.attempts,
            since=batch.failing_since,
            now=now,
            chance=self._chance(),
            retry_after_s=error.retry_after_s,
        )
        if batch.retry_at is None:
            batch.failing_since = None
            now_s = self._clock.now()
            batch.outcomes = [
                self._writer.failed(record, error, attempts=batch.attempts, now_s=now_s)
                for record in batch.records
            ]

    def _produce(self, *, force: bool) -> None:
        """Produce everything due; unless forced, at intervals, as larger writes are cheaper."""
        started = self._clock.monotonic()
        may_wait = self._is_exact or len(self.prefetch) >= self._settings.max_batch_size
        if not self.in_flight.has_due() or (started < self._commit_at and may_wait and not force):
            return
        due = self.in_flight.take_due()
        if due.offsets or due.writes:
            self.session.produce(due.writes, due.offsets)
            if self.windows is not None:
                self.windows.delivered(due.offsets)
            ended = self._clock.monotonic()
            pause_s = self._settings.commit_interval_s if self._is_exact else COALESCE_S
            self._commit_at = ended + pause_s
            self._counters.delivered(due, now_s=self._clock.now(), seconds=ended - started)
            if due.failed:
                self.last_error = str(due.failed[-1].error)
        if due.stops is not None:
            record, error = due.stops
            topic, partition = record.topic_partition
            self.in_flight.clear()
            self.prefetch.clear()
            raise StoppedByRecordError(
                f"record {record.offset} of {topic}, partition {partition}, has no answer: "
                f"{error}; the stream stops before it (errors.policy: stop)"
            )

    def _poll_timeout_s(self, now: float) -> float:
        """Return how long a poll may wait: until the next due time, unless it is woken."""
        times = [now + MAX_POLL_S]
        if self._runner.has_room:
            waiting = self.in_flight.waiting()
            times += [batch.retry_at for batch in waiting if batch.retry_at is not None]
            due = self.prefetch.due_at(is_free=self._runner.is_free)
            if due is not None and self._has_room and not self.in_flight.is_failing():
                times.append(due)
        if self.in_flight.has_due():
            times.append(self._commit_at)
        if self._full_since is not None and self._full_since + PAUSE_AFTER_S > now:
            times.append(self._full_since + PAUSE_AFTER_S)
        return max(min(times) - now, 0.0)
