"""Sockets of the management API, and the console, metrics and health routes on them."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Final, TypeAlias, cast

from headrace.control.asgi.guards import App, BodyLimit, Receive, Scope, Send
from headrace.control.asgi.reflection import ReflectionApp
from headrace.control.auth.access import AccessControl
from headrace.control.auth.credentials import SessionRules
from headrace.control.gateway.activator import HeldRequests
from headrace.control.plane.control_plane import ControlPlane

_API: Final = ("/api/", "/auth/", "/v2/")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleParts:
    """Dependencies of the web console."""

    api: App
    """The management API, which authenticates every caller."""
    sessions: SessionRules
    """Names and lifetimes of session cookies."""
    has_provider: bool
    """Whether people log in at an identity provider. `gateway_url`: the gateway's address for
    callers; `gateway_ca`: the file of its certificate, empty for plain text.
    """
    gateway_url: str
    gateway_ca: str
    now: Callable[[], float]
    is_stopping: Callable[[], bool]
    """Whether streams must end."""


MakeConsole: TypeAlias = Callable[[ConsoleParts], App]


def console_of(name: str) -> MakeConsole | None:
    """Return the function that `MODULE:NAME` names; None for an empty name."""
    if not name:
        return None
    module, _, function = name.partition(":")
    return cast("MakeConsole", getattr(import_module(module), function))


def pages_over(app: App, plane: ControlPlane, access: AccessControl) -> ConsoleParts:
    """Return the web console's dependencies for the management API `app`."""
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
    """Sends requests to the management API or to the console, by their path."""

    api: App
    pages: App

    def __post_init__(self) -> None:
        self.pages = BodyLimit(app=self.pages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Route one request."""
        is_api = str(scope["path"]).startswith(_API)
        await (self.api if is_api else self.pages)(scope, receive, send)


_STOP_S: Final = 2


@dataclass(slots=True, kw_only=True)
class ApiSockets:
    """Listening sockets: management, metrics, and the gateway's Unix socket."""

    admin: socket.socket
    metrics: socket.socket
    gateway: socket.socket

    def close(self) -> None:
        """Close the sockets that `serve` did not close."""
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
    """Whether metrics need no authentication; else viewers may read them."""
    console: str = ""
    """The console's factory, as in `ControlSettings`."""
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Serve until `stop` is called, then drain requests in flight."""
        # FastAPI loads slower than a small model, so it is imported last and concurrently.
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
                HeldRequests(
                    self.plane.scaling.activator,
                    ReflectionApp(fallback=api.build_gateway_answers(self.plane, is_local=True)),
                ),
                self.sockets.gateway,
            ),
        ]
        edge.raise_descriptor_limit()
        servers = []
        async with asyncio.TaskGroup() as group:
            for app, sock in apps:
                # The gateway's socket is open only to the gateway, which bounds its own callers.
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
    """Load FastAPI and uvicorn in a thread, so that the event loop stays responsive."""
    import fastapi  # noqa: F401, PLC0415  # for its side effect: later imports are instant
    import uvicorn  # noqa: F401, PLC0415  # as above
