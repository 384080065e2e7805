"""Compact time series of counts: steps that grow longer with age, for many endpoints.

`ResolutionRows` has rows of one step each, packed into chunks of bytes. A row is written once, when
its step ends, and is finally removed to be merged into the next resolution. A `RollupSeries` has
the resolutions of one version of an endpoint, `Tracks` those of all. A `Form` defines the counts.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Generic, Protocol, Self, TypeVar

import msgspec

RETENTION_S: Final = 24 * 3600
STEPS: Final = ((1, 600), (10, 2 * 3600), (60, RETENTION_S))
"""Length of a step, and retention of steps of this length; in seconds."""
_PIECE_S: Final = 5.0
_PIECES: Final = 120
_ROUND_S: Final = 60.0
_HOUR_S: Final = 3600.0
_EPSILON: Final = 1e-9
ROWS_PER_CHUNK: Final = 60
_FAST: Final = 1


class Counting(Protocol):
    """Mutable counts of one step."""

    @property
    def size_bytes(self) -> int:
        """Return the approximate size beyond the object."""

    def add(self, other: Self) -> None:
        """Add the counts of `other`."""

    def part(self, number: int, pieces: int) -> Self:
        """Return one of `pieces` parts, from 0 on, which add up to the whole."""


class Placed(Protocol):
    """Encoded counts of one step."""

    @property
    def offset(self) -> int:
        """Return the offset in steps from the start of its chunk."""


C = TypeVar("C", bound=Counting)
R = TypeVar("R", bound=Placed)


def share_of(count: int, number: int, pieces: int) -> int:
    """Return one of `pieces` parts of `count`, from 0 on, which add up to `count`."""
    return count * (number + 1) // pieces - count * number // pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Form(Generic[C, R]):
    """Type of counts, and its encoding."""

    begin: Callable[[], C]
    row_of: Callable[[int, C], R]
    cell_of: Callable[[R], C]
    joined: Callable[[C], C]
    """Counts as stored in longer steps."""
    decode_row: msgspec.msgpack.Decoder[R]
    decode_rows: msgspec.msgpack.Decoder[list[R]]


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """Up to an hour of rows."""

    number: int
    """Number in chunk lengths since 1970."""

    data: bytes
    """The packed rows."""

    total: bytes
    """Sum of the rows as one row, so that long spans need not be unpacked."""


_ENCODER: Final = msgspec.msgpack.Encoder()


@dataclass(slots=True, kw_only=True)
class ResolutionRows(Generic[C, R]):
    """Rows of one step length, oldest first. Only the newest can be added to."""

    step_s: int
    form: Form[C, R]
    chunks: list[Chunk] = field(default_factory=list)
    _number: int = -1
    _rows: list[bytes] = field(default_factory=list)
    _slot: int = -1
    _cell: C = field(init=False)

    def __post_init__(self) -> None:
        """Start with empty counts."""
        self._cell = self.form.begin()

    @property
    def chunk_s(self) -> int:
        """Return the time span of one chunk."""
        return self.step_s * ROWS_PER_CHUNK

    @property
    def size_bytes(self) -> int:
        """Return the approximate size, without object overhead."""
        packed = sum(len(chunk.data) + len(chunk.total) for chunk in self.chunks)
        return packed + sum(map(len, self._rows)) + self._cell.size_bytes

    @property
    def oldest(self) -> float | None:
        """Return the start of the oldest chunk; None if empty."""
        if self.chunks:
            return self.chunks[0].number * self.chunk_s
        return None if self._number < 0 else self._number * self.chunk_s

    def add(self, timestamp: float, cell: C) -> None:
        """Add `cell` to the step of `at`, or to the newest one if that is later."""
        slot = int(timestamp // self.step_s)
        if slot > self._slot:
            self._close(slot)
        self._cell.add(cell)

    def cells(self, begin: float, end: float) -> Iterator[tuple[float, C]]:
        """Yield start and counts of every step that overlaps [begin, end), in order."""
        for chunk in self.chunks:
            start = chunk.number * self.chunk_s
            if start < end and start + self.chunk_s > begin:
                rows = self._rows_of(chunk)
                yield from self._between(chunk.number, rows, begin, end)
        rows = [self.form.decode_row.decode(row) for row in self._rows]
        yield from self._between(self._number, rows, begin, end)
        step_begin = self._slot * self.step_s
        if self._slot >= 0 and step_begin < end and step_begin + self.step_s > begin:
            yield step_begin, self._cell

    def sums(self, begin: float, end: float) -> Iterator[C]:
        """Yield counts that add up to those of all steps whose middle is in [begin, end)."""
        half_s = self.step_s / 2
        for chunk in self.chunks:
            start = chunk.number * self.chunk_s
            if begin <= start + half_s and start + self.chunk_s - half_s < end:
                yield self.form.cell_of(self.form.decode_row.decode(chunk.total))
            elif start < end and start + self.chunk_s > begin:
                rows = self._rows_of(chunk)
                yield from (
                    self.form.cell_of(row) for row in self._within(chunk.number, rows, begin, end)
                )
        rows = [self.form.decode_row.decode(row) for row in self._rows]
        yield from (self.form.cell_of(row) for row in self._within(self._number, rows, begin, end))
        if self._slot >= 0 and begin <= self._slot * self.step_s + half_s < end:
            yield self._cell

    def take_before(self, end: float) -> Iterator[tuple[float, C]]:
        """Remove and yield start and counts of every step in chunks that end before `end`."""
        if self._number >= 0 and (self._number + 1) * self.chunk_s <= end:
            self._close(-1)
        while self.chunks and (self.chunks[0].number + 1) * self.chunk_s <= end:
            chunk = self.chunks.pop(0)
            for row in self._rows_of(chunk):
                yield self._at(chunk.number, row), self.form.cell_of(row)

    def packed(self) -> list[Chunk]:
        """Return all data as chunks, to be persisted."""
        if self._slot < 0:
            return list(self.chunks)
        rows = [*self._rows, self._packed(self._slot, self._cell)]
        return [*self.chunks, self._sealed(self._number, rows)]

    def load(self, chunks: Iterable[Chunk]) -> None:
        """Restore the output of `packed`; the last chunk can grow again."""
        self.chunks = list(chunks)
        if self.chunks:
            chunk = self.chunks.pop()
            for row in self._rows_of(chunk):
                self.add(self._at(chunk.number, row), self.form.cell_of(row))

    def _close(self, slot: int) -> None:
        """Write the newest step and start that of `slot`; start none if it is below 0."""
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
            step_begin = self._at(number, row)
            if step_begin < end and step_begin + self.step_s > begin:
                yield step_begin, self.form.cell_of(row)

    def _within(self, number: int, rows: Iterable[R], begin: float, end: float) -> Iterator[R]:
        for row in rows:
            if begin <= self._at(number, row) + self.step_s / 2 < end:
                yield row

    def _at(self, number: int, row: R) -> float:
        return number * self.chunk_s + row.offset * self.step_s

    def _rows_of(self, chunk: Chunk) -> list[R]:
        return self.form.decode_rows.decode(zlib.decompress(chunk.data))

    def _packed(self, slot: int, cell: C) -> bytes:
        return _ENCODER.encode(self.form.row_of(slot % ROWS_PER_CHUNK, cell))

    def _sealed(self, number: int, rows: Iterable[bytes]) -> Chunk:
        data = _ENCODER.encode([msgspec.Raw(row) for row in rows])
        total = self.form.begin()
        for row in self.form.decode_rows.decode(data):
            total.add(self.form.cell_of(row))
        return Chunk(number, zlib.compress(data, _FAST), self._packed(0, total))


@dataclass(slots=True, kw_only=True)
class RollupSeries(Generic[C, R]):
    """Steps of every length; empty until the first count."""

    form: Form[C, R]
    _levels: tuple[ResolutionRows[C, R], ...] = field(default=())

    def add(self, timestamp: float, cell: C) -> None:
        """Add `cell` to the step of `at`, or to the newest one if that is later."""
        self._levels = self._levels or self._new_levels()
        self._levels[0].add(timestamp, cell)

    def spread(self, begin: float, end: float, cell: C) -> None:
        """Add `cell` in the middle of `begin` and `end`; after a gap distribute it evenly."""
        pieces = min(math.ceil((end - begin) / _PIECE_S), _PIECES)
        if pieces <= 1:
            self.add((begin + end) / 2, cell)
            return
        for number in range(pieces):
            part = cell.part(number, pieces)
            if part:
                self.add(begin + (end - begin) * (number + 0.5) / pieces, part)

    def cells(self, begin: float, end: float) -> Iterator[tuple[int, float, C]]:
        """Yield length, start and counts of all steps that overlap [begin, end)."""
        for level in self._levels:
            for step_begin, cell in level.cells(begin, end):
                yield level.step_s, step_begin, cell

    def sums(self, begin: float, end: float) -> Iterator[tuple[int, C]]:
        """Yield the step length, and counts of steps whose middle is in [begin, end)."""
        for level in self._levels:
            for cell in level.sums(begin, end):
                yield level.step_s, cell

    def age(self, now: float) -> None:
        """Merge steps past their retention into longer ones; drop the oldest."""
        for number, (level, (_, kept_s)) in enumerate(zip(self._levels, STEPS, strict=False)):
            is_last = number == len(self._levels) - 1
            for step_begin, cell in level.take_before(now - kept_s):
                if not is_last:
                    self._levels[number + 1].add(step_begin, self.form.joined(cell))

    def forget_before(self, end: float) -> None:
        """Drop whole chunks that end before `end`."""
        for level in self._levels:
            for _ in level.take_before(end):
                pass

    @property
    def oldest(self) -> float | None:
        """Return the start of the oldest chunk; None if empty."""
        starts = [begin for level in self._levels if (begin := level.oldest) is not None]
        return min(starts, default=None)

    @property
    def size_bytes(self) -> int:
        """Return the approximate size."""
        return sum(level.size_bytes for level in self._levels)

    def packed(self) -> list[list[Chunk]]:
        """Return all data, to be persisted; empty if nothing was counted."""
        return [level.packed() for level in self._levels]

    def load(self, stored: Sequence[Sequence[Chunk]]) -> None:
        """Restore the output of `packed`."""
        if stored:
            self._levels = self._new_levels()
            for level, chunks in zip(self._levels, stored, strict=True):
                level.load(chunks)

    def _new_levels(self) -> tuple[ResolutionRows[C, R], ...]:
        return tuple(ResolutionRows(step_s=step_s, form=self.form) for step_s, _ in STEPS)


class VersionSeries(Protocol):
    """Counts over time of one version of an endpoint."""

    @property
    def read_at(self) -> float:
        """Return the time of the last reading."""

    @property
    def ladder(self) -> RollupSeries[Any, Any]:
        """Return the series' steps."""

    def stored(self, endpoint: str, version: str) -> Any:  # noqa: ANN401  # the track's own struct
        """Return the persistent form: a struct with `endpoint` and `version`."""


T = TypeVar("T", bound=VersionSeries)


class StoredHistory(msgspec.Struct, frozen=True, kw_only=True):
    """A whole persisted history: `began_at` and `looked_at` are the first and last reading."""

    format: int
    began_at: float | None
    looked_at: float | None
    tracks: list[msgspec.Raw]


@dataclass(slots=True, kw_only=True)
class Tracks(Generic[T]):
    """A day of counts by endpoint and version. Not thread-safe.

    A subclass defines the counts: it adds to series and answers queries.
    """

    WHAT: ClassVar[str]
    """Name of the history in errors."""
    STORED: ClassVar[type[Any]]
    """The struct of a persisted series."""
    TRACK: ClassVar[type[Any]]
    """Class of the series, whose `load` takes that struct."""
    FORMAT: ClassVar[int] = 1

    max_bytes: int
    """Maximum size, beyond which the oldest hours of all endpoints are dropped."""
    max_tracks: int = 10_000
    """Maximum number, beyond which the version with the oldest reading is dropped."""
    began_at: float | None = None
    """Time of the first reading, in seconds since 1970; None before it."""
    looked_at: float | None = None
    """Time of the last reading."""
    _before: float | None = None
    _tracks: dict[str, dict[str, T]] = field(default_factory=dict)
    _to_age: list[T] = field(default_factory=list)
    _per_s: float = 0.0
    _portion: float = 0.0
    _round_at: float = 0.0

    def advance(self, now: float) -> None:
        """Record a reading of all versions at `at`, even without versions.

        So counters of versions that start later are known to begin at 0. Also merges old steps.
        """
        if self.looked_at is not None and now <= self.looked_at:
            return
        self._before, self.looked_at = self.looked_at, now
        if self.began_at is None:
            self.began_at = now
        # Merge old steps: of each series once a minute, a few at a time.
        elapsed_s = 0.0 if self._before is None else now - self._before
        self._portion += elapsed_s * self._per_s
        while self._to_age and self._portion >= 1 - _EPSILON:
            self._portion -= 1
            self._to_age.pop().ladder.age(now)
        if now - self._round_at >= _ROUND_S:
            for track in self._to_age:
                track.ladder.age(now)
            self._round_at, self._portion = now, 0.0
            self._forget(now)
            self._to_age = [track for _, _, track in self.all()]
            self._per_s = len(self._to_age) / _ROUND_S

    def of(self, endpoint: str) -> Mapping[str, T]:
        """Return an endpoint's series by version."""
        return self._tracks.get(endpoint, {})

    def named(self, endpoint: str, version: str) -> Iterator[T]:
        """Yield the series of a version and its other roles (`3~baseline`); all if it is empty."""
        for key, track in self.of(endpoint).items():
            if not version or version in {key, key.partition("~")[0]}:
                yield track

    def all(self) -> Iterator[tuple[str, str, T]]:
        """Yield all series: endpoint, version and series."""
        for endpoint, versions in self._tracks.items():
            for version, track in versions.items():
                yield endpoint, version, track

    def put(self, endpoint: str, version: str, track: T) -> None:
        """Add a series."""
        self._tracks.setdefault(endpoint, {})[version] = track

    def clear(self) -> None:
        """Reset, as before the first reading."""
        self._tracks, self._to_age = {}, []
        self._per_s = self._portion = self._round_at = 0.0
        self.began_at = self.looked_at = self._before = None

    @property
    def size_bytes(self) -> int:
        """Return the approximate size, without object overhead."""
        return sum(track.ladder.size_bytes for _, _, track in self.all())

    def pack(self) -> bytes:
        """Return all data, to be persisted."""
        return self.join(list(self.parts()))

    def parts(self) -> Iterator[bytes]:
        """Yield the parts for `join`; counts may be added between parts."""
        for endpoint, version, track in list(self.all()):
            yield _ENCODER.encode(track.stored(endpoint, version))

    def join(self, parts: Iterable[bytes]) -> bytes:
        """Return the input of `unpack`, from all `parts`."""
        whole = StoredHistory(
            format=self.FORMAT,
            began_at=self.began_at,
            looked_at=self.looked_at,
            tracks=[msgspec.Raw(part) for part in parts],
        )
        return _ENCODER.encode(whole)

    def unpack(self, data: bytes) -> None:
        """Restore the output of `pack`, before anything is added.

        Raises:
            ValueError: The data has another format.
        """
        try:
            whole = msgspec.msgpack.decode(data, type=StoredHistory)
            stored = [msgspec.msgpack.decode(part, type=self.STORED) for part in whole.tracks]
            tracks = [(track.endpoint, track.version, self.TRACK.load(track)) for track in stored]
        except (msgspec.MsgspecError, zlib.error) as error:
            raise ValueError(f"no {self.WHAT}: {error}") from error
        if whole.format != self.FORMAT:
            raise ValueError(f"a {self.WHAT} of format {whole.format}, not {self.FORMAT}")
        for endpoint, version, track in tracks:
            self.put(endpoint, version, track)
        self.began_at, self.looked_at = whole.began_at, whole.looked_at

    def _forget(self, now: float) -> None:
        """Drop data that is too old, and the oldest beyond the size limit."""
        tracks = list(self.all())
        tracks.sort(key=lambda item: item[2].read_at, reverse=True)
        for number, (endpoint, version, track) in enumerate(tracks):
            is_over = track.ladder.oldest is None and now - track.read_at > RETENTION_S
            if is_over or number >= self.max_tracks:
                versions = self._tracks[endpoint]
                del versions[version]
                if not versions:
                    del self._tracks[endpoint]
        while self.size_bytes > self.max_bytes:
            oldest = min(
                begin for _, _, track in self.all() if (begin := track.ladder.oldest) is not None
            )
            for _, _, track in self.all():
                track.ladder.forget_before(oldest + _HOUR_S)
