"""Embeddings endpoint of a gateway as a model, which a batch job runs over a column of texts."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

import orjson

from headrace.client import ConnectionLostError, ProtocolError, RetryPolicy
from headrace.client.conversation import retry_delay_s
from headrace.client.openai import post, read_embeddings, texts_of
from headrace.client.wires import BlockingTransport
from headrace.core import (
    Array,
    Clock,
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
from headrace.engine import ServiceTimes
from headrace.protocol.openai import EMBEDDINGS_PATH, MAX_TEXTS
from headrace.scoring.loading import LoadedModel
from headrace.scoring.scorer import Scorer

TEXT: Final = "text"
EMBEDDING: Final = "embedding"


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
    timeout_s: float = 600.0
    """Timeout of a request."""
    retry_for_s: float = 600.0
    """Time for which a request is retried after its first 429, 503 or lost connection."""
    clock: Clock
    random: Random
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
        path, content = EMBEDDINGS_PATH.decode(), orjson.dumps(body)
        policy = RetryPolicy(
            max_attempts=1 << 30, base_delay_s=0.5, max_delay_s=30.0, max_retry_after_s=60.0
        )
        until = self.clock.monotonic() + self.timeout_s + self.retry_for_s
        tries = 0
        while True:
            tries += 1
            problem: HeadraceError
            try:
                answer = post(self.transport, path, content, timeout_s=self.timeout_s)
                return read_embeddings(answer, len(texts))
            except ConnectionLostError as error:
                problem = UnavailableError(str(error), retry_after_s=None)
            except (OverloadedError, UnavailableError) as error:
                problem = error
            delay_s = retry_delay_s(
                policy,
                problem,
                tries=tries,
                remaining_s=until - self.clock.monotonic(),
                chance=self.random.random(),
            )
            if delay_s is None:
                raise problem
            self.sleep(delay_s)
