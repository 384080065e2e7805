"""Dashboards of one endpoint, and of its rollout."""

from typing import Final

from headrace.monitor.grafana import (
    OF_ENDPOINT,
    OF_MODEL,
    PHASES,
    PICK_ONE,
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
)
from headrace.monitor.promql import BUDGET, LATENCY, PROMISED, REQUESTS

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
