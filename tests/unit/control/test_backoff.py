"""Later each time, never for ever."""

import pytest

from headrace.control.model.observed import (
    CANNOT_LOAD,
    CRASHED,
    EXIT_CANNOT_LOAD,
    restart_delay_s,
)


@pytest.mark.parametrize(
    ("failures", "delay"), [(1, 0.1), (2, 0.2), (3, 0.4), (9, 25.6), (10, 30.0), (10_000, 30.0)]
)
def test_a_crash_is_waited_for_twice_as_long_each_time(failures: int, delay: float) -> None:
    assert restart_delay_s(failures=failures, exit_code=-11) == pytest.approx(delay)


def test_a_model_that_cannot_be_loaded_is_tried_seldom() -> None:
    first = restart_delay_s(failures=1, exit_code=EXIT_CANNOT_LOAD)

    assert first == CANNOT_LOAD.first_s
    assert restart_delay_s(failures=50, exit_code=EXIT_CANNOT_LOAD) == CANNOT_LOAD.limit_s


def test_an_end_that_nobody_saw_counts_as_a_crash() -> None:
    assert restart_delay_s(failures=1, exit_code=None) == CRASHED.first_s
