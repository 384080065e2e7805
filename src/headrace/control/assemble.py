"""Which parts does a control plane consist of? Made here, with every port bound or checked.

Nothing is started: whoever asks for a port that is taken finds everything as it was.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from headrace.control.home import Home
from headrace.control.keeper import (
    GatewayKeeper,
    GatewayRecord,
    read_gateway_record,
    read_routes,
)
from headrace.control.local import LocalDriver
from headrace.control.log_files import LogFiles
from headrace.control.parts import make_plane
from headrace.control.plane import Addresses, ControlPlane
from headrace.control.ports import listen, pick_ports
from headrace.control.process import start_ticks
from headrace.control.reconciler import Reconciler
from headrace.control.serve import ApiServer, ApiSockets, listen_unix
from headrace.control.settings import ControlFile, ControlSettings
from headrace.control.state import home_url, open_store
from headrace.control.store_thread import StoreThread
from headrace.core import Clock, FailedPreconditionError, SystemClock
from headrace.core.spec import GatewaySpec, parse_spec
from headrace.gateway import GatewaySettings, make_private
from headrace.registry import Registry
from headrace.runtimes import inspect_model

_LOG: Final = logging.getLogger("headrace.control")
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """The parts of one control plane.

    `document` is the spec to apply first; None goes on with the stored state. `found_running`: an
    Envoy or replicas of an earlier control plane are there.
    """

    home: Home
    clock: Clock
    driver: LocalDriver
    reconciler: Reconciler
    keeper: GatewayKeeper
    plane: ControlPlane
    server: ApiServer
    sockets: ApiSockets
    control_file: ControlFile
    document: dict[str, Any] | None
    found_running: bool


def assemble(settings: ControlSettings, home: Home) -> System:
    """The parts for `settings`, on a home whose lock is held.

    Raises:
        SpecError: The spec is wrong.
        FailedPreconditionError: A port is taken, or the home cannot be used.
    """
    clock = SystemClock()
    url = settings.state_url or home_url(home.root)
    store = StoreThread(open_store(url, legacy=home.state_file))
    desired = store.store.load()
    document = settings.spec if settings.spec is not None else (desired.spec or None)
    gateway_spec = GatewaySpec() if document is None else parse_spec(document).gateway
    record = read_gateway_record(home.gateway_file)
    socket_dir = home.socket_dir()
    host = settings.host or gateway_spec.host
    ports = _gateway_ports(settings, gateway_spec, host, record)
    with _closing_on_error() as opened:
        sockets = _open_sockets(settings, home, opened)
        gateway = GatewaySettings(
            run_dir=make_private(socket_dir / "envoy"),
            host=host,
            http_port=ports["--http-port"],
            grpc_port=ports["--grpc-port"],
            max_body_bytes=gateway_spec.max_body_bytes,
            control_address=f"unix:{sockets.gateway.getsockname()}",
            max_connections=gateway_spec.connections.max,
            idle_timeout_s=gateway_spec.connections.idle_timeout_s,
            headers_timeout_s=gateway_spec.connections.headers_timeout_s,
            request_timeout_s=gateway_spec.connections.request_timeout_s,
            max_memory_bytes=gateway_spec.connections.max_memory_bytes,
            access_log=gateway_spec.access_log,
            log_format="json" if settings.log_format == "json" else "text",
        )
        keeper = GatewayKeeper(
            settings=gateway,
            record_path=home.gateway_file,
            routes_path=home.routes_file,
            clock=clock,
        )
        driver = LocalDriver(home=home, socket_dir=socket_dir, log_format=settings.log_format)
        reconciler = Reconciler(
            driver=driver,
            publisher=keeper,
            clock=clock,
            drain_timeout_s=settings.drain_timeout_s,
            published=(read_routes(home.routes_file) if record else None) or (),
        )
        addresses = _addresses(settings, gateway, sockets)
        plane = make_plane(
            home=home,
            store=store,
            registry=Registry(home.root, inspect_model),
            inspect=inspect_model,
            reconciler=reconciler,
            keeper=keeper,
            clock=clock,
            addresses=addresses,
            gateway_address=f"{_reachable(host)}:{gateway.http_port}",
            log_files=LogFiles(
                directory=home.logs,
                others={"gateway": gateway.run_dir / "envoy.log"},
                on_request={"access": gateway.run_dir / "access.log"},
            ),
            sends_first_requests=settings.first_request,
        )
        adopted = reconciler.adopt()
    return System(
        home=home,
        clock=clock,
        driver=driver,
        reconciler=reconciler,
        keeper=keeper,
        plane=plane,
        server=ApiServer(
            plane=plane,
            sockets=sockets,
            allowed_hosts=frozenset({settings.admin_host.lower(), *settings.allowed_hosts}),
        ),
        sockets=sockets,
        control_file=ControlFile(
            pid=os.getpid(),
            started=clock.now(),
            admin_url=addresses.admin_url,
            http_url=addresses.http_url,
            grpc_target=addresses.grpc_target,
            metrics_url=addresses.metrics_url,
            start_ticks=start_ticks(os.getpid()) or 0,
        ),
        document=settings.spec,
        found_running=record is not None or any(replica.pid for replica in adopted),
    )


def _gateway_ports(
    settings: ControlSettings, spec: GatewaySpec, host: str, record: GatewayRecord | None
) -> dict[str, int]:
    """The gateway's ports by flag: asked for, kept from a running gateway, or picked."""
    wanted = {
        "--http-port": spec.http_port if settings.http_port is None else settings.http_port,
        "--grpc-port": spec.grpc_port if settings.grpc_port is None else settings.grpc_port,
    }
    if record is None or record.host != host:
        return pick_ports(host, wanted)
    running = {"--http-port": record.http_port, "--grpc-port": record.grpc_port}
    kept = {flag: running[flag] for flag, port in wanted.items() if port in {0, running[flag]}}
    return kept | pick_ports(host, {f: p for f, p in wanted.items() if f not in kept})


def _open_sockets(
    settings: ControlSettings, home: Home, opened: contextlib.ExitStack
) -> ApiSockets:
    if settings.admin_host not in _LOOPBACK:
        _LOG.warning(
            "the management API has no authentication yet, and listens beyond this machine",
            extra={"host": settings.admin_host},
        )
    before = _former_ports(home)
    admin = _listen_again(
        settings.admin_host,
        settings.admin_port,
        before.get("admin"),
        what="the management API",
        flag="--admin-port",
    )
    opened.callback(admin.close)
    metrics = _listen_again(
        settings.admin_host,
        settings.metrics_port,
        before.get("metrics"),
        what="metrics",
        flag="--metrics-port",
    )
    opened.callback(metrics.close)
    gateway = listen_unix(home.socket_dir() / "control.sock")
    opened.callback(gateway.close)
    return ApiSockets(admin=admin, metrics=metrics, gateway=gateway)


def _listen_again(
    host: str, port: int, former: int | None, *, what: str, flag: str
) -> socket.socket:
    """A listening socket; where any port will do, the one that was used before if it is free."""
    if port == 0 and former:
        with contextlib.suppress(FailedPreconditionError):
            return listen(host, former, what=what, flag=flag)
    return listen(host, port, what=what, flag=flag)


def _former_ports(home: Home) -> dict[str, int]:
    """The ports that the last control plane of this home listened on."""
    try:
        former = msgspec.json.decode(home.control_file.read_bytes(), type=ControlFile)
    except (OSError, msgspec.MsgspecError):
        return {}
    ports = {"admin": _port_of(former.admin_url), "metrics": _port_of(former.metrics_url)}
    return {name: port for name, port in ports.items() if port}


def _port_of(url: str) -> int:
    digits = url.rpartition(":")[2].partition("/")[0]
    return int(digits) if digits.isdigit() else 0


def _addresses(
    settings: ControlSettings, gateway: GatewaySettings, sockets: ApiSockets
) -> Addresses:
    host = _reachable(gateway.host)
    admin_host = _reachable(settings.admin_host)
    return Addresses(
        http_url=f"http://{host}:{gateway.http_port}",
        grpc_target=f"{host}:{gateway.grpc_port}",
        metrics_url=f"http://{admin_host}:{sockets.metrics.getsockname()[1]}/metrics",
        admin_url=f"http://{admin_host}:{sockets.admin.getsockname()[1]}",
    )


def _reachable(host: str) -> str:
    """How a bound host is reached from this machine, as it stands in a URL."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  # compared, not bound
    name = everywhere.get(host, host)
    return f"[{name}]" if ":" in name else name


@contextlib.contextmanager
def _closing_on_error() -> Iterator[contextlib.ExitStack]:
    """A stack that is unwound only if the block fails."""
    with contextlib.ExitStack() as stack:
        yield stack
        stack.pop_all()
