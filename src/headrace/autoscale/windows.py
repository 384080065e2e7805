"""What was it on average, and how sure is that? Sliding windows in few buckets.

A window holds at most `_BUCKETS` buckets, so an hour costs as much as a minute. All of it is data:
it is stored with the scaler's state and survives a restart.
"""

import math
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

_BUCKETS: Final = 60
_NARROWEST_S: Final = 1.0


class Bucket(msgspec.Struct, frozen=True, array_like=True):
    """Sums over the looks since `at`; each sum with the number of looks that knew the value."""

    at: float
    in_flight_looks: int = 0
    in_flight: float = 0.0
    arrivals_looks: int = 0
    arrivals: float = 0.0
    wait_looks: int = 0
    wait_s: float = 0.0


class Peak(msgspec.Struct, frozen=True, array_like=True):
    """The largest count that was wanted in the time from `at` on."""

    at: float
    count: int


Window = tuple[Bucket, ...]
Peaks = tuple[Peak, ...]


def add(
    window: Window,
    *,
    at: float,
    length_s: float,
    in_flight: float | None,
    arrivals: float | None,
    wait_s: float | None,
) -> Window:
    """`window` with one more look, and without what is older than `length_s`."""
    kept = tuple(b for b in window if at - length_s < b.at <= at)
    width_s = _width(length_s)
    if kept and at - kept[-1].at < width_s:
        *rest, last = kept
    else:
        rest, last = list(kept), Bucket(at=at)
    return (*rest, _with(last, in_flight=in_flight, arrivals=arrivals, wait_s=wait_s))


def _with(
    bucket: Bucket, *, in_flight: float | None, arrivals: float | None, wait_s: float | None
) -> Bucket:
    return Bucket(
        bucket.at,
        bucket.in_flight_looks + (in_flight is not None),
        bucket.in_flight + (in_flight or 0.0),
        bucket.arrivals_looks + (arrivals is not None),
        bucket.arrivals + (arrivals or 0.0),
        bucket.wait_looks + (wait_s is not None),
        bucket.wait_s + (wait_s or 0.0),
    )


class Mean(msgspec.Struct, frozen=True, array_like=True):
    """A mean over `looks` looks, a second apart; their sum is about the number of events."""

    value: float
    looks: int

    @property
    def count(self) -> float:
        """How many events made it."""
        return self.value * self.looks


def mean_in_flight(window: Window) -> Mean | None:
    """Requests in flight; None if no look knew."""
    return _mean((b.in_flight, b.in_flight_looks) for b in window)


def mean_arrivals(window: Window) -> Mean | None:
    """Requests per second; None if no look knew."""
    return _mean((b.arrivals, b.arrivals_looks) for b in window)


def mean_wait(window: Window) -> Mean | None:
    """Seconds in a queue, each look counting the same; None if no look knew."""
    return _mean((b.wait_s, b.wait_looks) for b in window)


def suffixes(window: Window, mean: Callable[[Window], Mean | None]) -> list[Mean]:
    """The means of the last bucket, of the last two, and so on up to all of them."""
    means = (mean(window[first:]) for first in range(len(window)))
    return [found for found in means if found is not None]


def _mean(sums: Iterable[tuple[float, int]]) -> Mean | None:
    pairs = list(sums)
    looks = sum(count for _, count in pairs)
    return Mean(sum(total for total, _ in pairs) / looks, looks) if looks else None


def at_least(mean: Mean, *, z: float) -> float:
    """What the true mean is at least: `z` standard errors below.

    Events that come by chance (Poisson) scatter by the root of their number. Never falls while the
    mean grows.
    """
    count = mean.count
    return 0.0 if count <= z * z else mean.value * (1.0 - z / math.sqrt(count))


def at_most(mean: Mean, *, z: float) -> float:
    """What the true mean is at most; see `at_least`."""
    return mean.value * (1.0 + z / math.sqrt(mean.count)) if mean.count > 0.0 else 0.0


def add_peak(peaks: Peaks, *, at: float, length_s: float, count: int) -> Peaks:
    """`peaks` with one more count, and without what is older than `length_s`.

    Only counts that no later one exceeds are kept: nothing else can become the largest.
    """
    kept = (peak for peak in peaks if at - length_s < peak.at <= at and peak.count > count)
    return (*kept, Peak(at, count))


def _width(length_s: float) -> float:
    return max(length_s / _BUCKETS, _NARROWEST_S) * (1.0 - 1e-9)
