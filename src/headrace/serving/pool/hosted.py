"""Models that a pool hosts, selection of models to unload, and requests that wait for a load."""

import asyncio
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from headrace.core import (
    DeadlineExceededError,
    FailedPreconditionError,
    HeadraceError,
    ReplicaSettings,
    UnavailableError,
)
from headrace.observe import ModelStatistics
from headrace.serving.application import Application
from headrace.serving.exchange import Exchange
from headrace.serving.routing import timeout_s
from headrace.serving.state import ReplicaState
from headrace.serving.telemetry.report import HostedReport

Key = tuple[str, str]
"""A model's name and version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A model that occupies memory."""

    key: Key
    size_bytes: int
    used_at: float
    is_busy: bool
    """Whether it has requests, is being loaded, or is being unloaded."""


def make_room(
    residents: Iterable[Resident], *, size_bytes: int, memory_bytes: int, max_loaded: int
) -> list[Key] | None:
    """Return the models to unload so that a model of `size_bytes` fits.

    None if that is not possible now: other models are busy, and may be idle later.

    Raises:
        FailedPreconditionError: It is larger than `memory_bytes`, so it never fits.
    """
    if size_bytes > memory_bytes:
        msg = f"it needs {size_bytes} bytes, but all models together are limited to {memory_bytes}"
        raise FailedPreconditionError(msg)
    there = list(residents)
    over_bytes = sum(resident.size_bytes for resident in there) + size_bytes - memory_bytes
    over_count = len(there) + 1 - max_loaded
    idle = sorted((r for r in there if not r.is_busy), key=lambda resident: resident.used_at)
    leaving: list[Key] = []
    for resident in idle:
        if over_bytes <= 0 and over_count <= 0:
            break
        over_bytes -= resident.size_bytes
        over_count -= 1
        leaving.append(resident.key)
    return leaving if over_bytes <= 0 and over_count <= 0 else None


class HostedPhase(StrEnum):
    """Phase of a hosted model."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    FAILED = "failed"
    """The last load failed; requests are refused until the next attempt is allowed."""


class HostedModel:
    """A declared model; the pool moves it between its phases.

    `size_bytes`: its memory when loaded, None before its load check. `has_room`: memory is reserved
    for it. `used_at`: time of its last request. `retry_at`: when a failed load may be tried again.
    `is_retired`: it is no longer declared, or its declaration changed.
    """

    def __init__(self, settings: ReplicaSettings, *, replica: str) -> None:
        self.settings = settings
        # One thread per run: a session then has no threads, and as many models as have requests run
        # concurrently.
        own = msgspec.structs.replace(settings, intra_op_threads=1, replica=replica)
        statistics = ModelStatistics(name=settings.model_name, version=settings.model_version)
        self.state = ReplicaState(settings=own, statistics=statistics, loads_on_demand=True)
        self.application = Application(self.state, has_repository=False)
        self.phase = HostedPhase.UNLOADED
        self.size_bytes: int | None = None
        self.has_room = False
        self.used_at = 0.0
        self.loads = self.unloads = self.failures = 0
        self.retry_at = 0.0
        self.reason = ""
        self.is_retired = False

    @property
    def key(self) -> Key:
        """Return its name and version."""
        return self.state.name, self.state.version

    @property
    def is_used(self) -> bool:
        """Whether it has ever received a request."""
        statistics = self.state.statistics
        return bool(statistics.success.count or statistics.fail.count or self.loads)

    @property
    def in_flight(self) -> int:
        """Return the number of its requests in the queue and in runs."""
        served = self.state.served
        return served.engine.in_flight if served else 0

    def resident(self) -> Resident:
        """Return its memory use for the selection of models to unload."""
        is_busy = (
            self.phase is not HostedPhase.LOADED
            or self.is_retired
            or self.in_flight > 0
            or self.state.waiting > 0
            or (self.state.served is not None and self.state.served.engine.is_running)
        )
        return Resident(
            key=self.key,
            size_bytes=self.size_bytes or 0,
            used_at=self.used_at,
            is_busy=is_busy,
        )

    def report(self) -> HostedReport:
        """Return its state as a report."""
        name, version = self.key
        return HostedReport(
            model=name,
            version=version,
            phase=self.phase.value,
            size_bytes=self.size_bytes or 0,
            in_flight=self.in_flight,
            waiting=self.state.waiting,
            loads=self.loads,
            unloads=self.unloads,
            reason=self.reason,
            device=self.state.served.loaded.device if self.state.served else None,
        )


Refuse = Callable[[ReplicaState, Exchange, HeadraceError], None]


class WaitingRoom:
    """Waiting requests by model. Belongs to the event loop's thread.

    Args:
        limit: Largest number of waiting requests, over all models.
        limit_s: Longest wait of a request.
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
            UnavailableError: Too many requests are waiting.
            InvalidArgumentError: Its timeout is not a number.
        """
        if len(self._where) >= self._limit:
            msg = f"{self._limit} requests already wait for models to be loaded"
            raise UnavailableError(msg)
        own_s = timeout_s(exchange.headers)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(min(own_s, self._limit_s), self._expire, exchange, own_s)
        self._rooms.setdefault(id(state), {})[exchange] = timer
        self._where[exchange] = state
        state.waiting += 1

    def leave(self, exchange: Exchange) -> ReplicaState | None:
        """Remove a request; return the state of its model, or None if it was not waiting."""
        state = self._where.pop(exchange, None)
        if state is not None:
            room = self._rooms[id(state)]
            room.pop(exchange).cancel()
            state.waiting -= 1
            if not room:
                del self._rooms[id(state)]
        return state

    def take(self, state: ReplicaState) -> list[Exchange]:
        """Remove and return all requests that wait for the model of `state`, in order."""
        waiting = list(self._rooms.get(id(state), ()))
        for exchange in waiting:
            self.leave(exchange)
        return waiting

    def _expire(self, exchange: Exchange, own_s: float) -> None:
        state = self.leave(exchange)
        assert state is not None, "the last one to leave takes the timer along"
        if own_s <= self._limit_s and own_s != math.inf:
            msg = f"the deadline passed while model '{state.name}' was loaded"
            self._refuse(state, exchange, DeadlineExceededError(msg))
        else:
            msg = f"model '{state.name}' was not loaded within {self._limit_s:g} s"
            self._refuse(state, exchange, UnavailableError(msg))
