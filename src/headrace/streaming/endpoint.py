"""Scorer that calls an endpoint through its gateway."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from headrace.client import NO_RETRIES, Client, ConnectionLostError, ProtocolError
from headrace.client.credentials import connection_options, parse_target, trust_of
from headrace.client.openai import Completion, post, read_completion, read_embeddings, texts_of
from headrace.client.wires import BlockingTransport, blocking_transport
from headrace.core import (
    Array,
    Code,
    Datatype,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    TensorSpec,
    UnavailableError,
    error_kind,
)
from headrace.core.error_kind import UNDECODABLE
from headrace.core.spec.stream_parts import OpenAIPath, StreamOpenAISpec
from headrace.engine import ServiceTimes
from headrace.scoring.loading import LoadedModel
from headrace.scoring.scorer import Scorer
from headrace.streaming.settings import ScoringEndpoint

_ENDPOINT_ERRORS = frozenset(
    {
        Code.NOT_FOUND,
        Code.UNAUTHENTICATED,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.UNIMPLEMENTED,
        Code.CANCELLED,
    }
)
"""Errors that need a fix at the endpoint: they are not caused by records."""

_OF_COMPLETION: Final = dict.fromkeys(Completion._fields, Datatype.BYTES) | {
    "prompt_tokens": Datatype.INT64,
    "completion_tokens": Datatype.INT64,
}


@contextmanager
def _endpoint_errors(name: str) -> Iterator[None]:
    """Raise errors that no record causes as UnavailableError, so that the stream retries."""
    try:
        yield
    except ConnectionLostError as error:  # a run has no side effects, so it may be retried
        raise UnavailableError(str(error)) from error
    except HeadraceError as error:
        if error.code in _ENDPOINT_ERRORS:
            msg = f"endpoint '{name}': {error}"
            raise UnavailableError(msg) from error
        raise


class EndpointModel:
    """Model whose runs are calls of an endpoint. The stream retries, so the client does not."""

    concurrent = True

    def __init__(self, client: Client, settings: ScoringEndpoint) -> None:
        self._client = client
        self._settings = settings
        self.signature: ModelSignature = client.signature(settings.name, settings.version)

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Return the endpoint's outputs; see `Model.run`.

        Raises:
            UnavailableError: The endpoint is unavailable, or refuses these credentials.
        """
        with _endpoint_errors(self._settings.name):
            response = self._client.infer(
                self._settings.name, inputs, outputs=outputs, version=self._settings.version
            )
        return response.outputs

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class OpenAIModel:
    """Model whose runs are requests of OpenAI's API to an endpoint, as those of `EndpointModel`.

    A batch of texts to embed is one request; each other row is a request.

    Args:
        has_bodies: Whether an input is a request's body and its output the answer's, not texts.
    """

    concurrent = True

    def __init__(
        self,
        transport: BlockingTransport,
        settings: ScoringEndpoint,
        openai: StreamOpenAISpec,
        *,
        has_bodies: bool,
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._openai = openai
        self._has_bodies = has_bodies
        self._size = 0
        """Numbers of a vector in the last answer."""
        source, results = "text", _OF_COMPLETION
        if has_bodies:
            source, results = "request", {"response": Datatype.BYTES}
        elif openai.path is OpenAIPath.EMBEDDINGS:
            results = {"embedding": Datatype.FP32}
        shapes = {"embedding": (-1, -1)}
        self.signature = ModelSignature(
            inputs=(TensorSpec(name=source, datatype=Datatype.BYTES, shape=(-1,)),),
            outputs=tuple(
                TensorSpec(name=name, datatype=datatype, shape=shapes.get(name, (-1,)))
                for name, datatype in results.items()
            ),
            batched=True,
        )

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:  # noqa: ARG002  # of the protocol
        """Return the answers to texts or bodies; see `Model.run`.

        Raises:
            UnavailableError: The endpoint is unavailable, refuses these credentials, or answers
                with vectors of another size than before.
        """
        if self._has_bodies:
            answers = [self._answer(value) for value in inputs["request"].reshape(-1).tolist()]
            return {"response": np.array(answers, object)}
        texts = texts_of(inputs["text"])
        if self._openai.path is OpenAIPath.EMBEDDINGS:
            return {"embedding": self._embeddings(texts)}
        columns = zip(*map(self._completion, texts), strict=True)
        return {
            spec.name: np.array(column, spec.datatype.dtype)
            for spec, column in zip(self.signature.outputs, columns, strict=True)
        }

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def _answer(self, value: bytes) -> bytes:
        """Return the body of the answer to a record that is a request's body."""
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
        if self._openai.path is OpenAIPath.COMPLETIONS:
            return read_completion(self._post({"prompt": text}))
        message = {"role": "user", "content": text}
        messages = [*self._openai.body.get("messages", ()), message]
        return read_completion(self._post({"messages": messages}))

    def _embeddings(self, texts: list[str]) -> Array:
        answer = self._post({"input": texts, "encoding_format": "base64"})
        vectors = read_embeddings(answer, len(texts))
        size, self._size = self._size, vectors.shape[1]
        if size not in {0, self._size}:  # rows of one batch are joined
            msg = f"'{self._settings.name}' answers with {self._size} numbers now, not {size}"
            raise UnavailableError(msg)
        return vectors

    def _post(self, fields: dict[str, Any]) -> bytes:
        """Return the answer to a body with these fields, and those of the spec."""
        settings = self._settings
        model = f"{settings.name}:{settings.version}" if settings.version else settings.name
        content = msgspec.json.encode({**self._openai.body, **fields, "model": model})
        with _endpoint_errors(settings.name):
            return post(self._transport, self._openai.path, content, timeout_s=settings.timeout_s)


def endpoint_scorer(
    settings: ScoringEndpoint, *, max_batch_size: int, has_bodies: bool = False
) -> Scorer:
    """Return a scorer that calls an endpoint, after reading the endpoint's signature.

    Args:
        has_bodies: As for `OpenAIModel`.

    Raises:
        FailedPreconditionError: A credentials file cannot be read.
        HeadraceError: The endpoint cannot be reached.
    """
    api_key = _read(settings.api_key_file) if settings.api_key_file else None
    model: EndpointModel | OpenAIModel
    if settings.openai is not None:
        target, trust = parse_target(settings.url), trust_of(settings.ca_file or None, None, "")
        options = connection_options(
            target, headers=None, api_key=api_key, token=None, trust=trust, allow_insecure=False
        )
        transport = blocking_transport(target, options)
        model = OpenAIModel(transport, settings, settings.openai, has_bodies=has_bodies)
    else:
        client = Client(
            settings.url,
            timeout_s=settings.timeout_s,
            api_key=api_key,
            ca_file=settings.ca_file or None,
            retry=NO_RETRIES,
        )
        try:
            model = EndpointModel(client, settings)
        except HeadraceError:
            client.close()
            raise
    loaded = LoadedModel(
        model=model,
        runtime="endpoint",
        signature=model.signature,
        times=ServiceTimes(max_batch_size=max_batch_size),
        plan=None,
    )
    return Scorer(loaded, name=settings.name, version=settings.version)


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read the API key in {file}: {error_kind(error)}"
        raise FailedPreconditionError(msg) from None
