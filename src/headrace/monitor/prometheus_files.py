"""Files of a Prometheus beside this system, with names and contents as plain data."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from headrace.core.spec_alerts import AlertsSpec, EmailSpec, ReceiverSpec, SlackSpec, WebhookSpec
from headrace.monitor.objectives import Objective
from headrace.monitor.prometheus_rules import alerting_rules, recording_rules
from headrace.monitor.promql import JOB, duration
from headrace.monitor.stream_conditions import StreamPromise

Document = dict[str, Any]

RECORDING: Final = "headrace-recording.yml"
ALERTING: Final = "headrace-alerts.yml"
SCRAPE: Final = "prometheus.yml"
ALERTMANAGER: Final = "alertmanager.yml"
_ALERTMANAGER_TARGET: Final = "127.0.0.1:9093"
_NOBODY: Final = "nobody"
_REFERENCE: Final = re.compile(r"\$\{(\w+)\}")
_SCRAPE_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrapeTarget:
    """Where metrics are read. `token_file`, `ca_file`: empty for none."""

    url: str
    token_file: str = ""
    ca_file: str = ""


def prometheus_files(
    objectives: Sequence[Objective],
    alerts: AlertsSpec,
    target: ScrapeTarget,
    *,
    streams: Sequence[StreamPromise] = (),
) -> Mapping[str, Document]:
    """All files by name: rules, and examples of both programs' configurations."""
    return {
        RECORDING: recording_rules(objectives, streams),
        ALERTING: alerting_rules(objectives),
        SCRAPE: scrape_configuration(target),
        ALERTMANAGER: alertmanager_configuration(alerts),
    }


def scrape_configuration(target: ScrapeTarget) -> Document:
    """What Prometheus itself is told."""
    parts = urlsplit(target.url)
    job: Document = {
        "job_name": JOB,
        "scheme": parts.scheme,
        "metrics_path": parts.path or "/metrics",
        "static_configs": [{"targets": [parts.netloc]}],
    }
    if target.token_file:
        job["authorization"] = {"credentials_file": target.token_file}
    if target.ca_file:
        job["tls_config"] = {"ca_file": target.ca_file}
    every = duration(_SCRAPE_S)
    return {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": [RECORDING, ALERTING],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [_ALERTMANAGER_TARGET]}]}]},
        "scrape_configs": [job],
    }


def alertmanager_configuration(alerts: AlertsSpec) -> Document:
    """Routes by severity to the receivers of the spec.

    Where the spec names the environment, a file of that name below `secrets` is named instead:
    Alertmanager reads no variables.
    """
    return {
        "route": {
            "receiver": _NOBODY,
            "group_by": ["endpoint", "stream"],
            "group_wait": duration(alerts.group_wait_s),
            "group_interval": "1m",
            "repeat_interval": duration(alerts.repeat_s),
            "routes": [_route(receiver) for receiver in alerts.receivers],
        },
        # One page about an endpoint or a stream is enough: what is only worth a ticket waits.
        "inhibit_rules": [
            {
                "source_matchers": ['severity="page"'],
                "target_matchers": ['severity="ticket"'],
                "equal": ["endpoint", "stream"],
            }
        ],
        "receivers": [{"name": _NOBODY}, *map(_receiver, alerts.receivers)],
    }


def _route(receiver: ReceiverSpec) -> Document:
    return {
        "receiver": receiver.name,
        "matchers": [f'severity=~"{"|".join(receiver.severities)}"'],
        "continue": True,
    }


def _receiver(receiver: ReceiverSpec) -> Document:
    found: Document = {"name": receiver.name}
    if receiver.webhook is not None:
        webhook = _url("url", receiver.webhook)
        if receiver.webhook.token_file is not None:
            file = receiver.webhook.token_file
            webhook["http_config"] = {"authorization": {"credentials_file": file}}
        found["webhook_configs"] = [{**webhook, "send_resolved": True}]
    if receiver.slack is not None:
        slack = {**_url("api_url", receiver.slack), "send_resolved": True}
        if receiver.slack.channel:
            slack["channel"] = receiver.slack.channel
        found["slack_configs"] = [slack]
    if receiver.email is not None:
        found["email_configs"] = [{**_email(receiver.email), "send_resolved": True}]
    return found


def _url(name: str, spec: WebhookSpec | SlackSpec) -> Document:
    if spec.url_file is not None:
        return {f"{name}_file": spec.url_file}
    variable = _REFERENCE.search(spec.url or "")
    return {f"{name}_file": f"secrets/{variable[1]}"} if variable else {name: spec.url}


def _email(spec: EmailSpec) -> Document:
    found: Document = {
        "to": ", ".join(spec.to),
        "from": spec.sender,
        "smarthost": f"{spec.host}:{spec.port}",
        # Port 465 means encryption from the first byte on to Alertmanager, without being told.
        "require_tls": spec.tls == "starttls",
    }
    if spec.username:
        found["auth_username"] = spec.username
        found["auth_password_file"] = spec.password_file
    return found
