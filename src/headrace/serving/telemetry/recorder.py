"""Recorder of single requests: traces, payload samples and samples of served features.

Handlers are wrapped only while recording is requested. A request that is neither traced nor sampled
then costs only a check of one header and one random number.

Each trace is complete: a request's span has children for reading it, for the queue, and for its
batch; the batch's span has a child for the runtime, and links to the other traced requests of the
batch. Untraced requests create no objects, and a batch only one check.
"""

import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET

from headrace.core import Array, Clock, InferResponse, SystemClock
from headrace.core.headers import CALLER_HEADER
from headrace.engine import Batch, Outcome
from headrace.features import FeatureRows
from headrace.features.served_writer import EvenShare, ServedSample, served_rows, served_sample
from headrace.observe.spans import SpanContext, SpanRecord, sampled_parent, trace_id_of
from headrace.pipeline import BoundFeatures
from headrace.serving.exchange import Exchange
from headrace.serving.routing import Handler
from headrace.serving.telemetry.observation import SHADOW_HEADER
from headrace.serving.telemetry.report import (
    FeaturesPage,
    RecordingSettings,
    SpansPage,
)
from headrace.serving.telemetry.samples import BoundedBuffer, Sampler

if TYPE_CHECKING:
    from headrace.serving.state import ReplicaState

_MAX_SPANS: Final = 20_000
_MAX_LINKS: Final = 32
_BYTES: Final = 1  # per span: the limit is a number, not a size
_LONGEST_TEXT: Final = 256


@dataclass(slots=True, kw_only=True)
class TracedBatch:
    """Times (monotonic) of a batch, and the traced requests in it."""

    formed_at: float
    joined_at: float
    computed_at: float
    split_at: float
    rows: int
    requests: int
    members: list[SpanContext]


@dataclass(slots=True, kw_only=True)
class TracedRequest:
    """Request whose trace is recorded. `batch` is None if it never ran."""

    parent: SpanContext
    context: SpanContext
    batch: TracedBatch | None = None


def begin(parent: SpanContext) -> TracedRequest:
    """Return a traced request as part of its caller's trace."""
    return TracedRequest(parent=parent, context=_child_of(parent))


def traced_batch(batch: Batch, traced: list[TracedRequest]) -> None:
    """Set the batch of its traced requests."""
    summary = TracedBatch(
        formed_at=batch.formed_at,
        joined_at=batch.joined_at,
        computed_at=batch.computed_at,
        split_at=batch.split_at,
        rows=batch.rows,
        requests=len(batch.tickets),
        members=[request.context for request in traced[: _MAX_LINKS + 1]],
    )
    for traced_request in traced:
        traced_request.batch = summary


@dataclass(slots=True, kw_only=True)
class SpanLog:
    """Log of the spans of answered requests, kept until they are fetched."""

    model: str
    version: str
    replica: str
    clock: Clock = field(default_factory=SystemClock)
    shelf: BoundedBuffer[SpanRecord] = field(
        default_factory=lambda: BoundedBuffer(
            most_items=_MAX_SPANS, most_bytes=_MAX_SPANS, page_items=1000, page_bytes=1000
        )
    )

    def add(
        self,
        traced: TracedRequest,
        *,
        received_at: float,
        queued_at: float,
        request_id: str,
        error: str = "",
    ) -> None:
        """Add the spans of a request that was just answered; times are monotonic."""
        now = time.monotonic()
        offset_s = self.clock.now() - now
        attributes: dict[str, str | int | float] = {
            "headrace.endpoint": self.model,
            "headrace.version": self.version,
            "headrace.replica": self.replica,
            "headrace.request_id": request_id[:_LONGEST_TEXT],
        }
        own = SpanRecord(
            traced.context,
            traced.parent.span_id,
            f"infer {self.model}",
            received_at + offset_s,
            now + offset_s,
            attributes,
            error=error[:_LONGEST_TEXT],
            is_server=True,
        )
        self.shelf.add(own, _BYTES)
        for span in _phases(traced, received_at, queued_at, now, offset_s):
            self.shelf.add(span, _BYTES)


def _phases(
    traced: TracedRequest, received_at: float, queued_at: float, now: float, offset_s: float
) -> Iterator[SpanRecord]:
    parent, batch = traced.context, traced.batch

    def span(name: str, begin: float, end: float) -> SpanRecord:
        context = _child_of(parent)
        return SpanRecord(context, parent.span_id, name, begin + offset_s, end + offset_s)

    if queued_at > received_at:
        yield span("preprocess", received_at, queued_at)
    if batch is None:
        return
    yield span("queue", queued_at, batch.formed_at)
    context = _child_of(parent)
    others = [member for member in batch.members if member is not traced.context]
    yield SpanRecord(
        context,
        parent.span_id,
        "batch",
        batch.formed_at + offset_s,
        batch.split_at + offset_s,
        {"headrace.batch.rows": batch.rows, "headrace.batch.requests": batch.requests},
        others[:_MAX_LINKS],
    )
    yield SpanRecord(
        _child_of(context),
        context.span_id,
        "runtime",
        batch.joined_at + offset_s,
        batch.computed_at + offset_s,
    )
    yield span("postprocess", batch.split_at, now)


def _child_of(parent: SpanContext) -> SpanContext:
    return SpanContext(parent.trace_id, secrets.token_hex(8))


_ROWS_OF_READ: Final = 16
_MOST: Final = 4096
_PAGE: Final = 256
_VALUE_BYTES: Final = 64
_EARLY_S: Final = 60.0
"""A control plane sets the share within seconds; without one, nothing has to be kept."""


class ServedFeatures:
    """Samples of the features from one source, added by the threads that run batches.

    The first look-ups come before the control plane sets their share. They are kept for a minute,
    up to the size limit, and the first `keep` selects its share of them.
    """

    def __init__(self, source: BoundFeatures) -> None:
        self._share: EvenShare | None = None
        self._begun_at: float | None = None
        self._lock = threading.Lock()
        self._shelf: BoundedBuffer[ServedSample] = BoundedBuffer(
            most_items=_MOST, most_bytes=16 << 20, page_items=_PAGE, page_bytes=1 << 20
        )
        self.follow(source)

    def follow(self, source: BoundFeatures) -> None:
        """Sample this source like the previous one: a pool loads models again."""
        with self._lock:
            self._source = source
            source.wants_rows = self._takes
            source.on_rows = self.add if self._share is None or self._share.ratio else None

    def keep(self, ratio: float) -> None:
        """Set the share of look-ups that are kept from now on."""
        with self._lock:
            if self._share is not None and ratio == self._share.ratio:
                return
            early = list(self._drained()) if self._share is None else []
            self._share = EvenShare(ratio)
            if not ratio:
                self._shelf.clear()
            for sample in early:
                if self._share.takes():
                    self._shelf.add(sample, _size_bytes(sample))
            self._source.on_rows = self.add if ratio else None

    def add(self, now: float, keys: Mapping[str, Array], rows: FeatureRows) -> None:
        """Add some rows of one look-up."""
        count = len(next(iter(keys.values()), ()))
        sample = served_sample(now, keys, rows, count, min(count, _ROWS_OF_READ))
        with self._lock:
            self._shelf.add(sample, _size_bytes(sample))
            self._begun_at = now if self._begun_at is None else self._begun_at
            if self._share is None and (self._shelf.dropped or now > self._begun_at + _EARLY_S):
                self._source.on_rows = None
                self._shelf.dropped = 0
                if now > self._begun_at + _EARLY_S:
                    self._shelf.clear()

    def _takes(self) -> bool:
        """Whether to keep the current look-up."""
        with self._lock:
            return self._share is None or self._share.takes()

    def _drained(self) -> Iterator[ServedSample]:
        cursor = 0
        while (page := self._shelf.page(cursor)).items:
            yield from page.items
            cursor = page.cursor

    def page(self, after: int) -> FeaturesPage:
        """Return the samples after a cursor; empty before `keep` was called."""
        with self._lock:
            if self._share is None:
                return FeaturesPage(cursor=after, service=self._source.service, lines=[])
            page = self._shelf.page(after)
        encode = msgspec.json.Encoder().encode
        source = self._source
        return FeaturesPage(
            cursor=page.cursor,
            service=source.service,
            lines=[
                encode(row).decode()
                for served in page.items
                for row in served_rows(
                    source.service, source.schema_hash, served.read_at, served.keys, served.rows
                )
            ],
            dropped=page.dropped,
        )


def _size_bytes(sample: ServedSample) -> int:
    return sample.count * len(sample.rows.columns) * _VALUE_BYTES


def served_of(model: object, before: ServedFeatures | None = None) -> ServedFeatures | None:
    """Return the samples of a model that looks features up; None for any other model.

    Args:
        before: Samples of the model from its previous load, which are continued.
    """
    for step in getattr(model, "steps", ()):
        source = getattr(step.model, "source", None)
        if isinstance(source, BoundFeatures):
            if before is None:
                return ServedFeatures(source)
            before.follow(source)
            return before
    return None


PARENT_HEADER: Final = b"traceparent"
_CALLER: Final = CALLER_HEADER.encode()


class RequestRecorder:
    """Recorder for `RecordingSettings`; the caller wraps the inference handlers."""

    def __init__(self, state: "ReplicaState") -> None:
        self._state = state
        self._wanted = RecordingSettings()
        self._was_told = False
        self.spans = SpanLog(
            model=state.name, version=state.version, replica=state.settings.replica
        )
        self.samples = Sampler()
        self.features: ServedFeatures | None = None

    @property
    def is_on(self) -> bool:
        """Whether recording is active."""
        return self._wanted.traces or self._wanted.sample_ratio > 0.0

    def record(self, requested: RecordingSettings) -> None:
        """Record according to `requested` from now on."""
        self._wanted = requested
        self.samples.ratio = requested.sample_ratio
        self.samples.drop = frozenset(requested.drop)
        if not requested.sample_ratio:
            self.samples.shelf.clear()
        if not requested.traces:
            self.spans.shelf.clear()
        self._was_told = True
        self._state.watch_batches(self._saw if requested.traces else None)
        if self.features is not None:
            self.features.keep(requested.features_ratio)

    def model_loaded(self) -> None:
        """Update the recorder after the state's model was loaded, which a pool may repeat."""
        if self._state.settings.features is UNSET:
            return

        self.features = served_of(self._state.model.loaded.model, self.features)
        if self.features is not None and self._was_told:
            self.features.keep(self._wanted.features_ratio)

    def spans_page(self, after: int) -> SpansPage:
        """Return the spans after a cursor."""
        page = self.spans.shelf.page(after)
        return SpansPage(cursor=page.cursor, spans=list(page.items), dropped=page.dropped)

    def features_page(self, after: int) -> FeaturesPage:
        """Return the served features after a cursor."""
        if self.features is None:
            return FeaturesPage(cursor=after, service="", lines=[])
        return self.features.page(after)

    def wrap(self, handler: Handler) -> Handler:
        """Return `handler` of an inference, wrapped so that its outcome is recorded."""

        def recorded(exchange: Exchange) -> None:
            headers = exchange.headers
            traced = None
            if self._wanted.traces and PARENT_HEADER in headers:
                parent = sampled_parent(headers[PARENT_HEADER])
                traced = None if parent is None else begin(parent)
            sampled = self.samples.wants() and SHADOW_HEADER not in headers
            if traced is not None or sampled:
                recording = Recording(recorder=self, traced=traced, is_sampled=sampled)
                exchange.observers += (recording,)
            handler(exchange)

        return recorded

    @staticmethod
    def _saw(batch: Batch) -> None:
        """Record a batch; the engine calls this for each batch that ran."""
        traced = [
            observer.traced
            for ticket in batch.tickets
            for observer in getattr(ticket, "observers", ())
            if isinstance(observer, Recording) and observer.traced is not None
        ]
        if traced:
            traced_batch(batch, traced)


@dataclass(slots=True, kw_only=True)
class Recording:
    """Observer of one request that records its outcome."""

    recorder: RequestRecorder
    traced: TracedRequest | None
    is_sampled: bool

    def __call__(self, exchange: Exchange, outcome: Outcome) -> None:
        """Record the outcome of a request."""
        error = None if isinstance(outcome, InferResponse) else outcome
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
                getattr(exchange, "request", None),  # None if the request could not be read
                outcome.outputs if isinstance(outcome, InferResponse) else {},
                request_id=exchange.request_id,
                trace_id=trace_id_of(headers.get(PARENT_HEADER, b"")),
                caller=headers.get(_CALLER, b"").decode("latin-1"),
                duration_s=time.monotonic() - exchange.received_at,
                code="OK" if error is None else str(error.code),
            )
