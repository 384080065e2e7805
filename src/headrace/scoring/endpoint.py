"""Endpoint of a gateway as a model of streams and batch jobs: tensors, or OpenAI's API."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import numpy as np

from headrace.client import Client, ConnectionLostError, ProtocolError
from headrace.client.conversation import Attempts, ProtocolExchange
from headrace.client.http_transport import HttpMessage, HttpReply
from headrace.client.wires import BlockingTransport, run_blocking
from headrace.core import (
    Array,
    Code,
    Datatype,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    PayloadTooLargeError,
    Tensors,
    TensorSpec,
    UnavailableError,
)
from headrace.core.encoders import EMBEDDING, TEXT
from headrace.core.error_kind import UNDECODABLE
from headrace.core.spec.stream_parts import OpenAIPath, StreamOpenAISpec
from headrace.engine import ServiceTimes
from headrace.protocol import error_from_http
from headrace.protocol.openai import MAX_TEXTS
from headrace.scoring.loading import LoadedModel
from headrace.scoring.scorer import Scorer

_OK: Final = 200
_ENDPOINT_ERRORS: Final = frozenset(
    {
        Code.NOT_FOUND,
        Code.UNAUTHENTICATED,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.UNIMPLEMENTED,
        Code.CANCELLED,
    }
)
"""Errors that need a fix at the endpoint: they are not caused by rows."""


class _Vector(msgspec.Struct):
    index: int
    embedding: bytes | list[float]
    """Little-endian 32-bit floats in base64, or numbers."""


class _Vectors(msgspec.Struct):
    data: Annotated[list[_Vector], msgspec.Meta(max_length=MAX_TEXTS)]


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None
    message: _Message | None = None
    text: str = ""


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Choices(msgspec.Struct):
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]
    usage: _Usage | None = None


class Completion(NamedTuple):
    """First choice of an answer to `/v1/chat/completions` or `/v1/completions`.

    `text` is empty for the call of a tool, and tokens are 0 if the server reports no usage.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


_OF_COMPLETION: Final = dict.fromkeys(Completion._fields, Datatype.BYTES) | {
    "prompt_tokens": Datatype.INT64,
    "completion_tokens": Datatype.INT64,
}


@contextmanager
def _endpoint_errors(name: str) -> Iterator[None]:
    """Raise errors that no row causes as UnavailableError, and those of some as invalid input."""
    try:
        yield
    except ConnectionLostError as error:  # a run has no side effects, so it may be retried
        raise UnavailableError(str(error)) from error
    except PayloadTooLargeError as error:  # fewer rows may fit
        raise InvalidArgumentError(str(error)) from error
    except HeadraceError as error:
        if error.code in _ENDPOINT_ERRORS:
            msg = f"endpoint '{name}': {error}"
            raise UnavailableError(msg) from error
        raise


class EndpointModel:
    """Model whose runs are calls of an endpoint with tensors.

    Args:
        client: Client of the gateway. The caller of `run` retries, so the client does not.
        version: Version of the endpoint; empty for its traffic split.
    """

    concurrent = True

    def __init__(self, client: Client, name: str, version: str) -> None:
        self._client = client
        self._name, self._version = name, version
        self.signature: ModelSignature = client.signature(name, version)

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Return the endpoint's outputs; see `Model.run`.

        Raises:
            UnavailableError: The endpoint is unavailable, or refuses these credentials.
        """
        with _endpoint_errors(self._name):
            response = self._client.infer(
                self._name, inputs, outputs=outputs, version=self._version
            )
        return response.outputs

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class OpenAIModel:
    """Model whose runs are requests of OpenAI's API to an endpoint.

    A batch of texts to embed is one request; each other row is a request. Vectors have the bits of
    the API's answers. An empty text is not embedded, as by OpenAI's API.

    Args:
        transport: Transport to the gateway, with the credentials of the caller.
        endpoint: `NAME` or `NAME:VERSION`.
        call: Path of the requests, and their further fields.
        has_bodies: Whether an input is a request's body and its output the answer's, not texts.
    """

    concurrent = True

    def __init__(
        self,
        transport: BlockingTransport,
        endpoint: str,
        call: StreamOpenAISpec,
        attempts: Attempts,
        *,
        has_bodies: bool = False,
    ) -> None:
        self._transport = transport
        self._endpoint = endpoint
        self._call = call
        self._attempts = attempts
        self._has_bodies = has_bodies
        self._size = 0
        """Numbers of a vector in the last answer."""
        self._is_size_fixed = False
        source, results = TEXT, _OF_COMPLETION
        if has_bodies:
            source, results = "request", {"response": Datatype.BYTES}
        elif call.path is OpenAIPath.EMBEDDINGS:
            results = {EMBEDDING: Datatype.FP32}
        shapes = {EMBEDDING: (-1, -1)}
        self.signature = ModelSignature(
            inputs=(TensorSpec(name=source, datatype=Datatype.BYTES, shape=(-1,)),),
            outputs=tuple(
                TensorSpec(name=name, datatype=datatype, shape=shapes.get(name, (-1,)))
                for name, datatype in results.items()
            ),
            batched=True,
        )

    def fix_size(self) -> int:
        """Request one vector, whose size all later ones must have; return the size.

        Raises:
            HeadraceError: The endpoint does not answer, or not with embeddings.
        """
        self._size, self._is_size_fixed = self._embeddings(["a"]).shape[1], True
        (spec,) = self.signature.outputs
        outputs = (replace(spec, shape=(-1, self._size)),)
        self.signature = replace(self.signature, outputs=outputs)
        return self._size

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:  # noqa: ARG002  # of the protocol
        """Return the answers to texts or bodies; see `Model.run`.

        Raises:
            InvalidArgumentError: The endpoint refuses a text or a body, or a text is empty.
            UnavailableError: The endpoint is unavailable, refuses these credentials, or answers
                with vectors of another size than before.
        """
        (source,), (first, *_) = self.signature.inputs, self.signature.outputs
        values = inputs[source.name].reshape(-1).tolist()
        with _endpoint_errors(self._endpoint):
            if self._has_bodies:
                return {first.name: np.array(list(map(self._answer, values)), object)}
            try:
                texts = [value.decode() if isinstance(value, bytes) else value for value in values]
            except UnicodeDecodeError:
                raise InvalidArgumentError("the text is not UTF-8") from None
            if first.name == EMBEDDING:
                return {EMBEDDING: self._embeddings(texts)}
            columns = zip(*map(self._completion, texts), strict=True)
        return {
            spec.name: np.array(column, spec.datatype.dtype)
            for spec, column in zip(self.signature.outputs, columns, strict=True)
        }

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def _answer(self, value: bytes) -> bytes:
        """Return the body of the answer to a row that is a request's body."""
        try:
            fields = msgspec.json.decode(value, type=dict[str, msgspec.Raw])
        except UNDECODABLE as error:
            raise InvalidArgumentError(f"the value is no JSON object: {error}") from None
        if bytes(fields.pop("stream", b"false")) not in {b"false", b"null"}:
            raise InvalidArgumentError("'stream' is not possible in a stream of records; remove it")
        answer = self._post(fields)
        try:
            msgspec.json.decode(answer, type=dict[str, msgspec.Raw])
        except UNDECODABLE as error:
            raise ProtocolError(f"the answer is no JSON object: {error}") from error
        return answer

    def _completion(self, text: str) -> Completion:
        fields: dict[str, Any] = {"prompt": text}
        if self._call.path is OpenAIPath.CHAT:
            message = {"role": "user", "content": text}
            fields = {"messages": [*self._call.body.get("messages", ()), message]}
        try:
            answer = msgspec.json.decode(self._post(fields), type=_Choices)
        except UNDECODABLE as error:
            raise ProtocolError(f"the answer is no completion: {error}") from error
        choice, usage = answer.choices[0], answer.usage or _Usage()
        text = choice.text if choice.message is None else choice.message.content or ""
        reason = choice.finish_reason or ""
        return Completion(text, reason, usage.prompt_tokens, usage.completion_tokens)

    def _embeddings(self, texts: list[str]) -> Array:
        """Return FP32 [texts, size]."""
        if not all(texts):
            raise InvalidArgumentError("the text is empty")
        answer = self._post({"input": texts, "encoding_format": "base64"})
        try:
            vectors = msgspec.json.decode(answer, type=_Vectors).data
            vectors.sort(key=lambda vector: vector.index)
            if [vector.index for vector in vectors] != list(range(len(texts))):
                raise ProtocolError(f"the answer has no embedding for each of {len(texts)} texts")
            rows = np.stack(
                [
                    np.frombuffer(vector.embedding, "<f4").astype(np.float32)
                    if isinstance(vector.embedding, bytes)
                    else np.asarray(vector.embedding, np.float32)
                    for vector in vectors
                ]
            )
        except (*UNDECODABLE, ValueError) as error:
            raise ProtocolError(f"the answer has no valid embeddings: {error}") from error
        before, size = self._size, rows.shape[1]
        if not self._is_size_fixed:
            self._size = size
        if before not in {0, size}:  # rows of one batch are joined
            msg = f"'{self._endpoint}' answers with {size} numbers now, not {before}"
            remedy = ": run the job again" if self._is_size_fixed else ""
            raise UnavailableError(f"{msg}; it serves another model{remedy}")
        return rows

    def _post(self, fields: dict[str, Any]) -> bytes:
        """Return the answer to a body with these fields, and those of every request."""
        message = HttpMessage(
            method="POST",
            path=self._call.path,
            headers={"content-type": "application/json"},
            content=msgspec.json.encode({**self._call.body, **fields, "model": self._endpoint}),
        )

        def read(reply: HttpReply) -> bytes:
            if reply.status != _OK:
                raise error_from_http(reply.status, reply.body, reply.headers)
            return reply.body

        exchange = ProtocolExchange(message=message, read=read)
        return run_blocking(self._attempts.run(exchange), self._transport)


def endpoint_scorer(
    model: EndpointModel | OpenAIModel, name: str, *, version: str = "", max_batch_size: int
) -> Scorer:
    """Return a scorer that calls an endpoint with at most `max_batch_size` rows at once."""
    loaded = LoadedModel(
        model=model,
        runtime="endpoint",
        signature=model.signature,
        times=ServiceTimes(max_batch_size=max_batch_size),
        plan=None,
    )
    return Scorer(loaded, name=name, version=version)
