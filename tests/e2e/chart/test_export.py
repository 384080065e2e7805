"""`headrace export helm` of a spec whose models are in a registry: the chart renders as it is."""

import json
from pathlib import Path
from typing import Any, Final

import pytest
from ruamel.yaml import YAML

from headrace.cli import main
from headrace.registry import Registry
from tests.kube import REGISTRY, Object, complaints, helm, needs, rendered
from tests.small_networks import perceptron, save

pytestmark = [pytest.mark.e2e, pytest.mark.kube, pytest.mark.slow, needs("helm")]

SPEC: Final = """
version: 1
endpoints:
  - name: scores
    versions: [{model: "fraud:1", weight: 90, replicas: 2}, {model: "fraud:2", weight: 10}]
    access: public
    autoscale: {min_replicas: 1, max_replicas: 6, target_in_flight: 8}
    slo: {latency_s: 0.2}
kubernetes:
  autoscaler: %s
  prometheus_url: http://prometheus:9090
  resources: {cpu: "2", memory: 2Gi}
jobs:
  - name: nightly
    model: fraud:2
    input: s3://data/*.parquet
    output: /data/{run_id}
    schedule: {cron: "0 6 * * *", timezone: Europe/Paris}
streams:
  - name: payments
    model: fraud:1
    source: {broker: "kafka://kafka:9092", topics: [in]}
    sink: {topic: out}
    workers: {min: 1, max: 4}
"""
ARGUMENTS: Final = ("--artifacts", "s3://models/prod", "--mount", "claim:data=/data")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose registry has two versions of a model."""
    home = tmp_path / "home"
    for hidden in (4, 8):
        model = save(perceptron(hidden=hidden), tmp_path / f"model{hidden}.onnx")
        assert main(["models", "push", "fraud", str(model), "--home", str(home)]) == 0
    return home


def export(home: Path, autoscaler: str, *more: str) -> Path:
    """The folder of an exported chart."""
    spec, chart = home.parent / "headrace.yaml", home.parent / "chart"
    spec.write_text(SPEC % autoscaler)
    status = main(
        ["export", "helm", str(spec), "-o", str(chart), "--home", str(home), *ARGUMENTS, *more]
    )
    assert status == 0
    return chart


def by_component(objects: list[Object], kind: str) -> dict[str, Object]:
    return {
        one["metadata"]["labels"]["app.kubernetes.io/component"]: one
        for one in objects
        if one["kind"] == kind
    }


def test_an_exported_chart_gives_the_control_plane_the_spec_and_runs_the_rest_apart(
    home: Path,
) -> None:
    chart = export(home, "headrace")

    objects = rendered({"agentTls": {"certManager": {"enabled": True}}}, chart=chart)
    linted, said, more = helm(
        "lint",
        "--strict",
        chart,
        "--set",
        f"image.registry={REGISTRY}",
        "--set",
        "agentTls.certManager.enabled=true",
    )

    assert complaints(objects) == []
    assert linted == 0, said + more
    (text,) = [
        one["data"]["headrace.yaml"]
        for one in objects
        if one["metadata"]["name"] == "headrace-spec"
    ]
    told = YAML(typ="safe").load(text)
    assert [endpoint["name"] for endpoint in told["endpoints"]] == ["scores"]
    assert not {"jobs", "streams"} & set(told)
    digests = {version.version: version.digest for version in Registry(home).list("fraud")}
    cron_job = by_component(objects, "CronJob")["job"]
    pod = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["initContainers"][0]["args"][0] == digests["2"]
    assert {"mountPath": "/data", "name": "mount-0"} in pod["containers"][0]["volumeMounts"]
    stream = by_component(objects, "Deployment")["stream"]["spec"]["template"]["spec"]
    assert stream["initContainers"][0]["args"][0] == digests["1"]
    scaler = by_component(objects, "ScaledObject")["stream"]
    assert scaler["spec"]["triggers"][0]["metadata"]["consumerGroup"] == "payments"


def test_a_worker_s_spec_is_one_that_the_command_reads(home: Path, tmp_path: Path) -> None:
    chart = export(home, "headrace")
    objects = rendered({"agentTls": {"certManager": {"enabled": True}}}, chart=chart)
    (text,) = [
        one["data"]["headrace.yaml"]
        for one in objects
        if one["kind"] == "ConfigMap" and "headrace.dev/stream" in one["metadata"]["labels"]
    ]
    path = tmp_path / "stream.yaml"
    path.write_text(text)

    assert main(["check", "-f", str(path)]) == 0


@pytest.mark.parametrize("autoscaler", ["headrace", "hpa", "keda"])
def test_an_exported_static_chart_has_the_versions_themselves(home: Path, autoscaler: str) -> None:
    lost = ("--allow-loss", "endpoints[].autoscale") if autoscaler == "headrace" else ()
    chart = export(home, autoscaler, "--mode", "static", *lost)

    objects = rendered({}, chart=chart)

    assert complaints(objects) == []
    deployments: list[dict[str, Any]] = [
        one
        for one in objects
        if one["kind"] == "Deployment" and "headrace.dev/version" in one["metadata"]["labels"]
    ]
    assert len(deployments) == 2
    digests = {version.version: version.digest for version in Registry(home).list("fraud")}
    for one in deployments:
        (fetcher,) = one["spec"]["template"]["spec"]["initContainers"]
        assert fetcher["args"][0] == digests[one["metadata"]["labels"]["headrace.dev/version"]]
        assert ("replicas" in one["spec"]) == (autoscaler == "headrace")
    settings = [
        json.loads(one["data"]["replica.json"])
        for one in objects
        if one["kind"] == "ConfigMap" and "replica.json" in one["data"]
    ]
    assert {one["model_version"] for one in settings} == {"1", "2"}
    scalers = {
        one["kind"]
        for one in objects
        if one["kind"] != "Deployment" and "scaleTargetRef" in one.get("spec", {})
    }
    stream = {"ScaledObject"}
    assert scalers == stream | ({"HorizontalPodAutoscaler"} if autoscaler == "hpa" else set())


def test_what_cannot_be_expressed_leaves_no_chart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, chart = tmp_path / "headrace.yaml", tmp_path / "chart"
    spec.write_text("version: 1\nendpoints: [{name: a, model: ./a.onnx}]\n")

    status = main(["export", "helm", str(spec), "-o", str(chart), "--home", str(tmp_path / "h")])

    assert status != 0
    assert "endpoints[0].model" in capsys.readouterr().err
    assert not chart.exists()


def test_without_a_spec_the_chart_is_written_as_it_is(tmp_path: Path) -> None:
    assert main(["export", "helm", "-o", str(tmp_path / "chart")]) == 0

    objects = rendered({"agentTls": {"certManager": {"enabled": True}}}, chart=tmp_path / "chart")
    assert complaints(objects) == []
