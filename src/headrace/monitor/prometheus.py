"""Prometheus files for a system: rules for its objectives, and example configurations.

Names and contents are plain data, as in Prometheus and Alertmanager.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from headrace.core.spec.alerts import AlertsSpec, EmailSpec, ReceiverSpec, SlackSpec, WebhookSpec
from headrace.monitor import promql
from headrace.monitor.alert_kinds import ALERTS, AlertKind
from headrace.monitor.slo import (
    EndpointObjective,
    ErrorBurn,
    ErrorsOver,
    Fact,
    LatencyBurn,
    LatencyOver,
    StreamPromise,
    windows_of,
)

Rule = dict[str, Any]
Document = dict[str, Any]

_SCALED: Final = (ErrorBurn, LatencyBurn, LatencyOver, ErrorsOver)
_SHORT_S: Final = 1800.0
"""Windows up to this length are recorded at every evaluation; longer ones every few minutes."""
_SLOWLY_S: Final = 120.0
TARGET_LABELS: Final[Mapping[str, str]] = {"job": promql.JOB}
"""Labels of a system's metrics, which select them among those of other systems."""


def recording_rules(
    objectives: Sequence[EndpointObjective],
    streams: Sequence[StreamPromise] = (),
    *,
    target: Mapping[str, str] = TARGET_LABELS,
) -> Document:
    """Return recording rules: objectives and windows of endpoints, and limits of streams.

    Args:
        target: Labels of the system's metrics; the recorded series have them too.
    """
    groups: list[Document] = [
        {"name": "headrace-promises", "rules": list(_promises(objectives, streams))}
    ]
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
    for rule in (rule for group in groups for rule in group["rules"]):
        _restrict(rule, target)
    return {"groups": groups}


def alerting_rules(
    objectives: Sequence[EndpointObjective], *, target: Mapping[str, str] = TARGET_LABELS
) -> Document:
    """Return all alerting rules; those with windows once per window length of the endpoints.

    Args:
        target: Labels of the system's metrics; the alerts have them too.
    """
    groups = [
        {
            "name": f"headrace-slo-{promql.scale_text(ratio)}",
            "rules": [_alerting_rule(kind, target, ratio) for kind in ALERTS if _is_scaled(kind)],
        }
        for ratio in window_ratios(objectives)
    ]
    rest = [_alerting_rule(kind, target) for kind in ALERTS if not _is_scaled(kind)]
    return {"groups": [*groups, {"name": "headrace-system", "rules": rest}]}


def _alerting_rule(kind: AlertKind, target: Mapping[str, str], window_ratio: float = 1.0) -> Rule:
    """Return one alert as a Prometheus rule."""
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
    _restrict(rule, target)
    return rule


def _restrict(rule: Rule, target: Mapping[str, str]) -> None:
    """Let a rule read series with these labels only, and label what it yields with them."""
    rule["expr"] = promql.restricted(rule["expr"], promql.matchers_of(target))
    rule["labels"] = {**rule.get("labels", {}), **target}


def window_ratios(objectives: Sequence[EndpointObjective]) -> list[float]:
    """Return all window lengths of the endpoints and the default length, longest first."""
    return sorted({1.0, *(objective.window_ratio for objective in objectives)}, reverse=True)


def _is_scaled(kind: AlertKind) -> bool:
    return isinstance(kind.condition, _SCALED)


def _value(kind: AlertKind) -> str:
    match kind.unit:
        case "ratio":
            return "{{ $value | humanizePercentage }}"
        case "s" if kind.condition is Fact.CERTIFICATE_ENDS:
            return "{{ $value | humanizeDuration }}"
        case "s":
            return "{{ $value | humanize }}s"
        case _:
            return "{{ $value | humanize }}"


def _promises(
    objectives: Sequence[EndpointObjective], streams: Sequence[StreamPromise]
) -> Iterator[Rule]:
    """Yield series with the objectives of each endpoint and stream."""
    rows: list[tuple[str, float | None, dict[str, str]]] = []
    for objective in objectives:
        labels = {"endpoint": objective.endpoint}
        scaled = {**labels, "windows": promql.scale_text(objective.window_ratio)}
        rows += [
            (promql.WINDOWS, objective.window_ratio, scaled),
            (promql.QUEUE_SIZE, objective.queue_size, labels),
            (promql.BUDGET, objective.error_budget, scaled),
            (promql.PROMISED, objective.latency_s, scaled),
        ]
    for promise in streams:
        labels = {"stream": promise.stream}
        rows.append((promql.STREAM_LAG, promise.lag_s, labels))
        rows.append((promql.STREAM_LETTERS, promise.dead_letters, labels))
    for name, value, labels in rows:
        if value is not None:
            yield {"record": name, "expr": f"vector({value:.12g})", "labels": labels}


def _windows(ratio: float) -> Iterator[tuple[float, Rule]]:
    """Yield the recorded windows with their lengths, without duplicates."""
    recorded_names: set[str] = set()
    for condition in (kind.condition for kind in ALERTS if _is_scaled(kind)):
        for window_s in (usual_s * ratio for usual_s in windows_of(condition)):
            for name, expression in promql.recorded(condition, window_s).items():
                if name not in recorded_names:
                    recorded_names.add(name)
                    yield window_s, {"record": name, "expr": expression}


RECORDING: Final = "headrace-recording.yml"
ALERTING: Final = "headrace-alerts.yml"
SCRAPE: Final = "prometheus.yml"
ALERTMANAGER: Final = "alertmanager.yml"
_ALERTMANAGER_TARGET: Final = "127.0.0.1:9093"
_NOBODY: Final = "nobody"
_SYSTEM: Final = ("namespace", "job")
"""Labels that tell the alerts of one system from those of another."""
_REFERENCE: Final = re.compile(r"\$\{(\w+)\}")
_SCRAPE_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrapeTarget:
    """Address of the scraped metrics."""

    url: str
    token_file: str = ""
    """File with the bearer token; empty for no token."""
    ca_file: str = ""
    """File with CA certificates; empty for no file."""
    job: str = promql.JOB
    """Name of the scrape job; it differs between systems that one Prometheus scrapes."""


def prometheus_files(
    objectives: Sequence[EndpointObjective],
    alerts: AlertsSpec,
    target: ScrapeTarget,
    *,
    streams: Sequence[StreamPromise] = (),
) -> Mapping[str, Document]:
    """Return all files by name: rules, and example configurations of both programs."""
    labels = {"job": target.job}
    return {
        RECORDING: recording_rules(objectives, streams, target=labels),
        ALERTING: alerting_rules(objectives, target=labels),
        SCRAPE: scrape_configuration(target),
        ALERTMANAGER: alertmanager_configuration(alerts),
    }


def scrape_configuration(target: ScrapeTarget) -> Document:
    """Return the example configuration of Prometheus."""
    parts = urlsplit(target.url)
    job: Document = {
        "job_name": target.job,
        "scheme": parts.scheme,
        "metrics_path": parts.path or "/metrics",
        "static_configs": [{"targets": [parts.netloc]}],
    }
    if target.token_file:
        job["authorization"] = {"credentials_file": target.token_file}
    if target.ca_file:
        job["tls_config"] = {"ca_file": target.ca_file}
    every = promql.duration(_SCRAPE_S)
    return {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": [RECORDING, ALERTING],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [_ALERTMANAGER_TARGET]}]}]},
        "scrape_configs": [job],
    }


def alertmanager_configuration(alerts: AlertsSpec) -> Document:
    """Return routes by severity to the receivers of the spec.

    A reference to an environment variable is replaced by a file of that name below `secrets`, as
    Alertmanager reads no variables.
    """
    return {
        "route": {
            "receiver": _NOBODY,
            "group_by": [*_SYSTEM, "endpoint", "stream"],
            "group_wait": promql.duration(alerts.group_wait_s),
            "group_interval": "1m",
            "repeat_interval": promql.duration(alerts.repeat_s),
            "routes": [
                {
                    "receiver": receiver.name,
                    "matchers": [f'severity=~"{"|".join(receiver.severities)}"'],
                    "continue": True,
                }
                for receiver in alerts.receivers
            ],
        },
        # A page about an endpoint or stream inhibits its tickets.
        "inhibit_rules": [
            {
                "source_matchers": ['severity="page"'],
                "target_matchers": ['severity="ticket"'],
                "equal": [*_SYSTEM, "endpoint", "stream"],
            }
        ],
        "receivers": [{"name": _NOBODY}, *map(_receiver, alerts.receivers)],
    }


def _receiver(receiver: ReceiverSpec) -> Document:
    configuration: Document = {"name": receiver.name}
    if receiver.webhook is not None:
        webhook = _url("url", receiver.webhook)
        if receiver.webhook.token_file is not None:
            file = receiver.webhook.token_file
            webhook["http_config"] = {"authorization": {"credentials_file": file}}
        configuration["webhook_configs"] = [{**webhook, "send_resolved": True}]
    if receiver.slack is not None:
        slack = {**_url("api_url", receiver.slack), "send_resolved": True}
        if receiver.slack.channel:
            slack["channel"] = receiver.slack.channel
        configuration["slack_configs"] = [slack]
    if receiver.email is not None:
        configuration["email_configs"] = [{**_email(receiver.email), "send_resolved": True}]
    return configuration


def _url(name: str, spec: WebhookSpec | SlackSpec) -> Document:
    if spec.url_file is not None:
        return {f"{name}_file": spec.url_file}
    variable = _REFERENCE.search(spec.url or "")
    return {f"{name}_file": f"secrets/{variable[1]}"} if variable else {name: spec.url}


def _email(spec: EmailSpec) -> Document:
    configuration: Document = {
        "to": ", ".join(spec.to),
        "from": spec.sender,
        "smarthost": f"{spec.host}:{spec.port}",
        # With port 465, Alertmanager always uses TLS.
        "require_tls": spec.tls == "starttls",
    }
    if spec.username:
        configuration["auth_username"] = spec.username
        configuration["auth_password_file"] = spec.password_file
    return configuration
