"""Connection limits of the control plane's server that uvicorn lacks.

Clients connect before they authenticate. So the time for a request's head and body, the size of its
head, and the number of connections are bounded here, and an idle connection is closed to make room
for a new one.

Imported late, as uvicorn is.
"""

import asyncio
import contextlib
import resource
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from headrace.control.asgi.guards import PROBLEM_TYPE, App, is_upload, problem_body
from headrace.core import Code

T = TypeVar("T")

MAX_HEAD_BYTES: Final = 64 << 10
HEAD_TIMEOUT_S: Final = 10.0
BODY_TIMEOUT_S: Final = 60.0
MAX_CONNECTIONS: Final = 512
_TIMEOUT: Final = 408
_HEAD_TOO_LARGE: Final = 431
_PHRASES: Final = {
    _TIMEOUT: "Request Timeout",
    _HEAD_TOO_LARGE: "Request Header Fields Too Large",
}


class BoundedProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP/1.1 protocol with limits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # uvicorn's signature
        super().__init__(*args, **kwargs)
        self._since = self.loop.time()
        self._in_head = True
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Make room for the connection, and start the timeout of its first head."""
        super().connection_made(cast("asyncio.Transport", transport))
        self._wait(HEAD_TIMEOUT_S)
        if len(self.connections) > MAX_CONNECTIONS:
            idle = [
                protocol
                for protocol in self.connections
                if isinstance(protocol, BoundedProtocol) and protocol.is_between_requests
            ]
            min(idle, key=lambda protocol: protocol._since).transport.abort()  # noqa: SLF001  # its own kind

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection from the count."""
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def is_between_requests(self) -> bool:
        """Whether no request is in progress on the connection."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is None or cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head; uvicorn does the rest."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._timer is None:
                self._wait(HEAD_TIMEOUT_S)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(_HEAD_TOO_LARGE, f"the headers exceed {MAX_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """Start the timeout of the body."""
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()
        if not is_upload(self.scope["method"], self.scope["path"]):  # it limits pauses itself
            self._wait(BODY_TIMEOUT_S)

    def on_message_complete(self) -> None:
        """Start the timeout of the next request's head."""
        super().on_message_complete()
        self._stop_waiting()
        self._in_head, self._head_bytes = True, 0
        self._since = self.loop.time()

    def _wait(self, timeout_s: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(timeout_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self._in_head and not self._head_bytes:
            self.transport.close()
        else:
            self._refuse(_TIMEOUT, "the request did not arrive in time")

    def _refuse(self, status: int, detail: str) -> None:
        """Send an error, unless a response has begun, and close the connection."""
        self._stop_waiting()
        if self.transport.is_closing():
            return
        if self.is_between_requests or not self.cycle.response_started:
            body = problem_body(status=status, code=Code.INVALID_ARGUMENT, detail=detail)
            head = (
                f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: {PROBLEM_TYPE}\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()


@dataclass(slots=True)
class SharedCall(Generic[T]):
    """One call at a time: concurrent callers share its result."""

    make: Callable[[], Awaitable[T]]
    _running: "asyncio.Future[T] | None" = None

    async def get(self) -> T:
        """Return the result of the call in progress, or of a new one."""
        if self._running is None:
            self._running = asyncio.ensure_future(self.make())
            self._running.add_done_callback(self._forget)
        return await asyncio.shield(self._running)

    def _forget(self, _done: "asyncio.Future[T]") -> None:
        self._running = None


def raise_descriptor_limit() -> None:
    """Raise the descriptor limit to the maximum, so that connections leave some for files."""
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the process handles signals


def make_server(
    app: App,
    *,
    stop_s: int,
    protocol: type[asyncio.Protocol] | None = BoundedProtocol,
    tls: ssl.SSLContext | None = None,
    keep_alive_s: int = 5,
) -> uvicorn.Server:
    """Return a server for an existing event loop, which is passed its socket.

    Args:
        stop_s: How long requests in flight may take after a stop request.
        protocol: None for uvicorn's protocol, without limits.
        tls: None for plain text.
    """
    config = uvicorn.Config(
        app,
        http=protocol or "auto",
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        proxy_headers=False,  # clients could forge their address
        log_level="warning",
        timeout_graceful_shutdown=stop_s,
        timeout_keep_alive=keep_alive_s,
    )
    config.load()
    config.ssl = tls
    return _Server(config)
