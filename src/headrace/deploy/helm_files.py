"""Which files of the chart come from the code: rules for every spec, dashboards? Pure."""

import json
from collections.abc import Mapping
from typing import Any, Final

from headrace.monitor.dashboards import DASHBOARDS
from headrace.monitor.grafana import dashboard_json
from headrace.monitor.prometheus import alerting_rules, recording_rules
from headrace.monitor.slo import objectives_of
from headrace.monitor.stream_conditions import stream_promises_of

RULES: Final = "files/rules.yaml"


def rule_groups(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The groups of a PrometheusRule for a spec document that was checked before."""
    objectives, streams = objectives_of(document), stream_promises_of(document)
    groups: list[dict[str, Any]] = []
    for rules in (recording_rules(objectives, streams), alerting_rules(objectives)):
        groups += rules["groups"]
    return groups


def chart_files() -> Mapping[str, str]:
    """The generated files by their path in the chart; Helm does not evaluate what is in them."""
    groups = json.dumps({"groups": rule_groups({"version": 1})}, indent=1)
    files = {RULES: f"{groups}\n"}
    for dashboard in DASHBOARDS:
        text = json.dumps(dashboard_json(dashboard), indent=2)
        files[f"files/dashboards/headrace-{dashboard.name}.json"] = f"{text}\n"
    return files
