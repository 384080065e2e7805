"""Decision of how many copies run from now on: one look in, one decision out.

Rules, in the order in which they win: bounds; the calendar; missing metrics never take copies away;
nothing is taken away in a panic, under pressure, or before fewer copies have been enough for the
scale-down delay; copies that are starting count as coming.
"""

import math
from typing import Final

import msgspec

from headrace.autoscale.demand import Demand
from headrace.autoscale.growth import floor_of, growth_of
from headrace.autoscale.look import Look, fewest_by_limit, learned
from headrace.autoscale.state import Reason, ScalerState, Signals, Wish
from headrace.autoscale.windows import add_peak
from headrace.core.spec_scale import AutoscaleSpec

_EPSILON: Final = 1e-9


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """`replicas` from now on, `state` for the next look, `reason` and `message` why.

    `needed`: copies that the load needs on average, as a fraction, and `sure`: that the newest
    looks show at least; None if it is not known. `numbers`: what was decided by, in the units of
    `Signals`.
    """

    state: ScalerState
    replicas: int
    reason: Reason
    message: str
    needed: float | None = None
    sure: float | None = None
    numbers: dict[str, float] = {}


def decide(
    state: ScalerState, signals: Signals, settings: AutoscaleSpec, *, now: float
) -> Decision:
    """The count for one arm; called about once a second.

    Args:
        now: Seconds since 1970. A clock that was set back only makes the scaler wait longer.
    """
    look = Look.of(state, signals, settings, now=now)
    floor = floor_of(look)
    chosen, after = _asleep(look) if floor.count == 0 else _awake(look, floor)
    demand = look.demand
    numbers = (demand.numbers if demand else {}) | look.pressure.numbers
    return Decision(
        state=_stepped(after, look, chosen.count),
        replicas=chosen.count,
        reason=chosen.reason,
        message=chosen.message,
        needed=demand.needed if demand else None,
        sure=demand.burst if demand else None,
        numbers=numbers | {"ready": signals.ready, "starting": signals.starting},
    )


def _asleep(look: Look) -> tuple[Wish, ScalerState]:
    message = f"no request for {look.settings.idle_s:g} s"
    state = msgspec.structs.replace(look.state, peaks=(), panic_until=None, pressed_since=None)
    return Wish(count=0, reason=Reason.IDLE, message=message), state


def _awake(look: Look, floor: Wish) -> tuple[Wish, ScalerState]:
    growth = growth_of(look)
    most = growth if growth.count >= floor.count else floor
    state = _remembered(look, most)
    if most.count > look.current:
        return _capped(most, look), state
    return _kept_or_fewer(look, floor, state), state


def _remembered(look: Look, most: Wish) -> ScalerState:
    """The state with the peak, the panic and the limit of this look."""
    state = look.state
    enough = max(most.count, min(_fewest(look), look.current))
    length_s = look.settings.scale_down_delay_s
    state = msgspec.structs.replace(
        state,
        peaks=add_peak(state.peaks, at=look.now, length_s=length_s, count=min(enough, look.cap)),
        panic_until=(
            look.now + look.settings.stable_window_s if look.bursts else state.panic_until
        ),
    )
    is_explained = look.demand is not None and look.demand.burst > look.current
    if most.reason is not Reason.PRESSURE or is_explained:
        return state
    limit = learned(state, look.settings, ready=look.signals.ready, now=look.now)
    return msgspec.structs.replace(state, limit=limit, limit_at=look.now)


def _fewest(look: Look) -> int:
    """The count that is shown to be enough now; the current one if too little is known."""
    demand = look.demand
    if look.signals.is_missing or demand is None:
        return look.current
    by_limit = fewest_by_limit(look.state, look.settings, now=look.now)
    return max(math.ceil(demand.shrink - _EPSILON), by_limit, 1)


def _capped(most: Wish, look: Look) -> Wish:
    if most.count <= look.cap:
        return most
    message = f"{most.message}; the maximum is {look.cap}"
    return Wish(count=look.cap, reason=Reason.MAXIMUM, message=message)


def _kept_or_fewer(look: Look, floor: Wish, state: ScalerState) -> Wish:
    """The current count, or fewer if those are shown to be enough."""
    current, demand = look.current, look.demand
    if current > look.cap:
        message = f"the maximum is {look.cap}"
        return Wish(count=look.cap, reason=Reason.MAXIMUM, message=message)
    if look.signals.is_missing or demand is None:
        message = "some metrics are missing: nothing is taken away"
        return Wish(count=current, reason=Reason.MISSING, message=message)
    enough = max(floor.count, *(peak.count for peak in state.peaks))
    if enough >= current:
        return _steady(look, demand)
    why = _why_not_yet(look)
    if why:
        message = f"{enough} would do; {why}"
        return Wish(count=current, reason=Reason.SETTLING, message=message)
    step = math.ceil(current / look.settings.max_scale_down_ratio)
    message = (
        f"the load needs {demand.needed:.2f} copies ({demand.explanation}); {enough} have been "
        f"enough for {look.settings.scale_down_delay_s:g} s"
    )
    return Wish(count=max(enough, step), reason=Reason.LESS_LOAD, message=message)


def _steady(look: Look, demand: Demand) -> Wish:
    parts = [f"the load needs {demand.needed:.2f} copies ({demand.explanation})"]
    if look.pressure.reason:
        parts.append(look.pressure.reason)
    if look.signals.starting:
        parts.append(f"{look.signals.starting} are starting")
    is_short = demand.grow > look.current or (look.pressure.over > 0.0)
    is_at_most = look.current == look.cap and is_short
    reason = Reason.MAXIMUM if is_at_most else Reason.STEADY
    return Wish(count=look.current, reason=reason, message="; ".join(parts))


def _why_not_yet(look: Look) -> str:
    """Why nothing is taken away yet; empty if it may be."""
    state, settings = look.state, look.settings
    if look.pressure.reason:
        return look.pressure.reason
    if look.is_panicking:
        return "there was a burst less than a stable window ago"
    if look.now - state.since < max(settings.scale_down_delay_s, settings.stable_window_s):
        return "it has not been watched for long enough"
    if state.lowered_at is not None and look.now - state.lowered_at < settings.stable_window_s:
        return "the last step down was less than a stable window ago"
    return ""


def _stepped(state: ScalerState, look: Look, after: int) -> ScalerState:
    """`state` after the count became `after`."""
    if after > look.current:
        return msgspec.structs.replace(
            state, replicas=after, raised_at=look.now, raised_arrivals=look.arrivals
        )
    if after < look.current:
        return msgspec.structs.replace(state, replicas=after, lowered_at=look.now)
    return state
