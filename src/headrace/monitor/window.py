"""What happened to an endpoint's requests in a span of time?"""

from dataclasses import dataclass, field
from typing import Final, Protocol

from headrace.monitor.buckets import Buckets

_ERROR: Final = 0.05


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
