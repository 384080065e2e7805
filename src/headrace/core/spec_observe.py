"""What the spec file says about the request log, traces and the payload log."""

from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, Strict, field_validator

from headrace.core.observe_settings import (
    EndpointLog,
    LogMode,
    PayloadLogSettings,
    RequestLogSettings,
    TracingSettings,
)
from headrace.core.spec_base import SpecModel

_Mode = Literal["off", "sampled", "all"]
_Ratio = Annotated[float, Field(ge=0.0, le=1.0)]
_SlowS = Annotated[float, Field(gt=0.0, le=86_400.0)]
_COLUMN: Final = r"^(caller|(input|output)\..{1,255})$"
_Columns = Annotated[
    tuple[Annotated[str, Field(pattern=_COLUMN)], ...], Strict(strict=False), Field(max_length=256)
]


class RequestLogSpec(SpecModel):
    """Which requests get a line in the gateway's request log."""

    mode: _Mode = Field(
        default="sampled",
        description="`sampled`: errors, slow requests and a share of the others; `all`; `off`.",
    )
    sample_ratio: _Ratio = Field(
        default=0.01, description="Share of good, fast requests with a line where `sampled`."
    )
    slow_s: _SlowS = Field(
        default=1.0, description="Longer requests are always logged. Unit: seconds."
    )

    def settings(self) -> RequestLogSettings:
        """The message that the gateway gets."""
        return RequestLogSettings(
            mode=LogMode(self.mode), sample_ratio=self.sample_ratio, slow_s=self.slow_s
        )


class EndpointLogSpec(SpecModel):
    """One endpoint's own request log."""

    mode: _Mode | None = Field(default=None, description="Null: as the gateway's.")
    slow_s: _SlowS | None = Field(default=None, description="Null: as the gateway's. Unit: s.")

    def settings(self) -> EndpointLog:
        """The message that the gateway gets."""
        mode = None if self.mode is None else LogMode(self.mode)
        return EndpointLog(mode=mode, slow_s=self.slow_s)


class TracingSpec(SpecModel):
    """Traces of requests, by OpenTelemetry; needs the extra `otel`."""

    collector: str = Field(
        max_length=2048,
        description="Takes OTLP over HTTP, such as http://127.0.0.1:4318; `/v1/traces` is added.",
    )
    sample_ratio: _Ratio = Field(
        default=0.01,
        description="Share of requests that are traced; one that comes with a trace of its "
        "caller's is traced if that is.",
    )

    @field_validator("collector")
    @classmethod
    def _is_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("should be http:// or https:// with a host")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("should have a host, a port and a path only")
        return value.rstrip("/")

    def settings(self) -> TracingSettings:
        """The message that gateway and control plane get."""
        return TracingSettings(collector=self.collector, sample_ratio=self.sample_ratio)


class PayloadLogSpec(SpecModel):
    """Sampled requests and answers, kept in Parquet files; needs the extra `data`."""

    sample_ratio: _Ratio = Field(default=0.01, description="Share of requests that are kept.")
    drop: _Columns = Field(
        default=(), description="Columns that are left out: `input.NAME`, `output.NAME`, `caller`."
    )
    hash: _Columns = Field(
        default=(),
        description="Columns kept as a keyed hash: equal values stay equal, and unreadable.",
    )
    max_file_bytes: int = Field(
        default=64 << 20, ge=1 << 16, le=1 << 32, description="A larger file is closed."
    )
    max_age_s: float = Field(
        default=300.0, ge=1.0, le=86_400.0, description="An older file is closed. Unit: seconds."
    )
    max_total_bytes: int = Field(
        default=1 << 30,
        ge=1 << 20,
        le=1 << 42,
        description="All files of the endpoint together; the oldest are removed.",
    )

    def settings(self) -> PayloadLogSettings:
        """The message that the control plane's parts get."""
        return PayloadLogSettings(**self.model_dump())
