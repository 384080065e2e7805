"""Open Inference Protocol over HTTP, with Triton's extensions."""

import asyncio
import re
from typing import Final

import orjson

from headrace.core import (
    InferResponse,
    InvalidArgumentError,
    NullPolicy,
    UnavailableError,
)
from headrace.protocol import (
    Body,
    Buffer,
    InferDecoder,
    InferEncoder,
    compress,
    decode_index_request,
    decompress,
    encode_document,
    encode_error,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from headrace.serving.exchange import JSON, JSON_HEAD, Exchange, tensors_head
from headrace.serving.routing import Handler, rank, timeout_s
from headrace.serving.state import ReplicaState

_OCTETS: Final = b"application/octet-stream"
_HEADER_LENGTH: Final = b"Inference-Header-Content-Length"
_COMPRESS_ABOVE: Final = 1024
_LARGE: Final = 64 << 10
_ENCODINGS: Final = (b"gzip", b"deflate")
_REFUSED: Final = re.compile(rb"q\s*=\s*0(?:\.0*)?\s*$")
_compressing: Final[set[asyncio.Task[None]]] = set()
"""Responses that another thread compresses: an event loop references its tasks only weakly."""


class V2Api:
    """Handlers of `/v2`, and response writer for `infer`."""

    def __init__(self, state: ReplicaState, *, has_repository: bool) -> None:
        self.state = state
        self._has_repository = has_repository
        self._decoder: InferDecoder | None = None
        self._encoder: InferEncoder | None = None

    def model_loaded(self) -> None:
        """Update the handlers after the state's model was loaded; called once."""
        state = self.state
        signature = state.model.signature
        self._decoder = InferDecoder(
            state.name,
            state.version,
            signature,
            max_batch_size=state.max_batch_size,
            nulls=state.settings.nulls or NullPolicy.NAN,
        )
        self._encoder = InferEncoder(state.name, state.version, signature)

    def model_handlers(self) -> dict[tuple[bytes, bytes], Handler]:
        """Return the handlers by method and by what follows the model in the path."""
        return {
            (b"GET", b""): self.metadata,
            (b"GET", b"/ready"): self.model_ready,
            (b"GET", b"/config"): self.config,
            (b"GET", b"/stats"): self.statistics,
            (b"POST", b"/infer"): self.infer,
        }

    def handlers(self) -> dict[tuple[bytes, bytes], Handler]:
        """Return the handlers by method and path."""
        handlers: dict[tuple[bytes, bytes], Handler] = {
            (b"GET", b"/v2"): self.server_metadata,
            (b"GET", b"/v2/health/live"): self.live,
            (b"GET", b"/v2/health/ready"): self.ready,
            (b"GET", b"/v2/models"): self.models,
            (b"GET", b"/v2/models/stats"): self.statistics,
        }
        if self._has_repository:
            handlers[(b"POST", b"/v2/repository/index")] = self.index
            for verb in (b"/load", b"/unload"):
                path = b"/v2/repository/models/" + self.state.name.encode() + verb
                handlers[(b"POST", path)] = self.load_or_unload
        return handlers

    # Inference

    def infer(self, exchange: Exchange) -> None:
        """POST /v2/models/NAME/infer; `respond` gets the response."""
        exchange.wire = self
        decoder = self._decoder
        if decoder is None:
            raise self.state.not_ready()
        headers = exchange.headers
        body = decoded_body(exchange, self.state.settings.max_body_bytes)
        length = headers.get(b"inference-header-content-length")
        exchange.request = decoder.decode(body, None if length is None else header_length(length))
        rank(exchange)
        self.state.submit(exchange, timeout_s(headers))

    def respond(self, exchange: Exchange, response: InferResponse) -> None:
        """Encode and send the model's response."""
        assert self._encoder is not None
        body, json_length = self._encoder.encode(response, exchange.request)
        send_tensors(exchange, body, json_length)

    # Model routes

    def metadata(self, exchange: Exchange) -> None:
        """GET /v2/models/NAME."""
        state = self.state
        described = state.description
        exchange.send_json(
            orjson.dumps(
                model_metadata(
                    state.name, [state.version], described.signature, runtime=described.runtime
                )
            )
        )

    def model_ready(self, exchange: Exchange) -> None:
        """GET /v2/models/NAME/ready."""
        if self.state.is_ready:
            exchange.send_json(orjson.dumps({"name": self.state.name, "ready": True}))
        else:
            exchange.send(400, encode_error("Model version not ready"))

    def config(self, exchange: Exchange) -> None:
        """GET /v2/models/NAME/config."""
        exchange.send_json(encode_document(self.state.config()))

    def statistics(self, exchange: Exchange) -> None:
        """GET /v2/models/NAME/stats, and GET /v2/models/stats."""
        exchange.send_json(encode_document(model_statistics([self.state.statistics])))

    # Server routes

    def server_metadata(self, exchange: Exchange) -> None:
        """GET /v2."""
        exchange.send_json(
            encode_document(server_metadata(has_model_repository=self._has_repository))
        )

    def live(self, exchange: Exchange) -> None:
        """GET /v2/health/live."""
        if self.state.is_alive:
            exchange.send_json(b'{"live":true}')
        else:
            exchange.send(503, b'{"live":false}')

    def ready(self, exchange: Exchange) -> None:
        """GET /v2/health/ready."""
        if self.state.is_ready:
            exchange.send_json(b'{"ready":true}')
        else:
            exchange.send(503, b'{"ready":false}')

    def models(self, exchange: Exchange) -> None:
        """GET /v2/models, the list of names as in KServe."""
        exchange.send_json(orjson.dumps({"models": [self.state.name]}))

    def index(self, exchange: Exchange) -> None:
        """POST /v2/repository/index."""
        ready = decode_index_request(exchange.body)
        index = repository_index([self.state.index_entry()], ready=ready)
        exchange.send_json(encode_document(index))

    def load_or_unload(self, exchange: Exchange) -> None:  # noqa: ARG002  # a handler's signature
        """POST /v2/repository/models/NAME/load or unload, which a replica does not support."""
        msg = "explicit model load / unload is not allowed: this replica serves one model"
        raise UnavailableError(msg, retry_after_s=None)


# Shared with the other HTTP API


def header_length(text: bytes) -> int:
    """Return the value of Inference-Header-Content-Length.

    Raises:
        InvalidArgumentError: It is not a whole number.
    """
    if not text.isdigit() or len(text) > 18:  # noqa: PLR2004  # below 2^63
        msg = f"inference header size should be a whole number, got: {text[:50].decode('latin-1')}"
        raise InvalidArgumentError(msg)
    return int(text)


def decoded_body(exchange: Exchange, limit_bytes: int) -> Body:
    """Return the request's body, decompressed if it has a Content-Encoding."""
    encoding = exchange.headers.get(b"content-encoding")
    if encoding is None:
        return exchange.body
    return decompress(exchange.body, encoding.decode("latin-1"), limit_bytes)


def send_tensors(exchange: Exchange, body: bytes | list[Buffer], json_length: int | None) -> None:
    """Send 200 with tensors, compressed if the caller accepts it and it is worth the time.

    Another thread compresses a large response, at 8 ms per MB of JSON.
    """
    if isinstance(body, bytes) and b"accept-encoding" not in exchange.headers:
        exchange.send_ok(JSON_HEAD if json_length is None else tensors_head(json_length), body)
        return
    headers: dict[bytes, bytes] = {}
    if json_length is not None:
        headers[_HEADER_LENGTH] = b"%d" % json_length
    content_type = JSON if json_length is None else _OCTETS

    def send_as(encoding: str, compressed: bytes) -> None:
        more = {**headers, b"Content-Encoding": encoding.encode(), b"Vary": b"Accept-Encoding"}
        exchange.send(200, compressed, content_type=content_type, headers=more)

    async def compress_and_send(encoding: str, whole: bytes) -> None:
        try:
            compressed = await asyncio.to_thread(compress, whole, encoding)
        except MemoryError:
            exchange.send(200, whole, content_type=content_type, headers=headers)
        else:
            send_as(encoding, compressed)

    size = len(body) if isinstance(body, bytes) else sum(map(len, body))
    accepted = exchange.headers.get(b"accept-encoding", b"")
    encoding = _encoding(accepted, size, is_json=json_length is None)
    if not encoding:
        exchange.send(200, body, content_type=content_type, headers=headers)
        return
    whole = body if isinstance(body, bytes) else b"".join(body)
    if size < _LARGE:
        send_as(encoding, compress(whole, encoding))
    else:
        task = asyncio.get_running_loop().create_task(compress_and_send(encoding, whole))
        _compressing.add(task)
        task.add_done_callback(_compressing.discard)


def _encoding(accept_encoding: bytes, size: int, *, is_json: bool) -> str:
    """Return the encoding of the response; empty for none.

    A caller that names a single encoding wants it, as Triton's clients do. Most HTTP clients send a
    list by default: for them large JSON is compressed, which halves it, but tensors are not,
    because they hardly shrink.
    """
    alone = accept_encoding.strip()
    if alone in _ENCODINGS:
        return alone.decode() if size > _COMPRESS_ABOVE else ""
    if size < _LARGE or not is_json:
        return ""
    weights: dict[bytes, bool] = {}
    for item in accept_encoding.lower().split(b","):
        name, _, parameters = item.partition(b";")
        weights[name.strip()] = _REFUSED.search(parameters) is None
    others = weights.get(b"*", False)
    return next((name.decode() for name in _ENCODINGS if weights.get(name, others)), "")
