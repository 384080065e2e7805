"""Spans of traces, between the process that recorded them and the one that exports them."""

import re
from typing import Final

import msgspec

_TRACEPARENT: Final = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED: Final = 1
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16


class SpanContext(msgspec.Struct, frozen=True, array_like=True):
    """Identity of a span: both ids as hexadecimal digits, as in W3C's `traceparent`."""

    trace_id: str
    span_id: str


class SpanRecord(msgspec.Struct, frozen=True, array_like=True):
    """One span of a trace."""

    context: SpanContext
    """Trace and span id."""
    parent_id: str
    """Id of the parent span; empty for none."""
    name: str
    """Name of the span."""
    begin_s: float
    """Start, seconds since 1970."""
    end_s: float
    """End, seconds since 1970."""
    attributes: dict[str, str | int | float] = {}
    """OpenTelemetry attributes."""
    links: list[SpanContext] = []
    """Related spans besides the parent."""
    error: str = ""
    """Error message; empty for success."""
    is_server: bool = False
    """Whether it answers a request of another process."""


def sampled_parent(traceparent: bytes) -> SpanContext | None:
    """Return the sampled parent from a W3C `traceparent`; None if not sampled or malformed.

    https://www.w3.org/TR/trace-context/#traceparent-header
    """
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or not int(match[3], 16) & _SAMPLED:
        return None
    trace_id, span_id = match[1].decode(), match[2].decode()
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return SpanContext(trace_id, span_id)


def trace_id_of(traceparent: bytes) -> str:
    """Return the trace id of a request, sampled or not; empty without a valid header."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return "" if match is None else match[1].decode()
