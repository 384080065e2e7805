"""What is remembered of how busy one version's replicas were? Differences of their totals."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from headrace.monitor.ladder import Ladder
from headrace.monitor.levels import Chunk
from headrace.monitor.load_counts import LOAD, LoadCell, LoadRow

_GAP_S: Final = 60.0
"""After so long nobody knows any more how many replicas there were meanwhile."""
_DIGITS: Final = 3  # as it is written down: two replicas stay twice the time, and not 2.001
_PIECE_S: Final = 5.0
_PIECES: Final = 120


class LoadTotals(msgspec.Struct, frozen=True, kw_only=True):
    """What one process counted of one version since it began to.

    `epoch`: another one says that it counts anew. `age_s`: for how long it has counted. `batches`
    had `rows` together; `waited` requests were in its queue for `queue_s` together. `in_flight_s`:
    how long all requests were in it, those that still are included.
    """

    epoch: str
    age_s: float
    batches: int = 0
    rows: int = 0
    waited: int = 0
    queue_s: float = 0.0
    in_flight_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReading:
    """One look at a version's replicas.

    `ready` of them are; `said`: what those that answered counted, by name; `known`: the names of
    all processes that there are, of any endpoint. `is_first`: whether it is the first of its
    endpoint's versions, at which the endpoint's own time is counted.
    """

    ready: int
    said: Mapping[str, LoadTotals]
    known: Collection[str] = ()
    is_first: bool = True


class StoredLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A track as it is written down."""

    endpoint: str
    version: str
    read_at: float
    said: dict[str, LoadTotals]
    levels: list[list[Chunk]]


@dataclass(slots=True, kw_only=True)
class LoadTrack:
    """How busy the replicas of a version were; `read_at` is when they were last looked at."""

    read_at: float
    _said: dict[str, LoadTotals] = field(default_factory=dict)
    ladder: Ladder[LoadCell, LoadRow] = field(default_factory=lambda: Ladder(form=LOAD))

    def read(self, at: float, reading: LoadReading, *, began_at: float) -> None:
        """Take in what happened since the last look.

        Args:
            began_at: When anything was looked at first. What a process counted that is older than
                that, and was not looked at yet, is left out: nobody knows when it was.
        """
        begin, self.read_at = self.read_at, at
        added = self._added(at, reading, began_at)
        span_s = round(at - begin, _DIGITS)
        if span_s > _GAP_S:
            added.in_flight_s = 0.0
        else:
            added.looked_s = span_s
            added.shared_s = span_s if reading.is_first else 0.0
            added.heard_s = span_s if reading.said else 0.0
            added.ready_s = span_s * reading.ready
        self._spread(begin, at, added)

    def stored(self, endpoint: str, version: str) -> StoredLoad:
        """This track, to be written down."""
        return StoredLoad(
            endpoint=endpoint,
            version=version,
            read_at=self.read_at,
            said=dict(self._said),
            levels=self.ladder.packed(),
        )

    @classmethod
    def load(cls, stored: StoredLoad) -> "LoadTrack":
        """The track that was written down."""
        track = cls(read_at=stored.read_at, _said=dict(stored.said))
        track.ladder.load(stored.levels)
        return track

    def _added(self, at: float, reading: LoadReading, began_at: float) -> LoadCell:
        """What all processes counted more than was last seen of each."""
        added = LoadCell()
        for name, totals in reading.said.items():
            before = self._said.get(name)
            if before is None or before.epoch != totals.epoch or totals.waited < before.waited:
                before = None
            if before is not None or at - totals.age_s >= began_at:
                added.add(_difference(before, totals))
        # One that does not answer now may do so later, and has not begun anew for that.
        kept = {name: said for name, said in self._said.items() if name in reading.known}
        self._said = kept | dict(reading.said)
        return added

    def _spread(self, begin: float, end: float, cell: LoadCell) -> None:
        """Count `cell` in the middle of `begin` and `end`; after a gap evenly between them."""
        pieces = min(math.ceil((end - begin) / _PIECE_S), _PIECES)
        if pieces <= 1:
            self.ladder.add((begin + end) / 2, cell)
            return
        for number in range(pieces):
            at = begin + (end - begin) * (number + 0.5) / pieces
            self.ladder.add(at, cell.part(number, pieces))


def _difference(before: LoadTotals | None, totals: LoadTotals) -> LoadCell:
    """What was counted since `before`; all of it if that is None."""
    if before is None:
        before = LoadTotals(epoch="", age_s=0.0)
    return LoadCell(
        batches=max(totals.batches - before.batches, 0),
        rows=max(totals.rows - before.rows, 0),
        waited=max(totals.waited - before.waited, 0),
        queue_s=max(totals.queue_s - before.queue_s, 0.0),
        in_flight_s=max(totals.in_flight_s - before.in_flight_s, 0.0),
    )
