"""Dashboards of streams and of jobs."""

from typing import Final

from headrace.monitor.grafana import (
    OF_JOB,
    OF_STREAM,
    PICK_JOB,
    PICK_STREAM,
    QUANTILES,
    RATE,
    Dashboard,
    Look,
    Panel,
    Query,
    Row,
    per_s,
    quantile,
    stat,
)
from headrace.monitor.promql import STREAM_LAG

_BY_PARTITION: Final = "{{stream}} {{topic}}/{{partition}}"

STREAMS: Final = Dashboard(
    name="streams",
    title="Headrace: streams",
    description="Streams: how far behind, how fast, what has no answer, and why.",
    variables=(PICK_STREAM,),
    rows=(
        Row(
            "Now",
            (
                stat(
                    "Not running",
                    f"count(headrace_stream_up{{{OF_STREAM}}} < 1) or vector(0)",
                    "short",
                    "Streams that do not run as they should, and are not paused.",
                    limit=1,
                ),
                stat(
                    "Paused",
                    f"sum(headrace_stream_paused{{{OF_STREAM}}})",
                    "short",
                    "Streams that take no records, as ordered.",
                ),
                stat(
                    "Furthest behind",
                    f"max(headrace_stream_lag_seconds{{{OF_STREAM}}})",
                    "s",
                    "How old the oldest record is that waits, of all streams.",
                ),
                stat(
                    "Waiting",
                    f"sum(max by (stream, topic, partition) "
                    f"(headrace_stream_lag_records{{{OF_STREAM}}}))",
                    "suffix: records",
                    "Records that wait in the log.",
                ),
                stat(
                    "Answered",
                    f"sum(rate(headrace_stream_records_answered_total{{{OF_STREAM}}}[{RATE}]))",
                    "suffix: records/s",
                    "Records whose answers were handed to the broker.",
                ),
                stat(
                    "Workers ready",
                    f"sum(headrace_stream_workers_ready{{{OF_STREAM}}})",
                    "short",
                    "Processes that are members of their groups.",
                ),
            ),
        ),
        Row(
            "What readers of the answers notice",
            (
                Panel(
                    "Lag",
                    "s",
                    "seconds behind",
                    (
                        Query(
                            f"max by (stream) (headrace_stream_lag_seconds{{{OF_STREAM}}})",
                            "{{stream}}",
                        ),
                        Query(f"{STREAM_LAG}{{{OF_STREAM}}}", "{{stream}} may be"),
                    ),
                    help="How long the oldest record that waits was written ago.",
                ),
                Panel(
                    "From record to answer",
                    "s",
                    "seconds",
                    tuple(
                        Query(
                            quantile(q, "headrace_stream_latency_seconds", OF_STREAM, "stream"),
                            f"{{{{stream}}}} {name}",
                        )
                        for q, name in QUANTILES
                    ),
                    help="From a record's timestamp to the delivery of its answer; waiting in the "
                    "log is part of it.",
                ),
                Panel(
                    "Answered",
                    "suffix: records/s",
                    "records per second",
                    (
                        Query(
                            per_s(
                                f"headrace_stream_records_answered_total{{{OF_STREAM}}}", "stream"
                            ),
                            "{{stream}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Waiting by partition",
                    "suffix: records",
                    "records",
                    (
                        Query(
                            f"topk(20, max by (stream, topic, partition) "
                            f"(headrace_stream_lag_records{{{OF_STREAM}}}))",
                            _BY_PARTITION,
                        ),
                    ),
                    help="One that grows alone has a key that comes too often, or a worker that "
                    "hangs.",
                ),
            ),
        ),
        Row(
            "What has no answer",
            (
                Panel(
                    "Dead letters",
                    "suffix: records/s",
                    "records per second",
                    (
                        Query(
                            per_s(f"headrace_stream_dead_letters_total{{{OF_STREAM}}}", "stream"),
                            "{{stream}}",
                        ),
                    ),
                    help="`headrace stream dlq list STREAM` says why.",
                    stacked=True,
                ),
                Panel(
                    "Records without an answer, by why",
                    "suffix: records/s",
                    "records per second",
                    (
                        Query(
                            per_s(
                                f"headrace_stream_records_without_answer_total{{{OF_STREAM}}}",
                                "stream, code",
                            ),
                            "{{stream}} {{code}}",
                        ),
                    ),
                    help="INVALID_ARGUMENT: what wrote them is wrong. INTERNAL: the model failed.",
                    stacked=True,
                ),
                Panel(
                    "Tried again",
                    "suffix: batches/s",
                    "batches per second",
                    (
                        Query(
                            per_s(f"headrace_stream_retries_total{{{OF_STREAM}}}", "stream"),
                            "{{stream}}",
                        ),
                    ),
                    help="What scores, or the broker, was away for a moment.",
                ),
                Panel(
                    "In trouble",
                    "bool_yes_no",
                    "in trouble",
                    (
                        Query(
                            f"max by (stream, worker) (headrace_stream_trouble{{{OF_STREAM}}})",
                            "{{worker}}",
                        ),
                    ),
                    help="A worker to which nothing comes and from which nothing goes.",
                    most=1,
                ),
            ),
        ),
        Row(
            "Where the time goes",
            (
                Panel(
                    "p99 by step",
                    "s",
                    "seconds per micro-batch",
                    tuple(
                        Query(
                            quantile(0.99, f"headrace_stream_{step}_seconds", OF_STREAM, "stream"),
                            f"{{{{stream}}}} {step}",
                        )
                        for step in ("score", "deliver")
                    ),
                    help="Score: decode, run, encode. Deliver: hand the answers to the broker.",
                ),
                Panel(
                    "Records per micro-batch",
                    "suffix: records",
                    "records",
                    (
                        Query(
                            " / ".join(
                                per_s(
                                    f"headrace_stream_batch_records_{part}{{{OF_STREAM}}}", "stream"
                                )
                                for part in ("sum", "count")
                            ),
                            "{{stream}}",
                        ),
                    ),
                    help="Batches grow by themselves while the model is busy.",
                ),
            ),
        ),
        Row(
            "Workers",
            (
                Panel(
                    "Workers",
                    "suffix: workers",
                    "workers",
                    (
                        Query(f"headrace_stream_workers{{{OF_STREAM}}}", "{{stream}} wanted"),
                        Query(f"headrace_stream_workers_ready{{{OF_STREAM}}}", "{{stream}} ready"),
                    ),
                ),
                Panel(
                    "Crashes",
                    "suffix: crashes",
                    "crashes in 15 minutes",
                    (
                        Query(
                            f"increase(headrace_stream_worker_restarts_total{{{OF_STREAM}}}[15m])",
                            "{{stream}}",
                        ),
                    ),
                ),
                Panel(
                    "Processor time",
                    "suffix: cores",
                    "cores",
                    (
                        Query(
                            per_s(f"headrace_stream_cpu_seconds_total{{{OF_STREAM}}}", "worker"),
                            "{{worker}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Memory",
                    "bytes",
                    "resident bytes",
                    (
                        Query(
                            f"max by (worker) "
                            f"(headrace_stream_resident_memory_bytes{{{OF_STREAM}}})",
                            "{{worker}}",
                        ),
                    ),
                    stacked=True,
                ),
            ),
        ),
    ),
)

JOBS: Final = Dashboard(
    name="jobs",
    title="Headrace: jobs",
    description="Scheduled jobs: late, failed, how long they take, what they answer.",
    variables=(PICK_JOB,),
    rows=(
        Row(
            "Now",
            (
                stat(
                    "Late",
                    f"sum(headrace_job_late{{{OF_JOB}}})",
                    "short",
                    "Jobs of which no run has succeeded in time.",
                    limit=1,
                ),
                stat(
                    "Failed",
                    f"sum(headrace_job_failed{{{OF_JOB}}})",
                    "short",
                    "Jobs whose newest run failed.",
                    limit=1,
                ),
                stat(
                    "Under way",
                    f"sum(headrace_job_running{{{OF_JOB}}})",
                    "short",
                    "Runs that are not over.",
                ),
            ),
        ),
        Row(
            "In time?",
            (
                Panel(
                    "Late by",
                    "s",
                    "seconds",
                    (
                        Query(
                            f"max by (job_name) (headrace_job_lateness_seconds{{{OF_JOB}}})",
                            "{{job_name}}",
                        ),
                    ),
                    help="Since the first moment of the schedule for which no run has succeeded. "
                    "While a run is under way this is how long it takes.",
                ),
                Panel(
                    "Since the last success",
                    "s",
                    "seconds",
                    (
                        Query(
                            f"time() - max by (job_name) "
                            f"(headrace_job_last_success_timestamp_seconds{{{OF_JOB}}})",
                            "{{job_name}}",
                        ),
                    ),
                ),
                Panel(
                    "Which are late, which failed",
                    "short",
                    "late or failed",
                    (
                        Query(f"headrace_job_late{{{OF_JOB}}} > 0"),
                        Query(f"headrace_job_failed{{{OF_JOB}}} > 0"),
                    ),
                    help="Empty is good. `headrace batch runs JOB` says why.",
                    look=Look.TABLE,
                ),
                Panel(
                    "Under way",
                    "suffix: runs",
                    "runs",
                    (
                        Query(
                            f"max by (job_name) (headrace_job_running{{{OF_JOB}}})", "{{job_name}}"
                        ),
                    ),
                    stacked=True,
                ),
            ),
        ),
        Row(
            "The newest run that succeeded",
            (
                Panel(
                    "How long it took",
                    "s",
                    "seconds",
                    (
                        Query(
                            f"max by (job_name) (headrace_job_duration_seconds{{{OF_JOB}}})",
                            "{{job_name}}",
                        ),
                    ),
                ),
                Panel(
                    "Rows",
                    "suffix: rows",
                    "rows",
                    (
                        Query(f"max by (job_name) (headrace_job_rows{{{OF_JOB}}})", "{{job_name}}"),
                        Query(
                            f"max by (job_name) (headrace_job_errors{{{OF_JOB}}})",
                            "{{job_name}} with errors",
                        ),
                    ),
                    help="Far fewer than usual: is the input complete?",
                ),
            ),
        ),
    ),
)
