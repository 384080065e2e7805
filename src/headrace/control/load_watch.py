"""How busy are replicas? Asks each process about once a second, and keeps a day of its answers.

What it asks for are running totals: a look that comes late, or fails, loses nothing but detail.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

import msgspec

from headrace.control.desired import DesiredEndpoint
from headrace.control.looking import Looking
from headrace.control.observed import Phase, Replica
from headrace.control.row_watch import ArmReports
from headrace.core import HeadraceError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.fetch import fetch
from headrace.monitor import LoadHistory, LoadReading, LoadTotals
from headrace.serving.report import ModelLoad

_LOG: Final = logging.getLogger("headrace.control")
_TIMEOUT_S: Final = 1.0
_AT_ONCE: Final = 16
_YIELD_EVERY: Final = 20
_HTTP_OK: Final = 200

Ask = Callable[[str], Awaitable[list[ModelLoad] | None]]
"""What the process at an address says of its models; None if it does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedArm:
    """An arm of an endpoint, and the ready processes that run it.

    `is_first`: of its endpoint's arms.
    """

    endpoint: str
    key: str
    model: str
    version: str
    revision_id: str
    copies: tuple[Replica, ...]
    is_first: bool


def loaded_arms(
    endpoints: Iterable[DesiredEndpoint],
    replicas: Iterable[Replica],
    hosted: Mapping[str, Collection[str]],
) -> Iterator[LoadedArm]:
    """All arms that processes of ours run; someone else's servers say nothing of themselves.

    Args:
        hosted: Which revisions each copy of a pool answers for, by its name. A baseline is one
            model with what it is measured against there, and is not counted again.
    """
    running: dict[str, list[Replica]] = defaultdict(list)
    for replica in replicas:
        if replica.phase is Phase.READY:
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


async def ask_load(address: str) -> list[ModelLoad] | None:
    """What the process at `address` says of its models; None if it does not answer."""
    try:
        answer = await fetch(address, "/internal/load", timeout_s=_TIMEOUT_S)
        if answer.status != _HTTP_OK:
            return None  # a replica of an older version, which knows no such route
        return msgspec.json.decode(answer.body, type=list[ModelLoad])
    except (HeadraceError, *UNDECODABLE) as error:
        extra = {"address": address, "error": str(error)}
        _LOG.debug("a replica does not say how busy it is", extra=extra)
        return None


@dataclass(slots=True, kw_only=True)
class LoadWatch(Looking[LoadHistory]):
    """Asks replicas. `arms`: those that there are. `known`: the names of all processes.

    `batching`: takes what they say of row independence.
    """

    WHAT: ClassVar = "the history of load"
    SHARE: ClassVar = 40.0

    arms: Callable[[], Iterable[LoadedArm]]
    known: Callable[[], Collection[str]]
    batching: Callable[[list[ArmReports]], Awaitable[None]]
    ask: Ask = ask_load
    history: LoadHistory = field(default_factory=LoadHistory)
    _asking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    async def look(self) -> None:
        """Look once."""
        arms = list(self.arms())
        addresses = {copy.name: copy.address for arm in arms for copy in arm.copies}
        at = self.clock.now()
        answers = await asyncio.gather(*map(self._ask, addresses.values()))
        said = {
            name: {(one.model, one.version): one for one in answer}
            for name, answer in zip(addresses, answers, strict=True)
            if answer is not None
        }
        self.check_clock(at)
        self.history.look(at)
        self.faults.keep_only("load history", {arm.endpoint for arm in arms})
        known = self.known()
        for number, arm in enumerate(arms, start=1):
            with self.faults.contain("load history", arm.endpoint):
                self.history.add(at, arm.endpoint, arm.key, _reading(arm, said, known))
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)  # whoever asks for something does not wait for all of it
        with self.faults.contain("load history", "batching"):
            await self.batching([_batching(arm, said) for arm in arms])

    async def _ask(self, address: str) -> list[ModelLoad] | None:
        async with self._asking:
            return await self.ask(address)


def _reading(
    arm: LoadedArm,
    said: Mapping[str, Mapping[tuple[str, str], ModelLoad]],
    known: Collection[str],
) -> LoadReading:
    """What the copies of an arm said of it."""
    found = {
        copy.name: one
        for copy in arm.copies
        if (one := said.get(copy.name, {}).get((arm.model, arm.version))) is not None
    }
    return LoadReading(
        ready=len(arm.copies),
        said={name: _totals(one) for name, one in found.items()},
        known=known,
        is_first=arm.is_first,
    )


def _batching(
    arm: LoadedArm, said: Mapping[str, Mapping[tuple[str, str], ModelLoad]]
) -> ArmReports:
    loads = (said.get(copy.name, {}).get((arm.model, arm.version)) for copy in arm.copies)
    return ArmReports(
        endpoint=arm.endpoint,
        key=arm.key,
        version=arm.version,
        revision_id=arm.revision_id,
        reports=[load.batching for load in loads if load is not None and load.batching is not None],
    )


def _totals(one: ModelLoad) -> LoadTotals:
    return LoadTotals(
        epoch=f"{one.since}",
        age_s=one.at - one.since,
        batches=one.batches,
        rows=one.rows,
        waited=one.waited,
        queue_s=one.queue_s,
        in_flight_s=one.in_flight_s,
    )
