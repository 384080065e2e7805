"""Versions of a language model are judged by their tokens: a stub's, and those of SmolLM2."""

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.e2e.control.system import System
from tests.e2e.gateway.test_openai import running_stub
from tests.e2e.rollouts.rollout import Json, Rollout, canary, metric
from tests.gguf_models import gguf, smollm2, write_defaults
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

HALF: Json = {"weight": 50, "until": "verdict"}
METRICS: Json = {
    "errors": {"margin": 0.15},
    "rejections": None,
    "latency": None,
    "time_per_output_token": {"margin_ratio": 1.25},
    "output_tokens": {"margin": 0.3},
}
LAYERS, RANK = 30, 320
ADAPTED = {"attn_q": (576, 576), "ffn_gate": (576, 1536), "ffn_up": (576, 1536)}
"""Inputs and outputs of SmolLM2's matrices that the adapter is for."""


@contextlib.contextmanager
def chatting(system: System, callers: int, body: Json) -> Iterator[list[int]]:
    """Callers that stream one answer after the other; the statuses of all answers."""
    stop, statuses = threading.Event(), list[int]()

    def call() -> None:
        with httpx.Client(base_url=system.where().http_url, timeout=60) as client:
            while not stop.is_set():
                question = {"model": "chat", "stream": True, **body}
                statuses.append(client.post("/v1/chat/completions", json=question).status_code)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def upstream(port: int) -> Json:
    return {
        "url": f"http://127.0.0.1:{port}",
        "protocol": "openai",
        "model": "their",
        "health_path": None,
    }


CANARY: Json = canary(HALF, metrics=METRICS, min_samples=30)
AB: Json = {"strategy": "ab", "warmup_s": 0.5, "metrics": METRICS, "min_samples": 30}


@pytest.mark.parametrize(
    ("plan", "times_slower", "phase"),
    [
        (CANARY, 1.0, "promoted"),
        (CANARY, 1.6, "rolled_back"),
        pytest.param(AB, 1.0, "promoted", marks=pytest.mark.long),
        pytest.param(AB, 1.6, "rolled_back", marks=pytest.mark.long),
    ],
)
def test_a_server_whose_tokens_are_slow_is_rolled_back_and_an_equal_one_promoted(
    system: System, plan: Json, times_slower: float, phase: str
) -> None:
    ports = free_port(), free_port()
    with running_stub(str(ports[0]), "their"), running_stub(str(ports[1]), "their", times_slower):
        system.start({"name": "chat", "upstream": upstream(ports[0])})
        system.wait_ready()
        rollout = Rollout(system, "chat")
        started: Json = {"upstream": upstream(ports[1]), "version": "7"}
        started["rollout"] = plan
        with chatting(system, 16, {"stub": {"tokens": 8, "pause_s": 0.02}}) as statuses:
            code, answer = system.post("/api/v1/endpoints/chat/rollout", started)
            assert code == 201, answer
            over = rollout.wait_over(60)

    assert over["phase"] == phase, over
    per_token = metric(over, "time_per_output_token")
    assert per_token["effect"] == pytest.approx(times_slower, rel=0.3)
    assert 0.015 < per_token["baseline"] < 0.06
    assert "the texts of a language model are not compared" not in over["reason"]
    explanation = over["verdict"]["explanation"]
    assert "predictions: not judged, the texts of a language model" in explanation
    assert "output_tokens: 100 % of" in explanation
    assert set(statuses) == {200}


def adapted(model: Path, directory: Path, *, rank: int) -> Path:
    """The model, with a LoRA adapter that changes no answer: its second factor is 0."""
    directory.mkdir()
    shutil.copy(model, directory / "model.gguf")
    if not rank:
        return directory
    tensors = [
        (f"blk.{layer}.{name}.weight.lora_{side}", shape, 0, np.full(shape, value, "<f4").tobytes())
        for layer in range(LAYERS)
        for name, (inputs, outputs) in ADAPTED.items()
        for side, shape, value in (("a", (inputs, rank), 1.0), ("b", (rank, outputs), 0.0))
    ]
    values: Json = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 1.0,
    }
    (directory / "adapter.gguf").write_bytes(gguf(values, tensors))
    return directory


@pytest.mark.long
@pytest.mark.parametrize(("rank", "phase"), [(0, "promoted"), (RANK, "rolled_back")])
def test_an_adapter_that_slows_each_token_is_rolled_back_and_the_same_model_promoted(
    system: System, request: pytest.FixtureRequest, tmp_path: Path, rank: int, phase: str
) -> None:
    model = smollm2(request)
    settings: Json = {
        "llm": {"slots": 1, "context_tokens": 256},
        "batching": {"intra_op_threads": 1},
    }
    system.start({"name": "chat", "model": str(model), **settings})
    system.wait_ready(120)
    rollout = Rollout(system, "chat")
    plan = canary(HALF, metrics=METRICS, min_samples=30, max_duration_s=400)
    ask = [{"role": "user", "content": "Name the days of the week."}]
    body: Json = {"messages": ask, "max_tokens": 16, "temperature": 0}
    with chatting(system, 2, body) as statuses:
        rollout.start(adapted(model, tmp_path / "adapted", rank=rank), plan)
        over = rollout.wait_over(420)

    assert over["phase"] == phase, over
    assert metric(over, "output_tokens")["effect"] == 0.0
    if phase == "rolled_back":
        assert metric(over, "time_per_output_token")["outcome"] == "roll_back"
    assert set(statuses) == {200}


def test_a_version_that_differs_in_template_and_settings_is_rolled_back_by_its_lengths(
    system: System, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    turn = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    served = write_defaults(
        tmp_path / "served", f"{turn}<|im_start|>assistant\n", temperature=0, max_new_tokens=12
    )
    brief = write_defaults(
        tmp_path / "brief", "{{ messages[0].content }}", temperature=0, max_new_tokens=3
    )
    for folder in (served, brief):
        shutil.copy(smollm2(request), folder / "model.gguf")
    system.start(
        {
            "name": "chat",
            "model": str(served),
            "llm": {"slots": 1, "context_tokens": 256},
            "batching": {"intra_op_threads": 1},
        }
    )
    system.wait_ready(120)
    rollout = Rollout(system, "chat")
    metrics: Json = {**METRICS, "time_per_output_token": None}
    body: Json = {"messages": [{"role": "user", "content": "Name the days of the week."}]}
    with chatting(system, 2, body) as statuses:
        rollout.start(brief, canary(HALF, metrics=metrics, min_samples=30, max_duration_s=300))
        over = rollout.wait_over(320)

    assert over["phase"] == "rolled_back", over
    assert metric(over, "output_tokens")["outcome"] == "roll_back"
    assert set(statuses) == {200}
