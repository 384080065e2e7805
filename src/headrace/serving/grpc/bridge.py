"""gRPC calls to a replica, which Envoy's reverse bridge carries over HTTP/1.1.

The bridge hands over the message with its gRPC frame and takes the answer the same way. An error is
HTTP 200 without a body, with `grpc-status` and `grpc-message` as headers: the bridge makes trailers
of them.

https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from headrace.core import (
    InferResponse,
    InvalidArgumentError,
    ModelNotFoundError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
    UnsupportedError,
)
from headrace.core.headers import NAMED_HEADER
from headrace.protocol import (
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from headrace.protocol.grpc_codec import (
    GrpcInferCodec,
    frame,
    parse_grpc_timeout,
    unframe,
)
from headrace.protocol.grpc_messages import (
    encode_health,
    encode_response,
    parse_request,
    rpc_names,
)
from headrace.protocol.protos import HEALTH_SERVICE, INFERENCE_SERVICE
from headrace.serving.exchange import GRPC_HEAD, Exchange
from headrace.serving.routing import Handler, rank, timeout_s
from headrace.serving.state import ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable

Fields = dict[str, Any]
INFER: Final = "ModelInfer"
STREAM_INFER: Final = "ModelStreamInfer"
_SHARED_MEMORY: Final = "Client shared memory is not supported: send tensors in the request."


class GrpcApi:
    """Handler of unary calls about a replica and its model; `has_repository` as in `V2Api`."""

    def __init__(self, state: ReplicaState, *, has_repository: bool) -> None:
        self._state = state
        self._has_repository = has_repository
        self._answers: dict[str, Callable[[Any], Fields]] = {
            "ServerLive": lambda _request: {"live": True},
            "ServerReady": lambda _request: {"ready": state.is_ready},
            "ModelReady": self._model_ready,
            "ServerMetadata": lambda _request: server_metadata(has_model_repository=has_repository),
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._load_or_unload,
            "RepositoryModelUnload": self._load_or_unload,
        }

    @property
    def rpcs(self) -> list[str]:
        """Return every unary rpc except `ModelInfer`, including unsupported ones."""
        return [name for name in rpc_names() if name not in {INFER, STREAM_INFER}]

    def answer(self, rpc: str, message: bytes) -> bytes:
        """Return the serialised response to a call of the inference service.

        Raises:
            HeadraceError: The call failed; the caller gets it as a gRPC status.
        """
        answer = self._answers.get(rpc)
        if answer is None:
            raise UnsupportedError(_SHARED_MEMORY if "Memory" in rpc else f"{rpc} is not supported")
        return encode_response(rpc, answer(parse_request(rpc, message)))

    def check_health(self, message: bytes) -> bytes:
        """Answer grpc.health.v1, for the server (empty name) or the inference service."""
        service = parse_request("Check", message, service=HEALTH_SERVICE).service
        if service not in {"", INFERENCE_SERVICE, self._state.name}:
            msg = f"unknown service '{service[:200]}'"
            raise NotFoundError(msg)
        return encode_health(serving=self._state.is_ready)

    def check_model(self, name: str, version: str) -> None:
        """Check that a call names this replica's model.

        Raises:
            ModelNotFoundError: It names another model or version.
        """
        state = self._state
        if name != state.name or version not in {"", state.version}:
            raise ModelNotFoundError(name[:200], version[:50] if name == state.name else "")

    def _model_ready(self, request: Any) -> Fields:  # noqa: ANN401  # a generated class
        state = self._state
        is_this = request.name == state.name and request.version in {"", state.version}
        return {"ready": is_this and state.is_ready}

    def _model_metadata(self, request: Any) -> Fields:  # noqa: ANN401  # as above
        self.check_model(request.name, request.version)
        state = self._state
        described = state.description
        return model_metadata(
            state.name, [state.version], described.signature, runtime=described.runtime
        )

    def _model_config(self, request: Any) -> Fields:  # noqa: ANN401  # as above
        self.check_model(request.name, request.version)
        return {"config": self._state.config()}

    def _model_statistics(self, request: Any) -> Fields:  # noqa: ANN401  # as above
        if request.name:
            self.check_model(request.name, request.version)
        return model_statistics([self._state.statistics])

    def _repository_index(self, request: Any) -> Fields:  # noqa: ANN401  # as above
        self._check_repository()
        return {"models": repository_index([self._state.index_entry()], ready=request.ready)}

    def _load_or_unload(self, _request: Any) -> Fields:  # noqa: ANN401  # as above
        self._check_repository()
        msg = "explicit model load / unload is not allowed: this replica serves one model"
        raise UnavailableError(msg, retry_after_s=None)

    def _check_repository(self) -> None:
        if not self._has_repository:
            msg = "the model repository is managed on the management port"
            raise PermissionDeniedError(msg)


Message = bytes | bytearray | memoryview
_NAME: Final = 1
_VERSION: Final = 2
_VARINT: Final = 0
_FIXED: Final = {1: 8, 5: 4}
_DELIMITED: Final = 2
_MAX_SHIFT: Final = 63
_MAX_FIELDS: Final = 100_000


def named_model(message: Message) -> tuple[str, str]:
    """Return fields 1 and 2 (name, version), which all V2 requests about a model have.

    Raises:
        InvalidArgumentError: The bytes are not a message, or the message has too many fields.
    """
    values = {_NAME: b"", _VERSION: b""}
    try:
        for count, (field, value) in enumerate(_fields(message)):
            if count == _MAX_FIELDS:
                raise InvalidArgumentError(f"the message has more than {_MAX_FIELDS} fields")
            if field in values:
                values[field] = bytes(value)
        return values[_NAME].decode(), values[_VERSION].decode()
    except (IndexError, ValueError):
        raise InvalidArgumentError("failed to parse the request: not a valid message") from None


def _fields(message: Message) -> Iterator[tuple[int, Message]]:
    """Yield number and value of each field; the value is empty unless it is a string or a message.

    Raises:
        IndexError: The message is truncated.
        ValueError: The bytes are not a message.
    """
    offset, end = 0, len(message)
    while offset < end:
        tag, offset = _varint(message, offset)
        kind = tag & 7
        start = offset
        if kind == _DELIMITED:
            size, start = _varint(message, offset)
            offset = start + size
        elif kind == _VARINT:
            _, offset = _varint(message, offset)
        elif kind in _FIXED:
            offset += _FIXED[kind]
        else:
            msg = f"wire type {kind}"
            raise ValueError(msg)
        if offset > end:
            raise IndexError
        yield tag >> 3, message[start:offset] if kind == _DELIMITED else b""


def _varint(message: Message, offset: int) -> tuple[int, int]:
    """Return a number with seven bits per byte, and the offset after it."""
    value = 0
    for shift in range(0, _MAX_SHIFT + 1, 7):
        byte = message[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004  # the last one
            return value, offset
    msg = "a number has more than 64 bits"
    raise ValueError(msg)


HEALTH_PATH: Final = f"/{HEALTH_SERVICE}/Check".encode()
_NAMED: Final = NAMED_HEADER.encode()


class GrpcBridge:
    """Handlers of the inference service's rpcs, and response writer for `ModelInfer`."""

    def __init__(self, state: ReplicaState, *, has_repository: bool) -> None:
        self.state = state
        self._api = GrpcApi(state, has_repository=has_repository)
        self._codec: GrpcInferCodec | None = None

    def model_loaded(self) -> None:
        """Update the handlers after the state's model was loaded; called once."""
        state = self.state
        self._codec = GrpcInferCodec(
            state.name,
            state.version,
            state.model.signature,
            max_batch_size=state.max_batch_size,
        )

    def handlers(self) -> dict[tuple[bytes, bytes], Handler]:
        """Return the handlers by method and path."""
        service = f"/{INFERENCE_SERVICE}/".encode()
        handlers: dict[tuple[bytes, bytes], Handler] = {
            (b"POST", service + rpc.encode()): partial(self._answer, rpc) for rpc in self._api.rpcs
        }
        handlers[(b"POST", service + INFER.encode())] = self.infer
        handlers[(b"POST", HEALTH_PATH)] = self._check_health
        return handlers

    def infer(self, exchange: Exchange) -> None:
        """Decode and queue a ModelInfer call; `respond` gets the response."""
        exchange.wire = self
        check_content_type(exchange)
        codec = self._codec
        if codec is None:
            raise self.state.not_ready()
        headers = exchange.headers
        exchange.request = codec.decode(self._message(exchange))
        limit_s = timeout_s(headers)
        if b"grpc-timeout" in headers:
            given_s = parse_grpc_timeout(headers[b"grpc-timeout"].decode("latin-1"))
            limit_s = min(limit_s, given_s)
        rank(exchange)
        self.state.submit(exchange, limit_s)

    def respond(self, exchange: Exchange, response: InferResponse) -> None:
        """Encode and send the model's response."""
        assert self._codec is not None
        message = self._codec.encode(response, exchange.request)
        exchange.send_ok(GRPC_HEAD, frame(message))

    def _answer(self, rpc: str, exchange: Exchange) -> None:
        check_content_type(exchange)
        message = self._api.answer(rpc, bytes(self._message(exchange)))
        exchange.send_ok(GRPC_HEAD, frame(message))

    def _check_health(self, exchange: Exchange) -> None:
        check_content_type(exchange)
        message = self._api.check_health(bytes(self._message(exchange)))
        exchange.send_ok(GRPC_HEAD, frame(message))

    def _message(self, exchange: Exchange) -> bytes | bytearray | memoryview:
        return message_of(exchange, self.state.settings.max_body_bytes)


def message_of(exchange: Exchange, limit_bytes: int) -> bytes | bytearray | memoryview:
    """Return the message of a call, decompressed if necessary.

    Raises:
        InvalidArgumentError: As `unframe`, or the message names another model than the one by which
            the gateway routed and authorized the call; for a compressed message that is the name at
            its beginning.
        UnsupportedError, PayloadTooLargeError: As `unframe`.
    """
    headers = exchange.headers
    message = unframe(exchange.body, headers.get(b"grpc-encoding", b""), limit_bytes)
    routed_by = headers.get(_NAMED)
    if routed_by is not None and exchange.path != HEALTH_PATH:
        name, version = named_model(message)
        named = f"{name}~{version}" if version else name
        if named.encode() != routed_by:
            msg = "a compressed message must name its model once, at its beginning"
            raise InvalidArgumentError(msg)
    return message


def check_content_type(exchange: Exchange) -> None:
    """Check that a request to a gRPC path is gRPC.

    Raises:
        InvalidArgumentError: Its content type is not gRPC.
    """
    if not exchange.is_grpc:
        msg = "this path speaks gRPC: content-type must be application/grpc"
        raise InvalidArgumentError(msg)
