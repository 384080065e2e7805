"""All connections of one replica: listening, limits, sweeping for timeouts, draining."""

import asyncio
import socket
import time
from typing import Final, Protocol

from headrace.core import PoolSettings, ReplicaSettings
from headrace.engine import Ticket
from headrace.serving.connection import Connection
from headrace.serving.exchange import Exchange

READ_BYTES: Final = 64 << 10
_SWEEP_S: Final = 1.0
_BACKLOG: Final = 1024
_MIN_BODY_BYTES_IN_FLIGHT: Final = 512 << 20


class Application(Protocol):
    """What answers the requests."""

    def handle(self, exchange: Exchange) -> None:
        """Answer `exchange`, now or later; does not raise."""

    def cancel(self, ticket: Ticket) -> None:
        """The caller left before the answer."""


class HttpServer:
    """Serves `application` over HTTP/1.1 on sockets that the caller made.

    `max_body_bytes_in_flight` bounds the bodies of all requests together, so that many callers with
    large bodies cannot take the machine's memory.
    """

    def __init__(self, application: Application, settings: ReplicaSettings | PoolSettings) -> None:
        self.max_body_bytes = settings.max_body_bytes
        self.max_body_bytes_in_flight = max(4 * settings.max_body_bytes, _MIN_BODY_BYTES_IN_FLIGHT)
        self.body_bytes = 0
        self.read_buffer = memoryview(bytearray(READ_BYTES))
        """Where connections read into; what they need of it they copy before the next read."""
        self.idle_timeout_s = settings.idle_timeout_s
        self.header_timeout_s = settings.header_timeout_s
        self.body_timeout_s = settings.body_timeout_s
        self.connections: set[Connection] = set()
        self.is_draining = False
        self.handle = application.handle
        self.cancel = application.cancel
        self._listeners: list[asyncio.Server] = []
        self._sweeper: asyncio.TimerHandle | None = None

    async def listen(self, sockets: list[socket.socket]) -> None:
        """Accept connections on `sockets`, which are bound; the server owns them from now on."""
        loop = asyncio.get_running_loop()
        for sock in sockets:
            factory = (
                loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            )
            server = await factory(lambda: Connection(self), sock=sock, backlog=_BACKLOG)
            self._listeners.append(server)
        self._sweep()

    async def drain(self, *, timeout_s: float) -> None:
        """Take no new connections, let those that wait have their answers, then close all."""
        self.is_draining = True
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.drain()
        until = time.monotonic() + timeout_s
        while self.connections and time.monotonic() < until:  # noqa: ASYNC110  # once, at the end
            await asyncio.sleep(0.02)
        for connection in list(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection in list(self.connections):
            connection.sweep(now)
        self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)
