"""State of a scaler: sliding windows of signals, reasons, and values kept between decisions.

A window has at most `_BUCKETS` buckets, so an hour costs as much as a minute. The whole state is
persisted and survives a restart.
"""

import math
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final

import msgspec

_BUCKETS: Final = 60
_NARROWEST_S: Final = 1.0


class WindowBucket(msgspec.Struct, frozen=True, array_like=True):
    """Sums over observations since `begin`, each with the number of observations that had it."""

    begin: float
    in_flight_looks: int = 0
    in_flight: float = 0.0
    arrivals_looks: int = 0
    arrivals: float = 0.0
    wait_looks: int = 0
    wait_s: float = 0.0


class Peak(msgspec.Struct, frozen=True, array_like=True):
    """The largest desired count from `begin` on."""

    begin: float
    count: int


Window = tuple[WindowBucket, ...]
Peaks = tuple[Peak, ...]


def add(
    window: Window,
    *,
    observed_at: float,
    length_s: float,
    in_flight: float | None,
    arrivals: float | None,
    wait_s: float | None,
) -> Window:
    """Return the window with one more observation, without those older than `length_s`."""
    recent = tuple(b for b in window if observed_at - length_s < b.begin <= observed_at)
    width_s = max(length_s / _BUCKETS, _NARROWEST_S) * (1.0 - 1e-9)
    if recent and observed_at - recent[-1].begin < width_s:
        *rest, last = recent
    else:
        rest, last = list(recent), WindowBucket(begin=observed_at)
    return (*rest, _with(last, in_flight=in_flight, arrivals=arrivals, wait_s=wait_s))


def _with(
    bucket: WindowBucket, *, in_flight: float | None, arrivals: float | None, wait_s: float | None
) -> WindowBucket:
    return WindowBucket(
        bucket.begin,
        bucket.in_flight_looks + (in_flight is not None),
        bucket.in_flight + (in_flight or 0.0),
        bucket.arrivals_looks + (arrivals is not None),
        bucket.arrivals + (arrivals or 0.0),
        bucket.wait_looks + (wait_s is not None),
        bucket.wait_s + (wait_s or 0.0),
    )


class Mean(msgspec.Struct, frozen=True, array_like=True):
    """A mean over `looks` observations, a second apart; their sum is about the number of events."""

    value: float
    looks: int

    @property
    def count(self) -> float:
        """Return the approximate number of events."""
        return self.value * self.looks


def mean_in_flight(window: Window) -> Mean | None:
    """Return the mean requests in flight; None without data."""
    return _mean((b.in_flight, b.in_flight_looks) for b in window)


def mean_arrivals(window: Window) -> Mean | None:
    """Return the mean requests per second; None without data."""
    return _mean((b.arrivals, b.arrivals_looks) for b in window)


def mean_wait(window: Window) -> Mean | None:
    """Return the mean queue wait in seconds, weighted by observation; None without data."""
    return _mean((b.wait_s, b.wait_looks) for b in window)


def suffixes(window: Window, mean: Callable[[Window], Mean | None]) -> list[Mean]:
    """Return the means of the last bucket, of the last two, and so on."""
    means = (mean(window[first:]) for first in range(len(window)))
    return [value for value in means if value is not None]


def _mean(sums: Iterable[tuple[float, int]]) -> Mean | None:
    pairs = list(sums)
    observations = sum(count for _, count in pairs)
    return (
        Mean(sum(total for total, _ in pairs) / observations, observations)
        if observations
        else None
    )


def at_least(mean: Mean, *, z: float) -> float:
    """Return a lower bound of the true mean: `z` standard errors below.

    Random (Poisson) events scatter by the root of their number. Monotone in the mean.
    """
    count = mean.count
    return 0.0 if count <= z * z else mean.value * (1.0 - z / math.sqrt(count))


def at_most(mean: Mean, *, z: float) -> float:
    """Return an upper bound of the true mean; see `at_least`."""
    return mean.value * (1.0 + z / math.sqrt(mean.count)) if mean.count > 0.0 else 0.0


def add_peak(peaks: Peaks, *, observed_at: float, length_s: float, count: int) -> Peaks:
    """Return the peaks with one more count, without those older than `length_s`.

    Only counts that no later one exceeds are stored: others cannot become the largest.
    """
    higher = (
        peak
        for peak in peaks
        if observed_at - length_s < peak.begin <= observed_at and peak.count > count
    )
    return (*higher, Peak(observed_at, count))


class ScaleReason(StrEnum):
    """Reason of a decision."""

    STEADY = "Steady"
    LOAD = "Load"
    """More replicas are needed by the stable window."""
    BURST = "Burst"
    """More replicas are needed by the panic window."""
    PRESSURE = "Pressure"
    """Queue wait or p99 have been above their bound for a panic window."""
    SCHEDULE = "Schedule"
    MINIMUM = "Minimum"
    MAXIMUM = "Maximum"
    """More replicas are needed than `max_replicas` allows."""
    LESS_LOAD = "LessLoad"
    """Fewer replicas have been enough for the scale-down delay."""
    SETTLING = "Settling"
    """Fewer replicas may be enough, but it is too early for a scale-down."""
    MISSING = "MissingMetrics"
    STARTING = "Starting"
    """More replicas are needed, and some are already starting."""
    IDLE = "Idle"
    """No requests arrived for `idle_s`."""
    WOKEN = "Woken"
    """A request arrived after an idle period."""
    BUDGET = "Budget"
    """The machine has no capacity for more replicas."""


class CountProposal(msgspec.Struct, frozen=True, kw_only=True):
    """A proposed count with its reason."""

    count: int
    reason: ScaleReason
    message: str = ""


class Signals(msgspec.Struct, frozen=True, kw_only=True):
    """One observation of all replicas of one arm. None means unknown, not zero."""

    observed_at: float
    """Seconds since 1970."""

    ready: int
    """Number of ready replicas, without terminating ones."""

    starting: int = 0
    """Number of starting replicas."""

    in_flight: float | None = None
    """Accepted, unanswered requests over all replicas."""

    arrivals: float | None = None
    """Requests per second, including rejected ones."""

    queue_wait_s: float | None = None
    """Mean wait of completed requests."""

    p99_s: float | None = None
    """The 99th percentile latency of the last few panic windows."""

    service_s: float | None = None
    """Seconds for which one request occupies the busiest part of a replica."""

    run_s: float | None = None
    """Duration of a run."""

    concurrency: int = 1
    """Concurrent runs in one replica."""

    held: int = 0
    """Requests that wait for the first replica."""

    is_partial: bool = False
    """Not every ready replica reported: sums are lower bounds, enough only to add replicas."""

    @property
    def is_missing(self) -> bool:
        """Whether data is insufficient to remove replicas."""
        return self.is_partial or self.in_flight is None or self.arrivals is None


class ScalerState(msgspec.Struct, frozen=True, kw_only=True):
    """Persistent state of one arm's scaler. All times are seconds since 1970."""

    replicas: int
    """The decided count, or the granted one if the machine had less."""

    since: float
    """Since when the arm has been observed without a gap."""

    observed_at: float = msgspec.field(name="at")
    """The last observation."""

    stable: Window = ()

    panic: Window = ()

    peaks: Peaks = ()
    """The largest desired counts within the scale-down delay."""

    service_s: float | None = None
    """Smoothed."""

    run_s: float | None = None
    """Smoothed."""

    panic_until: float | None = None
    """No replicas are removed until then."""

    pressed_since: float | None = None
    """Since when the wait or the p99 exceeds its target."""

    raised_at: float | None = None
    """The last scale-up."""

    raised_arrivals: float | None = None
    """Requests per second at the last scale-up."""

    lowered_at: float | None = None
    """The last scale-down."""

    idle_since: float | None = None
    """Since when there are no requests."""

    starting_at: float | None = None
    """The last observation with starting replicas."""

    start_s: float = 0.0
    """Start time of a replica."""

    limit: float | None = None
    """Requests per second and replica that were too many."""

    limit_at: float = 0.0
    """Time when `limit` was measured."""


def begin(replicas: int, *, now: float) -> ScalerState:
    """Return the initial state of an arm with `replicas` replicas."""
    return ScalerState(replicas=replicas, since=now, observed_at=now)


def granted(state: ScalerState, replicas: int) -> ScalerState:
    """Return the state after the budget granted `replicas` instead of the decision."""
    if replicas == state.replicas:
        return state
    return msgspec.structs.replace(state, replicas=replicas)
