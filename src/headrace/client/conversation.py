"""How one call goes, without doing it: what to send, how long to pause, when to give up.

A conversation is a generator. It yields `Send` and wants the reply, or has the failure thrown in;
it yields `Pause` and wants to be resumed afterwards; it returns the result. So the blocking and the
asynchronous client differ in nothing but how they wait, and tests need neither network nor time.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from random import Random
from typing import Any, Generic, TypeVar

from headrace.client.retry import RetryBudget, RetryPolicy, retry_delay_s
from headrace.core import Clock, DeadlineExceededError, HeadraceError

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange(Generic[ResultT]):
    """A message, and how to read the reply to it; `read` raises what the reply says is wrong.

    What message and reply are is between a wire and its transports.
    """

    message: Any
    read: Callable[[Any], ResultT]


@dataclass(frozen=True, slots=True)
class Send:
    """Send `message` and hand in the reply, all within `timeout_s`."""

    message: Any
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait this long."""

    delay_s: float


Step = Send | Pause
Conversation = Generator[Step, Any, ResultT]


@dataclass(slots=True, kw_only=True)
class Attempts:
    """Repeats what was not started, within the deadline and the budget.

    Shared by all calls of a client, so the budget bounds what it adds to an overload as a whole.
    """

    policy: RetryPolicy
    budget: RetryBudget
    clock: Clock
    random: Random

    def run(self, exchange: Exchange[ResultT], deadline: float | None) -> Conversation[ResultT]:
        """The conversation for `exchange`; `deadline` is monotonic.

        Raises:
            DeadlineExceededError: There is no time left for a try.
            HeadraceError: What the last try failed with.
        """
        self.budget.earn()
        tries = 0
        while True:
            tries += 1
            try:
                reply = yield Send(exchange.message, self._left(deadline))
                return exchange.read(reply)
            except HeadraceError as error:
                delay_s = self._delay_s(error, tries, deadline)
                if delay_s is None:
                    raise
            yield Pause(delay_s)

    def once(self, exchange: Exchange[ResultT], deadline: float | None) -> Conversation[ResultT]:
        """The conversation for `exchange` without a second try."""
        reply = yield Send(exchange.message, self._left(deadline))
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
            return None
        left = deadline - self.clock.monotonic()
        if left <= 0:
            msg = "the timeout passed before the request could be sent"
            raise DeadlineExceededError(msg)
        return left
