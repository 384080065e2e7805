from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.client import NO_RETRIES, ConnectionLostError, RetryPolicy
from headrace.client.conversation import (
    Attempts,
    ProtocolExchange,
    RetryBudget,
    SendMessage,
    retry_delay_s,
)
from headrace.client.wires import run_blocking
from headrace.core import (
    DeadlineExceededError,
    HeadraceError,
    InvalidArgumentError,
    ModelNotReadyError,
    OverloadedError,
    PayloadTooLargeError,
    RuntimeFailedError,
    UnavailableError,
)
from headrace.testing.virtual_time import TurnedClock

POLICY = RetryPolicy(max_attempts=4, base_delay_s=0.1, max_delay_s=1.0)
UNAVAILABLE = UnavailableError("starting", retry_after_s=None)


def delay(error: HeadraceError, **given: float | None) -> float | None:
    values = {"tries": 1, "remaining_s": None, "chance": 0.5} | given
    return retry_delay_s(POLICY, error, **values)  # type: ignore[arg-type]  # mixed keyword types


def test_the_pause_doubles_up_to_its_limit() -> None:
    policy = RetryPolicy(max_attempts=99, base_delay_s=0.1, max_delay_s=1.0)

    pauses = [
        retry_delay_s(policy, UNAVAILABLE, tries=n, remaining_s=None, chance=1.0)
        for n in (1, 2, 3, 4, 5, 98)
    ]

    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


@pytest.mark.parametrize(
    "error", [UNAVAILABLE, ModelNotReadyError("m"), OverloadedError("full", retry_after_s=0.0)]
)
def test_what_was_not_started_is_tried_again(error: HeadraceError) -> None:
    assert delay(error) is not None


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgumentError("wrong"),
        PayloadTooLargeError(limit_bytes=1),
        DeadlineExceededError("late"),
        RuntimeFailedError("crash"),
        ConnectionLostError("lost"),
    ],
)
def test_what_may_have_run_or_cannot_succeed_is_final(error: HeadraceError) -> None:
    assert delay(error) is None


def test_the_last_attempt_is_final() -> None:
    assert delay(UNAVAILABLE, tries=4) is None
    assert retry_delay_s(NO_RETRIES, UNAVAILABLE, tries=1, remaining_s=None, chance=0) is None


def test_the_server_is_given_the_time_it_asks_for_and_jitter_on_top() -> None:
    assert delay(OverloadedError("full", retry_after_s=2.0)) == pytest.approx(2.05)


def test_a_server_that_asks_for_too_long_is_not_waited_for() -> None:
    assert delay(OverloadedError("full", retry_after_s=31.0)) is None


def test_no_pause_reaches_past_the_deadline() -> None:
    assert delay(OverloadedError("full", retry_after_s=2.0), remaining_s=2.0) is None
    assert delay(OverloadedError("full", retry_after_s=2.0), remaining_s=3.0) is not None


@given(
    tries=st.integers(1, 5000),
    remaining_s=st.none() | st.floats(0, 100),
    chance=st.floats(0, 1, exclude_max=True),
    retry_after_s=st.none() | st.floats(0, 100),
)
def test_a_pause_is_never_negative_and_ends_before_the_deadline(
    tries: int, remaining_s: float | None, chance: float, retry_after_s: float | None
) -> None:
    policy = RetryPolicy(max_attempts=10_000)
    error = UnavailableError("x", retry_after_s=retry_after_s)

    pause = retry_delay_s(policy, error, tries=tries, remaining_s=remaining_s, chance=chance)

    if pause is not None:
        assert pause >= (retry_after_s or 0)
        assert remaining_s is None or pause < remaining_s


@given(st.lists(st.booleans(), max_size=300))
def test_retries_stay_within_a_fifth_of_the_requests_and_the_reserve(events: list[bool]) -> None:
    budget = RetryBudget(ratio=0.2, reserve=10)
    requests = retries = 0

    for is_request in events:
        if is_request:
            budget.earn()
            requests += 1
        else:
            retries += budget.spend()

        assert retries <= 10 + 0.2 * requests + 1e-9


def test_an_exhausted_budget_recovers_with_requests() -> None:
    budget = RetryBudget(ratio=0.2, reserve=1)

    assert budget.spend()
    assert not budget.spend()
    for _ in range(5):
        budget.earn()
    assert budget.spend()


def outcomes(
    clock: TurnedClock, *replies: object, **settings: float
) -> tuple[object, list[tuple[float, float | None]]]:
    """Run one request of an offline run; return its result, and when attempts were made."""
    attempts = Attempts.of_offline_run(
        **{"timeout_s": 5.0, "retry_for_s": 60.0} | settings,
        clock=clock,
        random=Random(1),  # noqa: S311  # a test
    )
    script, sent = iter(replies), []

    class Server:
        def send(self, send: SendMessage) -> object:
            sent.append((clock.monotonic(), send.timeout_s))
            reply = next(script)
            if isinstance(reply, HeadraceError):
                raise reply
            return reply

        def close(self) -> None:
            """Nothing to close."""

    conversation = attempts.run(ProtocolExchange(message="m", read=lambda reply: reply))
    return run_blocking(conversation, Server(), pause=clock.turn), sent


def test_an_offline_run_waits_for_its_server_and_sends_a_lost_request_again() -> None:
    lost, full = ConnectionLostError("lost"), OverloadedError("full", retry_after_s=40.0)

    result, sent = outcomes(TurnedClock(), UNAVAILABLE, lost, full, "answer")

    assert result == "answer"
    assert [timeout_s for _, timeout_s in sent] == [5.0] * 4
    assert sent[3][0] - sent[2][0] >= 40


def test_an_offline_run_gives_up_after_its_time() -> None:
    with pytest.raises(UnavailableError, match="lost"):
        outcomes(TurnedClock(), *[ConnectionLostError("lost")] * 1000)
    with pytest.raises(OverloadedError):
        outcomes(TurnedClock(), OverloadedError("full", retry_after_s=61.0))
    with pytest.raises(InvalidArgumentError):
        outcomes(TurnedClock(), InvalidArgumentError("wrong"))
