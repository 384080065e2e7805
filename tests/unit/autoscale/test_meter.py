"""Signals of a scaler in sliding windows."""

import math
from bisect import bisect_left
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.autoscale import IntervalCounts, Meter
from headrace.autoscale.meter import quantile
from headrace.autoscale.state import (
    Mean,
    Peaks,
    Window,
    add,
    add_peak,
    at_least,
    at_most,
    mean_arrivals,
    mean_in_flight,
    mean_wait,
    suffixes,
)
from headrace.core.spec.scale import AutoscaleSpec

BOUNDS = (0.1, 0.2, 0.4)
SETTINGS = AutoscaleSpec()


def counts(answered: int, latencies: tuple[int, ...] = (), **other: float) -> IntervalCounts:
    found = IntervalCounts(
        seconds=1.0,
        arrived=answered,
        answered=answered,
        busy_s=0.0,
        run_s=0.0,
        wait_s=0.0,
        latencies=latencies,
        bounds_s=BOUNDS if latencies else (),
    )
    return msgspec.structs.replace(found, **other)


def test_times_are_over_all_requests_of_the_window() -> None:
    meter = Meter.new()
    slow = counts(1, busy_s=1.0, run_s=2.0, wait_s=0.5)
    quick = counts(99, busy_s=0.99, run_s=0.99, wait_s=0.0)

    meter.signals(slow, SETTINGS, now=1.0, ready=1)
    signals = meter.signals(quick, SETTINGS, now=2.0, ready=1, in_flight=3.0)

    assert signals.service_s == pytest.approx(0.0199)
    assert signals.run_s == pytest.approx(0.0299)
    assert signals.queue_wait_s == 0.0
    assert signals.arrivals == 99.0
    assert not signals.is_missing


def test_a_look_without_counts_is_missing() -> None:
    meter = Meter.new()
    meter.signals(counts(10, busy_s=1.0), SETTINGS, now=1.0, ready=1, in_flight=1.0)

    signals = meter.signals(None, SETTINGS, now=2.0, ready=1)

    assert signals.is_missing
    assert (signals.arrivals, signals.queue_wait_s, signals.p99_s) == (None, None, None)
    assert signals.service_s == pytest.approx(0.1), "what a request costs is still known"


def test_what_is_older_than_the_stable_window_is_forgotten() -> None:
    meter = Meter.new()
    meter.signals(counts(10, busy_s=10.0), SETTINGS, now=1.0, ready=1)

    signals = meter.signals(counts(10, busy_s=1.0), SETTINGS, now=61.0, ready=1)

    assert signals.service_s == pytest.approx(0.1)


def test_a_p99_is_of_the_last_panic_windows_if_they_have_enough_requests() -> None:
    meter = Meter.new()
    meter.signals(counts(1000, (0, 0, 0, 1000)), SETTINGS, now=1.0, ready=1)

    signals = meter.signals(counts(1000, (1000, 0, 0, 0)), SETTINGS, now=30.0, ready=1)

    assert signals.p99_s == pytest.approx(0.099)


def test_rare_requests_are_looked_at_for_longer() -> None:
    meter = Meter.new()
    looks = [
        meter.signals(counts(1, (0, 1, 0, 0)), SETTINGS, now=second, ready=1)
        for second in range(1, 30)
    ]

    assert looks[18].p99_s is None, "too few to have a p99"
    assert looks[19].p99_s == pytest.approx(0.199)
    quiet = meter.signals(counts(0), SETTINGS, now=30.0, ready=1)
    assert quiet.p99_s == pytest.approx(0.199)


def test_histograms_that_do_not_match_are_not_added() -> None:
    meter = Meter.new()
    meter.signals(counts(500, (0, 500, 0, 0)), SETTINGS, now=1.0, ready=1)
    other = IntervalCounts(
        seconds=1.0,
        arrived=500,
        answered=500,
        busy_s=0.0,
        run_s=0.0,
        wait_s=0.0,
        latencies=(500, 0),
        bounds_s=(0.01,),
    )

    assert meter.signals(other, SETTINGS, now=2.0, ready=1).p99_s == pytest.approx(0.0099)


@pytest.mark.parametrize(
    ("latencies", "q", "value"),
    [
        ((10, 0, 0, 0), 0.5, 0.05),
        ((0, 10, 0, 0), 0.5, 0.15),
        ((5, 0, 5, 0), 0.9, 0.36),
        ((0, 0, 0, 3), 0.5, 0.4),
        ((0, 0, 0, 0), 0.5, None),
    ],
)
def test_a_quantile_lies_within_its_bucket(
    latencies: tuple[int, ...], q: float, value: float | None
) -> None:
    found = quantile(BOUNDS, latencies, q)

    assert found == (None if value is None else pytest.approx(value))
    assert quantile((), (3,), 0.5) is None


def test_values_that_are_alike_have_no_p99_at_the_end_of_their_bucket() -> None:
    alike = quantile(BOUNDS, (0, 1000, 0, 0), 0.99, total_s=105.0)
    with_few_above = quantile(BOUNDS, (0, 995, 5, 0), 0.99, total_s=105.5)

    assert alike == pytest.approx(0.1099)
    assert with_few_above is not None
    assert 0.105 <= with_few_above < 0.12


@given(
    st.lists(st.floats(0.0, 0.39), min_size=1, max_size=200),
    st.sampled_from([0.5, 0.9, 0.99]),
)
def test_a_quantile_is_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    counts_of = [0] * 4
    for value in values:
        counts_of[bisect_left(BOUNDS, value)] += 1

    found = quantile(BOUNDS, counts_of, q, total_s=sum(values))

    true = sorted(values)[max(math.ceil(q * len(values)) - 1, 0)]
    edges = (0.0, *BOUNDS)
    index = bisect_left(BOUNDS, true)
    assert found is not None
    assert edges[index] - 1e-9 <= found <= edges[index + 1] + 1e-9


def filled(
    values: Sequence[float | None], *, length_s: float = 60.0, wait_s: float = 0.1
) -> Window:
    window: Window = ()
    for second, value in enumerate(values):
        window = add(
            window,
            observed_at=float(second),
            length_s=length_s,
            in_flight=value,
            arrivals=value,
            wait_s=None if value is None else wait_s,
        )
    return window


def test_a_mean_knows_only_what_was_seen() -> None:
    window = filled([2.0, None, 4.0])

    assert mean_arrivals(window) == Mean(3.0, 2)
    assert mean_in_flight(window) == Mean(3.0, 2)
    assert mean_wait(window) is not None
    assert mean_arrivals(filled([None, None])) is None


def test_what_is_older_than_the_window_is_forgotten() -> None:
    assert mean_arrivals(filled([100.0] * 10 + [1.0] * 6, length_s=6.0)) == Mean(1.0, 6)


def test_the_last_looks_are_told_apart_from_all() -> None:
    means = suffixes(filled([1.0, 1.0, 7.0]), mean_arrivals)

    assert [mean.value for mean in means] == [3.0, 4.0, 7.0]


@given(st.floats(0.0, 1e4), st.floats(0.0, 1e4), st.integers(1, 60), st.floats(0.0, 4.0))
def test_bounds_grow_with_the_mean(one: float, more: float, looks: int, z: float) -> None:
    small, large = Mean(one, looks), Mean(one + more, looks)

    assert at_least(small, z=z) <= at_least(large, z=z) + 1e-9
    assert at_least(small, z=z) <= one <= at_most(small, z=z)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=100), st.integers(1, 40))
def test_the_largest_peak_is_that_of_the_last_seconds(counts: list[int], length: int) -> None:
    peaks: Peaks = ()
    for second, count in enumerate(counts):
        peaks = add_peak(peaks, observed_at=float(second), length_s=float(length), count=count)

        assert max(peak.count for peak in peaks) == max(counts[: second + 1][-length:])
