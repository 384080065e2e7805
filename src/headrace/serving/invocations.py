"""MLflow's and SageMaker's scoring protocol: `POST /invocations` and `GET /ping`.

A data frame may have more rows than a batch: it runs as several requests in turn.
"""

import asyncio
from typing import Final

import numpy as np

from headrace.core import HeadraceError, InferRequest, InferResponse, NullPolicy, Tensors
from headrace.core.predictions import PredictionForm, layout_of
from headrace.engine import Outcome, Ticket
from headrace.protocol import PredictionCodec, encode_error
from headrace.protocol.predictions import CSV_TYPE, JSON_TYPE
from headrace.serving.exchange import Exchange, send_error
from headrace.serving.routing import Handler, rank, timeout_s
from headrace.serving.state import ReplicaState
from headrace.serving.v2 import decoded_body, send_tensors

INVOCATIONS: Final = b"/invocations"


class InvocationsApi:
    """Handlers of `/invocations` and `/ping`."""

    def __init__(self, state: ReplicaState) -> None:
        self._state = state
        self._codec: PredictionCodec | None = None
        self._writers = {form: _PredictionWriter(self, form) for form in PredictionForm}
        self._splits: dict[Exchange, _SplitRequest] = {}

    def model_loaded(self) -> None:
        """Update the handlers after the state's model was loaded; called once."""
        state = self._state
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
        exchange.send(200 if self._state.is_ready else 503, b"\n")

    def predict(self, exchange: Exchange) -> None:
        """POST /invocations."""
        exchange.wire = self._writers[PredictionForm.VALUES]
        headers = exchange.headers
        content_type, _, _ = headers.get(b"content-type", b"").decode("latin-1").partition(";")
        content_type = content_type.strip().lower() or JSON_TYPE
        if content_type not in {CSV_TYPE, JSON_TYPE}:
            what = f"content type '{content_type[:80]}' is not supported"
            exchange.send(415, encode_error(f"{what}; send {JSON_TYPE} or {CSV_TYPE}"))
            return
        codec = self._codec
        if codec is None:
            raise self._state.not_ready()
        body = exchange.body
        if b"content-encoding" in headers:
            body = decoded_body(exchange, self._state.settings.max_body_bytes)
        exchange.request, form = codec.decode(body, content_type)
        exchange.wire = self._writers[form]
        rank(exchange)
        limit_s, most = timeout_s(headers), self._state.max_batch_size
        if most is None or exchange.request.rows <= most:
            self._state.submit(exchange, limit_s)
            return
        split = _SplitRequest(self._state, exchange, rows=most, limit_s=limit_s)
        self._splits[exchange] = split
        try:
            split.submit()
        except HeadraceError:
            del self._splits[exchange]
            raise

    def respond(self, exchange: Exchange, response: InferResponse, form: PredictionForm) -> None:
        """Encode and send the model's response."""
        assert self._codec is not None
        self._splits.pop(exchange, None)
        try:
            body = self._codec.encode(response, form)
        except HeadraceError as error:
            exchange.wire.refuse(exchange, error)
            return
        if b"accept-encoding" in exchange.headers:
            send_tensors(exchange, body, None)
        else:
            exchange.send_json(body)

    def refuse(self, exchange: Exchange, error: HeadraceError) -> None:
        """Send an error in JSON."""
        self._splits.pop(exchange, None)
        send_error(exchange, error)

    def cancel(self, exchange: Exchange) -> None:
        """Cancel the request of a caller that left."""
        split = self._splits.pop(exchange, None)
        self._state.cancel(exchange if split is None else split.cancelled())


class _SplitRequest:
    """Request with more rows than a batch; its parts of `rows` rows run one after the other."""

    def __init__(
        self, state: ReplicaState, exchange: Exchange, *, rows: int, limit_s: float
    ) -> None:
        self._state = state
        self._exchange = exchange
        self._rows = rows
        self._limit_s = limit_s
        self._outputs: list[Tensors] = []
        self._part = _Part(self, exchange.received_at)
        self._is_cancelled = False
        exchange.rows = exchange.request.rows

    def submit(self) -> None:
        """Queue the next part.

        Raises:
            HeadraceError: It is refused, as by `ReplicaState.submit`.
        """
        exchange = self._exchange
        whole = exchange.request
        start = len(self._outputs) * self._rows
        inputs = {name: array[start : start + self._rows] for name, array in whole.inputs.items()}
        part = self._part = _Part(self, exchange.received_at)
        part.floor, part.slo_s = exchange.floor, exchange.slo_s
        part.request = InferRequest(
            model_name=whole.model_name,
            model_version=whole.model_version,
            inputs=inputs,
            rows=min(self._rows, whole.rows - start),
            outputs=whole.outputs,
            priority=whole.priority,
        )
        self._state.submit(part, self._limit_s)

    def received(self, outcome: Outcome) -> None:
        """Take the outcome of a part; the last one completes the request."""
        if self._is_cancelled:
            return
        if not isinstance(outcome, InferResponse):
            self._exchange.complete(outcome)
            return
        self._outputs.append(outcome.outputs)
        if len(self._outputs) * self._rows < self._exchange.request.rows:
            # Not at once: a fast model runs inside of `submit`.
            asyncio.get_running_loop().call_soon(self._submit_next)
            return
        names = self._outputs[0]
        whole = {name: np.concatenate([part[name] for part in self._outputs]) for name in names}
        request = self._exchange.request
        self._exchange.complete(
            InferResponse(
                model_name=request.model_name, model_version=request.model_version, outputs=whole
            )
        )

    def cancelled(self) -> Ticket:
        """Submit no more parts, and return the one that the engine has."""
        self._is_cancelled = True
        return self._part

    def _submit_next(self) -> None:
        if self._is_cancelled:
            return
        try:
            self.submit()
        except HeadraceError as error:
            self._exchange.complete(error)


class _Part(Ticket):
    """Ticket of one part of a request."""

    __slots__ = ("_split",)

    def __init__(self, split: _SplitRequest, received_at: float) -> None:
        super().__init__(received_at)
        self._split = split

    def complete(self, outcome: Outcome) -> None:
        """Receive the outcome."""
        self._split.received(outcome)


class _PredictionWriter:
    """Response writer for predictions of one form."""

    def __init__(self, api: InvocationsApi, form: PredictionForm) -> None:
        self._api = api
        self._form = form

    def respond(self, exchange: Exchange, response: InferResponse) -> None:
        """Send the model's response."""
        self._api.respond(exchange, response, self._form)

    def refuse(self, exchange: Exchange, error: HeadraceError) -> None:
        """Send an error in JSON."""
        self._api.refuse(exchange, error)

    def cancel(self, exchange: Exchange) -> None:
        """Cancel the request of a caller that left."""
        self._api.cancel(exchange)
