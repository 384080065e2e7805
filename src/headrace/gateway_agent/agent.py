"""Gateway agent: follows the control plane, reports Envoy's counts, and works without it."""

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
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
_LAST_REPORT_S: Final = 2.0
_AWAY: Final = Backoff(first_s=0.1, limit_s=2.0)
"""Delay while the control plane does not respond: short, because changes wait there."""
_NO_NEWS_S: Final = 0.05
"""Minimum delay after an immediate response without changes."""


async def read_counts(supervisor: EnvoySupervisor, bundle: Bundle) -> EnvoyCounts:
    """Read all of Envoy's counts once.

    Raises:
        HeadraceError: Envoy does not answer.
    """
    names = {route.name for route in bundle.routes}
    compared = {route.name for route in bundle.routes if route.split_id}
    lead_out = any(arm.upstream is not None for route in bundle.routes for arm in route.arms)
    every = await supervisor.read_endpoints(names)
    splits = await supervisor.read_arms(compared) if compared else None
    active = await supervisor.in_flight()
    handshakes = await supervisor.handshakes() if lead_out else {}
    tokens = await supervisor.token_statistics()
    # Read by another query than the rest: Envoy may have been started again meanwhile.
    is_same = tokens.epoch == every.epoch
    healthy = {} if splits is None else splits.healthy
    return EnvoyCounts(
        epoch=every.epoch,
        every=tuple(Arm.of(arm, totals) for arm, totals in every.arms.items()),
        # Read from another process than the rest: it counts from the next reading on.
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
                handshakes=handshakes.get((name, key), Handshakes()),
                healthy=healthy.get((name, key)),
            )
            for name, key in sorted(handshakes.keys() | healthy.keys())
        ),
        tokens=tokens.counts if is_same else (),
        streams=tuple(Arm.of(arm, totals) for arm, totals in tokens.streams.items())
        if is_same
        else (),
    )


@dataclass(slots=True, kw_only=True)
class RequestHold:
    """Requests held on this host for endpoints without replicas."""

    in_force: Callable[[], Bundle | None]
    notify: Callable[[], None]
    """Called when the control plane should learn of waiting requests."""
    activator: Activator = field(init=False)
    _woken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.activator = Activator(limits_of=self._limits_of, wake=self._wake)

    def _limits_of(self, endpoint: str) -> HoldLimits | None:
        bundle = self.in_force()
        return None if bundle is None else bundle.holds.get(endpoint)

    def _wake(self, endpoint: str) -> None:
        self._woken.add(endpoint)
        self.notify()

    def held(self) -> dict[str, int]:
        """Return the waiting requests by endpoint, including those that were too large to wait."""
        waiting = self.activator.held
        return {name: waiting.get(name, 1) for name in {*waiting, *self._woken}}

    def mark_reported(self) -> None:
        """Clear what has been reported to the control plane."""
        self._woken.clear()

    def release(self) -> None:
        """Release requests that no longer need to wait."""
        bundle = self.in_force()
        for name in list(self.activator.held):
            if bundle is None or name not in bundle.holds:
                self.activator.release(name)


class Control(Protocol):
    """Control plane, as `ControlClient` reaches it; HeadraceError if it is unreachable."""

    async def poll(self, poll: Poll) -> AgentInstructions:
        """Return new instructions, waiting for them up to `poll.wait_s`."""

    async def report(self, report: AgentStatus) -> None:
        """Report the state of this gateway."""


@dataclass(slots=True, kw_only=True)
class GatewayAgent:
    """Gateway agent: follows the control plane and reports to it until it is cancelled."""

    name: str
    applier: Applier
    client: Control
    clock: Clock
    rng: Random
    url: str = ""
    last_contact_at: float | None = None
    """Monotonic time of the last response of the control plane; None if there was none."""
    disconnect_reason: str = ""
    """Reason why the control plane cannot be reached; empty if it can."""
    instance: str = field(default_factory=lambda: secrets.token_hex(8))
    """Identifies this run among agents of the same name."""
    answers: int = 0
    failures: int = 0
    holding: RequestHold = field(init=False)
    _asked: int = 0
    _report_due: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.holding = RequestHold(
            in_force=lambda: self.applier.in_force, notify=self._report_due.set
        )

    async def run(self) -> None:
        """Serve from disk at once, then follow the control plane until cancelled."""
        async with asyncio.TaskGroup() as group:
            self.applier.group = group
            group.create_task(self._follow())
            group.create_task(self._report())

    async def _restore(self, *, tries: int, may_fall_back: bool = False) -> None:
        """Serve the stored bundle, if Envoy starts with it."""
        for failures in range(1, tries + 1):
            try:
                await self.applier.restore(may_fall_back=may_fall_back)
            except HeadraceError as error:
                self.applier.problem = str(error)
                _LOG.error("cannot serve the stored configuration", extra={"error": str(error)})
                if failures < tries:
                    await asyncio.sleep(_AWAY.jittered_s(failures, chance=self.rng.random()))
            else:
                if self.applier.in_force is not None:
                    self.applier.problem = ""
                return

    async def _follow(self) -> None:
        await self._restore(tries=2)  # then the control plane may have a newer one
        failures = 0
        while True:
            try:
                answer = await self.client.poll(self._poll_message())
            except HeadraceError as error:
                self._note_failure(str(error))
                if self.applier.in_force is None:
                    # There is no newer one than those on disk; a port may be free by now.
                    await self._restore(tries=1, may_fall_back=True)
            else:
                self._note_contact()
                if await self._follow_instructions(answer):
                    failures = 0
                    continue
            failures += 1
            await asyncio.sleep(_AWAY.jittered_s(failures, chance=self.rng.random()))

    def _poll_message(self) -> Poll:
        bundle = self.applier.in_force
        return Poll(
            protocol=PROTOCOL,
            agent=__version__,
            held="" if bundle is None else bundle.version,
            refused=self.applier.refused,
            request_number=self._asked,
            wait_s=LONGEST_WAIT_S,
        )

    async def _follow_instructions(self, instructions: AgentInstructions) -> bool:
        """Follow the control plane's instructions; return whether that succeeded."""
        if instructions.bundle is None and instructions.ask == self._asked:
            await asyncio.sleep(_NO_NEWS_S)
        if instructions.ask != self._asked:
            self._asked = instructions.ask
            self._report_due.set()
        if instructions.bundle is None:
            await self.applier.retry_store()
            return True
        before = self.applier.problem
        try:
            await self.applier.apply(instructions.bundle)
        except HeadraceError as error:
            self.applier.problem = str(error)
            if str(error) != before:
                extra = {"version": instructions.bundle.version, "error": str(error)}
                _LOG.error("cannot apply a version", extra=extra)
            return False
        finally:
            self.holding.release()
            self._report_due.set()
        return True

    def _note_contact(self) -> None:
        if self.disconnect_reason:
            _LOG.info("connected to the control plane")
        self.last_contact_at, self.disconnect_reason = self.clock.monotonic(), ""
        self.answers += 1

    def _note_failure(self, reason: str) -> None:
        self.failures += 1
        if reason != self.disconnect_reason:
            extra = {"error": reason}
            _LOG.warning("cannot reach the control plane; serving the active version", extra=extra)
        self.disconnect_reason = reason

    async def report_last(self) -> None:
        """Report the counts of an Envoy that has no more requests, if the control plane answers."""
        with suppress(HeadraceError, TimeoutError):
            async with asyncio.timeout(_LAST_REPORT_S):
                await self.client.report(await self._state())

    async def _report(self) -> None:
        failures = 0
        while True:
            await wait_for(self._report_due, _REPORT_S)
            self._report_due.clear()
            self.holding.release()
            try:
                await self.client.report(await self._state())
                self.holding.mark_reported()
                self._note_contact()
                failures = 0
            except HeadraceError as error:
                failures += 1
                self._note_failure(str(error))
                await asyncio.sleep(_AWAY.jittered_s(failures, chance=self.rng.random()))

    async def _state(self) -> AgentStatus:
        question_count = self._asked  # later counts are newer than the question
        applier = self.applier
        bundle, supervisor = applier.in_force, applier.supervisor
        counts = await self._counts()
        return AgentStatus(
            protocol=PROTOCOL,
            agent=__version__,
            name=self.name,
            instance=self.instance,
            ask=question_count,
            in_force="" if bundle is None else bundle.version,
            refused=applier.refused,
            reason=applier.reason,
            ready=applier.is_ready,
            problem=applier.problem or ("" if supervisor is None else supervisor.reason),
            restarts=0 if supervisor is None else supervisor.restarts,
            url=self.url,
            held=self.holding.held(),
            counts=counts,
        )

    async def _counts(self) -> EnvoyCounts | None:
        bundle, supervisor = self.applier.in_force, self.applier.supervisor
        if bundle is None or supervisor is None:
            return None
        try:
            return await read_counts(supervisor, bundle)
        except HeadraceError:
            return None  # Envoy is restarting, which the report contains
