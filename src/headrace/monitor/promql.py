"""Alert conditions in PromQL, equivalent to the readings in `slo`.

Thresholds that differ between endpoints are series, so that one rule serves all.
"""

import json
import re
from collections.abc import Mapping
from typing import Final

from headrace.monitor.slo import (
    CERTIFICATE_LEFT_S,
    CRASH_STARTS,
    CRASH_WINDOW_S,
    LETTERS_WINDOW_S,
    MIN_ERRORS,
    QUEUES_FILLED_RATIO,
    REFUSED_RATIO,
    REFUSED_WINDOW_S,
    Condition,
    ErrorBurn,
    ErrorsOver,
    Fact,
    LatencyBurn,
    LatencyOver,
    least_requests,
)

JOB: Final = "headrace"
REQUESTS: Final = "headrace_endpoint_requests_total"
LATENCY: Final = "headrace_endpoint_latency_seconds"

BUDGET: Final = "headrace:slo_error_budget:ratio"
PROMISED: Final = "headrace:slo_latency_seconds:p99"
WINDOWS: Final = "headrace:slo_windows:ratio"
QUEUE_SIZE: Final = "headrace:queue_size:requests"
STREAM_LAG: Final = "headrace:stream_lag_limit:seconds"
STREAM_LETTERS: Final = "headrace:stream_dead_letters_limit:records"

_UNITS: Final = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms"))


def duration(seconds: float) -> str:
    """Return a Prometheus duration in the largest unit without remainder: `5m`, `1h`, `1500ms`."""
    millis = max(round(seconds * 1000), 1)
    size, unit = next(candidate for candidate in _UNITS if millis % candidate[0] == 0)
    return f"{millis // size}{unit}"


def scale_text(window_ratio: float) -> str:
    """Return the value of the label `windows`: endpoints with windows of this length."""
    return f"{window_ratio:g}"


def error_ratio(window_s: float) -> str:
    """Return the name of the series with each endpoint's share of failed requests."""
    return f"headrace:error_ratio:rate{duration(window_s)}"


def error_count(window_s: float) -> str:
    """Return the name of the series with each endpoint's failed requests."""
    return f"headrace:errors:increase{duration(window_s)}"


def request_count(window_s: float) -> str:
    """Return the name of the series with each endpoint's requests."""
    return f"headrace:requests:increase{duration(window_s)}"


def latency_quantile(q: float, window_s: float) -> str:
    """Return the name of the series with a quantile of each endpoint's latency."""
    return f"headrace:latency_seconds:q{q * 100:g}_rate{duration(window_s)}".replace(".", "_")


def matchers_of(labels: Mapping[str, str]) -> str:
    """Return the matchers of series that have these labels."""
    return ",".join(f"{name}={json.dumps(value)}" for name, value in labels.items())


def restricted(expression: str, matchers: str) -> str:
    """Return an expression with these matchers in each of its vector selectors.

    Args:
        expression: Its metrics are of Headrace, Triton (`nv_`) or Prometheus (`up`, `ALERTS`).
    """

    def restrict(match: re.Match[str]) -> str:
        if not match["metric"]:
            return match[0]
        ending = "," if match["labels"] else "}"
        return f"{match['metric']}{{{matchers}{ending}"

    return _SELECTOR.sub(restrict, expression) if matchers else expression


_SELECTOR: Final = re.compile(
    r'"[^"]*"|(?P<metric>\b(?:(?:headrace|nv)[_:][\w:]+|up|ALERTS)\b)(?P<labels>\{)?'
)
"""A string, or a metric with the start of its label matchers."""


def recorded(condition: Condition, window_s: float) -> dict[str, str]:
    """Return the recorded series that a condition uses, by name, with their expressions."""
    span = duration(window_s)
    failed = f'{REQUESTS}{{outcome="error"}}[{span}]'
    match condition:
        case ErrorBurn() | ErrorsOver():
            ratio = (
                f"sum by (endpoint) (rate({failed})) / sum by (endpoint) (rate({REQUESTS}[{span}]))"
            )
            count = f"sum by (endpoint) (increase({failed}))"
            return {error_ratio(window_s): ratio, error_count(window_s): count}
        case LatencyBurn(quantile=q) | LatencyOver(quantile=q):
            count = f"sum by (endpoint) (increase({REQUESTS}[{span}]))"
            buckets = f"sum by (endpoint, le) (rate({LATENCY}_bucket[{span}]))"
            return {
                request_count(window_s): count,
                latency_quantile(q, window_s): f"histogram_quantile({q:g}, {buckets})",
            }
        case Fact():
            return {}


def expression(condition: Condition, window_ratio: float = 1.0) -> str:
    """Return the expression of a condition, for endpoints with this window length.

    Args:
        window_ratio: Ignored by conditions without an objective.
    """
    scale = window_ratio
    match condition:
        case ErrorBurn(windows=burn):
            long_s, short_s = burn.long_s * scale, burn.short_s * scale
            allowed = f"on (endpoint) ({burn.factor:g} * {BUDGET}{_labels(scale)})"
            return (
                f"{error_ratio(long_s)} > {allowed} and on (endpoint) {error_ratio(short_s)} > "
                f"{allowed} and on (endpoint) {error_count(long_s)} >= {MIN_ERRORS}"
            )
        case LatencyBurn(windows=burn):
            q = condition.quantile
            long_s, short_s = burn.long_s * scale, burn.short_s * scale
            over, still = _latency_over(q, long_s, scale), _latency_over(q, short_s, scale)
            return f"{over} and on (endpoint) ({still})"
        case LatencyOver():
            return _latency_over(condition.quantile, condition.window_s * scale, scale)
        case ErrorsOver():
            window = condition.window_s * scale
            return (
                f"{error_ratio(window)} > {condition.ratio:g} and on (endpoint) "
                f"{error_count(window)} >= {MIN_ERRORS} unless on (endpoint) {BUDGET} "
                f"and on (endpoint) {WINDOWS}{_labels(scale)}"
            )
        case Fact():
            return _FACTS[condition]


def _latency_over(q: float, window_s: float, scale: float) -> str:
    return (
        f"{latency_quantile(q, window_s)} > on (endpoint) {PROMISED}{_labels(scale)} "
        f"and on (endpoint) {request_count(window_s)} >= {least_requests(q)}"
    )


def _labels(scale: float) -> str:
    return f'{{windows="{scale_text(scale)}"}}'


def _by_endpoint(expression: str) -> str:
    """Return a replica's metric with its model label as endpoint: both are equal."""
    return f'label_replace({expression}, "endpoint", "$1", "model", "(.+)")'


_REFUSED: Final = (
    "sum by (model) "
    f'(rate(nv_inference_request_failure{{reason="REJECTED"}}[{duration(REFUSED_WINDOW_S)}]))'
)
_ANSWERED: Final = (
    f"sum by (model) (rate(nv_inference_request_success[{duration(REFUSED_WINDOW_S)}]))"
)
_IN_FLIGHT: Final = _by_endpoint("sum by (model) (headrace_requests_in_flight)")
_COPIES: Final = _by_endpoint("sum by (model) (headrace_replica_ready)")
_READY: Final = 'sum by (endpoint) (headrace_replicas{state="ready"})'
_WANTED: Final = 'sum by (endpoint) (headrace_replicas{state="desired"})'
_UNLESS_PAUSED: Final = "unless on (stream) (headrace_stream_paused > 0)"
_FACTS: Final = {
    Fact.REFUSED: (
        f"{_by_endpoint(f'{_REFUSED} / ({_REFUSED} + {_ANSWERED})')} > {REFUSED_RATIO:g}"
    ),
    Fact.QUEUES_FILLED: (
        f"{_IN_FLIGHT} / on (endpoint) ({_COPIES} * on (endpoint) {QUEUE_SIZE} > 0) >= "
        f"{QUEUES_FILLED_RATIO:g}"
    ),
    Fact.NO_REPLICA: f"({_READY} or 0 * {_WANTED}) < 1 and on (endpoint) {_WANTED} > 0",
    Fact.REPLICAS_CRASH: (
        "max by (endpoint) (changes(headrace_control_replica_restarts"
        f"[{duration(CRASH_WINDOW_S)}])) >= {CRASH_STARTS}"
    ),
    Fact.GATEWAY_DOWN: "headrace_control_gateway_ready < 1",
    Fact.NOT_SCRAPED: "up < 1 or absent(up)",
    Fact.CERTIFICATE_ENDS: (
        f"min(headrace_control_certificate_left_seconds) < {CERTIFICATE_LEFT_S:.12g}"
    ),
    Fact.DRIFTED: 'sum by (endpoint) (headrace_drift_score{statistic="drifted"}) >= 1',
    Fact.ROWS_DIFFER: "max by (endpoint, version, output) (headrace_row_difference) > 0",
    Fact.JOBS_LATE: "count(max by (job_name) (headrace_job_late) > 0)",
    Fact.JOBS_FAILED: "count(max by (job_name) (headrace_job_failed) > 0)",
    Fact.STREAM_LAGS: (
        f"max by (stream) (headrace_stream_lag_seconds) > on (stream) {STREAM_LAG} {_UNLESS_PAUSED}"
    ),
    Fact.STREAM_DOWN: f"max by (stream) (headrace_stream_workers_running) < 1 {_UNLESS_PAUSED}",
    Fact.WORKERS_FAIL: "max by (stream) (headrace_stream_workers_failing) >= 1",
    Fact.DEAD_LETTERS: (
        "sum by (stream) (increase(headrace_stream_dead_letters_total"
        f"[{duration(LETTERS_WINDOW_S)}])) > on (stream) {STREAM_LETTERS}"
    ),
}
"""Conditions with fixed windows."""
