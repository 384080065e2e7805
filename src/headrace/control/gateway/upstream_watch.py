"""Reasons why upstreams with TLS get no requests, from the handshakes that Envoy counts."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from headrace.control.base.faults import LOOP, Faults
from headrace.core import HeadraceError
from headrace.gateway import EndpointRoute, Handshakes
from headrace.gateway.settings import parse_url
from headrace.gateway.upstreams import is_checked

_POLL_INTERVAL_S: Final = 1.0

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


@dataclass(slots=True, kw_only=True)
class UpstreamWatch:
    """Checks upstreams with TLS every second."""

    routes: Callable[[], tuple[EndpointRoute, ...]]
    """Returns the routes in force."""
    read: Callable[[], Awaitable[Mapping[ArmKey, Handshakes]]]
    """Returns Envoy's counts. `problems` are those of the upstreams' secrets. `on_change` is called
    when a problem changes.
    """
    on_change: Callable[[], None]
    faults: Faults = field(default_factory=Faults)
    _before: Mapping[ArmKey, Handshakes] = field(default_factory=dict)
    _known: dict[ArmKey, str] = field(default_factory=dict)

    def tls_problem(self, endpoint: str, key: str) -> str:
        """Return the TLS problem of an arm's upstream; empty if none is known."""
        return self._known.get((endpoint, key), "")

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
            if arm.upstream is not None and parse_url(arm.upstream.url).is_tls
        }
        if not arms:
            self._before, self._known = {}, {}
            return
        try:
            now = await self.read()
        except HeadraceError:
            return  # the gateway does not run, which is reported elsewhere
        nothing = Handshakes()
        problems = {
            arm: tls_problem(
                _since_start(self._before.get(arm, nothing), now.get(arm, nothing)),
                now.get(arm, nothing),
                self._known.get(arm, ""),
                name=(upstream.tls.server_name if upstream.tls else "")
                or parse_url(upstream.url).host,
                is_checked=is_checked(upstream),
            )
            for arm, upstream in arms.items()
        }
        is_news = problems != self._known
        self._before, self._known = now, problems
        if is_news:
            self.on_change()


def _since_start(before: Handshakes, now: Handshakes) -> Handshakes:
    """Return `before`, or zero counts if Envoy restarted."""
    is_longer = all(
        old <= other
        for old, other in (
            (before.done, now.done),
            (before.wrong_name, now.wrong_name),
            (before.untrusted, now.untrusted),
            (before.failed, now.failed),
        )
    )
    return before if is_longer else Handshakes()
