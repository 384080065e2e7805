"""What does the autoscaler remember of one arm? Everything, so that a restart changes nothing."""

import msgspec

from headrace.autoscale.windows import Peaks, Window


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
