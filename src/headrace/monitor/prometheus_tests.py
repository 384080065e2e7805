"""How is it shown that the rules do what they say? Unit tests for `promtool test rules`.

Each alert is given a time in which its condition holds and one in which it does not, and has to
fire in the first only.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from headrace.monitor import promql
from headrace.monitor.alert_kinds import ALERTS, AlertKind
from headrace.monitor.objectives import Objective
from headrace.monitor.prometheus_series import Counter, Gauge, Series, expectation, rule_test
from headrace.monitor.prometheus_stream_tests import STEP_S, stream_tests
from headrace.monitor.slo import (
    CertificateEnds,
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
    windows_of,
)
from headrace.monitor.stream_conditions import StreamPromise

Document = dict[str, Any]

_PER_STEP: Final = 1000
"""Requests between two samples."""
_LONGEST: Final = 30
"""Steps of the longest window whose end is waited for; longer ones are only shown to fire."""
_BRIEF: Final = 10
_SLACK: Final = 3
_USUAL_FOR: Final = 12
"""Steps after which every alert without windows has fired, or ended."""


def rule_tests(
    objectives: Sequence[Objective],
    rule_files: Sequence[str],
    *,
    window_ratio: float = 1.0,
    streams: Sequence[StreamPromise] = (),
) -> Document:
    """One test for each alert that can fire, on the first endpoint or stream that it concerns.

    Args:
        rule_files: Names of the files with all rules, relative to the test's own.
        window_ratio: Of endpoints with windows of this length; of streams and the whole system too
            if it is 1.
    """
    mine = [one for one in objectives if one.window_ratio == window_ratio]
    concerned = [(kind, _concerned(kind, mine, window_ratio)) for kind in ALERTS]
    tests = [_test(kind, objective) for kind, objective in concerned if objective is not None]
    return {
        "rule_files": list(rule_files),
        "evaluation_interval": promql.duration(STEP_S * window_ratio),
        "tests": [*tests, *(stream_tests(streams) if window_ratio == 1.0 else ())],
    }


def _concerned(
    kind: AlertKind, objectives: Sequence[Objective], window_ratio: float
) -> Objective | None:
    """An endpoint on which an alert can be shown; None if there is none."""
    is_usual = window_ratio == 1.0
    if kind.is_of_stream:
        return None
    if kind.is_of_system:
        return Objective(endpoint="") if is_usual else None
    if not windows_of(kind.condition) and not is_usual:
        return None
    return next((one for one in objectives if _can_fire(kind, one)), None)


def _can_fire(kind: AlertKind, objective: Objective) -> bool:
    match kind.condition:
        case ErrorBurn(windows=burn):
            budget = objective.error_budget
            return budget is not None and budget * burn.factor < 1
        case LatencyBurn() | LatencyOver():
            return objective.latency_s is not None
        case ErrorsOver():
            return objective.error_budget is None
        case _:
            return True


def _test(kind: AlertKind, objective: Objective) -> Document:
    shortest = min(windows_of(kind.condition), default=0.0)
    is_scaled = shortest > 0
    step_s = STEP_S * (objective.window_ratio if is_scaled else 1.0)
    window = round(shortest / STEP_S) if is_scaled else _USUAL_FOR
    ends = window <= _LONGEST
    bad = _SLACK + (window if ends else _BRIEF) + round(kind.for_s / STEP_S) + 1
    keep = round(kind.keep_firing_for_s / STEP_S)
    good = bad + keep + _after(kind) if ends else 1
    who = f'endpoint="{objective.endpoint}"' if objective.endpoint else ""
    expected = [expectation(kind.name, who, at_s=(bad - 1) * step_s, firing=1)]
    if keep:
        expected.append(expectation(kind.name, who, at_s=(bad - 1 + keep) * step_s, firing=1))
    if ends:
        expected.append(expectation(kind.name, who, at_s=(bad + good - 1) * step_s, firing=0))
    series = _series(kind, objective)
    return rule_test(kind.name, series, expected, step_s=step_s, bad_steps=bad, good_steps=good)


def _after(kind: AlertKind) -> int:
    """Steps more until windows of its own have forgotten."""
    match kind.condition:
        case RefusedOver() | ReplicasCrash():
            return round(kind.condition.window_s / STEP_S)
        case _:
            return 0


def _series(kind: AlertKind, objective: Objective) -> Iterator[Series]:  # noqa: C901, PLR0912  # a case each
    name = objective.endpoint
    match kind.condition:
        case ErrorBurn() | ErrorsOver():
            yield _requests(name, "error", bad=_PER_STEP, good=0)
            yield _requests(name, "ok", bad=0, good=_PER_STEP)
        case LatencyBurn() | LatencyOver():
            promised = objective.latency_s or 0.0
            yield _requests(name, "ok", bad=_PER_STEP, good=_PER_STEP)
            yield _bucket(name, f"{promised:g}", bad=0)
            yield _bucket(name, f"{4 * promised:g}", bad=_PER_STEP)
            yield _bucket(name, "+Inf", bad=_PER_STEP)
        case RefusedOver():
            labels = f'model="{name}",version="1",replica="{name}-1"'
            refused = f'nv_inference_request_failure{{{labels},reason="REJECTED"}}'
            yield Counter(refused, _PER_STEP, 0)
            yield Counter(f"nv_inference_request_success{{{labels}}}", _PER_STEP, _PER_STEP)
        case QueuesFilled():
            labels = f'model="{name}",version="1",replica="{name}-1"'
            yield Gauge(f"headrace_requests_in_flight{{{labels}}}", objective.queue_size, 0)
            yield Gauge(f"headrace_replica_ready{{{labels}}}", 1, 1)
        case NoReplica():
            labels = f'endpoint="{name}",version="1"'
            yield Gauge(f'headrace_replicas{{{labels},state="desired"}}', 1, 1)
            yield Gauge(f'headrace_replicas{{{labels},state="ready"}}', 0, 1)
        case ReplicasCrash():
            labels = f'endpoint="{name}",version="1",replica="{name}-1"'
            yield Counter(f"headrace_control_replica_restarts{{{labels}}}", 1, 0)
        case Drifted():
            labels = f'endpoint="{name}",feature="age",statistic="drifted"'
            yield Gauge(f"headrace_drift_score{{{labels}}}", 1, 0)
        case RowsDiffer():
            labels = f'endpoint="{name}",version="1",output="y"'
            yield Gauge(f"headrace_row_difference{{{labels}}}", 0.4, 0)
        case GatewayDown():
            yield Gauge("headrace_control_gateway_ready", 0, 1)
        case NotScraped():
            yield Gauge(f'up{{job="{promql.JOB}",instance="one"}}', 0, 1)
        case JobsLate():
            yield Gauge(f'headrace_job_late{{job="{promql.JOB}",job_name="nightly"}}', 1, 0)
        case JobsFailed():
            yield Gauge(f'headrace_job_failed{{job="{promql.JOB}",job_name="nightly"}}', 1, 0)
        case CertificateEnds():
            left = 'headrace_control_certificate_left_seconds{certificate="gateway"}'
            yield Gauge(left, kind.condition.within_s / 2, kind.condition.within_s * 2)


def _requests(endpoint: str, outcome: str, *, bad: float, good: float) -> Counter:
    labels = f'endpoint="{endpoint}",version="1",outcome="{outcome}"'
    return Counter(f"{promql.REQUESTS}{{{labels}}}", bad, good)


def _bucket(endpoint: str, bound: str, *, bad: float) -> Counter:
    labels = f'endpoint="{endpoint}",version="1",le="{bound}"'
    return Counter(f"{promql.LATENCY}_bucket{{{labels}}}", bad, _PER_STEP)
