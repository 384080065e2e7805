"""How is it shown that the rules do what they say? Unit tests for `promtool test rules`.

Each alert is given a time in which its condition holds and one in which it does not, and has to
fire in the first only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from headrace.monitor import promql
from headrace.monitor.alert_kinds import ALERTS, AlertKind
from headrace.monitor.objectives import Objective
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
    windows_of,
)

Document = dict[str, Any]

_STEP_S: Final = 60.0
_PER_STEP: Final = 1000
"""Requests between two samples."""
_LONGEST: Final = 30
"""Steps of the longest window whose end is waited for; longer ones are only shown to fire."""
_BRIEF: Final = 10
_SLACK: Final = 3
_USUAL_FOR: Final = 12
"""Steps after which every alert without windows has fired, or ended."""


@dataclass(frozen=True, slots=True)
class _Counter:
    """A series that grows by `bad` a step, later by `good`."""

    name: str
    bad: float
    good: float

    def values(self, bad_steps: int, good_steps: int) -> str:
        turn = self.bad * bad_steps
        return f"0+{self.bad:g}x{bad_steps} {turn + self.good:g}+{self.good:g}x{good_steps}"


@dataclass(frozen=True, slots=True)
class _Gauge:
    """A series that is `bad`, later `good`."""

    name: str
    bad: float
    good: float

    def values(self, bad_steps: int, good_steps: int) -> str:
        return f"{self.bad:g}x{bad_steps} {self.good:g}x{good_steps}"


_Series = _Counter | _Gauge


def rule_tests(
    objectives: Sequence[Objective], rule_files: Sequence[str], *, window_ratio: float = 1.0
) -> Document:
    """One test for each alert that can fire, on the first endpoint that it concerns.

    Args:
        rule_files: Names of the files with all rules, relative to the test's own.
        window_ratio: Of endpoints with windows of this length; of the whole system too if it is 1.
    """
    mine = [one for one in objectives if one.window_ratio == window_ratio]
    concerned = [(kind, _concerned(kind, mine, window_ratio)) for kind in ALERTS]
    return {
        "rule_files": list(rule_files),
        "evaluation_interval": promql.duration(_STEP_S * window_ratio),
        "tests": [_test(kind, objective) for kind, objective in concerned if objective is not None],
    }


def _concerned(
    kind: AlertKind, objectives: Sequence[Objective], window_ratio: float
) -> Objective | None:
    """An endpoint on which an alert can be shown; None if there is none."""
    is_usual = window_ratio == 1.0
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
    step_s = _STEP_S * (objective.window_ratio if is_scaled else 1.0)
    window = round(shortest / _STEP_S) if is_scaled else _USUAL_FOR
    ends = window <= _LONGEST
    bad = _SLACK + (window if ends else _BRIEF) + round(kind.for_s / _STEP_S) + 1
    good = bad + _after(kind) if ends else 1
    samples = [_expect(kind, objective, at_s=(bad - 1) * step_s, firing=1)]
    if ends:
        samples.append(_expect(kind, objective, at_s=(bad + good - 1) * step_s, firing=0))
    return {
        "name": kind.name,
        "interval": promql.duration(step_s),
        "input_series": [
            {"series": series.name, "values": series.values(bad, good)}
            for series in _series(kind, objective)
        ],
        "promql_expr_test": samples,
    }


def _after(kind: AlertKind) -> int:
    """Steps more until windows of its own have forgotten."""
    match kind.condition:
        case RefusedOver() | ReplicasCrash():
            return round(kind.condition.window_s / _STEP_S)
        case _:
            return 0


def _expect(kind: AlertKind, objective: Objective, *, at_s: float, firing: int) -> Document:
    who = f',endpoint="{objective.endpoint}"' if objective.endpoint else ""
    alerts = f'ALERTS{{alertname="{kind.name}",alertstate="firing"{who}}}'
    return {
        "expr": f"count({alerts}) or vector(0)",
        "eval_time": promql.duration(at_s),
        "exp_samples": [{"labels": "{}", "value": firing}],
    }


def _series(kind: AlertKind, objective: Objective) -> Iterator[_Series]:  # noqa: C901  # a case each
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
            yield _Counter(refused, _PER_STEP, 0)
            yield _Counter(f"nv_inference_request_success{{{labels}}}", _PER_STEP, _PER_STEP)
        case QueuesFilled():
            labels = f'model="{name}",version="1",replica="{name}-1"'
            yield _Gauge(f"headrace_requests_in_flight{{{labels}}}", objective.queue_size, 0)
            yield _Gauge(f"headrace_replica_ready{{{labels}}}", 1, 1)
        case NoReplica():
            labels = f'endpoint="{name}",version="1"'
            yield _Gauge(f'headrace_replicas{{{labels},state="desired"}}', 1, 1)
            yield _Gauge(f'headrace_replicas{{{labels},state="ready"}}', 0, 1)
        case ReplicasCrash():
            labels = f'endpoint="{name}",version="1",replica="{name}-1"'
            yield _Counter(f"headrace_control_replica_restarts{{{labels}}}", 1, 0)
        case Drifted():
            labels = f'endpoint="{name}",feature="age",statistic="drifted"'
            yield _Gauge(f"headrace_drift_score{{{labels}}}", 1, 0)
        case GatewayDown():
            yield _Gauge("headrace_control_gateway_ready", 0, 1)
        case NotScraped():
            yield _Gauge(f'up{{job="{promql.JOB}",instance="one"}}', 0, 1)
        case JobsLate():
            yield _Gauge('headrace_job_late{job="nightly"}', 1, 0)
        case JobsFailed():
            yield _Gauge('headrace_job_failed{job="nightly"}', 1, 0)
        case CertificateEnds():
            left = 'headrace_control_certificate_left_seconds{certificate="gateway"}'
            yield _Gauge(left, kind.condition.within_s / 2, kind.condition.within_s * 2)


def _requests(endpoint: str, outcome: str, *, bad: float, good: float) -> _Counter:
    labels = f'endpoint="{endpoint}",version="1",outcome="{outcome}"'
    return _Counter(f"{promql.REQUESTS}{{{labels}}}", bad, good)


def _bucket(endpoint: str, bound: str, *, bad: float) -> _Counter:
    labels = f'endpoint="{endpoint}",version="1",le="{bound}"'
    return _Counter(f"{promql.LATENCY}_bucket{{{labels}}}", bad, _PER_STEP)
