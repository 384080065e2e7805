"""A language model in a confined replica, behind the gateway: its restart, and its refusal."""

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.control.system import System, replicas
from tests.gguf_models import smollm2
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ASKED = "What is the capital of France? Answer in one sentence."
CHAT = {"messages": [{"role": "user", "content": ASKED}], "max_tokens": 24, "temperature": 0}
CALLERS, SHORT = 16, 1000
SETTINGS = {"llm": {"slots": 2, "context_tokens": 512}, "batching": {"intra_op_threads": 1}}


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Path:
    return smollm2(request)


def answer(system: System) -> str:
    body = CHAT | {"model": "chat"}
    url = f"{system.where().http_url}/v1/chat/completions"
    response = httpx.post(url, json=body, timeout=60)
    assert response.status_code == 200, response.text
    content: str = response.json()["choices"][0]["message"]["content"]
    return content


def advice(status: dict[str, Any]) -> str:
    return str(status["endpoints"][0]["revisions"][0].get("advice", ""))


def test_a_confined_replica_serves_and_is_restarted(system: System, model: Path) -> None:
    system.start({"name": "chat", "model": str(model), **SETTINGS})
    status = system.wait_ready(120)

    (replica,) = replicas(status, "chat")
    assert status["endpoints"][0].get("note", "") == ""
    assert "Paris" in answer(system)
    asked = {"model": "chat", "input": "cat"}
    refused = httpx.post(f"{system.where().http_url}/v1/embeddings", json=asked, timeout=60)
    assert refused.status_code == 501
    assert "`llm.pooling`" in refused.json()["error"]["message"]
    status = system.wait_for(lambda status: advice(status).startswith("memory"), 60)
    assert re.fullmatch(r"memory [^;]*; [0-9.]+ cores used per replica", advice(status))

    psutil.Process(replica["pid"]).kill()
    system.wait_for(
        lambda status: any(
            new["state"] == "ready" and new["pid"] != replica["pid"]
            for new in replicas(status, "chat")
        ),
        120,
    )
    assert "Paris" in answer(system)


def test_a_system_prompt_is_read_by_one_of_two_replicas(system: System, model: Path) -> None:
    system.start({"name": "chat", "model": str(model), "replicas": 2, **SETTINGS})
    system.wait_for(
        lambda status: sum(r["state"] == "ready" for r in replicas(status, "chat")) == 2, 120
    )
    url = f"{system.where().http_url}/v1/chat/completions"
    prompt = {"role": "system", "content": "Answer in one word. " * 40}
    cached = []
    for number in range(6):
        question = {"role": "user", "content": f"What is {number} and {number + 1}?"}
        body = {"model": "chat", "messages": [prompt, question], "max_tokens": 4}
        usage = httpx.post(url, json=body, timeout=60).json()["usage"]
        cached.append(usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] / 2)
    assert cached == [False, *[True] * 5]


def test_a_model_answers_for_an_upstream_that_is_down(system: System, model: Path) -> None:
    server = {"url": f"http://127.0.0.1:{free_port()}", "protocol": "openai", "health_path": None}
    far = {"name": "far", "upstream": server, "fallback": "chat"}
    system.start({"name": "chat", "model": str(model), **SETTINGS}, far)
    system.wait_for(lambda _: "Paris" in answer(system), 120)

    url = f"{system.where().http_url}/v1/chat/completions"
    for stream in (False, True):
        asked = CHAT | {"model": "far", "stream": stream}
        response = httpx.post(url, json=asked, timeout=60)
        assert (response.status_code, response.headers["x-headrace-endpoint"]) == (200, "chat")
        assert "Paris" in response.text


def test_an_input_beyond_the_context_is_refused_with_the_numbers_of_tokens(
    system: System, model: Path
) -> None:
    llm = SETTINGS["llm"] | {"pooling": "mean"}
    system.start({"name": "chat", "model": str(model), **SETTINGS, "llm": llm})
    system.wait_ready(120)
    text = "cat " * 2000  # beyond the context of both slots together
    chat = {"messages": [{"role": "user", "content": text}]}
    url = f"{system.where().http_url}/v1"

    for path, body in (
        ("embeddings", {"input": "cat " * 600}),
        ("embeddings", {"input": ["cat", text]}),
        ("completions", {"prompt": text}),
        ("chat/completions", chat),
        ("chat/completions", chat | {"stream": True}),
    ):
        response = httpx.post(f"{url}/{path}", json=body | {"model": "chat"}, timeout=60)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["code"] == "context_length_exceeded"
        assert re.search(r"has \d{3,4} tokens, and the model takes 512 at most", error["message"])
    tools = {"messages": [], "model": "chat", "tool_choice": 1}
    other = httpx.post(f"{url}/chat/completions", json=tools, timeout=60)
    assert "tokens, and the model" not in other.text


def test_a_model_without_enough_memory_says_what_it_needs(system: System, model: Path) -> None:
    settings: dict[str, Any] = {"llm": {"slots": 256, "context_tokens": 8192}}
    system.start({"name": "chat", "model": str(model), **settings, "memory_bytes": 1 << 30})

    status = system.wait_for(lambda status: "needs " in json.dumps(status["endpoints"]), 60)

    assert "48.4 GB" in json.dumps(status)
    assert "set a lower `llm.slots`" in json.dumps(status)


def test_no_short_stream_is_sent_into_a_closing_connection(system: System, model: Path) -> None:
    system.start({"name": "chat", "model": str(model), **SETTINGS})
    system.wait_ready(120)
    url = f"{system.where().http_url}/v1/chat/completions"
    body = CHAT | {"model": "chat", "max_tokens": 1, "stream": True}

    with httpx.Client(timeout=60) as http, ThreadPoolExecutor(CALLERS) as callers:
        statuses = Counter(
            response.status_code
            for response in callers.map(lambda _: http.post(url, json=body), range(SHORT))
        )

    assert statuses == {200: SHORT}
