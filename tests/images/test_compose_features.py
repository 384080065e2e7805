"""Features from Redis, in containers; Debian's real Redis stands for the official image."""

import json
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import httpx
import pytest

from tests.images.composed import Project, composed
from tests.images.containers import Docker

REDIS = """\
FROM {base}
USER root
RUN apt-get -qq update && apt-get -qq install --yes --no-install-recommends redis-server
RUN mkdir /data && chown 999:1000 /data
WORKDIR /data
USER 999:1000
ENTRYPOINT []
HEALTHCHECK NONE
"""
DEFINITIONS = {
    "entities": [{"name": "customer", "join_key": "customer_id", "datatype": "INT64"}],
    "feature_views": [
        {
            "name": "stats",
            "entities": ["customer"],
            "source": {"path": "customers.parquet"},
            "features": [
                {"name": "age", "datatype": "INT64", "default": -1},
                {"name": "spend", "datatype": "FP32", "default": 0.0},
            ],
        }
    ],
    "feature_services": [{"name": "fraud", "features": ["stats"]}],
}
STORE = "redis://redis:6379/0"
SPEC = {
    "version": 1,
    "online_stores": [{"name": "redis", "url": STORE}],
    "endpoints": [
        {
            "name": "fraud",
            "model": "./models/risk",
            "access": "public",
            "allow_code": True,
            "network": True,
            "features": {
                "service": "fraud",
                "online_store": "redis",
                "inputs": {"x": ["age", "spend", "amount"]},
                "timeout_s": 2.0,
                "show_status": True,
            },
        }
    ],
}
RISK = """
class Risk:
    inputs = {"x": ("FP32", [-1, 3])}
    outputs = {"risk": ("FP32", [-1])}
    batched = True

    def infer(self, inputs):
        age, spend, amount = inputs["x"].T
        return {"risk": amount / (spend + age)}
"""
ASKED = {
    "inputs": [
        {"name": "customer_id", "datatype": "INT64", "shape": [2], "data": [17, 99]},
        {"name": "amount", "datatype": "FP32", "shape": [2], "data": [107.0, 3.0]},
    ]
}
WITHIN_S = 30.0


@pytest.fixture(scope="module")
def project(
    docker: Docker, images: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    at = tmp_path_factory.mktemp("redis")
    (at / "Dockerfile").write_text(REDIS.format(base=images["replica"]))
    redis = "headrace-test/redis"
    docker("build", "--quiet", "--network", "host", "--tag", redis, at, within_s=300)
    folder = tmp_path_factory.mktemp("features")
    (folder / "risk").mkdir()
    (folder / "risk" / "model.py").write_text(RISK)
    (folder / "features.yaml").write_text(json.dumps(DEFINITIONS))
    spec = at / "headrace.yaml"
    spec.write_text(json.dumps(SPEC))
    at.chmod(0o755)
    told = {"REDIS_IMAGE": redis, "HEADRACE_SPEC": str(spec)}
    with composed(docker, images["standalone"], folder, **told) as project:
        yield project


def test_what_is_pushed_to_redis_is_what_a_request_is_answered_with(project: Project) -> None:
    project("run", "--rm", "headrace", *apply("/etc/headrace/models/features.yaml"))
    project("--profile", "redis", "up", "--wait", "--detach", "headrace", "redis")

    push(project, age=33, spend=20.5)

    assert outputs(project) == {
        "risk": [2.0, -3.0],
        "stats__status": ["PRESENT", "MISSING"],
    }
    assert project("exec", "-T", "redis", "redis-cli", "dbsize").strip() == "1"


def test_a_redis_that_is_gone_is_told_and_what_it_kept_is_there_again(project: Project) -> None:
    project("--profile", "redis", "stop", "redis")
    refused = ask(project)
    project("--profile", "redis", "start", "redis")

    assert refused.status_code == 503
    assert "feature" in refused.json()["error"]
    until = time.monotonic() + WITHIN_S
    while ask(project).status_code != 200:
        assert time.monotonic() < until, project.logs()
        time.sleep(0.2)
    assert outputs(project)["risk"] == [2.0, -3.0]


def apply(path: str) -> tuple[str, ...]:
    return ("features", "apply", path)


def push(project: Project, **features: float) -> None:
    row = {"customer_id": 17, "event_timestamp": datetime.now(UTC).isoformat(), **features}
    command = ("headrace", "features", "push", "stats", "-", "--online-store", STORE)
    project("exec", "-T", "headrace", *command, given=json.dumps(row) + "\n")


def ask(project: Project) -> httpx.Response:
    port = project.environ["HEADRACE_HTTP_PORT"]
    return httpx.post(f"http://127.0.0.1:{port}/v2/models/fraud/infer", json=ASKED, timeout=10)


def outputs(project: Project) -> dict[str, object]:
    answer = ask(project)
    assert answer.status_code == 200, answer.text + project.logs()
    return {one["name"]: one["data"] for one in answer.json()["outputs"]}
