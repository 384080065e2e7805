"""Retries of batches that failed for a reason that may pass."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.core import (
    InvalidArgumentError,
    OverloadedError,
    PayloadTooLargeError,
    RuntimeFailedError,
    UnavailableError,
)
from headrace.core.spec_stream_parts import StreamErrorsSpec
from headrace.streaming.in_flight import may_pass, retry_at

PATIENT = StreamErrorsSpec(first_delay_s=0.1, max_delay_s=2.0, retry_for_s=None)


@given(
    tries=st.integers(1, 10_000),
    chance=st.floats(0, 1, exclude_max=True),
    asked_s=st.none() | st.floats(0, 100),
)
def test_pauses_stay_within_their_bounds(tries: int, chance: float, asked_s: float | None) -> None:
    again = retry_at(PATIENT, tries=tries, since=0.0, now=50.0, chance=chance, asked_s=asked_s)

    assert again is not None
    assert 50.05 <= again <= 52.0


def test_who_fails_may_ask_for_a_longer_pause() -> None:
    assert retry_at(PATIENT, tries=1, since=0.0, now=0.0, chance=0.0, asked_s=1.5) == 1.5


def test_the_last_try_is_at_the_end_of_the_time() -> None:
    bounded = StreamErrorsSpec(first_delay_s=1.0, max_delay_s=8.0, retry_for_s=10.0)

    assert retry_at(bounded, tries=4, since=0.0, now=7.0, chance=1.0) == 10.0
    assert retry_at(bounded, tries=5, since=0.0, now=10.0, chance=1.0) is None


def test_what_is_away_or_overloaded_may_pass_and_what_is_wrong_may_not() -> None:
    assert may_pass(UnavailableError("x"))
    assert may_pass(OverloadedError("x", retry_after_s=1.0))
    assert not may_pass(PayloadTooLargeError(limit_bytes=1))
    assert not may_pass(InvalidArgumentError("x"))
    assert not may_pass(RuntimeFailedError("x"))
