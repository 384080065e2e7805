import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.optimize.profiling.predict import Replica, poisson, simulate

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


def one(runs: int = 1, rows: int = 1) -> Replica:
    return Replica(max_batch_size=rows, max_runs=runs, may_inline=False)


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
    replica = Replica(max_batch_size=8, max_runs=1, cpu_s=0.001, wake_s=0.002, fixed_s=0.004)

    outcome = simulate(replica, Fixed(), poisson(500, 0.1, seed=1))

    assert outcome.quantile_s(0.5) == pytest.approx(RUN_S + 0.007)
    assert outcome.batch_rows == 1.0


def test_what_varies_of_the_replica_itself_makes_the_tail() -> None:
    spread = (0.5,) * 9 + (5.5,)
    even = Replica(max_batch_size=1, max_runs=1, cpu_s=0.001, fixed_s=0.001)
    uneven = Replica(max_batch_size=1, max_runs=1, cpu_s=0.001, fixed_s=0.001, spread=spread)
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
    inline = Replica(max_batch_size=1, max_runs=4)
    threads = Replica(max_batch_size=1, max_runs=4, may_inline=False)

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
