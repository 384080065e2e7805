"""All connections of one replica: listening, limits, sweeping for timeouts, draining."""

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
"""At the end: for connections that are made and not accepted. Closed, a socket resets them."""
_FIRST_REQUEST_S: Final = 0.5
"""At the end: how long a new connection may take to send a request."""
_BACKLOG: Final = 1024
_MIN_BODY_BYTES_IN_FLIGHT: Final = 512 << 20
_OTHER_DESCRIPTORS: Final = 128
_FEWEST_CONNECTIONS: Final = 16


class RequestHandler(Protocol):
    """What answers the requests."""

    def handle(self, exchange: Exchange) -> None:
        """Answer `exchange`, now or later; does not raise."""

    def cancel(self, ticket: Ticket) -> None:
        """The caller left before the answer."""


class HttpServer:
    """Serves `application` over HTTP/1.1 on sockets that the caller made.

    `max_body_bytes_in_flight` bounds the bodies of all requests together, so that many callers with
    large bodies cannot take the machine's memory: beyond it, the largest of those that are still
    arriving is refused. Of more than `MAX_ARRIVING` requests that come bit by bit, the one that
    began first is refused: a gateway has so many connections to us and no more, and slow callers
    would take them all. Beyond `max_connections`, the one that has been idle longest is closed.
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
        """Accept connections on `sockets`, which are bound; the server owns them from now on."""
        loop = asyncio.get_running_loop()
        for sock in sockets:
            factory = (
                loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            )
            server = await factory(lambda: Connection(self), sock=sock, backlog=_BACKLOG)
            self._listeners.append(server)
        self._sweep()

    def admit(self, connection: Connection) -> None:
        """Take a new connection; if there is no room, close the one that has been idle longest."""
        self.connections.add(connection)
        if len(self.connections) <= self.max_connections:
            return
        idle = (
            (since, connection)
            for connection in self.connections
            if (since := connection.idle_since) is not None
        )
        # The new one is idle too: it is what is closed if all the others are busy.
        _, longest = min(idle, key=lambda pair: pair[0])
        longest.abort()

    def is_arriving(self, connection: Connection) -> None:
        """A request began that did not come at once; the one that began first may have to go."""
        self._arriving[connection] = None
        if len(self._arriving) > min(MAX_ARRIVING, self.max_connections // 2):
            next(iter(self._arriving)).refuse_for_others()

    def has_arrived(self, connection: Connection) -> None:
        """It is whole, or given up."""
        del self._arriving[connection]

    def make_room(self) -> bool:
        """Refuse the largest bodies that are still arriving; whether what is there fits then.

        Not whichever came last: who sends little would lose to who sends much and never ends.
        """
        while self.body_bytes > self.max_body_bytes_in_flight:
            largest = max(self.connections, key=lambda connection: connection.arriving_bytes)
            if not largest.arriving_bytes:
                return False
            largest.refuse_for_room()
        return True

    async def drain(self, *, timeout_s: float) -> None:
        """Take no new connections, let those that wait have their answers, then close all.

        Who connected just before is answered too, whether the kernel still holds the connection or
        its first request is under way.
        """
        self.is_draining = True
        await asyncio.sleep(_ACCEPT_S)
        for listener in self._listeners:
            listener.close()
        began = time.monotonic()
        for connection in list(self.connections):
            connection.drain(spares_new=True)
        while self.connections and (now := time.monotonic()) < began + timeout_s:
            if now >= began + _FIRST_REQUEST_S:
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
    """How many connections this process may have, at most `connections`: each is a descriptor.

    The soft limit of them is often 1024, for the sake of programs that call `select`.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # not allowed here
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(min(connections, soft - _OTHER_DESCRIPTORS), _FEWEST_CONNECTIONS)
