"""Wiring of a control plane from its settings, with every port bound or checked.

Nothing is started: if a port is taken, nothing changes.
"""

import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

import msgspec

from headrace.control.agents.build import (
    listen_for_agents,
    make_agents_server,
    make_gateway,
    published_routes,
)
from headrace.control.api.server import ApiServer, ApiSockets
from headrace.control.asgi.guards import App
from headrace.control.auth.access import make_access
from headrace.control.auth.checkpoint import Checkpoints
from headrace.control.auth.home_token import ensure_home_token
from headrace.control.base.agents_settings import GatewayMode, check_mode
from headrace.control.base.context import Addresses, ServiceContext
from headrace.control.base.faults import Faults
from headrace.control.base.home import Home
from headrace.control.base.journal import EventJournal
from headrace.control.base.log_files import LogFiles
from headrace.control.base.ownership import ProcessOwner
from headrace.control.base.ports import listen, pick_ports
from headrace.control.base.settings import (
    ControlFile,
    ControlSettings,
    port_of,
    read_last_control_file,
    resolve_url,
    with_last_addresses,
)
from headrace.control.desired.documents import usable_spec
from headrace.control.gateway.certificates import AdminTls, Certificates
from headrace.control.gateway.supervisor import (
    EnvoySupervisor,
    GatewayRecord,
    read_gateway_record,
)
from headrace.control.gateway.tls import listener_tls
from headrace.control.limits.limiter import Limiter
from headrace.control.limits.service import LimitService
from headrace.control.local.driver import LocalDriver
from headrace.control.local.sandbox import KernelProbe, Sandbox, without_root
from headrace.control.model.credentials import CredentialKind
from headrace.control.notify.notifier import receiver_urls
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.reconcile.caller_policy import read_policy
from headrace.control.reconcile.publication import Reconciling, RoutePublication
from headrace.control.reconcile.reconciler import Reconciler
from headrace.control.reconcile.service import ReconcileService
from headrace.control.sandboxed.run import SandboxedInspector
from headrace.control.state import home_url, open_store, sqlite_path
from headrace.control.telemetry.prometheus import PrometheusHistory
from headrace.core import FailedPreconditionError, SystemClock
from headrace.core.processes import start_ticks
from headrace.core.spec.parse import GatewaySpec, SystemSpec, parse_spec
from headrace.gateway import EnvoySettings, listen_unix, make_private
from headrace.registry import Registry, open_shared

if TYPE_CHECKING:
    from headrace.control.kubernetes.standby import ClusterMembership

_LOG: Final = logging.getLogger("headrace.control")
_DEFAULT_PORTS: Final = {"--http-port": 8000, "--grpc-port": 8001}
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class BackgroundService(Protocol):
    """A part of a control plane that runs during the control plane's lifetime."""

    async def run(self) -> None:
        """Serve until cancelled; an error ends the control plane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One control plane, and the resources that are closed with it."""

    plane: ControlPlane
    serving: tuple[BackgroundService, ...]
    """Services for the stored state; started before a spec is applied."""
    deciding: tuple[BackgroundService, ...]
    """Services started in this order after the spec is applied."""
    server: ApiServer
    """Started last, as its imports take longest."""
    driver: LocalDriver
    opened: contextlib.ExitStack
    """Closes files, sockets and processes at the end."""
    control_file: ControlFile
    receivers: tuple[str, ...]
    """URLs of the receivers of alerts, which may name secrets."""
    found_running: bool
    """Whether an Envoy or replicas of an earlier control plane are running."""
    membership: "ClusterMembership | None"
    """Membership in the cluster whose pods are the replicas; None if they are local processes."""


def assemble(
    settings: ControlSettings, home: Home, membership: "ClusterMembership | None" = None
) -> System:
    """Return the control plane for `settings`, on a home whose lock is held.

    Raises:
        SpecError: The spec is invalid.
        FailedPreconditionError: A port is taken, or the home cannot be used.
    """
    clock = SystemClock()
    probe = KernelProbe()
    prometheus_url = resolve_url(settings.prometheus_url)
    shared = open_shared(settings.artifacts, clock=clock) if settings.artifacts else None
    store = open_store(
        resolve_url(settings.state_url) or home_url(home.root), legacy=home.state_file
    )
    token_file = ensure_home_token(
        store,
        home.root,
        now=clock.now(),
        installation=_installation(settings),
        source=settings.admin_token_file,
    )
    desired = store.load.blocking()
    settings = with_last_addresses(
        _usable(settings, desired.spec), read_last_control_file(home.root), desired.spec
    )
    access = make_access(store, clock, settings.oidc, is_encrypted=settings.admin_tls is not None)
    document = desired.spec if settings.spec is None else settings.spec
    spec = parse_spec(document, in_force=desired.spec) if document else SystemSpec()
    gateway_spec = spec.gateway
    mode = check_mode(settings.gateway, settings.agents)
    socket_dir = home.socket_dir()
    owner = ProcessOwner.of(home.root, sockets=socket_dir)
    record = read_gateway_record(home.gateway_file, owner) if mode is GatewayMode.LOCAL else None
    own_limits = f"unix:{socket_dir / 'limits.sock'}"
    host = settings.host or gateway_spec.host
    journal, faults = EventJournal(store=store), Faults(clock=clock)
    certificates = Certificates(clock=clock, emit=journal.write, faults=faults)
    ports = _gateway_ports(settings, gateway_spec, host, record, mode)
    with contextlib.ExitStack() as opened:
        opened.callback(store.close)
        admin_tls = _admin_tls(settings, home, certificates)
        sandbox = Sandbox(
            hide=(home.root, socket_dir), reports=home.records, kernel_features=probe.result
        )
        sandbox.environment.withhold(document)
        inspect = SandboxedInspector(sandbox)
        opened.callback(inspect.close)
        sockets = _open_sockets(settings, home, opened)
        listening = listen_for_agents(settings.agents, home, certificates, opened)
        tls = settings.tls or gateway_spec.tls
        gateway = EnvoySettings(
            run_dir=make_private(socket_dir / "envoy"),
            host=host,
            http_port=ports["--http-port"],
            grpc_port=ports["--grpc-port"],
            max_body_bytes=gateway_spec.max_body_bytes,
            control_address=f"unix:{sockets.gateway.getsockname()}",
            limits_address=gateway_spec.limits_service or own_limits,
            connections=gateway_spec.connections,
            cors=gateway_spec.cors,
            access_log=gateway_spec.access_log,
            request_log=gateway_spec.request_log,
            tracing=spec.tracing,
            log_format="json" if settings.log_format == "json" else "text",
            tls=listener_tls(tls),
        )
        if mode is GatewayMode.LOCAL:
            gateway = without_root(gateway, sandbox)
        limits = None
        if gateway_spec.limits_service is None:
            limits = LimitService(
                limiter=Limiter(name=secrets.token_hex(8)),
                store=store,
                clock=clock,
                addresses=tuple(filter(None, (own_limits, gateway_spec.limits_listen))),
                secured=None if listening is None else listening.limits,
            )
        gateway_supervisor = make_gateway(
            mode,
            listening,
            settings=gateway,
            home=home,
            owner=owner,
            socket_dir=socket_dir,
            clock=clock,
            limits=limits,
            policy=read_policy(
                store.credentials.blocking(CredentialKind.KEY), desired.spec, now=clock.now()
            ),
            certificates=certificates,
            tls=tls,
            adopts=record is not None,
            emit=journal.write,
            faults=faults,
        )
        driver = LocalDriver(
            home=home, socket_dir=socket_dir, log_format=settings.log_format, sandbox=sandbox
        )
        opened.callback(driver.close)
        local = Reconciler(
            driver=driver,
            publication=RoutePublication(
                publisher=gateway_supervisor,
                published=published_routes(gateway_supervisor, home, adopted=record is not None),
            ),
            clock=clock,
            drain_timeout_s=settings.drain_timeout_s,
            emit=journal.write,
            faults=faults,
        )
        reconciler: Reconciling = (
            local
            if membership is None
            else membership.reconciler(gateway_supervisor, clock, journal.write, faults)
        )
        context = ServiceContext(
            home=home,
            store=store,
            registry=Registry(home.root, inspect, shared=shared),
            journal=journal,
            faults=faults,
            clock=clock,
            addresses=_addresses(settings, gateway, sockets),
            runs_here=membership is None,
        )
        reconciling = ReconcileService(
            context,
            reconciler=reconciler,
            gateway_supervisor=gateway_supervisor,
            certificates=certificates,
            limits=limits,
            # The control plane has no credentials, and this socket requires none.
            gateway_address=f"unix:{gateway.private_socket}",
            # Only a gateway on this host is reached without authentication.
            sends_first_requests=settings.first_request and mode is GatewayMode.LOCAL,
        )
        plane = ControlPlane(
            context,
            reconciling=reconciling,
            driver=driver,
            inspect=inspect,
            log_files=LogFiles(
                directory=home.logs,
                others={"gateway": gateway.run_dir / "envoy.log"},
                on_request={"access": gateway.run_dir / "access.log"},
            ),
            prometheus=PrometheusHistory(url=prometheus_url, matchers=settings.prometheus_matchers)
            if prometheus_url
            else None,
            allow_code=settings.allow_code,
            model_roots=tuple(map(Path, settings.model_roots)),
        )
        # A driver that must read the published routes before it publishes, even if empty.
        asks_first = reconciler.publication.published is None
        agents = make_agents_server(
            gateway_supervisor,
            listening,
            answers=partial(_gateway_answers, plane),
            wake=plane.scaling.scaler.wake,
            has_desired_state=lambda: asks_first and plane.target_state.desired.generation > 0,
        )
        opened.callback(plane.desired_state.work.close)
        adopted = local.adopt() if membership is None else []
        return System(
            plane=plane,
            serving=(plane.reconciling,) if agents is None else (plane.reconciling, agents),
            deciding=(
                plane.scaling,
                plane.rollouts,
                plane.workloads,
                plane.telemetry,
                Checkpoints(store=store, path=home.checkpoint_file),
                *_leading(membership, plane, has_file=settings.spec is not None),
            ),
            server=ApiServer(
                plane=plane,
                access=access,
                sockets=sockets,
                tls=None if admin_tls is None else admin_tls.context,
                allowed_hosts=_allowed_hosts(settings),
                metrics_are_open=settings.admin_host in _LOOPBACK,
                console=settings.console,
            ),
            driver=driver,
            opened=opened.pop_all(),
            control_file=ControlFile(
                pid=os.getpid(),
                started=clock.now(),
                admin_url=context.addresses.admin_url,
                http_url=context.addresses.http_url,
                grpc_target=context.addresses.grpc_target,
                metrics_url=context.addresses.metrics_url,
                start_ticks=start_ticks(os.getpid()) or 0,
                home=owner.identity,
                host=gateway.host if mode is GatewayMode.LOCAL else "",
                http_port=gateway.http_port,
                grpc_port=gateway.grpc_port,
                state_url=_shown_state(resolve_url(settings.state_url)),
                gateway_ca=str(home.gateway_certificate) if gateway.tls else "",
                admin_ca=str(home.admin_certificate) if admin_tls else "",
                token_file=str(token_file),
                agents_url="" if listening is None else listening.url,
                tls=settings.tls,
                admin_tls=settings.admin_tls,
            ),
            receivers=tuple(receiver_urls(document)),
            found_running=record is not None or any(replica.pid for replica in adopted),
            membership=membership,
        )


def _leading(
    membership: "ClusterMembership | None", plane: ControlPlane, *, has_file: bool
) -> tuple[BackgroundService, ...]:
    """Return what the leader in a cluster runs."""
    if membership is None:
        return ()
    from headrace.control.kubernetes.endpoints import EndpointController  # noqa: PLC0415  # few have one
    from headrace.control.kubernetes.reconciler import KubernetesReconciler  # noqa: PLC0415  # as above

    reconciler, gateway = plane.reconciling.reconciler, plane.reconciling.gateway_supervisor
    assert isinstance(reconciler, KubernetesReconciler), "made by the membership"
    controller = EndpointController(
        api=membership.api,
        reconciler=reconciler,
        desired_state=plane.desired_state,
        statuses=partial(plane.endpoint_statuses, with_memory=False),
        has_file=has_file,
    )
    if isinstance(gateway, EnvoySupervisor) or not membership.gateway_secret:
        return membership, controller
    from headrace.control.kubernetes.fallback import GatewayFallback  # noqa: PLC0415  # few have one

    name = membership.gateway_secret
    fallback = GatewayFallback(api=membership.api, name=name, read=gateway.accepted)
    return membership, controller, fallback


def _usable(settings: ControlSettings, stored: Mapping[str, Any]) -> ControlSettings:
    """Return settings with a valid spec: on a cluster, `apply_file` reports what is wrong."""
    if settings.cluster is None or settings.spec is None:
        return settings
    return msgspec.structs.replace(settings, spec=usable_spec(settings.spec, stored).document())


def _gateway_answers(plane: ControlPlane) -> App:
    from headrace.control.api.app import build_gateway_answers  # noqa: PLC0415  # loads FastAPI

    return build_gateway_answers(plane, is_local=False)


def _shown_state(url: str) -> str:
    """Return the location of the state without secret parts; empty for the home's file."""
    if not url:
        return ""
    path = sqlite_path(url)
    return "postgresql://" if path is None else f"sqlite:///{path}"


def _installation(settings: ControlSettings) -> str:
    """Return the name that an installation's control planes share on a cluster; empty elsewhere."""
    cluster = settings.cluster
    return "" if cluster is None else f"cluster:{cluster.namespace}/{cluster.instance}"


def _allowed_hosts(settings: ControlSettings) -> frozenset[str]:
    """Return the host names of the management API, besides those of loopback."""
    login = settings.oidc.redirect_url if settings.oidc is not None else ""
    browsers = {host} if (host := urlsplit(login).hostname) else set()
    return frozenset({settings.admin_host.lower(), *settings.allowed_hosts, *browsers})


def _gateway_ports(
    settings: ControlSettings,
    spec: GatewaySpec,
    host: str,
    record: GatewayRecord | None,
    mode: GatewayMode,
) -> dict[str, int]:
    """Return the gateway's ports by flag: requested, kept from a running gateway, or picked."""
    requested = {
        "--http-port": spec.http_port if settings.http_port is None else settings.http_port,
        "--grpc-port": spec.grpc_port if settings.grpc_port is None else settings.grpc_port,
    }
    if mode is not GatewayMode.LOCAL:
        return {flag: port or _DEFAULT_PORTS[flag] for flag, port in requested.items()}
    if record is None or record.host != host:
        return pick_ports(host, requested)
    running = {"--http-port": record.http_port, "--grpc-port": record.grpc_port}
    reused = {flag: running[flag] for flag, port in requested.items() if port in {0, running[flag]}}
    return reused | pick_ports(host, {f: p for f, p in requested.items() if f not in reused})


def _admin_tls(
    settings: ControlSettings, home: Home, certificates: Certificates
) -> AdminTls | None:
    """Return the encryption of the management API; None for plain text.

    Raises:
        FailedPreconditionError: Its files cannot be used, or tokens would be sent in plain text.
    """
    if settings.admin_tls is not None:
        tls = AdminTls(certificates=certificates, public_file=home.admin_certificate)
        tls.open(settings.admin_tls)
        return tls
    home.admin_certificate.unlink(missing_ok=True)
    if settings.admin_host not in _LOOPBACK:
        if not settings.insecure_admin:
            raise FailedPreconditionError(
                f"the management API would listen on {settings.admin_host} without encryption, and "
                "tokens would travel for anybody on the way to read: give it a certificate "
                "(--admin-tls-cert, --admin-tls-key), or say --insecure-admin where something "
                "before it encrypts"
            )
        _LOG.warning(
            "the management API listens beyond this machine without encryption",
            extra={"host": settings.admin_host},
        )
    return None


def _open_sockets(
    settings: ControlSettings, home: Home, opened: contextlib.ExitStack
) -> ApiSockets:
    last = read_last_control_file(home.root)
    sockets = ApiSockets(
        admin=_reopen_listener(
            settings.admin_host,
            settings.admin_port,
            "" if last is None else last.admin_url,
            description="the management API",
            flag="--admin-port",
        ),
        metrics=_reopen_listener(
            settings.admin_host,
            settings.metrics_port,
            "" if last is None else last.metrics_url,
            description="metrics",
            flag="--metrics-port",
        ),
        gateway=listen_unix(home.socket_dir() / "control.sock"),
    )
    opened.callback(sockets.close)
    return sockets


def _reopen_listener(
    host: str, port: int | None, last_url: str, *, description: str, flag: str
) -> socket.socket:
    """Return a listening socket; for any port, the previously used one if it is free."""
    if not port and port_of(last_url):
        with contextlib.suppress(FailedPreconditionError):
            return listen(host, port_of(last_url), description=description, flag=flag)
    return listen(host, port or 0, description=description, flag=flag)


def _addresses(settings: ControlSettings, gateway: EnvoySettings, sockets: ApiSockets) -> Addresses:
    host = _reachable(gateway.host)
    admin_host = _reachable(settings.admin_host)
    scheme = "https" if gateway.tls else "http"
    gateway_url = "" if settings.agents is None else settings.agents.gateway_url
    admin_scheme = "https" if settings.admin_tls else "http"
    return Addresses(
        http_url=gateway_url or f"{scheme}://{host}:{gateway.http_port}",
        grpc_target=urlsplit(gateway_url).netloc or f"{host}:{gateway.grpc_port}",
        metrics_url=f"{admin_scheme}://{admin_host}:{sockets.metrics.getsockname()[1]}/metrics",
        admin_url=f"{admin_scheme}://{admin_host}:{sockets.admin.getsockname()[1]}",
    )


def _reachable(host: str) -> str:
    """Return a bound host as this machine reaches it, in the form for URLs."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  # compared, not bound
    name = everywhere.get(host, host)
    return f"[{name}]" if ":" in name else name
