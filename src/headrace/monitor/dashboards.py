"""Dashboards of the fleet, of replicas, of one endpoint and of its rollout."""

from typing import Final

from headrace.monitor.grafana import (
    OF_ENDPOINT,
    OF_MODEL,
    OF_REPLICA,
    OURS,
    PHASES,
    PICK_ENDPOINT,
    PICK_ONE,
    PICK_REPLICA,
    QUANTILES,
    RATE,
    Dashboard,
    Look,
    Panel,
    Query,
    Row,
    error_ratio,
    per_s,
    quantile,
    stat,
)
from headrace.monitor.promql import BUDGET, LATENCY, PROMISED, REQUESTS
from headrace.monitor.stream_dashboards import JOBS, STREAMS

ENDPOINT: Final = Dashboard(
    name="endpoint",
    title="Headrace: endpoint",
    description="One endpoint: what callers see, where the time goes, what it needs.",
    variables=(PICK_ONE,),
    rows=(
        Row(
            "What callers see",
            (
                Panel(
                    "Requests by how they ended",
                    "reqps",
                    "requests per second",
                    (Query(per_s(f"{REQUESTS}{{{OF_ENDPOINT}}}", "outcome"), "{{outcome}}"),),
                    help="ok; error: ours; rejected: the caller's mistake; abandoned: nobody "
                    "waited for the answer.",
                    stacked=True,
                ),
                Panel(
                    "Latency",
                    "s",
                    "seconds",
                    (
                        *(Query(quantile(q, LATENCY, OF_ENDPOINT), name) for q, name in QUANTILES),
                        Query(f"{PROMISED}{{{OF_ENDPOINT}}}", "promised for p99"),
                    ),
                    help="From the first byte of a request to the first of its answer, in the "
                    "gateway.",
                ),
                Panel(
                    "Failed requests",
                    "percentunit",
                    "share of requests",
                    (
                        Query(error_ratio(OF_ENDPOINT, "endpoint"), "failed"),
                        Query(f"{BUDGET}{{{OF_ENDPOINT}}}", "promised at most"),
                    ),
                ),
                Panel(
                    "Latency, all of it",
                    "s",
                    "seconds",
                    (
                        Query(
                            f"sum by (le) (rate({LATENCY}_bucket{{{OF_ENDPOINT}}}[{RATE}]))",
                            "{{le}}",
                        ),
                    ),
                    help="How many requests took how long: two bands mean two kinds of requests.",
                    look=Look.HEATMAP,
                ),
            ),
        ),
        Row(
            "Where the time goes",
            (
                Panel(
                    "Mean time by phase",
                    "s",
                    "seconds per request",
                    tuple(
                        Query(
                            (
                                f"sum(rate(headrace_{phase}_seconds_sum{{{OF_MODEL}}}[{RATE}])) / "
                                f"sum(rate(headrace_{phase}_seconds_count{{{OF_MODEL}}}[{RATE}]))"
                            ),
                            phase.replace("_", " "),
                        )
                        for phase in PHASES
                    ),
                    help="Waiting in the queue: more replicas help. Computing: a faster model "
                    "does.",
                    stacked=True,
                ),
                Panel(
                    "p99 by phase",
                    "s",
                    "seconds",
                    tuple(
                        Query(
                            quantile(0.99, f"headrace_{phase}_seconds", OF_MODEL),
                            phase.replace("_", " "),
                        )
                        for phase in PHASES
                    ),
                ),
                Panel(
                    "Rows per run of the model",
                    "suffix: rows",
                    "rows",
                    (
                        Query(
                            (
                                f"sum(rate(headrace_batch_rows_sum{{{OF_MODEL}}}[{RATE}])) / "
                                f"sum(rate(headrace_batch_rows_count{{{OF_MODEL}}}[{RATE}]))"
                            ),
                            "mean",
                        ),
                        Query(quantile(0.95, "headrace_batch_rows", OF_MODEL), "p95"),
                    ),
                    help="Batches grow by themselves while the model is busy.",
                ),
                Panel(
                    "In flight and waiting",
                    "suffix: requests",
                    "requests",
                    (
                        Query(f"sum(headrace_requests_in_flight{{{OF_MODEL}}})", "in flight"),
                        Query(f"sum(nv_inference_pending_request_count{{{OF_MODEL}}})", "waiting"),
                    ),
                ),
            ),
        ),
        Row(
            "What it needs",
            (
                Panel(
                    "Replicas",
                    "suffix: replicas",
                    "replicas",
                    (Query(f"sum by (state) (headrace_replicas{{{OF_ENDPOINT}}})", "{{state}}"),),
                ),
                Panel(
                    "Processor time",
                    "suffix: cores",
                    "cores",
                    (
                        Query(
                            per_s(f"headrace_replica_cpu_seconds_total{{{OF_MODEL}}}", "replica"),
                            "{{replica}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Drift",
                    "short",
                    "stability index",
                    (
                        Query(
                            f'headrace_drift_score{{{OF_ENDPOINT},statistic="psi"}}', "{{feature}}"
                        ),
                    ),
                    help="Population stability index by feature: below 0.1 nothing changed, above "
                    "0.25 a lot did.",
                    limit=0.25,
                ),
                Panel(
                    "Refused by replicas",
                    "reqps",
                    "requests per second",
                    (
                        Query(
                            per_s(
                                f'nv_inference_request_failure{{{OF_MODEL},reason="REJECTED"}}',
                                "replica",
                            ),
                            "{{replica}}",
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
    variables=(PICK_ONE,),
    rows=(
        Row(
            "How far it is",
            (
                Panel(
                    "Phase",
                    "bool",
                    "phase",
                    (
                        Query(
                            f"headrace_rollout_phase{{{OF_ENDPOINT}}} > 0", "{{rollout}} {{phase}}"
                        ),
                    ),
                    help="`headrace rollout status` and the console have the evidence.",
                ),
                Panel(
                    "Share of the new version",
                    "percent",
                    "percent of requests",
                    (Query(f"headrace_rollout_weight{{{OF_ENDPOINT}}}", "weight"),),
                    most=100,
                ),
            ),
        ),
        Row(
            "Versions side by side",
            (
                Panel(
                    "Requests",
                    "reqps",
                    "requests per second",
                    (
                        Query(
                            per_s(f"{REQUESTS}{{{OF_ENDPOINT}}}", "version"), "version {{version}}"
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Failed requests",
                    "percentunit",
                    "share of requests",
                    (Query(error_ratio(OF_ENDPOINT, "version"), "version {{version}}"),),
                ),
                Panel(
                    "p50 latency",
                    "s",
                    "seconds",
                    (Query(quantile(0.5, LATENCY, OF_ENDPOINT, "version"), "version {{version}}"),),
                ),
                Panel(
                    "p99 latency",
                    "s",
                    "seconds",
                    (
                        Query(
                            quantile(0.99, LATENCY, OF_ENDPOINT, "version"), "version {{version}}"
                        ),
                    ),
                ),
            ),
        ),
    ),
)
_ALERTS_TABLE: Final = Panel(
    "What is wrong now",
    "short",
    "firing",
    (Query("headrace_alert_firing > 0"),),
    help="Alerts that the control plane itself evaluates. Empty is good.",
    look=Look.TABLE,
)
FLEET: Final = Dashboard(
    name="fleet",
    title="Headrace: fleet",
    description="All endpoints at a glance.",
    rows=(
        Row(
            "Now",
            (
                stat(
                    "Gateway",
                    "headrace_control_gateway_ready",
                    "bool_on_off",
                    "Whether Envoy serves.",
                ),
                stat(
                    "Alerts firing",
                    "sum(headrace_alert_firing) or vector(0)",
                    "short",
                    "Pages and tickets together.",
                    limit=1,
                ),
                stat(
                    "Replicas ready",
                    'sum(headrace_replicas{state="ready"})',
                    "short",
                    "Processes that take requests.",
                ),
                stat(
                    "Replicas wanted",
                    'sum(headrace_replicas{state="desired"})',
                    "short",
                    "Processes that there should be.",
                ),
                stat(
                    "Requests",
                    f"sum(rate({REQUESTS}[{RATE}]))",
                    "reqps",
                    "To all endpoints together.",
                ),
                stat(
                    "Certificate ends in",
                    "min(headrace_control_certificate_left_seconds)",
                    "s",
                    "The first one of all; no value where nothing is encrypted.",
                ),
            ),
        ),
        Row(
            "Traffic",
            (
                Panel(
                    "Requests by endpoint",
                    "reqps",
                    "requests per second",
                    (Query(f"topk(20, {per_s(REQUESTS, 'endpoint')})", "{{endpoint}}"),),
                    help="The twenty busiest.",
                    stacked=True,
                ),
                Panel(
                    "Failed requests by endpoint",
                    "percentunit",
                    "share of requests",
                    (Query(f"topk(20, {error_ratio('', 'endpoint')})", "{{endpoint}}"),),
                    help="Errors are ours: 5xx, and 429 for too much load.",
                ),
                Panel(
                    "p99 latency by endpoint",
                    "s",
                    "seconds",
                    (
                        Query(
                            f"topk(20, {quantile(0.99, LATENCY, '', 'endpoint')})", "{{endpoint}}"
                        ),
                    ),
                    help="One request of a hundred takes longer. As the gateway measures it.",
                ),
                _ALERTS_TABLE,
            ),
        ),
        Row(
            "Machine",
            (
                Panel(
                    "Processor time by process",
                    "suffix: cores",
                    "cores",
                    (
                        Query(
                            per_s(f"headrace_process_cpu_seconds_total{OURS}", "process"),
                            "{{process}}",
                        ),
                        Query(
                            per_s("headrace_replica_cpu_seconds_total", "model"),
                            "replicas of {{model}}",
                        ),
                    ),
                    help="Envoy, the control plane and all replicas.",
                    stacked=True,
                ),
                Panel(
                    "Memory by process",
                    "bytes",
                    "resident bytes",
                    (
                        Query(
                            f"sum by (process) (headrace_process_memory_bytes{OURS})", "{{process}}"
                        ),
                        Query(
                            "sum by (model) (headrace_replica_resident_memory_bytes)",
                            "replicas of {{model}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "GPU use",
                    "percentunit",
                    "share of time",
                    (Query("nv_gpu_utilization", "{{gpu_uuid}}"),),
                    help="Only where there is a GPU.",
                    most=1,
                ),
                Panel(
                    "GPU memory",
                    "bytes",
                    "bytes in use",
                    (Query("nv_gpu_memory_used_bytes", "{{gpu_uuid}}"),),
                    help="Only where there is a GPU.",
                ),
            ),
        ),
    ),
)
REPLICA: Final = Dashboard(
    name="replica",
    title="Headrace: replicas",
    description="Single processes: which one is slow, large, or ends again and again.",
    variables=(PICK_ENDPOINT, PICK_REPLICA),
    rows=(
        Row(
            "Life",
            (
                Panel(
                    "Ready",
                    "bool_yes_no",
                    "ready",
                    (
                        Query(
                            f"headrace_control_replica_ready{{{OF_ENDPOINT},{OF_REPLICA}}}",
                            "{{replica}}",
                        ),
                    ),
                    most=1,
                ),
                Panel(
                    "Starts after the first",
                    "suffix: starts",
                    "starts",
                    (
                        Query(
                            f"headrace_control_replica_restarts{{{OF_ENDPOINT},{OF_REPLICA}}}",
                            "{{replica}}",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Work",
            (
                Panel(
                    "Rows",
                    "rowsps",
                    "rows per second",
                    (
                        Query(
                            per_s(f"nv_inference_count{{{OF_MODEL},{OF_REPLICA}}}", "replica"),
                            "{{replica}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "p99 in the replica",
                    "s",
                    "seconds",
                    (
                        Query(
                            quantile(
                                0.99,
                                "headrace_request_seconds",
                                f"{OF_MODEL},{OF_REPLICA}",
                                "replica",
                            ),
                            "{{replica}}",
                        ),
                    ),
                    help="Without the gateway: from a request's last byte until its batch was "
                    "computed.",
                ),
                Panel(
                    "In flight",
                    "suffix: requests",
                    "requests",
                    (
                        Query(
                            f"headrace_requests_in_flight{{{OF_MODEL},{OF_REPLICA}}}", "{{replica}}"
                        ),
                    ),
                ),
                Panel(
                    "Failures by reason",
                    "reqps",
                    "requests per second",
                    (
                        Query(
                            per_s(
                                f"nv_inference_request_failure{{{OF_MODEL},{OF_REPLICA}}}",
                                "replica, reason",
                            ),
                            "{{replica}} {{reason}}",
                        ),
                    ),
                    help="REJECTED: the queue is full. CANCELED: the caller left. BACKEND: the "
                    "model failed.",
                ),
            ),
        ),
        Row(
            "Resources",
            (
                Panel(
                    "Processor time",
                    "suffix: cores",
                    "cores",
                    (
                        Query(
                            per_s(
                                f"headrace_replica_cpu_seconds_total{{{OF_MODEL},{OF_REPLICA}}}",
                                "replica",
                            ),
                            "{{replica}}",
                        ),
                    ),
                ),
                Panel(
                    "Memory",
                    "bytes",
                    "resident bytes",
                    (
                        Query(
                            f"headrace_replica_resident_memory_bytes{{{OF_MODEL},{OF_REPLICA}}}",
                            "{{replica}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
DASHBOARDS: Final = (FLEET, ENDPOINT, ROLLOUT, REPLICA, STREAMS, JOBS)
