import math
import statistics
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.observe.histogram import (
    FINE_S,
    ROWS_BOUNDS,
    SECONDS_BOUNDS,
    TWO_DIGITS_S,
    Histogram,
    PhaseHistograms,
    reported_indexes,
)


def test_a_value_on_a_bound_belongs_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(1.0)
    histogram.observe(1.5, count=2)
    histogram.observe(9.0)

    assert histogram.counts == [1, 2, 1]
    assert (histogram.count, histogram.sum) == (4, 13.0)


def test_an_empty_histogram_has_a_quantile_of_0() -> None:
    assert Histogram().quantile(0.5) == 0


def test_a_value_beyond_every_bound_counts_as_the_last() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(100)

    assert histogram.quantile(0.5) == 2.0


@given(st.lists(st.floats(1e-4, 50), min_size=1), st.floats(0.01, 1))
def test_a_quantile_of_latencies_is_off_by_a_twentieth_at_most(
    values: list[float], q: float
) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)

    true = sorted(values)[max(0, -int(-q * len(values) // 1) - 1)]
    assert histogram.quantile(q) == pytest.approx(true, rel=0.054)


@given(st.lists(st.floats(0, 200)), st.sampled_from([6, 12, 24]))
def test_what_is_told_of_a_histogram_is_what_is_in_it(values: list[float], fineness: int) -> None:
    histogram, places = Histogram(), reported_indexes(fineness)
    for value in values:
        histogram.observe(value)

    *below, total = histogram.below(places)

    assert total == len(values)
    for place, count in zip(places, below, strict=True):
        assert count == sum(value <= SECONDS_BOUNDS[place] for value in values)


@pytest.mark.parametrize("bounds", [FINE_S, TWO_DIGITS_S], ids=["fine", "two-digits"])
def test_bounds_grow(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))
    assert bounds[-1] == 100.0


@pytest.mark.parametrize("median_s", [0.001, 0.0075, 0.3, 2.1])
@pytest.mark.parametrize("spread", [0.15, 0.5, 1.0])
def test_a_scraper_finds_quantiles_within_5_percent(median_s: float, spread: float) -> None:
    """By Prometheus' `histogram_quantile`, of latencies as they are (log-normal)."""
    histogram, places = Histogram(), reported_indexes(24)
    normal = statistics.NormalDist()
    values = [median_s * math.exp(spread * normal.inv_cdf((k + 0.5) / 4000)) for k in range(4000)]
    for value in values:
        histogram.observe(value)

    for q in (0.5, 0.95, 0.99):
        below = histogram.below(places)
        at = next(place for place, count in enumerate(below) if count >= q * len(values))
        lower, upper = SECONDS_BOUNDS[places[at - 1]], SECONDS_BOUNDS[places[at]]
        part = (q * len(values) - below[at - 1]) / (below[at] - below[at - 1])
        found = lower + (upper - lower) * part
        assert found == pytest.approx(values[int(q * len(values))], rel=0.05)


def test_batches_are_counted_in_rows() -> None:
    assert PhaseHistograms().batch_rows.bounds == ROWS_BOUNDS


@given(st.lists(st.floats(0.0, 200.0) | st.sampled_from(FINE_S), max_size=60))
def test_many_at_once_count_as_one_by_one(values: list[float]) -> None:
    at_once, one_by_one = Histogram(), Histogram()
    at_once.observe_all(values)
    for value in values:
        one_by_one.observe(value)

    assert at_once.counts == one_by_one.counts
    assert at_once.sum == pytest.approx(one_by_one.sum)


uneven = st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=9, unique=True).map(
    lambda bounds: tuple(sorted(bounds))
)


@given(st.sampled_from([FINE_S, TWO_DIGITS_S, ROWS_BOUNDS]) | uneven, st.data())
def test_a_value_is_in_the_first_bucket_whose_bound_is_not_below_it(
    bounds: tuple[float, ...], data: st.DataObject
) -> None:
    value = data.draw(st.floats() | st.sampled_from(bounds) | st.floats(bounds[0], bounds[-1]))

    assert Histogram(bounds).place_of(value) == bisect_left(bounds, value)
