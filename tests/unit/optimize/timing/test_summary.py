"""Latency statistics of windows and their intervals."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import InvalidArgumentError
from headrace.optimize.timing import CallWindow, Timing, summarize
from headrace.optimize.timing.summary import (
    MIN_COUNT,
    drifting_median_interval,
    median_interval,
)


def window(
    name: str,
    block: int,
    *latencies_s: float,
    disturbed: bool = False,
    foreign_cores: float | None = 0.0,
    cold: bool = False,
) -> CallWindow:
    return CallWindow(
        name=name,
        block=block,
        at_s=float(block),
        elapsed_s=sum(latencies_s),
        readings=np.array(latencies_s, "<f8").tobytes(),
        disturbed=disturbed,
        foreign_cores=foreign_cores,
        cold=cold,
    )


def blocks_of(name: str, *latencies_s: float, disturbed: bool = False) -> list[CallWindow]:
    return [window(name, i, t, disturbed=disturbed) for i, t in enumerate(latencies_s)]


def summary(*windows: CallWindow) -> dict[str, Timing]:
    rng = np.random.default_rng(1)
    return summarize(windows, baseline="base", rng=rng)


def test_a_cut_is_taken_within_blocks_so_that_drift_does_not_matter() -> None:
    drift = [1.0, 2.0, 0.5, 3.0, 8.0, 1.5]
    base = blocks_of("base", *drift)
    fast = blocks_of("fast", *(0.4 * speed for speed in drift))

    timing = summary(*base, *fast)["fast"]

    assert timing.cut_ratio == pytest.approx(0.6)
    assert timing.cut_ci_ratio == pytest.approx((0.6, 0.6))
    assert not timing.no_difference


def test_the_baseline_has_no_cut() -> None:
    timing = summary(*blocks_of("base", 1.0, 2.0, 3.0, 1.0, 2.0, 3.0))["base"]

    assert (timing.cut_ratio, timing.cut_ci_ratio) == (0.0, (0.0, 0.0))
    assert timing.no_difference


def test_what_is_slower_has_a_negative_cut() -> None:
    windows = [*blocks_of("base", *[1.0] * 6), *blocks_of("slow", *[3.4] * 6)]

    assert summary(*windows)["slow"].cut_ratio == pytest.approx(-2.4)


def test_percentiles_are_of_all_readings_and_throughput_of_all_time() -> None:
    group = [window("base", i, *np.linspace(0.01, 0.02, 101)) for i in range(6)]

    timing = summary(*group)["base"]

    assert timing.p50_s == pytest.approx(0.015)
    assert timing.p90_s == pytest.approx(0.019)
    assert timing.p99_s == pytest.approx(0.0199)
    assert timing.throughput_per_s == pytest.approx(1 / 0.015)


def test_disturbed_windows_do_not_count_while_enough_are_quiet() -> None:
    base = blocks_of("base", *[1.0] * 10)
    fast = [
        *blocks_of("fast", *[0.5] * 6),
        *(window("fast", i, 5.0, disturbed=True, foreign_cores=1.0) for i in range(6, 10)),
    ]

    timing = summary(*base, *fast)["fast"]

    assert (timing.cut_ratio, timing.blocks, timing.disturbed) == (0.5, 6, False)
    assert timing.p50_s == 0.5


def test_where_too_few_are_quiet_all_count_and_that_is_told() -> None:
    base = blocks_of("base", *[1.0] * 10)
    fast = [
        *blocks_of("fast", *[0.5] * 3),
        *(window("fast", i, 0.6, disturbed=True, foreign_cores=1.0) for i in range(3, 10)),
    ]

    timing = summary(*base, *fast)["fast"]

    assert timing.cut_ratio == pytest.approx(0.4)
    assert (timing.blocks, timing.disturbed) == (10, True)


def test_a_window_that_was_made_again_counts_instead_of_the_disturbed_one() -> None:
    base = blocks_of("base", *[1.0] * 6)
    again = [window("fast", i, 0.5) for i in range(6)]
    first = [window("fast", i, 7.0, disturbed=True, foreign_cores=2.0) for i in range(6)]

    for order in ([*first, *again], [*again, *first]):
        timing = summary(*base, *order)["fast"]
        assert (timing.cut_ratio, timing.blocks, timing.disturbed) == (0.5, 6, False)


def test_of_disturbed_windows_of_a_block_the_least_disturbed_counts() -> None:
    base = blocks_of("base", 1.0, 1.0)
    fast = [
        window("fast", i, time, disturbed=True, foreign_cores=foreign)
        for i in range(2)
        for time, foreign in ((9.0, 1.9), (0.5, 0.4), (7.0, 1.0))
    ]

    assert summary(*base, *fast)["fast"].cut_ratio == 0.5


def test_one_block_gives_figures_without_an_interval_and_proves_no_difference() -> None:
    timing = summary(window("base", 0, 1.0), window("fast", 0, 0.5))["fast"]

    assert (timing.cut_ratio, timing.cut_ci_ratio, timing.p50_ci_s) == (0.5, None, None)
    assert timing.no_difference


def test_who_shares_no_block_with_the_baseline_is_left_out() -> None:
    assert list(summary(window("base", 0, 1.0), window("late", 1, 0.5))) == ["base"]


def test_without_a_window_of_the_baseline_nothing_is_said() -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"'base' has no measured window; measured: fast"
    ):
        summary(window("fast", 0, 1.0))


def test_a_baseline_that_was_dropped_is_none() -> None:
    with pytest.raises(InvalidArgumentError, match="'base' has no measured window"):
        summary(window("base", 0, 1.0), CallWindow(name="base", block=1, at_s=1.0, error="boom"))


def test_hot_and_cold_are_not_mixed() -> None:
    with pytest.raises(InvalidArgumentError, match="hot and with cold"):
        summary(window("base", 0, 1.0), window("fast", 0, 1.0, cold=True))


@given(
    st.lists(st.tuples(st.floats(1e-6, 10), st.floats(1e-6, 10)), min_size=2, max_size=30),
)
def test_an_interval_holds_its_figure_and_figures_survive_a_journal(
    pairs: list[tuple[float, float]],
) -> None:
    windows = [
        *blocks_of("base", *(base for base, _ in pairs)),
        *blocks_of("other", *(other for _, other in pairs)),
    ]

    timing = summary(*windows)["other"]

    assert timing.cut_ci_ratio is not None
    low, high = timing.cut_ci_ratio
    assert low <= high <= 1
    if timing.blocks >= 8:
        assert low - 1e-9 <= timing.cut_ratio <= high + 1e-9
    assert msgspec.json.decode(msgspec.json.encode(timing), type=Timing) == timing


times = st.lists(st.floats(1e-6, 10.0), min_size=2, max_size=60)


@pytest.mark.parametrize(("count", "left_out"), [(6, 0), (8, 0), (9, 1), (20, 5), (40, 13)])
def test_as_many_extremes_are_left_out_as_the_sign_test_allows(count: int, left_out: int) -> None:
    values = np.arange(1.0, count + 1)

    assert median_interval(values) == (1 + left_out, count - left_out)


@given(times)
def test_an_interval_holds_the_median_of_what_it_is_made_of(values: list[float]) -> None:
    array = np.array(values)

    bounds = median_interval(array)

    assert bounds is not None
    if array.size >= MIN_COUNT:
        assert min(values) <= bounds[0] <= np.median(array) <= bounds[1] <= max(values)
    else:
        middle = math.exp(np.log(array).mean())
        assert bounds[0] <= middle * (1 + 1e-9)
        assert bounds[1] >= middle * (1 - 1e-9)


@given(times, st.floats(1e-3, 1e3))
def test_an_interval_does_not_depend_on_the_unit(values: list[float], unit: float) -> None:
    array = np.array(values)

    bounds = median_interval(array)
    scaled = median_interval(array * unit)

    assert bounds is not None
    assert scaled is not None
    if bounds[0] > 1e-200 and bounds[1] < 1e200:
        assert scaled == pytest.approx((bounds[0] * unit, bounds[1] * unit), rel=1e-6)


def test_one_reading_tells_of_no_interval() -> None:
    assert median_interval(np.array([1.0])) is None


def test_one_reading_that_is_many_times_off_does_not_widen_an_interval_of_twenty() -> None:
    values = np.linspace(1.0, 1.1, 20)
    spoilt = np.append(values[:-1], 50.0)

    assert median_interval(spoilt) == median_interval(values)


def test_readings_that_drift_have_a_wider_interval_than_the_same_in_any_order() -> None:
    drifting = np.repeat([1.0, 1.2, 0.9, 1.1, 1.3, 0.8, 1.0, 1.1, 1.25, 0.85], 4)
    drifting = drifting + np.linspace(0.0, 0.01, 40)
    mixed = np.random.default_rng(3).permutation(drifting)

    one, other = (
        drifting_median_interval(values, rng=np.random.default_rng(1))
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
        drifting_median_interval(array, rng=np.random.default_rng(seed)) for _ in range(2)
    )

    assert first == again
    assert first is not None
    if array.size >= MIN_COUNT:
        assert min(values) <= first[0] <= first[1] <= max(values)
