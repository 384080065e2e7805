"""What is known at one look, all together? The state with the newest signals in its windows."""

from dataclasses import dataclass
from typing import Final, Self

import msgspec

from headrace.autoscale.demand import Demand, demand_of
from headrace.autoscale.pressure import Pressure, pressure_of
from headrace.autoscale.signals import Signals
from headrace.autoscale.state import ScalerState
from headrace.autoscale.windows import Mean, Window, add, mean_arrivals, mean_in_flight
from headrace.core.spec_scale import AutoscaleSpec

_BREAK_S: Final = 10.0
"""Longer than this between two looks, and what was seen before says nothing about the time since.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at one arm; `state` has it in its windows already. `demand` None: not known."""

    state: ScalerState
    signals: Signals
    settings: AutoscaleSpec
    demand: Demand | None
    pressure: Pressure
    now: float

    @classmethod
    def of(
        cls, state: ScalerState, signals: Signals, settings: AutoscaleSpec, *, now: float
    ) -> Self:
        """The look at `now`, seconds since 1970."""
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
        """The count so far."""
        return self.state.replicas

    @property
    def cap(self) -> int:
        """The largest count that is allowed."""
        return max(self.settings.max_replicas, 1)

    @property
    def arrivals(self) -> float | None:
        """Requests per second in the panic window."""
        arrivals = mean_arrivals(self.state.panic)
        return None if arrivals is None else arrivals.value

    @property
    def bursts(self) -> bool:
        """Whether the panic window shows much more than the ready copies should do."""
        ready = max(self.signals.ready, 1)
        demand = self.demand
        return demand is not None and demand.burst >= self.settings.panic_ratio * ready

    @property
    def is_panicking(self) -> bool:
        """Whether there was a burst within the stable window."""
        until = self.state.panic_until
        return self.bursts or (until is not None and self.now < until)

    @property
    def is_asleep(self) -> bool:
        """Whether nothing has to run: nobody asked for long, or nothing runs and nobody asks."""
        signals, state = self.signals, self.state
        if self.settings.min_replicas > 0 or signals.held:
            return False
        if state.replicas == 0:
            return not signals.in_flight and not signals.arrivals
        return state.idle_since is not None and self.now - state.idle_since >= self.settings.idle_s


def _observed(
    state: ScalerState, signals: Signals, settings: AutoscaleSpec, now: float
) -> ScalerState:
    if now < state.at:
        state = _set_back(state, now)
    is_broken = now - state.at > max(_BREAK_S, settings.panic_window_s)
    return msgspec.structs.replace(
        state,
        at=now,
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
    """How long copies take to start, by the last step up; it grows while some still do."""
    if not signals.starting or state.raised_at is None:
        return state.start_s
    return max(now - state.raised_at, state.start_s)


def _with(window: Window, signals: Signals, length_s: float, now: float) -> Window:
    in_flight, arrivals = signals.in_flight, signals.arrivals
    if signals.is_partial:
        # A part of the sum says something only where it is more than the whole was so far.
        in_flight = _above(in_flight, mean_in_flight(window))
        arrivals = _above(arrivals, mean_arrivals(window))
    return add(
        window,
        at=now,
        length_s=length_s,
        in_flight=in_flight,
        arrivals=arrivals,
        wait_s=signals.queue_wait_s,
    )


def _above(part: float | None, mean: Mean | None) -> float | None:
    return None if part is not None and mean is not None and part < mean.value else part


def _set_back(state: ScalerState, now: float) -> ScalerState:
    """`state` after the clock was set back: times that are yet to come count as now."""
    return msgspec.structs.replace(
        state,
        since=now,
        at=now,
        panic_until=None if state.panic_until is None else now,
        pressed_since=None,
        raised_at=None if state.raised_at is None else now,
        starting_at=None if state.starting_at is None else now,
        lowered_at=None if state.lowered_at is None else now,
        idle_since=None,
        limit_at=min(state.limit_at, now),
    )


def _idle_since(state: ScalerState, signals: Signals, now: float) -> float | None:
    """Since when it is known that nobody asks; a look that knows nothing begins anew."""
    is_asked = bool(signals.in_flight or signals.arrivals or signals.held)
    if signals.is_missing or is_asked:
        return None
    return now if state.idle_since is None else state.idle_since
