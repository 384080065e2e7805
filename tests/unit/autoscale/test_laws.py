"""What holds for every load, by Hypothesis."""

from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.autoscale import ScalerState, Signals, begin, decide
from headrace.core.spec.scale import AutoscaleSpec
from tests.unit.autoscale.looks import T0, load, play

pytestmark = pytest.mark.slow

SETTINGS = st.builds(
    AutoscaleSpec,
    min_replicas=st.integers(0, 3),
    max_replicas=st.integers(3, 30),
    target_in_flight=st.none() | st.floats(0.1, 50.0),
    target_queue_wait_s=st.none() | st.floats(0.001, 1.0),
    slo_latency_s=st.none() | st.floats(0.01, 5.0),
    stable_window_s=st.floats(6.0, 120.0),
    panic_window_s=st.floats(1.0, 6.0),
    panic_ratio=st.floats(1.0, 3.0),
    scale_down_delay_s=st.floats(0.0, 120.0),
    max_scale_up_ratio=st.floats(1.1, 10.0),
    max_scale_down_ratio=st.floats(1.1, 10.0),
    idle_s=st.floats(1.0, 60.0),
)
MAYBE = st.none() | st.floats(0.0, 500.0)


@st.composite
def looks(draw: st.DrawFn) -> Signals:
    ready = draw(st.integers(0, 20))
    return Signals(
        observed_at=0.0,
        ready=ready,
        starting=draw(st.integers(0, 5)),
        in_flight=draw(MAYBE),
        arrivals=draw(MAYBE),
        queue_wait_s=draw(st.none() | st.floats(0.0, 2.0)),
        p99_s=draw(st.none() | st.floats(0.0, 5.0)),
        service_s=draw(st.none() | st.floats(0.0001, 1.0)),
        run_s=draw(st.none() | st.floats(0.0001, 1.0)),
        concurrency=draw(st.integers(1, 8)),
        held=draw(st.sampled_from([0, 0, 0, 1, 20])),
        is_partial=draw(st.booleans()),
    )


@st.composite
def states(draw: st.DrawFn, settings: AutoscaleSpec) -> ScalerState:
    """A state that some history brought about."""
    state = begin(draw(st.integers(0, 20)), now=T0)
    for signals in draw(st.lists(looks(), max_size=12)):
        pause = draw(st.sampled_from([1.0, 1.0, 1.0, 7.0, 100.0]))
        state = decide(state, signals, settings, now=state.observed_at + pause).state
    return state


@given(st.data(), SETTINGS, looks(), st.floats(0.0, 300.0), st.floats(0.0, 300.0))
def test_more_load_never_means_fewer_replicas(
    data: st.DataObject, settings: AutoscaleSpec, signals: Signals, more: float, longer: float
) -> None:
    state = data.draw(states(settings))
    grown = {
        "in_flight": None if signals.in_flight is None else signals.in_flight + more,
        "arrivals": None if signals.arrivals is None else signals.arrivals + more,
        "queue_wait_s": None if signals.queue_wait_s is None else signals.queue_wait_s + longer,
        "p99_s": None if signals.p99_s is None else signals.p99_s + longer,
        "held": signals.held + int(more),
    }
    heavier = msgspec.structs.replace(signals, **grown)

    now = state.observed_at + 1.0
    less = decide(state, signals, settings, now=now)
    most = decide(state, heavier, settings, now=now)

    assert most.replicas >= less.replicas


@given(st.lists(st.floats(0.0, 200.0), min_size=2, max_size=150), st.floats(1.0, 3.0))
def test_a_load_that_is_heavier_all_the_time_never_has_fewer_replicas(
    rates: list[float], factor: float
) -> None:
    settings = AutoscaleSpec(
        max_replicas=40, stable_window_s=10.0, panic_window_s=3.0, scale_down_delay_s=15.0
    )

    light = play(settings, rates)
    heavy = play(settings, [rate * factor for rate in rates])

    assert heavy[-1].needed is None or heavy[-1].needed >= (light[-1].needed or 0.0) - 1e-9


@given(st.data(), SETTINGS, looks())
def test_missing_metrics_never_scale_down(
    data: st.DataObject, settings: AutoscaleSpec, signals: Signals
) -> None:
    state = data.draw(states(settings))
    unknown = data.draw(st.sampled_from(["in_flight", "arrivals", "is_partial"]))
    lost = msgspec.structs.replace(signals, **{unknown: True if unknown == "is_partial" else None})

    decision = decide(state, lost, settings, now=state.observed_at + 1.0)

    assert decision.replicas >= min(state.replicas, settings.max_replicas)


@given(st.data(), SETTINGS, looks())
def test_a_count_stays_within_its_bounds(
    data: st.DataObject, settings: AutoscaleSpec, signals: Signals
) -> None:
    state = data.draw(states(settings))

    decision = decide(state, signals, settings, now=state.observed_at + 1.0)

    assert settings.min_replicas <= decision.replicas <= settings.max_replicas
    assert decision.replicas == decision.state.replicas
    assert decision.message


@given(st.data(), SETTINGS, looks())
def test_one_step_goes_no_further_than_it_may(
    data: st.DataObject, settings: AutoscaleSpec, signals: Signals
) -> None:
    state = data.draw(states(settings))

    decision = decide(state, signals, settings, now=state.observed_at + 1.0)

    reach = max(signals.ready, 1) * settings.max_scale_up_ratio + 1
    assert decision.replicas <= max(state.replicas, reach, settings.min_replicas)
    is_bound = state.replicas > settings.max_replicas or decision.replicas == 0
    least = state.replicas / settings.max_scale_down_ratio
    assert is_bound or decision.replicas >= min(least, settings.max_replicas) - 1e-9


@given(st.data(), SETTINGS, st.lists(looks(), min_size=1, max_size=8))
def test_a_restart_changes_no_decision(
    data: st.DataObject, settings: AutoscaleSpec, later: list[Signals]
) -> None:
    state = data.draw(states(settings))
    again = msgspec.json.decode(msgspec.json.encode(state), type=ScalerState)

    for signals in later:
        went_on = decide(state, signals, settings, now=state.observed_at + 1.0)
        restarted = decide(again, signals, settings, now=again.observed_at + 1.0)
        assert restarted == went_on
        state = went_on.state
        again = msgspec.json.decode(msgspec.json.encode(restarted.state), type=ScalerState)


@given(st.floats(0.5, 120.0), st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_a_constant_load_does_not_flap(rate: float, seed: int, replicas: int) -> None:
    """Requests come by chance at one rate: the count may settle, but never turns twice."""
    settings = AutoscaleSpec(
        max_replicas=30, stable_window_s=20.0, panic_window_s=4.0, scale_down_delay_s=30.0
    )
    arrivals = np.random.default_rng(seed).poisson(rate, 200)

    seen = [d.replicas for d in play(settings, map(float, arrivals), replicas=replicas)]

    steps = [b - a for a, b in pairwise(seen) if a != b]
    turns = sum((a > 0) is not (b > 0) for a, b in pairwise(steps))
    assert turns <= 1


@given(SETTINGS, looks(), st.floats(-1e6, 1e6))
def test_no_clock_breaks_it(settings: AutoscaleSpec, signals: Signals, jump: float) -> None:
    state = decide(begin(3, now=T0), signals, settings, now=T0 + 1.0).state

    decision = decide(state, signals, settings, now=T0 + jump)

    assert settings.min_replicas <= decision.replicas <= settings.max_replicas


def test_a_window_has_a_bounded_size() -> None:
    settings = AutoscaleSpec(stable_window_s=3600.0, panic_window_s=600.0)
    state = begin(1, now=T0)
    for second in range(0, 8000, 7):
        state = decide(state, load(5.0, ready=1), settings, now=T0 + second).state

    assert len(state.stable) <= 61
    assert len(state.panic) <= 61


def test_targets_of_next_to_nothing_are_no_reason_to_crash() -> None:
    tiny = AutoscaleSpec(
        max_replicas=9, target_in_flight=5e-324, target_queue_wait_s=5e-324, slo_latency_s=5e-324
    )
    state = begin(1, now=T0)
    for second in range(60):
        signals = load(
            5e-324 if second % 2 else 10.0, ready=3, queue_wait_s=1.0, p99_s=1.0, held=second % 3
        )
        state = decide(state, signals, tiny, now=T0 + second).state

    assert state.replicas == 9
