"""Interface of the gateways, one or many, on this host or others."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from headrace.control.agents.roster import GatewayState
from headrace.control.gateway.tls import GatewayTls
from headrace.core.spec_upstream import UpstreamSpec
from headrace.gateway import (
    EndpointRoute,
    GatewayPolicy,
    GatewaySettings,
    GatewayStatistics,
    Handshakes,
)
from headrace.observe.metrics import Family


class Gateway(Protocol):
    """`GatewayKeeper` for one Envoy on this host, `GatewayFleet` for many anywhere."""

    tls: GatewayTls | None
    policy: GatewayPolicy

    @property
    def settings(self) -> GatewaySettings:
        """What every Envoy is started with."""

    @property
    def restarts(self) -> int:
        """How often the Envoy on this host was started again."""

    @property
    def reason(self) -> str:
        """Why requests cannot come in, or could not lately; empty if all is well."""

    @property
    def pid(self) -> int | None:
        """Of the Envoy on this host, if there is one."""

    @property
    def is_ready(self) -> bool:
        """Whether requests can come in."""

    def states(self) -> tuple[GatewayState, ...]:
        """Of gateways on other hosts."""

    async def open(self, routes: Sequence[EndpointRoute]) -> bool:
        """Begin to serve `routes`; whether what ran before goes on."""

    async def run(self) -> None:
        """Keep it up until cancelled; after `open`."""

    async def publish(self, routes: Sequence[EndpointRoute]) -> None:
        """Return when requests follow `routes`; HeadraceError if they do not."""

    async def take_certificate(self, name: str) -> None:
        """Use a certificate of which there was no good one before."""

    def upstream_problem(self, upstream: UpstreamSpec | None) -> str:
        """Why nothing is sent to an upstream; empty if our side of it is in order."""

    async def set_policy(self, policy: GatewayPolicy) -> None:
        """Return when callers are known by `policy`; HeadraceError if that cannot be."""

    async def read_arms(self, endpoints: Collection[str]) -> GatewayStatistics:
        """What was counted of these endpoints' splits, up to this call."""

    async def read_endpoints(self, endpoints: Collection[str]) -> GatewayStatistics:
        """What was counted of all requests to these endpoints."""

    async def endpoint_statistics(self) -> GatewayStatistics:
        """What was counted of all requests to all endpoints."""

    async def in_flight(self) -> dict[tuple[str, str], int]:
        """Requests on their way, by endpoint and arm."""

    async def handshakes(self) -> Mapping[tuple[str, str], Handshakes]:
        """How TLS with upstreams went, by endpoint and arm."""

    async def stats(self, *, full: bool) -> str:
        """The metrics of the Envoy on this host, if there is one, as text."""

    def families(self) -> list[Family]:
        """Metrics about gateways on other hosts."""

    async def stop(self, *, drain_s: float) -> None:
        """Let requests end, then end the Envoy on this host; others go on."""
