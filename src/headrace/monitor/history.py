"""Requests of the last day by endpoint and version, in bounded memory.

Steps are a second long for 10 minutes, 10 seconds for 2 hours and a minute for a day. When steps
are joined into longer ones their sums stay; latencies go into buckets about a tenth wide.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import msgspec

from headrace.monitor.request_counts import (
    REQUESTS,
    Cell,
    Row,
    Totals,
    Window,
    bucket_of,
    index_of,
    joined_bucket_of,
)
from headrace.monitor.series import (
    STEPS,
    Chunk,
    Ladder,
    Tracks,
)

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
class Track:
    """Counts over time of one thing that counts up.

    `read_at`: when it was last read. `began_at`: nothing is counted from before that time.
    """

    read_at: float
    epoch: str
    began_at: float = 0.0
    _requests: int = 0
    _errors: int = 0
    _rejections: int = 0
    _latency: dict[int, int] = field(default_factory=dict)
    ladder: Ladder[Cell, Row] = field(default_factory=lambda: Ladder(form=REQUESTS))

    def read(self, at: float, epoch: str, totals: Totals, *, is_begin: bool = False) -> None:
        """Take in what was counted since the last look.

        Totals that fell, or are of another epoch, were counted from 0.

        Args:
            is_begin: Nobody knows when what is in `totals` was counted: it is left out.
        """
        began_anew = epoch != self.epoch or totals.requests < self._requests
        before, self.read_at, self.epoch = self.read_at, at, epoch
        if totals.requests == self._requests and not began_anew:
            return  # nothing came: this is all that an idle endpoint costs
        if began_anew:
            self._requests = self._errors = self._rejections = 0
            self._latency = {}
        added = self._difference(totals)
        if added.requests and not is_begin:
            self.ladder.spread(before, at, added)

    def stored(self, endpoint: str, version: str) -> StoredTrack:
        """This track, to be written down."""
        return StoredTrack(
            endpoint=endpoint,
            version=version,
            read_at=self.read_at,
            epoch=self.epoch,
            requests=self._requests,
            errors=self._errors,
            rejections=self._rejections,
            latency=self._latency,
            levels=self.ladder.packed(),
            began_at=self.began_at,
        )

    @classmethod
    def load(cls, stored: StoredTrack) -> "Track":
        """The track that was written down."""
        track = cls(read_at=stored.read_at, epoch=stored.epoch, began_at=stored.began_at)
        track._requests, track._errors = stored.requests, stored.errors
        track._rejections, track._latency = stored.rejections, stored.latency
        track.ladder.load(stored.levels)
        return track

    def _difference(self, totals: Totals) -> Cell:
        """What `totals` has more than what was last seen, which it is from now on."""
        latency: dict[int, int] = {}
        for bucket, count in totals.latency.items():
            index = index_of(bucket)
            latency[index] = latency.get(index, 0) + count
        added = Cell(
            requests=max(totals.requests - self._requests, 0),
            errors=max(totals.errors - self._errors, 0),
            rejections=max(totals.rejections - self._rejections, 0),
        )
        for index, count in latency.items():
            more = count - self._latency.get(index, 0)
            if more > 0:
                added.latency[index] = more
        self._requests, self._errors = totals.requests, totals.errors
        self._rejections, self._latency = totals.rejections, latency
        return added


@dataclass(slots=True, kw_only=True)
class History(Tracks[Track]):
    """Counts of requests of the last 24 hours."""

    WHAT: ClassVar[str] = "history"
    STORED: ClassVar[type[Any]] = StoredTrack
    TRACK: ClassVar[type[Any]] = Track

    max_bytes: int = 224 << 20

    def add(
        self, at: float, endpoint: str, version: str, totals: Totals, *, epoch: str = ""
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
        track = Track(read_at=since, epoch=epoch, began_at=since)
        self.put(endpoint, version, track)
        track.read(at, epoch, totals, is_begin=self._before is None)

    def window(self, endpoint: str, *, until: float, seconds: float, version: str = "") -> Window:
        """What happened in the `seconds` before `until`; of all versions if none is named.

        Steps that only overlap the span count as a whole if their middle is in it. A version also
        stands for its copies in other roles: `3` for `3~baseline`.
        """
        begin = until - seconds
        total, known_since = _Sum(), until
        for track in self.named(endpoint, version):
            known_since = min(known_since, track.began_at)
            for step_s, cell in track.ladder.sums(begin, until):
                total.add(step_s, cell)
        known_ratio = 1.0 if known_since <= begin else (until - known_since) / seconds
        return total.window(begin, until, known_ratio=known_ratio)

    def series(
        self, endpoint: str, *, since: float, until: float, points: int, version: str = ""
    ) -> list[Window]:
        """Windows side by side from `since` to `until`, about as many as `points` says.

        They begin at whole multiples of their length, which is no shorter than the steps that are
        kept of `since`. The last one ends at `until`, and is left out if it would be too short to
        say anything.
        """
        step_s = self._step_s(since, until, points)
        first = math.floor(since / step_s)
        last = math.floor((until + step_s * (1 - _LEAST_PART)) / step_s)
        sums = [_Sum() for _ in range(first, last)]
        for track in self.named(endpoint, version):
            for length_s, at, cell in track.ladder.cells(first * step_s, until):
                middle = at + length_s / 2
                place = math.floor(middle / step_s) - first
                if 0 <= place < len(sums) and middle < until:
                    sums[place].add(length_s, cell)
        return [
            found.window((first + number) * step_s, min((first + number + 1) * step_s, until))
            for number, found in enumerate(sums)
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
        wanted = max(until - since, 0.0) / max(min(points, _MAX_POINTS), 1)
        return max(math.ceil(wanted / length_s - _EPSILON), 1) * length_s


@dataclass(slots=True)
class _Sum:
    """Counts of many steps; buckets are joined as soon as one of them came joined."""

    exact: Cell = field(default_factory=Cell)
    joined: Cell = field(default_factory=Cell)
    is_joined: bool = False

    def add(self, length_s: int, cell: Cell) -> None:
        if length_s == _FINEST_S:
            self.exact.add(cell)
        else:
            self.is_joined = True
            self.joined.add(cell)

    def window(self, begin: float, end: float, *, known_ratio: float = 1.0) -> Window:
        total = self.exact
        if self.is_joined:
            total = self.exact.joined()
            total.add(self.joined)
        name = joined_bucket_of if self.is_joined else bucket_of
        return Window(
            begin=begin,
            end=end,
            requests=total.requests,
            errors=total.errors,
            rejections=total.rejections,
            latency={name(index): count for index, count in sorted(total.latency.items())},
            known_ratio=known_ratio,
        )
