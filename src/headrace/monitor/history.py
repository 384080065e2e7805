"""Requests of the last day by endpoint and version: counts by outcome and by latency bucket.

One from 10 e to 99 e (e a power of ten) is e wide: 90 to a decade, a tenth of their lower bound at
most. What is kept longer is kept in fewer: those from 20 e on are joined as long as they stay about
a tenth as wide as their lower bound.

Steps are a second long for 10 minutes, 10 seconds for 2 hours and a minute for a day. When steps
are joined into longer ones their sums stay; latencies go into buckets about a tenth wide.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Any, ClassVar, Final, Protocol, TypeAlias

import msgspec

from headrace.monitor.series import (
    STEPS,
    Chunk,
    Form,
    RollupSeries,
    Tracks,
    share_of,
)

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


class StepCounts(msgspec.Struct, frozen=True, array_like=True):
    """Counts of one step. `offset`: in steps, from the begin of its chunk.

    `latency`: distance from the bucket before, count, distance, count, ...
    """

    offset: int
    requests: int
    errors: int
    rejections: int
    latency: list[int]


@dataclass(slots=True)
class OpenBucket:
    """Counts that still grow; `latency` by number of the bucket."""

    requests: int = 0
    errors: int = 0
    rejections: int = 0
    latency: dict[int, int] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """How much the buckets take, about."""
        return 8 * len(self.latency)

    def add(self, other: "OpenBucket") -> None:
        """Count what `other` has as well."""
        self.requests += other.requests
        self.errors += other.errors
        self.rejections += other.rejections
        latency = self.latency
        for index, count in other.latency.items():
            latency[index] = latency.get(index, 0) + count

    def part(self, number: int, pieces: int) -> "OpenBucket":
        """One of `pieces` parts, from 0 on: together they are this."""
        requests, errors, rejections = (
            share_of(count, number, pieces)
            for count in (self.requests, self.errors, self.rejections)
        )
        part = OpenBucket(requests, errors, rejections)
        for index, count in self.latency.items():
            if piece := share_of(count, number, pieces):
                part.latency[index] = piece
        return part

    def __bool__(self) -> bool:
        """Whether anything was counted."""
        return bool(self.requests or self.errors or self.rejections or self.latency)

    def joined(self) -> "OpenBucket":
        """The same in fewer buckets."""
        latency: dict[int, int] = {}
        for index, count in self.latency.items():
            joined = joined_index(index)
            latency[joined] = latency.get(joined, 0) + count
        return OpenBucket(self.requests, self.errors, self.rejections, latency)


def _row(offset: int, cell: OpenBucket) -> StepCounts:
    latency: list[int] = []
    before = 0
    for index, count in sorted(cell.latency.items()):
        latency += (index - before, count)
        before = index
    return StepCounts(offset, cell.requests, cell.errors, cell.rejections, latency)


def _cell(row: StepCounts) -> OpenBucket:
    buckets = accumulate(row.latency[::2])
    latency = dict(zip(buckets, row.latency[1::2], strict=True))
    return OpenBucket(row.requests, row.errors, row.rejections, latency)


REQUESTS: Final = Form(
    begin=OpenBucket,
    row_of=_row,
    cell_of=_cell,
    joined=OpenBucket.joined,
    decode_row=msgspec.msgpack.Decoder(StepCounts),
    decode_rows=msgspec.msgpack.Decoder(list[StepCounts]),
)
"""Counts of requests."""


class CounterTotals(Protocol):
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
class RequestWindow:
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
        counted = 0
        last: float | None = None
        for (lower_s, width_s), count in sorted(self.latency.items()):
            if not count:
                continue
            if counted + count >= rank:
                return _within(lower_s, width_s, max(rank - counted, 0.0) / count)
            counted += count
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


_EPSILON: Final = 1e-9
_LEAST_PART: Final = 1 / 3
_FINEST_S: Final = STEPS[0][0]
_MAX_POINTS: Final = 2000


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
class CounterHistory:
    """Counts over time of one thing that counts up.

    `read_at`: when it was last read. `began_at`: nothing is counted from before that time.
    """

    read_at: float
    epoch: str
    began_at: float = 0.0
    _seen: OpenBucket = field(default_factory=OpenBucket)
    """The totals of the last look."""
    ladder: RollupSeries[OpenBucket, StepCounts] = field(
        default_factory=lambda: RollupSeries(form=REQUESTS)
    )

    def read(
        self, read_at: float, epoch: str, totals: CounterTotals, *, is_begin: bool = False
    ) -> None:
        """Take in what was counted since the last look.

        Totals that fell, or are of another epoch, were counted from 0.

        Args:
            is_begin: Nobody knows when what is in `totals` was counted: it is left out.
        """
        is_reset = epoch != self.epoch or totals.requests < self._seen.requests
        before, self.read_at, self.epoch = self.read_at, read_at, epoch
        if totals.requests == self._seen.requests and not is_reset:
            return  # nothing came: this is all that an idle endpoint costs
        if is_reset:
            self._seen = OpenBucket()
        previous, latency = self._seen, dict[int, int]()
        for bucket, count in totals.latency.items():
            index = index_of(bucket)
            latency[index] = latency.get(index, 0) + count
        added = OpenBucket(
            requests=max(totals.requests - previous.requests, 0),
            errors=max(totals.errors - previous.errors, 0),
            rejections=max(totals.rejections - previous.rejections, 0),
        )
        for index, count in latency.items():
            more = count - previous.latency.get(index, 0)
            if more > 0:
                added.latency[index] = more
        self._seen = OpenBucket(totals.requests, totals.errors, totals.rejections, latency)
        if added.requests and not is_begin:
            self.ladder.spread(before, read_at, added)

    def stored(self, endpoint: str, version: str) -> StoredTrack:
        """This track, to be written down."""
        return StoredTrack(
            endpoint=endpoint,
            version=version,
            read_at=self.read_at,
            epoch=self.epoch,
            requests=self._seen.requests,
            errors=self._seen.errors,
            rejections=self._seen.rejections,
            latency=self._seen.latency,
            levels=self.ladder.packed(),
            began_at=self.began_at,
        )

    @classmethod
    def load(cls, stored: StoredTrack) -> "CounterHistory":
        """The track that was written down."""
        track = cls(read_at=stored.read_at, epoch=stored.epoch, began_at=stored.began_at)
        track._seen = OpenBucket(stored.requests, stored.errors, stored.rejections, stored.latency)
        track.ladder.load(stored.levels)
        return track


@dataclass(slots=True, kw_only=True)
class RequestHistory(Tracks[CounterHistory]):
    """Counts of requests of the last 24 hours."""

    WHAT: ClassVar[str] = "history"
    STORED: ClassVar[type[Any]] = StoredTrack
    TRACK: ClassVar[type[Any]] = CounterHistory

    max_bytes: int = 224 << 20

    def add(
        self, at: float, endpoint: str, version: str, totals: CounterTotals, *, epoch: str = ""
    ) -> None:
        """Take in what was counted of a version up to `at`.

        Totals that are smaller than before, or of another `epoch`, were counted from 0. What an
        endpoint had counted before this history first looked at anything is left out: nobody knows
        when it was.
        """
        self.look(at)
        track = self.of(endpoint).get(version)
        if track is not None:
            track.read(at, epoch, totals)
            return
        # One that came up since the last look counted from 0 since then.
        since = at if self._before is None else self._before
        track = CounterHistory(read_at=since, epoch=epoch, began_at=since)
        self.put(endpoint, version, track)
        track.read(at, epoch, totals, is_begin=self._before is None)

    def window(
        self, endpoint: str, *, until: float, seconds: float, version: str = ""
    ) -> RequestWindow:
        """What happened in the `seconds` before `until`; of all versions if none is named.

        Steps that only overlap the span count as a whole if their middle is in it. A version also
        stands for its copies in other roles: `3` for `3~baseline`.
        """
        begin = until - seconds
        total, known_since = _StepSum(), until
        for track in self.named(endpoint, version):
            known_since = min(known_since, track.began_at)
            for step_s, cell in track.ladder.sums(begin, until):
                total.add(step_s, cell)
        known_ratio = 1.0 if known_since <= begin else (until - known_since) / seconds
        return total.window(begin, until, known_ratio=known_ratio)

    def series(
        self, endpoint: str, *, since: float, until: float, points: int, version: str = ""
    ) -> list[RequestWindow]:
        """Windows side by side from `since` to `until`, about as many as `points` says.

        They begin at whole multiples of their length, which is no shorter than the steps that are
        kept of `since`. The last one ends at `until`, and is left out if it would be too short to
        say anything.
        """
        step_s = self._step_s(since, until, points)
        first = math.floor(since / step_s)
        last = math.floor((until + step_s * (1 - _LEAST_PART)) / step_s)
        sums = [_StepSum() for _ in range(first, last)]
        for track in self.named(endpoint, version):
            for length_s, step_begin, cell in track.ladder.cells(first * step_s, until):
                middle = step_begin + length_s / 2
                position = math.floor(middle / step_s) - first
                if 0 <= position < len(sums) and middle < until:
                    sums[position].add(length_s, cell)
        return [
            step_sum.window((first + number) * step_s, min((first + number + 1) * step_s, until))
            for number, step_sum in enumerate(sums)
        ]

    def versions(self, endpoint: str) -> list[str]:
        """The versions of an endpoint of which anything is known, by name."""
        return sorted(name for name in self.of(endpoint) if name)

    def _step_s(self, since: float, until: float, points: int) -> int:
        """Length of a point: whole steps of the level that still has `since`."""
        newest = self.looked_at if self.looked_at is not None else until
        length_s = next(
            (step_s for step_s, kept_s in STEPS if newest - since <= kept_s), STEPS[-1][0]
        )
        requested_s = max(until - since, 0.0) / max(min(points, _MAX_POINTS), 1)
        return max(math.ceil(requested_s / length_s - _EPSILON), 1) * length_s


@dataclass(slots=True)
class _StepSum:
    """Counts of many steps; buckets are joined as soon as one of them came joined."""

    exact: OpenBucket = field(default_factory=OpenBucket)
    joined: OpenBucket = field(default_factory=OpenBucket)
    is_joined: bool = False

    def add(self, length_s: int, cell: OpenBucket) -> None:
        if length_s == _FINEST_S:
            self.exact.add(cell)
        else:
            self.is_joined = True
            self.joined.add(cell)

    def window(self, begin: float, end: float, *, known_ratio: float = 1.0) -> RequestWindow:
        total = self.exact
        if self.is_joined:
            total = self.exact.joined()
            total.add(self.joined)
        name = joined_bucket_of if self.is_joined else bucket_of
        return RequestWindow(
            begin=begin,
            end=end,
            requests=total.requests,
            errors=total.errors,
            rejections=total.rejections,
            latency={name(index): count for index, count in sorted(total.latency.items())},
            known_ratio=known_ratio,
        )
