"""Spans as OpenTelemetry has them, and what is said where its packages are not."""

import importlib.util

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from headrace.core import FailedPreconditionError
from headrace.observe.otlp import OtlpExporter, check_otel
from headrace.observe.spans import SpanContext, SpanRecord, trace_id_of

TRACE, SPAN, PARENT = "0a" * 16, "0b" * 8, "0c" * 8


def record(**changes: object) -> SpanRecord:
    values = {"name": "infer m", "begin_s": 1.5, "end_s": 1.75, **changes}
    return SpanRecord(SpanContext(TRACE, SPAN), PARENT, **values)  # type: ignore[arg-type]  # by name


def test_a_span_keeps_its_ids_times_and_links() -> None:
    link = SpanContext("0d" * 16, "0e" * 8)
    attributes = {"headrace.endpoint": "m"}
    exporter = OtlpExporter("http://127.0.0.1:9", service="headrace")

    told = record(attributes=attributes, links=[link], is_server=True)
    (span,) = exporter._spans([told])

    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.context.span_id:016x}" == SPAN
    assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert (span.start_time, span.end_time) == (1_500_000_000, 1_750_000_000)
    assert [f"{each.context.trace_id:032x}" for each in span.links] == [link.trace_id]
    assert span.kind is SpanKind.SERVER
    assert span.resource.attributes["service.name"] == "headrace"


def test_an_error_is_the_spans_status() -> None:
    exporter = OtlpExporter("http://127.0.0.1:9", service="headrace")

    good, bad = exporter._spans([record(), record(error="INTERNAL: no")])

    assert good.status.status_code is StatusCode.UNSET
    assert (bad.status.status_code, bad.status.description) == (StatusCode.ERROR, "INTERNAL: no")


def test_the_trace_of_a_request_is_known_though_it_is_not_sampled() -> None:
    assert trace_id_of(f"00-{TRACE}-{SPAN}-00".encode()) == TRACE
    assert not trace_id_of(b"nonsense")


def test_what_is_not_installed_is_told_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_otel()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    with pytest.raises(FailedPreconditionError, match=r"headrace\[otel\]"):
        check_otel()


def test_a_package_without_its_parent_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", missing)

    with pytest.raises(FailedPreconditionError, match=r"headrace\[otel\]"):
        check_otel()
