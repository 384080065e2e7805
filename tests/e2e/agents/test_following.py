"""Two gateways on their own: both follow, one falls behind, the control plane comes and goes."""

import signal
import time
from pathlib import Path

import pytest

from headrace.gateway import GATEWAY_USER
from headrace.testing import models
from tests.e2e.agents.lab import Agent, Json, Lab
from tests.e2e.control.system import replicas

pytestmark = pytest.mark.e2e


def endpoint(path: Path, name: str, *, seed: int = 0, **more: object) -> Json:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(models.mlp(seed=seed))
    return {"name": name, "model": str(path), **more}


def up(lab: Lab, *endpoints: Json, max_behind_s: float = 2.0) -> tuple[Agent, Agent]:
    """A control plane and two gateways, all of which serve."""
    one, two = lab.agent("gw-1"), lab.agent("gw-2")
    one.start()
    two.start()
    lab.start(*endpoints, max_behind_s=max_behind_s)
    lab.system.wait_ready()
    for agent in (one, two):
        agent.wait_ready()
        lab.wait_standing(agent.name, "current")
    return one, two


def add(lab: Lab, *endpoints: Json) -> None:
    status, answer = lab.system.post("/api/v1/apply", {"version": 1, "endpoints": list(endpoints)})
    assert status == 200, answer


def test_both_serve_and_one_that_is_stopped_falls_behind(lab: Lab) -> None:
    m = endpoint(lab.root / "m.onnx", "m")
    one, two = up(lab, m)
    assert one.infer("m")[0] == two.infer("m")[0] == 200
    before = lab.gateways()["gw-2"]["version"]

    two.signal(signal.SIGSTOP)
    add(lab, m, endpoint(lab.root / "n.onnx", "n", seed=1))
    behind = lab.wait_standing("gw-2", "behind")
    lab.system.wait_for(lambda status: all(e["ready"] for e in status["endpoints"]))

    assert one.infer("n")[0] == 200
    assert two.infer("m")[0] == 200, "its Envoy serves what it had"
    assert two.infer("n")[0] == 404
    assert behind["version"] == before
    assert behind["behind_s"] >= 2.0
    (event,) = lab.events("GatewayBehind")
    assert event["data"]["gateway"] == "gw-2"
    metrics = lab.system.call("GET", lab.system.where().metrics_url)[1]
    assert 'headrace_gateway_connected{gateway="gw-2"} 1' in metrics
    line = next(
        s
        for s in metrics.splitlines()
        if s.startswith('headrace_gateway_behind_seconds{gateway="gw-2"}')
    )
    assert float(line.split()[1]) >= 2.0

    two.signal(signal.SIGCONT)
    lab.wait_standing("gw-2", "current")
    assert two.infer("n")[0] == 200


def test_a_replica_is_kept_until_a_gateway_that_is_behind_had_its_time(lab: Lab) -> None:
    m = endpoint(lab.root / "m.onnx", "m")
    _, two = up(lab, m, max_behind_s=4.0)
    (old,) = replicas(lab.system.status(), "m")
    two.signal(signal.SIGSTOP)

    began = time.monotonic()
    add(lab, endpoint(lab.root / "new" / "m.onnx", "m", seed=3))
    while time.monotonic() < began + 3.0:
        found = replicas(lab.system.status(), "m")
        assert any(one["name"] == old["name"] and one["state"] == "ready" for one in found)
        assert two.infer("m")[0] == 200
        time.sleep(0.1)
    lab.system.wait_for(
        lambda status: all(one["name"] != old["name"] for one in replicas(status, "m"))
    )
    assert time.monotonic() - began >= 4.0
    two.signal(signal.SIGCONT)
    lab.wait_standing("gw-2", "current")
    assert two.infer("m")[0] == 200


def test_gateways_serve_on_without_the_control_plane_after_a_restart_too(lab: Lab) -> None:
    m = endpoint(lab.root / "m.onnx", "m")
    one, two = up(lab, m)

    lab.system.kill_control()
    assert one.infer("m")[0] == two.infer("m")[0] == 200

    one.end()  # agent and Envoy
    one.start()
    two.envoy().kill()
    assert one.wait_ready()["version"]
    deadline = time.monotonic() + 15
    while _status(two, "m") != 200:
        assert time.monotonic() < deadline, two.log_text()
    assert one.infer("m")[0] == 200
    assert two.state()["control"].startswith("no answer")

    two.kill()
    assert two.infer("m")[0] == 200, "Envoy goes on without its agent"
    pid = two.envoy().pid
    two.start()
    two.wait_ready()
    assert two.envoy().pid == pid, "the next agent took it over"

    lab.start()
    for agent in (one, two):
        lab.wait_standing(agent.name, "current")
    add(lab, m, endpoint(lab.root / "n.onnx", "n", seed=1))
    lab.system.wait_ready()
    assert one.infer("n")[0] == two.infer("n")[0] == 200


def test_a_first_gateway_is_waited_for_without_failing(lab: Lab) -> None:
    lab.start(endpoint(lab.root / "m.onnx", "m"))
    status = lab.system.wait_for(
        lambda s: bool(replicas(s, "m")) and replicas(s, "m")[0]["state"] == "ready"
    )
    assert not status["gateway"]["ready"]
    assert "no gateway is connected" in status["gateway"]["reason"]

    agent = lab.agent("gw-1")
    agent.start()
    lab.system.wait_ready()

    assert agent.infer("m")[0] == 200


def test_a_local_gateway_and_one_elsewhere_serve_the_same(lab: Lab) -> None:
    lab.start(endpoint(lab.root / "m.onnx", "m"), gateway="local")
    lab.system.wait_ready()
    assert lab.system.infer("m")[0] == 200, "it needs no other"

    agent = lab.agent("gw-1")
    agent.start()
    lab.wait_standing("gw-1", "current")
    for _ in range(3):
        assert agent.infer("m")[0] == lab.system.infer("m")[0] == 200

    def counted(_status: Json) -> bool:
        metrics = lab.system.call("GET", lab.system.where().metrics_url)[1]
        lines = [
            s
            for s in metrics.splitlines()
            if s.startswith("headrace_endpoint_requests_total") and 'endpoint="m"' in s
        ]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines) >= 7

    lab.system.wait_for(counted, 10)


def test_what_an_agent_keeps_is_for_its_user_only(lab: Lab) -> None:
    one, _ = up(lab, endpoint(lab.root / "m.onnx", "m"))

    found = [path for path in one.directory.rglob("*") if path.is_file()]

    assert one.directory / "bundle.json" in found
    for path in (one.directory, *found):
        status = path.stat()
        others = 0o007 if status.st_gid == GATEWAY_USER else 0o077  # the group of root's Envoy
        assert status.st_mode & others == 0 or path.parent.stat().st_mode & others == 0, path


def _status(agent: Agent, name: str) -> int:
    try:
        return agent.infer(name)[0]
    except OSError:
        return 0
