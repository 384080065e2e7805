"""What programs of others have to say about the chart: Prometheus about its rules, checkov."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from ruamel.yaml import YAML

from headrace.cli import main
from headrace.monitor.prometheus import ALERTING, RECORDING
from tests.e2e.alerts.rule_tests import write_rule_tests
from tests.e2e.chart.sample_values import CHOICES, KEDA, Values, a_version, merged
from tests.e2e.debian import NoToolError, find_tool, run_tool
from tests.kube import CHART, documents, helm, needs, rendered, run_program

pytestmark = [pytest.mark.e2e, pytest.mark.kube, pytest.mark.slow, needs("helm")]

SPEC: Final = """
version: 1
endpoints:
  - {name: fraud, model: "fraud:1", slo: {latency_s: 0.2, availability: 0.999}}
  - name: quick
    model: "quick:1"
    slo: {latency_s: 0.1, availability: 0.9, alert_window_ratio: 0.01}
"""
ON: Final[Values] = {
    "artifacts": {"url": "s3://models/prod", "existingSecret": "artifacts"},
    "agentTls": {"certManager": {"enabled": True}},
    "monitoring": {"enabled": True, "prometheusRule": {"enabled": True}},
}
ACCEPTED: Final[Mapping[str, str]] = {
    "CKV_K8S_8": "a stream's worker has no port; it ends when it cannot go on. A test is short",
    "CKV_K8S_9": "nobody sends requests to either",
    "CKV_K8S_11": "a CPU limit is throttling, which costs latency; who wants one sets it",
    "CKV_K8S_35": "state URL and credentials of a store come as their clients read them",
    "CKV_K8S_38": "the control plane speaks to the API server: that is its driver",
}
"""Checks that may fail, each with its reason; checkov knows no severities offline."""


def promtool(*arguments: str | Path) -> tuple[int, str]:
    try:
        find_tool("promtool")
    except NoToolError as error:
        pytest.skip(str(error))
    return run_tool("promtool", *arguments)


def rule_of(values: Values, *arguments: str, chart: Path = CHART) -> dict[str, Any]:
    objects = rendered(merged(ON, values), *arguments, chart=chart)
    (rule,) = [one for one in objects if one["kind"] == "PrometheusRule"]
    found: dict[str, Any] = rule["spec"]
    return found


def write(path: Path, document: object) -> Path:
    YAML(typ="safe", pure=True).dump(document, path)
    return path


def test_promtool_has_nothing_against_the_rules_that_hold_for_every_spec(tmp_path: Path) -> None:
    path = write(tmp_path / "rules.yaml", rule_of({}))

    status, said = promtool("check", "rules", "--lint-fatal", path)

    assert status == 0, said
    assert "rules found" in said


def test_rendered_alerts_of_a_spec_fire_and_end(
    tmp_path: Path,
) -> None:
    spec = tmp_path / "headrace.yaml"
    spec.write_text(SPEC)
    chart, exported = tmp_path / "chart", tmp_path / "prometheus"
    assert main(["export", "helm", str(spec), "-o", str(chart), "--artifacts", "s3://models"]) == 0
    assert main(["export", "prometheus", "-o", str(exported), "-f", str(spec)]) == 0
    groups = rule_of({}, chart=chart)["groups"]
    recording = {one["name"] for one in YAML(typ="safe").load(exported / RECORDING)["groups"]}
    # The tests name the two files that are exported for a Prometheus without an operator.
    rest = [one for one in groups if one["name"] not in recording]
    write(exported / RECORDING, {"groups": [one for one in groups if one["name"] in recording]})
    write(exported / ALERTING, {"groups": rest})

    checked, complaint = promtool("check", "rules", exported / RECORDING, exported / ALERTING)
    tests = write_rule_tests(exported, SPEC, {"namespace": "models", "job": "headrace"})
    status, said = promtool("test", "rules", *tests)

    assert rest
    assert len(tests) == 2
    assert checked == 0, complaint
    assert status == 0, said


def test_texts_of_alerts_keep_the_templates_of_prometheus() -> None:
    texts = json.dumps(rule_of({}))

    assert "{{ $labels." in texts
    assert '{{ \\"{{' not in texts


@needs("checkov")
def test_checkov_finds_nothing_but_what_is_accepted_with_a_reason(tmp_path: Path) -> None:
    values = merged(
        ON, *(CHOICES[kind][1] for kind in ("state", "apart", "ingress", "network", "images"))
    )
    static = {
        "workloads": {"mode": "static", "versions": [a_version(), a_version("b", autoscaling=KEDA)]}
    }
    for name, told in {"driver": values, "static": merged(values, static)}.items():
        status, output, said = helm(
            "template", "headrace", CHART, "--namespace", "models", "--values", "-",
            text=json.dumps(told),
        )  # fmt: skip
        assert status == 0, said
        assert documents(output)
        (tmp_path / f"{name}.yaml").write_text(output)

    _, output, said = run_program(
        "checkov", "-d", tmp_path, "--framework", "kubernetes", "--compact", "--quiet", "-o", "json"
    )

    report = json.loads(output)
    failed = {
        f"{one['check_id']} {one['check_name']}: {one['resource']}"
        for one in report["results"]["failed_checks"]
    }
    assert report["summary"]["passed"] > 500, said
    assert report["summary"]["parsing_errors"] == 0
    assert {one for one in failed if one.split()[0] not in ACCEPTED} == set()
    assert {one.split()[0] for one in failed} == set(ACCEPTED), "an accepted check fails no more"
