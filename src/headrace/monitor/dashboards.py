"""Dashboards of the fleet, of endpoints, rollouts and replicas, of streams and of jobs."""

from typing import Final

from headrace.monitor.grafana import Axis, Dashboard, Panel, PanelType, RowHeading, Variable, stat
from headrace.monitor.promql import BUDGET, LATENCY, PROMISED, REQUESTS, STREAM_LAG

_RATE: Final = "$__rate_interval"
_ENDPOINT: Final = 'endpoint=~"$endpoint"'
_MODEL: Final = 'model=~"$endpoint"'
_REPLICA: Final = 'replica=~"$replica"'
_COPY: Final = f"{_MODEL},{_REPLICA}"
_STREAM: Final = 'stream=~"$stream"'
_JOB: Final = 'job_name=~"$job_name"'
_SYSTEM: Final = 'process=~"control|gateway"'
_SINGLE_ENDPOINT: Final = Variable(name="endpoint", metric=REQUESTS, many=False)

_SECONDS: Final = Axis("s", "seconds")
_REQUESTS: Final = Axis("reqps", "requests per second")
_SHARE: Final = Axis("percentunit", "share of requests")
_CORES: Final = Axis("suffix: cores", "cores")
_MEMORY: Final = Axis("bytes", "resident bytes")
_WAITING: Final = Axis("suffix: requests", "requests")
_RECORDS: Final = Axis("suffix: records", "records")
_RECORDS_PER_S: Final = Axis("suffix: records/s", "records per second")
_QUANTILES: Final = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
_PHASES: Final = ("preprocess", "queue_wait", "compute", "postprocess")


def _of(metric: str, labels: str) -> str:
    return f"{metric}{{{labels}}}" if labels else metric


def _per_s(metric: str, labels: str, by: str) -> str:
    """Return the rate of a counter by these labels."""
    return f"sum by ({by}) (rate({_of(metric, labels)}[{_RATE}]))"


def _highest(metric: str, labels: str, by: str) -> str:
    return f"max by ({by}) ({_of(metric, labels)})"


def _quantile(q: float, metric: str, labels: str, by: str = "") -> str:
    """Return a recent quantile of a histogram."""
    inner = _per_s(f"{metric}_bucket", labels, f"le, {by}" if by else "le")
    return f"histogram_quantile({q:g}, {inner})"


def _mean(metric: str, labels: str) -> str:
    """Return the recent mean of a histogram."""
    total, count = (f"sum(rate({metric}_{part}{{{labels}}}[{_RATE}]))" for part in ("sum", "count"))
    return f"{total} / {count}"


def _error_ratio(labels: str, by: str) -> str:
    """Return the ratio of failed requests by this label; 0 without failures."""
    failed = _of(REQUESTS, ",".join(filter(None, (labels, 'outcome="error"'))))
    every = _per_s(REQUESTS, labels, by)
    return f"(sum by ({by}) (rate({failed}[{_RATE}])) or 0 * {every}) / {every}"


FLEET: Final = Dashboard(
    name="fleet",
    title="Headrace: fleet",
    description="All endpoints at a glance.",
    panels=(
        RowHeading("Now"),
        stat("Gateway", "headrace_control_gateway_ready", "bool_on_off", "Whether Envoy serves."),
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
        stat("Requests", f"sum(rate({REQUESTS}[{_RATE}]))", "reqps", "To all endpoints together."),
        stat(
            "Certificate ends in",
            "min(headrace_control_certificate_left_seconds)",
            "s",
            "The first one of all; no value where nothing is encrypted.",
        ),
        RowHeading("Traffic"),
        Panel(
            "Requests by endpoint",
            _REQUESTS,
            {"{{endpoint}}": f"topk(20, {_per_s(REQUESTS, '', 'endpoint')})"},
            help="The twenty busiest.",
            stacked=True,
        ),
        Panel(
            "Failed requests by endpoint",
            _SHARE,
            {"{{endpoint}}": f"topk(20, {_error_ratio('', 'endpoint')})"},
            help="Errors are ours: 5xx, and 429 for too much load.",
        ),
        Panel(
            "p99 latency by endpoint",
            _SECONDS,
            {"{{endpoint}}": f"topk(20, {_quantile(0.99, LATENCY, '', 'endpoint')})"},
            help="One request of a hundred takes longer. As the gateway measures it.",
        ),
        Panel(
            "What is wrong now",
            Axis("short", "firing"),
            {"__auto": "headrace_alert_firing > 0"},
            help="Alerts that the control plane itself evaluates. Empty is good.",
            panel_type=PanelType.TABLE,
        ),
        RowHeading("Machine"),
        Panel(
            "Processor time by process",
            _CORES,
            {
                "{{process}}": _per_s("headrace_process_cpu_seconds_total", _SYSTEM, "process"),
                "replicas of {{model}}": _per_s("headrace_replica_cpu_seconds_total", "", "model"),
            },
            help="Envoy, the control plane and all replicas.",
            stacked=True,
        ),
        Panel(
            "Memory by process",
            _MEMORY,
            {
                "{{process}}": f"sum by (process) (headrace_process_memory_bytes{{{_SYSTEM}}})",
                "replicas of {{model}}": "sum by (model) (headrace_replica_resident_memory_bytes)",
            },
            stacked=True,
        ),
        Panel(
            "GPU use",
            Axis("percentunit", "share of time"),
            {"{{gpu_uuid}}": "nv_gpu_utilization"},
            help="Only where there is a GPU.",
            most=1,
        ),
        Panel(
            "GPU memory",
            Axis("bytes", "bytes in use"),
            {"{{gpu_uuid}}": "nv_gpu_memory_used_bytes"},
            help="Only where there is a GPU.",
        ),
    ),
)
ENDPOINT: Final = Dashboard(
    name="endpoint",
    title="Headrace: endpoint",
    description="One endpoint: what callers see, where the time goes, what it needs.",
    variables=(_SINGLE_ENDPOINT,),
    panels=(
        RowHeading("What callers see"),
        Panel(
            "Requests by how they ended",
            _REQUESTS,
            {"{{outcome}}": _per_s(REQUESTS, _ENDPOINT, "outcome")},
            help="ok; error: ours; rejected: the caller's mistake; abandoned: the caller "
            "disconnected.",
            stacked=True,
        ),
        Panel(
            "Latency",
            _SECONDS,
            {name: _quantile(q, LATENCY, _ENDPOINT) for q, name in _QUANTILES}
            | {"promised for p99": _of(PROMISED, _ENDPOINT)},
            help="From the first byte of a request to the first of its answer, in the gateway.",
        ),
        Panel(
            "Failed requests",
            _SHARE,
            {
                "failed": _error_ratio(_ENDPOINT, "endpoint"),
                "promised at most": _of(BUDGET, _ENDPOINT),
            },
        ),
        Panel(
            "Latency, all of it",
            _SECONDS,
            {"{{le}}": _per_s(f"{LATENCY}_bucket", _ENDPOINT, "le")},
            help="How many requests took how long: two bands mean two kinds of requests.",
            panel_type=PanelType.HEATMAP,
        ),
        RowHeading("Where the time goes"),
        Panel(
            "Mean time by phase",
            Axis("s", "seconds per request"),
            {
                phase.replace("_", " "): _mean(f"headrace_{phase}_seconds", _MODEL)
                for phase in _PHASES
            },
            help="Waiting in the queue: more replicas help. Computing: a faster model does.",
            stacked=True,
        ),
        Panel(
            "p99 by phase",
            _SECONDS,
            {
                phase.replace("_", " "): _quantile(0.99, f"headrace_{phase}_seconds", _MODEL)
                for phase in _PHASES
            },
        ),
        Panel(
            "Rows per run of the model",
            Axis("suffix: rows", "rows"),
            {
                "mean": _mean("headrace_batch_rows", _MODEL),
                "p95": _quantile(0.95, "headrace_batch_rows", _MODEL),
            },
            help="Batches grow by themselves while the model is busy.",
        ),
        Panel(
            "In flight and waiting",
            _WAITING,
            {
                "in flight": f"sum(headrace_requests_in_flight{{{_MODEL}}})",
                "waiting": f"sum(nv_inference_pending_request_count{{{_MODEL}}})",
            },
        ),
        RowHeading("What it needs"),
        Panel(
            "Replicas",
            Axis("suffix: replicas", "replicas"),
            {"{{state}}": f"sum by (state) (headrace_replicas{{{_ENDPOINT}}})"},
        ),
        Panel(
            "Processor time",
            _CORES,
            {"{{replica}}": _per_s("headrace_replica_cpu_seconds_total", _MODEL, "replica")},
            stacked=True,
        ),
        Panel(
            "Drift",
            Axis("short", "stability index"),
            {"{{feature}}": _of("headrace_drift_score", f'{_ENDPOINT},statistic="psi"')},
            help="Population stability index by feature: below 0.1 nothing changed, above 0.25 a "
            "lot did.",
            limit=0.25,
        ),
        Panel(
            "Refused by replicas",
            _REQUESTS,
            {
                "{{replica}}": _per_s(
                    "nv_inference_request_failure", f'{_MODEL},reason="REJECTED"', "replica"
                )
            },
            help="Queues are full, or a deadline cannot be kept.",
        ),
    ),
)
ROLLOUT: Final = Dashboard(
    name="rollout",
    title="Headrace: rollout",
    description="Two versions of an endpoint side by side.",
    variables=(_SINGLE_ENDPOINT,),
    panels=(
        RowHeading("How far it is"),
        Panel(
            "Phase",
            Axis("bool", "phase"),
            {"{{rollout}} {{phase}}": f"{_of('headrace_rollout_phase', _ENDPOINT)} > 0"},
            help="`headrace rollout status` and the console have the evidence.",
        ),
        Panel(
            "Share of the new version",
            Axis("percent", "percent of requests"),
            {"weight": _of("headrace_rollout_weight", _ENDPOINT)},
            most=100,
        ),
        RowHeading("Versions side by side"),
        Panel(
            "Requests",
            _REQUESTS,
            {"version {{version}}": _per_s(REQUESTS, _ENDPOINT, "version")},
            stacked=True,
        ),
        Panel(
            "Failed requests",
            _SHARE,
            {"version {{version}}": _error_ratio(_ENDPOINT, "version")},
        ),
        *(
            Panel(
                f"{name} latency",
                _SECONDS,
                {"version {{version}}": _quantile(q, LATENCY, _ENDPOINT, "version")},
            )
            for q, name in _QUANTILES
            if name != "p95"
        ),
    ),
)
REPLICA: Final = Dashboard(
    name="replica",
    title="Headrace: replicas",
    description="Single processes: which one is slow, large, or ends again and again.",
    variables=(
        Variable(name="endpoint", metric=REQUESTS),
        Variable(name="replica", metric="headrace_control_replica_ready"),
    ),
    panels=(
        RowHeading("Life"),
        Panel(
            "Ready",
            Axis("bool_yes_no", "ready"),
            {"{{replica}}": _of("headrace_control_replica_ready", f"{_ENDPOINT},{_REPLICA}")},
            most=1,
        ),
        Panel(
            "Starts after the first",
            Axis("suffix: starts", "starts"),
            {"{{replica}}": _of("headrace_control_replica_restarts", f"{_ENDPOINT},{_REPLICA}")},
        ),
        RowHeading("Work"),
        Panel(
            "Rows",
            Axis("rowsps", "rows per second"),
            {"{{replica}}": _per_s("nv_inference_count", _COPY, "replica")},
            stacked=True,
        ),
        Panel(
            "p99 in the replica",
            _SECONDS,
            {"{{replica}}": _quantile(0.99, "headrace_request_seconds", _COPY, "replica")},
            help="Without the gateway: from a request's last byte until its batch was computed.",
        ),
        Panel("In flight", _WAITING, {"{{replica}}": _of("headrace_requests_in_flight", _COPY)}),
        Panel(
            "Failures by reason",
            _REQUESTS,
            {
                "{{replica}} {{reason}}": _per_s(
                    "nv_inference_request_failure", _COPY, "replica, reason"
                )
            },
            help="REJECTED: the queue is full. CANCELED: the caller left. BACKEND: the model "
            "failed.",
        ),
        RowHeading("Resources"),
        Panel(
            "Processor time",
            _CORES,
            {"{{replica}}": _per_s("headrace_replica_cpu_seconds_total", _COPY, "replica")},
        ),
        Panel(
            "Memory",
            _MEMORY,
            {"{{replica}}": _of("headrace_replica_resident_memory_bytes", _COPY)},
        ),
    ),
)
_LAG_RECORDS: Final = _highest("headrace_stream_lag_records", _STREAM, "stream, topic, partition")
STREAMS: Final = Dashboard(
    name="streams",
    title="Headrace: streams",
    description="Streams: how far behind, how fast, what has no answer, and why.",
    variables=(Variable(name="stream", metric="headrace_stream_up"),),
    panels=(
        RowHeading("Now"),
        stat(
            "Not running",
            f"count(headrace_stream_up{{{_STREAM}}} < 1) or vector(0)",
            "short",
            "Streams that do not run as they should, and are not paused.",
            limit=1,
        ),
        stat(
            "Paused",
            f"sum(headrace_stream_paused{{{_STREAM}}})",
            "short",
            "Streams that take no records, as ordered.",
        ),
        stat(
            "Furthest behind",
            f"max(headrace_stream_lag_seconds{{{_STREAM}}})",
            "s",
            "How old the oldest record is that waits, of all streams.",
        ),
        stat("Waiting", f"sum({_LAG_RECORDS})", _RECORDS.unit, "Records that wait in the log."),
        stat(
            "Answered",
            f"sum(rate(headrace_stream_records_answered_total{{{_STREAM}}}[{_RATE}]))",
            _RECORDS_PER_S.unit,
            "Records whose answers were handed to the broker.",
        ),
        stat(
            "Workers ready",
            f"sum(headrace_stream_workers_ready{{{_STREAM}}})",
            "short",
            "Processes that are members of their groups.",
        ),
        RowHeading("What readers of the answers notice"),
        Panel(
            "Lag",
            Axis("s", "seconds behind"),
            {
                "{{stream}}": _highest("headrace_stream_lag_seconds", _STREAM, "stream"),
                "{{stream}} may be": _of(STREAM_LAG, _STREAM),
            },
            help="How long the oldest record that waits was written ago.",
        ),
        Panel(
            "From record to answer",
            _SECONDS,
            {
                f"{{{{stream}}}} {name}": _quantile(
                    q, "headrace_stream_latency_seconds", _STREAM, "stream"
                )
                for q, name in _QUANTILES
            },
            help="From a record's timestamp to the delivery of its answer; waiting in the log is "
            "part of it.",
        ),
        Panel(
            "Answered",
            _RECORDS_PER_S,
            {"{{stream}}": _per_s("headrace_stream_records_answered_total", _STREAM, "stream")},
            stacked=True,
        ),
        Panel(
            "Waiting by partition",
            _RECORDS,
            {"{{stream}} {{topic}}/{{partition}}": f"topk(20, {_LAG_RECORDS})"},
            help="One that grows alone has a key that comes too often, or a worker that hangs.",
        ),
        RowHeading("What has no answer"),
        Panel(
            "Dead letters",
            _RECORDS_PER_S,
            {"{{stream}}": _per_s("headrace_stream_dead_letters_total", _STREAM, "stream")},
            help="`headrace stream dlq list STREAM` says why.",
            stacked=True,
        ),
        Panel(
            "Records without an answer, by why",
            _RECORDS_PER_S,
            {
                "{{stream}} {{code}}": _per_s(
                    "headrace_stream_records_without_answer_total", _STREAM, "stream, code"
                )
            },
            help="INVALID_ARGUMENT: what wrote them is wrong. INTERNAL: the model failed.",
            stacked=True,
        ),
        Panel(
            "Tried again",
            Axis("suffix: batches/s", "batches per second"),
            {"{{stream}}": _per_s("headrace_stream_retries_total", _STREAM, "stream")},
            help="What scores, or the broker, was away for a moment.",
        ),
        Panel(
            "In trouble",
            Axis("bool_yes_no", "in trouble"),
            {"{{worker}}": _highest("headrace_stream_trouble", _STREAM, "stream, worker")},
            help="A worker to which nothing comes and from which nothing goes.",
            most=1,
        ),
        RowHeading("Where the time goes"),
        Panel(
            "p99 by step",
            Axis("s", "seconds per micro-batch"),
            {
                f"{{{{stream}}}} {step}": _quantile(
                    0.99, f"headrace_stream_{step}_seconds", _STREAM, "stream"
                )
                for step in ("score", "deliver")
            },
            help="Score: decode, run, encode. Deliver: hand the answers to the broker.",
        ),
        Panel(
            "Records per micro-batch",
            _RECORDS,
            {
                "{{stream}}": " / ".join(
                    _per_s(f"headrace_stream_batch_records_{part}", _STREAM, "stream")
                    for part in ("sum", "count")
                )
            },
            help="Batches grow by themselves while the model is busy.",
        ),
        RowHeading("Workers"),
        Panel(
            "Workers",
            Axis("suffix: workers", "workers"),
            {
                "{{stream}} wanted": _of("headrace_stream_workers", _STREAM),
                "{{stream}} ready": _of("headrace_stream_workers_ready", _STREAM),
            },
        ),
        Panel(
            "Crashes",
            Axis("suffix: crashes", "crashes in 15 minutes"),
            {"{{stream}}": f"increase(headrace_stream_worker_restarts_total{{{_STREAM}}}[15m])"},
        ),
        Panel(
            "Processor time",
            _CORES,
            {"{{worker}}": _per_s("headrace_stream_cpu_seconds_total", _STREAM, "worker")},
            stacked=True,
        ),
        Panel(
            "Memory",
            _MEMORY,
            {"{{worker}}": _highest("headrace_stream_resident_memory_bytes", _STREAM, "worker")},
            stacked=True,
        ),
    ),
)
JOBS: Final = Dashboard(
    name="jobs",
    title="Headrace: jobs",
    description="Scheduled jobs: late, failed, how long they take, what they answer.",
    variables=(Variable(name="job_name", metric="headrace_job_late"),),
    panels=(
        RowHeading("Now"),
        stat(
            "Late",
            f"sum(headrace_job_late{{{_JOB}}})",
            "short",
            "Jobs of which no run has succeeded in time.",
            limit=1,
        ),
        stat(
            "Failed",
            f"sum(headrace_job_failed{{{_JOB}}})",
            "short",
            "Jobs whose newest run failed.",
            limit=1,
        ),
        stat(
            "Under way",
            f"sum(headrace_job_running{{{_JOB}}})",
            "short",
            "Runs that are not over.",
        ),
        RowHeading("In time?"),
        Panel(
            "Late by",
            _SECONDS,
            {"{{job_name}}": _highest("headrace_job_lateness_seconds", _JOB, "job_name")},
            help="Since the first moment of the schedule for which no run has succeeded. While a "
            "run is under way this is how long it takes.",
        ),
        Panel(
            "Since the last success",
            _SECONDS,
            {
                "{{job_name}}": "time() - "
                + _highest("headrace_job_last_success_timestamp_seconds", _JOB, "job_name")
            },
        ),
        Panel(
            "Which are late, which failed",
            Axis("short", "late or failed"),
            {
                "late": f"{_of('headrace_job_late', _JOB)} > 0",
                "failed": f"{_of('headrace_job_failed', _JOB)} > 0",
            },
            help="Empty is good. `headrace batch runs JOB` says why.",
            panel_type=PanelType.TABLE,
        ),
        Panel(
            "Under way",
            Axis("suffix: runs", "runs"),
            {"{{job_name}}": _highest("headrace_job_running", _JOB, "job_name")},
            stacked=True,
        ),
        RowHeading("The newest run that succeeded"),
        Panel(
            "How long it took",
            _SECONDS,
            {"{{job_name}}": _highest("headrace_job_duration_seconds", _JOB, "job_name")},
        ),
        Panel(
            "Rows",
            Axis("suffix: rows", "rows"),
            {
                "{{job_name}}": _highest("headrace_job_rows", _JOB, "job_name"),
                "{{job_name}} with errors": _highest("headrace_job_errors", _JOB, "job_name"),
            },
            help="Far fewer than usual: is the input complete?",
        ),
    ),
)
DASHBOARDS: Final = (FLEET, ENDPOINT, ROLLOUT, REPLICA, STREAMS, JOBS)
