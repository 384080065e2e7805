"""What gateways elsewhere do with requests: hold them, limit them, encrypt them, count them."""

import ssl
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from headrace.testing import models
from tests.certificates import now
from tests.e2e.agents.lab import Agent, Json, Lab
from tests.e2e.control.system import System, replicas
from tests.e2e.gateway.test_openai import MODEL, running_stub
from tests.e2e.rollouts.callers import Callers, wait_until
from tests.e2e.rollouts.model_files import write_version
from tests.e2e.rollouts.rollout import (
    ONLY_ERRORS,
    Rollout,
    canary,
)
from tests.e2e.rollouts.rollout import endpoint as versioned
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def two_agents(lab: Lab) -> tuple[Agent, Agent]:
    one, two = lab.agent("gw-1"), lab.agent("gw-2")
    one.start()
    two.start()
    return one, two


def wait_current(lab: Lab, *agents: Agent) -> None:
    lab.system.wait_ready()
    for agent in agents:
        agent.wait_ready()
        lab.wait_standing(agent.name, "current")


def mlp(lab: Lab, **more: object) -> Json:
    path = lab.root / "m.onnx"
    path.write_bytes(models.mlp())
    return {"name": "m", "model": str(path), **more}


def metric_sum(lab: Lab, start: str) -> float:
    text: str = lab.system.call("GET", lab.system.where().metrics_url)[1]
    found = [line for line in text.splitlines() if line.startswith(start)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def history_sum(lab: Lab) -> float:
    """All requests to `m` that the history knows of."""
    found = lab.system.get("/api/v1/history?endpoint=m&since_s=300&points=300")
    rates = [point["requests_per_s"] or 0.0 for point in found["points"]]
    total: float = sum(rates) * found["step_s"]
    return total


def test_a_canary_reaches_its_verdict_with_the_sum_of_two_gateways(
    lab: Lab, tmp_path: Path
) -> None:
    first = write_version(tmp_path / "first" / "model.py")
    second = write_version(tmp_path / "second" / "model.py", fails_below=0.1)
    one, two = two_agents(lab)
    lab.start(versioned(first))
    wait_current(lab, one, two)
    rollout = Rollout(lab.system)
    callers = [Callers(agent.address, "m", rate=100) for agent in (one, two)]

    with callers[0].flowing(), callers[1].flowing():
        steps = {"weight": 50, "until": "verdict"}
        rollout.start(second, canary(steps, metrics={**ONLY_ERRORS, "errors": {"margin": 0.02}}))
        over = rollout.wait_over()

    assert over["phase"] == "rolled_back", over
    (errors,) = [one for one in over["verdict"]["metrics"] if one["metric"] == "errors"]
    answered = [len(found.answered_by("2")) + len(found.failed) for found in callers]
    assert all(answered), "each gateway has sent requests to the new version"
    # More than either alone has sent there: the evidence is of both.
    assert errors["samples"][1] > max(answered) / 2 + 20
    assert errors["samples"][1] <= sum(answered)
    sent = sum(len(found.calls) for found in callers)
    time.sleep(2.5)  # the last ones are reported within a second, and looked at within another
    assert history_sum(lab) == pytest.approx(sent, abs=2), "each request counts once"


@pytest.mark.long
def test_each_request_counts_once_whoever_restarts(lab: Lab) -> None:
    one, two = two_agents(lab)
    lab.start(mlp(lab))
    wait_current(lab, one, two)
    start = 'headrace_endpoint_requests_total{endpoint="m"'

    def send(count: int) -> None:
        for agent in (one, two):
            assert [agent.infer("m")[0] for _ in range(count)] == [200] * count

    send(5)
    wait_until(lambda: metric_sum(lab, start) == 10, 10)
    one.end()
    one.start()
    one.wait_ready()
    send(3)
    wait_until(lambda: metric_sum(lab, start) == 16, 15)
    time.sleep(6)  # what was counted is kept
    lab.system.kill_control()
    send(2)
    lab.start()
    wait_current(lab, one, two)
    send(1)
    wait_until(lambda: metric_sum(lab, start) >= 22, 15)
    time.sleep(1.5)
    assert metric_sum(lab, start) == 22


def test_tokens_of_both_gateways_are_in_the_ledger_once(lab: Lab) -> None:
    port = free_port()
    upstream = {"url": f"http://127.0.0.1:{port}", "protocol": "openai", "model": MODEL}
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hello!"}]}

    def chat(agent: Agent) -> int:
        url = f"http://{agent.address}/v1/chat/completions"
        status, answer = System.call("POST", url, body)
        assert status == 200, answer
        total: int = answer["usage"]["total_tokens"]
        return total

    def used() -> int:
        rows = lab.system.get("/api/v1/usage")["usage"]
        return sum(row["input"] + row["output"] for row in rows)

    with running_stub(str(port), MODEL):
        lab.start({"name": "chat", "upstream": {**upstream, "health_path": None}})
        one, two = two_agents(lab)
        wait_current(lab, one, two)
        total = sum(chat(agent) for agent in (one, two) for _ in range(5))
        lab.system.wait_for(lambda _: used() == total)
        lab.system.kill_control()
        total += chat(one) + chat(two)
        lab.start()
        wait_current(lab, one, two)
        total += chat(one)
        lab.system.wait_for(lambda _: used() == total)
        total += chat(two)
        two.end()  # its last report follows its last answer

        assert used() == total
        # Since this control plane started.
        assert metric_sum(lab, 'headrace_tokens_total{endpoint="chat"') > 0


def test_a_request_waits_at_its_gateway_for_the_first_replica(lab: Lab) -> None:
    quick = {"min_replicas": 0, "max_replicas": 1, "idle_s": 2.0, "stable_window_s": 2.0}
    quick |= {"panic_window_s": 1.0, "scale_down_delay_s": 2.0}
    one, two = two_agents(lab)
    lab.start(mlp(lab, autoscale=quick))
    wait_current(lab, one, two)
    lab.system.wait_for(lambda status: not replicas(status, "m"), 40.0)
    wait_current(lab, one, two)

    began = time.monotonic()
    status, answer = two.infer("m")

    assert status == 200, answer
    assert time.monotonic() - began > 0.2, "it waited"
    assert one.infer("m")[0] == 200


def test_a_held_request_is_refused_in_time_while_the_control_plane_is_away(lab: Lab) -> None:
    quick = {"min_replicas": 0, "max_replicas": 1, "idle_s": 2.0, "stable_window_s": 2.0}
    quick |= {"panic_window_s": 1.0, "scale_down_delay_s": 2.0, "hold_s": 2.0}
    (agent,) = (lab.agent("gw-1"),)
    agent.start()
    other = {**mlp(lab), "name": "other"}
    lab.start(mlp(lab, autoscale=quick), other)
    wait_current(lab, agent)
    lab.system.wait_for(lambda status: not replicas(status, "m"), 40.0)
    wait_current(lab, agent)
    lab.system.kill_control()

    answers: list[tuple[int, Any]] = []
    waiting = threading.Thread(target=lambda: answers.append(agent.infer("m")))
    waiting.start()
    assert agent.infer("other")[0] == 200, "others do not wait"
    waiting.join(10)

    ((status, answer),) = answers
    assert status == 503
    assert "not ready 2 s after the request arrived" in answer["error"]
    status, answer = agent_get(agent, "/v2/models/stats")
    assert status == 503
    assert "only the control plane can answer this" in answer["error"]


def test_a_limit_that_only_the_service_counts_holds_over_both(lab: Lab) -> None:
    one, two = two_agents(lab)
    lab.start(mlp(lab, limits={"requests_per_day": 6}))
    wait_current(lab, one, two)
    wait_until(lambda: "counting limits" in lab.system.log_text(), 20)
    time.sleep(0.5)

    statuses = [one.infer("m")[0] for _ in range(4)] + [two.infer("m")[0] for _ in range(4)]

    assert statuses == [200] * 6 + [429] * 2
    lab.system.kill_control()
    assert one.infer("m")[0] == two.infer("m")[0] == 200, "nobody counts, and nobody is refused"


def test_callers_are_shown_the_certificate_of_the_control_planes_files(lab: Lab) -> None:
    files = lab.authority.server("callers", "localhost", "127.0.0.1")
    one, two = two_agents(lab)
    tls = {"certificate_file": str(files.certificate), "key_file": str(files.key)}
    spec = {"version": 1, "gateway": {"tls": tls}, "endpoints": [mlp(lab)]}
    lab.start(spec=spec)
    wait_current(lab, one, two)
    context = ssl.create_default_context(cafile=str(lab.authority.ca))

    def shown(agent: Agent) -> str:
        with urllib.request.urlopen(  # loopback
            f"https://{agent.address}/v2/health/ready", context=context
        ) as answer:
            assert answer.status == 200
        return ssl.get_server_certificate(("127.0.0.1", agent.ports[0]))

    before = shown(one)
    assert before == shown(two)
    assert before.split() == files.certificate.read_text().split()
    files.replace_by(lab.authority.server("renewed", "localhost", "127.0.0.1", at=now()))
    wait_until(lambda: shown(one) != before and shown(one) == shown(two), 20)
    for agent in (one, two):
        (kept,) = agent.directory.rglob("sds-gateway.json")
        # Its group is Envoy's alone, where root runs the agent.
        assert kept.stat().st_mode & 0o007 == 0


def agent_get(agent: Agent, path: str) -> tuple[int, Any]:
    return System.call("GET", f"http://{agent.address}{path}")
