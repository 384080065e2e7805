"""Export of spans over HTTP with OpenTelemetry's exporter. Needs the extra `otel`."""

import importlib.util
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from headrace.core import FailedPreconditionError
from headrace.observe.spans import SpanContext, SpanRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext as OtelContext

_log = logging.getLogger(__name__)

PATH: Final = "/v1/traces"
_PACKAGE: Final = "opentelemetry.exporter.otlp.proto.http"
_TIMEOUT_S: Final = 5.0
_NS: Final = 1_000_000_000


def check_otel() -> None:
    """Raise FailedPreconditionError if the packages are not installed."""
    try:
        package = importlib.util.find_spec(_PACKAGE)
    except ModuleNotFoundError:
        package = None
    if package is None:
        raise FailedPreconditionError(
            "'tracing' needs OpenTelemetry's exporter: pip install 'headrace[otel]'"
        )


class OtlpExporter:
    """Exporter of one service's spans. Blocking, and for one thread at a time.

    OpenTelemetry's environment variables (`OTEL_EXPORTER_OTLP_HEADERS`, `..._CERTIFICATE`) also
    apply.
    """

    def __init__(self, collector: str, *, service: str) -> None:
        # Imported here: the quarter of a second affects only processes with tracing.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415

        self._exporter = OTLPSpanExporter(endpoint=f"{collector}{PATH}", timeout=_TIMEOUT_S)
        self._resource = Resource({"service.name": service})

    def export(self, records: Sequence[SpanRecord]) -> bool:
        """Export spans, with retries for some seconds; return whether all were accepted."""
        from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: PLC0415

        spans = list(self._spans(records))
        try:
            return self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception:  # noqa: BLE001  # a plug-in call: only spans are lost
            _log.exception("cannot send spans")
            return False

    def _spans(self, records: Iterable[SpanRecord]) -> Iterator["ReadableSpan"]:
        from opentelemetry.sdk.trace import ReadableSpan  # noqa: PLC0415
        from opentelemetry.trace import Link, SpanKind, Status, StatusCode  # noqa: PLC0415

        for record in records:
            trace_id = record.context.trace_id
            yield ReadableSpan(
                name=record.name,
                context=_context(record.context),
                parent=_context(SpanContext(trace_id, record.parent_id), is_remote=True),
                resource=self._resource,
                attributes=record.attributes,
                links=[Link(_context(link)) for link in record.links],
                kind=SpanKind.SERVER if record.is_server else SpanKind.INTERNAL,
                status=Status(StatusCode.ERROR, record.error) if record.error else Status(),
                start_time=round(record.begin_s * _NS),
                end_time=round(record.end_s * _NS),
            )


def _context(context: SpanContext, *, is_remote: bool = False) -> "OtelContext":
    from opentelemetry.trace import SpanContext as OtelContext  # noqa: PLC0415
    from opentelemetry.trace import TraceFlags  # noqa: PLC0415

    return OtelContext(
        trace_id=int(context.trace_id, 16),
        span_id=int(context.span_id, 16),
        is_remote=is_remote,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
