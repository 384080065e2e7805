"""Observation of one arm: its windows, its demand, and the pressure of late requests.

Where the load model is wrong (other processes on the CPU, a slow disk, very uneven requests), queue
wait and p99 still show it, with a delay. They only ever add replicas.
"""

import math
from dataclasses import dataclass
from typing import Final, Self

import msgspec

from headrace.autoscale.demand import ReplicaDemand, demand_of, target_wait_s
from headrace.autoscale.state import (
    Mean,
    ScalerState,
    Signals,
    Window,
    add,
    at_most,
    mean_arrivals,
    mean_in_flight,
    mean_wait,
)
from headrace.core.spec.scale import AutoscaleSpec
from headrace.core.text import duration_text

_FEWEST: Final = 20.0
"""Minimum number of requests in the panic window for a mean wait."""
_LASTS: Final = 2.5
"""Panic windows for which pressure must last. Even sufficient replicas have short pressure by
chance."""
_SETTLES: Final = 2.0
"""Panic windows in which late requests may still date from before the last scale-up."""
_HARD: Final = 3.0
_HARD_STEP: Final = 1.5
"""Factor of the scale-up at three times the target or more; below, one replica is added."""
_LIMIT_SHARE: Final = 0.9
_LIMIT_WINDOWS: Final = 30.0
"""A limit expires after this many stable windows, and is then tried again."""


class Pressure(msgspec.Struct, frozen=True, kw_only=True):
    """Excess over a target: `over` is the ratio; 0 without any."""

    over: float = 0.0
    reason: str = ""
    numbers: dict[str, float] = {}


def pressure_of(state: ScalerState, settings: AutoscaleSpec, *, p99_s: float | None) -> Pressure:
    """Return the pressure from the panic window's mean wait and the p99."""
    wait_s, target_s = _wait(state), settings.target_queue_wait_s
    if target_s is None:
        target_s = target_wait_s(slo_latency_s=settings.slo_latency_s, run_s=state.run_s)
    over, reasons = 0.0, []
    numbers: dict[str, float] = {}
    if wait_s is not None and target_s is not None:
        numbers |= {"queue_wait_s": wait_s, "target_queue_wait_s": target_s}
        if wait_s > target_s:
            over = wait_s / target_s
            reasons.append(f"queue wait {duration_text(wait_s)} above {duration_text(target_s)}")
    if p99_s is not None and settings.slo_latency_s is not None:
        numbers |= {"p99_s": p99_s, "slo_latency_s": settings.slo_latency_s}
        if p99_s > settings.slo_latency_s:
            over = max(over, 1.0)
            slo = duration_text(settings.slo_latency_s)
            reasons.append(f"p99 {duration_text(p99_s)} above the SLO of {slo}")
    return Pressure(over=over, reason=" and ".join(reasons), numbers=numbers)


def step_up(
    state: ScalerState,
    pressure: Pressure,
    settings: AutoscaleSpec,
    *,
    starting: int,
    now: float,
) -> int:
    """Return the count that lasting pressure requires; 0 if none yet.

    `state.pressed_since` already includes this observation.
    """
    if pressure.over <= 0.0 or starting or state.pressed_since is None:
        return 0
    last_step = max(state.raised_at or 0.0, state.starting_at or 0.0)
    since = max(state.pressed_since, last_step + _SETTLES * settings.panic_window_s)
    if now < since + _LASTS * settings.panic_window_s:
        return 0
    step = _HARD_STEP if pressure.over >= _HARD else 1.0
    return max(state.replicas + 1, math.ceil(state.replicas * step))


def learn_limit(
    state: ScalerState, settings: AutoscaleSpec, *, ready: int, now: float
) -> float | None:
    """Return requests per second and replica that are too many, after pressure added one."""
    arrivals, known_limit = mean_arrivals(state.panic), _limit(state, settings, now)
    if arrivals is None or not ready:
        return known_limit
    rate_per_copy = arrivals.value / ready
    return rate_per_copy if known_limit is None else min(rate_per_copy, known_limit)


def fewest_by_limit(state: ScalerState, settings: AutoscaleSpec, *, now: float) -> int:
    """Return the count below which the limit would be exceeded again; 0 without a limit."""
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


_BREAK_S: Final = 10.0
"""Maximum gap between observations; after a longer gap, earlier ones are discarded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmObservation:
    """One observation of one arm, already in the windows of `state`."""

    state: ScalerState
    signals: Signals
    settings: AutoscaleSpec
    demand: ReplicaDemand | None
    pressure: Pressure
    now: float

    @classmethod
    def of(
        cls, state: ScalerState, signals: Signals, settings: AutoscaleSpec, *, now: float
    ) -> Self:
        """Return the observation at `now`, seconds since 1970."""
        state = _observed(state, signals, settings, now)
        pressure = pressure_of(state, settings, p99_s=signals.p99_s)
        since = (state.pressed_since or now) if pressure.over > 0.0 else None
        return cls(
            state=msgspec.structs.replace(state, pressed_since=since),
            signals=signals,
            settings=settings,
            demand=demand_of(state, settings, concurrency=max(signals.concurrency, 1)),
            pressure=pressure,
            now=now,
        )

    @property
    def current(self) -> int:
        """Return the current count."""
        return self.state.replicas

    @property
    def cap(self) -> int:
        """Return the maximum count."""
        return max(self.settings.max_replicas, 1)

    @property
    def arrivals(self) -> float | None:
        """Return the requests per second in the panic window."""
        arrivals = mean_arrivals(self.state.panic)
        return None if arrivals is None else arrivals.value

    @property
    def bursts(self) -> bool:
        """Whether the panic window shows much more load than the ready replicas can carry."""
        ready = max(self.signals.ready, 1)
        demand = self.demand
        return demand is not None and demand.burst >= self.settings.panic_ratio * ready

    @property
    def is_panicking(self) -> bool:
        """Whether a burst occurred within the stable window."""
        until = self.state.panic_until
        return self.bursts or (until is not None and self.now < until)

    @property
    def is_asleep(self) -> bool:
        """Whether no replica is needed: no requests for long, or none running and no requests."""
        signals, state = self.signals, self.state
        if self.settings.min_replicas > 0 or signals.held:
            return False
        if state.replicas == 0:
            return not signals.in_flight and not signals.arrivals
        return state.idle_since is not None and self.now - state.idle_since >= self.settings.idle_s


def _observed(
    state: ScalerState, signals: Signals, settings: AutoscaleSpec, now: float
) -> ScalerState:
    if now < state.observed_at:
        state = _after_clock_jump(state, now)
    is_broken = now - state.observed_at > max(_BREAK_S, settings.panic_window_s)
    return msgspec.structs.replace(
        state,
        observed_at=now,
        since=now if is_broken else state.since,
        stable=_with(state.stable, signals, settings.stable_window_s, now),
        panic=_with(state.panic, signals, settings.panic_window_s, now),
        service_s=state.service_s if signals.service_s is None else signals.service_s,
        run_s=state.run_s if signals.run_s is None else signals.run_s,
        idle_since=_idle_since(state, signals, now),
        starting_at=now if signals.starting else state.starting_at,
        start_s=_start_s(state, signals, now),
    )


def _start_s(state: ScalerState, signals: Signals, now: float) -> float:
    """Return the start time of replicas since the last scale-up; grows while some start."""
    if not signals.starting or state.raised_at is None:
        return state.start_s
    return max(now - state.raised_at, state.start_s)


def _with(window: Window, signals: Signals, length_s: float, now: float) -> Window:
    in_flight, arrivals = signals.in_flight, signals.arrivals
    if signals.is_partial:
        # A partial sum counts only if it exceeds the complete sum so far.
        in_flight = _above(in_flight, mean_in_flight(window))
        arrivals = _above(arrivals, mean_arrivals(window))
    return add(
        window,
        observed_at=now,
        length_s=length_s,
        in_flight=in_flight,
        arrivals=arrivals,
        wait_s=signals.queue_wait_s,
    )


def _above(part: float | None, mean: Mean | None) -> float | None:
    return None if part is not None and mean is not None and part < mean.value else part


def _after_clock_jump(state: ScalerState, now: float) -> ScalerState:
    """Return the state after the clock was set back: future times count as now."""
    return msgspec.structs.replace(
        state,
        since=now,
        observed_at=now,
        panic_until=None if state.panic_until is None else now,
        pressed_since=None,
        raised_at=None if state.raised_at is None else now,
        starting_at=None if state.starting_at is None else now,
        lowered_at=None if state.lowered_at is None else now,
        idle_since=None,
        limit_at=min(state.limit_at, now),
    )


def _idle_since(state: ScalerState, signals: Signals, now: float) -> float | None:
    """Return since when there are no requests; reset by an observation without data."""
    is_asked = bool(signals.in_flight or signals.arrivals or signals.held)
    if signals.is_missing or is_asked:
        return None
    return now if state.idle_since is None else state.idle_since
