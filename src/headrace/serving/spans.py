"""Where did the time of a traced request go? Spans for it, made once it is answered.

Each trace is whole in itself: a request's span has children for reading it, for the queue, and for
the batch it ran in; the batch's has one for the runtime, and links to the other traced requests in
it. Nothing is made for a request that is not traced, and of a batch nothing but one look at it.
"""

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from headrace.core import Clock, SystemClock
from headrace.engine import Batch
from headrace.observe.spans import SpanContext, SpanRecord
from headrace.serving.samples import Shelf

_MOST_SPANS: Final = 20_000
_MOST_LINKS: Final = 32
_BYTES: Final = 1  # of one span: it is counted, not measured
_LONGEST_TEXT: Final = 256


@dataclass(slots=True, kw_only=True)
class TracedBatch:
    """When a batch did what (monotonic), and which traced requests were in it."""

    formed_at: float
    joined_at: float
    computed_at: float
    split_at: float
    rows: int
    requests: int
    members: list[SpanContext]


@dataclass(slots=True, kw_only=True)
class TracedRequest:
    """A request whose trace is kept. `batch` is None if it never ran."""

    parent: SpanContext
    context: SpanContext
    batch: TracedBatch | None = None


def begin(parent: SpanContext) -> TracedRequest:
    """A request that is a part of its caller's trace."""
    return TracedRequest(parent=parent, context=_child_of(parent))


def traced_batch(batch: Batch, traced: list[TracedRequest]) -> None:
    """Tell the traced requests of a batch what became of it."""
    told = TracedBatch(
        formed_at=batch.formed_at,
        joined_at=batch.joined_at,
        computed_at=batch.computed_at,
        split_at=batch.split_at,
        rows=batch.rows,
        requests=len(batch.tickets),
        members=[each.context for each in traced[: _MOST_LINKS + 1]],
    )
    for each in traced:
        each.batch = told


@dataclass(slots=True, kw_only=True)
class SpanLog:
    """Makes the spans of answered requests and keeps them until they are fetched."""

    model: str
    version: str
    replica: str
    clock: Clock = field(default_factory=SystemClock)
    shelf: Shelf[SpanRecord] = field(
        default_factory=lambda: Shelf(
            most_items=_MOST_SPANS, most_bytes=_MOST_SPANS, page_items=1000, page_bytes=1000
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
        """Keep the spans of a request that was just answered; times are monotonic."""
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
        others[:_MOST_LINKS],
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
