"""What is recorded of single requests? Traces and samples of payloads, while somebody asks.

Handlers are wrapped only then, and of a request that is neither traced nor sampled nothing is made
even so: it costs a look at one header, and one number by chance.
"""

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from msgspec import UNSET

from headrace.core import HeadraceError, InferResponse
from headrace.core.headers import CALLER_HEADER
from headrace.engine import Batch
from headrace.observe.spans import sampled_parent, trace_id_of
from headrace.serving.exchange import Exchange, Wire
from headrace.serving.observation import SHADOW_HEADER
from headrace.serving.report import FeaturesPage, Record, SamplesPage, SpansPage
from headrace.serving.routing import Handler
from headrace.serving.samples import Sampler
from headrace.serving.spans import SpanLog, TracedRequest, begin, traced_batch

if TYPE_CHECKING:
    from headrace.serving.served_features import ServedFeatures
    from headrace.serving.state import ReplicaState

_log = logging.getLogger(__name__)

PARENT_HEADER: Final = b"traceparent"
_CALLER: Final = CALLER_HEADER.encode()


class Recorder:
    """Records what `Record` asks for; the caller wraps the handlers of inference."""

    def __init__(self, state: "ReplicaState") -> None:
        self._state = state
        self._wanted = Record()
        self._was_told = False
        self.spans = SpanLog(
            model=state.name, version=state.version, replica=state.settings.replica
        )
        self.samples = Sampler()
        self.features: ServedFeatures | None = None

    @property
    def is_on(self) -> bool:
        """Whether anything is recorded."""
        return self._wanted.traces or self._wanted.sample_ratio > 0.0

    def record(self, wanted: Record) -> None:
        """Do as `wanted` says, from now on."""
        self._wanted = wanted
        self.samples.ratio = wanted.sample_ratio
        self.samples.drop = frozenset(wanted.drop)
        if not wanted.sample_ratio:
            self.samples.shelf.clear()
        if not wanted.traces:
            self.spans.shelf.clear()
        self._was_told = True
        self._state.watch_batches(self._saw if wanted.traces else None)
        if self.features is not None:
            self.features.keep(wanted.features_ratio)

    def model_loaded(self) -> None:
        """Called when the state's model is there, also when a pool has loaded it again."""
        if self._state.settings.features is UNSET:
            return
        from headrace.serving.served_features import served_of  # noqa: PLC0415  # few need it

        self.features = served_of(self._state.model.loaded.model, self.features)
        if self.features is not None and self._was_told:
            self.features.keep(self._wanted.features_ratio)

    def spans_page(self, after: int) -> SpansPage:
        """Spans after a cursor."""
        page = self.spans.shelf.page(after)
        return SpansPage(cursor=page.cursor, spans=list(page.items), dropped=page.dropped)

    def samples_page(self, after: int) -> SamplesPage:
        """Sampled payloads after a cursor."""
        return self.samples.page(after)

    def features_page(self, after: int) -> FeaturesPage:
        """Features that were served after a cursor."""
        if self.features is None:
            return FeaturesPage(cursor=after, service="", lines=[])
        return self.features.page(after)

    def wrap(self, handler: Handler) -> Handler:
        """`handler` of an inference, so that its outcome is recorded."""

        def recorded(exchange: Exchange) -> None:
            headers = exchange.headers
            traced = None
            if self._wanted.traces and PARENT_HEADER in headers:
                parent = sampled_parent(headers[PARENT_HEADER])
                traced = None if parent is None else begin(parent)
            sampled = self.samples.wants() and SHADOW_HEADER not in headers
            if traced is None and not sampled:
                handler(exchange)
                return
            recording = Recording(recorder=self, traced=traced, is_sampled=sampled)
            try:
                handler(exchange)
            except HeadraceError as error:
                recording.note(exchange, None, error)
                raise
            recording.wire, exchange.wire = exchange.wire, recording

        return recorded

    @staticmethod
    def _saw(batch: Batch) -> None:
        """Called by the engine for each batch that ran."""
        traced = []
        for ticket in batch.tickets:
            wire = getattr(ticket, "wire", None)
            if type(wire) is Recording and wire.traced is not None:
                traced.append(wire.traced)
        if traced:
            traced_batch(batch, traced)


@dataclass(slots=True, kw_only=True, eq=False)
class Recording:
    """Sends by another wire, then keeps what was sent; whatever goes wrong with that, no harm."""

    recorder: Recorder
    traced: TracedRequest | None
    is_sampled: bool
    wire: Wire = field(init=False)

    def respond(self, exchange: Exchange, response: InferResponse) -> None:
        """Send the model's answer; one that cannot be encoded comes to `refuse` of the other."""
        watch = _Refusals(self.wire)
        exchange.wire = watch
        self.wire.respond(exchange, response)
        self.note(exchange, response, watch.error)

    def refuse(self, exchange: Exchange, error: HeadraceError) -> None:
        """Send an error."""
        exchange.wire = self.wire
        self.wire.refuse(exchange, error)
        self.note(exchange, None, error)

    def cancel(self, exchange: Exchange) -> None:
        """The caller left: the gateway's span says so."""
        self.wire.cancel(exchange)

    def note(
        self, exchange: Exchange, response: InferResponse | None, error: HeadraceError | None
    ) -> None:
        """Keep the outcome of a request."""
        try:
            self._note(exchange, response, error)
        except Exception:  # noqa: BLE001  # the request edge: the answer is sent already
            _log.exception("cannot record a request", extra={"request_id": exchange.request_id})

    def _note(
        self, exchange: Exchange, response: InferResponse | None, error: HeadraceError | None
    ) -> None:
        if self.traced is not None:
            self.recorder.spans.add(
                self.traced,
                received_at=exchange.received_at,
                queued_at=exchange.queued_at,
                request_id=exchange.request_id,
                error="" if error is None else f"{error.code}: {error}",
            )
        if self.is_sampled:
            headers = exchange.headers
            self.recorder.samples.add(
                getattr(exchange, "request", None),  # nothing if it could not be read
                {} if response is None or error is not None else response.outputs,
                request_id=exchange.request_id,
                trace_id=trace_id_of(headers.get(PARENT_HEADER, b"")),
                caller=headers.get(_CALLER, b"").decode("latin-1"),
                duration_s=time.monotonic() - exchange.received_at,
                code="OK" if error is None else str(error.code),
            )


class _Refusals:
    """Notices that an answer became an error on its way out."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.error: HeadraceError | None = None

    def respond(self, exchange: Exchange, response: InferResponse) -> None:
        """Send the model's answer."""
        self._wire.respond(exchange, response)

    def cancel(self, exchange: Exchange) -> None:
        """The caller left."""
        self._wire.cancel(exchange)

    def refuse(self, exchange: Exchange, error: HeadraceError) -> None:
        """Send an error."""
        self.error = error
        exchange.wire = self._wire
        self._wire.refuse(exchange, error)
