"""State of a scaler: its signals, its reasons, and what it remembers between decisions."""

from enum import StrEnum

import msgspec

from headrace.autoscale.windows import Peaks, Window


class Reason(StrEnum):
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


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A count, and what asks for it."""

    count: int
    reason: Reason
    message: str = ""


class Signals(msgspec.Struct, frozen=True, kw_only=True):
    """One look at all copies of one arm. None means that it is not known, never that it is zero.

    `at`: seconds since 1970. `ready` and `starting` count copies; those that leave are in neither.
    `in_flight`: requests taken and not answered, over all copies. `arrivals`: requests per second,
    refused ones included. `queue_wait_s`: mean wait of those answered. `p99_s`: of the last few
    panic windows.

    `service_s`: how long one request keeps one copy's busiest part busy, so that a copy can answer
    at most `1 / service_s` per second. `run_s`: how long a run takes, and `concurrency`: how many
    run at once in one copy. `held`: requests that wait for the first copy.

    `is_partial`: not every ready copy reported. Sums are then lower bounds: good enough to add
    copies, not to take any away.
    """

    at: float
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
    was looked at without a break. `at`: the last look. `peaks`: the largest counts that were wanted
    within the scale-down delay.

    `service_s`, `run_s`: smoothed. `panic_until`: until then nothing is taken away.
    `pressed_since`: how long the wait or the p99 is above what it may be. `raised_at` and
    `lowered_at`: the last steps up and down; `raised_arrivals`: requests per second at that step.
    `idle_since`: since when it is known that nobody asks. `starting_at`: the last look at which
    copies were starting, and `start_s`: how long they take.

    `limit`: requests per second and copy that were shown to be too much, `limit_at` when.
    """

    replicas: int
    since: float
    at: float
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
    return ScalerState(replicas=replicas, since=now, at=now)


def granted(state: ScalerState, replicas: int) -> ScalerState:
    """`state` after the machine's budget gave `replicas` instead of what was decided."""
    if replicas == state.replicas:
        return state
    return msgspec.structs.replace(state, replicas=replicas)
