"""Embeddings endpoint of a gateway as a model, which a batch job runs over a column of texts."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import orjson

from headrace.client import ProtocolError
from headrace.client.conversation import Attempts, ProtocolExchange
from headrace.client.openai import body_of, json_request, read_embeddings, texts_of
from headrace.client.wires import BlockingTransport, run_blocking
from headrace.core import (
    Array,
    Datatype,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    OverloadedError,
    PayloadTooLargeError,
    Tensors,
    TensorSpec,
    UnavailableError,
)
from headrace.core.encoders import EMBEDDING, TEXT
from headrace.engine import ServiceTimes
from headrace.protocol.openai import EMBEDDINGS_PATH, MAX_TEXTS
from headrace.scoring.loading import LoadedModel
from headrace.scoring.scorer import Scorer


@dataclass(kw_only=True)
class EmbeddingsEndpoint:
    """An endpoint's `POST /v1/embeddings` as a model with the input `text`.

    Vectors have the bits of the API's answers. An empty text is refused, as by OpenAI's API.
    """

    transport: BlockingTransport
    """Transport to the gateway, with the credentials of the caller."""
    endpoint: str
    dimensions: int | None = None
    """Numbers of each vector; None for those of the model."""
    attempts: Attempts
    sleep: Callable[[float], object] = time.sleep
    concurrent: bool = True
    signature: ModelSignature = field(init=False)

    def load(self) -> Scorer:
        """Return the scorer of the endpoint, whose vectors' size a request with one text tells.

        Raises:
            HeadraceError: The endpoint does not answer, or not with embeddings.
        """
        size = self._vectors(["a"]).shape[1]
        self.signature = ModelSignature(
            inputs=(TensorSpec(name=TEXT, datatype=Datatype.BYTES, shape=(-1,)),),
            outputs=(TensorSpec(name=EMBEDDING, datatype=Datatype.FP32, shape=(-1, size)),),
            batched=True,
        )
        loaded = LoadedModel(
            model=self,
            runtime="openai",
            signature=self.signature,
            times=ServiceTimes(max_batch_size=MAX_TEXTS),
            plan=None,
        )
        return Scorer(loaded, name=self.endpoint, version="")

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:  # noqa: ARG002  # of the protocol
        """Return the embeddings of a batch of texts.

        Raises:
            InvalidArgumentError: A text is empty, or the endpoint refuses one.
            UnavailableError: The endpoint does not answer any more, or has another model now.
        """
        texts = texts_of(inputs[TEXT])
        if not all(texts):
            raise InvalidArgumentError("the text is empty")
        try:
            vectors = self._vectors(texts)
        except PayloadTooLargeError as error:
            raise InvalidArgumentError(str(error)) from error
        except (InvalidArgumentError, OverloadedError, UnavailableError, ProtocolError):
            raise
        except HeadraceError as error:  # such as a revoked key: of no row
            raise UnavailableError(str(error)) from error
        size = self.signature.outputs[0].shape[1]
        if vectors.shape[1] != size:
            msg = f"'{self.endpoint}' answers with {vectors.shape[1]} numbers now, not {size}"
            raise UnavailableError(f"{msg}; it serves another model: run the job again")
        return {EMBEDDING: vectors}

    def close(self) -> None:
        """Close the connections."""
        self.transport.close()

    def _vectors(self, texts: list[str]) -> Array:
        """Return FP32 [texts, size]."""
        body: dict[str, object] = {
            "model": self.endpoint,
            "input": texts,
            "encoding_format": "base64",
        }
        if self.dimensions is not None:
            body["dimensions"] = self.dimensions
        exchange = ProtocolExchange(
            message=json_request(EMBEDDINGS_PATH.decode(), orjson.dumps(body)),
            read=lambda reply: read_embeddings(body_of(reply), len(texts)),
        )
        return run_blocking(self.attempts.run(exchange), self.transport, pause=self.sleep)
