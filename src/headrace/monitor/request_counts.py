"""Requests of a span of time: counts by outcome and by bucket of latency, and what follows of them.

Envoy's buckets have two significant digits. One from 10 e to 99 e (e a power of ten) is e wide: 90
to a decade, a tenth of their lower bound at most. What is kept longer is kept in fewer: those from
20 e on are joined as long as they stay about a tenth as wide as their lower bound.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Final, Protocol, TypeAlias

import msgspec

from headrace.monitor.series import Form, share_of

_ERROR: Final = 0.05
Bucket: TypeAlias = tuple[float, float]
"""Lower bound and width in seconds."""
Buckets: TypeAlias = Mapping[Bucket, int]
"""Requests by bucket."""

_PER_DECADE: Final = 90
_FIRST: Final = 10  # the least number with two digits
_LEAST_EXPONENT: Final = -9
_MOST_EXPONENT: Final = 5
_LAST: Final = (_MOST_EXPONENT - _LEAST_EXPONENT + 1) * _PER_DECADE
_DIGITS: Final = 10
_ZERO: Final = 0
# Up to which leading digits how many buckets are joined: 20-21, 22-23, ... 30-32, ... 95-99.
_JOINED: Final = ((20, 1), (30, 2), (51, 3), (55, 4), (100, 5))


@cache
def index_of(bucket: Bucket) -> int:
    """The number of the bucket in which the middle of `bucket` is; 0 for no time at all."""
    lower_s, width_s = bucket
    middle = lower_s + width_s / 2
    if middle <= 0:
        return _ZERO
    exponent = math.floor(math.log10(middle)) - 1
    digits = math.floor(middle / 10.0**exponent)
    index = (exponent - _LEAST_EXPONENT) * _PER_DECADE + digits - _FIRST + 1
    return min(max(index, 1), _LAST)


@cache
def bucket_of(index: int) -> Bucket:
    """The bucket of a number."""
    if index == _ZERO:
        return (0.0, 0.0)
    decade, digits = divmod(index - 1, _PER_DECADE)
    width_s = 10.0 ** (decade + _LEAST_EXPONENT)
    return (round((digits + _FIRST) * width_s, _DIGITS), round(width_s, _DIGITS))


@cache
def joined_index(index: int) -> int:
    """The number of the first bucket among those that `index` is joined with."""
    if index == _ZERO:
        return _ZERO
    decade, digits = divmod(index - 1, _PER_DECADE)
    return decade * _PER_DECADE + _first_of(digits + _FIRST) - _FIRST + 1


@cache
def joined_bucket_of(index: int) -> Bucket:
    """The bucket that all those together are that are joined with `index`."""
    first = joined_index(index)
    lower_s, width_s = bucket_of(first)
    count = sum(
        joined_index(other) == first for other in range(first, min(first + _FIRST, _LAST + 1))
    )
    return (lower_s, round(width_s * count, _DIGITS))


def _first_of(digits: int) -> int:
    begin = _FIRST
    for end, count in _JOINED:
        if digits < end:
            return digits - (digits - begin) % count
        begin = end
    raise AssertionError(digits)


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

    def part(self, number: int, pieces: int) -> "Cell":
        """One of `pieces` parts, from 0 on: together they are this."""
        requests, errors, rejections = (
            share_of(count, number, pieces)
            for count in (self.requests, self.errors, self.rejections)
        )
        part = Cell(requests, errors, rejections)
        for index, count in self.latency.items():
            if piece := share_of(count, number, pieces):
                part.latency[index] = piece
        return part

    def __bool__(self) -> bool:
        """Whether anything was counted."""
        return bool(self.requests or self.errors or self.rejections or self.latency)

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


class Totals(Protocol):
    """What was counted since some beginning; the numbers only grow."""

    @property
    def requests(self) -> int:
        """All of them, errors and rejections among them."""

    @property
    def errors(self) -> int:
        """Requests that the endpoint failed."""

    @property
    def rejections(self) -> int:
        """Requests that the endpoint refused for what was in them."""

    @property
    def latency(self) -> Buckets:
        """Requests by lower bound and width of their latency's bucket, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Requests that were counted from `begin` to `end`, in seconds since 1970.

    `requests` includes `errors` and `rejections`. `latency`: requests by bucket.
    `known_ratio`: share of the span since the endpoint was first counted, 0 to 1.
    """

    begin: float
    end: float
    requests: int = 0
    errors: int = 0
    rejections: int = 0
    latency: Buckets = field(default_factory=dict)
    known_ratio: float = 1.0

    @property
    def duration_s(self) -> float:
        """How long it is, in seconds."""
        return self.end - self.begin

    @property
    def requests_per_s(self) -> float:
        """Requests by the second; 0 for an empty span."""
        return self._per_s(self.requests)

    @property
    def errors_per_s(self) -> float:
        """Errors by the second; 0 for an empty span."""
        return self._per_s(self.errors)

    @property
    def rejections_per_s(self) -> float:
        """Rejections by the second; 0 for an empty span."""
        return self._per_s(self.rejections)

    @property
    def error_ratio(self) -> float:
        """Errors among the requests, from 0 to 1; 0 if there were no requests."""
        return self.errors / self.requests if self.requests else 0.0

    def quantile(self, q: float) -> float | None:
        """The latency in seconds that a share `q` (0 to 1) of the requests kept; None without any.

        Within 5 % of the true one wherever in its bucket that is, and closer where requests are
        spread over the bucket.
        """
        rank = q * sum(self.latency.values())
        seen = 0
        last: float | None = None
        for (lower_s, width_s), count in sorted(self.latency.items()):
            if not count:
                continue
            if seen + count >= rank:
                return _within(lower_s, width_s, max(rank - seen, 0.0) / count)
            seen += count
            last = lower_s + width_s
        return last  # rounding carried the rank past the last request

    def _per_s(self, count: int) -> float:
        return count / self.duration_s if self.duration_s > 0 else 0.0


def _within(lower_s: float, width_s: float, part: float) -> float:
    """The place a `part` (0 to 1) into a bucket, but no more than 5 % from any other place in it.

    Requests that all take the same time are at one place of a bucket, not spread over it.
    """
    highest, lowest = lower_s * (1 + _ERROR), (lower_s + width_s) * (1 - _ERROR)
    if lowest > highest:  # a bucket so wide that no place will do
        return lower_s + width_s / 2
    return min(max(lower_s + width_s * part, lowest), highest)
