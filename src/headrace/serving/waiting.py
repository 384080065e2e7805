"""Who waits for a model to be loaded? Requests, bounded in number and each in time."""

import asyncio
import math
from collections.abc import Callable

from headrace.core import DeadlineExceededError, HeadraceError, UnavailableError
from headrace.serving.deadlines import timeout_s
from headrace.serving.exchange import Exchange
from headrace.serving.state import ReplicaState

Refuse = Callable[[ReplicaState, Exchange, HeadraceError], None]


class WaitingRoom:
    """Requests that wait, by model. Belongs to the event loop's thread.

    Args:
        limit: How many may wait, over all models.
        limit_s: How long one may wait.
        refuse: Answers a request that waited too long, with an error.
    """

    def __init__(self, *, limit: int, limit_s: float, refuse: Refuse) -> None:
        self._limit = limit
        self._limit_s = limit_s
        self._refuse = refuse
        self._rooms: dict[int, dict[Exchange, asyncio.TimerHandle]] = {}
        self._where: dict[Exchange, ReplicaState] = {}

    def enter(self, state: ReplicaState, exchange: Exchange) -> None:
        """Let a request wait for the model of `state`.

        Raises:
            UnavailableError: Too many wait already.
            InvalidArgumentError: Its timeout is no number.
        """
        if len(self._where) >= self._limit:
            msg = f"{self._limit} requests wait for models to be loaded already"
            raise UnavailableError(msg)
        own_s = timeout_s(exchange.headers)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(min(own_s, self._limit_s), self._expire, exchange, own_s)
        self._rooms.setdefault(id(state), {})[exchange] = timer
        self._where[exchange] = state
        state.waiting += 1

    def leave(self, exchange: Exchange) -> ReplicaState | None:
        """Forget a request; the state of the model that it waited for, None if it does not wait."""
        state = self._where.pop(exchange, None)
        if state is not None:
            room = self._rooms[id(state)]
            room.pop(exchange).cancel()
            state.waiting -= 1
            if not room:
                del self._rooms[id(state)]
        return state

    def take(self, state: ReplicaState) -> list[Exchange]:
        """Everybody who waits for the model of `state`, in their order; they wait no more."""
        found = list(self._rooms.get(id(state), ()))
        for exchange in found:
            self.leave(exchange)
        return found

    def _expire(self, exchange: Exchange, own_s: float) -> None:
        state = self.leave(exchange)
        assert state is not None, "whoever leaves takes the timer along"
        if own_s <= self._limit_s and own_s != math.inf:
            msg = f"the deadline passed while model '{state.name}' was loaded"
            self._refuse(state, exchange, DeadlineExceededError(msg))
        else:
            msg = f"model '{state.name}' was not loaded within {self._limit_s:g} s"
            self._refuse(state, exchange, UnavailableError(msg))
