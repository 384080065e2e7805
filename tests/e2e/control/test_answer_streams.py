"""Kills of each process while 200 answers are streamed: what callers get, and what is counted."""

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.certificates import Authority
from tests.e2e.agents.lab import Lab
from tests.e2e.control.system import System, replicas
from tests.e2e.gateway import openai_stub
from tests.e2e.gateway.test_openai import CHAT, MODEL
from tests.gguf_models import smollm2
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.long]
STREAMS = 200
TOKENS, PAUSE_S = 16, 0.4
TIMEOUT_S = 4.0
LATE_S = 3.0
"""Seconds beyond the timeout that a busy machine may take to tell 200 callers."""
REPORTED_EACH = 8
"""Events of a stream that is cut, of which the last ones may be missing in its count."""


@dataclass
class Outcome:
    """What one caller got."""

    status: int = 0
    events: int = 0
    is_done: bool = False
    """Whether the stream ended with `[DONE]`."""
    is_closed: bool = False
    """Whether the connection broke."""
    silence_s: float = 0.0
    """Longest time without a byte."""

    @property
    def kind(self) -> str:
        if self.is_done:
            return "done"
        return "closed" if self.is_closed else f"status {self.status}"


@dataclass
class Stub:
    """A server of OpenAI's API as a process of its own."""

    port: int
    process: "subprocess.Popen[bytes]"

    def endpoint(self) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.port}"
        upstream = {"url": url, "protocol": "openai", "model": MODEL, "health_path": None}
        return {"name": "chat", "upstream": upstream, "timeout_s": TIMEOUT_S}


@pytest.fixture
def stub() -> Iterator[Stub]:
    port = free_port()
    script = str(Path(openai_stub.__file__))
    process = subprocess.Popen([sys.executable, script, str(port), MODEL])
    try:
        yield Stub(port, process)
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


async def call(http: httpx.AsyncClient, body: dict[str, Any]) -> Outcome:
    outcome, at = Outcome(), time.monotonic()
    text = b""
    try:
        async with http.stream("POST", CHAT, json={"model": "chat", "stream": True, **body}) as got:
            outcome.status = got.status_code
            async for chunk in got.aiter_raw():
                outcome.silence_s = max(outcome.silence_s, time.monotonic() - at)
                at = time.monotonic()
                text += chunk
    except httpx.TransportError:
        outcome.is_closed = True
    outcome.silence_s = max(outcome.silence_s, time.monotonic() - at)
    outcome.events = text.count(b"data: {") if outcome.status == 200 else 0
    outcome.is_done = text.endswith(b"data: [DONE]\n\n")
    return outcome


def run(
    url: str, body: dict[str, Any], kill: Callable[[], None], after_s: float = 3.0
) -> list[Outcome]:
    """What the callers of 200 streams got, of which `kill` is called in the middle."""

    async def call_all() -> list[Outcome]:
        limits = httpx.Limits(max_connections=STREAMS)
        async with httpx.AsyncClient(base_url=url, timeout=60.0, limits=limits) as http:
            tasks = [asyncio.create_task(call(http, body)) for _ in range(STREAMS)]
            await asyncio.sleep(after_s)
            assert not any(task.done() for task in tasks), "the streams ended too early"
            await asyncio.to_thread(kill)
            return await asyncio.gather(*tasks)

    return asyncio.run(call_all())


def output_tokens(system: System) -> int:
    return sum(use["output"] for use in system.get("/api/v1/usage")["usage"])


def counted(system: System, at_least: int) -> int:
    deadline = time.monotonic() + 15
    while (tokens := output_tokens(system)) < at_least and time.monotonic() < deadline:
        time.sleep(0.2)
    return tokens


def lost(system: System) -> list[dict[str, Any]]:
    events = system.get("/api/v1/events")["events"]
    return [event for event in events if event["reason"] == "TokensLost"]


ANSWER = {"stub": {"tokens": TOKENS, "pause_s": PAUSE_S}}


def started(system: System, stub: Stub) -> None:
    system.start(stub.endpoint())
    system.wait_ready()


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGSTOP])
def test_an_upstream_that_ends_or_hangs_closes_its_streams(
    system: System, stub: Stub, by: signal.Signals
) -> None:
    started(system, stub)

    got = run(system.where().http_url, ANSWER, lambda: stub.process.send_signal(by))

    assert {outcome.kind for outcome in got} <= {"closed", "status 503", "status 504"}
    assert Counter(outcome.kind for outcome in got)["closed"] > STREAMS / 2
    assert max(outcome.silence_s for outcome in got) < TIMEOUT_S + LATE_S
    most = sum(outcome.events for outcome in got)
    least = sum(max(outcome.events - REPORTED_EACH + 1, 0) for outcome in got)
    assert least <= counted(system, least) <= most
    assert lost(system) == []


def test_a_killed_gateway_closes_its_streams_and_reports_its_loss(
    system: System, stub: Stub
) -> None:
    started(system, stub)
    url = f"{system.where().http_url}{CHAT}"
    body = {"model": "chat", "stub": {"tokens": 5}}
    assert httpx.post(url, json=body).status_code == 200
    assert counted(system, 5) == 5

    got = run(system.where().http_url, ANSWER, system.gateway().kill)

    assert Counter(outcome.kind for outcome in got) == {"closed": STREAMS}
    assert max(outcome.silence_s for outcome in got) < TIMEOUT_S + LATE_S
    system.wait_for(lambda _: len(lost(system)) == 1, 30)
    assert "answers that were under way" in lost(system)[0]["message"]
    assert output_tokens(system) == 5
    system.wait_ready()
    assert httpx.post(url, json=body).status_code == 200
    assert counted(system, 10) == 10


def test_a_killed_control_plane_stops_no_stream_and_loses_no_token(
    system: System, stub: Stub
) -> None:
    started(system, stub)

    got = run(system.where().http_url, ANSWER, system.kill_control)

    assert Counter(outcome.kind for outcome in got) == {"done": STREAMS}
    assert max(outcome.silence_s for outcome in got) < TIMEOUT_S
    system.start(stub.endpoint())
    system.wait_ready()
    assert counted(system, STREAMS * TOKENS) == STREAMS * TOKENS
    assert lost(system) == []


def test_a_killed_agent_stops_no_stream(system: System, stub: Stub) -> None:
    """The gateway's Envoy goes on; tokens of gateways on other hosts are not reported."""
    root = system.home.parent
    lab = Lab(system=system, authority=Authority(root / "pki"), root=root)
    agent = lab.agent("gw-1")
    try:
        agent.start()
        lab.start(stub.endpoint())
        system.wait_ready()
        agent.wait_ready()
        lab.wait_standing(agent.name, "current")

        got = run(f"http://{agent.address}", ANSWER, agent.kill)
        assert Counter(outcome.kind for outcome in got) == {"done": STREAMS}
        assert max(outcome.silence_s for outcome in got) < TIMEOUT_S

        got = run(f"http://{agent.address}", ANSWER, agent.envoy().kill)
        assert Counter(outcome.kind for outcome in got) == {"closed": STREAMS}
        assert max(outcome.silence_s for outcome in got) < TIMEOUT_S
    finally:
        agent.close()


def test_a_killed_replica_answers_or_closes_its_streams_in_time(
    system: System, request: pytest.FixtureRequest
) -> None:
    """Four of 200 streams are generated at a time, the others wait in llama.cpp."""
    model = smollm2(request)
    llm = {"slots": 4, "context_tokens": 1024}
    batching = {"intra_op_threads": 1}
    spec = {"name": "chat", "model": str(model), "llm": llm, "batching": batching}
    system.start({**spec, "timeout_s": 15.0})
    status = system.wait_ready(120)
    (replica,) = replicas(status, "chat")
    messages = [{"role": "user", "content": "Count from one to one thousand."}]

    got = run(
        system.where().http_url,
        {"messages": messages, "max_tokens": 900, "temperature": 0, "ignore_eos": True},
        psutil.Process(replica["pid"]).kill,
        5.0,
    )

    kinds = Counter(outcome.kind for outcome in got)
    assert kinds.keys() <= {"closed", "status 502", "status 503", "status 504"}
    assert kinds["closed"] >= 1
    assert max(outcome.silence_s for outcome in got) < 15.0 + LATE_S
    system.wait_ready(120)
    url = f"{system.where().http_url}{CHAT}"
    after = httpx.post(url, json={"model": "chat", "messages": messages, "max_tokens": 4})
    assert after.status_code == 200
