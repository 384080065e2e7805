"""Unit tests of alerting rules for `promtool test rules`.

Each alert gets series on which its condition holds and then does not, and has to fire in the first
part only. Systems with other labels have the same series with the parts swapped.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

from headrace.core.spec.parse import parse_spec
from headrace.monitor import promql
from headrace.monitor.alert_kinds import ALERTS, AlertKind
from headrace.monitor.prometheus import ALERTING, RECORDING, TARGET_LABELS, window_ratios
from headrace.monitor.slo import (
    CERTIFICATE_LEFT_S,
    CRASH_WINDOW_S,
    LETTERS_WINDOW_S,
    REFUSED_WINDOW_S,
    EndpointObjective,
    ErrorBurn,
    ErrorsOver,
    Fact,
    LatencyBurn,
    LatencyOver,
    StreamPromise,
    objectives_of,
    stream_promises_of,
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
class Counter:
    """A series that grows by `bad` a step, later by `good`."""

    name: str
    bad: float
    good: float

    def values(self, bad_steps: int, good_steps: int) -> str:
        """As `promtool` reads it."""
        turn = self.bad * bad_steps
        return f"0+{self.bad:g}x{bad_steps} {turn + self.good:g}+{self.good:g}x{good_steps}"


@dataclass(frozen=True, slots=True)
class Gauge:
    """A series that is `bad`, later `good`."""

    name: str
    bad: float
    good: float

    def values(self, bad_steps: int, good_steps: int) -> str:
        """As `promtool` reads it."""
        return f"{self.bad:g}x{bad_steps} {self.good:g}x{good_steps}"


Series = Counter | Gauge


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleTest:
    """A test of one alert on series that are bad for some steps, then good."""

    alert: str
    series: Sequence[Series]
    expected: Mapping[float, int]
    """How often the alert fires, by the time in seconds."""
    labels: str
    """Of whom the alert is, as PromQL has them; empty for anybody."""
    step_s: float
    bad_steps: int
    good_steps: int

    def document(self, target: Mapping[str, str]) -> Document:
        """As `promtool` reads it."""
        firing = f'ALERTS{{alertname="{self.alert}",alertstate="firing",{self.labels}}}'
        own = promql.matchers_of(target)
        return {
            "name": self.alert,
            "interval": promql.duration(self.step_s),
            "input_series": [*self._input(own), *self._others(target)],
            "promql_expr_test": [
                {
                    "expr": f"count({alerts}) or vector(0)",
                    "eval_time": promql.duration(at_s),
                    "exp_samples": [{"labels": "{}", "value": count}],
                }
                for at_s, count in self.expected.items()
                for alerts in (firing, promql.restricted(firing, own))
            ],
        }

    def _others(self, target: Mapping[str, str]) -> Iterator[Document]:
        """What systems have that differ in one label: bad where ours is good."""
        swapped = [replace(one, bad=one.good, good=one.bad) for one in self.series]
        for label, value in target.items():
            others = promql.matchers_of({**target, label: f"{value}-2"})
            yield from replace(self, series=swapped)._input(others)

    def _input(self, labels: str) -> Iterator[Document]:
        for one in self.series:
            values = one.values(self.bad_steps, self.good_steps)
            yield {"series": promql.restricted(one.name, labels), "values": values}


def write_rule_tests(
    folder: Path, spec: str, target: Mapping[str, str] = TARGET_LABELS
) -> list[Path]:
    """Write a file of tests for each length of windows that `spec` uses.

    They are for the files of rules in `folder`, of a system with the labels `target`.
    """
    document = parse_spec(YAML(typ="safe").load(spec)).document()
    objectives, streams = objectives_of(document), stream_promises_of(document)
    paths = []
    for ratio in window_ratios(objectives):
        path = folder / f"headrace-rules-{promql.scale_text(ratio)}.test.yml"
        tests = rule_tests(
            objectives, (RECORDING, ALERTING), window_ratio=ratio, streams=streams, target=target
        )
        path.write_text(json.dumps(tests))
        paths.append(path)
    return paths


def rule_tests(
    objectives: Sequence[EndpointObjective],
    rule_files: Sequence[str],
    *,
    window_ratio: float = 1.0,
    streams: Sequence[StreamPromise] = (),
    target: Mapping[str, str] = TARGET_LABELS,
) -> Document:
    """One test for each alert that can fire, on the first endpoint or stream that it concerns.

    Args:
        rule_files: Names of the files with all rules, relative to the test's own.
        window_ratio: Of endpoints with windows of this length; of streams and the whole system too
            if it is 1.
        target: Labels of the system's series.
    """
    mine = [one for one in objectives if one.window_ratio == window_ratio]
    concerned = [(kind, _concerned(kind, mine, window_ratio)) for kind in ALERTS]
    tests = [_test(kind, objective) for kind, objective in concerned if objective is not None]
    tests += _stream_tests(streams) if window_ratio == 1.0 else ()
    return {
        "rule_files": list(rule_files),
        "evaluation_interval": promql.duration(_STEP_S * window_ratio),
        "tests": [test.document(target) for test in tests],
    }


def _concerned(
    kind: AlertKind, objectives: Sequence[EndpointObjective], window_ratio: float
) -> EndpointObjective | None:
    """An endpoint on which an alert can be shown; None if there is none."""
    is_usual = window_ratio == 1.0
    if kind.is_for_stream:
        return None
    if kind.is_system_wide:
        return EndpointObjective(endpoint="") if is_usual else None
    if not windows_of(kind.condition) and not is_usual:
        return None
    return next((one for one in objectives if _can_fire(kind, one)), None)


def _can_fire(kind: AlertKind, objective: EndpointObjective) -> bool:
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


def _test(kind: AlertKind, objective: EndpointObjective) -> RuleTest:
    shortest = min(windows_of(kind.condition), default=0.0)
    is_scaled = shortest > 0
    step_s = _STEP_S * (objective.window_ratio if is_scaled else 1.0)
    window = round(shortest / _STEP_S) if is_scaled else _USUAL_FOR
    ends = window <= _LONGEST
    bad = _SLACK + (window if ends else _BRIEF) + round(kind.for_s / _STEP_S) + 1
    keep = round(kind.keep_firing_for_s / _STEP_S)
    good = bad + keep + _after(kind) if ends else 1
    expected = {(bad - 1) * step_s: 1}
    if keep:
        expected[(bad - 1 + keep) * step_s] = 1
    if ends:
        expected[(bad + good - 1) * step_s] = 0
    return RuleTest(
        alert=kind.name,
        series=list(_series(kind, objective)),
        expected=expected,
        labels=f'endpoint="{objective.endpoint}"' if objective.endpoint else "",
        step_s=step_s,
        bad_steps=bad,
        good_steps=good,
    )


def _after(kind: AlertKind) -> int:
    """Steps more until windows of its own have forgotten."""
    match kind.condition:
        case Fact.REFUSED:
            return round(REFUSED_WINDOW_S / _STEP_S)
        case Fact.REPLICAS_CRASH:
            return round(CRASH_WINDOW_S / _STEP_S)
        case _:
            return 0


def _series(kind: AlertKind, objective: EndpointObjective) -> Iterator[Series]:  # noqa: C901, PLR0912  # a case each
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
        case Fact.REFUSED:
            labels = f'model="{name}",version="1",replica="{name}-1"'
            refused = f'nv_inference_request_failure{{{labels},reason="REJECTED"}}'
            yield Counter(refused, _PER_STEP, 0)
            yield Counter(f"nv_inference_request_success{{{labels}}}", _PER_STEP, _PER_STEP)
        case Fact.QUEUES_FILLED:
            labels = f'model="{name}",version="1",replica="{name}-1"'
            yield Gauge(f"headrace_requests_in_flight{{{labels}}}", objective.queue_size, 0)
            yield Gauge(f"headrace_replica_ready{{{labels}}}", 1, 1)
        case Fact.NO_REPLICA:
            labels = f'endpoint="{name}",version="1"'
            yield Gauge(f'headrace_replicas{{{labels},state="desired"}}', 1, 1)
            yield Gauge(f'headrace_replicas{{{labels},state="ready"}}', 0, 1)
        case Fact.REPLICAS_CRASH:
            labels = f'endpoint="{name}",version="1",replica="{name}-1"'
            yield Counter(f"headrace_control_replica_restarts{{{labels}}}", 1, 0)
        case Fact.DRIFTED:
            labels = f'endpoint="{name}",feature="age",statistic="drifted"'
            yield Gauge(f"headrace_drift_score{{{labels}}}", 1, 0)
        case Fact.ROWS_DIFFER:
            labels = f'endpoint="{name}",version="1",output="y"'
            yield Gauge(f"headrace_row_difference{{{labels}}}", 0.4, 0)
        case Fact.GATEWAY_DOWN:
            yield Gauge("headrace_control_gateway_ready", 0, 1)
        case Fact.NOT_SCRAPED:
            yield Gauge('up{instance="one"}', 0, 1)
        case Fact.JOBS_LATE:
            yield Gauge('headrace_job_late{job_name="nightly"}', 1, 0)
        case Fact.JOBS_FAILED:
            yield Gauge('headrace_job_failed{job_name="nightly"}', 1, 0)
        case Fact.CERTIFICATE_ENDS:
            left = 'headrace_control_certificate_left_seconds{certificate="gateway"}'
            yield Gauge(left, CERTIFICATE_LEFT_S / 2, CERTIFICATE_LEFT_S * 2)


def _requests(endpoint: str, outcome: str, *, bad: float, good: float) -> Counter:
    labels = f'endpoint="{endpoint}",version="1",outcome="{outcome}"'
    return Counter(f"{promql.REQUESTS}{{{labels}}}", bad, good)


def _bucket(endpoint: str, bound: str, *, bad: float) -> Counter:
    labels = f'endpoint="{endpoint}",version="1",le="{bound}"'
    return Counter(f"{promql.LATENCY}_bucket{{{labels}}}", bad, _PER_STEP)


def _stream_tests(promises: Sequence[StreamPromise]) -> Iterator[RuleTest]:
    """One test for each alert of streams, on the first stream that it can fire for."""
    for kind in ALERTS:
        if kind.is_for_stream:
            concerned = next((one for one in promises if _stream_can_fire(kind, one)), None)
            if concerned is not None:
                yield _stream_test(kind, concerned)


def _stream_can_fire(kind: AlertKind, promise: StreamPromise) -> bool:
    match kind.condition:
        case Fact.STREAM_LAGS:
            return promise.lag_s is not None
        case Fact.DEAD_LETTERS:
            return promise.dead_letters is not None
        case _:
            return True


def _stream_test(kind: AlertKind, promise: StreamPromise) -> RuleTest:
    window_s = LETTERS_WINDOW_S if kind.condition is Fact.DEAD_LETTERS else 0.0
    window = round(window_s / _STEP_S)
    bad = _SLACK + window + round(kind.for_s / _STEP_S) + 1
    keep = round(kind.keep_firing_for_s / _STEP_S)
    good = _SLACK + window + keep
    return RuleTest(
        alert=kind.name,
        series=list(_stream_series(kind, promise)),
        expected={
            (bad - 1) * _STEP_S: 1,
            (bad - 1 + keep) * _STEP_S: 1,
            (bad + good - 1) * _STEP_S: 0,
        },
        labels=f'stream="{promise.stream}"',
        step_s=_STEP_S,
        bad_steps=bad,
        good_steps=good,
    )


def _stream_series(kind: AlertKind, promise: StreamPromise) -> Iterator[Series]:
    stream = f'stream="{promise.stream}"'
    worker = f'{stream},worker="{promise.stream}-0"'
    match kind.condition:
        case Fact.STREAM_LAGS:
            limit_s, place = promise.lag_s or 0.0, 'topic="in",partition="0"'
            lag = f"headrace_stream_lag_seconds{{{worker},{place}}}"
            yield Gauge(lag, 2 * limit_s, limit_s / 2)
            yield Gauge(f"headrace_stream_paused{{{stream}}}", 0, 0)
        case Fact.STREAM_DOWN:
            yield Gauge(f"headrace_stream_workers_running{{{stream}}}", 0, 0)
            yield Gauge(f"headrace_stream_paused{{{stream}}}", 0, 1)  # paused is as good as running
        case Fact.WORKERS_FAIL:
            yield Gauge(f"headrace_stream_workers_failing{{{stream}}}", 1, 0)
        case Fact.DEAD_LETTERS:
            more = (promise.dead_letters or 0) + 1
            yield Counter(f"headrace_stream_dead_letters_total{{{worker}}}", more, 0)
        case _:
            raise AssertionError(kind)
