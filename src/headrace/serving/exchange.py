"""HTTP request on a connection and its response; a ticket in the engine while it runs."""

import logging
import math
import re
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

from headrace.core import HeadraceError, InferResponse, RuntimeFailedError, UnavailableError
from headrace.core.headers import NOT_STARTED_HEADER, ROWS_HEADER, WANT_HEADER
from headrace.engine import Outcome, Ticket
from headrace.protocol import Body, Buffer, encode_error, grpc_status, http_status
from headrace.protocol.grpc_wire import grpc_message
from headrace.protocol.openai import EMBEDDINGS_PATH, RERANK_PATHS, encode_openai_error

if TYPE_CHECKING:
    from headrace.serving.state import ReplicaState

_log = logging.getLogger(__name__)

JSON: Final = b"application/json"
TEXT: Final = b"text/plain; charset=utf-8"
GRPC: Final = b"application/grpc"
_WANT: Final = WANT_HEADER.encode()
_ROWS: Final = ROWS_HEADER.encode()
_NOT_STARTED: Final = NOT_STARTED_HEADER.encode()
_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
} | {499: b"HTTP/1.1 499 Client Closed Request\r\n"}
JSON_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
GRPC_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nContent-Length: "
_TENSORS_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
    b"Inference-Header-Content-Length: %d\r\nContent-Length: "
)
_END: Final = b"\r\n\r\n"
_TRACE: Final = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")


def tensors_head(json_length: int) -> bytes:
    """Return a head as `JSON_HEAD`, for tensors that follow `json_length` bytes of JSON."""
    return _TENSORS_HEAD % json_length


class ConnectionInfo(Protocol):
    """Connection from which a request came and to which its response goes."""

    @property
    def is_local(self) -> bool:
        """Whether only the installation's own processes can have sent the request."""

    def flush(self, exchange: "Exchange") -> None:
        """Write the response of `exchange` when its turn comes."""


class ResponseWriter(Protocol):
    """Encoder of the model's responses; each protocol has one."""

    state: "ReplicaState"
    """State of the model."""

    def respond(self, exchange: "Exchange", response: InferResponse) -> None:
        """Send the model's response.

        Raises:
            HeadraceError: It cannot be encoded, so the exchange sends this error.
        """


class Exchange(Ticket):
    """A complete request and its response.

    `headers` are keyed by lower-case name. `answer` is None until it may be written.
    """

    __slots__ = (
        "answer",
        "body",
        "connection",
        "headers",
        "is_head",
        "keep_alive",
        "method",
        "observers",
        "path",
        "query",
        "wire",
    )

    wire: ResponseWriter
    observers: tuple[Callable[["Exchange", Outcome], None], ...]
    """Receive the outcome after it was sent."""

    def __init__(  # noqa: PLR0917  # positional: called for every request
        self,
        connection: ConnectionInfo,
        method: bytes,
        path: bytes,
        headers: dict[bytes, bytes],
        body: Body,
        keep_alive: bool,  # noqa: FBT001  # as above
        received_at: float,
    ) -> None:
        Ticket.__init__(self, received_at)  # `super()` creates an object first
        self.connection = connection
        self.method = method
        self.path = path
        self.query = b""
        self.headers = headers
        self.body = body
        self.keep_alive = keep_alive
        self.is_head = False
        self.answer: list[Buffer] | bytes | None = None
        self.observers = ()

    @property
    def request_id(self) -> str:
        """Return the caller's or the gateway's id of this request, for the log."""
        return self.headers.get(b"x-request-id", b"").decode("latin-1")

    @property
    def identity(self) -> tuple[str, str]:
        """Return the trace that the request belongs to, otherwise its own id."""
        trace = _TRACE.fullmatch(self.headers.get(b"traceparent", b""))
        if trace is not None:
            return "trace_id", trace[1].decode()
        return "request_id", self.request_id

    @property
    def is_grpc(self) -> bool:
        """Whether the caller uses gRPC through the gateway's bridge."""
        return self.headers.get(b"content-type", b"").startswith(GRPC)

    def complete(self, outcome: Outcome) -> None:
        """Send the engine's outcome.

        Errors are handled here: the rest of the batch waits for its responses.
        """
        try:
            if isinstance(outcome, InferResponse):
                try:
                    self.wire.respond(self, outcome)
                except HeadraceError as error:
                    self.refuse(error)
                    return
                if self.observers:
                    self._observe(outcome)
            else:
                self.refuse(outcome)
        except Exception:  # noqa: BLE001  # the request edge, on the way out
            self.fail()

    def refuse(self, error: HeadraceError) -> None:
        """Send an error in the caller's protocol; log a failure of the model under the sent id."""
        if isinstance(error, RuntimeFailedError):
            self.headers.setdefault(b"x-request-id", str(uuid.uuid4()).encode())
            extra = {"request_id": self.request_id}
            _log.error("the model failed", exc_info=error.__cause__, extra=extra)
        if self.is_grpc:
            send_grpc_error(self, error)
        else:
            send_error(self, error)
        self._observe(error)

    def fail(self) -> None:
        """Send an internal error; called while the exception of a bug is handled."""
        _log.exception("request failed", extra={"request_id": self.request_id})
        self.refuse(HeadraceError("internal error; the replica's log has the details"))

    def _observe(self, outcome: Outcome) -> None:
        for observe in self.observers:
            try:
                observe(self, outcome)
            except Exception:  # noqa: BLE001  # the request edge: the response was already sent
                _log.exception("cannot observe a response", extra={"request_id": self.request_id})

    def send_json(self, body: bytes) -> None:
        """Send 200 with a JSON body."""
        self.send_ok(JSON_HEAD, body)

    def send_ok(self, head: bytes, body: bytes) -> None:
        """Send 200; the common case, optimised.

        Args:
            head: The status line and headers, up to the value of Content-Length, which comes last.
            body: The whole body.
        """
        answer = b"%b%d%b" % (head, len(body), self._tail(is_answered=True))
        self.answer = answer if self.is_head else answer + body
        self.connection.flush(self)

    def send(
        self,
        status: int,
        body: Buffer | list[Buffer] = b"",
        *,
        content_type: bytes = JSON,
        headers: dict[bytes, bytes] | None = None,
    ) -> None:
        """Send a response with any status, body and extra headers."""
        parts = body if isinstance(body, list) else [body]
        lines = [_STATUS_LINES[status], b"Content-Type: %b\r\n" % content_type]
        if headers:
            lines += [b"%b: %b\r\n" % item for item in headers.items()]
        lines.append(b"Content-Length: %d" % sum(map(len, parts)))
        lines.append(self._tail(is_answered=status == HTTPStatus.OK and not self.is_grpc))
        head = b"".join(lines)
        self.answer = [head] if self.is_head else [head, *parts]
        self.connection.flush(self)

    def _tail(self, *, is_answered: bool) -> bytes:
        """Return the end of the head, after the value of Content-Length."""
        headers = self.headers
        request_id = headers.get(b"x-request-id")
        tail = b"" if request_id is None else b"\r\nx-request-id: %b" % request_id
        if not self.keep_alive:
            tail += b"\r\nConnection: close"
        elif b"connection" in headers and headers[b"connection"].lower() == b"keep-alive":
            tail += b"\r\nConnection: keep-alive"  # HTTP/1.0 clients need it
        if _WANT in headers:
            rows = getattr(self, "rows", 0) if is_answered else 0  # only the engine sets them
            tail += b"\r\n%b: %d" % (_ROWS, rows)
        return tail + _END


def send_error(exchange: Exchange, error: HeadraceError) -> None:
    """Send an error in JSON: its status, its text, and a retry time where waiting helps."""
    headers = {}
    if error.retry_after_s is not None:
        headers[b"Retry-After"] = b"%d" % max(1, math.ceil(error.retry_after_s))
        if isinstance(error, UnavailableError):
            headers[_NOT_STARTED] = b"1"  # the gateway may try another replica
    status = http_status(error)
    exchange.send(status, error_body(exchange, error, status), headers=headers)


def send_grpc_error(exchange: Exchange, error: HeadraceError) -> None:
    """Send an error to a gRPC call: status, text and retry time."""
    headers = {
        b"grpc-status": b"%d" % grpc_status(error),
        b"grpc-message": grpc_message(str(error)).encode(),
    }
    if error.retry_after_s is not None:
        headers[b"retry-after"] = b"%d" % max(1, math.ceil(error.retry_after_s))
        headers[b"grpc-retry-pushback-ms"] = b"%d" % max(1, math.ceil(error.retry_after_s * 1000))
    exchange.send(200, content_type=GRPC, headers=headers)


def error_body(exchange: Exchange, error: HeadraceError, status: int) -> bytes:
    """Return the JSON of an error: OpenAI's on its routes, else the Open Inference Protocol's."""
    path = exchange.path.partition(b"?")[0].rstrip(b"/")
    is_openai = path == EMBEDDINGS_PATH or path in RERANK_PATHS
    return encode_openai_error(error, status) if is_openai else encode_error(error)
