"""Server of one replica's connections: listening, limits, timeouts, draining."""

import asyncio
import contextlib
import resource
import socket
import time
from typing import Final, Protocol

from headrace.core import PoolReplicaSettings, ReplicaSettings
from headrace.engine import Ticket
from headrace.serving.connection import Connection
from headrace.serving.exchange import Exchange
from headrace.serving.memory import MemoryTrimmer

MAX_ARRIVING: Final = 1024
_SWEEP_S: Final = 1.0
_ACCEPT_S: Final = 0.05
"""Time at the end for connections in the accept backlog: closing the socket would reset them."""
_FIRST_REQUEST_S: Final = 0.5
"""Time at the end in which a new connection may send a request."""
_BACKLOG: Final = 1024
_MIN_BODY_BYTES_IN_FLIGHT: Final = 512 << 20
_OTHER_DESCRIPTORS: Final = 128
_FEWEST_CONNECTIONS: Final = 16


class RequestHandler(Protocol):
    """Handler of requests."""

    def handle(self, exchange: Exchange) -> None:
        """Answer `exchange`, now or later; must not raise."""

    def cancel(self, ticket: Ticket) -> None:
        """Cancel the request of a caller that left before the response."""


class HttpServer:
    """HTTP/1.1 server for `application` on sockets that the caller created.

    `max_body_bytes_in_flight` bounds the bodies of all requests together, so that many callers with
    large bodies cannot exhaust memory: above it, the largest body that is still arriving is
    refused. Of more than `MAX_ARRIVING` requests that arrive in pieces, the one that began first is
    refused: the gateway has a limited number of connections to a replica, and slow callers would
    occupy them all. Above `max_connections`, the connection that was idle longest is closed.
    """

    def __init__(
        self, application: RequestHandler, settings: ReplicaSettings | PoolReplicaSettings
    ) -> None:
        self.max_body_bytes = settings.max_body_bytes
        self.max_body_bytes_in_flight = max(4 * settings.max_body_bytes, _MIN_BODY_BYTES_IN_FLIGHT)
        self.body_bytes = 0
        self.idle_timeout_s = settings.idle_timeout_s
        self.header_timeout_s = settings.header_timeout_s
        self.body_timeout_s = settings.body_timeout_s
        self.max_connections = descriptors_for(settings.max_connections)
        self.connections: set[Connection] = set()
        self._arriving: dict[Connection, None] = {}
        self.is_draining = False
        self.handle = application.handle
        self.cancel = application.cancel
        self._listeners: list[asyncio.Server] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self.relief = MemoryTrimmer()

    async def listen(self, sockets: list[socket.socket]) -> None:
        """Accept connections on bound `sockets`, which the server then owns."""
        loop = asyncio.get_running_loop()
        for sock in sockets:
            factory = (
                loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            )
            server = await factory(lambda: Connection(self), sock=sock, backlog=_BACKLOG)
            self._listeners.append(server)
        self._sweep()

    def admit(self, connection: Connection) -> None:
        """Register a new connection; at the limit, close the one that was idle longest."""
        self.connections.add(connection)
        if len(self.connections) <= self.max_connections:
            return
        idle = (
            (since, connection)
            for connection in self.connections
            if (since := connection.idle_since) is not None
        )
        # The new connection is idle too: it is closed if all others are busy.
        _, longest = min(idle, key=lambda pair: pair[0])
        longest.abort()

    def is_arriving(self, connection: Connection) -> None:
        """Register a request that arrives in pieces; above the limit, refuse the oldest one."""
        self._arriving[connection] = None
        if len(self._arriving) > min(MAX_ARRIVING, self.max_connections // 2):
            next(iter(self._arriving)).refuse_for_others()

    def has_arrived(self, connection: Connection) -> None:
        """Unregister a request that is complete or abandoned."""
        del self._arriving[connection]

    def make_room(self) -> bool:
        """Refuse the largest bodies that are still arriving; return whether the rest fits then.

        The newest body is not refused first: small senders would lose to large ones that never end.
        """
        while self.body_bytes > self.max_body_bytes_in_flight:
            largest = max(self.connections, key=lambda connection: connection.arriving_bytes)
            if not largest.arriving_bytes:
                return False
            largest.refuse_for_room()
        return True

    async def drain(self, *, timeout_s: float) -> None:
        """Refuse new connections, send the pending responses, then close all connections.

        Connections that were opened just before are served too, whether they are still in the
        kernel's backlog or their first request is arriving.
        """
        self.is_draining = True
        await asyncio.sleep(_ACCEPT_S)
        for listener in self._listeners:
            listener.close()
        started = time.monotonic()
        for connection in list(self.connections):
            connection.drain(spares_new=True)
        while self.connections and (now := time.monotonic()) < started + timeout_s:
            if now >= started + _FIRST_REQUEST_S:
                for connection in list(self.connections):
                    connection.drain()
            await asyncio.sleep(0.02)
        for connection in list(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.relief.stop()

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection in list(self.connections):
            connection.sweep(now)
        self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)


def descriptors_for(connections: int) -> int:
    """Return how many connections, up to `connections`, this process's descriptors allow.

    The soft limit of descriptors is often 1024, for programs that call `select`.
    """
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # not allowed here
        resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(min(connections, soft - _OTHER_DESCRIPTORS), _FEWEST_CONNECTIONS)
