"""How busy are replicas? Asks each process about once a second, and keeps a day of its answers.

What it asks for are running totals: a look that comes late, or fails, loses nothing but detail.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.desired import DesiredEndpoint
from headrace.control.fetch import fetch
from headrace.control.kept_file import KeptFile
from headrace.control.looking import keep_looking
from headrace.control.observed import Phase, Replica
from headrace.core import Clock, HeadraceError
from headrace.monitor import LoadHistory, LoadReading, LoadTotals
from headrace.serving.report import ModelLoad

_LOG: Final = logging.getLogger("headrace.control")
_EVERY_S: Final = 1.0
_SHARE: Final = 40.0  # looks take a fortieth of a core at most
_TIMEOUT_S: Final = 1.0
_AT_ONCE: Final = 16
_YIELD_EVERY: Final = 20
_SKEW_S: Final = 60.0
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
    except (HeadraceError, msgspec.MsgspecError) as error:
        extra = {"address": address, "error": str(error)}
        _LOG.debug("a replica does not say how busy it is", extra=extra)
        return None


@dataclass(slots=True, kw_only=True)
class LoadWatch:
    """Keeps `history` up to date for as long as `run` is awaited.

    `arms`: those that there are. `known`: the names of all processes. `path`: the history's file.
    `cpu_s`: as of `Recorder`.
    """

    arms: Callable[[], Iterable[LoadedArm]]
    known: Callable[[], Collection[str]]
    clock: Clock
    path: Path | None = None
    ask: Ask = ask_load
    save_every_s: float = 60.0
    cpu_s: Callable[[], float] = time.thread_time
    history: LoadHistory = field(default_factory=LoadHistory)
    _file: KeptFile = field(init=False)
    _asking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    def __post_init__(self) -> None:
        """Know where to keep it."""
        self._file = KeptFile(
            path=self.path, what="the history of load", clock=self.clock, every_s=self.save_every_s
        )

    def load(self) -> None:
        """Take up what an earlier control plane kept, blocking; before `run`."""
        kept = LoadHistory()
        if self._file.load(kept):
            self.history = kept
        self._check_clock(self.clock.now())

    async def run(self) -> None:
        """Look until cancelled, then keep what was seen."""
        await keep_looking(
            self.look,
            history=self.history,
            file=self._file,
            cpu_s=self.cpu_s,
            share=_SHARE,
            every_s=lambda: _EVERY_S,
        )

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
        self._check_clock(at)
        self.history.look(at)
        known = self.known()
        for number, arm in enumerate(arms, start=1):
            self.history.add(at, arm.endpoint, arm.key, _reading(arm, said, known))
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)  # whoever asks for something does not wait for all of it

    async def _ask(self, address: str) -> list[ModelLoad] | None:
        async with self._asking:
            return await self.ask(address)

    def _check_clock(self, now: float) -> None:
        """Begin anew if the clock was set back: what is of the future would hide what comes."""
        if (self.history.looked_at or 0.0) > now + _SKEW_S:
            _LOG.warning("the clock was set back: the history of load begins anew")
            self.history.clear()


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
