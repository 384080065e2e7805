from hypothesis import given
from hypothesis import strategies as st

from headrace.observe.histogram import ROWS_BOUNDS, SECONDS_BOUNDS, Histogram
from headrace.observe.phases import PhaseHistograms


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


@given(st.lists(st.floats(1e-5, 50), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_off_by_one_bucket_at_most(values: list[float], q: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    true = sorted(values)[max(0, -int(-q * len(values) // 1) - 1)]

    bucket = next(bound for bound in SECONDS_BOUNDS if bound >= true)
    assert histogram.quantile(q) == bucket


def test_batches_are_counted_in_rows() -> None:
    assert PhaseHistograms().batch_rows.bounds == ROWS_BOUNDS
