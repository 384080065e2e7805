"""Gateways of a control plane, built from its settings, with ports bound.

Most control planes have only the gateway on this host: modules for other gateways are imported on
demand.
"""

# ruff: noqa: PLC0415  # see above: most control planes start without these eleven modules

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from headrace.control.base.agents_settings import AgentsSettings, GatewayMode
from headrace.control.base.faults import Faults
from headrace.control.base.journal import Emit
from headrace.control.base.ownership import ProcessOwner
from headrace.control.base.ports import listen, pick_ports
from headrace.control.gateway.certificates import Certificates
from headrace.control.gateway.supervisor import EnvoySupervisor, routes_file
from headrace.control.gateway.tls import GatewayTls
from headrace.control.limits.service import LimitService, Pair, SecuredAddress
from headrace.core import Clock
from headrace.core.spec.access import TlsSpec
from headrace.gateway import EndpointRoute, EnvoyGateway, EnvoySettings, GatewayPolicy

if TYPE_CHECKING:
    from headrace.control.agents.fleet import GatewayFleet
    from headrace.control.agents.server import AgentsServer
    from headrace.control.agents.tls import MutualTls, RevokedAgents
    from headrace.control.asgi.guards import App
    from headrace.control.base.home import Home

_LIMITS_FLAG: Final = "--agents-limits-port"
Gateway: TypeAlias = "EnvoySupervisor | GatewayFleet"
"""One Envoy on this host, or a fleet behind the same interface."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Sockets and certificates of the listener for agents, before it serves."""

    settings: AgentsSettings
    tls: "MutualTls"
    revoked: "RevokedAgents"
    sock: socket.socket
    limits_port: int

    @property
    def url(self) -> str:
        """Return the listener's URL as this host reaches it."""
        host, port = self.sock.getsockname()[:2]
        name = f"[{host}]" if ":" in host else host
        return f"https://{name}:{port}"

    @property
    def limits(self) -> SecuredAddress:
        """Return the address of the shared rate limit service for gateways."""
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        from headrace.control.agents.tls import fingerprint_of_pem

        def pair() -> Pair:
            pem = self.tls.pair
            assert pem is not None, "it was opened"
            assert pem.key is not None, "it is a certificate"
            return pem.key, pem.certificates

        def authorities() -> bytes:
            assert self.tls.authorities is not None, "it was opened"
            return self.tls.authorities.certificates

        def refuses(certificate: bytes) -> bool:
            # Fingerprints are computed only if a certificate is revoked: this runs for each
            # request.
            revoked = self.revoked
            return bool(revoked.fingerprints) and revoked.has(fingerprint_of_pem(certificate))

        return SecuredAddress(
            address=f"{host}:{self.limits_port}",
            pair=pair,
            authorities=authorities,
            refuses=refuses,
        )


def listen_for_agents(
    settings: AgentsSettings | None,
    home: "Home",
    certificates: Certificates,
    opened: contextlib.ExitStack,
) -> Listening | None:
    """Bind the ports and read the certificates; None without a listener for agents.

    Raises:
        FailedPreconditionError: A port is taken, or a certificate or the list of revoked
            certificates cannot be used.
    """
    if settings is None:
        return None
    from headrace.control.agents.tls import MutualTls, RevokedAgents, server_context

    revoked = RevokedAgents(path=Path(settings.revoked_file) if settings.revoked_file else None)
    revoked.open()
    tls = MutualTls(certificates=certificates, directory=home.run, context=server_context())
    tls.open(settings.tls)
    sock = listen(
        settings.host, settings.port, description="gateways' agents", flag="--agents-port"
    )
    opened.callback(sock.close)
    ports = pick_ports(settings.host, {_LIMITS_FLAG: settings.limits_port})
    return Listening(
        settings=settings,
        tls=tls,
        revoked=revoked,
        sock=sock,
        limits_port=ports[_LIMITS_FLAG],
    )


def make_gateway(
    mode: GatewayMode,
    listening: Listening | None,
    *,
    settings: EnvoySettings,
    home: "Home",
    owner: ProcessOwner,
    socket_dir: Path,
    clock: Clock,
    limits: LimitService | None,
    policy: GatewayPolicy,
    certificates: Certificates,
    tls: TlsSpec | None,
    adopts: bool,
    emit: Emit,
    faults: Faults,
) -> Gateway:
    """Return the gateway, or gateways, for `mode`. Blocking: reads stored counts.

    Args:
        policy: The initial access policy.
        tls: The certificate for callers' connections.
        adopts: Whether an Envoy of an earlier control plane runs.
        emit: Stores events about gateways on other hosts.

    Raises:
        FailedPreconditionError: A certificate cannot be used, and no earlier certificate is in
            force.
    """
    make_tls = partial(
        GatewayTls,
        settings=tls,
        certificates=certificates,
        clock=clock,
        public_file=home.gateway_certificate,
    )
    make_keeper = partial(
        EnvoySupervisor,
        owner=owner,
        record_path=home.gateway_file,
        routes_path=home.routes_file,
        clock=clock,
        policy=policy,
        faults=faults,
    )
    publish_rules = (lambda _rules: None) if limits is None else limits.set_rules
    if mode is GatewayMode.LOCAL and listening is None:  # all requests pass this gateway
        settings = replace(settings, arms_log=settings.run_dir / "arms.log")
    envoy = EnvoyGateway(settings) if mode is GatewayMode.LOCAL else None
    if envoy is not None and listening is None:
        gateway_tls = make_tls(secrets=envoy.secrets)
        gateway_tls.open(adopts=adopts)
        return make_keeper(envoy=envoy, tls=gateway_tls, publish_rules=publish_rules)
    from headrace.control.agents.bundles import SharedSecrets
    from headrace.control.agents.counts import FleetCounts
    from headrace.control.agents.fleet import GatewayFleet
    from headrace.control.agents.registry import AgentTimeouts

    secrets = SharedSecrets(local=None if envoy is None else envoy.secrets)
    gateway_tls = make_tls(secrets=secrets)
    gateway_tls.open(adopts=adopts)
    counts = FleetCounts(
        path=home.root / "gateway-counts.json", request_number=int(1000 * clock.now())
    )
    counts.load()
    timeouts = AgentTimeouts()
    if listening is not None:
        timeouts = AgentTimeouts(
            max_behind_s=listening.settings.max_behind_s,
            lost_after_s=listening.settings.lost_after_s,
        )
    return GatewayFleet(
        settings=settings,
        clock=clock,
        routes_path=_routes_file(home),
        counts=counts,
        local=None if envoy is None else make_keeper(envoy=envoy, tls=gateway_tls),
        tls=gateway_tls,
        policy=policy,
        secrets=secrets,
        timeouts=timeouts,
        is_needed=mode is not GatewayMode.NONE,
        socket_dir=socket_dir,
        limits_port=None if listening is None or limits is None else listening.limits_port,
        publish_rules=publish_rules,
        emit=emit,
    )


def published_routes(gateway: Gateway, home: "Home", *, adopted: bool) -> tuple[EndpointRoute, ...]:
    """Return the routes that gateways acknowledged last, as far as stored."""
    if isinstance(gateway, EnvoySupervisor):
        return (routes_file(home.routes_file).load() if adopted else None) or ()
    return routes_file(_routes_file(home)).load() or ()


def make_agents_server(
    gateway: Gateway,
    listening: Listening | None,
    *,
    answers: Callable[[], "App"],
    wake: Callable[[str, int], None],
    has_desired_state: Callable[[], bool],
) -> "AgentsServer | None":
    """Return the server for agents; None without agents.

    Args:
        answers: Builds the application for requests that gateways forward to the control plane.
        wake: Starts an endpoint, given the number of waiting requests.
        has_desired_state: Whether there will be a first publication of routes.
    """
    if listening is None:
        return None
    from headrace.control.agents.fleet import GatewayFleet
    from headrace.control.agents.server import AgentsApp, AgentsServer

    assert isinstance(gateway, GatewayFleet), "agents are listened for"

    def load() -> AgentsApp:
        return AgentsApp(
            fleet=gateway,
            settings=listening.settings,
            fallback=answers(),
            revoked=listening.revoked,
            wake=wake,
            has_desired_state=has_desired_state,
        )

    return AgentsServer(
        load=load, tls=listening.tls, sock=listening.sock, revoked=listening.revoked
    )


def _routes_file(home: "Home") -> Path:
    return home.root / "gateway-routes.json"
