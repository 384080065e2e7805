"""Which answers may be delivered, and what of the input is done with them?

Batches are delivered in the order in which they were taken, whatever order they finish in. So the
answers of a place stay in order, and what is done of it is always all up to an offset.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.core import HeadraceError
from headrace.streaming.codec import NOTHING_ADDED, Added
from headrace.streaming.records import NewRecord, Place, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnswer:
    """A record that has no answer, and what is written of it instead; None for nothing.

    `stops`: neither it nor anything after it may be delivered.
    """

    error: HeadraceError
    letter: NewRecord | None = None
    stops: bool = False


Outcome = NewRecord | NoAnswer | None
"""The result of one record: what is written for it; None if it is only done with."""


@dataclass(slots=True, kw_only=True, eq=False)
class Batch:
    """Records that are scored together.

    `taken_at`, `again_at`, `failing_since`: monotonic. `again_at`: when it is to be tried again;
    None while it runs, or is done. `outcomes`: one for each record; None while there are none.
    `gone`: places whose records are no longer this member's. `added`: fields beside their own.
    """

    records: Sequence[Record]
    added: Added = NOTHING_ADDED
    taken_at: float = 0.0
    tries: int = 0
    failing_since: float | None = None
    again_at: float | None = None
    outcomes: Sequence[Outcome] | None = None
    gone: set[Place] = field(default_factory=set)

    @property
    def is_of_nobody(self) -> bool:
        """Whether all its records are other members' by now."""
        return bool(self.gone) and all(record.place in self.gone for record in self.records)

    def touches(self, places: Collection[Place]) -> bool:
        """Whether it has records of these places that are still this member's."""
        return any(
            record.place in places and record.place not in self.gone for record in self.records
        )


@dataclass(slots=True, kw_only=True)
class Due:
    """What is delivered at once: records to write, and the next offset to read of each place.

    `answered`: records that have answers. `without`: what those that have none have instead.
    `stops`: the record that the stream stops before, and why.
    """

    writes: list[NewRecord] = field(default_factory=list)
    done: dict[Place, int] = field(default_factory=dict)
    answered: list[Record] = field(default_factory=list)
    without: list[NoAnswer] = field(default_factory=list)
    stops: tuple[Record, HeadraceError] | None = None

    def add_answers(self, records: Sequence[Record], answers: Sequence[Any]) -> None:
        """What came of records that each have one record as their answer: most batches."""
        self.writes += answers
        self.answered += records
        self.done |= {record.place: record.offset + 1 for record in records}

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
            if outcome.letter is not None:
                self.writes.append(outcome.letter)
            self.without.append(outcome)
        self.done[record.place] = record.offset + 1
        return True


class Ledger:
    """Batches that were taken and are not delivered, in order."""

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def records(self) -> int:
        """How many records are under way."""
        return sum(len(batch.records) for batch in self._batches)

    def add(self, batch: Batch) -> None:
        """A batch was taken; its records follow those of all before it."""
        self._batches.append(batch)

    def waiting(self) -> list[Batch]:
        """Batches that wait for another try."""
        return [batch for batch in self._batches if batch.again_at is not None]

    def is_failing(self) -> bool:
        """Whether what scores was away when it was asked last: nothing new need be tried."""
        return any(batch.failing_since is not None for batch in self._batches)

    def has_due(self) -> bool:
        """Whether `take_due` would give something."""
        return bool(self._batches) and self._is_over(self._batches[0])

    def touches(self, places: Collection[Place]) -> bool:
        """Whether something of these places is neither delivered nor dropped."""
        return any(batch.touches(places) for batch in self._batches)

    def take_due(self) -> Due:
        """All that may be delivered now, taken out."""
        due = Due()
        while due.stops is None and self.has_due():
            batch = self._batches.popleft()
            if batch.outcomes is None:
                continue
            if not batch.gone and {NewRecord}.issuperset(map(type, batch.outcomes)):
                due.add_answers(batch.records, batch.outcomes)
                continue
            for record, outcome in zip(batch.records, batch.outcomes, strict=True):
                if record.place not in batch.gone and not due.add(record, outcome):
                    break
        return due

    def drop(self, places: Collection[Place]) -> None:
        """Nothing of these places that is under way is delivered any more."""
        for batch in self._batches:
            batch.gone.update(places)
            if batch.is_of_nobody:
                batch.again_at = batch.failing_since = None

    def clear(self) -> None:
        """Nothing that is under way is delivered any more."""
        self._batches.clear()

    @staticmethod
    def _is_over(batch: Batch) -> bool:
        return batch.outcomes is not None or batch.is_of_nobody
