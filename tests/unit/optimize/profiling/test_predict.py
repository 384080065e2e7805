"""Capacity and latency of one replica, predicted."""

import math
import random
import statistics

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.optimize.profiling.grid import cell_of
from headrace.optimize.profiling.messages import GridCell, Round, Setting
from headrace.optimize.profiling.predict import (
    MIN_ROUNDS,
    MeasuredService,
    Phases,
    Predictor,
    ReplicaModel,
    find_phases,
    poisson,
    simulate,
    without_drift,
)
from headrace.optimize.profiling.recommend import predictor_for
from tests.unit.optimize.profiling.made import OVERHEAD, cell, measured

pytestmark = pytest.mark.slow


def predictor(*, batched: bool = False) -> Predictor:
    found = measured(cell(1, 0.010), cell(4, 0.020), batched=batched)
    return predictor_for(found, None, threads=1, runs=1, length=32, requests=5_000)


def test_the_capacity_is_what_a_run_leaves_time_for() -> None:
    assert predictor().capacity() == pytest.approx(100.0, rel=0.01)


def test_sharing_runs_raises_the_capacity() -> None:
    assert predictor(batched=True).capacity() == pytest.approx(200.0, rel=0.15)


def test_what_a_request_costs_besides_lowers_it() -> None:
    found = measured(cell(1, 0.010), batched=False)

    made = predictor_for(found, OVERHEAD, threads=1, runs=1, length=32, requests=2_000)

    assert made.capacity() == pytest.approx(1 / 0.01015, rel=0.01)


def test_more_load_is_never_predicted_to_be_answered_sooner() -> None:
    curve = predictor().predict().curve

    p99s = [point.p99_s for point in curve]
    assert p99s == sorted(p99s)
    assert [point.load_ratio for point in curve] == pytest.approx(
        [0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    )


def test_the_knee_is_where_p99_passes_the_limit() -> None:
    made = predictor()
    found = made.predict(p99_s=0.050)

    assert found.knee_rate is not None
    below = made.point(found.knee_rate * 0.93, found.capacity)
    above = made.point(found.knee_rate * 1.07, found.capacity)
    assert below.p99_s <= 0.055
    assert above.p99_s >= 0.045
    assert above.p99_s > below.p99_s


def test_no_rate_keeps_a_limit_below_one_run() -> None:
    assert predictor().predict(p99_s=0.005).knee_rate is None


def test_the_same_seed_predicts_the_same() -> None:
    assert predictor().predict() == predictor().predict()


def test_between_two_sizes_the_mean_lies_on_a_line() -> None:
    service = MeasuredService([cell(1, 0.010), cell(4, 0.040)], seed=1)

    assert service.mean_s(2, 1) == pytest.approx(0.020)
    assert service.mean_s(8, 1) == pytest.approx(0.080)
    assert service.mean_s(1, 1) == pytest.approx(0.010)


def test_runs_at_once_are_drawn_from_what_was_measured_at_once() -> None:
    service = MeasuredService([cell(1, 0.010), cell(1, 0.018, runs=4)], seed=1)

    assert service.run_s(1, 1) == pytest.approx(0.010)
    assert service.run_s(1, 2) == pytest.approx(0.018)
    assert service.run_s(1, 9) == pytest.approx(0.018)


def test_draws_keep_mean_and_extremes_of_the_samples() -> None:
    setting = Setting(threads=1, runs=1, rows=1, length=0)
    samples = [0.010] * 95 + [0.100] * 5
    service = MeasuredService([cell_of(setting, samples, elapsed_s=1.0)], seed=1)

    drawn = [service.run_s(1, 1) for _ in range(10_000)]

    assert statistics.fmean(drawn) == pytest.approx(statistics.fmean(samples), rel=0.05)
    assert max(drawn) == pytest.approx(0.100)
    assert min(drawn) == pytest.approx(0.010)


def test_the_same_seed_draws_the_same() -> None:
    setting = Setting(threads=1, runs=1, rows=1, length=0)
    found = cell_of(setting, [0.001 * k for k in range(1, 50)], elapsed_s=1.0)

    one, other = (MeasuredService([found], seed=7) for _ in range(2))

    assert [one.run_s(1, 1) for _ in range(50)] == [other.run_s(1, 1) for _ in range(50)]


def in_rounds(
    factors: list[float], *, noise: float = 0.0, rows: int = 1, seed: int = 1
) -> GridCell:
    """A cell that took so many times 10 ms a row in each round, of two seconds."""
    rng = random.Random(seed + rows)  # noqa: S311  # noise
    means = [0.010 * rows * factor * math.exp(rng.gauss(0.0, noise)) for factor in factors]
    found = cell_of(Setting(threads=1, runs=1, rows=rows, length=32), means, elapsed_s=1.0)
    rounds = tuple(Round(at_s=2.0 * at, mean_s=mean) for at, mean in enumerate(means))
    return msgspec.structs.replace(found, rounds=rounds)


DRIFT = [1.0, 1.2, 1.2, 0.8, 0.8, 1.0, 1.2, 0.8]


def test_phases_are_what_all_cells_of_a_round_have_in_common() -> None:
    found = find_phases([in_rounds(DRIFT), in_rounds(DRIFT, rows=4), cell(8)])

    assert found is not None
    assert found.factors == pytest.approx(DRIFT)
    assert found.each_s == pytest.approx(2.0)
    assert found.spread_ratio == pytest.approx(np.std(DRIFT))


def test_nothing_is_said_of_drift_without_some_rounds() -> None:
    assert find_phases([cell(1), cell(4)]) is None
    assert find_phases([in_rounds(DRIFT[: MIN_ROUNDS - 1])]) is None


def test_a_run_that_was_held_up_is_not_a_phase() -> None:
    even = [1.0] * 12
    held = [*even[:5], 9.0, *even[6:]]

    found = find_phases([in_rounds(held), in_rounds(even, rows=2), in_rounds(even, rows=4)])

    assert found is not None
    assert found.factors == pytest.approx(even)


def test_what_is_chance_of_each_cell_is_taken_out() -> None:
    cells = [in_rounds([1.0] * 40, noise=0.05, rows=rows) for rows in (1, 2, 4, 8)]

    found = find_phases(cells)

    assert found is not None
    assert found.spread_ratio < 0.01


def test_the_longer_phases_last_the_less_is_known_of_the_next_stretch() -> None:
    short = [0.9, 1.1] * 16
    long = [0.9] * 8 + [1.1] * 8 + [0.9] * 8 + [1.1] * 8

    ratios = [found.next_ratio for one in (short, long) if (found := find_phases([in_rounds(one)]))]

    assert ratios[0] < 1.06
    assert ratios[1] > 1.2


def test_the_next_stretch_is_as_fast_as_was_said_in_95_of_100() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(300):
        values = rng.normal(size=70)  # two stretches with a gap between; phases of three rounds
        smooth = np.convolve(values, np.ones(3) / 3**0.5, mode="valid")
        factors = np.exp(0.1 * smooth)
        found = find_phases([in_rounds(list(factors[:30]))])
        assert found is not None
        ratio = factors[36:].mean() / factors[:30].mean()
        held += 1.0 / found.next_ratio <= ratio <= found.next_ratio

    assert held >= 0.93 * 300


def test_a_slower_machine_does_less_in_all_phases() -> None:
    phases = Phases(factors=(0.5, 2.0), each_s=1.0)

    assert phases.speed == pytest.approx(1.25)
    assert phases.times(2.0).speed == pytest.approx(0.625)


def test_runs_vary_less_in_a_phase_than_in_all_of_them() -> None:
    found = in_rounds(DRIFT)

    steady = without_drift(found, find_phases([found]))

    assert steady.samples_s == pytest.approx([found.mean_s] * len(DRIFT), rel=0.01)
    assert without_drift(cell(1), None) == cell(1)


@given(st.lists(st.lists(st.floats(1e-6, 100.0), min_size=12, max_size=12), min_size=1, max_size=5))
def test_whatever_was_measured_phases_are_finite_and_positive(times: list[list[float]]) -> None:
    found = find_phases([in_rounds(one, rows=rows) for rows, one in enumerate(times, start=1)])

    assert found is not None
    assert all(math.isfinite(one) and one > 0.0 for one in found.factors)
    assert np.mean(found.factors) == pytest.approx(1.0)
    assert 1.0 <= found.next_ratio <= 10.001
    assert found.speed >= 1.0 - 1e-9


RUN_S = 0.010


class Fixed:
    """Every run takes the same time, whatever its rows."""

    def __init__(self, run_s: float = RUN_S) -> None:
        self._run_s = run_s

    def run_s(self, rows: int, busy: int, idle_s: float) -> float:
        del rows, busy, idle_s
        return self._run_s


class Chance:
    """Times by chance, exponential."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(3)

    def run_s(self, rows: int, busy: int, idle_s: float) -> float:
        del rows, busy, idle_s
        return float(self._rng.exponential(RUN_S))


class PerRow:
    """Each row takes its time."""

    def run_s(self, rows: int, busy: int, idle_s: float) -> float:
        del busy, idle_s
        return RUN_S * rows


def one(runs: int = 1, rows: int = 1) -> ReplicaModel:
    return ReplicaModel(max_batch_size=rows, max_runs=runs, may_inline=False)


@pytest.mark.parametrize("load", [0.3, 0.7, 0.85])
def test_one_place_and_equal_runs_wait_as_pollaczek_and_khinchine_say(load: float) -> None:
    outcome = simulate(one(), Fixed(), poisson(40_000, load / RUN_S, seed=1))

    # M/D/1: the mean wait is rho / (2 (1 - rho)) times the time of a run.
    wanted = RUN_S * (1 + load / (2 * (1 - load)))
    assert outcome.latency_s.mean() == pytest.approx(wanted, rel=0.05)
    assert outcome.busy_ratio == pytest.approx(load, rel=0.03)


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_several_places_wait_as_erlang_says(load: float) -> None:
    places = 3
    rate = load * places / RUN_S
    outcome = simulate(one(places), Chance(), poisson(40_000, rate, seed=2))

    offered = load * places
    below = sum(offered**k / math.factorial(k) for k in range(places))
    last = offered**places / math.factorial(places) * places / (places - offered)
    wait_s = last / (below + last) / (places / RUN_S - rate)
    assert outcome.latency_s.mean() == pytest.approx(RUN_S + wait_s, rel=0.05)


def test_half_of_the_answers_of_an_idle_replica_take_a_run_and_what_is_fixed() -> None:
    replica = ReplicaModel(max_batch_size=8, max_runs=1, cpu_s=0.001, wake_s=0.002, fixed_s=0.004)

    outcome = simulate(replica, Fixed(), poisson(500, 0.1, seed=1))

    assert outcome.quantile_s(0.5) == pytest.approx(RUN_S + 0.007)
    assert outcome.batch_rows == 1.0


def test_what_varies_of_the_replica_itself_makes_the_tail() -> None:
    spread = (0.5,) * 9 + (5.5,)
    even = ReplicaModel(max_batch_size=1, max_runs=1, cpu_s=0.001, fixed_s=0.001)
    uneven = ReplicaModel(max_batch_size=1, max_runs=1, cpu_s=0.001, fixed_s=0.001, spread=spread)
    arrivals = poisson(5_000, 0.1, seed=1)

    steady, varied = (simulate(one, Fixed(), arrivals) for one in (even, uneven))

    assert varied.latency_s.mean() == pytest.approx(steady.latency_s.mean(), rel=0.01)
    assert varied.quantile_s(0.99) == pytest.approx(RUN_S + 0.006, rel=0.1)
    assert steady.quantile_s(0.99) == pytest.approx(RUN_S + 0.002)


def test_what_waits_shares_the_next_run_where_rows_are_cheap_together() -> None:
    outcome = simulate(one(rows=32), Fixed(), poisson(20_000, 5 / RUN_S, seed=1))

    assert outcome.batch_rows > 4
    assert outcome.quantile_s(0.99) < 3 * RUN_S


def test_nothing_shares_a_run_where_each_row_takes_its_time() -> None:
    outcome = simulate(one(rows=32), PerRow(), poisson(5_000, 0.7 / RUN_S, seed=1))

    assert outcome.batch_rows < 1.5


def test_short_runs_hold_up_the_event_loop_whatever_may_run_at_once() -> None:
    short = 0.0001
    arrivals = poisson(4_000, 0.9 / short, seed=1)
    inline = ReplicaModel(max_batch_size=1, max_runs=4)
    threads = ReplicaModel(max_batch_size=1, max_runs=4, may_inline=False)

    assert (
        simulate(inline, Fixed(short), arrivals).latency_s.mean()
        > 3 * simulate(threads, Fixed(short), arrivals).latency_s.mean()
    )


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    runs=st.integers(1, 4),
    rows=st.integers(1, 16),
    load=st.floats(0.05, 3.0),
)
def test_every_request_is_answered_no_sooner_than_a_run_takes(
    seed: int, runs: int, rows: int, load: float
) -> None:
    arrivals = poisson(200, load / RUN_S, seed=seed)

    outcome = simulate(one(runs, rows), Fixed(), arrivals)

    assert len(outcome.latency_s) == 190  # the first of them do not count
    assert outcome.latency_s.min() >= RUN_S * (1 - 1e-9)
    assert 0.0 < outcome.busy_ratio <= 1.0
    assert 1.0 <= outcome.batch_rows <= rows


@settings(deadline=None)
@given(seed=st.integers(0, 1000), load=st.floats(0.1, 0.8))
def test_the_same_requests_closer_together_are_never_answered_sooner(
    seed: int, load: float
) -> None:
    arrivals = poisson(300, load / RUN_S, seed=seed)

    apart = simulate(one(), Fixed(), arrivals).latency_s
    close = simulate(one(), Fixed(), arrivals * 0.8).latency_s

    assert (close >= apart - 1e-9).all()
