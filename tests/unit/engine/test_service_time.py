"""What is learned from runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine import ServiceTimes
from headrace.engine.grouping import USUAL_OVERHEAD


def test_nothing_is_estimated_before_the_first_run() -> None:
    times = ServiceTimes(max_batch_size=32)

    assert times.estimate(rows=1, length=1) is None
    assert times.best_rows(1) == 32


def test_an_estimate_follows_what_runs_take() -> None:
    times = ServiceTimes(max_batch_size=32)
    for _ in range(100):
        times.observe(rows=4, length=1, seconds=0.004)

    assert times.estimate(rows=4, length=1) == 0.004


def test_an_unseen_length_is_scaled_from_the_nearest() -> None:
    times = ServiceTimes(max_batch_size=32)
    times.observe(rows=1, length=16, seconds=0.001)

    assert times.estimate(rows=1, length=64) == 0.004


def test_batches_stop_growing_where_time_per_row_stops_falling() -> None:
    times = ServiceTimes(max_batch_size=32)
    for rows, seconds in ((1, 0.0030), (2, 0.0050), (4, 0.0080), (8, 0.0160), (16, 0.040)):
        times.observe(rows=rows, length=32, seconds=seconds)

    assert times.best_rows(32) == 4


def test_batches_grow_to_the_maximum_while_rows_get_cheaper() -> None:
    times = ServiceTimes(max_batch_size=32)
    for power in range(6):
        times.observe(rows=1 << power, length=1, seconds=4e-6 + 1e-7 * (1 << power))

    assert times.best_rows(1) == 32


def test_one_step_beyond_what_is_known_is_tried() -> None:
    times = ServiceTimes(max_batch_size=32)
    times.observe(rows=1, length=1, seconds=0.004)
    times.observe(rows=2, length=1, seconds=0.005)

    assert times.best_rows(1) == 4


def test_a_stale_larger_size_is_tried_again_now_and_then() -> None:
    times = ServiceTimes(max_batch_size=32)
    for rows, seconds in ((1, 0.001), (2, 0.008), (4, 0.1)):
        times.observe(rows=rows, length=1, seconds=seconds)

    seen = set()
    for _ in range(32 * 16):
        times.observe(rows=1, length=1, seconds=0.001)
        seen.add(times.best_rows(1))

    assert seen == {1, 2}


def test_a_length_without_figures_borrows_the_nearest_lengths_best_size() -> None:
    times = ServiceTimes(max_batch_size=32)
    for rows, seconds in ((1, 0.001), (2, 0.0011), (4, 0.1), (8, 0.9)):
        times.observe(rows=rows, length=16, seconds=seconds)

    assert times.best_rows(512) == 2


def rows_run(times: ServiceTimes, *, runs: int, run_s: float) -> list[int]:
    """The sizes of batches of one length, where always more waits than may run together."""
    sizes = []
    for _ in range(runs):
        sizes.append(times.best_rows(1))
        times.observe(rows=sizes[-1], length=1, seconds=run_s)
    return sizes


@pytest.mark.parametrize("runs_before", range(0, 40, 3))
def test_a_model_that_becomes_slow_goes_on_with_large_batches(runs_before: int) -> None:
    times = ServiceTimes(max_batch_size=32)
    for number in range(64 + runs_before):  # when the next look is due is another each time
        times.observe(rows=1 << (number % 6), length=1, seconds=0.005)

    sizes = rows_run(times, runs=200, run_s=0.6)

    assert sum(sizes) > 0.95 * 200 * 32
    assert sizes[-100:] == [32] * 100


def test_three_slow_runs_in_a_row_leave_what_is_known_of_other_sizes() -> None:
    times = ServiceTimes(max_batch_size=32)
    for rows, seconds in ((1, 0.0030), (2, 0.0050), (4, 0.0080), (8, 0.0160), (16, 0.040)):
        times.observe(rows=rows, length=1, seconds=seconds)

    for number in range(30):
        is_slow = number % 10 < 3
        times.observe(rows=4, length=1, seconds=0.040 if is_slow else 0.0080)

    assert times.estimate(rows=1, length=1) == 0.0030
    assert times.estimate(rows=2, length=1) == 0.0050
    assert times.estimate(rows=8, length=1) == 0.0160


def test_a_model_that_becomes_slow_is_known_to_be_slow_after_four_runs() -> None:
    times = ServiceTimes(max_batch_size=32)
    times.observe(rows=8, length=1, seconds=0.005)
    for _ in range(4):
        times.observe(rows=8, length=1, seconds=0.6)

    assert times.estimate(rows=8, length=1) == pytest.approx(0.6)


def test_other_lengths_keep_their_figures_when_one_becomes_slow() -> None:
    times = ServiceTimes(max_batch_size=32)
    for rows in (1, 8):
        for length in (16, 64):
            times.observe(rows=rows, length=length, seconds=0.005)
    for _ in range(4):
        times.observe(rows=8, length=64, seconds=0.6)

    assert times.estimate(rows=1, length=16) == 0.005
    assert times.estimate(rows=1, length=64) == pytest.approx(0.6 / 8)


@given(
    st.lists(
        st.tuples(st.integers(1, 64), st.integers(1, 4096), st.floats(1e-6, 10.0)), max_size=50
    ),
    st.integers(1, 64),
    st.integers(1, 5000),
)
def test_the_best_size_stays_within_its_bounds(
    runs: list[tuple[int, int, float]], maximum: int, length: int
) -> None:
    times = ServiceTimes(max_batch_size=maximum)
    for rows, seen, seconds in runs:
        times.observe(rows=rows, length=seen, seconds=seconds)

    assert 1 <= times.best_rows(length) <= maximum


@given(
    st.lists(st.tuples(st.integers(1, 64), st.floats(1e-6, 10.0)), max_size=120),
    st.integers(1, 64),
)
def test_no_run_is_estimated_to_take_longer_than_the_slowest_row_allows(
    runs: list[tuple[int, float]], rows: int
) -> None:
    times = ServiceTimes(max_batch_size=64)
    for size, seconds in runs:
        times.observe(rows=size, length=1, seconds=seconds)

    estimate = times.estimate(rows=rows, length=1) or 0.0
    assert estimate <= times.slowest_row_s * rows * (1 + 1e-9)


def test_what_a_run_costs_beside_its_rows_is_told_in_elements() -> None:
    times = ServiceTimes(max_batch_size=32)
    assert times.overhead(24) == USUAL_OVERHEAD
    times.observe(rows=1, length=24, seconds=0.004)
    assert times.overhead(24) == USUAL_OVERHEAD  # one size tells no share

    times.observe(rows=2, length=24, seconds=0.007)  # 1 ms, and 3 ms a row

    assert times.overhead(24) == pytest.approx(24 / 3)
    assert times.overhead(100) == pytest.approx(96 / 3)  # from the nearest length that is known


def test_a_run_that_costs_nothing_beside_its_rows_has_the_usual_overhead() -> None:
    times = ServiceTimes(max_batch_size=32)
    times.observe(rows=1, length=24, seconds=0.004)
    times.observe(rows=2, length=24, seconds=0.009)

    assert times.overhead(24) == USUAL_OVERHEAD
