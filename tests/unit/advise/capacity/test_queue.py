"""The queue that is solved, beside exact results and beside the simulators."""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import pytest

from headrace.advise.capacity.queue import Answered, Balancing, Load, answered
from headrace.advise.capacity.service import ServiceCurve, curve_by_hand
from headrace.autoscale.capacity import erlang_c
from headrace.core import Array
from headrace.optimize.profiling.simulate import Replica, poisson, simulate
from tests.unit.advise.capacity.fleet_simulator import DrawnService, serve

NO_GAIN: Final = {1: 0.01}
GAINS: Final = {1: 0.01, 8: 0.03}
GAINS_MUCH: Final = {1: 0.01, 4: 0.014, 32: 0.042}
QUANTILES: Final = (0.5, 0.9, 0.99)


def solved(curve: ServiceCurve, load: Load) -> Answered:
    found = answered(curve, load)
    assert found is not None
    return found


def simulated(curve: ServiceCurve, arrivals: Array, *, cv: float, seed: int) -> Array:
    replica = Replica(max_batch_size=curve.max_rows, max_runs=curve.runs)
    return simulate(replica, DrawnService(curve, cv=cv, seed=seed), arrivals).latency_s


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("cv", [0.0, 0.3, 1.0])
def test_without_batches_the_mean_wait_is_that_of_pollaczek_and_khinchine(
    load: float, cv: float
) -> None:
    curve = curve_by_hand(NO_GAIN, cv=cv)

    wait_s = solved(curve, Load(rate=load * 100.0)).waits.mean_wait_s()

    exact_s = load / (1.0 - load) * (1.0 + curve.spread.squared_cv) / 2.0 * 0.01
    assert wait_s == pytest.approx(exact_s, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.3, 0.5, 0.7, 0.8])
@pytest.mark.parametrize(("cv", "band"), [(0.0, 0.03), (0.3, 0.03), (1.0, 0.1)])
def test_without_batches_quantiles_are_those_of_lindleys_recursion(
    load: float, cv: float, band: float
) -> None:
    """Measured: p99 within 2.5 %, and up to 8 % too early where runs vary by their own mean."""
    curve = curve_by_hand(NO_GAIN, cv=cv)
    latency = _lindley(2_000_000, load, cv=cv)

    found = solved(curve, Load(rate=load * 100.0))

    for q in QUANTILES:
        assert found.quantile_s(q) == pytest.approx(np.quantile(latency, q), rel=band)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_of_several_runs_at_once_as_many_wait_as_erlang_says(load: float) -> None:
    curve = curve_by_hand(NO_GAIN, runs=4)

    waits = solved(curve, Load(rate=load * 400.0)).waits

    assert waits.waiting_ratio == pytest.approx(erlang_c(4, 4.0 * load), rel=1e-6)


def test_a_lone_request_takes_its_run_and_no_more() -> None:
    curve = curve_by_hand(GAINS, runs=2)

    alone = solved(curve, Load(rate=0.0))

    assert alone.quantile_s(0.99) == pytest.approx(0.01, rel=1e-2)
    assert alone.busy_ratio == 0.0


def test_more_than_the_capacity_has_no_answer() -> None:
    curve = curve_by_hand(GAINS)

    assert answered(curve, Load(rate=curve.capacity)) is None


def test_batches_grow_with_the_load() -> None:
    curve = curve_by_hand(GAINS_MUCH)

    rows = [
        solved(curve, Load(rate=share * curve.capacity)).batch_rows for share in (0.2, 0.5, 0.8)
    ]

    assert rows == sorted(rows)
    assert rows[-1] > 10.0


def test_short_runs_happen_one_at_a_time_as_the_engine_has_it() -> None:
    assert curve_by_hand({1: 0.0002}, runs=4).places == 1
    assert curve_by_hand({1: 0.004}, runs=4).places == 4


def test_a_batch_whose_gain_is_lost_in_the_noise_is_not_counted_on() -> None:
    assert curve_by_hand(GAINS_MUCH, cv=0.0).best_rows == 32
    assert curve_by_hand(GAINS_MUCH, cv=0.3).best_rows == 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("times", "runs", "band"),
    [
        (NO_GAIN, 4, (0.93, 1.13)),
        (GAINS, 1, (0.93, 1.18)),
        (GAINS_MUCH, 1, (0.93, 1.1)),
        (GAINS_MUCH, 2, (0.93, 1.18)),
        (GAINS_MUCH, 4, (0.86, 1.18)),
    ],
)
@pytest.mark.parametrize(("load", "cv"), [(0.4, 0.0), (0.7, 0.3), (0.8, 0.0), (0.8, 0.3)])
def test_one_replica_is_as_late_as_the_simulator_of_the_engine_says(
    times: Mapping[int, float],
    runs: int,
    band: tuple[float, float],
    load: float,
    cv: float,
) -> None:
    """Measured: p99 within 7 % of one run at a time, up to 18 % too late for several with batches.

    The band is wider where the formula is conservative: it takes runs at once as if none knew of
    others. It is too early, by up to 14 %, where runs vary so much that the engine at times
    makes smaller batches than are best.
    """
    curve = curve_by_hand(times, cv=cv, runs=runs)
    rate = load * curve.capacity

    found = solved(curve, Load(rate=rate))

    each = [
        np.quantile(simulated(curve, poisson(25_000, rate, seed=s), cv=cv, seed=s), QUANTILES)
        for s in (2, 304)
    ]
    ratios = [
        found.quantile_s(q) / want for q, want in zip(QUANTILES, np.mean(each, axis=0), strict=True)
    ]
    assert band[0] < ratios[-1] < band[1], ratios
    assert all(0.86 < ratio < 1.2 for ratio in ratios), ratios


@pytest.mark.slow
@pytest.mark.parametrize("times", [NO_GAIN, GAINS], ids=["alone", "batched"])
@pytest.mark.parametrize(("runs", "copies", "load"), [(1, 4, 0.8), (1, 16, 0.5), (4, 4, 0.8)])
@pytest.mark.parametrize("gateways", [1, 2, 4])
def test_a_fleet_is_as_late_as_its_simulator_says(
    times: Mapping[int, float],
    runs: int,
    copies: int,
    load: float,
    gateways: int,
) -> None:
    """Measured: p99 from 11 % too early (one gateway, few replicas) to 20 % too late."""
    curve = curve_by_hand(times, cv=0.1, runs=runs)
    rate = load * curve.capacity * copies

    found = solved(curve, Load(rate=rate, copies=copies, gateways=gateways)).quantile_s(0.99)

    want = np.quantile(
        serve(curve, rate=rate, copies=copies, cv=0.1, gateways=gateways, requests=25_000), 0.99
    )
    assert (0.87 if gateways == 1 else 0.93) < found / want < 1.22


@pytest.mark.slow
@pytest.mark.parametrize("times", [NO_GAIN, GAINS_MUCH], ids=["alone", "batched"])
def test_a_balancer_that_knows_nothing_is_the_worst_there_is(times: Mapping[int, float]) -> None:
    curve = curve_by_hand(times)
    rate = 0.8 * curve.capacity * 8

    blind = solved(curve, Load(rate=rate, copies=8, balancing=Balancing.RANDOM)).quantile_s(0.99)

    for gateways in (1, 8):
        latency = serve(curve, rate=rate, copies=8, gateways=gateways, requests=20_000)
        assert blind > np.quantile(latency, 0.99)


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.4, 0.6])
@pytest.mark.parametrize("times", [NO_GAIN, GAINS_MUCH])
def test_bursts_make_answers_later_by_about_what_was_reckoned(
    times: Mapping[int, float], load: float
) -> None:
    """Measured for a variance of four times the mean: from 15 % too early to twice too late.

    The least favourable burst is a clump of requests at one moment; the most, a time of short gaps.
    """
    curve = curve_by_hand(times)
    rate = load * curve.capacity

    found = solved(curve, Load(rate=rate, burstiness=4.0)).quantile_s(0.99)

    clumps = np.repeat(poisson(10_000, rate / 4.0, seed=5), 4)
    gaps = np.cumsum(_hyperexponential(40_000, rate, squared_cv=4.0, seed=5))
    for arrivals in (clumps, gaps):
        want = float(np.quantile(simulated(curve, arrivals, cv=0.0, seed=5), 0.99))
        assert 0.8 < found / want < 2.2


def _hyperexponential(count: int, rate: float, *, squared_cv: float, seed: int) -> Array:
    """Gaps of a mixture of two exponentials with balanced means."""
    rng = np.random.default_rng(seed)
    chance = 0.5 * (1.0 + math.sqrt((squared_cv - 1.0) / (squared_cv + 1.0)))
    fast = rng.exponential(1.0 / (2.0 * chance * rate), count)
    slow = rng.exponential(1.0 / (2.0 * (1.0 - chance) * rate), count)
    gaps: Array = np.where(rng.random(count) < chance, fast, slow)
    return gaps


def _lindley(count: int, load: float, *, cv: float) -> Array:
    """Latencies of one server with 10 ms a run: W' = max(0, W + S - A) (Lindley 1952)."""
    rng = np.random.default_rng(5)
    sigma = math.sqrt(math.log1p(cv * cv))
    runs = 0.01 * np.exp(rng.normal(-sigma * sigma / 2.0, sigma, count))
    gaps = rng.exponential(0.01 / load, count)
    walk = np.concatenate(([0.0], np.cumsum(runs[:-1] - gaps[1:])))
    found: Array = walk - np.minimum.accumulate(walk) + runs
    return found[count // 20 :]
