"""Reasons why upstreams get no requests, from the handshakes and health checks of Envoy."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from headrace.control.base.faults import LOOP, Faults
from headrace.control.model.records import Event
from headrace.core import Clock, HeadraceError
from headrace.core.spec.upstream import UpstreamSpec
from headrace.gateway import EndpointRoute, Handshakes
from headrace.gateway.settings import parse_url
from headrace.gateway.upstreams import is_checked

_POLL_INTERVAL_S: Final = 1.0

_UNCHECKED: Final = "no health check has passed yet"
"""Problem of a health-checked upstream until its first check; no event reports it."""

ArmKey = tuple[str, str]
"""An endpoint's name and an arm's key."""


def tls_problem(
    before: Handshakes, now: Handshakes, last_problem: str, *, name: str, is_checked: bool
) -> str:
    """Return the problem of an upstream's TLS; empty if there is none.

    Args:
        before: The last counts; `last_problem` is their problem, which stays without new counts.
        name: Name that its certificate must have.
        is_checked: Whether Envoy health-checks it: then one answering server is enough; otherwise
            handshakes are the only evidence.
    """
    if now.healthy > 0 if is_checked else now.done > before.done:
        return ""
    if now.wrong_name > before.wrong_name:
        return f"its certificate is not for '{name}'"
    if now.untrusted > before.untrusted:
        return "its certificate is not signed by the authorities it is checked against, or expired"
    if now.failed > before.failed:
        return (
            "no TLS connection is established: check the address, and whether the upstream "
            "requires a client certificate, or another one"
        )
    return last_problem


def health_problem(before: Handshakes, now: Handshakes, last_problem: str) -> str:
    """Return the problem of a health-checked upstream; empty if there is none.

    Args:
        before: As of `tls_problem`.
    """
    if now.healthy > 0:
        return ""
    if now.unhealthy > before.unhealthy:
        return "no server passes its health check, and its share of the requests is answered 503"
    return last_problem


@dataclass(slots=True, kw_only=True)
class UpstreamWatch:
    """Checks upstreams with TLS or health checks every second."""

    routes: Callable[[], tuple[EndpointRoute, ...]]
    """Returns the routes in force."""
    read: Callable[[], Awaitable[Mapping[ArmKey, Handshakes]]]
    """Returns Envoy's counts. `problems` are those of the upstreams' secrets. `on_change` is called
    when a problem changes.
    """
    on_change: Callable[[], None]
    clock: Clock
    emit: Callable[[Sequence[Event]], Awaitable[None]]
    """Stores events."""
    faults: Faults = field(default_factory=Faults)
    _before: Mapping[ArmKey, Handshakes] = field(default_factory=dict)
    _known: dict[ArmKey, str] = field(default_factory=dict)
    """Problem by arm, empty for none; without arms whose first health check has not ended."""

    def problem(self, endpoint: str, key: str, upstream: UpstreamSpec) -> str:
        """Return the problem of an arm's `upstream`; empty if none is known."""
        return self._known.get((endpoint, key), _UNCHECKED if is_checked(upstream) else "")

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await asyncio.sleep(_POLL_INTERVAL_S)
            with self.faults.contain(LOOP, "upstreams"):
                await self.poll()

    async def poll(self) -> None:
        """Check once."""
        arms = {
            (route.name, arm.key): arm.upstream
            for route in self.routes()
            for arm in route.arms
            if arm.upstream is not None
            and (parse_url(arm.upstream.url).is_tls or is_checked(arm.upstream))
        }
        if not arms:
            self._before, self._known = {}, {}
            return
        try:
            now = await self.read()
        except HeadraceError:
            return  # the gateway does not run, which is reported elsewhere
        nothing = Handshakes()
        problems: dict[ArmKey, str] = {}
        for arm, upstream in arms.items():
            counts, server = now.get(arm, nothing), parse_url(upstream.url)
            before = _since_start(self._before.get(arm, nothing), counts)
            problem, last = "", self._known.get(arm, "")
            if server.is_tls:
                name = (upstream.tls.server_name if upstream.tls else "") or server.host
                problem = tls_problem(
                    before, counts, last, name=name, is_checked=is_checked(upstream)
                )
            if not problem and is_checked(upstream):
                problem = health_problem(before, counts, last)
            if problem or counts.healthy > 0 or not is_checked(upstream):
                problems[arm] = problem
        former, self._before, self._known = self._known, now, problems
        if problems == former:
            return
        self.on_change()
        await self.emit(
            [
                self._event(arm, upstream, problem)
                for arm, upstream in arms.items()
                if (problem := problems.get(arm, "")) != former.get(arm, "")
            ]
        )

    def _event(self, arm: ArmKey, upstream: UpstreamSpec, problem: str) -> Event:
        endpoint, key = arm
        return Event(
            at=self.clock.now(),
            endpoint=endpoint,
            kind="gateway",
            reason="UpstreamFailed" if problem else "UpstreamRecovered",
            message=f"version {key}: upstream {upstream.url}: {problem or 'it answers again'}",
            data={"version": key, "problem": problem},
        )


def _since_start(before: Handshakes, now: Handshakes) -> Handshakes:
    """Return `before`, or zero counts if Envoy restarted."""
    is_longer = all(
        old <= other
        for old, other in (
            (before.done, now.done),
            (before.wrong_name, now.wrong_name),
            (before.untrusted, now.untrusted),
            (before.failed, now.failed),
            (before.unhealthy, now.unhealthy),
        )
    )
    return before if is_longer else Handshakes()
