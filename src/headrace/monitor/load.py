"""Load of replicas over the last day by endpoint and version, in bounded memory.

Batches, queue wait, requests in flight and ready replicas, in the steps of `history`, from the
counters of the processes. Unknown values are None, never 0.
"""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter
from typing import Any, ClassVar, Final

import msgspec

from headrace.monitor.series import (
    Chunk,
    Form,
    RollupSeries,
    Tracks,
    share_of,
)

_DIGITS: Final = 3  # spans are rounded to milliseconds: two replicas would be 2.0001
_MILLI: Final = 1e-3
_MICRO: Final = 1e-6
_GAP_S: Final = 60.0
"""After a longer gap, the number of replicas in between is unknown."""


class LoadRow(msgspec.Struct, frozen=True, array_like=True):
    """A `LoadCell` in integers, which pack well: observed spans in ms, replica times in µs."""

    offset: int
    looked: int
    shared: int
    heard: int
    ready: int
    batches: int
    rows: int
    waited: int
    queue: int
    in_flight: int


@dataclass(slots=True)
class LoadCell:
    """Sums of one step, from which means are computed, so they are exact in steps of any length."""

    looked_s: float = 0.0
    """Observed time of this version."""

    shared_s: float = 0.0
    """Observed time of its endpoint, counted at one version only, so that versions add up to it."""

    heard_s: float = 0.0
    """Time in which replicas responded."""

    ready_s: float = 0.0
    """Ready replicas times seconds."""

    batches: int = 0

    rows: int = 0
    """Rows of all batches."""

    waited: int = 0
    """Requests that were queued."""

    queue_s: float = 0.0
    """Summed queue wait of these requests."""

    in_flight_s: float = 0.0
    """Requests in flight times seconds."""

    @property
    def size_bytes(self) -> int:
        """Return 0: the object needs no additional memory."""
        return 0

    def add(self, other: "LoadCell") -> None:
        """Add the sums of `other`."""
        self.looked_s += other.looked_s
        self.shared_s += other.shared_s
        self.heard_s += other.heard_s
        self.ready_s += other.ready_s
        self.batches += other.batches
        self.rows += other.rows
        self.waited += other.waited
        self.queue_s += other.queue_s
        self.in_flight_s += other.in_flight_s

    def part(self, number: int, pieces: int) -> "LoadCell":
        """Return one of `pieces` parts, from 0 on, which add up to the whole."""
        values = zip(_VALUES(self), _UNITS, strict=True)
        return LoadCell(
            *(share_of(v, number, pieces) if unit == 1 else v / pieces for v, unit in values)
        )


_UNITS: Final = (*(_MILLI,) * 4, 1, 1, 1, _MICRO, _MICRO)
"""Units of the numbers of a `LoadRow`, in the order of a cell's fields."""
_VALUES: Final = attrgetter(*LoadCell.__dataclass_fields__)


def _row(offset: int, cell: LoadCell) -> LoadRow:
    return LoadRow(
        offset, *(round(v / unit) for v, unit in zip(_VALUES(cell), _UNITS, strict=True))
    )


def _cell(row: LoadRow) -> LoadCell:
    values = msgspec.structs.astuple(row)[1:]
    return LoadCell(*(v * unit for v, unit in zip(values, _UNITS, strict=True)))


LOAD: Final = Form(
    begin=LoadCell,
    row_of=_row,
    cell_of=_cell,
    joined=lambda cell: cell,
    decode_row=msgspec.msgpack.Decoder(LoadRow),
    decode_rows=msgspec.msgpack.Decoder(list[LoadRow]),
)
"""Load of replicas."""


class LoadTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Cumulative counters of one process for one version."""

    epoch: str
    """Changes when the counters restart."""

    age_s: float
    """Time since the counters started."""

    batches: int = 0

    rows: int = 0
    """Rows of all batches."""

    waited: int = 0
    """Requests that were queued."""

    queue_s: float = 0.0
    """Summed queue wait of these requests."""

    in_flight_s: float = 0.0
    """Summed time of all requests in the process, including current ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReading:
    """One reading of a version's replicas.

    `ready` is the number of ready replicas.
    """

    ready: int
    totals: Mapping[str, LoadTotals]
    """Counters of the processes that responded, by name."""
    process_names: Collection[str] = ()
    """Names of all existing processes of all endpoints."""
    is_first: bool = True
    """Whether this is the first of its endpoint's versions, at which the endpoint's own time is
    counted."""


class StoredLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A persisted series."""

    endpoint: str
    version: str
    read_at: float
    totals: dict[str, LoadTotals] = msgspec.field(name="said")
    levels: list[list[Chunk]]


@dataclass(slots=True, kw_only=True)
class LoadTrack:
    """Load history of a version's replicas; `read_at` is the time of the last reading."""

    read_at: float
    _totals: dict[str, LoadTotals] = field(default_factory=dict)
    ladder: RollupSeries[LoadCell, LoadRow] = field(default_factory=lambda: RollupSeries(form=LOAD))

    def read(self, read_at: float, reading: LoadReading, *, began_at: float) -> None:
        """Add the load since the last reading.

        Args:
            began_at: Time of the first reading. Counts of a process that is older and was not read
                before are skipped, as their time is unknown.
        """
        begin, self.read_at = self.read_at, read_at
        # The increase of all processes' counters since the last reading.
        added = LoadCell()
        for name, totals in reading.totals.items():
            before = self._totals.get(name)
            if before is None or before.epoch != totals.epoch or totals.waited < before.waited:
                before = None
            if before is not None or read_at - totals.age_s >= began_at:
                # Counts since `before`; all counts if that is None.
                old = before or LoadTotals(epoch="", age_s=0.0)
                added.add(
                    LoadCell(
                        batches=max(totals.batches - old.batches, 0),
                        rows=max(totals.rows - old.rows, 0),
                        waited=max(totals.waited - old.waited, 0),
                        queue_s=max(totals.queue_s - old.queue_s, 0.0),
                        in_flight_s=max(totals.in_flight_s - old.in_flight_s, 0.0),
                    )
                )
        # A process that does not respond now may do so later with the same counters.
        known_totals = {
            name: totals for name, totals in self._totals.items() if name in reading.process_names
        }
        self._totals = known_totals | dict(reading.totals)
        span_s = round(read_at - begin, _DIGITS)
        if span_s > _GAP_S:
            added.in_flight_s = 0.0
        else:
            added.looked_s = span_s
            added.shared_s = span_s if reading.is_first else 0.0
            added.heard_s = span_s if reading.totals else 0.0
            added.ready_s = span_s * reading.ready
        self.ladder.spread(begin, read_at, added)

    def stored(self, endpoint: str, version: str) -> StoredLoad:
        """Return the persistent form of this series."""
        return StoredLoad(
            endpoint=endpoint,
            version=version,
            read_at=self.read_at,
            totals=dict(self._totals),
            levels=self.ladder.packed(),
        )

    @classmethod
    def load(cls, stored: StoredLoad) -> "LoadTrack":
        """Restore a persisted series."""
        track = cls(read_at=stored.read_at, _totals=dict(stored.totals))
        track.ladder.load(stored.levels)
        return track


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadWindow:
    """Means over a time span; None if unknown or without events."""

    batch_rows: float | None = None
    """Rows per batch."""

    queue_s: float | None = None
    """Queue wait of a request."""

    in_flight: float | None = None
    """Concurrent requests in replicas."""

    ready: float | None = None
    """Ready replicas."""


@dataclass(slots=True, kw_only=True)
class LoadHistory(Tracks[LoadTrack]):
    """Load of replicas of the last 24 hours."""

    WHAT: ClassVar[str] = "history of load"
    STORED: ClassVar[type[Any]] = StoredLoad
    TRACK: ClassVar[type[Any]] = LoadTrack

    max_bytes: int = 48 << 20

    def add(self, read_at: float, endpoint: str, version: str, reading: LoadReading) -> None:
        """Add a reading of a version's replicas at `at`."""
        self.advance(read_at)
        track = self.of(endpoint).get(version)
        if track is None:
            # A version that started since the last reading had no replica before.
            since = read_at if self._before is None else self._before
            track = LoadTrack(read_at=since)
            self.put(endpoint, version, track)
        if read_at >= track.read_at:
            assert self.began_at is not None
            track.read(read_at, reading, began_at=self.began_at)

    def series(
        self, endpoint: str, edges: Sequence[float], *, version: str = ""
    ) -> list[LoadWindow]:
        """Return means between successive `edges`; of all versions if `version` is empty."""
        tracks = [_sums(track, edges) for track in self.named(endpoint, version)]
        return [
            _window([sums[position] for sums in tracks], is_whole=not version)
            for position, _ in enumerate(pairwise(edges))
        ]


def _sums(track: LoadTrack, edges: Sequence[float]) -> list[LoadCell]:
    """Return the sums of a version between successive `edges`."""
    sums = [LoadCell() for _ in pairwise(edges)]
    for length_s, step_begin, cell in track.ladder.cells(edges[0], edges[-1]) if sums else ():
        position = bisect_right(edges, step_begin + length_s / 2) - 1
        if 0 <= position < len(sums):
            sums[position].add(cell)
    return sums


def _window(cells: Sequence[LoadCell], *, is_whole: bool) -> LoadWindow:
    """Return the means of the sums, of a whole endpoint or of one version in all its roles."""
    total = LoadCell()
    for cell in cells:
        total.add(cell)
    groups = [total] if is_whole else cells
    # Versions of an endpoint may follow each other: their time is the endpoint's. Roles of one
    # version run in parallel, each with its own observed time.
    spans = [
        (cell, time_s)
        for cell in groups
        if (time_s := cell.shared_s if is_whole else cell.looked_s)
    ]
    in_flight = sum(cell.in_flight_s / time_s for cell, time_s in spans)
    ready = round(sum(cell.ready_s / time_s for cell, time_s in spans), _DIGITS)
    return LoadWindow(
        batch_rows=total.rows / total.batches if total.batches else None,
        queue_s=total.queue_s / total.waited if total.waited else None,
        in_flight=in_flight if spans and total.heard_s else None,
        ready=ready if spans else None,
    )
