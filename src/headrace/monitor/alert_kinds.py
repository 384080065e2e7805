"""Table of all alerts, for the control plane, Prometheus and the documentation."""

from dataclasses import KW_ONLY, dataclass
from typing import Final

from headrace.monitor.slo import (
    FAST,
    MEDIUM,
    MINUTE_S,
    SLOW,
    SLOW_ONE_DAY,
    STREAM_FACTS,
    SYSTEM_FACTS,
    AlertSeverity,
    Condition,
    ErrorBurn,
    ErrorsOver,
    Fact,
    LatencyBurn,
    LatencyOver,
    windows_of,
)

_KEEP_WINDOWS: Final = 2
"""An alert with windows resolves after its shortest window was good for this many of its lengths.

With errors exactly at the threshold (30 requests/s, simulated in `test_hovering`), p99 fires 16
times a day instead of 87, and `HeadraceErrorBudgetMedium` 3 times instead of 50.
"""
_LONGEST_KEEP_S: Final = 60 * MINUTE_S
_RESOLVE_AFTER_S: Final = 5 * MINUTE_S
"""For conditions that come and go, such as a process that crashes repeatedly."""


@dataclass(frozen=True, slots=True)
class AlertKind:
    """One alert: its condition, severity, summary and action."""

    name: str
    severity: AlertSeverity
    condition: Condition
    _: KW_ONLY
    unit: str
    """Unit of the value."""
    summary: str
    """Summary text with `{endpoint}` or `{stream}`, `{value}` and `{detail}`."""
    action: str
    for_s: float = 0.0
    """Seconds for which the condition must hold before the alert fires."""
    resolve_after_s: float = 0.0
    """Seconds for which the condition must not hold before an alert without windows resolves."""
    one_day_condition: Condition | None = None
    """Condition for evaluators with one day of history; None to use `condition`."""
    prometheus_only: bool = False

    @property
    def local(self) -> Condition | None:
        """Return the condition that the control plane evaluates; None for Prometheus only."""
        return None if self.prometheus_only else self.one_day_condition or self.condition

    @property
    def keep_firing_for_s(self) -> float:
        """Return the seconds for which the condition must not hold before the alert resolves."""
        windows = windows_of(self.condition)
        return (
            min(_KEEP_WINDOWS * min(windows), _LONGEST_KEEP_S) if windows else self.resolve_after_s
        )

    @property
    def is_system_wide(self) -> bool:
        """Whether the alert concerns the system, not an endpoint or a stream."""
        return self.condition in SYSTEM_FACTS

    @property
    def is_for_stream(self) -> bool:
        """Whether the alert concerns a stream."""
        return self.condition in STREAM_FACTS


_WHY_ERRORS: Final = (
    "See `headrace events {endpoint}` and `headrace logs`: a new version? Go back with `headrace "
    "undo` or roll back its rollout. Codes in the access log say who failed: 429 is load, 503 "
    "no ready replica, 504 too slow, 500 the model."
)
_WHY_SLOW: Final = (
    "Compare queue wait with compute time on the endpoint's dashboard. Waiting: add replicas or "
    "let `autoscale` do it. Computing: a new version, larger inputs, or a busy machine."
)

ALERTS: Final = (
    AlertKind(
        "HeadraceErrorBudgetFast",
        AlertSeverity.PAGE,
        ErrorBurn(FAST),
        unit="ratio",
        summary="{value} of the requests to {endpoint} failed in the last hour: at this rate a "
        "month's error budget is gone in two days",
        action=_WHY_ERRORS,
    ),
    AlertKind(
        "HeadraceErrorBudgetMedium",
        AlertSeverity.PAGE,
        ErrorBurn(MEDIUM),
        unit="ratio",
        summary="{value} of the requests to {endpoint} failed in the last six hours: at this rate "
        "a month's error budget is gone in five days",
        action=_WHY_ERRORS,
    ),
    AlertKind(
        "HeadraceErrorBudgetSlow",
        AlertSeverity.TICKET,
        ErrorBurn(SLOW),
        one_day_condition=ErrorBurn(SLOW_ONE_DAY),
        unit="ratio",
        summary="{value} of the requests to {endpoint} failed over a day or more: the error budget "
        "will not last the month",
        action=_WHY_ERRORS,
    ),
    AlertKind(
        "HeadraceLatencyBudgetFast",
        AlertSeverity.PAGE,
        LatencyBurn(FAST),
        unit="s",
        summary="more than 14.4 % of the requests to {endpoint} took longer than promised in the "
        "last hour; 1 % may",
        action=_WHY_SLOW,
    ),
    AlertKind(
        "HeadraceLatencyBudgetMedium",
        AlertSeverity.PAGE,
        LatencyBurn(MEDIUM),
        unit="s",
        summary="more than 6 % of the requests to {endpoint} took longer than promised in the last "
        "six hours; 1 % may",
        action=_WHY_SLOW,
    ),
    AlertKind(
        "HeadraceLatencyBudgetSlow",
        AlertSeverity.TICKET,
        LatencyBurn(SLOW),
        one_day_condition=LatencyBurn(SLOW_ONE_DAY),
        unit="s",
        summary="more requests to {endpoint} than promised were slow, over a day or more",
        action=_WHY_SLOW,
    ),
    AlertKind(
        "HeadraceLatencyP95",
        AlertSeverity.PAGE,
        LatencyOver(quantile=0.95),
        for_s=2 * MINUTE_S,
        unit="s",
        summary="p95 of {endpoint} is {value}, above what is promised for p99",
        action=_WHY_SLOW,
    ),
    AlertKind(
        "HeadraceLatencyP99",
        AlertSeverity.TICKET,
        LatencyOver(quantile=0.99),
        for_s=2 * MINUTE_S,
        unit="s",
        summary="p99 of {endpoint} is {value}, above what is promised",
        action=_WHY_SLOW,
    ),
    AlertKind(
        "HeadraceErrorRate",
        AlertSeverity.PAGE,
        ErrorsOver(ratio=0.05),
        for_s=2 * MINUTE_S,
        unit="ratio",
        summary="{value} of the requests to {endpoint} fail; it promises no availability, so this "
        "is the usual limit",
        action=_WHY_ERRORS,
    ),
    AlertKind(
        "HeadraceQueuesFilling",
        AlertSeverity.TICKET,
        Fact.QUEUES_FILLED,
        for_s=MINUTE_S,
        resolve_after_s=_RESOLVE_AFTER_S,
        unit="ratio",
        summary="{value} of what the queues of {endpoint} hold is taken; at 100 % callers get 429",
        action="Add replicas, raise `autoscale.max_replicas`, or limit the loudest caller. A "
        "larger `batching.max_queue_size` only makes callers wait longer.",
    ),
    AlertKind(
        "HeadraceRefusing",
        AlertSeverity.TICKET,
        Fact.REFUSED,
        for_s=2 * MINUTE_S,
        prometheus_only=True,
        resolve_after_s=2 * _RESOLVE_AFTER_S,
        unit="ratio",
        summary="replicas of {endpoint} refuse {value} of its requests: queues are full, or "
        "deadlines cannot be kept",
        action="As for HeadraceQueuesFilling; `headrace status` tells which replicas there are.",
    ),
    AlertKind(
        "HeadraceNoReplicaReady",
        AlertSeverity.PAGE,
        Fact.NO_REPLICA,
        for_s=MINUTE_S,
        unit="replicas",
        summary="no replica of {endpoint} is ready",
        action="`headrace status` says why, `headrace logs` what they said last. A model that "
        "cannot be loaded: `headrace undo {endpoint}`.",
    ),
    AlertKind(
        "HeadraceReplicaCrashing",
        AlertSeverity.TICKET,
        Fact.REPLICAS_CRASH,
        resolve_after_s=_RESOLVE_AFTER_S,
        unit="replicas",
        summary="a replica of {endpoint} crashes repeatedly",
        action="`headrace logs` has its last lines; signal 9 usually means that it ran out of "
        "memory (`budget`, `headrace status`).",
    ),
    AlertKind(
        "HeadraceGatewayDown",
        AlertSeverity.PAGE,
        Fact.GATEWAY_DOWN,
        for_s=30.0,
        unit="",
        summary="the gateway does not serve: all requests fail",
        action="`headrace status` and `headrace logs` say why it ended. Is a port taken, is the "
        "disk full?",
    ),
    AlertKind(
        "HeadraceNotScraped",
        AlertSeverity.PAGE,
        Fact.NOT_SCRAPED,
        for_s=2 * MINUTE_S,
        prometheus_only=True,
        unit="",
        summary="Prometheus gets no metrics: the control plane does not run, or cannot be reached",
        action="Traffic flows without the control plane. `headrace up` starts it again, and it "
        "takes over what runs.",
    ),
    AlertKind(
        "HeadraceCertificateEnds",
        AlertSeverity.TICKET,
        Fact.CERTIFICATE_ENDS,
        unit="s",
        summary="a certificate expires in {value}",
        action="`headrace status` names it. Replace its files: they are read again without a "
        "restart.",
    ),
    AlertKind(
        "HeadraceDrift",
        AlertSeverity.TICKET,
        Fact.DRIFTED,
        resolve_after_s=2 * _RESOLVE_AFTER_S,
        unit="features",
        summary="{value} features of {endpoint} have drifted significantly from their reference",
        action="The endpoint's page names them. Missing values come from a broken data source; if "
        "the inputs have changed, train a new model.",
    ),
    AlertKind(
        "HeadraceRowsDiffer",
        AlertSeverity.PAGE,
        Fact.ROWS_DIFFER,
        unit="ratio",
        summary="answers of {endpoint} depend on other callers' rows: {detail}",
        action="Requests share batches although the model mixes their rows. Remove "
        "`rows_independent` from the endpoint's `batching`: it then gets one request at a time. "
        "Where the model itself declares its rows, set `batched = False` there; where the row was "
        "padded, set `batching: {{padding: {{max_ratio: 1.0}}}}`.",
    ),
    AlertKind(
        "HeadraceJobLate",
        AlertSeverity.TICKET,
        Fact.JOBS_LATE,
        unit="jobs",
        summary="{value} scheduled jobs have no successful run in time",
        action="`headrace batch list` names them, `headrace batch runs JOB` says how their runs "
        "ended; `headrace batch start JOB` runs one at once.",
    ),
    AlertKind(
        "HeadraceJobFailed",
        AlertSeverity.TICKET,
        Fact.JOBS_FAILED,
        unit="jobs",
        summary="the newest run of {value} jobs failed, with all its tries",
        action="`headrace batch list` names them, `headrace batch runs JOB` says why. Completed "
        "shards are kept; after fixing the cause, `headrace batch start JOB` starts a run.",
    ),
    AlertKind(
        "HeadraceStreamDown",
        AlertSeverity.PAGE,
        Fact.STREAM_DOWN,
        for_s=3 * MINUTE_S,
        unit="workers",
        summary="no worker of stream {stream} takes records: nothing is answered",
        action="`headrace stream status {stream}` says why: the broker or the endpoint is away, "
        "the model cannot be loaded, it stopped before a record, or it is stalled: it has no "
        "partitions. `headrace logs` has its workers' last lines.",
    ),
    AlertKind(
        "HeadraceStreamLagging",
        AlertSeverity.PAGE,
        Fact.STREAM_LAGS,
        for_s=5 * MINUTE_S,
        resolve_after_s=_RESOLVE_AFTER_S,
        unit="s",
        summary="stream {stream} is {value} behind, more than it may be",
        action="`headrace stream status {stream}` shows which partitions wait. Raise "
        "`workers.max` (never more than partitions help), or `max_batch_size`; a slow model "
        "shows in the score time on the stream's dashboard.",
    ),
    AlertKind(
        "HeadraceStreamDeadLetters",
        AlertSeverity.TICKET,
        Fact.DEAD_LETTERS,
        for_s=10 * MINUTE_S,
        resolve_after_s=_RESOLVE_AFTER_S,
        unit="records",
        summary="records without an answer keep coming to stream {stream}: {value} dead letters "
        "in five minutes",
        action="`headrace stream dlq list {stream}` says why each has none. Once that is mended, "
        "`headrace stream dlq redrive {stream}` sends them again.",
    ),
    AlertKind(
        "HeadraceStreamWorkerCrashing",
        AlertSeverity.TICKET,
        Fact.WORKERS_FAIL,
        resolve_after_s=_RESOLVE_AFTER_S,
        unit="workers",
        summary="a worker of stream {stream} crashes repeatedly",
        action="`headrace logs` has its last lines, `headrace stream status {stream}` why it "
        "ended; signal 9 usually means that it ran out of memory.",
    ),
)
"""All alerts. A test compares the documentation's table with them."""

LOCAL: Final = tuple(kind for kind in ALERTS if kind.local is not None)
"""Alerts that the control plane evaluates."""
