"""One connection to the server: a request out, its answer in, and what went wrong between.

Hand-made over httptools, as the replica's side is: the generator must cost less than what it
measures. One request at a time, as clients of HTTP/1.1 do.
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
"""A larger JSON is looked at only at its ends: to read it would hold up what is due."""
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
    """Whether `body` is an infer response of the V2 protocol, as far as can be told quickly.

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
    """Who owns connections."""

    def request_done(
        self, connection: "LoadConnection", number: int, kind: str, now: float
    ) -> None:
        """Request `number` is over since `now` (monotonic); `kind` is empty if it went well."""

    def closed(self, connection: "LoadConnection") -> None:
        """The connection is closed; it carries no request."""


class LoadConnection(asyncio.Protocol):
    """Carries the request `number`, or `IDLE`'s while it is idle."""

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
        """Forget the answer that was read; the parser itself is ready for another."""
        self._body = b""
        self._parts: list[bytes] | None = None
        self._size = 0
        self._head_length = b""
        self._has_length = self._headers_done = False

    def send(self, number: int, request: bytes) -> None:
        """Send a request; the pool hears of its end."""
        self.number = number
        self._transport.write(request)

    def close(self) -> None:
        """Close it and forget the request that is under way: its answer would come too late."""
        self.number = IDLE
        self.is_open = False
        self._transport.abort()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer, or that nobody asked for."""
        if self.number == IDLE:
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(MALFORMED)

    def eof_received(self) -> bool:
        """The server will send no more: an answer without a length ends here."""
        if self.number != IDLE and self._headers_done and not self._has_length:
            self._is_whole(keep_alive=False)
        self.is_open = False
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The server left, or we closed."""
        self.is_open = False
        if self.number != IDLE:
            kind = RESET if isinstance(exc, ConnectionResetError | BrokenPipeError) else CLOSED
            self._report(kind, time.monotonic())
        self._pool.closed(self)
        del self._parser  # it refers back to this connection

    # What httptools calls

    def on_header(self, name: bytes, value: bytes) -> None:
        """Notice what says where the answer ends."""
        if len(name) not in _LENGTHS:
            return
        name = name.lower()
        if name == _HEAD_LENGTH:
            self._head_length = value
        elif name in (_CONTENT_LENGTH, _TRANSFER_ENCODING):
            self._has_length = True

    def on_headers_complete(self) -> None:
        """Only a body may end with the connection, never a head."""
        self._headers_done = True

    def on_body(self, data: bytes) -> None:
        """A part of the body; most come in one."""
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
        """The answer is whole."""
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
    """What opens connections to `target`.

    Raises:
        UnavailableError: The name means no address.
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
    """Opens connections to the first address that takes one."""

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
