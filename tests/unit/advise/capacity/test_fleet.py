"""How many replicas: laws, and what the simulator makes of a planned fleet and of a smaller one."""

from collections.abc import Mapping
from functools import cache
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.advise.capacity.fleet import Fleet, Promise, SloUnreachableError
from headrace.advise.capacity.service import curve_by_hand
from tests.unit.advise.capacity.fleet_simulator import serve

CURVE: Final = curve_by_hand({1: 0.004}, runs=2)
_SLOS: Final = (0.006, 0.01, 0.05)
rates = st.floats(0.001, 1e9, allow_nan=False)


@cache
def fleet(p99_s: float | None, gateways: int = 2) -> Fleet:
    return Fleet(curve=CURVE, promise=Promise(p99_s=p99_s, gateways=gateways))


@pytest.mark.slow
@settings(deadline=None)
@given(rates, rates, st.sampled_from(_SLOS))
def test_more_load_never_means_fewer_replicas(one: float, other: float, p99_s: float) -> None:
    less, more = sorted((one, other))

    assert fleet(p99_s).copies_for(less) <= fleet(p99_s).copies_for(more)


@pytest.mark.slow
@settings(deadline=None)
@given(rates, st.sampled_from(_SLOS), st.sampled_from(_SLOS))
def test_a_tighter_slo_never_means_fewer_replicas(rate: float, one: float, other: float) -> None:
    tight, loose = sorted((one, other))

    assert fleet(tight).copies_for(rate) >= fleet(loose).copies_for(rate)


@pytest.mark.slow
@given(rates, st.sampled_from(_SLOS))
def test_no_replica_gets_more_than_its_share(rate: float, p99_s: float) -> None:
    copies = fleet(p99_s).copies_for(rate)

    assert rate / copies <= CURVE.capacity * 0.8 * (1.0 + 1e-9)


def test_without_an_slo_replicas_are_as_busy_as_the_autoscaler_lets_them_be() -> None:
    assert fleet(None).copies_for(100 * 0.8 * CURVE.capacity) == 100


def test_no_load_takes_one_replica() -> None:
    assert fleet(0.05).copies_for(0.0) == 1


@pytest.mark.parametrize("p99_s", [0.003, 0.0039])
def test_an_slo_below_a_run_is_refused_with_the_way_out(p99_s: float) -> None:
    with pytest.raises(SloUnreachableError, match=r"no number of replicas.*--p99"):
        fleet(p99_s).copies_for(1.0)


def test_an_slo_that_leaves_no_room_to_wait_is_refused() -> None:
    curve = curve_by_hand({1: 0.01})
    narrow = Fleet(curve=curve, promise=Promise(p99_s=0.0101, gateways=16))

    with pytest.raises(SloUnreachableError, match="idle for 98 %"):
        narrow.copies_for(100.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("times", "runs", "cv", "p99_s", "rate"),
    [
        ({1: 0.01}, 1, 0.1, 0.035, 600.0),
        ({1: 0.01}, 4, 0.3, 0.02, 4_000.0),
        ({1: 0.01, 8: 0.03}, 1, 0.1, 0.05, 2_000.0),
        ({1: 0.01, 4: 0.014, 32: 0.042}, 1, 0.05, 0.06, 5_000.0),
    ],
)
def test_a_planned_fleet_meets_its_slo_and_a_quarter_less_does_not(
    times: Mapping[int, float],
    runs: int,
    cv: float,
    p99_s: float,
    rate: float,
) -> None:
    """The band: the plan may have up to a third more replicas than the simulator needs."""
    curve = curve_by_hand(times, cv=cv, runs=runs)
    copies = Fleet(
        curve=curve, promise=Promise(p99_s=p99_s, gateways=2, most_busy_ratio=0.95)
    ).copies_for(rate)

    def p99(replicas: int) -> float:
        latency = serve(curve, rate=rate, copies=replicas, cv=cv, gateways=2, requests=30_000)
        return float(np.quantile(latency, 0.99))

    assert p99(copies) <= p99_s * 1.02
    assert p99(int(copies * 0.75)) > p99_s
