"""Are requests late although the load says that there are enough copies?

Where the model of the load is wrong (a noisy neighbour, a slow disk, very uneven requests), the
queue wait and the p99 still tell the truth, late. They only ever add copies.
"""

import math
from typing import Final

import msgspec

from headrace.autoscale.capacity import target_wait_s
from headrace.autoscale.state import ScalerState
from headrace.autoscale.windows import at_most, mean_arrivals, mean_wait
from headrace.core.spec_scale import AutoscaleSpec

_FEWEST: Final = 20.0
"""Requests in the panic window from which a mean wait means something."""
_LASTS: Final = 2.5
"""Panic windows that pressure must last. It is what chance makes of a load that fits, too."""
_SETTLES: Final = 2.0
"""Panic windows in which late requests may still be those from before the last step up."""
_HARD: Final = 3.0
_HARD_STEP: Final = 1.5
"""From three times over on, not one copy more but half of them."""
_LIMIT_SHARE: Final = 0.9
_LIMIT_WINDOWS: Final = 30.0
"""A limit is forgotten after so many stable windows, and then tried again."""


class Pressure(msgspec.Struct, frozen=True, kw_only=True):
    """What is above what it may be: `over` says how many times; 0 if nothing is."""

    over: float = 0.0
    reason: str = ""
    numbers: dict[str, float] = {}


def pressure_of(state: ScalerState, settings: AutoscaleSpec, *, p99_s: float | None) -> Pressure:
    """The pressure by the panic window's mean wait and the p99."""
    wait_s, target_s = _wait(state), settings.target_queue_wait_s
    if target_s is None:
        target_s = target_wait_s(slo_latency_s=settings.slo_latency_s, run_s=state.run_s)
    over, reasons = 0.0, []
    numbers: dict[str, float] = {}
    if wait_s is not None and target_s is not None:
        numbers |= {"queue_wait_s": wait_s, "target_queue_wait_s": target_s}
        if wait_s > target_s:
            over = wait_s / target_s
            reasons.append(f"queue wait {wait_s:.3g} s above {target_s:.3g} s")
    if p99_s is not None and settings.slo_latency_s is not None:
        numbers |= {"p99_s": p99_s, "slo_latency_s": settings.slo_latency_s}
        if p99_s > settings.slo_latency_s:
            over = max(over, 1.0)
            reasons.append(f"p99 {p99_s:.3g} s above the SLO of {settings.slo_latency_s:.3g} s")
    return Pressure(over=over, reason=" and ".join(reasons), numbers=numbers)


def step_up(
    state: ScalerState,
    pressure: Pressure,
    settings: AutoscaleSpec,
    *,
    starting: int,
    now: float,
) -> int:
    """The count that lasting pressure asks for; 0 if it asks for nothing yet.

    `state.pressed_since` already takes this look into account.
    """
    if pressure.over <= 0.0 or starting or state.pressed_since is None:
        return 0
    last_step = max(state.raised_at or 0.0, state.starting_at or 0.0)
    since = max(state.pressed_since, last_step + _SETTLES * settings.panic_window_s)
    if now < since + _LASTS * settings.panic_window_s:
        return 0
    step = _HARD_STEP if pressure.over >= _HARD else 1.0
    return max(state.replicas + 1, math.ceil(state.replicas * step))


def learned(state: ScalerState, settings: AutoscaleSpec, *, ready: int, now: float) -> float | None:
    """Requests per second and copy that are too much, after pressure has just added a copy."""
    arrivals, known = mean_arrivals(state.panic), _limit(state, settings, now)
    if arrivals is None or not ready:
        return known
    seen = arrivals.value / ready
    return seen if known is None else min(seen, known)


def fewest_by_limit(state: ScalerState, settings: AutoscaleSpec, *, now: float) -> int:
    """The count below which the limit would be reached again; 0 if there is none."""
    limit, arrivals = _limit(state, settings, now), mean_arrivals(state.stable)
    if not limit or arrivals is None:
        return 0
    return math.ceil(min(at_most(arrivals, z=1.0) / (limit * _LIMIT_SHARE), settings.max_replicas))


def _limit(state: ScalerState, settings: AutoscaleSpec, now: float) -> float | None:
    is_old = now - state.limit_at >= _LIMIT_WINDOWS * settings.stable_window_s
    return None if is_old else state.limit


def _wait(state: ScalerState) -> float | None:
    arrivals, wait = mean_arrivals(state.panic), mean_wait(state.panic)
    if arrivals is None or wait is None or arrivals.count < _FEWEST:
        return None
    return wait.value
