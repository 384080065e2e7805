"""HTTP/1.1 connection: parses bytes into exchanges and writes their responses in order.

Implemented on httptools, because this path sets Headrace's latency: an ordinary request needs no
task, future or copy. Limits protect against callers: the size of headers and bodies, the time that
each may take, and the number of pipelined requests.
"""

import asyncio
import socket
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

import httptools

from headrace.core import HeadraceError, PayloadTooLargeError, UnavailableError
from headrace.core.headers import TIMEOUT_HEADER
from headrace.protocol import Body, Buffer, encode_error
from headrace.serving.exchange import Exchange, send_error
from headrace.serving.heads import KnownHead, learn
from headrace.serving.large_body import LARGE_BODY_BYTES, BodyReader, new_body
from headrace.serving.memory import LARGE_ABOVE

if TYPE_CHECKING:
    from headrace.serving.server import HttpServer

MAX_HEADER_BYTES: Final = 64 << 10
MAX_PIPELINED: Final = 128
_SLICE_BYTES: Final = 16 << 10
_FRAMING_RATIO: Final = 16
"""Framing bytes allowed per body byte; one-byte chunks need five."""
_ONCE: Final = frozenset(
    {
        b"host",
        b"content-type",
        b"content-encoding",
        b"inference-header-content-length",
        TIMEOUT_HEADER.encode(),
    }
)
"""Headers that may occur only once: a proxy and the replica could each use a different value."""
_TOO_MUCH_IN_FLIGHT: Final = "too many bytes of request bodies are in flight on this replica"
_LINGER_S: Final = 2.0
"""How long a refused body is read and dropped, so that the caller can read the response first."""
_HALF_CLOSED_S: Final = 0.1
"""How long a caller that closed its side still gets responses."""
_JOIN_BELOW: Final = 16 << 10
"""Smaller responses are joined into one write; for larger ones the copy would cost more."""


class Connection(asyncio.Protocol):
    """Connection of one caller. The server owns it and checks its timeouts."""

    __slots__ = (
        "_backlog",
        "_body",
        "_body_size",
        "_chunked",
        "_close_at",
        "_continue_due",
        "_direct",
        "_framing_bytes",
        "_has_eof",
        "_header_bytes",
        "_headers",
        "_headers_done",
        "_is_arriving",
        "_is_closing",
        "_is_new",
        "_is_reading_paused",
        "_is_writing_paused",
        "_known",
        "_misses",
        "_moved_at",
        "_now",
        "_parser",
        "_pipeline",
        "_raw",
        "_reads_large",
        "_repeated",
        "_server",
        "_since",
        "_target",
        "_transport",
        "_unsent",
    )

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._pipeline: deque[Exchange] = deque()
        self._now = self._since = self._moved_at = monotonic()
        self._unsent = 0
        self._is_closing = False
        self._is_new = True
        self._is_reading_paused = self._is_writing_paused = False
        self._has_eof = False
        self._reads_large = False
        self._is_arriving = False
        self._backlog = b""
        self._close_at: float | None = None
        self._known: KnownHead | None = None
        self._misses = 0
        self._raw: bytes | None = None
        self._reset()

    def _reset(self) -> None:
        """Clear the parsed request before the next one."""
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._headers_done = False
        self._header_bytes = 0
        self._body = b""
        self._chunked: bytearray | None = None
        self._direct: memoryview | None = None
        self._body_size = 0
        self._framing_bytes = 0
        self._repeated = b""
        self._continue_due = False

    @property
    def is_local(self) -> bool:
        """Whether the caller uses the Unix socket, which only Headrace's processes can reach."""
        sock = self._transport.get_extra_info("socket")
        return sock is not None and sock.family == socket.AF_UNIX

    @property
    def arriving_bytes(self) -> int:
        """Return the received bytes of an incomplete body."""
        return 0 if self._is_closing else self._body_size

    @property
    def idle_since(self) -> float | None:
        """Return the time since which the connection has had no request; None while it has one."""
        is_busy = self._pipeline or self._header_bytes or self._is_closing
        return None if is_busy else self._since

    # Callbacks of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register a new connection."""
        self._transport = cast("asyncio.Transport", transport)
        self._server.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """Cancel the pending requests of a caller that left."""
        self._is_closing = True
        server = self._server
        server.connections.discard(self)
        self._has_arrived()
        server.body_bytes -= self._body_size
        pipeline, self._pipeline = self._pipeline, deque()
        for exchange in pipeline:
            server.body_bytes -= len(exchange.body)
            if exchange.answer is None:
                server.cancel(exchange)
        self._parser = None  # type: ignore[assignment]  # it refers back to this connection

    def eof_received(self) -> bool:
        """Handle the end of the caller's data; the caller has most likely left.

        Responses that are ready soon are sent; other requests are cancelled, so that a caller that
        left does not occupy the queue.
        """
        self._has_eof = True
        if self._pipeline:
            asyncio.get_running_loop().call_later(_HALF_CLOSED_S, self._transport.close)
        return bool(self._pipeline)

    def data_received(self, data: bytes) -> None:
        """Process received bytes, which may hold no, one or several requests."""
        if self._is_closing:
            return
        self._now = monotonic()
        is_fresh = self._header_bytes == 0
        if is_fresh:
            self._since = self._now
        if len(data) > _SLICE_BYTES or self._backlog:
            self._feed_in_slices(data)
        elif not is_fresh or not self._is_known(data):
            self._feed(data)

    def _is_known(self, raw: bytes) -> bool:
        """Handle a request with a known head; return False if the parser must read it."""
        known_head = self._known
        match = None if known_head is None else known_head.find(raw)
        if known_head is None or match is None:
            self._misses = misses = self._misses + 1
            if not misses & (misses - 1):  # heads that never repeat: learn less and less often
                self._raw = raw
            return False
        headers, body = match
        server = self._server
        body_bytes = server.body_bytes + len(body)
        if len(body) > server.max_body_bytes or body_bytes > server.max_body_bytes_in_flight:
            return False
        server.body_bytes = body_bytes
        keep_alive = not server.is_draining
        self._hand_over(
            Exchange(
                self, known_head.method, known_head.target, headers, body, keep_alive, self._now
            )
        )
        return True

    def _go_on(self) -> None:
        """Parse the data that was held back while the caller was paused."""
        if not self._is_closing:
            self.data_received(b"")

    def _feed_in_slices(self, data: bytes) -> None:
        """Parse until the caller has to be paused; the rest of the data is held back.

        The responses to a slice of pipelined requests may be far larger than the slice.
        """
        rest = memoryview(self._backlog + data)
        self._backlog = b""
        while rest and not self._is_closing:
            if self._is_reading_paused:
                self._backlog = bytes(rest)
                return
            size = _SLICE_BYTES
            if self._direct is not None:
                size = max(size, len(self._direct) - self._body_size)
            self._feed(rest[:size])
            rest = rest[size:]

    def _feed(self, data: Buffer) -> None:
        if not self._headers_done:
            self._header_bytes += len(data)
        else:
            self._framing_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._close_after_answers()  # answered as if no upgrade was requested
        except httptools.HttpParserError as error:
            self._refuse(400, f"malformed HTTP request: {_text(error)}")
        else:
            self._check_framing()
            if self._header_bytes and not self._is_arriving and not self._is_closing:
                self._is_arriving = True
                self._server.is_arriving(self)

    def _has_arrived(self) -> None:
        """Record that the request is complete or abandoned."""
        if self._is_arriving:
            self._is_arriving = False
            self._server.has_arrived(self)

    def _check_framing(self) -> None:
        """Refuse heads and chunks whose framing exceeds its limit."""
        if not self._headers_done:
            if self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(431, f"request headers exceed {MAX_HEADER_BYTES} bytes")
        elif self._framing_bytes > MAX_HEADER_BYTES + (_FRAMING_RATIO + 1) * self._body_size:
            self._refuse(431, f"chunk extensions and trailers exceed {MAX_HEADER_BYTES} bytes")

    def pause_writing(self) -> None:
        """Stop reading from a caller that reads too slowly."""
        self._is_writing_paused = True
        self._pause()

    def resume_writing(self) -> None:
        """Resume reading after the caller caught up."""
        self._is_writing_paused = False
        self._resume()

    # Callbacks of httptools; they must not raise

    def on_url(self, url: bytes) -> None:
        """Add a part of the request target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; a trailer is ignored and must not change a header."""
        if self._headers_done:
            return
        name = name.lower()
        headers = self._headers
        if name in headers and name in _ONCE:
            self._repeated = name
        headers[name] = value

    def on_headers_complete(self) -> None:
        """Refuse a request whose announced body is too large, before the body is sent."""
        self._headers_done = True
        headers = self._headers
        if self._repeated:
            self._refuse(400, f"header {self._repeated.decode('latin-1')} appears twice")
            return
        if b"host" not in headers and self._parser.get_http_version() == "1.1":
            self._refuse(400, "header host is missing")
            return
        length = headers.get(b"content-length")
        limit = self._server.max_body_bytes
        if length is None and headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            self._refuse(501, "of transfer encodings, only chunked is supported")
            return
        if b"upgrade" in headers and length != b"0" and (length or b"transfer-encoding" in headers):
            self._refuse(501, "a request with a body cannot be upgraded: remove the header")
            return
        if length is not None and int(length) > limit:
            self._refuse_error(PayloadTooLargeError(limit_bytes=limit, got_bytes=int(length)))
            return
        if length is not None and int(length) > LARGE_BODY_BYTES:
            self._read_directly(int(length))
        if b"expect" in headers and headers[b"expect"].lower() == b"100-continue":
            self._continue_due = True
            self._write_continue()

    def _read_directly(self, length: int) -> None:
        """Allocate the body's memory at once, so that the kernel writes into it without copies.

        Announced memory costs nothing until bytes arrive: it is not touched before.
        """
        try:
            self._direct = new_body(length, self._headers.get(b"inference-header-content-length"))
        except MemoryError:
            self.refuse_for_room()
        else:
            if not self._reads_large:
                self._reads_large = True
                self._transport.set_protocol(BodyReader(self))

    def room_for_body(self) -> memoryview | None:
        """Return the buffer for the rest of a large body; None if no large body is being read."""
        if self._direct is None or self._is_closing:
            return None
        return self._direct[self._body_size :]

    def body_arrived(self, size: int) -> None:
        """Count bytes that were written to the buffer of a large body."""
        if self._direct is None or self._is_closing:
            return
        self._now = monotonic()
        if self._takes(size) and self._body_size == len(self._direct):
            self.on_message_complete()
            self._parser = httptools.HttpRequestParser(self)  # it never received the body's end

    def head_arrived(self, data: bytes) -> None:
        """Process bytes after a large body, and return to normal reading unless another follows."""
        self.data_received(data)
        if self._direct is None and not self._is_closing:
            self._reads_large = False
            self._transport.set_protocol(self)

    def on_body(self, data: bytes) -> None:
        """Add a part of the body; most bodies arrive in one part."""
        if self._is_closing:
            return
        size = len(data)
        if self._direct is not None:
            self._direct[self._body_size : self._body_size + size] = data
            self._takes(size)
        elif not self._takes(size):
            return
        elif not self._body:
            self._body = data
        elif self._chunked is None:
            self._chunked = bytearray(self._body + data)
        else:
            self._chunked += data  # two-byte chunks in a list would each be an object

    def _takes(self, size: int) -> bool:
        """Count received body bytes; return False if the body is too large."""
        server = self._server
        self._body_size += size
        server.body_bytes += size
        if self._body_size > server.max_body_bytes:
            self._refuse_error(PayloadTooLargeError(limit_bytes=server.max_body_bytes))
        elif server.body_bytes > server.max_body_bytes_in_flight and not server.make_room():
            self.refuse_for_room()
        return not self._is_closing

    def on_message_complete(self) -> None:
        """Dispatch the complete request."""
        if self._is_closing:
            return
        parser = self._parser
        server = self._server
        exchange = Exchange(
            self,
            parser.get_method(),
            self._target,
            self._headers,
            self._body if self._chunked is None and self._direct is None else self._whole_body(),
            parser.should_keep_alive() and not server.is_draining,
            self._now,
        )
        raw, self._raw = self._raw, None
        if raw is not None and exchange.keep_alive:
            headers, size = exchange.headers, self._body_size
            self._known = learn(raw, exchange.method, exchange.path, headers, size)
        self._reset()
        self._has_arrived()
        self._is_new = False
        self._hand_over(exchange)

    def _hand_over(self, exchange: Exchange) -> None:
        pipeline = self._pipeline
        pipeline.append(exchange)
        if len(pipeline) >= MAX_PIPELINED:
            self._pause()
        if not exchange.keep_alive:
            self._is_closing = True  # later data is not read
        self._server.handle(exchange)

    def _whole_body(self) -> Body:
        return bytes(self._chunked or b"") if self._direct is None else self._direct

    # Responses

    def flush(self, exchange: Exchange) -> None:
        """Write the response of `exchange`, and those that waited behind it, in request order."""
        pipeline = self._pipeline
        if not pipeline or pipeline[0] is not exchange:
            return
        server = self._server
        while pipeline:
            head = pipeline[0]
            answer = head.answer
            if answer is None:
                break
            pipeline.popleft()
            size = len(head.body)
            server.body_bytes -= size
            if size > LARGE_ABOVE:
                server.relief.had(size)
            self._write(answer)
            if not head.keep_alive:
                self._finish()
                return
        if self._is_reading_paused:
            self._resume()
        if not pipeline:
            self._rest()

    def _rest(self) -> None:
        """Handle the end of the pipeline: every response was written."""
        if not self._header_bytes:
            self._since = monotonic()
        if self._has_eof and not self._backlog:
            self._transport.close()
        elif self._continue_due:
            self._write_continue()

    def _write(self, answer: bytes | list[Buffer]) -> None:
        if isinstance(answer, bytes):
            self._transport.write(answer)
        elif sum(map(len, answer)) < _JOIN_BELOW:
            self._transport.write(b"".join(answer))
        else:
            self._transport.writelines(answer)

    def _write_continue(self) -> None:
        """Send 100 Continue once no earlier response is pending on this connection."""
        if not self._pipeline and not self._is_closing:
            self._continue_due = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _finish(self) -> None:
        """Close after the last response; linger if the caller is still sending."""
        self._is_closing = True
        if self._close_at is None:
            self._transport.close()
        elif self._transport.can_write_eof():
            self._transport.write_eof()

    # Refusals of incomplete requests

    def _refuse(self, status: int, message: str) -> None:
        """Send an HTTP-level error status."""
        if exchange := self._last_exchange():
            exchange.send(status, encode_error(message))

    def refuse_for_others(self) -> None:
        """Refuse the arriving request, which takes longer than too many other arriving requests."""
        self._refuse(
            408, "the request did not arrive in time, and too many other requests are arriving"
        )

    def refuse_for_room(self) -> None:
        """Refuse the arriving body, which does not fit in memory with the others."""
        self._refuse_error(UnavailableError(_TOO_MUCH_IN_FLIGHT))

    def _refuse_error(self, error: HeadraceError) -> None:
        if exchange := self._last_exchange():
            send_error(exchange, error)

    def _last_exchange(self) -> Exchange | None:
        """Return an exchange that refuses the data read so far; None if that was done before.

        No more data is read from this connection.
        """
        if self._is_closing:
            return None
        self._is_closing = True
        self._has_arrived()
        self._close_at = self._now + _LINGER_S
        self._server.body_bytes -= self._body_size
        self._body_size = 0
        self._body, self._chunked, self._direct = b"", None, None
        exchange = Exchange(self, b"", self._target, self._headers, b"", False, self._now)  # noqa: FBT003  # keeps nothing alive
        self._pipeline.append(exchange)
        return exchange

    # Flow control and timeouts

    def _pause(self) -> None:
        if not self._is_reading_paused:
            self._is_reading_paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if (
            self._is_reading_paused
            and not self._is_writing_paused
            and len(self._pipeline) < MAX_PIPELINED // 2
            and not self._transport.is_closing()
        ):
            self._is_reading_paused = False
            self._transport.resume_reading()
            if self._backlog:
                asyncio.get_running_loop().call_soon(self._go_on)

    def sweep(self, now: float) -> None:
        """Close the connection if it was idle, or slow to send or read, for too long."""
        if self._is_stuck(now):
            self._transport.abort()
        elif self._close_at is not None:
            if now >= self._close_at and not self._pipeline:
                self._transport.abort()
        elif self._pipeline or self._is_closing:
            return
        elif self._headers_done:
            if now - self._since > self._server.body_timeout_s:
                self._refuse(408, "the request body did not arrive in time")
        elif self._header_bytes:
            if now - self._since > self._server.header_timeout_s:
                self._refuse(408, "the request headers did not arrive in time")
        elif now - self._since > self._server.idle_timeout_s:
            self._transport.close()

    def _is_stuck(self, now: float) -> bool:
        """Whether the caller has read nothing of a pending response for too long.

        A closing transport waits for its caller to read, possibly forever.
        """
        unsent = self._transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent:
            self._moved_at = now
        self._unsent = unsent
        return now - self._moved_at > self._server.idle_timeout_s

    def drain(self, *, spares_new: bool = False) -> None:
        """Close as soon as no request is active on this connection.

        Args:
            spares_new: Keep a connection that has had no request: its caller is about to send one.
        """
        if self._is_new and spares_new:
            return
        if self._pipeline or not self._header_bytes:
            self._close_after_answers()

    def _close_after_answers(self) -> None:
        """Stop reading, and close once the pipeline is empty."""
        self._is_closing = True
        if self._pipeline:
            self._pipeline[-1].keep_alive = False
        else:
            self._transport.close()

    def abort(self) -> None:
        """Close immediately."""
        self._is_closing = True
        self._transport.abort()


def _text(error: Exception) -> str:
    return str(error).removeprefix("b'").removesuffix("'")[:200] or type(error).__name__
