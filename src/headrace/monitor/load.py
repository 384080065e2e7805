"""Load of replicas over the last day by endpoint and version, in bounded memory.

Batches, waiting, requests in flight and ready replicas, in the steps of `History`, from what the
processes themselves count. What none of them said is None and never 0.
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

_DIGITS: Final = 3  # spans are kept to the millisecond: two replicas would be 2.0001
_MILLI: Final = 1e-3
_MICRO: Final = 1e-6
_GAP_S: Final = 60.0
"""After so long nobody knows any more how many replicas there were meanwhile."""


class LoadRow(msgspec.Struct, frozen=True, array_like=True):
    """A `LoadCell` in whole numbers, which take few bytes and pack well.

    Spans of looks are in thousandths of a second, replicas' own times in millionths.
    """

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
    """Sums that still grow: means are made of them, so they stay exact in steps of any length.

    `looked_s`: how much of the step somebody looked at this version; `shared_s`: likewise at its
    endpoint, counted at one of its versions only, so that all of them add up to the time there was.
    `heard_s`: in which replicas answered. `ready_s`: ready replicas times seconds.
    `in_flight_s`: requests in flight times seconds. `waited` requests were in the queue `queue_s`
    together; `batches` had `rows` together.
    """

    looked_s: float = 0.0
    shared_s: float = 0.0
    heard_s: float = 0.0
    ready_s: float = 0.0
    batches: int = 0
    rows: int = 0
    waited: int = 0
    queue_s: float = 0.0
    in_flight_s: float = 0.0

    @property
    def size_bytes(self) -> int:
        """Nothing beyond the object."""
        return 0

    def add(self, other: "LoadCell") -> None:
        """Count what `other` has as well."""
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
        """One of `pieces` parts, from 0 on: together they are this."""
        values = zip(_VALUES(self), _UNITS, strict=True)
        return LoadCell(
            *(share_of(v, number, pieces) if unit == 1 else v / pieces for v, unit in values)
        )


_UNITS: Final = (*(_MILLI,) * 4, 1, 1, 1, _MICRO, _MICRO)
"""What the numbers of a `LoadRow` are counted in, in the order of a cell's fields."""
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
"""How busy replicas were."""


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

    `ready` of them are; `totals`: what those that answered counted, by name; `process_names`: the
    names of all processes that there are, of any endpoint. `is_first`: whether it is the first of
    its endpoint's versions, at which the endpoint's own time is counted.
    """

    ready: int
    totals: Mapping[str, LoadTotals]
    process_names: Collection[str] = ()
    is_first: bool = True


class StoredLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A track as it is written down."""

    endpoint: str
    version: str
    read_at: float
    totals: dict[str, LoadTotals] = msgspec.field(name="said")
    levels: list[list[Chunk]]


@dataclass(slots=True, kw_only=True)
class LoadTrack:
    """How busy the replicas of a version were; `read_at` is when they were last looked at."""

    read_at: float
    _totals: dict[str, LoadTotals] = field(default_factory=dict)
    ladder: RollupSeries[LoadCell, LoadRow] = field(default_factory=lambda: RollupSeries(form=LOAD))

    def read(self, read_at: float, reading: LoadReading, *, began_at: float) -> None:
        """Take in what happened since the last look.

        Args:
            began_at: When anything was looked at first. What a process counted that is older than
                that, and was not looked at yet, is left out: nobody knows when it was.
        """
        begin, self.read_at = self.read_at, read_at
        # What all processes counted more than was last seen of each.
        added = LoadCell()
        for name, totals in reading.totals.items():
            before = self._totals.get(name)
            if before is None or before.epoch != totals.epoch or totals.waited < before.waited:
                before = None
            if before is not None or read_at - totals.age_s >= began_at:
                # What was counted since `before`; all of it if that is None.
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
        # One that does not answer now may do so later, and has not begun anew for that.
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
        """This track, to be written down."""
        return StoredLoad(
            endpoint=endpoint,
            version=version,
            read_at=self.read_at,
            totals=dict(self._totals),
            levels=self.ladder.packed(),
        )

    @classmethod
    def load(cls, stored: StoredLoad) -> "LoadTrack":
        """The track that was written down."""
        track = cls(read_at=stored.read_at, _totals=dict(stored.totals))
        track.ladder.load(stored.levels)
        return track


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadWindow:
    """Means over a span of time; None where nobody knows, or nothing happened to take one of.

    `batch_rows`: rows in a batch. `queue_s`: how long a request waited for its batch. `in_flight`:
    requests that replicas had at once. `ready`: replicas.
    """

    batch_rows: float | None = None
    queue_s: float | None = None
    in_flight: float | None = None
    ready: float | None = None


@dataclass(slots=True, kw_only=True)
class LoadHistory(Tracks[LoadTrack]):
    """Load of replicas of the last 24 hours."""

    WHAT: ClassVar[str] = "history of load"
    STORED: ClassVar[type[Any]] = StoredLoad
    TRACK: ClassVar[type[Any]] = LoadTrack

    max_bytes: int = 48 << 20

    def add(self, read_at: float, endpoint: str, version: str, reading: LoadReading) -> None:
        """Take in a look at a version's replicas at `at`."""
        self.look(read_at)
        track = self.of(endpoint).get(version)
        if track is None:
            # One that came up since the last look had no replica before that.
            since = read_at if self._before is None else self._before
            track = LoadTrack(read_at=since)
            self.put(endpoint, version, track)
        if read_at >= track.read_at:
            assert self.began_at is not None
            track.read(read_at, reading, began_at=self.began_at)

    def series(
        self, endpoint: str, edges: Sequence[float], *, version: str = ""
    ) -> list[LoadWindow]:
        """Means between each of `edges` and the next; of all versions together if none is named."""
        tracks = [_sums(track, edges) for track in self.named(endpoint, version)]
        return [
            _window([sums[position] for sums in tracks], is_whole=not version)
            for position, _ in enumerate(pairwise(edges))
        ]


def _sums(track: LoadTrack, edges: Sequence[float]) -> list[LoadCell]:
    """What is known of a version between each of `edges` and the next."""
    sums = [LoadCell() for _ in pairwise(edges)]
    for length_s, step_begin, cell in track.ladder.cells(edges[0], edges[-1]) if sums else ():
        position = bisect_right(edges, step_begin + length_s / 2) - 1
        if 0 <= position < len(sums):
            sums[position].add(cell)
    return sums


def _window(cells: Sequence[LoadCell], *, is_whole: bool) -> LoadWindow:
    """The means of what was summed up, of a whole endpoint or of one version in all its roles."""
    total = LoadCell()
    for cell in cells:
        total.add(cell)
    groups = [total] if is_whole else cells
    # Versions of an endpoint may follow each other: their time is the endpoint's. Roles of one
    # version are side by side, each looked at for its own time.
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
