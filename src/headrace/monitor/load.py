"""How busy were an endpoint's replicas over the last day? Bounded; time comes in.

Batches, waiting, requests in flight and ready replicas, in the steps of `History`, from what the
processes themselves count. What none of them said is None and never 0.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import msgspec

from headrace.monitor import kept
from headrace.monitor.load_counts import LoadCell
from headrace.monitor.load_track import LoadReading, LoadTrack, StoredLoad
from headrace.monitor.tracks import Tracks

_FORMAT: Final = 1
_DIGITS: Final = 3  # spans are kept to the millisecond: two replicas would be 2.0001


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
class LoadHistory:
    """Load of the last 24 hours. Not thread-safe. `max_bytes` and `max_tracks` as of `Tracks`."""

    max_bytes: int = 48 << 20
    max_tracks: int = 10_000
    began_at: float | None = None
    """When anything was looked at first, in seconds since 1970; None before that."""
    looked_at: float | None = None
    """When that was done last."""
    _before: float | None = None
    _tracks: Tracks[LoadTrack] = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing kept."""
        self._tracks = Tracks(max_bytes=self.max_bytes, max_tracks=self.max_tracks)

    def look(self, at: float) -> None:
        """Say that everything there is will now be added as it is at `at`. Also joins old steps."""
        if self.looked_at is not None and at <= self.looked_at:
            return
        self._before, self.looked_at = self.looked_at, at
        if self.began_at is None:
            self.began_at = at
        self._tracks.age(at, 0.0 if self._before is None else at - self._before)

    def add(self, at: float, endpoint: str, version: str, reading: LoadReading) -> None:
        """Take in a look at a version's replicas at `at`."""
        self.look(at)
        track = self._tracks.of(endpoint).get(version)
        if track is None:
            # One that came up since the last look had no replica before that.
            since = at if self._before is None else self._before
            track = LoadTrack(read_at=since)
            self._tracks.put(endpoint, version, track)
        if at >= track.read_at:
            assert self.began_at is not None
            track.read(at, reading, began_at=self.began_at)

    def series(
        self, endpoint: str, edges: Sequence[float], *, version: str = ""
    ) -> list[LoadWindow]:
        """Means between each of `edges` and the next; of all versions together if none is named."""
        tracks = [_sums(track, edges) for track in self._tracks.named(endpoint, version)]
        return [
            _window([sums[place] for sums in tracks], is_whole=not version)
            for place, _ in enumerate(pairwise(edges))
        ]

    def clear(self) -> None:
        """Begin anew, as if nothing had been looked at."""
        self._tracks.clear()
        self.began_at = self.looked_at = self._before = None

    @property
    def size_bytes(self) -> int:
        """How much is kept, about."""
        return self._tracks.size_bytes

    def pack(self) -> bytes:
        """Everything, to be written down."""
        return self.join(list(self.parts()))

    def parts(self) -> Iterator[bytes]:
        """What `join` makes a whole of; something may be added between one part and the next."""
        for endpoint, version, track in list(self._tracks.all()):
            yield msgspec.msgpack.encode(track.stored(endpoint, version))

    def join(self, parts: Iterable[bytes]) -> bytes:
        """What `unpack` takes, of all `parts`."""
        return kept.encode(parts, number=_FORMAT, began_at=self.began_at, looked_at=self.looked_at)

    def unpack(self, data: bytes) -> None:
        """Take up what `pack` gave, before anything is added.

        Raises:
            ValueError: It is something else.
        """
        whole, tracks = kept.decode(
            data, StoredLoad, LoadTrack.load, number=_FORMAT, what="history of load"
        )
        for one, track in tracks:
            self._tracks.put(one.endpoint, one.version, track)
        self.began_at, self.looked_at = whole.began_at, whole.looked_at


def _sums(track: LoadTrack, edges: Sequence[float]) -> list[LoadCell]:
    """What is known of a version between each of `edges` and the next."""
    sums = [LoadCell() for _ in pairwise(edges)]
    for length_s, at, cell in track.ladder.cells(edges[0], edges[-1]) if sums else ():
        place = bisect_right(edges, at + length_s / 2) - 1
        if 0 <= place < len(sums):
            sums[place].add(cell)
    return sums


def _window(cells: Sequence[LoadCell], *, is_whole: bool) -> LoadWindow:
    """The means of what was summed up, of a whole endpoint or of one version in all its roles."""
    total = LoadCell()
    for cell in cells:
        total.add(cell)
    in_flight, ready = _whole(total) if is_whole else _side_by_side(cells)
    return LoadWindow(
        batch_rows=total.rows / total.batches if total.batches else None,
        queue_s=total.queue_s / total.waited if total.waited else None,
        in_flight=in_flight if total.heard_s else None,
        ready=ready,
    )


def _whole(total: LoadCell) -> tuple[float | None, float | None]:
    """Requests in flight and ready replicas of all versions, some of which may follow others."""
    if not total.shared_s:
        return None, None
    return total.in_flight_s / total.shared_s, round(total.ready_s / total.shared_s, _DIGITS)


def _side_by_side(cells: Sequence[LoadCell]) -> tuple[float | None, float | None]:
    """The same of roles of one version, each looked at for its own time."""
    known = [cell for cell in cells if cell.looked_s]
    if not known:
        return None, None
    in_flight = sum(cell.in_flight_s / cell.looked_s for cell in known)
    return in_flight, round(sum(cell.ready_s / cell.looked_s for cell in known), _DIGITS)
