"""Prefetched records and batches in flight of a stream.

Batches are produced in the order in which they were taken, regardless of the order in which they
finish. So the answers of a partition stay in order, and its input is always complete up to one
offset. This module only decides; the caller passes the time.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Final

from headrace.core import Code, HeadraceError, PayloadTooLargeError
from headrace.core.backoff import Backoff
from headrace.core.spec.stream_parts import StreamErrorsSpec
from headrace.streaming.codec import NO_ADDED_FIELDS, Added
from headrace.streaming.records import NewRecord, Record, TopicPartition

_BATCHES_AHEAD: Final = 2
MAX_BYTES: Final = 64 << 20
"""Bytes of waiting records at which no more are read, regardless of their number."""


class PrefetchBuffer:
    """Records that were read and wait for a run, in order of arrival.

    A batch is due when the model is free and its oldest record has waited `max_delay_s`, or when it
    is full. While the model is busy, batches grow; one full batch may wait beside the one that
    runs, so that the model never waits for records.
    """

    def __init__(self, *, max_batch_size: int, max_delay_s: float) -> None:
        self.max_batch_size = max_batch_size
        self.max_delay_s = max_delay_s
        self._records: list[Record] = []
        self._arrivals: list[float] = []
        """The arrival time of each record."""
        self._sizes: list[int] = []
        """The length of each record's value."""
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    @property
    def room(self) -> int:
        """Number of records that may still be read."""
        if self._bytes >= MAX_BYTES:
            return 0
        return max(_BATCHES_AHEAD * self.max_batch_size - len(self._records), 0)

    def put(self, records: Sequence[Record], now: float) -> None:
        """Add records."""
        self._records.extend(records)
        self._arrivals.extend(repeat(now, len(records)))
        sizes = [len(record.value or b"") for record in records]
        self._sizes += sizes
        self._bytes += sum(sizes)

    def due_at(self, *, is_free: bool) -> float | None:
        """Return the monotonic time at which a batch is due; None if time does not decide."""
        if not self._records:
            return None
        oldest = self._arrivals[0]
        if len(self._records) >= self.max_batch_size:
            return oldest
        return oldest + self.max_delay_s if is_free else None

    def take(self) -> list[Record]:
        """Remove and return the next batch; empty if no record waits."""
        count = min(len(self._records), self.max_batch_size)
        batch = self._records[:count]
        self._bytes -= sum(self._sizes[:count])
        del self._records[:count], self._arrivals[:count], self._sizes[:count]
        return batch

    def drop(self, partitions: Collection[TopicPartition]) -> None:
        """Drop waiting records of these partitions: another member reads them."""
        waiting = list(zip(self._records, self._arrivals, strict=True))
        self.clear()
        for record, came_at in waiting:
            if record.topic_partition not in partitions:
                self.put([record], came_at)

    def clear(self) -> None:
        """Drop all waiting records."""
        self._records.clear()
        self._arrivals.clear()
        self._sizes.clear()
        self._bytes = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRecord:
    """A record without an answer."""

    error: HeadraceError
    dead_letter: NewRecord | None = None
    """The dead letter to write for it; None for none."""
    stops: bool = False
    """Whether the stream stops: neither this record nor later ones may be committed."""


Outcome = NewRecord | FailedRecord | None
"""The result of one record: the answer to write, or a failure; None if nothing is written."""


@dataclass(slots=True, kw_only=True, eq=False)
class ScoringBatch:
    """Records that are scored together. Times are monotonic."""

    records: Sequence[Record]
    added: Added = NO_ADDED_FIELDS
    """Fields in addition to those of the records."""
    taken_at: float = 0.0
    """When the batch was taken from the prefetch buffer."""
    attempts: int = 0
    """How often it was submitted."""
    failing_since: float | None = None
    """When its first attempt failed; None unless the last one failed."""
    retry_at: float | None = None
    """When it is due again; None while it runs, or is finished."""
    outcomes: Sequence[Outcome] | None = None
    """One outcome for each record; None while it is unfinished."""
    revoked: set[TopicPartition] = field(default_factory=set)
    """Partitions that are no longer assigned to this member."""

    @property
    def is_revoked(self) -> bool:
        """Whether all of its records belong to other members by now."""
        return bool(self.revoked) and all(
            record.topic_partition in self.revoked for record in self.records
        )


@dataclass(slots=True, kw_only=True)
class DueDelivery:
    """Records to write and offsets to commit in one step."""

    writes: list[NewRecord] = field(default_factory=list)
    offsets: dict[TopicPartition, int] = field(default_factory=dict)
    """The next offset to read, by partition."""
    answered: list[Record] = field(default_factory=list)
    """Input records that have an answer."""
    failed: list[FailedRecord] = field(default_factory=list)
    """Records without an answer."""
    stops: tuple[Record, HeadraceError] | None = None
    """The record before which the stream stops, and the reason; None to continue."""

    def add_answers(self, records: Sequence[Record], answers: Sequence[Any]) -> None:
        """Add records that each have exactly one answer: most batches."""
        self.writes += answers
        self.answered += records
        self.offsets |= {record.topic_partition: record.offset + 1 for record in records}

    def add(self, record: Record, outcome: Outcome) -> bool:
        """Add the outcome of the next record; return whether others may follow."""
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
    """Batches that were taken and not yet produced, in order."""

    def __init__(self) -> None:
        self._batches: deque[ScoringBatch] = deque()

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def records(self) -> int:
        """Number of records in flight."""
        return sum(len(batch.records) for batch in self._batches)

    def add(self, batch: ScoringBatch) -> None:
        """Add a batch; its records follow those of all earlier batches."""
        self._batches.append(batch)

    def waiting(self) -> list[ScoringBatch]:
        """Return batches that wait for a retry."""
        return [batch for batch in self._batches if batch.retry_at is not None]

    def is_failing(self) -> bool:
        """Return whether the last attempt of a batch failed: then no new batch is submitted."""
        return any(batch.failing_since is not None for batch in self._batches)

    def has_due(self) -> bool:
        """Return whether `take_due` would return something."""
        if not self._batches:
            return False
        first = self._batches[0]
        return first.outcomes is not None or first.is_revoked

    def has_records_of(self, partitions: Collection[TopicPartition]) -> bool:
        """Return whether records of these partitions are neither produced nor dropped."""
        return any(
            record.topic_partition in partitions and record.topic_partition not in batch.revoked
            for batch in self._batches
            for record in batch.records
        )

    def take_due(self) -> DueDelivery:
        """Remove and return everything that may be produced now."""
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
        """Produce nothing more from these partitions."""
        for batch in self._batches:
            batch.revoked.update(partitions)
            if batch.is_revoked:
                batch.retry_at = batch.failing_since = None

    def clear(self) -> None:
        """Drop all batches."""
        self._batches.clear()


_RETRYABLE: Final = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED})


def is_retryable(error: HeadraceError) -> bool:
    """Return whether the same records may be scored later."""
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
    """Return the monotonic time of the next attempt; None for no more attempts.

    Args:
        attempts: Number of attempts so far, at least 1.
        since: When the first attempt failed.
        chance: Random number, evenly distributed in [0, 1).
        retry_after_s: Pause that the failed service requests; limited to `max_delay_s`.
    """
    if errors.retry_for_s is not None and now - since >= errors.retry_for_s:
        return None
    backoff = Backoff(first_s=errors.first_delay_s, limit_s=errors.max_delay_s)
    pause_s = backoff.jittered_s(attempts, chance=chance)
    again = now + max(pause_s, min(retry_after_s or 0.0, errors.max_delay_s))
    return again if errors.retry_for_s is None else min(again, since + errors.retry_for_s)
