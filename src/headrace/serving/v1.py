"""KServe's V1 protocol: `:predict` and readiness."""

import orjson

from headrace.core import InferResponse, NullPolicy, UnsupportedError
from headrace.core.encoders import serves_openai
from headrace.protocol import V1Codec
from headrace.protocol.pages import openai_model
from headrace.serving.exchange import Exchange
from headrace.serving.routing import Handler, rank, timeout_s
from headrace.serving.state import ReplicaState
from headrace.serving.v2 import decoded_body, send_tensors


class V1Api:
    """Handlers of `/v1`, and response writer for `:predict`."""

    def __init__(self, state: ReplicaState) -> None:
        self.state = state
        self._codec: V1Codec | None = None

    def model_loaded(self) -> None:
        """Update the handlers after the state's model was loaded; called once."""
        state = self.state
        self._codec = V1Codec(
            state.name,
            state.version,
            state.model.signature,
            max_batch_size=state.max_batch_size,
            nulls=state.settings.nulls or NullPolicy.NAN,
        )

    def model_handlers(self) -> dict[tuple[bytes, bytes], Handler]:
        """Return the handlers by method and by what follows the model in the path."""
        return {
            (b"GET", b""): self.model_ready,
            (b"POST", b":predict"): self.predict,
            (b"POST", b":explain"): self.explain,
        }

    def handlers(self) -> dict[tuple[bytes, bytes], Handler]:
        """Return the handlers by method and path."""
        return {(b"GET", b"/v1/models"): self.models}

    def predict(self, exchange: Exchange) -> None:
        """POST /v1/models/NAME:predict."""
        exchange.wire = self
        codec = self._codec
        if codec is None:
            raise self.state.not_ready()
        headers = exchange.headers
        body = decoded_body(exchange, self.state.settings.max_body_bytes)
        exchange.request = codec.decode(body)
        rank(exchange)
        self.state.submit(exchange, timeout_s(headers))

    def respond(self, exchange: Exchange, response: InferResponse) -> None:
        """Encode and send the model's response."""
        assert self._codec is not None
        send_tensors(exchange, self._codec.encode(response), None)

    def explain(self, exchange: Exchange) -> None:  # noqa: ARG002  # a handler's signature
        """POST /v1/models/NAME:explain."""
        msg = f"model '{self.state.name}' has no explainer"
        raise UnsupportedError(msg)

    def models(self, exchange: Exchange) -> None:
        """GET /v1/models."""
        exchange.send_json(orjson.dumps({"models": [self.state.name]}))

    def model_ready(self, exchange: Exchange) -> None:
        """GET /v1/models/NAME."""
        state = self.state
        document: dict[str, object] = {"name": state.name, "ready": state.is_ready}
        if state.served is not None and serves_openai(state.model.signature):
            document |= openai_model(state.name)
        body = orjson.dumps(document)
        exchange.send(200 if state.is_ready else 503, body)
