import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import InvalidArgumentError
from headrace.load.plan import ArrivalProcess, LoadPlan, check_plan, intended_times


def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    times = intended_times(LoadPlan(rate_per_s=1000, seconds=50, warm_up_s=0, seed=3))
    gaps = np.diff(times)
    counts = np.bincount(times.astype(int), minlength=50)

    assert len(times) == pytest.approx(50_000, abs=5 * math.sqrt(50_000))
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # exponential: as wide as long
    assert np.median(gaps) == pytest.approx(math.log(2) / 1000, rel=0.03)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.02
    assert 0.5 < counts.var() / counts.mean() < 1.6


def test_constant_arrivals_are_evenly_spaced() -> None:
    plan = LoadPlan(rate_per_s=4, seconds=2, warm_up_s=1, arrivals=ArrivalProcess.CONSTANT)

    assert intended_times(plan).tolist() == [i / 4 for i in range(12)]


def test_the_same_seed_gives_the_same_times_and_another_one_others() -> None:
    plan = LoadPlan(rate_per_s=100, seconds=1)

    assert np.array_equal(intended_times(plan), intended_times(plan))
    assert not np.array_equal(
        intended_times(plan)[:20], intended_times(LoadPlan(rate_per_s=100, seconds=1, seed=2))[:20]
    )


@given(
    rate=st.floats(0.01, 3000),
    seconds=st.floats(0.01, 3),
    warm_up_s=st.floats(0, 1),
    seed=st.integers(0, 9),
    arrivals=st.sampled_from(ArrivalProcess),
)
def test_times_ascend_and_lie_within_the_plan(
    rate: float, seconds: float, warm_up_s: float, seed: int, arrivals: ArrivalProcess
) -> None:
    plan = LoadPlan(
        rate_per_s=rate, seconds=seconds, warm_up_s=warm_up_s, seed=seed, arrivals=arrivals
    )

    times = intended_times(plan)

    assert (np.diff(times) >= 0).all()
    assert ((times >= 0) & (times < plan.total_s)).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rate_per_s": 0.0}, "the rate must be above 0"),
        ({"rate_per_s": -5.0}, "not -5"),
        ({"rate_per_s": 1e9}, "at most 200,000 requests per second"),
        ({"rate_per_s": math.nan}, "not nan"),
        ({"rate_per_s": math.inf}, "not inf"),
        ({"seconds": 0.0}, "the time to measure"),
        ({"seconds": 3601.0}, "3,600 seconds"),
        ({"warm_up_s": -1.0}, "the warm-up"),
        ({"warm_up_s": math.nan}, "the warm-up"),
        ({"timeout_s": 0.0}, "the timeout"),
        ({"connections": 0}, "connections must be 1"),
        ({"connections": 1_000_000}, "connections must be 1"),
        ({"seed": -1}, "the seed"),
        ({"rate_per_s": 100_000.0, "seconds": 600.0}, "limit of 5,000,000"),
        ({"max_requests": 100}, "measure for less than 1 s"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_by_name(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        check_plan(LoadPlan(**{"rate_per_s": 100.0, **wrong}))  # type: ignore[arg-type]  # on purpose


def test_a_plan_within_bounds_is_itself() -> None:
    plan = LoadPlan(rate_per_s=100)

    assert check_plan(plan) is plan
