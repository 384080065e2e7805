"""What is counted of requests in one step, and how is it written down?"""

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

import msgspec

from headrace.monitor.buckets import joined_index
from headrace.monitor.levels import Form


class Row(msgspec.Struct, frozen=True, array_like=True):
    """Counts of one step. `offset`: in steps, from the begin of its chunk.

    `latency`: distance from the bucket before, count, distance, count, ...
    """

    offset: int
    requests: int
    errors: int
    rejections: int
    latency: list[int]


@dataclass(slots=True)
class Cell:
    """Counts that still grow; `latency` by number of the bucket."""

    requests: int = 0
    errors: int = 0
    rejections: int = 0
    latency: dict[int, int] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """How much the buckets take, about."""
        return 8 * len(self.latency)

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


def _row(offset: int, cell: Cell) -> Row:
    latency: list[int] = []
    before = 0
    for index, count in sorted(cell.latency.items()):
        latency += (index - before, count)
        before = index
    return Row(offset, cell.requests, cell.errors, cell.rejections, latency)


def _cell(row: Row) -> Cell:
    buckets = accumulate(row.latency[::2])
    latency = dict(zip(buckets, row.latency[1::2], strict=True))
    return Cell(row.requests, row.errors, row.rejections, latency)


REQUESTS: Final = Form(
    begin=Cell,
    row_of=_row,
    cell_of=_cell,
    joined=Cell.joined,
    one=msgspec.msgpack.Decoder(Row),
    many=msgspec.msgpack.Decoder(list[Row]),
)
"""Counts of requests."""
