"""Client call as data: messages to send, pauses and retries.

A conversation is a generator. It yields `SendMessage` and receives the reply, or the failure as an
exception; it yields `Pause` and is resumed afterwards; it returns the result. The blocking and the
asynchronous client thus differ only in how they wait, and tests need neither network nor time.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from random import Random
from threading import Lock
from typing import Any, Final, Generic, TypeVar

from headrace.client.answers import ConnectionLostError
from headrace.core import (
    Clock,
    DeadlineExceededError,
    HeadraceError,
    OverloadedError,
    SystemClock,
    UnavailableError,
)
from headrace.core.backoff import Backoff

_NOT_STARTED: Final = (UnavailableError, OverloadedError)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Retry limits and pauses of a client.

    Pauses are uniformly distributed between 0 and the current limit (full jitter), so that callers
    that failed together do not retry together.
    """

    max_attempts: int = 4
    """Attempts including the first one; 1 never retries."""
    base_delay_s: float = 0.05
    """Limit of the first pause, in seconds; doubled with each attempt."""
    max_delay_s: float = 2.0
    """Largest limit of a pause, in seconds."""
    max_retry_after_s: float = 30.0
    """Longest `retry-after` of a server that is honoured, in seconds; a longer one is not retried.
    """
    budget_ratio: float = 0.2
    """Retries per request, over time, that a client may add to an overloaded server's load."""
    budget_reserve: float = 10.0
    """Retries available before any request."""


NO_RETRIES: Final = RetryPolicy(max_attempts=1)


@dataclass(slots=True)
class RetryBudget:
    """Token bucket of retries: each request adds `ratio`, each retry takes 1. Thread-safe."""

    ratio: float
    reserve: float
    tokens: float = field(init=False)
    _lock: Lock = field(init=False, default_factory=Lock, repr=False)

    def __post_init__(self) -> None:
        self.tokens = self.reserve

    def earn(self) -> None:
        """Count a request's first attempt."""
        with self._lock:
            self.tokens = min(self.tokens + self.ratio, max(self.reserve, 1.0))

    def spend(self) -> bool:
        """Take one retry from the budget; return False if there is none."""
        with self._lock:
            if self.tokens < 1:
                return False
            self.tokens -= 1
            return True


def retry_delay_s(
    policy: RetryPolicy,
    error: HeadraceError,
    *,
    tries: int,
    remaining_s: float | None,
    chance: float,
) -> float | None:
    """Return the seconds to pause before the next attempt; None if `error` is final.

    Only errors of requests that were not started are retried: unavailable and overloaded. No
    attempt starts after the deadline.

    Args:
        tries: Number of attempts so far, at least 1.
        remaining_s: Time until the deadline; None without one.
        chance: Uniformly distributed in [0, 1).
    """
    if tries >= policy.max_attempts or not isinstance(error, _NOT_STARTED):
        return None
    retry_after_s = error.retry_after_s or 0.0
    if retry_after_s > policy.max_retry_after_s:
        return None
    ceiling = Backoff(first_s=policy.base_delay_s, limit_s=policy.max_delay_s).delay_s(tries)
    delay = retry_after_s + chance * ceiling
    if remaining_s is not None and delay >= remaining_s:
        return None
    return delay


ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolExchange(Generic[ResultT]):
    """Message and decoder of its reply; `read` raises the error that the reply reports.

    The types of message and reply are defined by the wire format and its transports.
    """

    message: Any
    read: Callable[[Any], ResultT]


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Request to send `message` and return the reply, within `timeout_s`."""

    message: Any
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class Pause:
    """Request to wait."""

    delay_s: float


Step = SendMessage | Pause
Conversation = Generator[Step, Any, ResultT]


@dataclass(slots=True, kw_only=True)
class Attempts:
    """Retry loop for requests that were not started, within the deadline and the budget.

    All calls of a client share it, so the budget bounds the client's total extra load on an
    overloaded server.
    """

    policy: RetryPolicy
    budget: RetryBudget
    clock: Clock
    random: Random
    attempt_timeout_s: float | None = None
    """Timeout of each attempt of a request without a deadline."""
    retry_for_s: float | None = None
    """Seconds after its first failure for which a request without a deadline is retried. It may
    then run twice: a lost connection counts as an unavailable server."""

    @classmethod
    def of_offline_run(
        cls,
        *,
        timeout_s: float,
        retry_for_s: float,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> "Attempts":
        """Return the attempts of a run that waits for an overloaded or restarting server.

        Args:
            timeout_s: Timeout of each attempt.
            retry_for_s: Time after its first failure for which a request is retried.
        """
        return cls(
            policy=RetryPolicy(
                max_attempts=1 << 30,
                base_delay_s=0.5,
                max_delay_s=30.0,
                max_retry_after_s=retry_for_s,
            ),
            budget=RetryBudget(ratio=0.0, reserve=math.inf),
            clock=clock or SystemClock(),
            random=random or Random(),  # noqa: S311  # jitter, no secret
            attempt_timeout_s=timeout_s,
            retry_for_s=retry_for_s,
        )

    def run(
        self, exchange: ProtocolExchange[ResultT], deadline: float | None = None
    ) -> Conversation[ResultT]:
        """Return the conversation for `exchange`; `deadline` is monotonic.

        Raises:
            DeadlineExceededError: There is no time left for an attempt.
            HeadraceError: The error of the last attempt.
        """
        self.budget.earn()
        tries, until = 0, deadline
        while True:
            tries += 1
            try:
                return (yield from self.once(exchange, deadline))
            except HeadraceError as error:
                # No other variable has the error: its traceback would keep the connection open.
                if until is None and self.retry_for_s is not None:
                    until = self.clock.monotonic() + self.retry_for_s
                delay_s = self._delay_s(error, tries, until)
                if delay_s is None:
                    raise
            yield Pause(delay_s)

    def once(
        self, exchange: ProtocolExchange[ResultT], deadline: float | None
    ) -> Conversation[ResultT]:
        """Return the conversation for `exchange` without retries."""
        try:
            reply = yield SendMessage(exchange.message, self._left(deadline))
        except ConnectionLostError as error:
            if self.retry_for_s is None:
                raise
            raise UnavailableError(str(error), retry_after_s=None) from error
        return exchange.read(reply)

    def _delay_s(self, error: HeadraceError, tries: int, deadline: float | None) -> float | None:
        delay_s = retry_delay_s(
            self.policy,
            error,
            tries=tries,
            remaining_s=None if deadline is None else deadline - self.clock.monotonic(),
            chance=self.random.random(),
        )
        return delay_s if delay_s is not None and self.budget.spend() else None

    def _left(self, deadline: float | None) -> float | None:
        if deadline is None:
            return self.attempt_timeout_s
        left = deadline - self.clock.monotonic()
        if left <= 0:
            msg = "the timeout passed before the request could be sent"
            raise DeadlineExceededError(msg)
        return left
