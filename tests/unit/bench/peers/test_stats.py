import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.peers.stats import interval, largest, ratio_interval

FIGURES = st.floats(1e-3, 1e6)


def test_an_interval_is_students() -> None:
    mean, low, high = interval([10.0, 12.0, 14.0])

    assert mean == 12
    # t of two degrees of freedom at 97.5 % is 4.303, the standard error 2 / sqrt(3).
    assert high - mean == pytest.approx(4.303 * 2 / math.sqrt(3))
    assert mean - low == pytest.approx(high - mean)


def test_many_values_take_the_normal_distribution() -> None:
    values = [float(value % 2) for value in range(100)]

    _, low, high = interval(values)

    reach = 1.960 * statistics.stdev(values) / 10
    assert (low, high) == pytest.approx((0.5 - reach, 0.5 + reach))


@given(st.lists(FIGURES, min_size=2, max_size=40))
def test_an_interval_holds_its_mean(values: list[float]) -> None:
    mean, low, high = interval(values)

    assert low <= mean <= high


@given(st.lists(FIGURES, min_size=2, max_size=10))
def test_turning_a_ratio_over_turns_its_interval_over(values: list[float]) -> None:
    mean, low, high = ratio_interval(values)
    turned = ratio_interval([1 / value for value in values])

    assert turned == pytest.approx((1 / mean, 1 / high, 1 / low))


def test_twice_and_half_are_one_on_average() -> None:
    assert ratio_interval([2.0, 0.5]).mean == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_ratio_that_is_not_above_0_is_an_error(value: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        ratio_interval([1.0, value])


@given(st.floats(1.0, 1000.0), st.integers(0, 12))
def test_the_search_ends_just_below_what_a_system_can_take(limit: float, probes: int) -> None:
    low, high = 1.0, 1000.0

    found = largest(lambda rate: rate <= limit, low=low, high=high, probes=probes)

    assert found <= limit * (1 + 1e-9)
    assert limit <= found * (high / low) ** (0.5**probes) * (1 + 1e-9)


def test_a_search_in_which_nothing_holds_ends_at_its_lower_bound() -> None:
    assert largest(lambda _: False, low=2, high=8, probes=5) == 2
