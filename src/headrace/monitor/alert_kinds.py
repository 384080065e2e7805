"""Table of all alerts, for the control plane, for Prometheus and for the docs."""

from dataclasses import dataclass
from typing import Final

from headrace.monitor.slo import (
    DAY_S,
    FAST,
    MEDIUM,
    MINUTE_S,
    SLOW,
    SLOW_OF_A_DAY,
    CertificateEnds,
    Condition,
    DeadLetters,
    Drifted,
    ErrorBurn,
    ErrorsOver,
    GatewayDown,
    JobsFailed,
    JobsLate,
    LatencyBurn,
    LatencyOver,
    NoReplica,
    NotScraped,
    QueuesFilled,
    RefusedOver,
    ReplicasCrash,
    RowsDiffer,
    Severity,
    StreamDown,
    StreamLags,
    WorkersFail,
    windows_of,
)

_KEEP_WINDOWS: Final = 2
"""An alert with windows is resolved after its shortest one was good for so many of its lengths.

With errors exactly at the threshold (30 requests/s, simulated in `test_hovering`), p99 fires 16
times a day instead of 87, and `HeadraceErrorBudgetMedium` 3 times instead of 50.
"""
_LONGEST_KEEP_S: Final = 60 * MINUTE_S
_AGAIN_S: Final = 5 * MINUTE_S
"""For what comes and goes by nature, as a process that ends again and again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertKind:
    """One alert: when it fires, whom it concerns, what is wrong and what to do.

    `for_s`: how long its condition has to hold. `keep_firing_for_s`: how long it has not to hold
    before the alert is resolved. `unit`: of its value. `summary`: with `{endpoint}`
    or `{stream}`, `{value}` and `{detail}`. `local`: the condition that the control plane evaluates
    with a day's memory; None if only Prometheus can.
    """

    name: str
    severity: Severity
    condition: Condition
    local: Condition | None
    for_s: float
    keep_firing_for_s: float
    unit: str
    summary: str
    action: str

    @property
    def is_of_system(self) -> bool:
        """Whether it concerns no single endpoint or stream."""
        return isinstance(
            self.condition, GatewayDown | NotScraped | CertificateEnds | JobsLate | JobsFailed
        )

    @property
    def is_of_stream(self) -> bool:
        """Whether it concerns a stream."""
        return isinstance(self.condition, StreamLags | StreamDown | WorkersFail | DeadLetters)


def _kind(
    name: str,
    severity: Severity,
    condition: Condition,
    *,
    unit: str,
    summary: str,
    action: str,
    for_s: float = 0.0,
    keep_firing_for_s: float = 0.0,
    local: Condition | None = None,
    prometheus_only: bool = False,
) -> AlertKind:
    windows = windows_of(condition)
    if windows:
        keep_firing_for_s = min(_KEEP_WINDOWS * min(windows), _LONGEST_KEEP_S)
    return AlertKind(
        name=name,
        severity=severity,
        condition=condition,
        local=None if prometheus_only else local or condition,
        for_s=for_s,
        keep_firing_for_s=keep_firing_for_s,
        unit=unit,
        summary=summary,
        action=action,
    )


_WHY_ERRORS: Final = (
    "See `headrace events {endpoint}` and `headrace logs`: a new version? Go back with `headrace "
    "undo` or roll back its rollout. Codes in the access log say who failed: 429 is load, 503 "
    "nobody ready, 504 too slow, 500 the model."
)
_WHY_SLOW: Final = (
    "Compare queue wait with compute time on the endpoint's dashboard. Waiting: add replicas or "
    "let `autoscale` do it. Computing: a new version, larger inputs, or a busy machine."
)

ALERTS: Final = (
    _kind(
        "HeadraceErrorBudgetFast",
        Severity.PAGE,
        ErrorBurn(FAST),
        unit="ratio",
        summary="{value} of the requests to {endpoint} failed in the last hour: at this rate a "
        "month's error budget is gone in two days",
        action=_WHY_ERRORS,
    ),
    _kind(
        "HeadraceErrorBudgetMedium",
        Severity.PAGE,
        ErrorBurn(MEDIUM),
        unit="ratio",
        summary="{value} of the requests to {endpoint} failed in the last six hours: at this rate "
        "a month's error budget is gone in five days",
        action=_WHY_ERRORS,
    ),
    _kind(
        "HeadraceErrorBudgetSlow",
        Severity.TICKET,
        ErrorBurn(SLOW),
        local=ErrorBurn(SLOW_OF_A_DAY),
        unit="ratio",
        summary="{value} of the requests to {endpoint} failed over a day or more: the error budget "
        "will not last the month",
        action=_WHY_ERRORS,
    ),
    _kind(
        "HeadraceLatencyBudgetFast",
        Severity.PAGE,
        LatencyBurn(FAST),
        unit="s",
        summary="more than 14.4 % of the requests to {endpoint} took longer than promised in the "
        "last hour; 1 % may",
        action=_WHY_SLOW,
    ),
    _kind(
        "HeadraceLatencyBudgetMedium",
        Severity.PAGE,
        LatencyBurn(MEDIUM),
        unit="s",
        summary="more than 6 % of the requests to {endpoint} took longer than promised in the last "
        "six hours; 1 % may",
        action=_WHY_SLOW,
    ),
    _kind(
        "HeadraceLatencyBudgetSlow",
        Severity.TICKET,
        LatencyBurn(SLOW),
        local=LatencyBurn(SLOW_OF_A_DAY),
        unit="s",
        summary="more requests to {endpoint} than promised were slow, over a day or more",
        action=_WHY_SLOW,
    ),
    _kind(
        "HeadraceLatencyP95",
        Severity.PAGE,
        LatencyOver(quantile=0.95),
        for_s=2 * MINUTE_S,
        unit="s",
        summary="p95 of {endpoint} is {value}, above what is promised for p99",
        action=_WHY_SLOW,
    ),
    _kind(
        "HeadraceLatencyP99",
        Severity.TICKET,
        LatencyOver(quantile=0.99),
        for_s=2 * MINUTE_S,
        unit="s",
        summary="p99 of {endpoint} is {value}, above what is promised",
        action=_WHY_SLOW,
    ),
    _kind(
        "HeadraceErrorRate",
        Severity.PAGE,
        ErrorsOver(ratio=0.05),
        for_s=2 * MINUTE_S,
        unit="ratio",
        summary="{value} of the requests to {endpoint} fail; it promises no availability, so this "
        "is the usual limit",
        action=_WHY_ERRORS,
    ),
    _kind(
        "HeadraceQueuesFilling",
        Severity.TICKET,
        QueuesFilled(ratio=0.8),
        for_s=MINUTE_S,
        keep_firing_for_s=_AGAIN_S,
        unit="ratio",
        summary="{value} of what the queues of {endpoint} hold is taken; at 100 % callers get 429",
        action="Add replicas, raise `autoscale.max_replicas`, or limit the loudest caller. A "
        "larger `batching.max_queue_size` only makes callers wait longer.",
    ),
    _kind(
        "HeadraceRefusing",
        Severity.TICKET,
        RefusedOver(ratio=0.01),
        for_s=2 * MINUTE_S,
        prometheus_only=True,
        keep_firing_for_s=2 * _AGAIN_S,
        unit="ratio",
        summary="replicas of {endpoint} refuse {value} of its requests: queues are full, or "
        "deadlines cannot be kept",
        action="As for HeadraceQueuesFilling; `headrace status` tells which replicas there are.",
    ),
    _kind(
        "HeadraceNoReplicaReady",
        Severity.PAGE,
        NoReplica(),
        for_s=MINUTE_S,
        unit="replicas",
        summary="no replica of {endpoint} is ready",
        action="`headrace status` says why, `headrace logs` what they said last. A model that "
        "cannot be loaded: `headrace undo {endpoint}`.",
    ),
    _kind(
        "HeadraceReplicaCrashing",
        Severity.TICKET,
        ReplicasCrash(starts=3, window_s=15 * MINUTE_S),
        keep_firing_for_s=_AGAIN_S,
        unit="replicas",
        summary="a replica of {endpoint} ends again and again",
        action="`headrace logs` has its last lines; killed by signal 9 it mostly ran out of "
        "memory (`budget`, `headrace status`).",
    ),
    _kind(
        "HeadraceGatewayDown",
        Severity.PAGE,
        GatewayDown(),
        for_s=30.0,
        unit="",
        summary="the gateway does not serve: nobody gets an answer",
        action="`headrace status` and `headrace logs` say why it ended. Is a port taken, is the "
        "disk full?",
    ),
    _kind(
        "HeadraceNotScraped",
        Severity.PAGE,
        NotScraped(),
        for_s=2 * MINUTE_S,
        prometheus_only=True,
        unit="",
        summary="Prometheus gets no metrics: the control plane does not run, or cannot be reached",
        action="Traffic flows without the control plane. `headrace up` starts it again, and it "
        "takes over what runs.",
    ),
    _kind(
        "HeadraceCertificateEnds",
        Severity.TICKET,
        CertificateEnds(within_s=14 * DAY_S),
        unit="s",
        summary="a certificate expires in {value}",
        action="`headrace status` names it. Replace its files: they are read again without a "
        "restart.",
    ),
    _kind(
        "HeadraceDrift",
        Severity.TICKET,
        Drifted(),
        keep_firing_for_s=2 * _AGAIN_S,
        unit="features",
        summary="features of {endpoint} are not what they were, and not by chance: {value} of them",
        action="See which ones on the endpoint's page: a broken source shows as missing values, a "
        "changed world wants a new model.",
    ),
    _kind(
        "HeadraceRowsDiffer",
        Severity.PAGE,
        RowsDiffer(),
        unit="ratio",
        summary="answers of {endpoint} depend on other callers' rows: {detail}",
        action="Requests share batches although the model mixes their rows. Remove "
        "`rows_independent` from the endpoint's `batching`: it then gets one request at a time. "
        "Where the model itself declares its rows, set `batched = False` there; where the row was "
        "padded, set `batching: {{padding: {{max_ratio: 1.0}}}}`.",
    ),
    _kind(
        "HeadraceJobLate",
        Severity.TICKET,
        JobsLate(),
        unit="jobs",
        summary="no run has succeeded in time of scheduled jobs: {value} of them",
        action="`headrace batch list` names them, `headrace batch runs JOB` says how their runs "
        "ended; `headrace batch start JOB` runs one at once.",
    ),
    _kind(
        "HeadraceJobFailed",
        Severity.TICKET,
        JobsFailed(),
        unit="jobs",
        summary="the newest run failed, with all its tries, of jobs: {value} of them",
        action="`headrace batch list` names them, `headrace batch runs JOB` says why. What is done "
        "stays done; `headrace batch start JOB` runs one anew once the cause is mended.",
    ),
    _kind(
        "HeadraceStreamDown",
        Severity.PAGE,
        StreamDown(),
        for_s=3 * MINUTE_S,
        unit="workers",
        summary="no worker of stream {stream} takes records: nothing is answered",
        action="`headrace stream status {stream}` says why: the broker or the endpoint is away, "
        "the model cannot be loaded, it stopped before a record, or it is stalled: it has no "
        "partitions. `headrace logs` has its workers' last lines.",
    ),
    _kind(
        "HeadraceStreamLagging",
        Severity.PAGE,
        StreamLags(),
        for_s=5 * MINUTE_S,
        keep_firing_for_s=_AGAIN_S,
        unit="s",
        summary="stream {stream} is {value} behind, more than it may be",
        action="`headrace stream status {stream}` shows which partitions wait. Raise "
        "`workers.max` (never more than partitions help), or `max_batch_size`; a slow model "
        "shows in the score time on the stream's dashboard.",
    ),
    _kind(
        "HeadraceStreamDeadLetters",
        Severity.TICKET,
        DeadLetters(),
        for_s=10 * MINUTE_S,
        keep_firing_for_s=_AGAIN_S,
        unit="records",
        summary="records without an answer keep coming to stream {stream}: {value} dead letters "
        "in five minutes",
        action="`headrace stream dlq list {stream}` says why each has none. Once that is mended, "
        "`headrace stream dlq redrive {stream}` sends them again.",
    ),
    _kind(
        "HeadraceStreamWorkerCrashing",
        Severity.TICKET,
        WorkersFail(),
        keep_firing_for_s=_AGAIN_S,
        unit="workers",
        summary="a worker of stream {stream} ends again and again",
        action="`headrace logs` has its last lines, `headrace stream status {stream}` why it "
        "ended; killed by signal 9 it mostly ran out of memory.",
    ),
)
"""All of them. A test holds the documentation's table against it."""

LOCAL: Final = tuple(kind for kind in ALERTS if kind.local is not None)
"""Those that the control plane evaluates itself."""
