"""What do dashboards have in common? Variables, and questions in PromQL."""

from typing import Final

from headrace.monitor.grafana import Look, Panel, Query, Variable
from headrace.monitor.promql import REQUESTS

RATE: Final = "$__rate_interval"
OF_ENDPOINT: Final = 'endpoint=~"$endpoint"'
OF_MODEL: Final = 'model=~"$endpoint"'
OF_REPLICA: Final = 'replica=~"$replica"'
OURS: Final = '{process=~"control|gateway"}'
QUANTILES: Final = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
PHASES: Final = ("preprocess", "queue_wait", "compute", "postprocess")

OF_STREAM: Final = 'stream=~"$stream"'
OF_JOB: Final = 'job_name=~"$job_name"'
PICK_STREAM: Final = Variable(name="stream", label="stream", metric="headrace_stream_up")
PICK_JOB: Final = Variable(name="job_name", label="job_name", metric="headrace_job_late")
PICK_ENDPOINT: Final = Variable(name="endpoint", label="endpoint", metric=REQUESTS)
PICK_ONE: Final = Variable(name="endpoint", label="endpoint", metric=REQUESTS, many=False)
PICK_REPLICA: Final = Variable(
    name="replica", label="replica", metric="headrace_control_replica_ready"
)


def per_s(expression: str, by: str) -> str:
    """How fast a counter grows, by these labels."""
    return f"sum by ({by}) (rate({expression}[{RATE}]))"


def quantile(q: float, metric: str, labels: str, by: str = "") -> str:
    """A quantile of a histogram, over the last moments."""
    inner = f"sum by (le{', ' if by else ''}{by}) (rate({metric}_bucket{{{labels}}}[{RATE}]))"
    return f"histogram_quantile({q:g}, {inner})"


def error_ratio(labels: str, by: str) -> str:
    """The share of failed requests, by this label; 0 where none failed."""
    failed = f'{REQUESTS}{{{labels}{"," if labels else ""}outcome="error"}}'
    return (
        f"(sum by ({by}) (rate({failed}[{RATE}])) or 0 * {per_s(f'{REQUESTS}{{{labels}}}', by)}) "
        f"/ {per_s(f'{REQUESTS}{{{labels}}}', by)}"
    )


def stat(title: str, expression: str, unit: str, text: str, *, limit: float | None = None) -> Panel:
    """One number, large."""
    return Panel(
        title,
        unit,
        title,
        (Query(expression, title),),
        help=text,
        look=Look.STAT,
        width=4,
        limit=limit,
    )
