"""What is known of how busy an endpoint's replicas were in one step, and how is it written down?"""

from dataclasses import dataclass
from typing import Final

import msgspec

from headrace.monitor.levels import Form

_MILLI: Final = 1e-3
_MICRO: Final = 1e-6


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

        def share(count: int) -> int:
            return count * (number + 1) // pieces - count * number // pieces

        return LoadCell(
            looked_s=self.looked_s / pieces,
            shared_s=self.shared_s / pieces,
            heard_s=self.heard_s / pieces,
            ready_s=self.ready_s / pieces,
            batches=share(self.batches),
            rows=share(self.rows),
            waited=share(self.waited),
            queue_s=self.queue_s / pieces,
            in_flight_s=self.in_flight_s / pieces,
        )


def _row(offset: int, cell: LoadCell) -> LoadRow:
    return LoadRow(
        offset,
        round(cell.looked_s / _MILLI),
        round(cell.shared_s / _MILLI),
        round(cell.heard_s / _MILLI),
        round(cell.ready_s / _MILLI),
        cell.batches,
        cell.rows,
        cell.waited,
        round(cell.queue_s / _MICRO),
        round(cell.in_flight_s / _MICRO),
    )


def _cell(row: LoadRow) -> LoadCell:
    return LoadCell(
        row.looked * _MILLI,
        row.shared * _MILLI,
        row.heard * _MILLI,
        row.ready * _MILLI,
        row.batches,
        row.rows,
        row.waited,
        row.queue * _MICRO,
        row.in_flight * _MICRO,
    )


def _same(cell: LoadCell) -> LoadCell:
    return cell


LOAD: Final = Form(
    begin=LoadCell,
    row_of=_row,
    cell_of=_cell,
    joined=_same,
    one=msgspec.msgpack.Decoder(LoadRow),
    many=msgspec.msgpack.Decoder(list[LoadRow]),
)
"""How busy replicas were."""
