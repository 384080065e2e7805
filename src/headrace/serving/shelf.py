"""What waits in a replica until the control plane fetches it: bounded in number and in bytes."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """What followed a cursor, oldest first; the cursor to ask with next; all that was lost."""

    cursor: int
    items: Sequence[T]
    dropped: int


@dataclass(slots=True, kw_only=True)
class Shelf(Generic[T]):
    """Keeps items until they are known to have arrived; a cursor counts all that were ever added.

    What does not fit is dropped and counted: nobody waits.
    """

    most_items: int
    most_bytes: int
    page_items: int
    page_bytes: int
    dropped: int = 0
    _items: deque[tuple[int, T]] = field(default_factory=deque)
    _bytes: int = 0
    _added: int = 0

    def add(self, item: T, size_bytes: int) -> None:
        """Keep an item, if it fits."""
        if len(self._items) >= self.most_items or self._bytes + size_bytes > self.most_bytes:
            self.dropped += 1
            return
        self._added += 1
        self._bytes += size_bytes
        self._items.append((size_bytes, item))

    def page(self, after: int) -> Page[T]:
        """What was added after the cursor `after`; what came before it has arrived and is let go.

        A cursor of another process's shelf begins with what is here.
        """
        first = self._added - len(self._items)
        if after <= self._added:
            for _ in range(min(max(after - first, 0), len(self._items))):
                size_bytes, _ = self._items.popleft()
                self._bytes -= size_bytes
                first += 1
        found: list[T] = []
        left = self.page_bytes
        for size_bytes, item in self._items:
            if found and (len(found) >= self.page_items or size_bytes > left):
                break
            found.append(item)
            left -= size_bytes
        return Page(cursor=first + len(found), items=found, dropped=self.dropped)

    def clear(self) -> None:
        """Let everything go; the cursor goes on."""
        self._items.clear()
        self._bytes = 0
