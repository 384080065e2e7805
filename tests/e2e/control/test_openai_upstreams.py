"""Servers of OpenAI's API elsewhere, in the status of the system and on its gateway."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
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


def ask(system: System, **headers: str) -> int:
    body = {"model": "chat", "messages": MESSAGES}
    return httpx.post(f"{system.where().http_url}{CHAT}", json=body, headers=headers).status_code


def test_an_upstream_gets_its_own_key_instead_of_the_callers(
    system: System, tmp_path: Path
) -> None:
    file = tmp_path / "upstream.key"
    file.touch(0o600)
    file.write_text("sk-first-secret\n")
    own = "hr_0123456789abcdef_0123456789abcdef0123456789abcdef"
    stub = Stub(free_port())
    with running_stub(str(stub.port), MODEL):
        system.start(endpoint(stub, api_key_file=str(file)))
        system.wait_ready()
        assert ask(system, Authorization=f"Bearer {own}", **{"x-api-key": own}) == 200
        assert ask(system) == 200
        file.write_text("sk-second-secret")
        deadline = time.monotonic() + 10
        while stub.seen()[-1]["headers"]["authorization"] != "Bearer sk-second-secret":
            assert time.monotonic() < deadline, "the changed key is not in force"
            assert ask(system) == 200
            time.sleep(0.1)
        seen = stub.seen()
        file.write_text("")
        system.wait_for(lambda _: "file is empty" in str(system.get("/api/v1/events")), 10)
        assert ask(system) == 200, "the key before stays in force"

    assert own not in json.dumps(seen)
    keys = {request["headers"]["authorization"] for request in seen}
    assert keys == {"Bearer sk-first-secret", "Bearer sk-second-secret"}
    (admin,) = system.home.rglob("admin.sock")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(admin))) as envoy:
        texts = [envoy.get(f"http://envoy/{page}").text for page in ("stats", "config_dump")]
    assert texts[-1] == "request to path /config_dump not allowed"
    texts += [json.dumps(system.get(f"/api/v1/{page}")) for page in ("status", "events", "spec")]
    processes = psutil.process_iter(["cmdline"])  # without those that end meanwhile
    texts += [" ".join(process.info["cmdline"] or ()) for process in processes]
    for path in (*system.home.rglob("*"), system.log):
        if path.is_file() and not path.name.startswith("sds-"):
            texts.append(path.read_bytes().decode("latin-1"))
    assert [text[:80] for text in texts if "-secret" in text] == []
    (secret,) = system.home.rglob("sds-*")
    assert secret.stat().st_mode & 0o007 == 0


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        (None, 0o600, "No such file or directory"),
        ("\n", 0o600, "the file is empty"),
        ("sk-1\nsk-2\n", 0o600, "the file has 2 lines"),
        ("Bearer sk-1\n", 0o600, "the key has spaces"),
        ("sk-1\n", 0o644, "chmod 600"),
    ],
)
def test_a_file_without_one_key_is_refused(
    system: System, tmp_path: Path, content: str | None, mode: int, problem: str
) -> None:
    file = tmp_path / "upstream.key"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)
    system.start(endpoint(Stub(free_port()), api_key_file=str(file)))

    assert system.process is not None
    system.process.wait(20)
    text = system.log_text()
    assert "upstream.api_key_file" in text
    assert problem in text
    assert "sk-1" not in text


def output_tokens(system: System) -> int:
    return sum(use["output"] for use in system.get("/api/v1/usage")["usage"])


def test_tokens_of_a_removed_endpoint_and_of_its_last_stream_are_counted(system: System) -> None:
    stub = Stub(free_port())
    with running_stub(str(stub.port), MODEL), ThreadPoolExecutor() as callers:
        system.start(endpoint(stub))
        system.wait_ready()
        url = f"{system.where().http_url}{CHAT}"
        answer = {"stream": True, "stub": {"tokens": 20, "pause_s": 0.1}}
        body = {"model": "chat", "messages": MESSAGES} | answer
        stream = callers.submit(httpx.post, url, json=body, timeout=30)
        time.sleep(0.5)
        assert ask(system) == 200
        assert system.manage("DELETE", "/api/v1/endpoints/chat")[0] in {200, 202, 204}
        assert stream.result().text.endswith("data: [DONE]\n\n")
        deadline = time.monotonic() + 10
        while output_tokens(system) < 25:
            assert time.monotonic() < deadline, f"{output_tokens(system)} of 25 tokens are counted"
            time.sleep(0.1)

    assert output_tokens(system) == 25


def test_a_killed_gateway_says_how_many_tokens_may_be_missing(system: System) -> None:
    stub = Stub(free_port())
    with running_stub(str(stub.port), MODEL):
        system.start(endpoint(stub))
        system.wait_ready()
        assert ask(system) == 200
        deadline = time.monotonic() + 10
        while output_tokens(system) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        system.gateway().kill()
        system.wait_for(lambda _: "TokensLost" in str(system.get("/api/v1/events")), 30)
        system.wait_ready()
        assert ask(system) == 200
        deadline = time.monotonic() + 10
        while output_tokens(system) < 10:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    (event,) = [
        event for event in system.get("/api/v1/events")["events"] if event["reason"] == "TokensLost"
    ]
    assert 0.0 <= event["data"]["seconds"] <= 5.0
    assert output_tokens(system) == 10
