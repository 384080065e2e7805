"""Delays before a failed action is tried again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.backoff import Backoff

BACKOFF = Backoff(first_s=0.1, limit_s=30.0)


@pytest.mark.parametrize(("failures", "delay_s"), [(1, 0.1), (2, 0.2), (9, 25.6), (10, 30.0)])
def test_delays_double_up_to_the_limit(failures: int, delay_s: float) -> None:
    assert BACKOFF.delay_s(failures) == pytest.approx(delay_s)


@given(st.integers(1, 10**9))
def test_delays_never_shrink_and_stay_in_bounds(failures: int) -> None:
    assert 0.1 <= BACKOFF.delay_s(failures) <= BACKOFF.delay_s(failures + 1) <= 30.0


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_jitter_is_half_of_the_delay_to_all_of_it(failures: int, chance: float) -> None:
    delay_s = BACKOFF.delay_s(failures)

    assert delay_s / 2 <= BACKOFF.jittered_s(failures, chance=chance) <= delay_s
