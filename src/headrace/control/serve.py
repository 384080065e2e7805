"""How does the management API get on its sockets? Uvicorn in the control plane's own loop."""

import asyncio
import socket
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from headrace.control.access.parts import Access
from headrace.control.activator import HeldRequests
from headrace.control.pages import console_of
from headrace.control.plane import ControlPlane

if TYPE_CHECKING:
    from headrace.control.guards import App

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
    """Serves the API on `sockets` until `stop`.

    `tls`: None for plain text. `metrics_are_open`: to everybody who reaches their port; else to
    viewers. `console`: as in the settings.
    """

    plane: ControlPlane
    access: Access
    sockets: ApiSockets
    allowed_hosts: frozenset[str]
    tls: ssl.SSLContext | None = None
    metrics_are_open: bool = True
    console: str = ""
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Serve until `stop` was called; requests in flight get a moment."""
        # FastAPI takes longer to load than a small model, so it comes last, beside everything else.
        await asyncio.to_thread(_import_frameworks)
        from headrace.control import api, edge  # noqa: PLC0415  # as above

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
                HeldRequests(self.plane.activator, api.build_gateway_answers(self.plane)),
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
