"""Records in, answers out, in turns: what the thread that owns a session does.

Each turn collects what the model finished, lets it run what is due, delivers what may be, and
polls. A poll is never far away, however slow the model is, so membership is never lost for that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from headrace.core import Clock, FailedPreconditionError, HeadraceError
from headrace.streaming.backoff import retry_at
from headrace.streaming.broker import Session
from headrace.streaming.codec import NOTHING_ADDED
from headrace.streaming.counters import Counters
from headrace.streaming.holding import Holding
from headrace.streaming.intake import Intake
from headrace.streaming.ledger import Batch, Due, Ledger, Outcome
from headrace.streaming.outcomes import Writer
from headrace.streaming.records import Place
from headrace.streaming.settings import ErrorSettings
from headrace.streaming.windows.keeping import Windows

LONGEST_POLL_S: Final = 0.25
QUICK_S: Final = 0.002
"""So long a turn waits for the model at most before it polls."""
COMPANY_S: Final = 0.02
"""So long answers wait for others at most while a full batch of records waits, at least once."""
CHECKPOINT_S: Final = 0.5
"""So long a checkpoint of windows waits for what was delivered to be safe, before it gives up."""


class StoppedByRecordError(FailedPreconditionError):
    """A record has no answer, and the stream's policy is to stop before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What came of a batch: its outcomes, or what stands in the way of all its records.

    `seconds`: how long it took. `runs` of the model it took, with so many `rows` in them.
    """

    batch: Batch
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

    def submit(self, batch: Batch) -> None:
        """Run a batch; the session is woken when it is finished."""

    def finished(self) -> list[Finished]:
        """Batches that were finished since the last call."""

    def wait(self, timeout_s: float) -> None:
        """Until one is finished, or that time is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PumpSettings:
    """How a pump behaves; see `StreamSettings`."""

    max_batch_size: int
    max_delay_s: float
    commit_interval_s: float
    handover_s: float
    is_exact: bool
    """Whether what is delivered is a transaction, which costs much whatever its size."""


class Pump:
    """Moves the records of one session; its listener too. Used by one thread."""

    session: Session

    def __init__(
        self,
        settings: PumpSettings,
        runner: Runner,
        writer: Writer,
        errors: ErrorSettings,
        counters: Counters,
        *,
        clock: Clock,
        chance: Callable[[], float],
        windows: Windows | None = None,
    ) -> None:
        self.windows = windows
        self.intake = Intake(
            max_batch_size=settings.max_batch_size, max_delay_s=settings.max_delay_s
        )
        self.ledger = Ledger()
        self.places: set[Place] = set()
        self.is_paused = False
        self.last_error = ""
        self._settings = settings
        self._runner = runner
        self._writer = writer
        self._errors = errors
        self._counters = counters
        self._clock = clock
        self._chance = chance
        self._commit_at = 0.0
        self._holding = Holding()
        self._running: dict[Batch, float] = {}
        """Since when the model has which, the oldest first."""
        self._is_quick = False
        """Whether the last batch took the model less than `QUICK_S`."""
        self._is_ending = False
        self._over: HeadraceError | None = None

    def turn(self) -> None:
        """One turn.

        Raises:
            StoppedByRecordError: By policy; what comes before that record is delivered.
            HeadraceError: This session is over.
        """
        now = self._clock.monotonic()
        self._advance(now)
        if self._is_quick and self._running and not len(self.intake):
            # A poll of Kafka's client cannot be ended from outside: what the model has finished in
            # a moment would wait until the next record comes.
            self._runner.wait(QUICK_S)
            self._advance(self._clock.monotonic())
        if self.windows is not None and self.windows.is_due(now):
            self._checkpoint(self.windows, within_s=CHECKPOINT_S)
        room = 0 if self.is_paused or self._is_ending else self.intake.room
        self._hold(now, room)
        records = self.session.poll(
            min(room, self._settings.max_batch_size), self._pause_s(self._clock.monotonic())
        )
        if self._over is not None:
            raise self._over
        if records:
            if self.windows is not None:
                records = self.windows.to_score(records)
            self._counters.read += len(records)
            self.intake.put(records, self._clock.monotonic())

    def end(self, *, until: float) -> None:
        """Take nothing more; deliver what is under way until that (monotonic) time.

        Raises:
            HeadraceError: As `turn`.
        """
        self._is_ending = True
        self.intake.clear()
        while len(self.ledger) and not self.ledger.waiting() and self._clock.monotonic() < until:
            self.turn()
        self._deliver(force=True)
        self._settle(until)

    def gained(self, places: Sequence[Place]) -> Mapping[Place, int] | None:
        """As `Rebalanced`: read from where the group is, or the windows' states are."""
        self.places.update(places)
        self._holding.gained(places)
        self._counters.gained += len(places)
        if self.windows is None:
            return None
        try:
            return self.windows.gained(places)
        except HeadraceError as error:  # as in `losing`
            self._over = error
            return None

    def losing(self, places: Sequence[Place]) -> None:
        """As `Rebalanced`: what is under way is finished and delivered, within `handover_s`."""
        gone = set(places)
        self.intake.drop(gone)
        try:
            self._finish(gone, until=self._clock.monotonic() + self._settings.handover_s)
        except HeadraceError as error:  # through the broker's own code it might not come whole
            self._over = error
        self.ledger.drop(gone)
        self._forget(gone)
        self._counters.given_up += len(places)

    def lost(self, places: Sequence[Place]) -> None:
        """As `Rebalanced`: what is under way of these places is nobody's."""
        gone = set(places)
        self.intake.drop(gone)
        self.ledger.drop(gone)
        self._forget(gone)  # windows' states too: what is under way there is counted elsewhere
        self._counters.lost += len(places)

    def oldest_run(self) -> tuple[Batch, float] | None:
        """What the model has had for longest, and since when (monotonic); None for nothing."""
        return next(iter(self._running.items()), None)

    def _finish(self, places: set[Place], *, until: float) -> None:
        """Deliver what is under way of these places, and wait until it is safe."""
        while self.ledger.touches(places) and not self.ledger.waiting():
            left = until - self._clock.monotonic()
            if left <= 0:
                break
            self._runner.wait(left)
            self._collect(self._clock.monotonic())
            self._deliver(force=True)
        self._deliver(force=True)
        self._settle(until, places)

    def _settle(self, until: float, places: set[Place] | None = None) -> None:
        """Wait until what was delivered is safe; windows' states are of that then."""
        within_s = max(until - self._clock.monotonic(), 0.0)
        if self.windows is None:
            self.session.flush(within_s)
        else:
            self._checkpoint(self.windows, within_s=within_s, places=places, is_last=True)

    def _checkpoint(
        self,
        windows: Windows,
        *,
        within_s: float,
        places: set[Place] | None = None,
        is_last: bool = False,
    ) -> None:
        if self.session.flush(within_s):
            windows.checkpoint(places, is_last=is_last)
        else:
            windows.postpone()

    def _forget(self, gone: set[Place]) -> None:
        self.places -= gone
        self._holding.gone(gone)
        if self.windows is not None:
            self.windows.close(gone)

    def _advance(self, now: float) -> None:
        self._collect(now)
        for batch in self.ledger.waiting():
            if batch.again_at is not None and batch.again_at <= now and self._runner.has_room:
                batch.again_at = None
                self._counters.retries += 1
                self._run(batch)
        while self._runner.has_room:
            due = self.intake.due_at(is_free=self._runner.is_free)
            if due is None or due > now or self.ledger.is_failing():
                break
            records = self.intake.take()
            added = NOTHING_ADDED if self.windows is None else self.windows.count(records)
            batch = Batch(records=records, taken_at=now, added=added)
            self._counters.batches.observe(len(batch.records))
            self.ledger.add(batch)
            self._run(batch)
        self._deliver(force=False)

    def _run(self, batch: Batch) -> None:
        batch.tries += 1
        self._running[batch] = self._clock.monotonic()
        self._runner.submit(batch)

    def _collect(self, now: float) -> None:
        for one in self._runner.finished():
            self._running.pop(one.batch, None)  # one of the session before is not ours
            self._is_quick = one.seconds < QUICK_S
            self._counters.scored(seconds=one.seconds, runs=one.runs, rows=one.rows)
            if isinstance(one.result, HeadraceError):
                self._failed(one.batch, one.result, now)
            else:
                one.batch.outcomes = one.result
                one.batch.failing_since = None

    def _failed(self, batch: Batch, error: HeadraceError, now: float) -> None:
        """What stands in the way of all records may pass: the batch waits, or has had its time."""
        self.last_error = str(error)
        if batch.is_of_nobody:
            return
        if batch.failing_since is None:
            batch.failing_since = now
        batch.again_at = retry_at(
            self._errors,
            tries=batch.tries,
            since=batch.failing_since,
            now=now,
            chance=self._chance(),
            asked_s=error.retry_after_s,
        )
        if batch.again_at is None:
            batch.failing_since = None
            now_s = self._clock.now()
            batch.outcomes = [
                self._writer.failed(record, error, attempts=batch.tries, now_s=now_s)
                for record in batch.records
            ]

    def _deliver(self, *, force: bool) -> None:
        """All that may be; not too often, unless forced: a client writes many at less cost."""
        started = self._clock.monotonic()
        may_wait = self._settings.is_exact or len(self.intake) >= self._settings.max_batch_size
        if not self.ledger.has_due() or (started < self._commit_at and may_wait and not force):
            return
        due = self.ledger.take_due()
        if due.done or due.writes:
            self.session.deliver(due.writes, due.done)
            if self.windows is not None:
                self.windows.delivered(due.done)
            ended = self._clock.monotonic()
            exact = self._settings.is_exact
            self._commit_at = ended + (self._settings.commit_interval_s if exact else COMPANY_S)
            self._counters.delivered(due, now_s=self._clock.now(), seconds=ended - started)
            if due.without:
                self.last_error = str(due.without[-1].error)
        if due.stops is not None:
            raise self._stopped(due)

    def _stopped(self, due: Due) -> StoppedByRecordError:
        assert due.stops is not None
        record, error = due.stops
        topic, partition = record.place
        self.ledger.clear()
        self.intake.clear()
        return StoppedByRecordError(
            f"record {record.offset} of {topic}, partition {partition}, has no answer: {error}; "
            "by its policy the stream stops before it"
        )

    def _hold(self, now: float, room: int) -> None:
        """Tell the broker to hand out nothing, once nothing has been taken for a while."""
        pause, resume = self._holding.change(
            self.places, has_room=room > 0, is_paused=self.is_paused, now=now
        )
        if pause:
            self.session.pause(pause)
        if resume:
            self.session.resume(resume)

    def _pause_s(self, now: float) -> float:
        """How long a poll may wait: until something is due, a wake-up apart."""
        times = [now + LONGEST_POLL_S]
        if self._runner.has_room:
            again = [one.again_at for one in self.ledger.waiting() if one.again_at is not None]
            due = self.intake.due_at(is_free=self._runner.is_free)
            if again:
                times.append(min(again))
            elif due is not None and not self.ledger.is_failing():
                times.append(due)
        if self.ledger.has_due():
            times.append(self._commit_at)
        hold_at = self._holding.due_at()
        if hold_at is not None and hold_at > now:
            times.append(hold_at)
        return max(min(times) - now, 0.0)
