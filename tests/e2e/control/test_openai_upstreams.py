"""Servers of OpenAI's API elsewhere, in the status of the system and on its gateway."""

from typing import Any

import pytest

from tests.e2e.control.system import System
from tests.e2e.gateway.test_openai import CHAT, MESSAGES, MODEL, Stub, running_stub
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def endpoint(stub: Stub, **changes: Any) -> dict[str, Any]:
    url = f"http://127.0.0.1:{stub.port}"
    upstream = {"url": url, "protocol": "openai", "model": MODEL, "health_interval_s": 0.2}
    return {"name": "chat", "upstream": {**upstream, **changes}}


def test_an_upstream_of_openai_is_ready_while_it_passes_health_checks(system: System) -> None:
    stub = Stub(free_port())
    system.start(endpoint(stub))
    status = system.wait_for(lambda status: "no server passes" in str(status["endpoints"]))
    assert not status["ready"]

    with running_stub(str(stub.port), MODEL):
        system.wait_ready()
        url = f"{system.where().http_url}{CHAT}"
        assert system.call("POST", url, {"model": "chat", "messages": MESSAGES})[0] == 200
        assert len(stub.seen()) == 1, "a first request costs tokens"
    status = system.wait_for(lambda status: not status["ready"])

    assert f"upstream http://127.0.0.1:{stub.port}: no server" in status["endpoints"][0]["message"]
    events = [event["reason"] for event in system.get("/api/v1/events?kind=gateway")["events"]]
    upstream = [reason for reason in events if reason.startswith("Upstream")]
    assert sorted(upstream) == ["UpstreamFailed", "UpstreamFailed", "UpstreamRecovered"]


@pytest.mark.parametrize("protocol", ["openai", "http", "v1", "torchserve"])
def test_an_upstream_without_health_checks_is_ready(system: System, protocol: str) -> None:
    system.start(endpoint(Stub(free_port()), protocol=protocol, health_path=None))

    system.wait_ready()
