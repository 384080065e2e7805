"""Spec parts for the request log, traces, the payload log, and drift."""

from enum import StrEnum
from typing import Annotated, Final
from urllib.parse import urlsplit

from msgspec import Meta

from headrace.core.spec.part import SpecPart

_Ratio = Annotated[float, Meta(ge=0.0, le=1.0)]
_SlowS = Annotated[float, Meta(gt=0.0, le=86_400.0)]
COLUMN_PATTERN: Final = r"^(caller|(input|output)\..{1,255})$"
_Columns = Annotated[tuple[Annotated[str, Meta(pattern=COLUMN_PATTERN)], ...], Meta(max_length=256)]


class LogMode(StrEnum):
    """Selection of requests for the request log."""

    OFF = "off"
    SAMPLED = "sampled"
    """All errors and slow requests, and a share of the others."""
    ALL = "all"


def _collector_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("should be http:// or https:// with a host")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("should have a host, a port and a path only")
    return value.rstrip("/")


class RequestLogSpec(SpecPart, frozen=True, kw_only=True):
    """Selection of requests for the gateway's request log."""

    mode: LogMode = LogMode.SAMPLED
    """`sampled`: errors, slow requests and a share of the others; `all`; `off`."""
    sample_ratio: _Ratio = 0.01
    """Share of successful, fast requests that `sampled` logs."""
    slow_s: _SlowS = 1.0
    """Longer requests are always logged. Unit: seconds."""


class EndpointLogSpec(SpecPart, frozen=True, kw_only=True):
    """Request log of one endpoint."""

    mode: LogMode | None = None
    """Null for the gateway's value."""
    slow_s: _SlowS | None = None
    """Null for the gateway's value. Unit: s."""


class TracingSpec(SpecPart, frozen=True, kw_only=True):
    """Traces of requests, by OpenTelemetry; needs the extra `otel`."""

    collector: Annotated[str, Meta(max_length=2048), _collector_url]
    """URL of an OTLP/HTTP collector, such as http://127.0.0.1:4318; `/v1/traces` is added."""
    sample_ratio: _Ratio = 0.01
    """Share of requests that are traced; a request with its caller's trace is traced if that is."""


class PayloadLogSpec(SpecPart, frozen=True, kw_only=True):
    """Sampled requests and responses in Parquet files; needs the extra `data`."""

    sample_ratio: _Ratio = 0.01
    """Share of requests that are kept."""
    drop: _Columns = ()
    """Columns that are left out: `input.NAME`, `output.NAME`, `caller`."""
    hash: _Columns = ()
    """Columns kept as a keyed hash: equal values stay equal, and unreadable."""
    max_file_bytes: Annotated[int, Meta(ge=1 << 16, le=1 << 32)] = 64 << 20
    """Size at which a file is closed. Unit: bytes."""
    max_age_s: Annotated[float, Meta(ge=1.0, le=86400.0)] = 300.0
    """Age at which a file is closed. Unit: seconds."""
    max_total_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 42)] = 1 << 30
    """Limit of all files of the endpoint together; the oldest are removed. Unit: bytes."""


class DriftSpec(SpecPart, frozen=True, kw_only=True):
    """Drift detection for inputs and outputs, against a reference."""

    alpha: Annotated[float, Meta(gt=0.0, le=0.5)] = 0.01
    """Probability of ever reporting a feature of the endpoint that has not drifted."""
    margin: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.1
    """Tolerated change of the share of values below any point, or of a category."""
    violations_margin: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.02
    """The same for the shares of missing, out-of-range and wrong values."""
    window_rows: Annotated[int, Meta(ge=100, le=20000)] = 2000
    """Number of first rows that are the reference if there is no other. Unit: rows."""
    rows_per_request: Annotated[int, Meta(ge=1, le=256)] = 32
    """Rows of one request that count at most; 1 if the rows of a request are similar. Unit: rows.
    """
    labels: bool = False
    """Whether outputs are kept by request id, so that later labels (`headrace feedback ID --label`)
    measure their accuracy.
    """
    output: Annotated[str, Meta(max_length=255)] = ""
    """Output that labels refer to; empty selects the first that is a class, else the first output.
    """
