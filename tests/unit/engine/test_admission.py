"""Who is let in, and how fast the queue is thought to move."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import DeadlineExceededError
from headrace.engine.admission import CERTAINTY, Pace, check_deadline

seconds = st.floats(0, 100)


@given(seconds, seconds, seconds)
def test_a_request_is_let_in_exactly_if_its_estimate_fits_with_a_margin(
    left_s: float, wait_s: float, run_s: float
) -> None:
    fits = wait_s + run_s <= left_s * CERTAINTY
    try:
        check_deadline(left_s=left_s, wait_s=wait_s, run_s=run_s)
    except DeadlineExceededError:
        assert not fits
    else:
        assert fits


def test_a_time_to_come_back_is_named_only_where_a_shorter_queue_would_help() -> None:
    with pytest.raises(DeadlineExceededError) as behind_a_queue:
        check_deadline(left_s=1.0, wait_s=5.0, run_s=0.5)
    with pytest.raises(DeadlineExceededError) as hopeless:
        check_deadline(left_s=0.1, wait_s=0.0, run_s=0.5)

    assert behind_a_queue.value.retry_after_s == 5.0
    assert hopeless.value.retry_after_s is None


def test_the_pace_follows_runs_one_after_the_other() -> None:
    pace = Pace(1.0)
    for i in range(200):
        pace.observe(rows=4, started_at=i * 0.04, ended_at=(i + 1) * 0.04)

    assert pace.wait_s(waiting=100, running=0) == pytest.approx(1.0)


def test_two_runs_at_once_make_the_queue_twice_as_fast() -> None:
    pace = Pace(1.0)
    for i in range(400):  # each takes 0.04 s, one ends every 0.02 s
        pace.observe(rows=4, started_at=i * 0.02, ended_at=i * 0.02 + 0.04)

    assert pace.wait_s(waiting=100, running=0) == pytest.approx(0.5)


def test_half_of_what_runs_is_still_to_come() -> None:
    assert Pace(0.1).wait_s(waiting=3, running=4) == pytest.approx(0.5)
