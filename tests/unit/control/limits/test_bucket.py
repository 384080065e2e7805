"""The laws of a bucket of tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.limits.limiter import TokenBucket

rates = st.floats(0.01, 1000.0)
steps = st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(1, 5)), max_size=60)


@given(rates, st.integers(1, 50), steps)
def test_no_window_of_time_gives_more_than_the_size_and_what_came_in_it(
    rate: float, size: int, wanted: list[tuple[float, int]]
) -> None:
    bucket = TokenBucket(rate=rate, size=float(size), refilled_at=0.0)
    given_at: list[tuple[float, int]] = []
    now = 0.0
    for pause_s, amount in wanted:
        now += pause_s
        bucket.refill(now)
        if bucket.wait_s(amount) == 0 and amount <= size:
            bucket.take(amount)
            given_at.append((now, amount))

    for i, (start, _) in enumerate(given_at):
        taken = 0
        for at, amount in given_at[i:]:
            taken += amount
            assert taken <= size + rate * (at - start) + 1e-6


@given(rates, st.integers(1, 50), st.floats(0.0, 200.0), st.integers(1, 50))
def test_after_the_wait_the_tokens_are_there_and_before_they_are_not(
    rate: float, size: int, taken: float, amount: int
) -> None:
    bucket = TokenBucket(rate=rate, size=float(size), refilled_at=0.0)
    bucket.take(taken)
    wanted = min(amount, size)

    wait_s = bucket.wait_s(wanted)

    bucket.refill(wait_s / 2)
    if wait_s > 1e-9:  # what is shorter is lost among the digits of a number
        assert bucket.wait_s(wanted) > 0
    bucket.refill(wait_s * (1 + 1e-9) + 1e-9)
    assert bucket.wait_s(wanted) <= 1e-6


def test_what_is_owed_has_to_come_first_and_what_is_given_back_fits() -> None:
    bucket = TokenBucket(rate=2.0, size=4.0, refilled_at=0.0)

    bucket.take(10.0)
    assert bucket.wait_s(1.0) == pytest.approx(3.5)
    bucket.take(-100.0)
    assert bucket.tokens == 4.0


def test_an_earlier_time_changes_nothing() -> None:
    bucket = TokenBucket(rate=1.0, size=4.0, refilled_at=10.0)
    bucket.take(4.0)

    bucket.refill(5.0)

    assert (bucket.refilled_at, bucket.tokens) == (10.0, 0.0)


def test_a_changed_bucket_keeps_what_fits() -> None:
    bucket = TokenBucket(rate=1.0, size=4.0, refilled_at=0.0)
    bucket.take(1.0)

    bucket.change(rate=1.0, size=8.0)
    assert bucket.tokens == 3.0
    bucket.change(rate=1.0, size=2.0)
    assert bucket.tokens == 2.0
