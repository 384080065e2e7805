"""Each selector of each query names the system: a namespace and a job."""

import json
import re
from collections.abc import Iterator
from typing import Final

import pytest

from headrace.core.spec.alerts import AlertsSpec
from headrace.deploy.helm_values import chart_files, rule_groups
from headrace.monitor.dashboards import DASHBOARDS
from headrace.monitor.grafana import dashboard_json
from headrace.monitor.prometheus import alerting_rules, alertmanager_configuration, recording_rules
from headrace.monitor.promql import matchers_of, restricted
from tests.unit.monitor.told import PROMISE

_SPEC: Final = {
    "version": 1,
    "endpoints": [{"name": "fraud", "slo": {"latency_s": 0.2, "availability": 0.999}}],
}
_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_LABELS: Final = re.compile(r"\b(?:by|on) ?\([^)]*\)")
_SELECTOR: Final = re.compile(r"\b[a-z][\w:]*\b(?! *\()(?:\{[^}]*\})?", re.IGNORECASE)
_WORDS: Final = {"and", "or", "unless", "by", "on"}
_DURATION: Final = re.compile(r"\[[^\]]*\]")


def selectors(expression: str) -> Iterator[str]:
    """The vector selectors of an expression, with what it says in strings left out."""
    plain = _LABELS.sub(" ", _DURATION.sub(" ", _STRING.sub('""', expression)))
    yield from (found for found in _SELECTOR.findall(plain) if found not in _WORDS)


def expressions() -> Iterator[str]:
    for group in rule_groups(_SPEC):
        yield from (rule["expr"] for rule in group["rules"] if "vector(" not in rule["expr"])
    for dashboard in DASHBOARDS:
        yield from dashboard.queries()


def test_every_selector_of_the_chart_s_rules_and_dashboards_names_namespace_and_job() -> None:
    found = [selector for expression in expressions() for selector in selectors(expression)]

    assert len(found) > 150
    assert [one for one in found if not re.search(r'\{namespace="",job=""[,}]', one)] == []


def test_variables_and_annotations_of_dashboards_are_restricted_too() -> None:
    system = ("namespace", "job")
    for document in map(dashboard_json, DASHBOARDS):
        variables = {one["name"]: one for one in document["templating"]["list"]}
        (alerts,) = document["annotations"]["list"]
        others = [one["definition"] for one in list(variables.values())[3:]]

        assert list(variables)[:3] == ["datasource", *system]
        assert 'namespace="$namespace",job' not in variables["job"]["definition"]
        assert all('{namespace="$namespace",job="$job"}' in query for query in others)
        assert alerts["expr"].startswith('ALERTS{namespace="$namespace",job="$job",')


def test_rules_of_the_chart_and_their_series_are_labelled_for_the_release() -> None:
    rules = [rule for group in rule_groups(_SPEC) for rule in group["rules"]]

    assert {(rule["labels"]["namespace"], rule["labels"]["job"]) for rule in rules} == {
        ("HEADRACE_NAMESPACE", "HEADRACE_INSTANCE")
    }
    assert "HEADRACE_" not in json.dumps([alerting_rules([PROMISE]), recording_rules([PROMISE])])
    assert "HEADRACE_NAMESPACE" in chart_files()["files/rules.yaml"]


def test_a_page_inhibits_only_tickets_of_its_own_system() -> None:
    configuration = alertmanager_configuration(AlertsSpec())

    (rule,) = configuration["inhibit_rules"]
    assert rule["equal"] == configuration["route"]["group_by"]
    assert {"namespace", "job"} < set(rule["equal"])


@pytest.mark.parametrize(
    ("expression", "becomes"),
    [
        ("sum by (a) (rate(nv_a_total[5m]))", 'sum by (a) (rate(nv_a_total{job="a"}[5m]))'),
        ('headrace:a:b{x="headrace_c"} < 1', 'headrace:a:b{job="a",x="headrace_c"} < 1'),
        ('label_replace(up, "headrace_a", "$1")', 'label_replace(up{job="a"}, "headrace_a", "$1")'),
    ],
)
def test_only_metrics_are_restricted(expression: str, becomes: str) -> None:
    assert restricted(expression, matchers_of({"job": "a"})) == becomes
    assert restricted(expression, "") == expression


def test_values_of_labels_are_quoted() -> None:
    assert matchers_of({"job": 'a"b'}) == r'job="a\"b"'
