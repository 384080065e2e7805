"""Which mode a model is run in: the arithmetic, and what each need rules out."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.advise.plan.mode import Arrival, Costs, InferenceMode, ModePlan, Needs, plan_mode

MILLISECONDS = Costs(row_s=0.002, batch_row_s=0.0002)


def plan(arrival: Arrival, costs: Costs = MILLISECONDS, **needs: float | None) -> ModePlan:
    rate = needs.pop("rate", 200.0) or 0.0
    peak = needs.pop("peak_rate", 3 * rate) or 0.0
    return plan_mode(Needs(arrival=arrival, rate=rate, peak_rate=peak, **needs), costs)  # type: ignore[arg-type]  # of the needs


def option(found: ModePlan, mode: InferenceMode):  # type: ignore[no-untyped-def]  # noqa: ANN201  # an Option
    return next(one for one in found.options if one.mode is mode)


def test_who_waits_for_an_answer_is_served_online() -> None:
    found = plan(Arrival.REQUESTS, latency_s=0.05)
    assert found.recommended is InferenceMode.ONLINE
    assert not option(found, InferenceMode.STREAMING).fits
    assert "known only with a request" in option(found, InferenceMode.BATCH).why[-1]


def test_answers_are_computed_beforehand_where_that_and_look_ups_are_cheaper() -> None:
    heavy = Costs(row_s=0.02, batch_row_s=0.01)
    few = plan(Arrival.REQUESTS, heavy, entities=100_000, freshness_s=86_400.0)
    assert few.recommended is InferenceMode.BATCH
    many = plan(Arrival.REQUESTS, heavy, entities=2_000_000_000, freshness_s=86_400.0)
    assert many.recommended is InferenceMode.ONLINE
    # A look-up takes as many cores as a light model.
    light = plan(Arrival.REQUESTS, entities=100_000, freshness_s=86_400.0)
    assert light.recommended is InferenceMode.ONLINE


def test_events_that_have_to_be_fresh_are_a_stream() -> None:
    found = plan(Arrival.EVENTS, freshness_s=5.0)
    assert found.recommended is InferenceMode.STREAMING
    assert "that is a stream" in option(found, InferenceMode.BATCH).why[-1]


@pytest.mark.parametrize(
    ("latency_s", "freshness_s", "fitting"),
    [
        (None, None, {InferenceMode.ONLINE, InferenceMode.STREAMING, InferenceMode.BATCH}),
        (7200.0, None, {InferenceMode.ONLINE, InferenceMode.STREAMING, InferenceMode.BATCH}),
        (60.0, None, {InferenceMode.ONLINE, InferenceMode.STREAMING}),
        (60.0, 86_400.0, {InferenceMode.ONLINE, InferenceMode.STREAMING}),
        (0.02, None, {InferenceMode.ONLINE}),
        (0.005, None, set()),
    ],
)
def test_the_latency_of_events_rules_modes_out(
    latency_s: float | None, freshness_s: float | None, fitting: set[InferenceMode]
) -> None:
    found = plan(Arrival.EVENTS, latency_s=latency_s, freshness_s=freshness_s)
    assert {one.mode for one in found.options if one.fits} == fitting
    batch = option(found, InferenceMode.BATCH)
    if batch.fits and latency_s is not None:
        assert batch.freshness_s <= latency_s


def test_look_ups_of_answers_computed_beforehand_are_priced_by_hand() -> None:
    # 6,000 look-ups/s x 0.5 ms = 3 cores; at 70 % that is 5. Runs: two a day over 1,000 entities.
    found = plan(Arrival.REQUESTS, entities=1000, freshness_s=86_400.0, rate=2000.0)
    batch = option(found, InferenceMode.BATCH)
    assert batch.cores == 5 + 1
    runs = 730 / 12 * (1000 * 0.00022 + 30) / 3600
    assert batch.cost_per_month == pytest.approx((5 * 730 + runs) * 0.05)
    assert batch.latency_s == pytest.approx(3 * 0.0005)
    assert "6,000 look-ups/s at the peak x 500 µs" in batch.why[1]


def test_a_look_up_that_is_too_slow_does_not_fit() -> None:
    found = plan(Arrival.REQUESTS, entities=1000, latency_s=0.001)
    assert not option(found, InferenceMode.BATCH).fits
    assert "p99 of a look-up would be about 1.5 ms" in option(found, InferenceMode.BATCH).why[-1]


def test_tables_are_batches() -> None:
    found = plan(Arrival.TABLE, rate=8_000_000 / 86_400)
    assert found.recommended is InferenceMode.BATCH
    assert not option(found, InferenceMode.ONLINE).fits


def test_an_online_model_that_is_too_slow_does_not_fit_and_what_would_help_is_said() -> None:
    slow = Costs(row_s=0.1, batch_row_s=0.1)
    found = plan(Arrival.REQUESTS, slow, latency_s=0.05)
    assert found.recommended is None
    assert "headrace optimize" in option(found, InferenceMode.ONLINE).why[-1]
    assert found.notes[0].startswith("no mode meets all requirements")


def test_the_cores_of_online_by_hand() -> None:
    # 600 rows/s x (2 ms + 0.2 ms) = 1.32 cores; at 70 % that is 2.
    online = option(plan(Arrival.EVENTS), InferenceMode.ONLINE)
    assert online.cores == math.ceil(600 * 0.0022 / 0.7) == 2
    assert online.cost_per_month == pytest.approx(2 * 730 * 0.05)
    assert online.cost_per_million == pytest.approx(73 / (200 * 730 * 3600) * 1e6)


def test_a_stream_that_may_lag_for_an_hour_needs_no_cores_for_the_busiest_minute() -> None:
    heavy = Costs(row_s=0.02, batch_row_s=0.01)
    soon = option(plan(Arrival.EVENTS, heavy, freshness_s=10.0), InferenceMode.STREAMING)
    later = option(plan(Arrival.EVENTS, heavy, freshness_s=7200.0), InferenceMode.STREAMING)
    assert (soon.cores, later.cores) == (8, 3)


def test_nothing_at_all_is_planned_without_a_fault() -> None:
    found = plan(Arrival.EVENTS, rate=0.0, peak_rate=0.0)
    assert all(one.cost_per_million is None for one in found.options)
    assert found.recommended is not None


@given(
    needs=st.builds(
        Needs,
        arrival=st.sampled_from(Arrival),
        rate=st.floats(0.001, 1e4),
        peak_rate=st.floats(1e4, 1e6),
        freshness_s=st.none() | st.floats(0.01, 1e7),
        latency_s=st.none() | st.floats(0.001, 100.0),
        entities=st.none() | st.integers(1, 10**9),
    ),
    row_s=st.floats(1e-6, 10.0),
    gain=st.floats(1.0, 100.0),
)
def test_what_is_recommended_fits_and_nothing_that_fits_is_cheaper(
    needs: Needs, row_s: float, gain: float
) -> None:
    found = plan_mode(needs, Costs(row_s=row_s, batch_row_s=row_s / gain))
    fitting = [one for one in found.options if one.fits]
    assert (found.recommended is None) == (not fitting)
    for one in found.options:
        assert one.cores >= 1
        assert one.why
        # Enough cores for what comes on average, whatever the mode.
        if one.mode is not InferenceMode.BATCH:
            assert one.cores >= needs.rate * row_s / gain * 0.99
    if fitting:
        best = option(found, found.recommended or InferenceMode.ONLINE)
        assert best.fits
        assert all(best.cost_per_month <= one.cost_per_month for one in fitting)
