"""Decision about the replica count, and the allowed growth per step.

Rules in order of precedence: bounds; the schedule; missing metrics never remove replicas; nothing
is removed in a panic, under pressure, or before fewer replicas have been enough for the scale-down
delay; starting replicas count as available soon.
"""

import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim

from headrace.autoscale.observation import ArmObservation, fewest_by_limit, learn_limit, step_up
from headrace.autoscale.state import CountProposal, ScaleReason, ScalerState, Signals, add_peak
from headrace.core.spec.scale import AutoscaleSpec, ScaleScheduleSpec

_MINUTE_S: Final = 60.0


def scheduled_floor(hints: Iterable[ScaleScheduleSpec], *, now: float) -> tuple[int, str]:
    """Return the largest active scheduled minimum and its cron line; 0 and "" without one.

    Args:
        now: Seconds since 1970. A hint holds from its moment, inclusive, for its duration.

    Raises:
        CronSimError, ZoneInfoNotFoundError: A hint is malformed; the spec refuses such.
    """
    floor, line = 0, ""
    for hint in hints:
        began = _last_moment(hint.cron, hint.timezone, int(now // _MINUTE_S))
        if now - began < hint.duration_s and hint.min_replicas > floor:
            floor, line = hint.min_replicas, hint.cron
    return floor, line


@lru_cache(maxsize=1024)
def _last_moment(cron: str, timezone: str, minute: int) -> float:
    """Return the newest time of `cron` up to `minute` (since 1970), in seconds since 1970."""
    # One second past the minute, so that a time at its very beginning is included.
    now = datetime.fromtimestamp(minute * _MINUTE_S, UTC) + timedelta(seconds=1)
    moments = CronSim(cron, now.astimezone(ZoneInfo(timezone)), reverse=True)
    newest = next(moments, None)
    return -math.inf if newest is None else newest.timestamp()


def growth_of(look: ArmObservation) -> CountProposal:
    """Return the largest proposal, limited to one step; 0 without any."""
    held, demand = look.signals.held, look.demand
    proposals = [CountProposal(count=0, reason=ScaleReason.STEADY)]
    if held:
        copies = held / (look.settings.target_in_flight or math.inf)
        count = max(math.ceil(min(copies, look.cap)), 1)
        message = f"{held} requests wait for the first copy"
        proposals.append(CountProposal(count=count, reason=ScaleReason.WOKEN, message=message))
    if demand is not None:
        proposals.append(
            _load_proposal(demand.grow, ScaleReason.LOAD, f"on average ({demand.explanation})")
        )
        if look.is_panicking:
            why = f"right now ({demand.burst_explanation})"
            proposals.append(_load_proposal(demand.burst, ScaleReason.BURST, why))
    proposals = [_without_queue_growth(proposal, look) for proposal in proposals]
    pressed = step_up(
        look.state, look.pressure, look.settings, starting=look.signals.starting, now=look.now
    )
    proposals.append(
        CountProposal(count=pressed, reason=ScaleReason.PRESSURE, message=look.pressure.reason)
    )
    largest = max(proposals, key=lambda proposal: proposal.count)
    step = math.ceil(max(look.signals.ready, 1) * look.settings.max_scale_up_ratio)
    reach = max(step, look.current)
    if largest.count <= reach:
        return largest
    message = f"{largest.message}; one step goes to {reach} at most"
    return CountProposal(count=reach, reason=largest.reason, message=message)


def floor_of(look: ArmObservation) -> CountProposal:
    """Return the minimum of the settings, whatever the load is."""
    settings = look.settings
    scheduled, line = scheduled_floor(settings.schedule, now=look.now)
    least = 0 if look.is_asleep else max(settings.min_replicas, 1)
    if scheduled > least:
        message = f"the schedule '{line}' asks for {scheduled}"
        return CountProposal(
            count=min(scheduled, look.cap), reason=ScaleReason.SCHEDULE, message=message
        )
    return CountProposal(count=least, reason=ScaleReason.MINIMUM, message=f"the minimum is {least}")


def _load_proposal(copies: float, reason: ScaleReason, why: str) -> CountProposal:
    message = f"the load needs at least {copies:.2f} copies {why}"
    return CountProposal(count=math.ceil(copies - _EPSILON), reason=reason, message=message)


def _without_queue_growth(proposal: CountProposal, look: ArmObservation) -> CountProposal:
    """Return the proposal without the growth of in-flight requests while replicas start.

    In-flight counts grow with every second in which requested replicas are not yet available. So
    while some start, only more arrivals justify more of them.
    """
    starting, current = look.signals.starting, look.current
    grows_with_queue = look.demand is not None and look.demand.by_in_flight
    if not starting or not grows_with_queue or proposal.count <= current:
        return proposal
    ratio = 1.0
    if look.arrivals is not None and look.state.raised_arrivals:
        ratio = max(look.arrivals / look.state.raised_arrivals, 1.0)
    count = math.ceil(min(proposal.count, current * ratio - _EPSILON))
    if count > current:
        return msgspec.structs.replace(proposal, count=count)
    message = f"{proposal.message}; {starting} copies are starting"
    return CountProposal(count=count, reason=ScaleReason.STARTING, message=message)


_EPSILON: Final = 1e-9


class ScaleDecision(msgspec.Struct, frozen=True, kw_only=True):
    """Decision for one arm."""

    state: ScalerState
    """State for the next evaluation."""

    replicas: int
    """New replica count."""

    reason: ScaleReason

    message: str

    needed: float | None = None
    """Replicas that the load needs on average; None if unknown."""

    sure: float | None = None
    """Lower bound from the newest observations; None if unknown."""

    numbers: dict[str, float] = {}
    """Inputs of the decision, in the units of `Signals`."""


def decide(
    state: ScalerState, signals: Signals, settings: AutoscaleSpec, *, now: float
) -> ScaleDecision:
    """Decide the count for one arm; called about once a second.

    Args:
        now: Seconds since 1970. If the clock is set back, the scaler only waits longer.
    """
    look = ArmObservation.of(state, signals, settings, now=now)
    floor = floor_of(look)
    if floor.count == 0:
        message = f"no request for {settings.idle_s:g} s"
        chosen = CountProposal(count=0, reason=ScaleReason.IDLE, message=message)
        after = msgspec.structs.replace(look.state, peaks=(), panic_until=None, pressed_since=None)
    else:
        growth = growth_of(look)
        largest = growth if growth.count >= floor.count else floor
        after = _record_look(look, largest)
        is_more = largest.count > look.current
        chosen = _capped(largest, look) if is_more else _keep_or_shrink(look, floor, after)
    if chosen.count > look.current:
        after = msgspec.structs.replace(after, raised_at=now, raised_arrivals=look.arrivals)
    elif chosen.count < look.current:
        after = msgspec.structs.replace(after, lowered_at=now)
    demand = look.demand
    numbers = (demand.numbers if demand else {}) | look.pressure.numbers
    return ScaleDecision(
        state=msgspec.structs.replace(after, replicas=chosen.count),
        replicas=chosen.count,
        reason=chosen.reason,
        message=chosen.message,
        needed=demand.needed if demand else None,
        sure=demand.burst if demand else None,
        numbers=numbers | {"ready": signals.ready, "starting": signals.starting},
    )


def _record_look(look: ArmObservation, largest: CountProposal) -> ScalerState:
    """Return the state with the peak, panic and limit of this evaluation."""
    state = look.state
    enough = max(largest.count, min(_fewest(look), look.current))
    length_s = look.settings.scale_down_delay_s
    state = msgspec.structs.replace(
        state,
        peaks=add_peak(
            state.peaks, observed_at=look.now, length_s=length_s, count=min(enough, look.cap)
        ),
        panic_until=(
            look.now + look.settings.stable_window_s if look.bursts else state.panic_until
        ),
    )
    is_explained = look.demand is not None and look.demand.burst > look.current
    if largest.reason is not ScaleReason.PRESSURE or is_explained:
        return state
    limit = learn_limit(state, look.settings, ready=look.signals.ready, now=look.now)
    return msgspec.structs.replace(state, limit=limit, limit_at=look.now)


def _fewest(look: ArmObservation) -> int:
    """Return the count that is shown to be enough now; the current one without enough data."""
    demand = look.demand
    if look.signals.is_missing or demand is None:
        return look.current
    by_limit = fewest_by_limit(look.state, look.settings, now=look.now)
    return max(math.ceil(demand.shrink - _EPSILON), by_limit, 1)


def _capped(largest: CountProposal, look: ArmObservation) -> CountProposal:
    if largest.count <= look.cap:
        return largest
    message = f"{largest.message}; the maximum is {look.cap}"
    return CountProposal(count=look.cap, reason=ScaleReason.MAXIMUM, message=message)


def _keep_or_shrink(
    look: ArmObservation, floor: CountProposal, state: ScalerState
) -> CountProposal:
    """Return the current count, or fewer if that is shown to be enough."""
    current, demand = look.current, look.demand
    if current > look.cap:
        message = f"the maximum is {look.cap}"
        return CountProposal(count=look.cap, reason=ScaleReason.MAXIMUM, message=message)
    if look.signals.is_missing or demand is None:
        message = "some metrics are missing: nothing is taken away"
        return CountProposal(count=current, reason=ScaleReason.MISSING, message=message)
    enough = max(floor.count, *(peak.count for peak in state.peaks))
    if enough >= current:
        parts = [f"the load needs {demand.needed:.2f} copies ({demand.explanation})"]
        if look.pressure.reason:
            parts.append(look.pressure.reason)
        if look.signals.starting:
            parts.append(f"{look.signals.starting} are starting")
        is_short = demand.grow > look.current or (look.pressure.over > 0.0)
        is_at_most = look.current == look.cap and is_short
        reason = ScaleReason.MAXIMUM if is_at_most else ScaleReason.STEADY
        return CountProposal(count=look.current, reason=reason, message="; ".join(parts))
    why = _hold_reason(look)
    if why:
        message = f"{enough} would do; {why}"
        return CountProposal(count=current, reason=ScaleReason.SETTLING, message=message)
    step = math.ceil(current / look.settings.max_scale_down_ratio)
    message = (
        f"the load needs {demand.needed:.2f} copies ({demand.explanation}); {enough} have been "
        f"enough for {look.settings.scale_down_delay_s:g} s"
    )
    return CountProposal(count=max(enough, step), reason=ScaleReason.LESS_LOAD, message=message)


def _hold_reason(look: ArmObservation) -> str:
    """Return why replicas are not removed yet; empty if they may be."""
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
