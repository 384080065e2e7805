"""Poll loop of a stream: records in, answers out, in turns of the thread that owns the session.

Each turn collects what the model finished, lets it run what is due, delivers what may be, and
polls. A poll is never far away, however slow the model is, so membership is never lost for that.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
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

MAX_POLL_S: Final = 0.25
FAST_BATCH_S: Final = 0.002
"""So long a turn waits for the model at most before it polls."""
COALESCE_S: Final = 0.02
"""So long answers wait for others at most while a full batch of records waits, at least once."""
CHECKPOINT_TIMEOUT_S: Final = 0.5
"""So long a checkpoint of windows waits for what was delivered to be safe, before it gives up."""
REPORT_SLOW_AFTER_S: Final = 60.0
"""For so long the model may have the same records before it is told: an endpoint has given up."""
PAUSE_AFTER_S: Final = 1.0
"""So long nothing has to have been taken. Kafka's client throws away what it has fetched when it is
paused: with less, a model of some tenths of a second has it fetch the same again all the time.
"""


class StoppedByRecordError(FailedPreconditionError):
    """A record has no answer, and the stream's policy is to stop before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What came of a batch: its outcomes, or what stands in the way of all its records.

    `seconds`: how long it took. `runs` of the model it took, with so many `rows` in them.
    """

    batch: ScoringBatch
    result: Sequence[Outcome] | HeadraceError
    seconds: float
    runs: int = 0
    rows: int = 0


class Runner(Protocol):
    """Runs batches on other threads."""

    @property
    def is_free(self) -> bool:
        """Whether one that is submitted would run at once."""

    @property
    def has_room(self) -> bool:
        """Whether one may be submitted: it runs at once, or is the only one that waits."""

    def submit(self, batch: ScoringBatch) -> None:
        """Run a batch; the session is woken when it is finished."""

    def finished(self) -> list[Finished]:
        """Batches that were finished since the last call."""

    def wait(self, timeout_s: float) -> None:
        """Until one is finished, or that time is over."""


class Backpressure:
    """Partitions of which the broker hands out nothing. Decides; the caller brings the time.

    A full queue alone is no reason: it is full for a moment all the time, and to be paused may cost
    a broker what it has fetched already.
    """

    def __init__(self) -> None:
        self._paused: set[TopicPartition] = set()
        self._new: set[TopicPartition] = set()
        """Places that came; brokers differ on whether one that was paused comes back so."""
        self._full_since: float | None = None

    def on_assigned(self, partitions: Collection[TopicPartition]) -> None:
        """These came."""
        self._new.update(partitions)

    def on_revoked(self, partitions: Collection[TopicPartition]) -> None:
        """These went."""
        self._paused.difference_update(partitions)
        self._new.difference_update(partitions)

    def due_at(self) -> float | None:
        """When there may be something to pause; None if nothing will be for want of room."""
        return None if self._full_since is None else self._full_since + PAUSE_AFTER_S

    def change(
        self, partitions: Collection[TopicPartition], *, has_room: bool, is_paused: bool, now: float
    ) -> tuple[list[TopicPartition], list[TopicPartition]]:
        """What is to be paused, and what to be resumed, which the caller does.

        Args:
            places: All that this member has.
            has_room: Whether anything would be taken.
            is_paused: Whether that is because somebody wants it so.
        """
        if has_room:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = now
        due_at = self.due_at()
        should_pause = due_at is not None and (is_paused or now >= due_at)
        target = set(partitions) if should_pause else set()
        if target == self._paused and not self._new:
            return [], []
        paused = self._paused - self._new
        pause, resume = target - paused, (self._paused | self._new) - target
        self._paused = target
        self._new.clear()
        return sorted(pause), sorted(resume)


class PollLoop:
    """Moves the records of one session; its listener too. Used by one thread."""

    session: ConsumerSession

    def __init__(
        self,
        settings: WorkerSettings,
        runner: Runner,
        counters: Counters,
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
        """Whether what is delivered is a transaction, which costs much whatever its size."""
        self._runner = runner
        self._writer = ResultWriter(settings)
        self._errors = settings.errors
        self._counters = counters
        self._clock = clock
        self._chance = chance
        self._commit_at = 0.0
        self._backpressure = Backpressure()
        self._running: dict[ScoringBatch, float] = {}
        """Since when the model has which, the oldest first."""
        self._is_fast = False
        """Whether the last batch took the model less than `QUICK_S`."""
        self._is_ending = False
        self._fatal_error: HeadraceError | None = None

    def run_once(self) -> None:
        """One turn.

        Raises:
            StoppedByRecordError: By policy; what comes before that record is delivered.
            HeadraceError: This session is over.
        """
        now = self._clock.monotonic()
        self._advance(now)
        if self._is_fast and self._running and not len(self.prefetch):
            # A poll of Kafka's client cannot be ended from outside: what the model has finished in
            # a moment would wait until the next record comes.
            self._runner.wait(FAST_BATCH_S)
            self._advance(self._clock.monotonic())
        if self.windows is not None and self.windows.is_due(now):
            self._checkpoint(self.windows, within_s=CHECKPOINT_TIMEOUT_S)
        room = 0 if self.is_paused or self._is_ending else self.prefetch.room
        # Nothing has been taken for a while: the broker is told to hand out nothing.
        pause, resume = self._backpressure.change(
            self.partitions, has_room=room > 0, is_paused=self.is_paused, now=now
        )
        if pause:
            self.session.pause(pause)
        if resume:
            self.session.resume(resume)
        records = self.session.poll(
            min(room, self._settings.max_batch_size), self._poll_timeout_s(self._clock.monotonic())
        )
        if self._fatal_error is not None:
            raise self._fatal_error
        if records:
            if self.windows is not None:
                records = self.windows.count_restored(records)
            self._counters.read += len(records)
            self.prefetch.put(records, self._clock.monotonic())

    def drain(self, *, until: float) -> None:
        """Take nothing more; deliver what is under way until that (monotonic) time.

        Raises:
            HeadraceError: As `turn`.
        """
        self._is_ending = True
        self.prefetch.clear()
        while (
            len(self.in_flight) and not self.in_flight.waiting() and self._clock.monotonic() < until
        ):
            self.run_once()
        self._produce(force=True)
        self._flush(until)

    def on_assigned(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, int] | None:
        """As `Rebalanced`: read from where the group is, or the windows' states are."""
        self.partitions.update(partitions)
        self._backpressure.on_assigned(partitions)
        self._counters.assigned += len(partitions)
        if self.windows is None:
            return None
        try:
            return self.windows.on_assigned(partitions)
        except HeadraceError as error:  # as in `losing`
            self._fatal_error = error
            return None

    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """As `Rebalanced`: what is under way is finished and delivered, within `handover_s`."""
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
            self._flush(until, revoked)
        except HeadraceError as error:  # through the broker's own code it might not come whole
            self._fatal_error = error
        self.in_flight.drop(revoked)
        self._remove_partitions(revoked)
        self._counters.revoked += len(partitions)

    def on_lost(self, partitions: Sequence[TopicPartition]) -> None:
        """As `Rebalanced`: what is under way of these places is nobody's."""
        revoked = set(partitions)
        self.prefetch.drop(revoked)
        self.in_flight.drop(revoked)
        self._remove_partitions(
            revoked
        )  # windows' states too: what is under way there is counted elsewhere
        self._counters.lost += len(partitions)

    def problem(self, now: float) -> str:
        """What stands in the way: the broker, what scores, or windows' states; empty for nothing.

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
            f"the first is {first.offset} of {topic}, partition {partition}; nothing is wrong if "
            "it takes so long, else stop the stream and look at them"
        )

    def _flush(self, until: float, partitions: set[TopicPartition] | None = None) -> None:
        """Wait until what was delivered is safe; windows' states are of that then."""
        within_s = max(until - self._clock.monotonic(), 0.0)
        if self.windows is None:
            self.session.flush(within_s)
        else:
            self._checkpoint(self.windows, within_s=within_s, partitions=partitions, is_last=True)

    def _checkpoint(
        self,
        windows: Windows,
        *,
        within_s: float,
        partitions: set[TopicPartition] | None = None,
        is_last: bool = False,
    ) -> None:
        if self.session.flush(within_s):
            windows.checkpoint(partitions, is_last=is_last)
        else:
            windows.postpone()

    def _remove_partitions(self, revoked: set[TopicPartition]) -> None:
        self.partitions -= revoked
        self._backpressure.on_revoked(revoked)
        if self.windows is not None:
            self.windows.close(revoked)

    def _advance(self, now: float) -> None:
        self._collect(now)
        for batch in self.in_flight.waiting():
            if batch.retry_at is not None and batch.retry_at <= now and self._runner.has_room:
                batch.retry_at = None
                self._counters.retries += 1
                self._run(batch)
        while self._runner.has_room:
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

    def _run(self, batch: ScoringBatch) -> None:
        batch.attempts += 1
        self._running[batch] = self._clock.monotonic()
        self._runner.submit(batch)

    def _collect(self, now: float) -> None:
        for finished in self._runner.finished():
            self._running.pop(finished.batch, None)  # one of the session before is not ours
            self._is_fast = finished.seconds < FAST_BATCH_S
            self._counters.scored(seconds=finished.seconds, runs=finished.runs, rows=finished.rows)
            if isinstance(finished.result, HeadraceError):
                self._failed(finished.batch, finished.result, now)
            else:
                finished.batch.outcomes = finished.result
                finished.batch.failing_since = None

    def _failed(self, batch: ScoringBatch, error: HeadraceError, now: float) -> None:
        """What stands in the way of all records may pass: the batch waits, or has had its time."""
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
        """All that may be; not too often, unless forced: a client writes many at less cost."""
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
                f"{error}; by its policy the stream stops before it"
            )

    def _poll_timeout_s(self, now: float) -> float:
        """How long a poll may wait: until something is due, a wake-up apart."""
        times = [now + MAX_POLL_S]
        if self._runner.has_room:
            again = [
                batch.retry_at for batch in self.in_flight.waiting() if batch.retry_at is not None
            ]
            due = self.prefetch.due_at(is_free=self._runner.is_free)
            if again:
                times.append(min(again))
            elif due is not None and not self.in_flight.is_failing():
                times.append(due)
        if self.in_flight.has_due():
            times.append(self._commit_at)
        pause_at = self._backpressure.due_at()
        if pause_at is not None and pause_at > now:
            times.append(pause_at)
        return max(min(times) - now, 0.0)
