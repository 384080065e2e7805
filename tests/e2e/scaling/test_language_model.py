"""Copies of a language model follow its requests: from none to two, and back."""

import threading
from typing import Any

import httpx
import pytest

from tests.e2e.control.system import System, replicas
from tests.gguf_models import smollm2

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ENDPOINT: dict[str, Any] = {
    "name": "chat",
    "llm": {"slots": 1, "context_tokens": 512},
    "batching": {"intra_op_threads": 1},
    "autoscale": {
        "min_replicas": 0,
        "max_replicas": 2,
        "idle_s": 4.0,
        "hold_s": 60.0,
        "stable_window_s": 4.0,
        "panic_window_s": 2.0,
        "scale_down_delay_s": 4.0,
    },
}


def ready(status: Any) -> int:
    return sum(replica["state"] == "ready" for replica in replicas(status, "chat"))


def ask(system: System, max_tokens: int) -> int:
    question = {"role": "user", "content": "Write a long story about the sea."}
    body = {"model": "chat", "messages": [question], "max_tokens": max_tokens}
    url = f"{system.where().http_url}/v1/chat/completions"
    return httpx.post(url, json=body, timeout=120).status_code


def test_a_request_wakes_a_language_model_and_several_callers_get_a_second_copy(
    system: System, request: pytest.FixtureRequest
) -> None:
    document = {
        "version": 1,
        "budget": {"cpus": 16},
        "endpoints": [{**ENDPOINT, "model": str(smollm2(request))}],
    }
    system.start(spec=document)
    system.wait_ready(120)
    system.wait_for(lambda status: not replicas(status, "chat"), 60)

    assert ask(system, 4) == 200
    assert ready(system.status()) == 1

    statuses: list[int] = []
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            statuses.append(ask(system, 64))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        system.wait_for(lambda status: ready(status) == 2, 90)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    system.wait_for(lambda status: not replicas(status, "chat"), 90)

    assert set(statuses) == {200}
    found = system.get("/api/v1/events?endpoint=chat")
    events = [event for event in found["events"] if event["kind"] == "scale"]
    assert [event["reason"] for event in events][:2] == ["Idle", "Woken"]
    assert events[-1]["reason"] == "Idle"
    assert any(" requests in flight, 0.7 per copy" in event["message"] for event in events)
