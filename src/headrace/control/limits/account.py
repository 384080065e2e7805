"""What one subject has used of its limits. Decides nothing: says how long each has to wait."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from headrace.control.limits.bucket import Bucket
from headrace.core.spec_access import LimitSpec

DAY_S: Final = 86_400.0
_WEIGHT: Final = 0.2
"""Weight of a new request in the moving average of rows."""
_UNTIL_ONE_ENDS_S: Final = 1.0
"""Nobody knows when a request that is under way will end."""


class Kind(StrEnum):
    """What is limited, in the words of the spec."""

    REQUESTS = "requests_per_s"
    ROWS = "rows_per_s"
    CONCURRENT = "max_concurrent"
    DAY = "requests_per_day"


class Moment(NamedTuple):
    """Now, on both clocks: monotonic seconds, and seconds since 1970."""

    now: float
    wall: float

    @property
    def day(self) -> int:
        """Days since 1970, UTC."""
        return int(self.wall // DAY_S)

    @property
    def midnight_s(self) -> float:
        """Seconds until the next day begins, UTC."""
        return DAY_S - self.wall % DAY_S


class Standing(NamedTuple):
    """How one limit stands. `wait_s`: until a request may pass; 0 if it may now."""

    kind: Kind
    limit: float
    remaining: float
    wait_s: float


@dataclass(slots=True)
class Account:
    """One subject's use: of each second, of its places, of its day."""

    requests: Bucket | None = None
    rows: Bucket | None = None
    rows_each: float = 1.0
    """How many rows a request has, on average: so many are taken before it is known."""
    leases: dict[str, float] = field(default_factory=dict)
    """When each request that is under way is given up, by its id."""
    day: int = 0
    used: int = 0
    """Requests of `day`."""

    def standings(self, limits: LimitSpec, at: Moment) -> Iterator[Standing]:
        """How each of `limits` stands at a moment, before another request."""
        if limits.requests_per_s is not None:
            bucket = self._requests(limits, at.now)
            yield _standing(Kind.REQUESTS, bucket, 1.0)
        if limits.rows_per_s is not None:
            yield _standing(Kind.ROWS, self._rows(limits.rows_per_s, at.now), self.rows_each)
        if limits.max_concurrent is not None:
            yield self._places(limits.max_concurrent, at.now)
        if limits.requests_per_day is not None:
            self.turn(at.day)
            left = max(limits.requests_per_day - self.used, 0)
            wait_s = 0.0 if left else at.midnight_s
            yield Standing(Kind.DAY, limits.requests_per_day, left, wait_s)

    def take(self, limits: LimitSpec, lease: str, until: float) -> float:
        """Count a request that passes; how many rows were taken for it, to be corrected."""
        if self.requests is not None and limits.requests_per_s is not None:
            self.requests.take(1.0)
        if limits.max_concurrent is not None:
            self.leases[lease] = until
        if limits.requests_per_day is not None:
            self.used += 1
        if self.rows is None or limits.rows_per_s is None:
            return 0.0
        self.rows.take(self.rows_each)
        return self.rows_each

    def end(self, lease: str, *, rows: float | None, taken: float, now: float) -> None:
        """A request ended: its place is free, and its rows are known (None: they never will be)."""
        self.leases.pop(lease, None)
        if self.rows is None or not taken or rows is None:
            return
        self.rows.refill(now)
        self.rows.take(rows - taken)
        self.rows_each += _WEIGHT * (max(rows, 1.0) - self.rows_each)

    def turn(self, day: int) -> None:
        """Begin another day; a clock that goes back does not give yesterday's requests again."""
        if day > self.day:
            self.day, self.used = day, 0

    def _requests(self, limits: LimitSpec, now: float) -> Bucket:
        rate, size = limits.requests_per_s or 0.0, float(limits.most_at_once)
        if self.requests is None:
            self.requests = Bucket(rate=rate, size=size, at=now)
        self.requests.refill(now)
        self.requests.change(rate=rate, size=size)
        return self.requests

    def _rows(self, rate: float, now: float) -> Bucket:
        size = max(rate, 1.0)
        if self.rows is None:
            self.rows = Bucket(rate=rate, size=size, at=now)
        self.rows.refill(now)
        self.rows.change(rate=rate, size=size)
        return self.rows

    def _places(self, limit: int, now: float) -> Standing:
        if len(self.leases) >= limit:
            self.leases = {lease: until for lease, until in self.leases.items() if until > now}
        left = max(limit - len(self.leases), 0)
        return Standing(Kind.CONCURRENT, limit, left, 0.0 if left else _UNTIL_ONE_ENDS_S)


def _standing(kind: Kind, bucket: Bucket, amount: float) -> Standing:
    remaining = max(math.floor(bucket.tokens), 0)
    return Standing(kind, bucket.size, remaining, bucket.wait_s(amount))
