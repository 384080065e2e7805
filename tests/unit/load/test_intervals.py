import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.load.intervals import (
    design_effect,
    least_requests,
    quantile_interval,
    tail_bounds,
    wilson_interval,
)

RUNS = 120


def autocorrelated(runs: int, count: int, *, memory: float, seed: int) -> np.ndarray:
    """Log-normal latencies, each alike to the one before; a run a row. The median is 1."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, runs))
    state = noise[0]
    out = np.empty((count, runs))
    for i in range(count):
        state = memory * state + math.sqrt(1 - memory**2) * noise[i]
        out[i] = state
    return np.exp(out.T)


def coverage(runs: np.ndarray, quantile: float, truth: float) -> tuple[float, int]:
    intervals = [quantile_interval(run, quantile) for run in runs]
    known = [i for i in intervals if i is not None and i.low is not None and i.high is not None]
    held = [
        i for i in known if i.low is not None and i.high is not None and i.low <= truth <= i.high
    ]
    return len(held) / len(known), len(known)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantile", "truth"), [(0.5, 1.0), (0.9, math.exp(1.28155)), (0.99, math.exp(2.32635))]
)
def test_intervals_hold_what_they_say_where_neighbours_are_alike(
    quantile: float, truth: float
) -> None:
    runs = autocorrelated(RUNS, 8000, memory=0.9, seed=1)

    share, known = coverage(runs, quantile, truth)

    assert known > RUNS / 2
    assert share >= 0.93


@pytest.mark.slow
def test_an_interval_for_independent_requests_would_not_hold_there() -> None:
    runs = autocorrelated(RUNS, 8000, memory=0.9, seed=1)
    half = 1.96 * math.sqrt(0.25 / 8000)

    held = [np.quantile(run, 0.5 - half) <= 1.0 <= np.quantile(run, 0.5 + half) for run in runs]

    assert np.mean(held) < 0.7


def test_intervals_of_independent_requests_are_not_much_wider_than_they_have_to_be() -> None:
    rng = np.random.default_rng(3)
    values = rng.exponential(1.0, (40, 4000))

    share, known = coverage(values, 0.99, math.log(100))
    found = quantile_interval(values[0], 0.5)

    assert known == 40
    assert share >= 0.93
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    exact = np.quantile(values[0], [0.5 - 0.0155, 0.5 + 0.0155])
    assert found.high - found.low < 2 * (exact[1] - exact[0])


def test_a_short_run_has_no_bounds_and_says_what_it_takes() -> None:
    found = quantile_interval(np.random.default_rng(1).exponential(1.0, 500), 0.999)

    assert found is not None
    assert not found.is_known
    assert found.high is None
    assert found.needed >= least_requests(0.999) > 3600


def test_a_run_as_long_as_it_was_told_to_be_has_bounds() -> None:
    rng = np.random.default_rng(4)
    short = quantile_interval(rng.exponential(1.0, 300), 0.99)
    assert short is not None

    longer = quantile_interval(rng.exponential(1.0, 2 * short.needed), 0.99)

    assert longer is not None
    assert longer.is_known


def test_one_long_stall_is_evidence_of_one_request_not_of_many() -> None:
    values = np.full(2000, 0.001)
    values[900:960] = 0.2

    found = quantile_interval(values, 0.99)

    assert found is not None
    assert found.value == 0.2
    assert found.high is None
    assert found.effective < 200


def test_no_values_have_no_quantile() -> None:
    assert quantile_interval(np.empty(0), 0.5) is None
    assert wilson_interval(np.empty(0, bool)) is None


def test_equal_values_have_an_interval_of_nothing() -> None:
    found = quantile_interval(np.full(1000, 0.25), 0.9)

    assert found is not None
    assert (found.low, found.value, found.high) == (0.25, 0.25, 0.25)


def test_a_failed_request_is_slower_than_any_other() -> None:
    values = np.full(1000, 0.001)
    values[::20] = np.inf

    p90, p99 = quantile_interval(values, 0.9), quantile_interval(values, 0.99)

    assert p90 is not None
    assert p99 is not None
    assert p90.high == 0.001
    assert p99.value == p99.low == math.inf


@given(
    st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=400),
    st.sampled_from([0.1, 0.5, 0.9, 0.99]),
)
def test_bounds_are_measured_values_around_the_quantile(
    values: list[float], quantile: float
) -> None:
    found = quantile_interval(np.array(values), quantile)

    assert found is not None
    assert found.value in values
    assert found.low is None or (found.low in values and found.low <= found.value)
    assert found.high is None or (found.high in values and found.high >= found.value)
    assert found.is_known == (found.needed == 0)
    assert 0 < found.effective <= len(values)


@pytest.mark.parametrize("trials", [1, 50, 368, 1000, 30_000])
@pytest.mark.parametrize("chance", [0.001, 0.01, 0.1, 0.5])
def test_tail_bounds_leave_a_fortieth_on_either_side(trials: int, chance: float) -> None:
    counts = np.random.default_rng(7).binomial(trials, chance, 100_000)

    bounds = tail_bounds(trials, chance)

    assert bounds is not None
    fewest, most = bounds
    if fewest is None:
        assert np.mean(counts == 0) > 0.022
    else:
        assert np.mean(counts <= fewest) < 0.028
        assert np.mean(counts <= fewest + 2) > 0.022
    if most is not None:
        assert np.mean(counts > most) < 0.028


def test_no_trials_have_no_bounds() -> None:
    assert tail_bounds(0, 0.5) is None


def test_a_share_of_independent_hits_has_hardly_any_effect() -> None:
    hits = np.random.default_rng(2).random(4000) < 0.1

    assert 1 <= design_effect(hits) < 2.5
    assert design_effect(np.sort(hits)) > 100
    assert design_effect(np.zeros(100, bool)) == 1
    assert design_effect(np.empty(0, bool)) == 1


def test_wilson_bounds_are_the_textbook_ones() -> None:
    """Newcombe 1998: 81 of 263 are 0.3080, 0.2553 to 0.3662."""
    hits = np.zeros(263, bool)
    hits[np.linspace(0, 262, 81).astype(int)] = True

    found = wilson_interval(hits)

    assert found is not None
    assert found.value == pytest.approx(0.3080, abs=1e-4)
    assert found.low == pytest.approx(0.2553, abs=1e-4)
    assert found.high == pytest.approx(0.3662, abs=1e-4)


def test_no_failure_in_a_thousand_leaves_room_for_some() -> None:
    found = wilson_interval(np.zeros(1000, bool))

    assert found is not None
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(0.00383, abs=1e-5)
