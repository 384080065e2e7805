"""How are counts kept small? In rows of one step each, a chunk of rows packed into bytes.

A row is written once, when its step is over, and is taken out whole to be joined into the longer
steps of the next level. What is counted is a `Form`'s to say.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, Self, TypeVar

import msgspec

ROWS_PER_CHUNK: Final = 60
_FAST: Final = 1


class Counting(Protocol):
    """Counts of one step that still grow."""

    @property
    def size_bytes(self) -> int:
        """How much it takes, about, beyond what every object costs."""

    def add(self, other: Self) -> None:
        """Count what `other` has as well."""


class Placed(Protocol):
    """Counts as they are written down."""

    @property
    def offset(self) -> int:
        """In steps, from the begin of its chunk."""


C = TypeVar("C", bound=Counting)
R = TypeVar("R", bound=Placed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form(Generic[C, R]):
    """What is counted, and how it is written down.

    `joined`: counts as they are kept in longer steps.
    """

    begin: Callable[[], C]
    row_of: Callable[[int, C], R]
    cell_of: Callable[[R], C]
    joined: Callable[[C], C]
    one: msgspec.msgpack.Decoder[R]
    many: msgspec.msgpack.Decoder[list[R]]


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """Up to an hour's worth of rows. `number`: in lengths of a chunk, since 1970.

    `data`: the rows, packed. `total`: their sum as one row: a long span need not unpack them all.
    """

    number: int
    data: bytes
    total: bytes


_ENCODER: Final = msgspec.msgpack.Encoder()


@dataclass(slots=True, kw_only=True)
class Level(Generic[C, R]):
    """Rows of one length in time, oldest first. Only the newest ones may be added to."""

    step_s: int
    form: Form[C, R]
    chunks: list[Chunk] = field(default_factory=list)
    _number: int = -1
    _rows: list[bytes] = field(default_factory=list)
    _slot: int = -1
    _cell: C = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing counted."""
        self._cell = self.form.begin()

    @property
    def chunk_s(self) -> int:
        """How much time one chunk holds."""
        return self.step_s * ROWS_PER_CHUNK

    @property
    def size_bytes(self) -> int:
        """How much is kept, about; without what every object costs."""
        packed = sum(len(chunk.data) + len(chunk.total) for chunk in self.chunks)
        return packed + sum(map(len, self._rows)) + self._cell.size_bytes

    @property
    def oldest(self) -> float | None:
        """Begin of the oldest chunk; None if nothing is kept."""
        if self.chunks:
            return self.chunks[0].number * self.chunk_s
        return None if self._number < 0 else self._number * self.chunk_s

    def add(self, at: float, cell: C) -> None:
        """Count `cell` at the step of `at`, or at the newest one if that is later."""
        slot = int(at // self.step_s)
        if slot > self._slot:
            self._close(slot)
        self._cell.add(cell)

    def cells(self, begin: float, end: float) -> Iterator[tuple[float, C]]:
        """Begin and counts of every step that overlaps [begin, end), in order."""
        for chunk in self.chunks:
            start = chunk.number * self.chunk_s
            if start < end and start + self.chunk_s > begin:
                rows = self._rows_of(chunk)
                yield from self._between(chunk.number, rows, begin, end)
        rows = [self.form.one.decode(row) for row in self._rows]
        yield from self._between(self._number, rows, begin, end)
        at = self._slot * self.step_s
        if self._slot >= 0 and at < end and at + self.step_s > begin:
            yield at, self._cell

    def sums(self, begin: float, end: float) -> Iterator[C]:
        """Counts that add up to those of all steps whose middle is in [begin, end)."""
        half_s = self.step_s / 2
        for chunk in self.chunks:
            start = chunk.number * self.chunk_s
            if begin <= start + half_s and start + self.chunk_s - half_s < end:
                yield self.form.cell_of(self.form.one.decode(chunk.total))
            elif start < end and start + self.chunk_s > begin:
                rows = self._rows_of(chunk)
                yield from (
                    self.form.cell_of(row) for row in self._within(chunk.number, rows, begin, end)
                )
        rows = [self.form.one.decode(row) for row in self._rows]
        yield from (self.form.cell_of(row) for row in self._within(self._number, rows, begin, end))
        if self._slot >= 0 and begin <= self._slot * self.step_s + half_s < end:
            yield self._cell

    def take_before(self, end: float) -> Iterator[tuple[float, C]]:
        """Begin and counts of every step in chunks that end before `end`: they are gone then."""
        if self._number >= 0 and (self._number + 1) * self.chunk_s <= end:
            self._close(-1)
        while self.chunks and (self.chunks[0].number + 1) * self.chunk_s <= end:
            chunk = self.chunks.pop(0)
            for row in self._rows_of(chunk):
                yield self._at(chunk.number, row), self.form.cell_of(row)

    def packed(self) -> list[Chunk]:
        """Everything as chunks, to be written down."""
        if self._slot < 0:
            return list(self.chunks)
        rows = [*self._rows, self._packed(self._slot, self._cell)]
        return [*self.chunks, self._sealed(self._number, rows)]

    def load(self, chunks: Iterable[Chunk]) -> None:
        """Take up what `packed` wrote; the last chunk goes on to grow."""
        self.chunks = list(chunks)
        if self.chunks:
            chunk = self.chunks.pop()
            for row in self._rows_of(chunk):
                self.add(self._at(chunk.number, row), self.form.cell_of(row))

    def _close(self, slot: int) -> None:
        """Write the newest step down, and begin that of `slot`; none if it is below 0."""
        if self._slot >= 0:
            self._rows.append(self._packed(self._slot, self._cell))
        number = slot // ROWS_PER_CHUNK if slot >= 0 else -1
        if number != self._number:
            if self._rows:
                self.chunks.append(self._sealed(self._number, self._rows))
            self._number, self._rows = number, []
        self._slot, self._cell = slot, self.form.begin()

    def _between(
        self, number: int, rows: Iterable[R], begin: float, end: float
    ) -> Iterator[tuple[float, C]]:
        for row in rows:
            at = self._at(number, row)
            if at < end and at + self.step_s > begin:
                yield at, self.form.cell_of(row)

    def _within(self, number: int, rows: Iterable[R], begin: float, end: float) -> Iterator[R]:
        for row in rows:
            if begin <= self._at(number, row) + self.step_s / 2 < end:
                yield row

    def _at(self, number: int, row: R) -> float:
        return number * self.chunk_s + row.offset * self.step_s

    def _rows_of(self, chunk: Chunk) -> list[R]:
        return self.form.many.decode(zlib.decompress(chunk.data))

    def _packed(self, slot: int, cell: C) -> bytes:
        return _ENCODER.encode(self.form.row_of(slot % ROWS_PER_CHUNK, cell))

    def _sealed(self, number: int, rows: Iterable[bytes]) -> Chunk:
        data = _ENCODER.encode([msgspec.Raw(row) for row in rows])
        total = self.form.begin()
        for row in self.form.many.decode(data):
            total.add(self.form.cell_of(row))
        return Chunk(number, zlib.compress(data, _FAST), self._packed(0, total))
