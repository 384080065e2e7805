"""Traces that Envoy starts: sampling of requests, and the collector of spans.

Whether a trace is sampled is decided at its beginning: by chance, or as for the caller's own trace
(by its `traceparent`). Envoy cannot decide by the outcome of a request, because the replica's spans
are already sent by then; a collector can, if it gets all of them (`sample_ratio: 1`). Errors and
slow requests are in the request log with their trace id, sampled or not.
"""

from typing import Final

from headrace.core.headers import CALLER_HEADER
from headrace.core.spec.observe import TracingSpec
from headrace.gateway.resources import Resource, seconds, typed
from headrace.gateway.settings import EnvoySettings
from headrace.gateway.upstreams import url_cluster

COLLECTOR: Final = "collector"
"""Name of the cluster of the span collector."""
PATH: Final = "/v1/traces"
SERVICE_NAME: Final = "headrace-gateway"
_TRACER: Final = "envoy.config.trace.v3.OpenTelemetryConfig"
_TIMEOUT_S: Final = 5.0
_CONNECT_TIMEOUT_S: Final = 1.0
_PER_MILLION: Final = 1_000_000
_SAMPLERS: Final = "envoy.extensions.tracers.opentelemetry.samplers.v3"
_FLUSH_MS: Final = 1000


def tracing(settings: TracingSpec | None) -> Resource:
    """Return the trace settings of a connection manager; empty without traces."""
    if settings is None:
        return {}
    exporter: Resource = {
        "http_uri": {
            "uri": f"{settings.collector}{PATH}",
            "cluster": COLLECTOR,
            "timeout": seconds(_TIMEOUT_S),
        }
    }
    tracer = typed(
        "envoy.tracers.opentelemetry",
        _TRACER,
        {
            "http_service": exporter,
            "service_name": SERVICE_NAME,
            "sampler": _sampler(settings.sample_ratio),
        },
    )
    return {
        "tracing": {
            # Callers must not force a trace by a header of Envoy's.
            "client_sampling": {"value": 0},
            "spawn_upstream_span": True,
            "max_path_tag_length": 256,
            "custom_tags": [{"tag": "headrace.caller", "request_header": {"name": CALLER_HEADER}}],
            "provider": tracer,
        }
    }


def _sampler(ratio: float) -> Resource:
    """Return the sampler: as the caller's trace, else by trace id.

    Envoy's own `random_sampling` uses the request id, which callers choose, and excludes requests
    whose id is no UUID.
    """
    share: Resource = {"numerator": round(ratio * _PER_MILLION), "denominator": "MILLION"}
    by_id = typed(
        "envoy.tracers.opentelemetry.samplers.trace_id_ratio_based",
        f"{_SAMPLERS}.TraceIdRatioBasedSamplerConfig",
        {"sampling_percentage": share},
    )
    return typed(
        "envoy.tracers.opentelemetry.samplers.parent_based",
        f"{_SAMPLERS}.ParentBasedSamplerConfig",
        {"wrapped_sampler": by_id},
    )


def tracing_runtime(settings: TracingSpec | None) -> Resource:
    """Return runtime settings: spans are sent a second after their end, not five."""
    if settings is None:
        return {}
    layer: Resource = {"tracing.opentelemetry.flush_interval_ms": _FLUSH_MS}
    return {"layered_runtime": {"layers": [{"name": "tracing", "static_layer": layer}]}}


def collector_cluster(settings: EnvoySettings, tracing: TracingSpec) -> Resource:
    """Return the cluster of the collector."""
    return url_cluster(settings, COLLECTOR, tracing.collector, connect_timeout_s=_CONNECT_TIMEOUT_S)
