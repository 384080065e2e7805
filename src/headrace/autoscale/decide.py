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
        started = _last_moment(hint.cron, hint.timezone, int(now // _MINUTE_S))
        if now - started < hint.duration_s and hint.min_replicas > floor:
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


def growth_of(observation: ArmObservation) -> CountProposal:
    """Return the largest proposal, limited to one step; 0 without any."""
    held, demand = observation.signals.held, observation.demand
    proposals = [CountProposal(count=0, reason=ScaleReason.STEADY)]
    if held:
        copies = held / (observation.settings.target_in_flight or math.inf)
        count = max(math.ceil(min(copies, observation.cap)), 1)
        message = f"{held} requests wait for the first copy"
        proposals.append(CountProposal(count=count, reason=ScaleReason.WOKEN, message=message))
    if demand is not None:
        proposals.append(
            _load_proposal(demand.grow, ScaleReason.LOAD, f"on average ({demand.explanation})")
        )
        if observation.is_panicking:
            reason = f"right now ({demand.burst_explanation})"
            proposals.append(_load_proposal(demand.burst, ScaleReason.BURST, reason))
    proposals = [_without_queue_growth(proposal, observation) for proposal in proposals]
    pressed = step_up(
        observation.state,
        observation.pressure,
        observation.settings,
        starting=observation.signals.starting,
        now=observation.now,
    )
    proposals.append(
        CountProposal(
            count=pressed, reason=ScaleReason.PRESSURE, message=observation.pressure.reason
        )
    )
    largest = max(proposals, key=lambda proposal: proposal.count)
    step = math.ceil(max(observation.signals.ready, 1) * observation.settings.max_scale_up_ratio)
    reach = max(step, observation.current)
    if largest.count <= reach:
        return largest
    message = f"{largest.message}; one step goes to {reach} at most"
    return CountProposal(count=reach, reason=largest.reason, message=message)


def floor_of(observation: ArmObservation) -> CountProposal:
    """Return the minimum of the settings, whatever the load is."""
    settings = observation.settings
    scheduled, line = scheduled_floor(settings.schedule, now=observation.now)
    minimum = 0 if observation.is_asleep else max(settings.min_replicas, 1)
    if scheduled > minimum:
        message = f"the schedule '{line}' asks for {scheduled}"
        return CountProposal(
            count=min(scheduled, observation.cap), reason=ScaleReason.SCHEDULE, message=message
        )
    return CountProposal(
        count=minimum, reason=ScaleReason.MINIMUM, message=f"the minimum is {minimum}"
    )


def _load_proposal(copies: float, reason: ScaleReason, cause: str) -> CountProposal:
    message = f"the load needs at least {copies:.2f} copies {cause}"
    return CountProposal(count=math.ceil(copies - _EPSILON), reason=reason, message=message)


def _without_queue_growth(proposal: CountProposal, observation: ArmObservation) -> CountProposal:
    """Return the proposal without the growth of in-flight requests while replicas start.

    In-flight counts grow with every second in which requested replicas are not yet available. So
    while some start, only more arrivals justify more of them.
    """
    starting, current = observation.signals.starting, observation.current
    grows_with_queue = observation.demand is not None and observation.demand.by_in_flight
    if not starting or not grows_with_queue or proposal.count <= current:
        return proposal
    ratio = 1.0
    if observation.arrivals is not None and observation.state.raised_arrivals:
        ratio = max(observation.arrivals / observation.state.raised_arrivals, 1.0)
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
    observation = ArmObservation.of(state, signals, settings, now=now)
    floor = floor_of(observation)
    if floor.count == 0:
        message = f"no request for {settings.idle_s:g} s"
        selected = CountProposal(count=0, reason=ScaleReason.IDLE, message=message)
        after = msgspec.structs.replace(
            observation.state, peaks=(), panic_until=None, pressed_since=None
        )
    else:
        growth = growth_of(observation)
        largest = growth if growth.count >= floor.count else floor
        after = _record_observation(observation, largest)
        is_more = largest.count > observation.current
        selected = (
            _capped(largest, observation) if is_more else _keep_or_shrink(observation, floor, after)
        )
    if selected.count > observation.current:
        after = msgspec.structs.replace(after, raised_at=now, raised_arrivals=observation.arrivals)
    elif selected.count < observation.current:
        after = msgspec.structs.replace(after, lowered_at=now)
    demand = observation.demand
    numbers = (demand.numbers if demand else {}) | observation.pressure.numbers
    return ScaleDecision(
        state=msgspec.structs.replace(after, replicas=selected.count),
        replicas=selected.count,
        reason=selected.reason,
        message=selected.message,
        needed=demand.needed if demand else None,
        sure=demand.burst if demand else None,
        numbers=numbers | {"ready": signals.ready, "starting": signals.starting},
    )


def _record_observation(observation: ArmObservation, largest: CountProposal) -> ScalerState:
    """Return the state with the peak, panic and limit of this evaluation."""
    state = observation.state
    enough = max(largest.count, min(_fewest(observation), observation.current))
    length_s = observation.settings.scale_down_delay_s
    state = msgspec.structs.replace(
        state,
        peaks=add_peak(
            state.peaks,
            observed_at=observation.now,
            length_s=length_s,
            count=min(enough, observation.cap),
        ),
        panic_until=(
            observation.now + observation.settings.stable_window_s
            if observation.bursts
            else state.panic_until
        ),
    )
    is_explained = observation.demand is not None and observation.demand.burst > observation.current
    if largest.reason is not ScaleReason.PRESSURE or is_explained:
        return state
    limit = learn_limit(
        state, observation.settings, ready=observation.signals.ready, now=observation.now
    )
    return msgspec.structs.replace(state, limit=limit, limit_at=observation.now)


def _fewest(observation: ArmObservation) -> int:
    """Return the count that is shown to be enough now; the current one without enough data."""
    demand = observation.demand
    if observation.signals.is_missing or demand is None:
        return observation.current
    by_limit = fewest_by_limit(observation.state, observation.settings, now=observation.now)
    return max(math.ceil(demand.shrink - _EPSILON), by_limit, 1)


def _capped(largest: CountProposal, observation: ArmObservation) -> CountProposal:
    if largest.count <= observation.cap:
        return largest
    message = f"{largest.message}; the maximum is {observation.cap}"
    return CountProposal(count=observation.cap, reason=ScaleReason.MAXIMUM, message=message)


def _keep_or_shrink(
    observation: ArmObservation, floor: CountProposal, state: ScalerState
) -> CountProposal:
    """Return the current count, or fewer if that is shown to be enough."""
    current, demand = observation.current, observation.demand
    if current > observation.cap:
        message = f"the maximum is {observation.cap}"
        return CountProposal(count=observation.cap, reason=ScaleReason.MAXIMUM, message=message)
    if observation.signals.is_missing or demand is None:
        message = "some metrics are missing: nothing is taken away"
        return CountProposal(count=current, reason=ScaleReason.MISSING, message=message)
    enough = max(floor.count, *(peak.count for peak in state.peaks))
    if enough >= current:
        parts = [f"the load needs {demand.needed:.2f} copies ({demand.explanation})"]
        if observation.pressure.reason:
            parts.append(observation.pressure.reason)
        if observation.signals.starting:
            parts.append(f"{observation.signals.starting} are starting")
        is_short = demand.grow > observation.current or (observation.pressure.over > 0.0)
        is_at_most = observation.current == observation.cap and is_short
        reason = ScaleReason.MAXIMUM if is_at_most else ScaleReason.STEADY
        return CountProposal(count=observation.current, reason=reason, message="; ".join(parts))
    cause = _hold_reason(observation)
    if cause:
        message = f"{enough} would do; {cause}"
        return CountProposal(count=current, reason=ScaleReason.SETTLING, message=message)
    step = math.ceil(current / observation.settings.max_scale_down_ratio)
    message = (
        f"the load needs {demand.needed:.2f} copies ({demand.explanation}); {enough} have been "
        f"enough for {observation.settings.scale_down_delay_s:g} s"
    )
    return CountProposal(count=max(enough, step), reason=ScaleReason.LESS_LOAD, message=message)


def _hold_reason(observation: ArmObservation) -> str:
    """Return why replicas are not removed yet; empty if they may be."""
    state, settings = observation.state, observation.settings
    if observation.pressure.reason:
        return observation.pressure.reason
    if observation.is_panicking:
        return "there was a burst less than a stable window ago"
    if observation.now - state.since < max(settings.scale_down_delay_s, settings.stable_window_s):
        return "it has not been watched for long enough"
    if (
        state.lowered_at is not None
        and observation.now - state.lowered_at < settings.stable_window_s
    ):
        return "the last step down was less than a stable window ago"
    return ""
