"""What is remembered of one version of one endpoint: finely at first, coarsely later."""

import math
from dataclasses import dataclass, field
from typing import Final

import msgspec

from headrace.monitor.buckets import index_of
from headrace.monitor.ladder import Ladder
from headrace.monitor.levels import Chunk
from headrace.monitor.request_counts import REQUESTS, Cell, Row
from headrace.monitor.window import Totals

_GAP_S: Final = 5.0
_PIECES: Final = 120


class StoredTrack(msgspec.Struct, frozen=True, kw_only=True):
    """A track as it is written down. `latency`: of the totals, by number of the bucket."""

    endpoint: str
    version: str
    read_at: float
    epoch: str
    requests: int
    errors: int
    rejections: int
    latency: dict[int, int]
    levels: list[list[Chunk]]
    began_at: float = 0.0


@dataclass(slots=True, kw_only=True)
class Track:
    """Counts over time of one thing that counts up.

    `read_at`: when it was last read. `began_at`: nothing is counted from before that time.
    """

    read_at: float
    epoch: str
    began_at: float = 0.0
    _requests: int = 0
    _errors: int = 0
    _rejections: int = 0
    _latency: dict[int, int] = field(default_factory=dict)
    ladder: Ladder[Cell, Row] = field(default_factory=lambda: Ladder(form=REQUESTS))

    def read(self, at: float, epoch: str, totals: Totals, *, is_begin: bool = False) -> None:
        """Take in what was counted since the last look.

        Totals that fell, or are of another epoch, were counted from 0.

        Args:
            is_begin: Nobody knows when what is in `totals` was counted: it is left out.
        """
        began_anew = epoch != self.epoch or totals.requests < self._requests
        before, self.read_at, self.epoch = self.read_at, at, epoch
        if totals.requests == self._requests and not began_anew:
            return  # nothing came: this is all that an idle endpoint costs
        if began_anew:
            self._requests = self._errors = self._rejections = 0
            self._latency = {}
        added = self._difference(totals)
        if added.requests and not is_begin:
            self._spread(before, at, added)

    def stored(self, endpoint: str, version: str) -> StoredTrack:
        """This track, to be written down."""
        return StoredTrack(
            endpoint=endpoint,
            version=version,
            read_at=self.read_at,
            epoch=self.epoch,
            requests=self._requests,
            errors=self._errors,
            rejections=self._rejections,
            latency=self._latency,
            levels=self.ladder.packed(),
            began_at=self.began_at,
        )

    @classmethod
    def load(cls, stored: StoredTrack) -> "Track":
        """The track that was written down."""
        track = cls(read_at=stored.read_at, epoch=stored.epoch, began_at=stored.began_at)
        track._requests, track._errors = stored.requests, stored.errors
        track._rejections, track._latency = stored.rejections, stored.latency
        track.ladder.load(stored.levels)
        return track

    def _difference(self, totals: Totals) -> Cell:
        """What `totals` has more than what was last seen, which it is from now on."""
        latency: dict[int, int] = {}
        for bucket, count in totals.latency.items():
            index = index_of(bucket)
            latency[index] = latency.get(index, 0) + count
        added = Cell(
            requests=max(totals.requests - self._requests, 0),
            errors=max(totals.errors - self._errors, 0),
            rejections=max(totals.rejections - self._rejections, 0),
        )
        for index, count in latency.items():
            more = count - self._latency.get(index, 0)
            if more > 0:
                added.latency[index] = more
        self._requests, self._errors = totals.requests, totals.errors
        self._rejections, self._latency = totals.rejections, latency
        return added

    def _spread(self, begin: float, end: float, cell: Cell) -> None:
        """Count `cell` in the middle of `begin` and `end`; after a gap evenly between them."""
        pieces = min(math.ceil((end - begin) / _GAP_S), _PIECES)
        if pieces <= 1:
            self.ladder.add((begin + end) / 2, cell)
            return
        for number in range(pieces):
            part = _part(cell, number, pieces)
            if part.requests or part.latency or part.errors or part.rejections:
                self.ladder.add(begin + (end - begin) * (number + 0.5) / pieces, part)


def _part(cell: Cell, number: int, pieces: int) -> Cell:
    """One of `pieces` parts of `cell`: together they are `cell`."""

    def share(count: int) -> int:
        return count * (number + 1) // pieces - count * number // pieces

    part = Cell(share(cell.requests), share(cell.errors), share(cell.rejections))
    for index, count in cell.latency.items():
        if piece := share(count):
            part.latency[index] = piece
    return part
