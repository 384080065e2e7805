"""Gateway agent: follows the control plane, reports what Envoy counts, and goes on without it."""

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final, Protocol

from headrace import __version__
from headrace.control.agents.messages import (
    LONGEST_WAIT_S,
    PROTOCOL,
    Active,
    AgentInstructions,
    AgentStatus,
    Arm,
    Bundle,
    EnvoyCounts,
    Poll,
    UpstreamState,
)
from headrace.control.base.journal import wait_for
from headrace.control.gateway.activator import Activator, HoldLimits
from headrace.control.gateway.supervisor import EnvoySupervisor
from headrace.core import Clock, HeadraceError
from headrace.core.backoff import Backoff
from headrace.gateway import Handshakes
from headrace.gateway_agent.applier import Applier

_LOG: Final = logging.getLogger("headrace.gateway")
_REPORT_S: Final = 1.0
_AWAY: Final = Backoff(first_s=0.1, limit_s=2.0)
"""While the control plane does not answer: short, because news wait there."""
_NO_NEWS_S: Final = 0.05
"""Who answers at once that there is nothing new is not asked without a pause."""


async def read_counts(keeper: EnvoySupervisor, bundle: Bundle) -> EnvoyCounts:
    """One look at everything.

    Raises:
        HeadraceError: Envoy does not answer.
    """
    names = {route.name for route in bundle.routes}
    compared = {route.name for route in bundle.routes if route.split_id}
    lead_out = any(arm.upstream is not None for route in bundle.routes for arm in route.arms)
    every = await keeper.read_endpoints(names)
    splits = await keeper.read_arms(compared) if compared else None
    active = await keeper.in_flight()
    shaken = await keeper.handshakes() if lead_out else {}
    healthy = {} if splits is None else splits.healthy
    return EnvoyCounts(
        epoch=every.epoch,
        every=tuple(Arm.of(arm, totals) for arm, totals in every.arms.items()),
        # Of another process than the rest: then it counts from the next look on.
        splits=tuple(Arm.of(arm, totals) for arm, totals in splits.arms.items())
        if splits is not None and splits.epoch == every.epoch
        else (),
        active=tuple(
            Active(endpoint=name, key=key, requests=count) for (name, key), count in active.items()
        ),
        upstreams=tuple(
            UpstreamState(
                endpoint=name,
                key=key,
                handshakes=shaken.get((name, key), Handshakes()),
                healthy=healthy.get((name, key)),
            )
            for name, key in sorted(shaken.keys() | healthy.keys())
        ),
    )


@dataclass(slots=True, kw_only=True)
class RequestHold:
    """Holds requests for endpoints without replicas: they need not cross to the control plane.

    `poke`: called when the control plane should know that some wait.
    """

    in_force: Callable[[], Bundle | None]
    poke: Callable[[], None]
    activator: Activator = field(init=False)
    _woken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.activator = Activator(limits_of=self._limits_of, wake=self._wake)

    def _limits_of(self, endpoint: str) -> HoldLimits | None:
        bundle = self.in_force()
        return None if bundle is None else bundle.holds.get(endpoint)

    def _wake(self, endpoint: str) -> None:
        self._woken.add(endpoint)
        self.poke()

    def held(self) -> dict[str, int]:
        """How many requests wait, by endpoint, with those that were too large to wait."""
        waiting = self.activator.held
        return {name: waiting.get(name, 1) for name in {*waiting, *self._woken}}

    def told(self) -> None:
        """The control plane knows."""
        self._woken.clear()

    def release(self) -> None:
        """Let go who need not wait any more."""
        bundle = self.in_force()
        for name in list(self.activator.held):
            if bundle is None or name not in bundle.holds:
                self.activator.release(name)


class Control(Protocol):
    """The control plane, as `ControlClient` reaches it. HeadraceError where it does not."""

    async def poll(self, poll: Poll) -> AgentInstructions:
        """What is new."""

    async def report(self, report: AgentStatus) -> None:
        """Tell how this gateway is."""


@dataclass(slots=True, kw_only=True)
class GatewayAgent:
    """Runs until cancelled. `heard_at`: when the control plane answered last; None for never.

    `instance`: tells this run of the agent from others of its name.
    """

    name: str
    applier: Applier
    client: Control
    clock: Clock
    rng: Random
    url: str = ""
    heard_at: float | None = None
    away: str = ""
    """Why the control plane cannot be followed; empty if it can."""
    instance: str = field(default_factory=lambda: secrets.token_hex(8))
    answers: int = 0
    failures: int = 0
    holding: RequestHold = field(init=False)
    _asked: int = 0
    _is_down: bool = False
    _poked: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.holding = RequestHold(in_force=lambda: self.applier.in_force, poke=self._poked.set)

    async def run(self) -> None:
        """Serve from disk at once, then follow the control plane until cancelled."""
        async with asyncio.TaskGroup() as group:
            self.applier.group = group
            group.create_task(self._follow())
            group.create_task(self._report())

    async def _restore(self, *, tries: int) -> None:
        """Come up with what was in force last, if Envoy starts with it."""
        for failures in range(1, tries + 1):
            try:
                await self.applier.restore()
            except HeadraceError as error:
                self._is_down = True
                self.applier.problem = str(error)
                _LOG.error("cannot serve what was in force last", extra={"error": str(error)})
                if failures < tries:
                    await asyncio.sleep(_AWAY.jittered_s(failures, chance=self.rng.random()))
            else:
                self._is_down, self.applier.problem = False, ""
                return

    async def _follow(self) -> None:
        await self._restore(tries=2)  # then the control plane may know better
        failures = 0
        while True:
            try:
                told = await self.client.poll(self._question())
            except HeadraceError as error:
                self._note_away(str(error))
                if self._is_down and self.applier.keeper is None:
                    await self._restore(tries=1)  # nobody knows better; a port may be free by now
            else:
                self._note_heard()
                if await self._take(told):
                    failures = 0
                    continue
            failures += 1
            await asyncio.sleep(_AWAY.jittered_s(failures, chance=self.rng.random()))

    def _question(self) -> Poll:
        bundle = self.applier.in_force
        return Poll(
            protocol=PROTOCOL,
            agent=__version__,
            held="" if bundle is None else bundle.version,
            refused=self.applier.refused,
            request_number=self._asked,
            wait_s=LONGEST_WAIT_S,
        )

    async def _take(self, told: AgentInstructions) -> bool:
        """Do as told; whether that was possible."""
        if told.bundle is None and told.ask == self._asked:
            await asyncio.sleep(_NO_NEWS_S)
        if told.ask != self._asked:
            self._asked = told.ask
            self._poked.set()
        if told.bundle is None:
            await self.applier.keep_again()
            return True
        before = self.applier.problem
        try:
            await self.applier.apply(told.bundle)
        except HeadraceError as error:
            self.applier.problem = str(error)
            if str(error) != before:
                extra = {"version": told.bundle.version, "error": str(error)}
                _LOG.error("cannot bring a version into force", extra=extra)
            return False
        finally:
            self.holding.release()
            self._poked.set()
        return True

    def _note_heard(self) -> None:
        if self.away:
            _LOG.info("the control plane answers")
        self.heard_at, self.away = self.clock.monotonic(), ""
        self.answers += 1

    def _note_away(self, why: str) -> None:
        self.failures += 1
        if why != self.away:
            extra = {"error": why}
            _LOG.warning("cannot follow the control plane; serving what is in force", extra=extra)
        self.away = why

    async def _report(self) -> None:
        failures = 0
        while True:
            await wait_for(self._poked, _REPORT_S)
            self._poked.clear()
            self.holding.release()
            try:
                await self.client.report(await self._state())
                self.holding.told()
                self._note_heard()
                failures = 0
            except HeadraceError as error:
                failures += 1
                self._note_away(str(error))
                await asyncio.sleep(_AWAY.jittered_s(failures, chance=self.rng.random()))

    async def _state(self) -> AgentStatus:
        asked = self._asked  # what is counted from here on is newer than the question
        applier = self.applier
        bundle, keeper = applier.in_force, applier.keeper
        counts = await self._counts()
        return AgentStatus(
            protocol=PROTOCOL,
            agent=__version__,
            name=self.name,
            instance=self.instance,
            ask=asked,
            in_force="" if bundle is None else bundle.version,
            refused=applier.refused,
            reason=applier.reason,
            ready=applier.is_ready,
            problem=applier.problem or ("" if keeper is None else keeper.reason),
            restarts=0 if keeper is None else keeper.restarts,
            url=self.url,
            held=self.holding.held(),
            counts=counts,
        )

    async def _counts(self) -> EnvoyCounts | None:
        bundle, keeper = self.applier.in_force, self.applier.keeper
        if bundle is None or keeper is None:
            return None
        try:
            return await read_counts(keeper, bundle)
        except HeadraceError:
            return None  # Envoy is being started again, which the report says
