"""OpenAI's embeddings and the rerank request, answered by an encoder of texts."""

import uuid
from typing import Any, Final, TypeVar

from headrace.core import (
    VARIABLE,
    Array,
    InferRequest,
    InferResponse,
    ModelNotFoundError,
    NotFoundError,
    RequestedOutput,
    Tensors,
)
from headrace.core.encoders import (
    EMBEDDING,
    SCORE,
    TEXT,
    TEXT_PAIR,
    TOKEN_COUNT,
    EncoderTask,
    encoder_task,
)
from headrace.protocol.openai import (
    EMBEDDINGS_PATH,
    RERANK_PATHS,
    EmbeddingsRequest,
    ModelField,
    RerankRequest,
    check_dimensions,
    decode_request,
    encode_embeddings,
    encode_rerank,
    model_and_version,
)
from headrace.protocol.values import object_array
from headrace.serving.exchange import Exchange
from headrace.serving.routing import Handler, rank, timeout_s
from headrace.serving.splitting import submit_in_parts
from headrace.serving.state import ReplicaState
from headrace.serving.v2 import decoded_body, send_tensors

T = TypeVar("T", bound=ModelField)
OPENAI_ROUTES: Final = frozenset((b"POST", path) for path in (EMBEDDINGS_PATH, *RERANK_PATHS))


class OpenAiApi:
    """Handlers of `/v1/embeddings`, `/v1/rerank` and `/v2/rerank`, and their response writer."""

    def __init__(self, state: ReplicaState) -> None:
        self.state = state
        self._task: EncoderTask | None = None
        self._input = TEXT
        self._size = VARIABLE
        self._outputs: tuple[RequestedOutput, ...] = ()

    def model_loaded(self) -> None:
        """Update the handlers after the state's model was loaded; called once."""
        loaded = self.state.model.loaded
        signature = loaded.signature
        self._task = encoder_task(signature)
        if self._task is None:
            return
        name = EMBEDDING if self._task is EncoderTask.EMBEDDINGS else SCORE
        names = [name, *([TOKEN_COUNT] if getattr(loaded.model, "counts_tokens", False) else [])]
        self._outputs = tuple(RequestedOutput(name=name) for name in names)
        self._input = signature.inputs[0].name
        self._size = next(spec.shape[-1] for spec in signature.outputs if spec.name == name)

    def handlers(self) -> dict[tuple[bytes, bytes], Handler]:
        """Return the handlers by method and path."""
        return {
            (b"POST", EMBEDDINGS_PATH): self.embeddings,
            **{(b"POST", path): self.rerank for path in RERANK_PATHS},
        }

    def embeddings(self, exchange: Exchange) -> None:
        """POST /v1/embeddings."""
        request = self._read(exchange, EmbeddingsRequest, EncoderTask.EMBEDDINGS)
        if self._size != VARIABLE:
            check_dimensions(request.dimensions, self._size)
        texts = [request.input] if isinstance(request.input, str) else request.input
        parameters = {
            "encoding_format": request.encoding_format,
            "dimensions": request.dimensions,
        }
        self._submit(exchange, {self._input: _elements(texts)}, parameters)

    def rerank(self, exchange: Exchange) -> None:
        """POST /v1/rerank and /v2/rerank."""
        request = self._read(exchange, RerankRequest, EncoderTask.RERANK)
        documents = [
            document if isinstance(document, str) else document.text
            for document in request.documents
        ]
        queries = [request.query] * len(documents)
        inputs = {TEXT: _elements(queries), TEXT_PAIR: _elements(documents)}
        parameters = {"top_n": request.top_n, "return_documents": request.return_documents}
        self._submit(exchange, inputs, parameters)

    def respond(self, exchange: Exchange, response: InferResponse) -> None:
        """Encode and send the model's response."""
        request, outputs = exchange.request, response.outputs
        assert request.parameters is not None
        tokens = int(outputs[TOKEN_COUNT].sum()) if TOKEN_COUNT in outputs else 0
        if self._task is EncoderTask.EMBEDDINGS:
            body = encode_embeddings(
                self.state.name,
                outputs[EMBEDDING],
                tokens,
                as_base64=request.parameters["encoding_format"] == "base64",
                dimensions=request.parameters["dimensions"],
            )
        else:
            returns_documents = request.parameters["return_documents"]
            body = encode_rerank(
                exchange.request_id or str(uuid.uuid4()),
                self.state.name,
                outputs[SCORE],
                tokens,
                documents=request.inputs[TEXT_PAIR] if returns_documents else None,
                top_n=request.parameters["top_n"],
            )
        send_tensors(exchange, body, None)

    def _read(self, exchange: Exchange, kind: type[T], task: EncoderTask) -> T:
        """Return the request; raise an error unless it names this replica's model, of `task`."""
        state = self.state
        exchange.wire = self
        request = decode_request(decoded_body(exchange, state.settings.max_body_bytes), kind)
        name, version = model_and_version(request.model)
        if name != state.name or version not in {"", state.version}:
            raise ModelNotFoundError(name[:200], version[:50])
        if state.served is None:
            raise state.not_ready()
        if self._task is not task:
            does = "embeds no texts" if task is EncoderTask.EMBEDDINGS else "ranks no documents"
            serves = f"/v1/{self._task}" if self._task else f"/v2/models/{name}/infer"
            raise NotFoundError(f"model '{name}' {does}; send requests to {serves}")
        return request

    def _submit(self, exchange: Exchange, inputs: Tensors, parameters: dict[str, Any]) -> None:
        exchange.request = InferRequest(
            model_name=self.state.name,
            model_version=self.state.version,
            inputs=inputs,
            rows=len(next(iter(inputs.values()))),
            outputs=self._outputs,
            parameters=parameters,
        )
        rank(exchange)
        submit_in_parts(self.state, exchange, timeout_s(exchange.headers))


def _elements(texts: list[str]) -> Array:
    return object_array([text.encode() for text in texts], (len(texts),))
