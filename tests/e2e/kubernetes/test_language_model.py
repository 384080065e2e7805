"""A GGUF model in pods: chats reach llama.cpp's port through the gateway."""

import json
from collections.abc import Callable

import httpx
import pytest

from tests.e2e.control.system import replicas
from tests.e2e.kubernetes.installation import Installation, until
from tests.gguf_models import smollm2

PATIENCE_S = 180.0
pytestmark = [pytest.mark.e2e, pytest.mark.kube_server, pytest.mark.slow]


def test_a_chat_is_answered_by_pods_and_goes_on_while_they_are_replaced(
    lab: Installation, request: pytest.FixtureRequest
) -> None:
    endpoint = {
        "name": "chat",
        "model": str(smollm2(request)),
        "llm": {"slots": 1, "context_tokens": 512},
        "batching": {"intra_op_threads": 1},
        "access": "public",
    }
    lab.start(endpoint)
    status = lab.system.wait_ready(PATIENCE_S)
    (replica,) = replicas(status, "chat")
    assert replica["address"].startswith("198.18.")
    url = f"{lab.system.where().http_url}/v1/chat/completions"
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "Who are you? Answer in one sentence."}],
        "temperature": 0,
        "max_tokens": 16,
    }

    answer = httpx.post(url, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]
    assert answer.json()["usage"]["completion_tokens"] > 2
    with httpx.stream("POST", url, json=body | {"stream": True}, timeout=60) as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert len([json.loads(line[6:]) for line in lines[:-1]]) > 2

    before = lab.pods()
    lab.apply({"version": 1, "endpoints": [endpoint | {"llm": {"slots": 2}}]})
    until(is_replaced(lab, before), PATIENCE_S)
    assert httpx.post(url, json=body, timeout=60).status_code == 200


def is_replaced(lab: Installation, before: list[str]) -> Callable[[], bool]:
    """Whether none of these pods is left, and another one is ready."""
    return lambda: (
        not set(lab.pods()) & set(before) and bool(lab.pods()) and lab.system.status()["ready"]
    )
