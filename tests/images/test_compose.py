"""The whole system in containers; Debian's real Prometheus stands for the official image."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.core.spec.parse import parse_spec
from headrace.testing import models
from tests.e2e.debian import NoToolError, find_tool
from tests.images.composed import COMPOSE, Project, composed
from tests.images.containers import Docker
from tests.ports import free_port

INPUT = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 32], "data": [0.5] * 32}]}
PROMETHEUS = """\
FROM {base}
USER root
COPY prometheus wget /bin/
RUN mkdir /prometheus && chown 65534:65534 /prometheus && chmod 0755 /bin/wget /bin/prometheus
USER 65534:65534
ENV HEADRACE_HEALTH_PORT=
ENTRYPOINT ["/bin/prometheus"]
HEALTHCHECK NONE
"""
WGET = """\
#!/bin/sh
exec python3 -IS /usr/local/lib/headrace/healthcheck.py 9090 /-/ready
"""
"""The binary alone; in the official image the check's `wget` is BusyBox's."""


@pytest.fixture(scope="module")
def project(
    docker: Docker, images: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("models")
    (folder / "model.onnx").write_bytes(models.mlp())
    with composed(docker, images["standalone"], folder) as project:
        yield project


@pytest.fixture(scope="module")
def started(project: Project) -> Project:
    project("up", "--wait", "--detach")
    return project


def test_the_file_is_understood_with_all_its_profiles(project: Project) -> None:
    said = json.loads(project("--profile", "*", "config", "--format", "json"))

    assert set(said["services"]) == {
        *("certificates", "headrace", "monitoring-files"),
        *("prometheus", "grafana", "redis", "kafka"),
    }
    for name, service in said["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service.get("read_only") or name == "kafka"
        for port in service.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1", name


def test_without_a_profile_only_headrace_runs(project: Project) -> None:
    services = project("config", "--services").split()

    assert sorted(services) == ["certificates", "headrace"]


def test_its_spec_is_a_spec() -> None:
    spec = parse_spec(
        (COMPOSE / "headrace.yaml").read_text(), base_dir=COMPOSE, exists=lambda _: True
    )

    assert [endpoint.name for endpoint in spec.endpoints] == ["model"]


def test_it_answers_from_outside(started: Project) -> None:
    port = started.environ["HEADRACE_HTTP_PORT"]

    answer = httpx.post(f"http://127.0.0.1:{port}/v2/models/model/infer", json=INPUT, timeout=10)

    assert answer.status_code == 200
    assert answer.json()["outputs"][0]["shape"] == [1, 2]


def test_the_management_api_leaves_its_container_encrypted(started: Project) -> None:
    port = started.environ["HEADRACE_ADMIN_PORT"]

    answer = httpx.get(f"https://localhost:{port}/api/v1/status", verify=False, timeout=10)  # noqa: S501  # whose it is, the next test knows

    assert answer.status_code == 401
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://localhost:{port}/api/v1/status", timeout=10)


def test_prometheus_reads_it_with_the_rules_that_it_exports(
    started: Project, docker: Docker, images: Mapping[str, str], tmp_path: Path
) -> None:
    try:
        binary = find_tool("prometheus")
    except NoToolError as error:
        pytest.skip(str(error))
    shutil.copyfile(binary, tmp_path / "prometheus")
    (tmp_path / "wget").write_text(WGET)
    (tmp_path / "Dockerfile").write_text(PROMETHEUS.format(base=images["replica"]))
    docker("build", "--quiet", "--network", "none", "--tag", "headrace-test/prometheus", tmp_path)
    port = str(free_port())
    environ = {
        **started.environ,
        "PROMETHEUS_IMAGE": "headrace-test/prometheus",
        "PROMETHEUS_PORT": port,
    }
    with_prometheus = replace(started, environ=environ)

    with_prometheus("--profile", "monitoring", "up", "--wait", "--detach", "prometheus")

    assert wait_for(port, 'up{job="headrace"}') == "1", with_prometheus.logs()
    groups = ask(port, "rules")["groups"]
    assert {Path(group["file"]).name for group in groups} == {
        "headrace-recording.yml",
        "headrace-alerts.yml",
    }
    assert [rule for group in groups for rule in group["rules"] if rule.get("lastError")] == []
    dashboards = with_prometheus(
        *("exec", "-T", "prometheus", "ls", "/var/lib/headrace-shared/dashboards")
    )
    assert "headrace-fleet.json" in dashboards.split()


def ask(port: str, path: str, **query: str) -> dict[str, Any]:
    answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/{path}", params=query, timeout=10)
    data: dict[str, Any] = answer.raise_for_status().json()["data"]
    return data


def wait_for(port: str, query: str) -> str:
    """The first value of a query that has one, once Prometheus has scraped."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if result := ask(port, "query", query=query)["result"]:
            return str(result[0]["value"][1])
        time.sleep(1)
    return "nothing"
