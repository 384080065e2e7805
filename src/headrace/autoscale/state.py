"""State of a scaler: signals in sliding windows, reasons, and what it keeps between decisions.

A window holds at most `_BUCKETS` buckets, so an hour costs as much as a minute. All of it is data:
it is stored with the scaler's state and survives a restart.
"""

import math
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final

import msgspec

_BUCKETS: Final = 60
_NARROWEST_S: Final = 1.0


class WindowBucket(msgspec.Struct, frozen=True, array_like=True):
    """Sums over the looks since `begin`; each sum with the number of looks that knew the value."""

    begin: float
    in_flight_looks: int = 0
    in_flight: float = 0.0
    arrivals_looks: int = 0
    arrivals: float = 0.0
    wait_looks: int = 0
    wait_s: float = 0.0


class Peak(msgspec.Struct, frozen=True, array_like=True):
    """The largest count that was wanted in the time from `begin` on."""

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
    """`window` with one more look, and without what is older than `length_s`."""
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
    return [value for value in means if value is not None]


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


def add_peak(peaks: Peaks, *, observed_at: float, length_s: float, count: int) -> Peaks:
    """`peaks` with one more count, and without what is older than `length_s`.

    Only counts that no later one exceeds are kept: nothing else can become the largest.
    """
    higher = (
        peak
        for peak in peaks
        if observed_at - length_s < peak.begin <= observed_at and peak.count > count
    )
    return (*higher, Peak(observed_at, count))


class ScaleReason(StrEnum):
    """What decided."""

    STEADY = "Steady"
    LOAD = "Load"
    """The stable window shows that more are needed."""
    BURST = "Burst"
    """The panic window does."""
    PRESSURE = "Pressure"
    """Queue wait or p99 have been above their bound for a panic window."""
    SCHEDULE = "Schedule"
    MINIMUM = "Minimum"
    MAXIMUM = "Maximum"
    """More are needed than `max_replicas` allows."""
    LESS_LOAD = "LessLoad"
    """Fewer have been enough for the scale-down delay."""
    SETTLING = "Settling"
    """Fewer would do, and it is too early to be sure."""
    MISSING = "MissingMetrics"
    STARTING = "Starting"
    """More are wanted, and copies are on their way already."""
    IDLE = "Idle"
    """Nobody asked for `idle_s`."""
    WOKEN = "Woken"
    """The first request after that."""
    BUDGET = "Budget"
    """The machine has no room for more."""


class CountProposal(msgspec.Struct, frozen=True, kw_only=True):
    """A count, and what asks for it."""

    count: int
    reason: ScaleReason
    message: str = ""


class Signals(msgspec.Struct, frozen=True, kw_only=True):
    """One look at all copies of one arm. None means that it is not known, never that it is zero.

    `observed_at`: seconds since 1970. `ready` and `starting` count copies; those that leave are in
    neither. `in_flight`: requests taken and not answered, over all copies. `arrivals`: requests per
    second, refused ones included. `queue_wait_s`: mean wait of those answered. `p99_s`: of the last
    few panic windows.

    `service_s`: how long one request keeps one copy's busiest part busy, so that a copy can answer
    at most `1 / service_s` per second. `run_s`: how long a run takes, and `concurrency`: how many
    run at once in one copy. `held`: requests that wait for the first copy.

    `is_partial`: not every ready copy reported. Sums are then lower bounds: good enough to add
    copies, not to take any away.
    """

    observed_at: float
    ready: int
    starting: int = 0
    in_flight: float | None = None
    arrivals: float | None = None
    queue_wait_s: float | None = None
    p99_s: float | None = None
    service_s: float | None = None
    run_s: float | None = None
    concurrency: int = 1
    held: int = 0
    is_partial: bool = False

    @property
    def is_missing(self) -> bool:
        """Whether too little is known to take copies away."""
        return self.is_partial or self.in_flight is None or self.arrivals is None


class ScalerState(msgspec.Struct, frozen=True, kw_only=True):
    """All times are seconds since 1970.

    `replicas`: what was decided, or granted if the machine had less. `since`: from when on the arm
    was looked at without a break. `observed_at`: the last look. `peaks`: the largest counts that
    were wanted within the scale-down delay.

    `service_s`, `run_s`: smoothed. `panic_until`: until then nothing is taken away.
    `pressed_since`: how long the wait or the p99 is above what it may be. `raised_at` and
    `lowered_at`: the last steps up and down; `raised_arrivals`: requests per second at that step.
    `idle_since`: since when it is known that nobody asks. `starting_at`: the last look at which
    copies were starting, and `start_s`: how long they take.

    `limit`: requests per second and copy that were shown to be too much, `limit_at` when.
    """

    replicas: int
    since: float
    observed_at: float = msgspec.field(name="at")
    stable: Window = ()
    panic: Window = ()
    peaks: Peaks = ()
    service_s: float | None = None
    run_s: float | None = None
    panic_until: float | None = None
    pressed_since: float | None = None
    raised_at: float | None = None
    raised_arrivals: float | None = None
    lowered_at: float | None = None
    idle_since: float | None = None
    starting_at: float | None = None
    start_s: float = 0.0
    limit: float | None = None
    limit_at: float = 0.0


def begin(replicas: int, *, now: float) -> ScalerState:
    """The state of an arm that has `replicas` copies and was never looked at."""
    return ScalerState(replicas=replicas, since=now, observed_at=now)


def granted(state: ScalerState, replicas: int) -> ScalerState:
    """`state` after the machine's budget gave `replicas` instead of what was decided."""
    if replicas == state.replicas:
        return state
    return msgspec.structs.replace(state, replicas=replicas)
