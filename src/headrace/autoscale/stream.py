"""Worker count of a stream: enough to bring its lag to the target and keep it there.

Scale-up is immediate, from the lag and its slope; scale-down is by one after a long quiet period,
if the rest have capacity. Never more workers than partitions, as the others would be idle.
"""

import math
from typing import Final

import msgspec

from headrace.autoscale.state import CountProposal, ScaleReason

WINDOW_S: Final = 30.0
"""Window of the lag's slope and of rates."""
MIN_S: Final = 5.0
"""Minimum time span for a slope."""
SETTLE_S: Final = 20.0
"""Minimum time between changes: workers start, partitions are reassigned."""
QUIET_S: Final = 300.0
"""Seconds for which fewer workers must be enough."""
HEADROOM: Final = 0.7
"""Share of the capacity of fewer workers that arrivals may use."""
_QUIET_RATIO: Final = 0.5


class StreamScale(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the worker count, and the lag target."""

    min_workers: int
    max_workers: int
    target_lag_s: float


class StreamObservation(msgspec.Struct, frozen=True, kw_only=True):
    """One observation of a stream."""

    now: float
    """Seconds of any monotonic clock."""

    lag_records: int | None
    """Lag in records; None if unknown."""

    lag_s: float | None
    """Lag in seconds; None if unknown."""

    rate: float
    """Records per second by all workers."""

    partitions: int | None = None
    """Number of partitions; None for brokers that distribute single records."""


class StreamScaleState(msgspec.Struct, frozen=True, kw_only=True):
    """State between decisions."""

    workers: int
    changed_at: float = -math.inf
    looks: tuple[StreamObservation, ...] = ()
    """Observations of the window with a known lag."""

    quiet_since: float | None = None
    """Since when fewer workers may be enough."""

    capacity: float | None = None
    """Measured records per second of one worker."""


def scale_stream(
    scale: StreamScale, observation: StreamObservation, state: StreamScaleState
) -> tuple[CountProposal, StreamScaleState]:
    """Decide the worker count; return it with the reason and the new state.

    Without a known lag the count is unchanged: missing data never changes anything.
    """
    cap = (
        scale.max_workers
        if observation.partitions is None
        else min(scale.max_workers, observation.partitions)
    )
    cap = max(cap, scale.min_workers)
    current = min(max(state.workers, scale.min_workers), cap)
    if observation.lag_records is None or observation.lag_s is None:
        proposal = CountProposal(
            count=current, reason=ScaleReason.MISSING, message="the lag is not known"
        )
        return proposal, msgspec.structs.replace(state, workers=current, quiet_since=None)
    state = _remember(state, observation, current)
    if observation.now - state.changed_at < SETTLE_S:
        proposal = CountProposal(
            count=current, reason=ScaleReason.SETTLING, message="the last change takes effect"
        )
        return proposal, state
    proposal = _up(scale, observation, state, cap) or _down(scale, observation, state)
    if proposal.count != current:
        state = msgspec.structs.replace(
            state, workers=proposal.count, changed_at=observation.now, looks=(), quiet_since=None
        )
    return proposal, state


def slope(observations: tuple[StreamObservation, ...]) -> float | None:
    """Return the growth of the lag in records per second; None if unknown."""
    if not observations or observations[-1].now - observations[0].now < MIN_S:
        return None
    first, last = observations[0], observations[-1]
    return ((last.lag_records or 0) - (first.lag_records or 0)) / (last.now - first.now)


def _remember(
    state: StreamScaleState, observation: StreamObservation, current: int
) -> StreamScaleState:
    observations = (
        *(past for past in state.looks if observation.now - past.now <= WINDOW_S),
        observation,
    )
    state = msgspec.structs.replace(state, workers=current, looks=observations)
    growth = slope(observations)
    capacity = state.capacity
    if growth is not None and all(past.lag_records for past in observations):  # busy all the time
        rate_per_worker = _rate(observations) / current
        capacity = rate_per_worker if growth >= 0 else max(rate_per_worker, capacity or 0.0)
    quiet = _is_quiet(observation, state, growth)
    return msgspec.structs.replace(
        state,
        capacity=capacity,
        quiet_since=(state.quiet_since or observation.now) if quiet else None,
    )


def _is_quiet(
    observation: StreamObservation, state: StreamScaleState, growth: float | None
) -> bool:
    if state.workers <= 1 or growth is None:
        return False
    if state.capacity:
        arrivals = _rate(state.looks) + max(growth, 0.0)
        if arrivals > HEADROOM * state.capacity * (state.workers - 1):
            return False
    # Fewer records wait than are processed in a moment: the lag is not persistent.
    return (observation.lag_records or 0) <= max(_rate(state.looks), 1.0)


def _rate(observations: tuple[StreamObservation, ...]) -> float:
    return sum(observation.rate for observation in observations) / len(observations)


def _up(
    scale: StreamScale, observation: StreamObservation, state: StreamScaleState, cap: int
) -> CountProposal | None:
    """Return more workers if the lag exceeds, or will exceed, the target; None otherwise."""
    lag, lag_s, growth = observation.lag_records or 0, observation.lag_s or 0.0, slope(state.looks)
    if growth is None:
        return None
    rate, target_s = _rate(state.looks), scale.target_lag_s
    ahead = lag + growth * target_s
    will_be_late = growth > 0 and ahead > target_s * max(rate, 1.0)
    if lag_s <= target_s and not will_be_late:
        return None
    remaining_s = lag / -growth if growth < 0 else math.inf
    numbers = f"lag {lag:,} records, {lag_s:.1f} s, {growth:+,.0f} records/s; target {target_s:g} s"
    if remaining_s <= target_s:
        return CountProposal(
            count=state.workers, reason=ScaleReason.STEADY, message=f"catching up: {numbers}"
        )
    target = state.workers + 1
    if state.capacity:
        needed = (rate + growth + lag / target_s) / state.capacity
        target = max(target, math.ceil(min(needed, 2 * state.workers)))
    if state.workers >= cap:
        return CountProposal(
            count=cap, reason=ScaleReason.MAXIMUM, message=f"no more are of use: {numbers}"
        )
    return CountProposal(count=min(target, cap), reason=ScaleReason.LOAD, message=numbers)


def _down(
    scale: StreamScale, observation: StreamObservation, state: StreamScaleState
) -> CountProposal:
    """Return one worker less, if that has been enough for long."""
    current = state.workers
    if current <= scale.min_workers:
        return CountProposal(
            count=current, reason=ScaleReason.MINIMUM if current > 1 else ScaleReason.STEADY
        )
    is_far = (observation.lag_s or 0.0) <= _QUIET_RATIO * scale.target_lag_s
    if state.quiet_since is None or not is_far:
        return CountProposal(count=current, reason=ScaleReason.STEADY)
    quiet_s = observation.now - state.quiet_since
    if quiet_s < QUIET_S:
        message = f"fewer would do, for {quiet_s:.0f} of {QUIET_S:g} s"
        return CountProposal(count=current, reason=ScaleReason.SETTLING, message=message)
    return CountProposal(
        count=current - 1,
        reason=ScaleReason.LESS_LOAD,
        message=f"fewer have done for {quiet_s:.0f} s",
    )
