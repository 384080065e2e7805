import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.scaling import LEAST, Steady, steady


def test_the_start_and_the_end_are_left_out() -> None:
    slow = [(10.0, 5), (20.0, 5)]
    even = [(20.0 + at, 5) for at in range(1, 5)]
    last = [(90.0, 5), (100.0, 5)]
    cpu = [(0.0, 0.0), (20.0, 30.0), (24.0, 34.0), (100.0, 34.0)]

    assert steady(slow + even + last, cpu) == Steady(rows_per_s=5.0, cpu_us_per_row=200_000.0)


@given(
    shards=st.integers(LEAST, 100),
    rows=st.integers(1, 10**6),
    gap_s=st.floats(0.01, 100),
    cores=st.floats(0.1, 8),
    start_s=st.floats(0, 100),
)
def test_even_progress_has_its_own_rate_whatever_the_start(
    shards: int, rows: int, gap_s: float, cores: float, start_s: float
) -> None:
    done = [(start_s + gap_s * (number + 1), rows) for number in range(shards)]
    cpu = [(0.0, 1.0), (start_s, 1.0), (done[-1][0], 1.0 + cores * gap_s * shards)]
    found = steady(done[::-1], cpu)

    assert found.rows_per_s == pytest.approx(rows / gap_s, rel=1e-6)
    assert found.cpu_us_per_row == pytest.approx(cores * gap_s / rows * 1e6, rel=1e-6)
