"""MLflow's and SageMaker's scoring protocol: `POST /invocations` and `GET /ping`.

A data frame may have more rows than a batch.
"""

from typing import Final

from headrace.core import InferResponse, NullPolicy
from headrace.core.predictions import layout_of
from headrace.protocol import PredictionCodec, encode_error
from headrace.protocol.predictions import CSV_TYPE, JSON_TYPE
from headrace.serving.exchange import Exchange
from headrace.serving.routing import Handler, rank, timeout_s
from headrace.serving.splitting import submit_in_parts
from headrace.serving.state import ReplicaState
from headrace.serving.v2 import decoded_body, send_tensors

INVOCATIONS: Final = b"/invocations"


class InvocationsApi:
    """Handlers of `/invocations` and `/ping`."""

    def __init__(self, state: ReplicaState) -> None:
        self.state = state
        self._codec: PredictionCodec | None = None

    def model_loaded(self) -> None:
        """Update the handlers after the state's model was loaded; called once."""
        state = self.state
        loaded = state.model.loaded
        self._codec = PredictionCodec(
            state.name,
            state.version,
            loaded.signature,
            getattr(loaded.model, "predictions", None) or layout_of(loaded.signature),
            nulls=state.settings.nulls or NullPolicy.NAN,
        )

    def model_handlers(self) -> dict[tuple[bytes, bytes], Handler]:
        """Return the handlers by method and by what follows `/endpoints/NAME`."""
        return {(b"POST", INVOCATIONS): self.predict}

    def handlers(self) -> dict[tuple[bytes, bytes], Handler]:
        """Return the handlers by method and path."""
        return {(b"GET", b"/ping"): self.ping, (b"POST", INVOCATIONS): self.predict}

    def ping(self, exchange: Exchange) -> None:
        """GET /ping: 200 while the model is ready."""
        exchange.send(200 if self.state.is_ready else 503, b"\n")

    def predict(self, exchange: Exchange) -> None:
        """POST /invocations."""
        exchange.wire = self
        headers = exchange.headers
        content_type, _, _ = headers.get(b"content-type", b"").decode("latin-1").partition(";")
        content_type = content_type.strip().lower() or JSON_TYPE
        if content_type not in {CSV_TYPE, JSON_TYPE}:
            what = f"content type '{content_type[:80]}' is not supported"
            exchange.send(415, encode_error(f"{what}; send {JSON_TYPE} or {CSV_TYPE}"))
            return
        codec = self._codec
        if codec is None:
            raise self.state.not_ready()
        body = decoded_body(exchange, self.state.settings.max_body_bytes)
        exchange.request, form = codec.decode(body, content_type)
        exchange.request.parameters = {"form": form}
        rank(exchange)
        submit_in_parts(self.state, exchange, timeout_s(headers))

    def respond(self, exchange: Exchange, response: InferResponse) -> None:
        """Encode and send the model's response, in the form that the request asked for."""
        assert self._codec is not None
        assert exchange.request.parameters is not None
        body = self._codec.encode(response, exchange.request.parameters["form"])
        send_tensors(exchange, body, None)
