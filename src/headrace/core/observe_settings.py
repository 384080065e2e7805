"""What is kept of requests: their log lines, traces and payloads, as messages between parts."""

from enum import StrEnum

import msgspec


class LogMode(StrEnum):
    """Which requests get a line in the request log."""

    OFF = "off"
    SAMPLED = "sampled"
    """Errors and slow ones always, of the others a share."""
    ALL = "all"


class RequestLogSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request log of a whole gateway.

    `sample_ratio`: which share of good and fast requests gets a line where the mode is `sampled`.
    `slow_s`: what takes longer always gets one.
    """

    mode: LogMode = LogMode.ALL
    sample_ratio: float = 0.01
    slow_s: float = 1.0


class EndpointLog(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One endpoint's own request log; None leaves it to the gateway's."""

    mode: LogMode | None = None
    slow_s: float | None = None


class TracingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where spans go, by OTLP over HTTP, and of how many requests.

    `collector`: such as `http://127.0.0.1:4318`. `sample_ratio`: of requests that came without a
    trace; the others are traced if their caller's trace is.
    """

    collector: str
    sample_ratio: float = 0.01


class PayloadLogSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which requests and answers of an endpoint are kept in files, and how much of them.

    `drop` and `hash` name tensors (`input.NAME`, `output.NAME`) or `caller`. A file is closed at
    `max_file_bytes` or after `max_age_s`; the oldest go when all take more than `max_total_bytes`.
    """

    sample_ratio: float = 0.01
    drop: tuple[str, ...] = ()
    hash: tuple[str, ...] = ()
    max_file_bytes: int = 64 << 20
    max_age_s: float = 300.0
    max_total_bytes: int = 1 << 30
