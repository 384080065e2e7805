"""Records that a broker handed to a member and that the member has not acknowledged.

Brokers that hand out single records deliver again what was not acknowledged in time, so older
records come after newer ones. A stream commits a position per partition, which is safe only if the
records in hand ascend: an older record waits here until all newer ones before it are done.
"""

import heapq
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from headrace.streaming.records import Place, Record

T = TypeVar("T")
Held = tuple[Record, T]
"""A record, and what the broker wants to see when it is done."""


class Line(Generic[T]):
    """The records of one place: those that wait, and those in hand; both once, in order."""

    def __init__(self) -> None:
        self.is_paused = False
        self._order: list[int] = []
        self._waiting: dict[int, Held[T]] = {}
        self._hand: dict[int, Held[T]] = {}

    @property
    def waiting(self) -> int:
        """How many came and were not handed out."""
        return len(self._waiting)

    @property
    def held(self) -> list[Held[T]]:
        """All that this member has."""
        return [*self._hand.values(), *self._waiting.values()]

    @property
    def oldest(self) -> Record | None:
        """The first in hand."""
        return next(iter(self._hand.values()))[0] if self._hand else None

    def knows(self, offset: int) -> bool:
        """Whether it is here already."""
        return offset in self._hand or offset in self._waiting

    def offer(self, record: Record, token: T) -> None:
        """It came, perhaps again: then the later token counts, and it is not handed out twice."""
        offset = record.offset
        if offset in self._hand:
            self._hand[offset] = (self._hand[offset][0], token)
            return
        if offset not in self._waiting:
            heapq.heappush(self._order, offset)
        self._waiting[offset] = (record, token)

    def may_hand_out(self) -> bool:
        """Whether the next is there, and not older than what is in hand."""
        if self.is_paused or not self._order:
            return False
        return not self._hand or self._order[0] > next(reversed(self._hand))

    def take(self, most: int) -> list[Record]:
        """Hand out what may be."""
        found: list[Record] = []
        while len(found) < most and self.may_hand_out():
            offset = heapq.heappop(self._order)
            held = self._waiting.pop(offset)
            self._hand[offset] = held
            found.append(held[0])
        return found

    def done(self, upto: int) -> list[Held[T]]:
        """What was handed out and has an offset below that; it is forgotten here."""
        found = []
        for offset in list(self._hand):
            if offset >= upto:
                break
            found.append(self._hand.pop(offset))
        return found

    def clear(self) -> list[Held[T]]:
        """Forget all; what that was."""
        found = self.held
        self._order, self._waiting, self._hand = [], {}, {}
        return found


class Inbox(Generic[T]):
    """The lines of all places of a member. Safe to use from any thread."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._changed = threading.Condition()
        self._lines: dict[Place, Line[T]] = {place: Line() for place in places}
        self._turns = deque(places)
        self._is_woken = False
        self._is_closed = False
        self._wanted = 0

    @property
    def places(self) -> Sequence[Place]:
        """All of them."""
        return tuple(self._lines)

    def offer(self, came: Iterable[tuple[Record, T]]) -> None:
        """These came from the broker."""
        with self._changed:
            for record, token in came:
                self._lines[record.place].offer(record, token)
            self._changed.notify_all()

    def poll(self, most: int, timeout_s: float) -> list[Record] | None:
        """Hand out what is there; waits for the first. Empty if woken, None if the time passed."""
        with self._changed:
            self._want(most)
            came = self._changed.wait_for(
                lambda: (
                    self._is_woken
                    or (most > 0 and any(line.may_hand_out() for line in self._lines.values()))
                ),
                max(timeout_s, 0),
            )
            found: list[Record] = []
            for _ in range(len(self._turns)):
                if len(found) >= most:
                    break
                self._turns.rotate(-1)
                found += self._lines[self._turns[-1]].take(most - len(found))
            self._is_woken = False
            self._want(0)
            return found if came else None

    def close(self) -> None:
        """Nobody wants anything any more: `wait_for_want` returns at once."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def wait_for_want(self, timeout_s: float) -> tuple[int, list[Place]]:
        """How many records a `poll` waits for, and of which places; waits until one does."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closed or (self._wanted > 0 and self._open_places()), timeout_s
            )
            return self._wanted, self._open_places()

    def wake(self) -> None:
        """Let `poll` return, or the next one."""
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    def pause(self, places: Iterable[Place], *, is_paused: bool) -> None:
        """Hand out nothing of these; or do so again."""
        with self._changed:
            for place in places:
                self._lines[place].is_paused = is_paused
            self._changed.notify_all()

    def done(self, place: Place, upto: int) -> list[Held[T]]:
        """See `Line.done`."""
        with self._changed:
            found = self._lines[place].done(upto)
            self._changed.notify_all()
            return found

    def knows(self, place: Place, offset: int) -> bool:
        """See `Line.knows`."""
        with self._changed:
            return self._lines[place].knows(offset)

    def held(self) -> list[Held[T]]:
        """All that this member has, of all places."""
        with self._changed:
            return [held for line in self._lines.values() for held in line.held]

    def waiting(self) -> int:
        """How many came and were not handed out."""
        with self._changed:
            return sum(line.waiting for line in self._lines.values())

    def oldest(self, place: Place) -> Record | None:
        """The first of this place in hand."""
        with self._changed:
            return self._lines[place].oldest

    def clear(self) -> list[Held[T]]:
        """Forget all; what that was."""
        with self._changed:
            return [held for line in self._lines.values() for held in line.clear()]

    def open_places(self) -> list[Place]:
        """Those that may be read."""
        with self._changed:
            return self._open_places()

    def _open_places(self) -> list[Place]:
        """Those that may be read: they are not paused, and have nothing that waits its turn."""
        return [
            place
            for place, line in self._lines.items()
            if not (line.is_paused or (line.waiting and not line.may_hand_out()))
        ]

    def _want(self, most: int) -> None:
        self._wanted = max(most - sum(line.waiting for line in self._lines.values()), 0)
        if self._wanted:
            self._changed.notify_all()
