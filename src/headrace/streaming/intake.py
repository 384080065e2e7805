"""When do records that wait become a batch? Decides; the caller brings the time."""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from headrace.streaming.records import Place, Record

_BATCHES_AHEAD: Final = 2
MAX_BYTES: Final = 64 << 20
"""With so many bytes in records that wait, nothing more is read, however few records these are."""


class Intake:
    """Records that were read and wait for a run, in the order in which they came.

    A batch is due when the model is free and its oldest record waited `max_delay_s`, or when it is
    full. As long as the model is busy, batches grow; one full batch may wait beside the one that
    runs, so that the model never waits for the records.
    """

    def __init__(self, *, max_batch_size: int, max_delay_s: float) -> None:
        self.max_batch_size = max_batch_size
        self.max_delay_s = max_delay_s
        self._records: deque[Record] = deque()
        self._came: deque[tuple[float, int]] = deque()
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
            self._came.append((now, len(records)))
            self._bytes += _size(records)

    def due_at(self, *, is_free: bool) -> float | None:
        """Monotonic time at which the next batch is due; None if it is not a matter of time."""
        if not self._records:
            return None
        oldest = self._came[0][0]
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
            came, many = self._came.popleft()
            if many > count:
                self._came.appendleft((came, many - count))
                break
            count -= many
        return batch

    def drop(self, places: Collection[Place]) -> None:
        """Forget what waits of these places: others read it."""
        kept: deque[Record] = deque()
        came: deque[tuple[float, int]] = deque()
        for at, many in self._came:
            chunk = [self._records.popleft() for _ in range(many)]
            stays = [record for record in chunk if record.place not in places]
            if stays:
                kept.extend(stays)
                came.append((at, len(stays)))
        self._records, self._came, self._bytes = kept, came, _size(kept)

    def clear(self) -> None:
        """Forget all that waits."""
        self._records.clear()
        self._came.clear()
        self._bytes = 0


def _size(records: Iterable[Record]) -> int:
    return sum([len(record.value) for record in records if record.value is not None])
