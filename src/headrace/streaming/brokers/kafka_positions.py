"""How far is a member at each of its places? What it handed out, and what is done of it."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from headrace.streaming.records import Lag, Place, Record

_MOST_MARKS: Final = 10_000


class _Position:
    """One place: `done` and `read` are offsets to go on at."""

    __slots__ = ("done", "end", "marks", "read")

    def __init__(self, start: int | None) -> None:
        self.read = start
        self.done = start
        self.end: int | None = None
        self.marks: deque[tuple[int, float]] = deque()


class Positions:
    """The places that a member holds. A sample of what was handed out keeps its time."""

    def __init__(self) -> None:
        self._held: dict[Place, _Position] = {}

    def __contains__(self, place: Place) -> bool:
        return place in self._held

    def __iter__(self) -> Iterator[Place]:
        return iter(self._held)

    def hold(self, starts: Mapping[Place, int]) -> None:
        """These are held from now on, and read from these offsets."""
        for place, start in starts.items():
            self._held[place] = _Position(start)

    def drop(self, places: Sequence[Place]) -> None:
        """The contrary."""
        for place in places:
            self._held.pop(place, None)

    def handed_out(self, first: Record, following: int) -> None:
        """A run of records of one place: its first, and the offset after its last."""
        position = self._held[first.place]
        position.read = following
        if len(position.marks) < _MOST_MARKS:
            position.marks.append((first.offset, first.timestamp_s))

    def reached_end(self, place: Place, offset: int) -> None:
        """Up to here there is nothing that was not handed out, only marks of transactions."""
        if place in self._held:
            self._held[place].end = offset

    def done(self, offsets: Mapping[Place, int]) -> None:
        """What is below these is done."""
        for place, offset in offsets.items():
            position = self._held.get(place)
            if position is None:
                continue
            position.done = offset
            marks = position.marks
            while len(marks) > 1 and marks[1][0] <= offset:
                marks.popleft()
            if marks and position.read is not None and offset >= position.read:
                marks.clear()

    def lag(self, place: Place, following: int | None, now_s: float) -> Lag | None:
        """How far it is behind; None if that is not known yet.

        Args:
            following: The next offset that will be written, as far as is known.
        """
        position = self._held[place]
        at = position.done
        if at is None:
            return None
        if position.read is not None and at >= position.read and position.end is not None:
            at = max(at, position.end)
        ends = [one for one in (following, position.end, position.read) if one is not None]
        records = max(max(ends, default=at) - at, 0)
        if not records:
            return Lag(records=0, seconds=0.0)
        if not position.marks:
            return Lag(records=records, seconds=None)
        return Lag(records=records, seconds=max(now_s - position.marks[0][1], 0.0))
