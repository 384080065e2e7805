"""Pollers of replicas and of the gateway, with their histories in memory and in a file."""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

import msgspec

from headrace.control.base.faults import LOOP, Faults
from headrace.control.model.desired import DesiredEndpoint
from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.reconcile.reports import ArmReports
from headrace.core import Clock, HeadraceError
from headrace.core.fetch import ask
from headrace.core.files import write_atomic
from headrace.gateway import GatewayStatistics
from headrace.monitor import LoadHistory, LoadReading, LoadTotals, RequestHistory
from headrace.monitor.series import Tracks
from headrace.serving.telemetry.report import ModelLoad

_AT_MOST_S: Final = 30.0
_SKEW_S: Final = 60.0
_FIRST_SAVE: Final = 1 / 6
"""Fraction of `save_every_s` after which the file is first written."""
_BYTES_PER_S: Final = 200_000
"""Bytes of history for which the next write is delayed by 1 s."""
_MAX_CONCURRENT_PARTS: Final = 20


_HistoryT = TypeVar("_HistoryT", bound=Tracks[Any])


@dataclass(slots=True, kw_only=True)
class ReplicaPoller(ABC, Generic[_HistoryT]):
    """Keeps `history` up to date while `run` is awaited."""

    WHAT: ClassVar[str]
    SHARE: ClassVar[float]

    history: _HistoryT
    clock: Clock
    path: Path | None = None
    """File of the history; None for none. It is written every `save_every_s`, the first time
    sooner, and less often while it is large.
    """
    save_every_s: float = 60.0
    cpu_s: Callable[[], float] = time.thread_time
    """Returns this thread's CPU time in seconds: polls take at most one part in `SHARE` of a core,
    and become less frequent if a poll takes long.
    """
    faults: Faults = field(default_factory=Faults)
    _save_at: float = 0.0

    @abstractmethod
    async def poll(self) -> None:
        """Poll once."""

    @property
    def every_s(self) -> float:
        """Interval between polls in seconds, if the CPU limit allows it."""
        return 1.0

    def load(self) -> None:
        """Load the history of an earlier control plane; blocking, call it before `run`."""
        try:
            if self.path is not None:
                self.history.unpack(self.path.read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            _LOG.warning("cannot read %s", self.WHAT, extra={"error": str(error)})
        self.check_clock(self.clock.now())

    def check_clock(self, now: float) -> None:
        """Clear the history if the clock was set back: future entries would hide new ones."""
        if (self.history.looked_at or 0.0) > now + _SKEW_S:
            _LOG.warning("the clock was set back: %s restarts", self.WHAT)
            self.history.clear()

    async def run(self) -> None:
        """Poll until cancelled, then write the history."""
        self._save_at = self.clock.monotonic() + self.save_every_s * _FIRST_SAVE
        try:
            while True:
                started, began_cpu_s = self.clock.monotonic(), self.cpu_s()
                with self.faults.contain(LOOP, self.WHAT):
                    await self.poll()
                    await self.save_if_due()
                pause_s = max(self.every_s, (self.cpu_s() - began_cpu_s) * self.SHARE)
                due = started + min(pause_s, _AT_MOST_S)
                await asyncio.sleep(max(due - self.clock.monotonic(), 0.0))
        finally:
            self._write(self.history.pack())

    async def save_if_due(self) -> None:
        """Write the file if it is due."""
        now = self.clock.monotonic()
        if self.path is None or now < self._save_at:
            return
        history = self.history
        self._save_at = now + self.save_every_s + history.size_bytes / _BYTES_PER_S
        parts: list[bytes] = []
        for part in history.parts():
            parts.append(part)
            if len(parts) % _MAX_CONCURRENT_PARTS == 0:
                await asyncio.sleep(0)  # yield to other tasks
        await asyncio.to_thread(self._write, history.join(parts))

    def _write(self, data: bytes) -> None:
        """Replace the file; a full disk does not stop the poller."""
        if self.path is None:
            return
        try:
            write_atomic(self.path, data, durable=False)
        except OSError as error:
            _LOG.warning("cannot write %s", self.WHAT, extra={"error": str(error)})


_LOG: Final = logging.getLogger("headrace.control")
_TIMEOUT_S: Final = 1.0
_MAX_CONCURRENT: Final = 16
_YIELD_EVERY: Final = 20
Ask = Callable[[str], Awaitable[list[ModelLoad] | None]]
"""Returns the loads of the models of the process at an address; None without an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedArm:
    """An arm of an endpoint with the ready processes that run it."""

    endpoint: str
    key: str
    model: str
    version: str
    revision_id: str
    copies: tuple[Replica, ...]
    is_first: bool
    """Whether it is the first of its endpoint's arms."""


def loaded_arms(
    endpoints: Iterable[DesiredEndpoint],
    replicas: Iterable[Replica],
    hosted: Mapping[str, Collection[str]],
) -> Iterator[LoadedArm]:
    """Yield all arms that our processes run; upstreams do not report their load.

    Args:
        hosted: Revisions that each replica of a pool serves, by its name. There a baseline and the
            version that it is compared with are one model, which is counted once.
    """
    running: dict[str, list[Replica]] = defaultdict(list)
    for replica in replicas:
        if replica.phase is ReplicaPhase.READY:
            for revision_id in hosted.get(replica.name) or (replica.revision_id,):
                running[revision_id].append(replica)
    for endpoint in endpoints:
        is_first, pooled = True, set[str]()
        for arm in sorted(endpoint.arms, key=lambda arm: bool(arm.role)):
            revision = arm.revision
            if revision.upstream is not None or revision.version in pooled:
                continue
            if revision.pool:
                pooled.add(revision.version)
            yield LoadedArm(
                endpoint=endpoint.name,
                key=arm.key,
                model=revision.settings.model_name,
                version=revision.version,
                revision_id=revision.id,
                copies=tuple(running.get(revision.id, ())),
                is_first=is_first,
            )
            is_first = False


async def fetch_load(address: str) -> list[ModelLoad] | None:
    """Return the loads of the models of the process at `address`; None without an answer."""
    decode = msgspec.json.Decoder(list[ModelLoad]).decode
    return await ask(address, "/internal/load", decode, timeout_s=_TIMEOUT_S)


@dataclass(slots=True, kw_only=True)
class LoadWatch(ReplicaPoller[LoadHistory]):
    """Poller of replicas' load."""

    WHAT: ClassVar = "the history of load"
    SHARE: ClassVar = 40.0

    arms: Callable[[], Iterable[LoadedArm]]
    """Returns all arms. `known` returns the names of all processes."""
    running: Callable[[], Collection[str]]
    batching: Callable[[list[ArmReports]], Awaitable[None]]
    """Receives the replicas' reports of row independence."""
    ask: Ask = fetch_load
    history: LoadHistory = field(default_factory=LoadHistory)
    _asking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_CONCURRENT))

    async def poll(self) -> None:
        """Poll once."""
        arms = list(self.arms())
        addresses = {copy.name: copy.address for arm in arms for copy in arm.copies}
        polled_at = self.clock.now()

        async def of(address: str) -> list[ModelLoad] | None:
            async with self._asking:
                return await self.ask(address)

        answers = await asyncio.gather(*map(of, addresses.values()))
        by_model = {
            (name, load.model, load.version): load
            for name, answer in zip(addresses, answers, strict=True)
            for load in answer or ()
        }
        self.check_clock(polled_at)
        self.history.advance(polled_at)
        self.faults.keep_only("load history", {arm.endpoint for arm in arms})
        names = self.running()
        reports = []
        for number, arm in enumerate(arms, start=1):
            loads = {
                copy.name: load
                for copy in arm.copies
                if (load := by_model.get((copy.name, arm.model, arm.version))) is not None
            }
            reports.append(
                ArmReports(
                    endpoint=arm.endpoint,
                    key=arm.key,
                    version=arm.version,
                    revision_id=arm.revision_id,
                    reports=[load.batching for load in loads.values() if load.batching is not None],
                )
            )
            reading = LoadReading(
                ready=len(arm.copies),
                totals={name: _totals(load) for name, load in loads.items()},
                process_names=names,
                is_first=arm.is_first,
            )
            with self.faults.contain("load history", arm.endpoint):
                self.history.add(polled_at, arm.endpoint, arm.key, reading)
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)  # yield to other tasks
        with self.faults.contain("load history", "batching"):
            await self.batching(reports)


def _totals(load: ModelLoad) -> LoadTotals:
    return LoadTotals(
        epoch=f"{load.since}",
        age_s=load.at - load.since,
        batches=load.batches,
        rows=load.rows,
        waited=load.waited,
        queue_s=load.queue_s,
        in_flight_s=load.in_flight_s,
    )


_BLIND_S: Final = 0.25
_MAX_CONCURRENT_READS: Final = 20


class CountsSource(Protocol):
    """Source of request counts by endpoint and version."""

    async def read_endpoints(self, endpoints: Collection[str]) -> GatewayStatistics:
        """Return the totals of all requests to these endpoints.

        Raises:
            HeadraceError: The gateway does not answer.
        """


@dataclass(slots=True, kw_only=True)
class GatewayPoller(ReplicaPoller[RequestHistory]):
    """Poller of the gateway's request counts."""

    WHAT: ClassVar = "the history"
    SHARE: ClassVar = 20.0

    gateway: CountsSource
    names: Callable[[], Collection[str]]
    """Returns the names of all endpoints."""
    history: RequestHistory = field(default_factory=RequestHistory)
    _is_blind: bool = True  # no log while the gateway has not started yet

    @property
    def every_s(self) -> float:
        """Interval between polls in seconds; shorter while the gateway does not answer."""
        return _BLIND_S if self._is_blind else 1.0

    async def poll(self) -> None:
        """Poll once."""
        polled_at = self.clock.now()
        try:
            reading = await self.gateway.read_endpoints(self.names())
        except HeadraceError as error:
            if not self._is_blind:
                _LOG.warning("cannot read the gateway's counts", extra={"error": str(error)})
            self._is_blind = True
            return
        self._is_blind = False
        self.check_clock(polled_at)
        self.history.advance(polled_at)
        self.faults.keep_only("history", {endpoint for endpoint, _ in reading.arms})
        for number, ((endpoint, version), totals) in enumerate(reading.arms.items(), start=1):
            with self.faults.contain("history", endpoint):
                self.history.add(polled_at, endpoint, version, totals, epoch=reading.epoch)
            if number % _MAX_CONCURRENT_READS == 0:
                await asyncio.sleep(0)  # yield to other tasks
