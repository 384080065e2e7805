"""Requests of the last day by endpoint and version: counts by outcome and by latency bucket.

A bucket from 10 e to 99 e (e a power of ten) is e wide: 90 per decade, each at most a tenth of its
lower bound. Longer steps have fewer buckets: those from 20 e on are merged as long as their width
stays about a tenth of their lower bound.

Steps are a second long for 10 minutes, 10 seconds for 2 hours and a minute for a day. Merging steps
preserves sums.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate, chain
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
_FIRST: Final = 10  # smallest number with two digits
_MIN_EXPONENT: Final = -9
_MAX_EXPONENT: Final = 5
_LAST: Final = (_MAX_EXPONENT - _MIN_EXPONENT + 1) * _PER_DECADE
_DIGITS: Final = 10
_ZERO: Final = 0
# Number of merged buckets by leading digits: 20-21, 22-23, ... 30-32, ... 95-99.
_JOINED: Final = ((20, 1), (30, 2), (51, 3), (55, 4), (100, 5))


@cache
def index_of(bucket: Bucket) -> int:
    """Return the index of the bucket that contains the middle of `bucket`; 0 for zero latency."""
    lower_s, width_s = bucket
    middle = lower_s + width_s / 2
    if middle <= 0:
        return _ZERO
    exponent = math.floor(math.log10(middle)) - 1
    digits = math.floor(middle / 10.0**exponent)
    index = (exponent - _MIN_EXPONENT) * _PER_DECADE + digits - _FIRST + 1
    return min(max(index, 1), _LAST)


@cache
def bucket_of(index: int) -> Bucket:
    """Return the bucket with this index."""
    if index == _ZERO:
        return (0.0, 0.0)
    decade, digits = divmod(index - 1, _PER_DECADE)
    width_s = 10.0 ** (decade + _MIN_EXPONENT)
    return (round((digits + _FIRST) * width_s, _DIGITS), round(width_s, _DIGITS))


@cache
def joined_index(index: int) -> int:
    """Return the index of the first bucket that is merged with `index`."""
    if index == _ZERO:
        return _ZERO
    decade, digits = divmod(index - 1, _PER_DECADE)
    return decade * _PER_DECADE + _first_of(digits + _FIRST) - _FIRST + 1


@cache
def joined_bucket_of(index: int) -> Bucket:
    """Return the merged bucket that contains `index`."""
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
    """Encoded counts of one step."""

    offset: int
    """Offset in steps, from the start of its chunk."""

    requests: int

    errors: int

    rejections: int

    latency: list[int]
    """Distance from the previous bucket, count, distance, count, ..."""


@dataclass(slots=True)
class OpenBucket:
    """Mutable counts; `latency` by bucket index."""

    requests: int = 0
    errors: int = 0
    rejections: int = 0
    latency: dict[int, int] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Return the approximate size of the buckets."""
        return 8 * len(self.latency)

    def add(self, other: "OpenBucket") -> None:
        """Add the counts of `other`."""
        self.requests += other.requests
        self.errors += other.errors
        self.rejections += other.rejections
        latency = self.latency
        for index, count in other.latency.items():
            latency[index] = latency.get(index, 0) + count

    def part(self, number: int, pieces: int) -> "OpenBucket":
        """Return one of `pieces` parts, from 0 on, which add up to the whole."""
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
        """Return the counts in merged buckets."""
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
    """Cumulative counters since some start."""

    @property
    def requests(self) -> int:
        """Return all requests, including errors and rejections."""

    @property
    def errors(self) -> int:
        """Return the requests that the endpoint failed."""

    @property
    def rejections(self) -> int:
        """Return the requests that the endpoint rejected as invalid."""

    @property
    def latency(self) -> Buckets:
        """Return requests by lower bound and width of their latency's bucket, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestWindow:
    """Requests between `begin` and `end`, in seconds since 1970."""

    begin: float
    end: float
    requests: int = 0
    """Requests including errors and rejections."""

    errors: int = 0

    rejections: int = 0

    latency: Buckets = field(default_factory=dict)

    known_ratio: float = 1.0
    """Share of the window since the endpoint's first count, 0 to 1."""

    @property
    def duration_s(self) -> float:
        """Return the length in seconds."""
        return self.end - self.begin

    @property
    def requests_per_s(self) -> float:
        """Return requests per second; 0 for an empty window."""
        return self._per_s(self.requests)

    @property
    def errors_per_s(self) -> float:
        """Return errors per second; 0 for an empty window."""
        return self._per_s(self.errors)

    @property
    def rejections_per_s(self) -> float:
        """Return rejections per second; 0 for an empty window."""
        return self._per_s(self.rejections)

    @property
    def error_ratio(self) -> float:
        """Return errors divided by requests, from 0 to 1; 0 without requests."""
        return self.errors / self.requests if self.requests else 0.0

    def quantile(self, q: float) -> float | None:
        """Return the latency in seconds that a share `q` (0 to 1) of the requests did not exceed.

        None without requests. Within 5 % of the true value, and closer where requests are spread
        over the bucket.
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

    def plus(self, other: "RequestWindow") -> "RequestWindow":
        """Return this window with the requests of another one of the same time."""
        latency = Counter(self.latency)
        latency.update(other.latency)
        return replace(
            self,
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            rejections=self.rejections + other.rejections,
            latency=latency,
        )

    def _per_s(self, count: int) -> float:
        return count / self.duration_s if self.duration_s > 0 else 0.0


def _within(lower_s: float, width_s: float, part: float) -> float:
    """Return the point a `part` (0 to 1) into a bucket, limited to 5 % from any other point in it.

    Requests with equal latency are at one point of a bucket, not spread over it.
    """
    highest, lowest = lower_s * (1 + _ERROR), (lower_s + width_s) * (1 - _ERROR)
    if lowest > highest:  # the bucket is too wide for the 5 % limit
        return lower_s + width_s / 2
    return min(max(lower_s + width_s * part, lowest), highest)


_EPSILON: Final = 1e-9
_MIN_PART: Final = 1 / 3
_FINEST_S: Final = STEPS[0][0]
_MAX_POINTS: Final = 2000


class StoredTrack(msgspec.Struct, frozen=True, kw_only=True):
    """A persisted series."""

    endpoint: str
    version: str
    read_at: float
    epoch: str
    requests: int
    errors: int
    rejections: int
    latency: dict[int, int]
    """Latency totals by bucket index."""
    levels: list[list[Chunk]]
    began_at: float = 0.0


@dataclass(slots=True, kw_only=True)
class CounterHistory:
    """History of one set of cumulative counters."""

    read_at: float
    """Time of the last reading."""

    epoch: str
    """Identity of the counters' process."""

    began_at: float = 0.0
    """Nothing before this time is counted."""
    _seen: OpenBucket = field(default_factory=OpenBucket)
    """Totals of the last reading."""
    ladder: RollupSeries[OpenBucket, StepCounts] = field(
        default_factory=lambda: RollupSeries(form=REQUESTS)
    )

    def read(
        self, read_at: float, epoch: str, totals: CounterTotals, *, is_begin: bool = False
    ) -> None:
        """Add the difference from the last reading.

        Totals that fell, or have another epoch, started from 0.

        Args:
            is_begin: The time of the counts in `totals` is unknown: they are skipped.
        """
        is_reset = epoch != self.epoch or totals.requests < self._seen.requests
        before, self.read_at, self.epoch = self.read_at, read_at, epoch
        if totals.requests == self._seen.requests and not is_reset:
            return  # no change: the only cost of an idle endpoint
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
        """Return the persistent form of this series."""
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
        """Restore a persisted series."""
        track = cls(read_at=stored.read_at, epoch=stored.epoch, began_at=stored.began_at)
        track._seen = OpenBucket(stored.requests, stored.errors, stored.rejections, stored.latency)
        track.ladder.load(stored.levels)
        return track


@dataclass(slots=True, kw_only=True)
class RequestHistory(Tracks[CounterHistory]):
    """Request counts of the last 24 hours."""

    WHAT: ClassVar[str] = "history"
    STORED: ClassVar[type[Any]] = StoredTrack
    TRACK: ClassVar[type[Any]] = CounterHistory

    max_bytes: int = 224 << 20

    def add(
        self, at: float, endpoint: str, version: str, totals: CounterTotals, *, epoch: str = ""
    ) -> None:
        """Add the counters of a version at `at`.

        Totals that are smaller than before, or have another `epoch`, started from 0. Counts from
        before the first reading of this history are skipped, as their time is unknown.
        """
        self.advance(at)
        track = self.of(endpoint).get(version)
        if track is not None:
            track.read(at, epoch, totals)
            return
        # A version that started since the last reading counted from 0.
        since = at if self._before is None else self._before
        track = CounterHistory(read_at=since, epoch=epoch, began_at=since)
        self.put(endpoint, version, track)
        track.read(at, epoch, totals, is_begin=self._before is None)

    def window(
        self, endpoint: str, *, until: float, seconds: float, version: str = ""
    ) -> RequestWindow:
        """Return the counts of the `seconds` before `until`; of all versions if `version` is empty.

        Steps that only overlap the window count as a whole if their middle is in it. A version
        includes its copies in other roles: `3` includes `3~baseline`.
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
        self, *endpoints: str, since: float, until: float, points: int, version: str = ""
    ) -> list[RequestWindow]:
        """Return adjacent windows from `since` to `until`, about `points` of them.

        Each window has the requests of all `endpoints` together.

        They begin at multiples of their length, which is at least the step length available at
        `since`. The last one ends at `until`, and is omitted if it would be too short.
        """
        step_s = self._step_s(since, until, points)
        first = math.floor(since / step_s)
        last = math.floor((until + step_s * (1 - _MIN_PART)) / step_s)
        sums = [_StepSum() for _ in range(first, last)]
        for track in chain.from_iterable(self.named(name, version) for name in endpoints):
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
        """Return the versions of an endpoint with data, by name."""
        return sorted(name for name in self.of(endpoint) if name)

    def _step_s(self, since: float, until: float, points: int) -> int:
        """Return the length of a point: whole steps of the resolution that still covers `since`."""
        newest = self.looked_at if self.looked_at is not None else until
        length_s = next(
            (step_s for step_s, kept_s in STEPS if newest - since <= kept_s), STEPS[-1][0]
        )
        requested_s = max(until - since, 0.0) / max(min(points, _MAX_POINTS), 1)
        return max(math.ceil(requested_s / length_s - _EPSILON), 1) * length_s


@dataclass(slots=True)
class _StepSum:
    """Sum of many steps; buckets are merged if any of the steps has merged ones."""

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
