"""Whose counts are kept, and for how long? A bounded number of versions; time comes in."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

from headrace.monitor.ladder import KEPT_S, Ladder

_ROUND_S: Final = 60.0
_HOUR_S: Final = 3600.0
_EPSILON: Final = 1e-9


class Track(Protocol):
    """Counts over time of one version of one endpoint."""

    @property
    def read_at(self) -> float:
        """When it was looked at last."""

    @property
    def ladder(self) -> Ladder[Any, Any]:
        """Its steps."""


T = TypeVar("T", bound=Track)


@dataclass(slots=True, kw_only=True)
class Tracks(Generic[T]):
    """Tracks by endpoint and version.

    `max_bytes`: when what is kept gets larger, the oldest hours of all endpoints go first.
    `max_tracks`: likewise of versions, the one goes that was not looked at for longest.
    """

    max_bytes: int
    max_tracks: int
    _tracks: dict[str, dict[str, T]] = field(default_factory=dict)
    _to_age: list[T] = field(default_factory=list)
    _per_s: float = 0.0
    _portion: float = 0.0
    _round_at: float = 0.0

    def of(self, endpoint: str) -> Mapping[str, T]:
        """An endpoint's tracks by version."""
        return self._tracks.get(endpoint, {})

    def named(self, endpoint: str, version: str) -> Iterator[T]:
        """Those of a version and of its copies in other roles, `3~baseline`; all if it is empty."""
        for key, track in self.of(endpoint).items():
            if not version or version in {key, key.partition("~")[0]}:
                yield track

    def all(self) -> Iterator[tuple[str, str, T]]:
        """Everything: endpoint, version and track."""
        for endpoint, versions in self._tracks.items():
            for version, track in versions.items():
                yield endpoint, version, track

    def put(self, endpoint: str, version: str, track: T) -> None:
        """Keep a track."""
        self._tracks.setdefault(endpoint, {})[version] = track

    def clear(self) -> None:
        """Keep nothing."""
        self._tracks, self._to_age = {}, []
        self._per_s = self._portion = self._round_at = 0.0

    @property
    def size_bytes(self) -> int:
        """How much is kept, about; without what every track costs."""
        return sum(track.ladder.size_bytes for _, _, track in self.all())

    def age(self, now: float, elapsed_s: float) -> None:
        """Join old steps: of each track once a minute, of a few at a time."""
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

    def _forget(self, now: float) -> None:
        """Let go of what is too old, and of the oldest where there is too much."""
        tracks = list(self.all())
        tracks.sort(key=lambda item: item[2].read_at, reverse=True)
        for place, (endpoint, version, track) in enumerate(tracks):
            is_over = track.ladder.oldest is None and now - track.read_at > KEPT_S
            if is_over or place >= self.max_tracks:
                versions = self._tracks[endpoint]
                del versions[version]
                if not versions:
                    del self._tracks[endpoint]
        while self.size_bytes > self.max_bytes:
            oldest = min(
                at for _, _, track in self.all() if (at := track.ladder.oldest) is not None
            )
            for _, _, track in self.all():
                track.ladder.forget_before(oldest + _HOUR_S)
