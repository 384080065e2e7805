"""Records under way in a stream: those that wait for a batch, and batches that wait for delivery.

Batches are delivered in the order in which they were taken, whatever order they finish in. So the
answers of a partition stay in order, and its input is always done up to one offset. All here
decides only; the caller brings the time.
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from headrace.core import Code, HeadraceError, PayloadTooLargeError
from headrace.core.backoff import Backoff
from headrace.core.spec.stream_parts import StreamErrorsSpec
from headrace.streaming.codec import NO_ADDED_FIELDS, Added
from headrace.streaming.records import NewRecord, Record, TopicPartition

_BATCHES_AHEAD: Final = 2
MAX_BYTES: Final = 64 << 20
"""With so many bytes in records that wait, nothing more is read, however few records these are."""


class PrefetchBuffer:
    """Records that were read and wait for a run, in the order in which they came.

    A batch is due when the model is free and its oldest record waited `max_delay_s`, or when it is
    full. As long as the model is busy, batches grow; one full batch may wait beside the one that
    runs, so that the model never waits for the records.
    """

    def __init__(self, *, max_batch_size: int, max_delay_s: float) -> None:
        self.max_batch_size = max_batch_size
        self.max_delay_s = max_delay_s
        self._records: deque[Record] = deque()
        self._arrivals: deque[tuple[float, int]] = deque()
        """When how many came; the sums are as many as wait."""
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    @property
    def room(self) -> int:
        """How many more records may be read."""
        if self._bytes >= MAX_BYTES:
            return 0
        return max(_BATCHES_AHEAD * self.max_batch_size - len(self._records), 0)

    def put(self, records: Sequence[Record], now: float) -> None:
        """Let records wait."""
        if records:
            self._records.extend(records)
            self._arrivals.append((now, len(records)))
            self._bytes += _size(records)

    def due_at(self, *, is_free: bool) -> float | None:
        """Monotonic time at which the next batch is due; None if it is not a matter of time."""
        if not self._records:
            return None
        oldest = self._arrivals[0][0]
        if len(self._records) >= self.max_batch_size:
            return oldest
        return oldest + self.max_delay_s if is_free else None

    def take(self) -> list[Record]:
        """The next batch, taken out; empty if none waits."""
        count = min(len(self._records), self.max_batch_size)
        popleft = self._records.popleft
        batch = [popleft() for _ in range(count)]
        self._bytes = self._bytes - _size(batch) if self._records else 0
        while count:
            came_at, arrived = self._arrivals.popleft()
            if arrived > count:
                self._arrivals.appendleft((came_at, arrived - count))
                break
            count -= arrived
        return batch

    def drop(self, partitions: Collection[TopicPartition]) -> None:
        """Forget what waits of these places: others read it."""
        rest: deque[Record] = deque()
        arrivals: deque[tuple[float, int]] = deque()
        for came_at, count in self._arrivals:
            chunk = [self._records.popleft() for _ in range(count)]
            stays = [record for record in chunk if record.topic_partition not in partitions]
            if stays:
                rest.extend(stays)
                arrivals.append((came_at, len(stays)))
        self._records, self._arrivals, self._bytes = rest, arrivals, _size(rest)

    def clear(self) -> None:
        """Forget all that waits."""
        self._records.clear()
        self._arrivals.clear()
        self._bytes = 0


def _size(records: Iterable[Record]) -> int:
    return sum([len(record.value) for record in records if record.value is not None])


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRecord:
    """A record that has no answer, and what is written of it instead; None for nothing.

    `stops`: neither it nor anything after it may be delivered.
    """

    error: HeadraceError
    dead_letter: NewRecord | None = None
    stops: bool = False


Outcome = NewRecord | FailedRecord | None
"""The result of one record: what is written for it; None if it is only done with."""


@dataclass(slots=True, kw_only=True, eq=False)
class ScoringBatch:
    """Records that are scored together.

    `taken_at`, `retry_at`, `failing_since`: monotonic. `retry_at`: when it is to be tried again;
    None while it runs, or is done. `outcomes`: one for each record; None while there are none.
    `gone`: places whose records are no longer this member's. `added`: fields beside their own.
    """

    records: Sequence[Record]
    added: Added = NO_ADDED_FIELDS
    taken_at: float = 0.0
    attempts: int = 0
    failing_since: float | None = None
    retry_at: float | None = None
    outcomes: Sequence[Outcome] | None = None
    revoked: set[TopicPartition] = field(default_factory=set)

    @property
    def is_revoked(self) -> bool:
        """Whether all its records are other members' by now."""
        return bool(self.revoked) and all(
            record.topic_partition in self.revoked for record in self.records
        )

    def has_records_of(self, partitions: Collection[TopicPartition]) -> bool:
        """Whether it has records of these places that are still this member's."""
        return any(
            record.topic_partition in partitions and record.topic_partition not in self.revoked
            for record in self.records
        )


@dataclass(slots=True, kw_only=True)
class DueDelivery:
    """What is delivered at once: records to write, and the next offset to read of each place.

    `answered`: records that have answers. `failed`: what those that have none have instead.
    `stops`: the record that the stream stops before, and why.
    """

    writes: list[NewRecord] = field(default_factory=list)
    offsets: dict[TopicPartition, int] = field(default_factory=dict)
    answered: list[Record] = field(default_factory=list)
    failed: list[FailedRecord] = field(default_factory=list)
    stops: tuple[Record, HeadraceError] | None = None

    def add_answers(self, records: Sequence[Record], answers: Sequence[Any]) -> None:
        """What came of records that each have one record as their answer: most batches."""
        self.writes += answers
        self.answered += records
        self.offsets |= {record.topic_partition: record.offset + 1 for record in records}

    def add(self, record: Record, outcome: Outcome) -> bool:
        """What came of the next record; whether others may follow."""
        if isinstance(outcome, NewRecord):
            self.writes.append(outcome)
            self.answered.append(record)
        elif outcome is None:
            self.answered.append(record)
        elif outcome.stops:
            self.stops = record, outcome.error
            return False
        else:
            if outcome.dead_letter is not None:
                self.writes.append(outcome.dead_letter)
            self.failed.append(outcome)
        self.offsets[record.topic_partition] = record.offset + 1
        return True


class InFlightBatches:
    """Batches that were taken and are not delivered, in order."""

    def __init__(self) -> None:
        self._batches: deque[ScoringBatch] = deque()

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def records(self) -> int:
        """How many records are under way."""
        return sum(len(batch.records) for batch in self._batches)

    def add(self, batch: ScoringBatch) -> None:
        """A batch was taken; its records follow those of all before it."""
        self._batches.append(batch)

    def waiting(self) -> list[ScoringBatch]:
        """Batches that wait for another try."""
        return [batch for batch in self._batches if batch.retry_at is not None]

    def is_failing(self) -> bool:
        """Whether what scores was away when it was asked last: nothing new need be tried."""
        return any(batch.failing_since is not None for batch in self._batches)

    def has_due(self) -> bool:
        """Whether `take_due` would give something."""
        if not self._batches:
            return False
        first = self._batches[0]
        return first.outcomes is not None or first.is_revoked

    def has_records_of(self, partitions: Collection[TopicPartition]) -> bool:
        """Whether something of these places is neither delivered nor dropped."""
        return any(batch.has_records_of(partitions) for batch in self._batches)

    def take_due(self) -> DueDelivery:
        """All that may be delivered now, taken out."""
        due = DueDelivery()
        while due.stops is None and self.has_due():
            batch = self._batches.popleft()
            if batch.outcomes is None:
                continue
            if not batch.revoked and {NewRecord}.issuperset(map(type, batch.outcomes)):
                due.add_answers(batch.records, batch.outcomes)
                continue
            for record, outcome in zip(batch.records, batch.outcomes, strict=True):
                if record.topic_partition not in batch.revoked and not due.add(record, outcome):
                    break
        return due

    def drop(self, partitions: Collection[TopicPartition]) -> None:
        """Nothing of these places that is under way is delivered any more."""
        for batch in self._batches:
            batch.revoked.update(partitions)
            if batch.is_revoked:
                batch.retry_at = batch.failing_since = None

    def clear(self) -> None:
        """Nothing that is under way is delivered any more."""
        self._batches.clear()


_RETRYABLE: Final = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED})


def is_retryable(error: HeadraceError) -> bool:
    """Whether the same records may be scored later on."""
    return error.code in _RETRYABLE and not isinstance(error, PayloadTooLargeError)


def retry_at(
    errors: StreamErrorsSpec,
    *,
    attempts: int,
    since: float,
    now: float,
    chance: float,
    retry_after_s: float | None = None,
) -> float | None:
    """Return the monotonic time of the next try; None if no more is made.

    Args:
        tries: How many were made, at least 1.
        since: When the first one failed.
        chance: Evenly distributed in [0, 1).
        asked_s: How long the one that failed asks to be left alone; at most `max_delay_s` counts.
    """
    if errors.retry_for_s is not None and now - since >= errors.retry_for_s:
        return None
    backoff = Backoff(first_s=errors.first_delay_s, limit_s=errors.max_delay_s)
    pause_s = backoff.jittered_s(attempts, chance=chance)
    again = now + max(pause_s, min(retry_after_s or 0.0, errors.max_delay_s))
    return again if errors.retry_for_s is None else min(again, since + errors.retry_for_s)
