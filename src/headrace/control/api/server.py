"""The management API's sockets, and what is served beside it: pages, metrics and health."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Final, TypeAlias, cast

from headrace.control.asgi.guards import App, BodyLimit, Receive, Scope, Send
from headrace.control.auth.access import AccessControl
from headrace.control.auth.credentials import SessionRules
from headrace.control.gateway.activator import HeldRequests
from headrace.control.plane.control_plane import ControlPlane

_API: Final = ("/api/", "/auth/", "/v2/")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleParts:
    """What pages are made of."""

    api: App
    """The management API, which asks everybody who he is."""
    sessions: SessionRules
    """How its cookies are called."""
    has_provider: bool
    """Whether people log in at an identity provider. `gateway_url`, and `gateway_ca`, the file of
    its certificate: where endpoints are called; empty for plain text.
    """
    gateway_url: str
    gateway_ca: str
    now: Callable[[], float]
    is_stopping: Callable[[], bool]
    """Whether streams have to end."""


MakeConsole: TypeAlias = Callable[[ConsoleParts], App]


def console_of(name: str) -> MakeConsole | None:
    """The function that `MODULE:NAME` names; None for an empty name."""
    if not name:
        return None
    module, _, function = name.partition(":")
    return cast("MakeConsole", getattr(import_module(module), function))


def pages_over(app: App, plane: ControlPlane, access: AccessControl) -> ConsoleParts:
    """The parts for pages over the management API `app`."""
    ca = plane.home.gateway_certificate
    is_encrypted = plane.addresses.http_url.startswith("https:")
    return ConsoleParts(
        api=app,
        sessions=access.authenticator.rules,
        has_provider=access.login is not None,
        gateway_url=plane.addresses.http_url,
        gateway_ca=str(ca) if is_encrypted else "",
        now=plane.clock.now,
        is_stopping=plane.stop_requested.is_set,
    )


@dataclass(slots=True, kw_only=True)
class PathRouter:
    """Sends requests to the management API, or to the pages, by where they go."""

    api: App
    pages: App

    def __post_init__(self) -> None:
        self.pages = BodyLimit(app=self.pages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        is_api = str(scope["path"]).startswith(_API)
        await (self.api if is_api else self.pages)(scope, receive, send)


_STOP_S: Final = 2


@dataclass(slots=True, kw_only=True)
class ApiSockets:
    """The listening sockets: management, metrics, and what the gateway asks over a Unix socket."""

    admin: socket.socket
    metrics: socket.socket
    gateway: socket.socket

    def close(self) -> None:
        """Close what `serve` did not."""
        for sock in (self.admin, self.metrics, self.gateway):
            sock.close()


@dataclass(slots=True, kw_only=True)
class ApiServer:
    """Serves the API on `sockets` until `stop`."""

    plane: ControlPlane
    access: AccessControl
    sockets: ApiSockets
    allowed_hosts: frozenset[str]
    tls: ssl.SSLContext | None = None
    """None for plain text."""
    metrics_are_open: bool = True
    """To everybody who reaches their port; else to viewers."""
    console: str = ""
    """As in the settings."""
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Serve until `stop` was called; requests in flight get a moment."""
        # FastAPI takes longer to load than a small model, so it comes last, beside everything else.
        await asyncio.to_thread(_import_frameworks)
        from headrace.control.api import app as api  # noqa: PLC0415  # as above
        from headrace.control.asgi import edge  # noqa: PLC0415  # as above

        apps: list[tuple[App, socket.socket]] = [
            (
                api.build_api(
                    self.plane,
                    self.access,
                    allowed_hosts=self.allowed_hosts,
                    console=console_of(self.console),
                ),
                self.sockets.admin,
            ),
            (
                api.build_metrics(self.plane, self.access, is_open=self.metrics_are_open),
                self.sockets.metrics,
            ),
            (
                HeldRequests(self.plane.scaling.activator, api.build_gateway_answers(self.plane)),
                self.sockets.gateway,
            ),
        ]
        edge.raise_descriptor_limit()
        servers = []
        async with asyncio.TaskGroup() as group:
            for app, sock in apps:
                # The gateway's socket is for the gateway alone, which bounds its callers itself.
                is_open = sock is not self.sockets.gateway
                server = edge.make_server(
                    app,
                    stop_s=_STOP_S,
                    protocol=edge.BoundedProtocol if is_open else None,
                    tls=self.tls if is_open else None,
                )
                servers.append(server)
                group.create_task(server.serve(sockets=[sock]))
            await self._stopping.wait()
            for server in servers:
                server.should_exit = True

    def stop(self) -> None:
        """Make `run` return."""
        self._stopping.set()


def _import_frameworks() -> None:
    """Load FastAPI and uvicorn in a thread, while the loop goes on watching."""
    import fastapi  # noqa: F401, PLC0415  # for its side effect: later imports are instant
    import uvicorn  # noqa: F401, PLC0415  # as above
