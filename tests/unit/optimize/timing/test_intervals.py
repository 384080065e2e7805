"""Intervals of a median are as wide as few readings demand, and no narrower."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.optimize.timing.summary import (
    drifting_median_interval,
    least_count,
    median_interval,
    student_quantile,
)

times = st.lists(st.floats(1e-6, 10.0), min_size=2, max_size=60)


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622)]
)
def test_students_quantile_is_that_of_the_tables(freedom: int, expected: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("confidence", "count"), [(0.5, 2), (0.9, 5), (0.95, 6), (0.99, 8)])
def test_so_many_readings_bound_a_median_by_their_extremes(confidence: float, count: int) -> None:
    assert least_count(confidence) == count
    assert 1 - 2 / 2**count >= confidence > 1 - 2 / 2 ** (count - 1)


@pytest.mark.parametrize(("count", "left_out"), [(6, 0), (8, 0), (9, 1), (20, 5), (40, 13)])
def test_as_many_extremes_are_left_out_as_the_sign_test_allows(count: int, left_out: int) -> None:
    values = np.arange(1.0, count + 1)

    assert median_interval(values, confidence=0.95) == (1 + left_out, count - left_out)


@given(times)
def test_an_interval_holds_the_median_of_what_it_is_made_of(values: list[float]) -> None:
    array = np.array(values)

    bounds = median_interval(array, confidence=0.95)

    assert bounds is not None
    if array.size >= least_count(0.95):
        assert min(values) <= bounds[0] <= np.median(array) <= bounds[1] <= max(values)
    else:
        middle = math.exp(np.log(array).mean())
        assert bounds[0] <= middle * (1 + 1e-9)
        assert bounds[1] >= middle * (1 - 1e-9)


@given(times, st.floats(1e-3, 1e3))
def test_an_interval_does_not_depend_on_the_unit(values: list[float], unit: float) -> None:
    array = np.array(values)

    bounds = median_interval(array, confidence=0.95)
    scaled = median_interval(array * unit, confidence=0.95)

    assert bounds is not None
    assert scaled is not None
    if bounds[0] > 1e-200 and bounds[1] < 1e200:
        assert scaled == pytest.approx((bounds[0] * unit, bounds[1] * unit), rel=1e-6)


def test_one_reading_tells_of_no_interval() -> None:
    assert median_interval(np.array([1.0]), confidence=0.95) is None


def test_one_reading_that_is_many_times_off_does_not_widen_an_interval_of_twenty() -> None:
    values = np.linspace(1.0, 1.1, 20)
    spoilt = np.append(values[:-1], 50.0)

    assert median_interval(spoilt, confidence=0.95) == median_interval(values, confidence=0.95)


def test_readings_that_drift_have_a_wider_interval_than_the_same_in_any_order() -> None:
    drifting = np.repeat([1.0, 1.2, 0.9, 1.1, 1.3, 0.8, 1.0, 1.1, 1.25, 0.85], 4)
    drifting = drifting + np.linspace(0.0, 0.01, 40)
    mixed = np.random.default_rng(3).permutation(drifting)

    one, other = (
        drifting_median_interval(values, rng=np.random.default_rng(1), confidence=0.95)
        for values in (drifting, mixed)
    )

    assert one is not None
    assert other is not None
    assert one[1] - one[0] > 1.2 * (other[1] - other[0])


@given(times, st.integers(0, 100))
def test_a_drifting_interval_lies_among_its_readings_and_is_the_same_for_the_same_chance(
    values: list[float], seed: int
) -> None:
    array = np.array(values)

    first, again = (
        drifting_median_interval(array, rng=np.random.default_rng(seed), confidence=0.9)
        for _ in range(2)
    )

    assert first == again
    assert first is not None
    if array.size >= least_count(0.9):
        assert min(values) <= first[0] <= first[1] <= max(values)
