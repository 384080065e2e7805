"""What is remembered of one version of one endpoint: finely at first, coarsely later."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from headrace.monitor.buckets import index_of
from headrace.monitor.levels import Cell, Chunk, Level
from headrace.monitor.window import Totals

KEPT_S: Final = 24 * 3600
STEPS: Final = ((1, 600), (10, 2 * 3600), (60, KEPT_S))
"""Length of a step, and how long steps of this length are kept; in seconds."""
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


@dataclass(slots=True, kw_only=True)
class Track:
    """Counts over time of one thing that counts up; `read_at` is when it was last looked at."""

    read_at: float
    epoch: str
    _requests: int = 0
    _errors: int = 0
    _rejections: int = 0
    _latency: dict[int, int] = field(default_factory=dict)
    _levels: tuple[Level, ...] = ()

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

    def cells(self, begin: float, end: float) -> Iterator[tuple[int, float, Cell]]:
        """Length, begin and counts of all steps that overlap [begin, end)."""
        for level in self._levels:
            for at, cell in level.cells(begin, end):
                yield level.step_s, at, cell

    def sums(self, begin: float, end: float) -> Iterator[tuple[int, Cell]]:
        """Length of the steps, and counts that add up to those whose middle is in [begin, end)."""
        for level in self._levels:
            for cell in level.sums(begin, end):
                yield level.step_s, cell

    def age(self, now: float) -> None:
        """Join what is older than its level keeps into longer steps; forget the oldest."""
        for number, (level, (_, kept_s)) in enumerate(zip(self._levels, STEPS, strict=False)):
            is_last = number == len(self._levels) - 1
            for at, cell in level.take_before(now - kept_s):
                if not is_last:
                    self._levels[number + 1].add(at, cell.joined())

    def forget_before(self, end: float) -> None:
        """Let go of whole chunks that end before `end`."""
        for level in self._levels:
            for _ in level.take_before(end):
                pass

    @property
    def oldest(self) -> float | None:
        """Begin of the oldest chunk; None if nothing is kept."""
        found = [at for level in self._levels if (at := level.oldest) is not None]
        return min(found, default=None)

    @property
    def size_bytes(self) -> int:
        """How much is kept, about."""
        return sum(level.size_bytes for level in self._levels)

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
            levels=[level.packed() for level in self._levels],
        )

    @classmethod
    def load(cls, stored: StoredTrack) -> "Track":
        """The track that was written down."""
        track = cls(read_at=stored.read_at, epoch=stored.epoch)
        track._requests, track._errors = stored.requests, stored.errors
        track._rejections, track._latency = stored.rejections, stored.latency
        if stored.levels:
            track._levels = _new_levels()
            for level, chunks in zip(track._levels, stored.levels, strict=True):
                level.load(chunks)
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
        self._levels = self._levels or _new_levels()
        finest = self._levels[0]
        pieces = min(math.ceil((end - begin) / _GAP_S), _PIECES)
        if pieces <= 1:
            finest.add((begin + end) / 2, cell)
            return
        for number in range(pieces):
            part = _part(cell, number, pieces)
            if part.requests or part.latency or part.errors or part.rejections:
                finest.add(begin + (end - begin) * (number + 0.5) / pieces, part)


def _new_levels() -> tuple[Level, ...]:
    return tuple(Level(step_s=step_s) for step_s, _ in STEPS)


def _part(cell: Cell, number: int, pieces: int) -> Cell:
    """One of `pieces` parts of `cell`: together they are `cell`."""

    def share(count: int) -> int:
        return count * (number + 1) // pieces - count * number // pieces

    part = Cell(share(cell.requests), share(cell.errors), share(cell.rejections))
    for index, count in cell.latency.items():
        if piece := share(count):
            part.latency[index] = piece
    return part
