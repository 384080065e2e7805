"""Recording and alerting rules of Prometheus for a system's objectives.

The documents that are returned are plain data, as Prometheus' rule files have them.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from headrace.monitor import promql
from headrace.monitor.alert_kinds import ALERTS, AlertKind
from headrace.monitor.objectives import Objective
from headrace.monitor.slo import (
    CertificateEnds,
    ErrorBurn,
    ErrorsOver,
    LatencyBurn,
    LatencyOver,
    windows_of,
)
from headrace.monitor.stream_conditions import StreamPromise

Rule = dict[str, Any]
Document = dict[str, Any]

_SCALED: Final = (ErrorBurn, LatencyBurn, LatencyOver, ErrorsOver)
_SHORT_S: Final = 1800.0
"""Windows up to this long are recorded as often as rules run; longer ones every few minutes."""
_SLOWLY_S: Final = 120.0


def recording_rules(
    objectives: Sequence[Objective], streams: Sequence[StreamPromise] = ()
) -> Document:
    """Each endpoint's promises and its windows, and what streams may do."""
    promises = [*_promises(objectives), *_stream_promises(streams)]
    groups = [{"name": "headrace-promises", "rules": promises}]
    for ratio in window_ratios(objectives):
        text = promql.scale_text(ratio)
        rules = list(_windows(ratio))
        quick = [rule for length, rule in rules if length <= _SHORT_S]
        slow = [rule for length, rule in rules if length > _SHORT_S]
        groups.append({"name": f"headrace-windows-{text}", "rules": quick})
        if slow:
            groups.append(
                {
                    "name": f"headrace-long-windows-{text}",
                    "interval": promql.duration(_SLOWLY_S),
                    "rules": slow,
                }
            )
    return {"groups": groups}


def alerting_rules(objectives: Sequence[Objective]) -> Document:
    """All alerts; those with windows once for each length of window that endpoints ask for."""
    groups = [
        {
            "name": f"headrace-slo-{promql.scale_text(ratio)}",
            "rules": [alerting_rule(kind, ratio) for kind in ALERTS if _is_scaled(kind)],
        }
        for ratio in window_ratios(objectives)
    ]
    rest = [alerting_rule(kind) for kind in ALERTS if not _is_scaled(kind)]
    return {"groups": [*groups, {"name": "headrace-system", "rules": rest}]}


def alerting_rule(kind: AlertKind, window_ratio: float = 1.0) -> Rule:
    """One alert as Prometheus has it."""
    rule: Rule = {
        "alert": kind.name,
        "expr": promql.expression(kind.condition, window_ratio),
    }
    scale = window_ratio if _is_scaled(kind) else 1.0
    if kind.for_s:
        rule["for"] = promql.duration(kind.for_s * scale)
    if kind.keep_firing_for_s:
        rule["keep_firing_for"] = promql.duration(kind.keep_firing_for_s * scale)
    rule["labels"] = {"severity": kind.severity.value}
    if _is_scaled(kind) and window_ratio != 1.0:
        rule["labels"]["windows"] = promql.scale_text(window_ratio)
    fields = {
        "endpoint": "{{ $labels.endpoint }}",
        "stream": "{{ $labels.stream }}",
        "value": _value(kind),
        "detail": "version {{ $labels.version }}: output '{{ $labels.output }}' differs by "
        f"{_value(kind)} of its largest value between a row alone and the same row in a batch",
    }
    rule["annotations"] = {
        "summary": kind.summary.format(**fields),
        "action": kind.action.format(**fields),
    }
    return rule


def window_ratios(objectives: Sequence[Objective]) -> list[float]:
    """Every length of windows that an endpoint asks for, the usual one always, longest first."""
    return sorted({1.0, *(objective.window_ratio for objective in objectives)}, reverse=True)


def _is_scaled(kind: AlertKind) -> bool:
    return isinstance(kind.condition, _SCALED)


def _value(kind: AlertKind) -> str:
    match kind.unit:
        case "ratio":
            return "{{ $value | humanizePercentage }}"
        case "s" if isinstance(kind.condition, CertificateEnds):
            return "{{ $value | humanizeDuration }}"
        case "s":
            return "{{ $value | humanize }}s"
        case _:
            return "{{ $value | humanize }}"


def _promises(objectives: Sequence[Objective]) -> Iterator[Rule]:
    for objective in objectives:
        labels = {"endpoint": objective.endpoint}
        scaled = {**labels, "windows": promql.scale_text(objective.window_ratio)}
        yield _constant(promql.WINDOWS, objective.window_ratio, scaled)
        yield _constant(promql.QUEUE_SIZE, objective.queue_size, labels)
        if objective.error_budget is not None:
            yield _constant(promql.BUDGET, objective.error_budget, scaled)
        if objective.latency_s is not None:
            yield _constant(promql.PROMISED, objective.latency_s, scaled)


def _stream_promises(streams: Sequence[StreamPromise]) -> Iterator[Rule]:
    for one in streams:
        labels = {"stream": one.stream}
        if one.lag_s is not None:
            yield _constant(promql.STREAM_LAG, one.lag_s, labels)
        if one.dead_letters is not None:
            yield _constant(promql.STREAM_LETTERS, one.dead_letters, labels)


def _constant(name: str, value: float, labels: dict[str, str]) -> Rule:
    return {"record": name, "expr": f"vector({value:.12g})", "labels": labels}


def _windows(ratio: float) -> Iterator[tuple[float, Rule]]:
    """Lengths, and what is recorded over them; each once."""
    seen: set[str] = set()
    for kind in ALERTS:
        if not _is_scaled(kind):
            continue
        for usual_s in windows_of(kind.condition):
            window = usual_s * ratio
            for name, expression in _records(kind, window):
                if name not in seen:
                    seen.add(name)
                    yield window, {"record": name, "expr": expression}


def _records(kind: AlertKind, window: float) -> Iterator[tuple[str, str]]:
    match kind.condition:
        case ErrorBurn() | ErrorsOver():
            yield promql.error_ratio(window), promql.error_ratio_of(window)
            yield promql.error_count(window), promql.error_count_of(window)
        case _:
            yield promql.request_count(window), promql.request_count_of(window)
            for q in promql.quantiles_of(kind.condition):
                yield promql.latency_quantile(q, window), promql.latency_quantile_of(q, window)
