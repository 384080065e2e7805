"""Routes of a replica's APIs, and the request edge that handles every error."""

from functools import partial
from typing import Final

from headrace.core import HeadraceError
from headrace.engine import Ticket
from headrace.observe.metrics import TEXT_TYPE
from headrace.protocol.protos import INFERENCE_SERVICE
from headrace.serving.exchange import TEXT, Exchange, error_body
from headrace.serving.grpc.bridge import INFER, GrpcBridge
from headrace.serving.internal import InternalApi
from headrace.serving.invocations import INVOCATIONS, InvocationsApi
from headrace.serving.openai import OPENAI_ROUTES, OpenAiApi
from headrace.serving.pages import ModelPages
from headrace.serving.routing import (
    Handler,
    MethodNotAllowedError,
    ModelRoutes,
    Router,
    Table,
    add_routes,
    why_no_model,
)
from headrace.serving.state import ReplicaState
from headrace.serving.telemetry.drift import DriftSampler, drift_handlers
from headrace.serving.telemetry.metrics import exposition
from headrace.serving.telemetry.observation import Observer
from headrace.serving.telemetry.recorder import RequestRecorder
from headrace.serving.v1 import V1Api
from headrace.serving.v2 import V2Api

_INFERENCE: Final = frozenset(
    {
        (b"POST", b"/infer"),
        (b"POST", b":predict"),
        (b"POST", INVOCATIONS),
        (b"POST", f"/{INFERENCE_SERVICE}/{INFER}".encode()),
        *OPENAI_ROUTES,
    }
)
"""Handler keys of inference requests in the APIs."""


class Application:
    """HTTP API of a replica.

    `has_repository`: whether Triton's repository verbs are served; behind a gateway they belong to
    the management port.
    """

    def __init__(self, state: ReplicaState, *, has_repository: bool) -> None:
        self._state = state
        v2 = V2Api(state, has_repository=has_repository)
        v1 = V1Api(state)
        grpc = GrpcBridge(state, has_repository=has_repository)
        self._apis = (v2, v1, grpc, InvocationsApi(state), OpenAiApi(state))
        self._pages = ModelPages(state)
        self._observer = Observer(state)
        self._recorder = RequestRecorder(state)
        self._internal = InternalApi(state, self._observer, self._recorder, self._observe_or_not)
        self._sampler = DriftSampler(state)
        self.model_table: Table = {}
        """Routes of the model by path and method; the other routes concern the process."""
        self._router = self._make_router()

    def model_loaded(self) -> None:
        """Update the routes after the state's model was loaded; called once."""
        for api in self._apis:
            api.model_loaded()
        self._recorder.model_loaded()
        if not self._state.model.signature.has_tensors:
            self._router = self._make_router()

    def handle(self, exchange: Exchange) -> None:
        """Answer `exchange`, now or later, in all cases: the request edge."""
        try:
            self._router.find(exchange)(exchange)
        except HeadraceError as error:
            if hasattr(exchange, "wire"):  # an inference request
                self._state.refused(exchange, error)
            send_refusal(exchange, error)
        except Exception:  # noqa: BLE001  # the request edge: a bug fails only this request
            exchange.fail()

    def cancel(self, ticket: Ticket) -> None:
        """Cancel the request of a caller that left before the response."""
        self._state.cancel(ticket)

    def _observe_or_not(self) -> None:
        """Rebuild the routes after observation settings changed."""
        self._router = self._make_router()

    def _make_router(self) -> Router:
        """Return all routes; inference handlers are wrapped only while outcomes are observed."""
        v2, v1, grpc, invocations, openai = self._apis
        name, version = self._state.name, self._state.version
        observed = self._observed
        model = ModelRoutes(
            name=name,
            version=version,
            handlers=observed(v2.model_handlers()) | self._pages.model_handlers(),
            v1_handlers=observed(v1.model_handlers()),
            endpoint_handlers=observed(invocations.model_handlers()),
        )
        others: dict[tuple[bytes, bytes], Handler] = {
            **v2.handlers(),
            **v1.handlers(),
            **self._pages.handlers(),
            **observed(grpc.handlers()),
            **observed(invocations.handlers()),
            **observed(openai.handlers()),
            **self._internal.handlers(),
            **drift_handlers(self._sampler, self._observe_or_not),
            (b"GET", b"/metrics"): self.metrics,
        }
        self.model_table = model.table()
        return Router(
            add_routes(self.model_table | {}, others),
            partial(why_no_model, knows=lambda n, v: n == name and v in {"", version}),
        )

    def _observed(
        self, handlers: dict[tuple[bytes, bytes], Handler]
    ) -> dict[tuple[bytes, bytes], Handler]:
        """Return `handlers`, with those of inference wrapped."""
        return {
            key: self._wrapped(handler) if key in _INFERENCE else handler
            for key, handler in handlers.items()
        }

    def _wrapped(self, handler: Handler) -> Handler:
        served = self._state.served
        if served is not None and not served.signature.has_tensors:
            return self._refuse
        if self._observer.is_on:
            handler = self._observer.wrap(handler)
        if self._sampler.is_on:
            handler = self._sampler.wrap(handler)
        return self._recorder.wrap(handler) if self._recorder.is_on else handler

    def _refuse(self, _: Exchange) -> None:
        """Refuse the tensors of every protocol, with the error of a language model."""
        self._state.model.loaded.model.run({})

    def metrics(self, exchange: Exchange) -> None:
        """GET /metrics."""
        text = exposition(self._state, exchange.query)
        exchange.send(200, text, content_type=TEXT_TYPE.encode())


def send_refusal(exchange: Exchange, error: HeadraceError) -> None:
    """Send an error in the caller's protocol."""
    if isinstance(error, MethodNotAllowedError):
        headers = {b"Allow": error.allowed}
        exchange.send(405, error_body(exchange, error, 405), headers=headers)
    else:
        exchange.refuse(error)


class MetricsApplication:
    """Metrics endpoint for a separate port; `metrics` answers the requests."""

    def __init__(self, metrics: Handler) -> None:
        self._metrics = metrics

    def handle(self, exchange: Exchange) -> None:
        """GET /metrics."""
        if exchange.method == b"GET" and exchange.path.partition(b"?")[0] == b"/metrics":
            self._metrics(exchange)
        else:
            exchange.send(404, b"Not Found\n", content_type=TEXT)

    def cancel(self, ticket: Ticket) -> None:
        """Do nothing: no request waits here."""
