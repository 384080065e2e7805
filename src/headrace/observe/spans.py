"""Spans of traces, between the process that recorded them and the one that exports them."""

import re
from typing import Final

import msgspec

_TRACEPARENT: Final = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED: Final = 1
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16


class SpanContext(msgspec.Struct, frozen=True, array_like=True):
    """What names a span: both ids as hexadecimal digits, as W3C's `traceparent` has them."""

    trace_id: str
    span_id: str


class SpanRecord(msgspec.Struct, frozen=True, array_like=True):
    """One span. Times are seconds since 1970; `error` is empty for success.

    `is_server`: it answers a request that came from another process. `links`: spans that it belongs
    to besides its parent.
    """

    context: SpanContext
    parent_id: str
    name: str
    begin_s: float
    end_s: float
    attributes: dict[str, str | int | float] = {}
    links: list[SpanContext] = []
    error: str = ""
    is_server: bool = False


def sampled_parent(traceparent: bytes) -> SpanContext | None:
    """Whose child a request is, by W3C's header; None if that is not traced, or is no such header.

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
    """The trace that a request belongs to, sampled or not; empty if the header says none."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return "" if match is None else match[1].decode()
