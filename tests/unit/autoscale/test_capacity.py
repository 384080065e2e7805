import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.autoscale.demand import (
    MAX_UTILISATION,
    MIN_UTILISATION,
    copies_for,
    erlang_c,
    late_ratio,
    target_utilisation,
    target_wait_s,
)


@pytest.mark.parametrize(
    ("servers", "load", "waits"),
    [
        (1, 0.5, 0.5),  # one server: the share of time that it is busy
        (2, 1.0, 1 / 3),
        (10, 8.0, 0.40918),  # tables of Erlang's C formula
        (3, 3.0, 1.0),
        (3, 5.0, 1.0),
        (4, 0.0, 0.0),
    ],
)
def test_erlangs_formula(servers: int, load: float, waits: float) -> None:
    assert erlang_c(servers, load) == pytest.approx(waits, abs=1e-5)


def test_less_slack_means_more_late_requests() -> None:
    late = [late_ratio(servers=2, utilisation=0.7, slack=slack) for slack in (0.0, 1.0, 4.0)]

    assert late == sorted(late, reverse=True)
    assert late_ratio(servers=2, utilisation=0.7, slack=-0.1) == 1.0


def test_a_tight_slo_wants_copies_that_are_less_busy() -> None:
    by_slo = [
        target_utilisation(slo_latency_s=slo, run_s=0.1, servers=1) for slo in (0.1, 0.6, 1.0, 9.0)
    ]

    assert by_slo == sorted(by_slo)
    assert by_slo[0] == MIN_UTILISATION
    assert by_slo[-1] == MAX_UTILISATION
    assert target_utilisation(slo_latency_s=None, run_s=0.1, servers=1) == 0.7
    assert target_utilisation(slo_latency_s=1.0, run_s=None, servers=1) == 0.7


@pytest.mark.parametrize("slo_latency_s", [0.15, 0.5, 2.0])
def test_the_target_keeps_the_promise_where_it_can(slo_latency_s: float) -> None:
    busy = target_utilisation(slo_latency_s=slo_latency_s, run_s=0.1, servers=4)

    late = late_ratio(servers=4, utilisation=busy, slack=slo_latency_s / 0.1 - 1.0)

    assert late <= 0.011 or busy == MIN_UTILISATION


@given(
    st.floats(0.0, 200.0),
    st.floats(0.0, 50.0),
    st.none() | st.floats(0.01, 5.0),
    st.none() | st.floats(0.001, 1.0),
    st.integers(1, 16),
)
def test_more_load_never_needs_fewer_copies(
    load: float, more: float, slo: float | None, run_s: float | None, concurrency: int
) -> None:
    few = copies_for(load, slo_latency_s=slo, run_s=run_s, concurrency=concurrency)
    many = copies_for(load + more, slo_latency_s=slo, run_s=run_s, concurrency=concurrency)

    assert load / MAX_UTILISATION - 1e-9 <= few <= math.ceil(load / MIN_UTILISATION)
    assert many >= few - 1e-9


def test_a_target_wait_leaves_room_for_the_run() -> None:
    assert target_wait_s(slo_latency_s=None, run_s=0.1) is None
    assert target_wait_s(slo_latency_s=0.7, run_s=0.1) == pytest.approx(0.1)
    assert target_wait_s(slo_latency_s=0.1, run_s=0.2) == pytest.approx(0.005)
