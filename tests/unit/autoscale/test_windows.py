from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

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


def filled(
    values: Sequence[float | None], *, length_s: float = 60.0, wait_s: float = 0.1
) -> Window:
    window: Window = ()
    for second, value in enumerate(values):
        window = add(
            window,
            at=float(second),
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
        peaks = add_peak(peaks, at=float(second), length_s=float(length), count=count)

        assert max(peak.count for peak in peaks) == max(counts[: second + 1][-length:])
