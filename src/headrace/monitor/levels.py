"""How are counts kept small? In rows of one step each, a chunk of rows packed into bytes.

A row is written once, when its step is over, and is taken out whole to be joined into the longer
steps of the next level.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

import msgspec

from headrace.monitor.buckets import joined_index

ROWS_PER_CHUNK: Final = 60
_FAST: Final = 1


class Row(msgspec.Struct, frozen=True, array_like=True):
    """Counts of one step. `offset`: in steps, from the begin of its chunk.

    `latency`: distance from the bucket before, count, distance, count, ...
    """

    offset: int
    requests: int
    errors: int
    rejections: int
    latency: list[int]


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """Up to an hour's worth of rows. `number`: in lengths of a chunk, since 1970.

    `data`: the rows, packed. `total`: their sum as one row: a long span need not unpack them all.
    """

    number: int
    data: bytes
    total: bytes


_ENCODER: Final = msgspec.msgpack.Encoder()
_ROW: Final = msgspec.msgpack.Decoder(Row)
_ROWS: Final = msgspec.msgpack.Decoder(list[Row])


@dataclass(slots=True)
class Cell:
    """Counts that still grow; `latency` by number of the bucket."""

    requests: int = 0
    errors: int = 0
    rejections: int = 0
    latency: dict[int, int] = field(default_factory=dict)

    def add(self, other: "Cell") -> None:
        """Count what `other` has as well."""
        self.requests += other.requests
        self.errors += other.errors
        self.rejections += other.rejections
        latency = self.latency
        for index, count in other.latency.items():
            latency[index] = latency.get(index, 0) + count

    def joined(self) -> "Cell":
        """The same in fewer buckets."""
        latency: dict[int, int] = {}
        for index, count in self.latency.items():
            joined = joined_index(index)
            latency[joined] = latency.get(joined, 0) + count
        return Cell(self.requests, self.errors, self.rejections, latency)


@dataclass(slots=True, kw_only=True)
class Level:
    """Rows of one length in time, oldest first. Only the newest ones may be added to."""

    step_s: int
    chunks: list[Chunk] = field(default_factory=list)
    _number: int = -1
    _rows: list[bytes] = field(default_factory=list)
    _slot: int = -1
    _cell: Cell = field(default_factory=Cell)

    @property
    def chunk_s(self) -> int:
        """How much time one chunk holds."""
        return self.step_s * ROWS_PER_CHUNK

    @property
    def size_bytes(self) -> int:
        """How much is kept, about; without what every object costs."""
        packed = sum(len(chunk.data) + len(chunk.total) for chunk in self.chunks)
        return packed + sum(map(len, self._rows)) + 8 * len(self._cell.latency)

    @property
    def oldest(self) -> float | None:
        """Begin of the oldest chunk; None if nothing is kept."""
        if self.chunks:
            return self.chunks[0].number * self.chunk_s
        return None if self._number < 0 else self._number * self.chunk_s

    def add(self, at: float, cell: Cell) -> None:
        """Count `cell` at the step of `at`, or at the newest one if that is later."""
        slot = int(at // self.step_s)
        if slot > self._slot:
            self._close(slot)
        self._cell.add(cell)

    def cells(self, begin: float, end: float) -> Iterator[tuple[float, Cell]]:
        """Begin and counts of every step that overlaps [begin, end), in order."""
        for chunk in self.chunks:
            start = chunk.number * self.chunk_s
            if start < end and start + self.chunk_s > begin:
                rows = _ROWS.decode(zlib.decompress(chunk.data))
                yield from self._between(chunk.number, rows, begin, end)
        rows = [_ROW.decode(row) for row in self._rows]
        yield from self._between(self._number, rows, begin, end)
        at = self._slot * self.step_s
        if self._slot >= 0 and at < end and at + self.step_s > begin:
            yield at, self._cell

    def sums(self, begin: float, end: float) -> Iterator[Cell]:
        """Counts that add up to those of all steps whose middle is in [begin, end)."""
        half_s = self.step_s / 2
        for chunk in self.chunks:
            start = chunk.number * self.chunk_s
            if begin <= start + half_s and start + self.chunk_s - half_s < end:
                yield _cell(_ROW.decode(chunk.total))
            elif start < end and start + self.chunk_s > begin:
                rows = _ROWS.decode(zlib.decompress(chunk.data))
                yield from (_cell(row) for row in self._within(chunk.number, rows, begin, end))
        rows = [_ROW.decode(row) for row in self._rows]
        yield from (_cell(row) for row in self._within(self._number, rows, begin, end))
        if self._slot >= 0 and begin <= self._slot * self.step_s + half_s < end:
            yield self._cell

    def take_before(self, end: float) -> Iterator[tuple[float, Cell]]:
        """Begin and counts of every step in chunks that end before `end`: they are gone then."""
        if self._number >= 0 and (self._number + 1) * self.chunk_s <= end:
            self._close(-1)
        while self.chunks and (self.chunks[0].number + 1) * self.chunk_s <= end:
            chunk = self.chunks.pop(0)
            for row in _ROWS.decode(zlib.decompress(chunk.data)):
                yield self._at(chunk.number, row), _cell(row)

    def packed(self) -> list[Chunk]:
        """Everything as chunks, to be written down."""
        if self._slot < 0:
            return list(self.chunks)
        rows = [*self._rows, _pack(self._slot, self._cell)]
        return [*self.chunks, _seal(self._number, rows)]

    def load(self, chunks: Iterable[Chunk]) -> None:
        """Take up what `packed` wrote; the last chunk goes on to grow."""
        self.chunks = list(chunks)
        if self.chunks:
            chunk = self.chunks.pop()
            for row in _ROWS.decode(zlib.decompress(chunk.data)):
                self.add(self._at(chunk.number, row), _cell(row))

    def _close(self, slot: int) -> None:
        """Write the newest step down, and begin that of `slot`; none if it is below 0."""
        if self._slot >= 0:
            self._rows.append(_pack(self._slot, self._cell))
        number = slot // ROWS_PER_CHUNK if slot >= 0 else -1
        if number != self._number:
            if self._rows:
                self.chunks.append(_seal(self._number, self._rows))
            self._number, self._rows = number, []
        self._slot, self._cell = slot, Cell()

    def _between(
        self, number: int, rows: Iterable[Row], begin: float, end: float
    ) -> Iterator[tuple[float, Cell]]:
        for row in rows:
            at = self._at(number, row)
            if at < end and at + self.step_s > begin:
                yield at, _cell(row)

    def _within(self, number: int, rows: Iterable[Row], begin: float, end: float) -> Iterator[Row]:
        for row in rows:
            if begin <= self._at(number, row) + self.step_s / 2 < end:
                yield row

    def _at(self, number: int, row: Row) -> float:
        return number * self.chunk_s + row.offset * self.step_s


def _pack(slot: int, cell: Cell) -> bytes:
    latency: list[int] = []
    before = 0
    for index, count in sorted(cell.latency.items()):
        latency += (index - before, count)
        before = index
    row = Row(slot % ROWS_PER_CHUNK, cell.requests, cell.errors, cell.rejections, latency)
    return _ENCODER.encode(row)


def _cell(row: Row) -> Cell:
    buckets = accumulate(row.latency[::2])
    latency = dict(zip(buckets, row.latency[1::2], strict=True))
    return Cell(row.requests, row.errors, row.rejections, latency)


def _seal(number: int, rows: Iterable[bytes]) -> Chunk:
    data = _ENCODER.encode([msgspec.Raw(row) for row in rows])
    total = Cell()
    for row in _ROWS.decode(data):
        total.add(_cell(row))
    return Chunk(number, zlib.compress(data, _FAST), _pack(0, total))
