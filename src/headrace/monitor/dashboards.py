"""What is on each dashboard: the fleet, an endpoint, a rollout, a replica."""

from typing import Final

from headrace.monitor.grafana import Dashboard, Look, Panel, Query, Row, Variable
from headrace.monitor.promql import BUDGET, LATENCY, PROMISED, REQUESTS

_RATE: Final = "$__rate_interval"
_ENDPOINT: Final = 'endpoint=~"$endpoint"'
_MODEL: Final = 'model=~"$endpoint"'
_REPLICA: Final = 'replica=~"$replica"'
_OURS: Final = '{process=~"control|gateway"}'
_QUANTILES: Final = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
_PHASES: Final = ("preprocess", "queue_wait", "compute", "postprocess")

_PICK_ENDPOINT: Final = Variable(name="endpoint", label="endpoint", metric=REQUESTS)
_PICK_ONE: Final = Variable(name="endpoint", label="endpoint", metric=REQUESTS, many=False)
_PICK_REPLICA: Final = Variable(
    name="replica", label="replica", metric="headrace_control_replica_ready"
)


def _per_s(expression: str, by: str) -> str:
    return f"sum by ({by}) (rate({expression}[{_RATE}]))"


def _quantile(q: float, metric: str, labels: str, by: str = "") -> str:
    inner = f"sum by (le{', ' if by else ''}{by}) (rate({metric}_bucket{{{labels}}}[{_RATE}]))"
    return f"histogram_quantile({q:g}, {inner})"


def _error_ratio(labels: str, by: str) -> str:
    failed = f'{REQUESTS}{{{labels}{"," if labels else ""}outcome="error"}}'
    return (
        f"(sum by ({by}) (rate({failed}[{_RATE}])) or 0 * {_per_s(f'{REQUESTS}{{{labels}}}', by)}) "
        f"/ {_per_s(f'{REQUESTS}{{{labels}}}', by)}"
    )


def _stat(
    title: str, expression: str, *, unit: str, text: str, limit: float | None = None
) -> Panel:
    return Panel(
        title=title,
        unit=unit,
        axis=title,
        queries=(Query(expression=expression, legend=title),),
        help=text,
        look=Look.STAT,
        width=4,
        limit=limit,
    )


_ALERTS_TABLE: Final = Panel(
    title="What is wrong now",
    unit="short",
    axis="firing",
    queries=(Query(expression="headrace_alert_firing > 0"),),
    help="Alerts that the control plane itself evaluates. Empty is good.",
    look=Look.TABLE,
)

FLEET: Final = Dashboard(
    name="fleet",
    title="Headrace: fleet",
    description="All endpoints at a glance.",
    rows=(
        Row(
            title="Now",
            panels=(
                _stat(
                    "Gateway",
                    "headrace_control_gateway_ready",
                    unit="bool_on_off",
                    text="Whether Envoy serves.",
                ),
                _stat(
                    "Alerts firing",
                    "sum(headrace_alert_firing) or vector(0)",
                    unit="short",
                    text="Pages and tickets together.",
                    limit=1,
                ),
                _stat(
                    "Replicas ready",
                    'sum(headrace_replicas{state="ready"})',
                    unit="short",
                    text="Processes that take requests.",
                ),
                _stat(
                    "Replicas wanted",
                    'sum(headrace_replicas{state="desired"})',
                    unit="short",
                    text="Processes that there should be.",
                ),
                _stat(
                    "Requests",
                    f"sum(rate({REQUESTS}[{_RATE}]))",
                    unit="reqps",
                    text="To all endpoints together.",
                ),
                _stat(
                    "Certificate ends in",
                    "min(headrace_control_certificate_left_seconds)",
                    unit="s",
                    text="The first one of all; no value where nothing is encrypted.",
                ),
            ),
        ),
        Row(
            title="Traffic",
            panels=(
                Panel(
                    title="Requests by endpoint",
                    unit="reqps",
                    axis="requests per second",
                    queries=(
                        Query(
                            expression=f"topk(20, {_per_s(REQUESTS, 'endpoint')})",
                            legend="{{endpoint}}",
                        ),
                    ),
                    help="The twenty busiest.",
                    stacked=True,
                ),
                Panel(
                    title="Failed requests by endpoint",
                    unit="percentunit",
                    axis="share of requests",
                    queries=(
                        Query(
                            expression=f"topk(20, {_error_ratio('', 'endpoint')})",
                            legend="{{endpoint}}",
                        ),
                    ),
                    help="Errors are ours: 5xx, and 429 for too much load.",
                ),
                Panel(
                    title="p99 latency by endpoint",
                    unit="s",
                    axis="seconds",
                    queries=(
                        Query(
                            expression=f"topk(20, {_quantile(0.99, LATENCY, '', 'endpoint')})",
                            legend="{{endpoint}}",
                        ),
                    ),
                    help="One request of a hundred takes longer. As the gateway measures it.",
                ),
                _ALERTS_TABLE,
            ),
        ),
        Row(
            title="Machine",
            panels=(
                Panel(
                    title="Processor time by process",
                    unit="suffix: cores",
                    axis="cores",
                    queries=(
                        Query(
                            expression=_per_s(
                                f"headrace_process_cpu_seconds_total{_OURS}", "process"
                            ),
                            legend="{{process}}",
                        ),
                        Query(
                            expression=_per_s("headrace_replica_cpu_seconds_total", "model"),
                            legend="replicas of {{model}}",
                        ),
                    ),
                    help="Envoy, the control plane and all replicas.",
                    stacked=True,
                ),
                Panel(
                    title="Memory by process",
                    unit="bytes",
                    axis="resident bytes",
                    queries=(
                        Query(
                            expression=f"sum by (process) (headrace_process_memory_bytes{_OURS})",
                            legend="{{process}}",
                        ),
                        Query(
                            expression="sum by (model) (headrace_replica_resident_memory_bytes)",
                            legend="replicas of {{model}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    title="GPU use",
                    unit="percentunit",
                    axis="share of time",
                    queries=(Query(expression="nv_gpu_utilization", legend="{{gpu_uuid}}"),),
                    help="Only where there is a GPU.",
                    most=1,
                ),
                Panel(
                    title="GPU memory",
                    unit="bytes",
                    axis="bytes in use",
                    queries=(Query(expression="nv_gpu_memory_used_bytes", legend="{{gpu_uuid}}"),),
                    help="Only where there is a GPU.",
                ),
            ),
        ),
    ),
)

ENDPOINT: Final = Dashboard(
    name="endpoint",
    title="Headrace: endpoint",
    description="One endpoint: what callers see, where the time goes, what it needs.",
    variables=(_PICK_ONE,),
    rows=(
        Row(
            title="What callers see",
            panels=(
                Panel(
                    title="Requests by how they ended",
                    unit="reqps",
                    axis="requests per second",
                    queries=(
                        Query(
                            expression=_per_s(f"{REQUESTS}{{{_ENDPOINT}}}", "outcome"),
                            legend="{{outcome}}",
                        ),
                    ),
                    help="ok; error: ours; rejected: the caller's mistake; abandoned: nobody "
                    "waited for the answer.",
                    stacked=True,
                ),
                Panel(
                    title="Latency",
                    unit="s",
                    axis="seconds",
                    queries=(
                        *(
                            Query(expression=_quantile(q, LATENCY, _ENDPOINT), legend=name)
                            for q, name in _QUANTILES
                        ),
                        Query(expression=f"{PROMISED}{{{_ENDPOINT}}}", legend="promised for p99"),
                    ),
                    help="From the first byte of a request to the first of its answer, in the "
                    "gateway.",
                ),
                Panel(
                    title="Failed requests",
                    unit="percentunit",
                    axis="share of requests",
                    queries=(
                        Query(expression=_error_ratio(_ENDPOINT, "endpoint"), legend="failed"),
                        Query(expression=f"{BUDGET}{{{_ENDPOINT}}}", legend="promised at most"),
                    ),
                ),
                Panel(
                    title="Latency, all of it",
                    unit="s",
                    axis="seconds",
                    queries=(
                        Query(
                            expression=f"sum by (le) (rate({LATENCY}_bucket{{{_ENDPOINT}}}"
                            f"[{_RATE}]))",
                            legend="{{le}}",
                        ),
                    ),
                    help="How many requests took how long: two bands mean two kinds of requests.",
                    look=Look.HEATMAP,
                ),
            ),
        ),
        Row(
            title="Where the time goes",
            panels=(
                Panel(
                    title="Mean time by phase",
                    unit="s",
                    axis="seconds per request",
                    queries=tuple(
                        Query(
                            expression=(
                                f"sum(rate(headrace_{phase}_seconds_sum{{{_MODEL}}}[{_RATE}])) / "
                                f"sum(rate(headrace_{phase}_seconds_count{{{_MODEL}}}[{_RATE}]))"
                            ),
                            legend=phase.replace("_", " "),
                        )
                        for phase in _PHASES
                    ),
                    help="Waiting in the queue: more replicas help. Computing: a faster model "
                    "does.",
                    stacked=True,
                ),
                Panel(
                    title="p99 by phase",
                    unit="s",
                    axis="seconds",
                    queries=tuple(
                        Query(
                            expression=_quantile(0.99, f"headrace_{phase}_seconds", _MODEL),
                            legend=phase.replace("_", " "),
                        )
                        for phase in _PHASES
                    ),
                ),
                Panel(
                    title="Rows per run of the model",
                    unit="suffix: rows",
                    axis="rows",
                    queries=(
                        Query(
                            expression=(
                                f"sum(rate(headrace_batch_rows_sum{{{_MODEL}}}[{_RATE}])) / "
                                f"sum(rate(headrace_batch_rows_count{{{_MODEL}}}[{_RATE}]))"
                            ),
                            legend="mean",
                        ),
                        Query(
                            expression=_quantile(0.95, "headrace_batch_rows", _MODEL), legend="p95"
                        ),
                    ),
                    help="Batches grow by themselves while the model is busy.",
                ),
                Panel(
                    title="In flight and waiting",
                    unit="suffix: requests",
                    axis="requests",
                    queries=(
                        Query(
                            expression=f"sum(headrace_requests_in_flight{{{_MODEL}}})",
                            legend="in flight",
                        ),
                        Query(
                            expression=f"sum(nv_inference_pending_request_count{{{_MODEL}}})",
                            legend="waiting",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            title="What it needs",
            panels=(
                Panel(
                    title="Replicas",
                    unit="suffix: replicas",
                    axis="replicas",
                    queries=(
                        Query(
                            expression=f"sum by (state) (headrace_replicas{{{_ENDPOINT}}})",
                            legend="{{state}}",
                        ),
                    ),
                ),
                Panel(
                    title="Processor time",
                    unit="suffix: cores",
                    axis="cores",
                    queries=(
                        Query(
                            expression=_per_s(
                                f"headrace_replica_cpu_seconds_total{{{_MODEL}}}", "replica"
                            ),
                            legend="{{replica}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    title="Drift",
                    unit="short",
                    axis="stability index",
                    queries=(
                        Query(
                            expression=f'headrace_drift_score{{{_ENDPOINT},statistic="psi"}}',
                            legend="{{feature}}",
                        ),
                    ),
                    help="Population stability index by feature: below 0.1 nothing changed, above "
                    "0.25 a lot did.",
                    limit=0.25,
                ),
                Panel(
                    title="Refused by replicas",
                    unit="reqps",
                    axis="requests per second",
                    queries=(
                        Query(
                            expression=_per_s(
                                f'nv_inference_request_failure{{{_MODEL},reason="REJECTED"}}',
                                "replica",
                            ),
                            legend="{{replica}}",
                        ),
                    ),
                    help="Queues are full, or a deadline cannot be kept.",
                ),
            ),
        ),
    ),
)

ROLLOUT: Final = Dashboard(
    name="rollout",
    title="Headrace: rollout",
    description="Two versions of an endpoint side by side.",
    variables=(_PICK_ONE,),
    rows=(
        Row(
            title="How far it is",
            panels=(
                Panel(
                    title="Phase",
                    unit="bool",
                    axis="phase",
                    queries=(
                        Query(
                            expression=f"headrace_rollout_phase{{{_ENDPOINT}}} > 0",
                            legend="{{rollout}} {{phase}}",
                        ),
                    ),
                    help="`headrace rollout status` and the console have the evidence.",
                ),
                Panel(
                    title="Share of the new version",
                    unit="percent",
                    axis="percent of requests",
                    queries=(
                        Query(
                            expression=f"headrace_rollout_weight{{{_ENDPOINT}}}", legend="weight"
                        ),
                    ),
                    most=100,
                ),
            ),
        ),
        Row(
            title="Versions side by side",
            panels=(
                Panel(
                    title="Requests",
                    unit="reqps",
                    axis="requests per second",
                    queries=(
                        Query(
                            expression=_per_s(f"{REQUESTS}{{{_ENDPOINT}}}", "version"),
                            legend="version {{version}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    title="Failed requests",
                    unit="percentunit",
                    axis="share of requests",
                    queries=(
                        Query(
                            expression=_error_ratio(_ENDPOINT, "version"),
                            legend="version {{version}}",
                        ),
                    ),
                ),
                Panel(
                    title="p50 latency",
                    unit="s",
                    axis="seconds",
                    queries=(
                        Query(
                            expression=_quantile(0.5, LATENCY, _ENDPOINT, "version"),
                            legend="version {{version}}",
                        ),
                    ),
                ),
                Panel(
                    title="p99 latency",
                    unit="s",
                    axis="seconds",
                    queries=(
                        Query(
                            expression=_quantile(0.99, LATENCY, _ENDPOINT, "version"),
                            legend="version {{version}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)

REPLICA: Final = Dashboard(
    name="replica",
    title="Headrace: replicas",
    description="Single processes: which one is slow, large, or ends again and again.",
    variables=(_PICK_ENDPOINT, _PICK_REPLICA),
    rows=(
        Row(
            title="Life",
            panels=(
                Panel(
                    title="Ready",
                    unit="bool_yes_no",
                    axis="ready",
                    queries=(
                        Query(
                            expression=f"headrace_control_replica_ready{{{_ENDPOINT},{_REPLICA}}}",
                            legend="{{replica}}",
                        ),
                    ),
                    most=1,
                ),
                Panel(
                    title="Starts after the first",
                    unit="suffix: starts",
                    axis="starts",
                    queries=(
                        Query(
                            expression=f"headrace_control_replica_restarts"
                            f"{{{_ENDPOINT},{_REPLICA}}}",
                            legend="{{replica}}",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            title="Work",
            panels=(
                Panel(
                    title="Rows",
                    unit="rowsps",
                    axis="rows per second",
                    queries=(
                        Query(
                            expression=_per_s(
                                f"nv_inference_count{{{_MODEL},{_REPLICA}}}", "replica"
                            ),
                            legend="{{replica}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    title="p99 in the replica",
                    unit="s",
                    axis="seconds",
                    queries=(
                        Query(
                            expression=_quantile(
                                0.99, "headrace_request_seconds", f"{_MODEL},{_REPLICA}", "replica"
                            ),
                            legend="{{replica}}",
                        ),
                    ),
                    help="Without the gateway: from a request's last byte until its batch was "
                    "computed.",
                ),
                Panel(
                    title="In flight",
                    unit="suffix: requests",
                    axis="requests",
                    queries=(
                        Query(
                            expression=f"headrace_requests_in_flight{{{_MODEL},{_REPLICA}}}",
                            legend="{{replica}}",
                        ),
                    ),
                ),
                Panel(
                    title="Failures by reason",
                    unit="reqps",
                    axis="requests per second",
                    queries=(
                        Query(
                            expression=_per_s(
                                f"nv_inference_request_failure{{{_MODEL},{_REPLICA}}}",
                                "replica, reason",
                            ),
                            legend="{{replica}} {{reason}}",
                        ),
                    ),
                    help="REJECTED: the queue is full. CANCELED: the caller left. BACKEND: the "
                    "model failed.",
                ),
            ),
        ),
        Row(
            title="Resources",
            panels=(
                Panel(
                    title="Processor time",
                    unit="suffix: cores",
                    axis="cores",
                    queries=(
                        Query(
                            expression=_per_s(
                                f"headrace_replica_cpu_seconds_total{{{_MODEL},{_REPLICA}}}",
                                "replica",
                            ),
                            legend="{{replica}}",
                        ),
                    ),
                ),
                Panel(
                    title="Memory",
                    unit="bytes",
                    axis="resident bytes",
                    queries=(
                        Query(
                            expression=f"headrace_replica_resident_memory_bytes"
                            f"{{{_MODEL},{_REPLICA}}}",
                            legend="{{replica}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)

DASHBOARDS: Final = (FLEET, ENDPOINT, ROLLOUT, REPLICA)
