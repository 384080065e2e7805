"""HTTP/1.1 client connection of the load generator, on httptools.

One request is in flight at a time. It does not use a client library, because the generator must
cost less than the server that it measures.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

import httptools
import msgspec

from headrace.client.credentials import tls_context
from headrace.core import UnavailableError
from headrace.core.error_kind import UNDECODABLE
from headrace.load.target import LoadTarget

_WHOLE_UP_TO_BYTES: Final = 64 << 10
"""Larger JSON bodies are checked only at both ends, so that parsing delays no due request."""
_HEAD_BYTES: Final = 4 << 10
_LENGTH_DIGITS: Final = 12


class _Output(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None


class _Answer(msgspec.Struct, frozen=True):
    outputs: list[_Output]


_DECODER: Final = msgspec.json.Decoder(_Answer)


def is_infer_response(body: bytes, head_length: bytes) -> bool:
    """Whether `body` is an infer response of the V2 protocol, by a quick check.

    Args:
        head_length: The header `Inference-Header-Content-Length`, if tensors follow the JSON.
    """
    if not head_length:
        return _is_json_answer(body)
    if not head_length.isdigit() or len(head_length) > _LENGTH_DIGITS:
        return False
    json_size = int(head_length)
    if json_size > len(body):
        return False
    try:
        answer = _DECODER.decode(body[:json_size])
    except UNDECODABLE:
        return False
    sizes = [(output.parameters or {}).get("binary_data_size", 0) for output in answer.outputs]
    return all(isinstance(size, int) for size in sizes) and json_size + sum(sizes) == len(body)


def _is_json_answer(body: bytes) -> bool:
    if len(body) > _WHOLE_UP_TO_BYTES:
        ends = body[:_HEAD_BYTES].lstrip()[:1], body[-_HEAD_BYTES:].rstrip()[-1:]
        return ends == (b"{", b"}") and b'"outputs"' in body
    try:
        _DECODER.decode(body)
    except UNDECODABLE:
        return False
    return True


MAX_ANSWER_BYTES: Final = 256 << 20
IDLE: Final = -1
_INFORMATIONAL: Final = 200
_SUCCESS: Final = range(200, 300)
_CONTENT_LENGTH: Final = b"content-length"
_TRANSFER_ENCODING: Final = b"transfer-encoding"
_HEAD_LENGTH: Final = b"inference-header-content-length"
_LENGTHS: Final = frozenset(map(len, (_CONTENT_LENGTH, _TRANSFER_ENCODING, _HEAD_LENGTH)))
CLOSED: Final = "closed"
RESET: Final = "reset"
MALFORMED: Final = "malformed"
TOO_LARGE: Final = "too_large"


class ConnectionPool(Protocol):
    """Owner of the connections, notified of finished requests and closed connections."""

    def request_done(
        self, connection: "LoadConnection", number: int, kind: str, now: float
    ) -> None:
        """Handle the end of request `number` at `now` (monotonic); `kind` is empty for success."""

    def closed(self, connection: "LoadConnection") -> None:
        """Handle a closed connection; it carries no request."""


class LoadConnection(asyncio.Protocol):
    """One HTTP connection; `number` is the request in flight, or `IDLE`."""

    __slots__ = (
        "_body",
        "_has_length",
        "_head_length",
        "_headers_done",
        "_max_answer_bytes",
        "_parser",
        "_parts",
        "_pool",
        "_size",
        "_transport",
        "is_open",
        "number",
    )

    def __init__(self, pool: ConnectionPool, *, max_answer_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._pool = pool
        self._max_answer_bytes = max_answer_bytes
        self.number = IDLE
        self.is_open = True
        self._parser = httptools.HttpResponseParser(self)
        self._next()

    def _next(self) -> None:
        """Reset the response state; the parser is ready for the next response."""
        self._body = b""
        self._parts: list[bytes] | None = None
        self._size = 0
        self._head_length = b""
        self._has_length = self._headers_done = False

    def send(self, number: int, request: bytes) -> None:
        """Send a request; the pool is notified when it ends."""
        self.number = number
        self._transport.write(request)

    def close(self) -> None:
        """Close the connection and drop the request in flight, which has timed out."""
        self.number = IDLE
        self.is_open = False
        self._transport.abort()

    # Callbacks of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse response bytes; close the connection on unsolicited bytes."""
        if self.number == IDLE:
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(MALFORMED)

    def eof_received(self) -> bool:
        """Complete a response without a length at the end of the stream."""
        if self.number != IDLE and self._headers_done and not self._has_length:
            self._is_whole(keep_alive=False)
        self.is_open = False
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the request in flight, if any, as failed."""
        self.is_open = False
        if self.number != IDLE:
            kind = RESET if isinstance(exc, ConnectionResetError | BrokenPipeError) else CLOSED
            self._report(kind, time.monotonic())
        self._pool.closed(self)
        del self._parser  # the parser refers back to this connection

    # Callbacks of httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store the headers that delimit the response."""
        if len(name) not in _LENGTHS:
            return
        name = name.lower()
        if name == _HEAD_LENGTH:
            self._head_length = value
        elif name in (_CONTENT_LENGTH, _TRANSFER_ENCODING):
            self._has_length = True

    def on_headers_complete(self) -> None:
        """Record that the head is complete; only a body may end with the connection."""
        self._headers_done = True

    def on_body(self, data: bytes) -> None:
        """Append a part of the body; most bodies come in one part."""
        self._size += len(data)
        if self._size > self._max_answer_bytes:
            self._fail(TOO_LARGE)
        elif not self._body:
            self._body = data
        elif self._parts is None:
            self._parts = [self._body, data]
        else:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        """Complete the response."""
        if self._parser.get_status_code() < _INFORMATIONAL:
            self._next()
        elif self.number != IDLE:
            self._is_whole(keep_alive=self._parser.should_keep_alive())

    def _is_whole(self, *, keep_alive: bool) -> None:
        now = time.monotonic()
        status = self._parser.get_status_code()
        body = self._body if self._parts is None else b"".join(self._parts)
        if status not in _SUCCESS:
            kind = f"http_{status}"
        else:
            kind = "" if is_infer_response(body, self._head_length) else MALFORMED
        self._next()
        if not keep_alive:
            self.is_open = False
        self._report(kind, now)
        if not keep_alive:
            self._transport.close()

    def _fail(self, kind: str) -> None:
        if self.number != IDLE:
            self.is_open = False
            self._report(kind, time.monotonic())
            self._transport.abort()

    def _report(self, kind: str, now: float) -> None:
        number, self.number = self.number, IDLE
        self._pool.request_done(self, number, kind, now)


_TLS_PORT: Final = 443
_PORT: Final = 80


async def open_dialler(target: LoadTarget) -> "SocketDialler":
    """Return the dialler for `target`.

    Raises:
        UnavailableError: The host name does not resolve.
    """
    server = target.server
    if server.uds:
        return SocketDialler(uds=server.uds)
    parts = urlsplit(f"//{server.authority}")
    host = parts.hostname or ""
    port = parts.port or (_TLS_PORT if server.tls else _PORT)
    loop = asyncio.get_running_loop()
    try:
        addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        msg = f"cannot connect to {server.authority}: {error.strerror or error}"
        raise UnavailableError(msg, retry_after_s=None) from error
    context = tls_context(target.connection_options.trust) if server.tls else None
    if context is True:
        context = ssl.create_default_context()
    return SocketDialler(
        addresses=[str(info[4][0]) for info in addresses],
        port=port,
        context=context or None,
        server_name=target.connection_options.trust.server_name or host,
    )


@dataclass(slots=True, kw_only=True)
class SocketDialler:
    """Opens connections to the first address that accepts one."""

    uds: str = ""
    addresses: Sequence[str] = ()
    port: int = 0
    context: ssl.SSLContext | None = None
    server_name: str = ""

    async def connect(self, make: Callable[[], LoadConnection]) -> LoadConnection:
        """See `Dialler`."""
        loop = asyncio.get_running_loop()
        if self.uds:
            _, connection = await loop.create_unix_connection(make, self.uds)
            return connection
        failure: OSError | None = None
        for address in self.addresses:
            try:
                _, connection = await loop.create_connection(
                    make,
                    address,
                    self.port,
                    ssl=self.context,
                    server_hostname=self.server_name if self.context else None,
                )
            except OSError as error:
                failure = failure or error
            else:
                self.addresses = [address]
                return connection
        raise cast("OSError", failure)
