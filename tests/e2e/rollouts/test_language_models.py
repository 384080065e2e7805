"""Versions of a language model are judged by their tokens: a stub's, and those of SmolLM2."""

import contextlib
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
def chatting(
    system: System, callers: int, body: Json, path: str = "/v1/chat/completions"
) -> Iterator[list[int]]:
    """Callers that send one request after the other; the statuses of all answers."""
    stop, statuses = threading.Event(), list[int]()

    def call() -> None:
        with httpx.Client(base_url=system.where().http_url, timeout=60) as client:
            while not stop.is_set():
                question = {"model": "chat", "stream": True, **body}
                statuses.append(client.post(path, json=question).status_code)

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
AB: Json = {
    "strategy": "ab",
    "warmup_s": 0.5,
    "metrics": {**METRICS, "reward": None},
    "min_samples": 30,
}
SHADOW: Json = {**AB, "strategy": "shadow", "promotes": True}


@pytest.mark.parametrize(
    ("plan", "times_slower", "phase"),
    [
        (CANARY, 1.0, "promoted"),
        (CANARY, 1.6, "rolled_back"),
        (SHADOW, 1.0, "promoted"),
        (SHADOW, 1.6, "rolled_back"),
        pytest.param({**SHADOW, "mirror_percent": 50}, 1.0, "promoted", marks=pytest.mark.long),
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


@dataclass
class Answer:
    """What one caller of an A/B test got: `version` is told by the number of its tokens."""

    user: str
    request_id: str
    version: str


def call_all(url: str, users: Sequence[str], **headers: str) -> list[Answer]:
    """One call of each user; every fifth fails."""
    answers = []
    with httpx.Client(base_url=url, timeout=60) as client:
        for i, user in enumerate(users):
            stub: Json = {"status": 500} if i % 5 == 4 else {"at": {"new": {"tokens": 9}}}
            body = {"model": "chat", "messages": [], "stub": stub}
            answer = client.post(
                "/v1/chat/completions", json=body, headers={"x-user-id": user, **headers}
            )
            usage = answer.json().get("usage") or {"completion_tokens": 0}
            version = {5: "1", 9: "7", 0: ""}[usage["completion_tokens"]]
            answers.append(Answer(user, answer.headers["x-request-id"], version))
    return answers


def test_feedback_is_joined_to_the_versions_of_a_language_model_through_a_restart(
    system: System,
) -> None:
    """Calls before a kill, without a control plane and after it all count, and count once."""
    ports = free_port(), free_port()
    sticky: Json = {"sticky": {"header": "x-user-id"}}
    old, new = upstream(ports[0]) | {"model": "old"}, upstream(ports[1]) | {"model": "new"}
    metrics: Json = {"errors": None, "rejections": None, "latency": None, "output_tokens": None}
    metrics |= {"time_per_output_token": None, "reward": {"margin": 0.0, "min_units": 10}}
    with running_stub(str(ports[0]), "old"), running_stub(str(ports[1]), "new"):
        system.start({"name": "chat", "upstream": old, **sticky})
        system.wait_ready()
        rollout = Rollout(system, "chat")
        plan: Json = {"strategy": "ab", "warmup_s": 0.5, "min_samples": 10000, "metrics": metrics}
        started = {"upstream": new, "version": "7", "rollout": plan}
        code, answer = system.post("/api/v1/endpoints/chat/rollout", started)
        assert code == 201, answer
        rollout.wait_for(lambda status: bool(status["verdict"]))
        url = system.where().http_url
        users = [f"user-{i}@example.org" for i in range(60)]

        answers = call_all(url, users[:30])
        # An id that callers use again counts for the first request.
        answers += call_all(url, ["first@example.org"], **{"x-request-id": "again"})
        call_all(url, users[:3], **{"x-request-id": "again"})
        time.sleep(1.5)
        system.kill_control()
        answers += call_all(url, users)
        system.start()
        system.wait_ready()
        answers += call_all(url, users[40:])
        earned = {"1": 0.25, "7": 0.75, "": 0.5}
        feedback = [
            {"request_id": answer.request_id, "reward": earned[answer.version]}
            for answer in answers
            if answer.version
        ]
        status, told = system.post("/api/v1/feedback", feedback)
        assert status == 200, told
        by_version = {
            version: {answer.user for answer in answers if answer.version == version}
            for version in ("1", "7")
        }
        expected = [len(by_version["1"]), len(by_version["7"])]
        judged = rollout.wait_for(
            lambda status: (
                bool(status["verdict"]) and list(metric(status, "reward")["samples"]) == expected
            ),
            30,
        )
        units = wait_requests(system, len(answers) + 3)

    reward = metric(judged, "reward")
    assert (reward["baseline"], reward["candidate"]) == (0.25, 0.75)
    assert not by_version["1"] & by_version["7"]
    assert min(expected) > 10
    # Each caller has one digest, and its name is nowhere in the database.
    assert units == len(users) + 1
    assert b"example.org" not in (system.home / "state.db").read_bytes()


def wait_requests(system: System, expected: int) -> int:
    """The callers that the database has, once it has counted `expected` requests; never more."""
    deadline = time.monotonic() + 20
    while True:
        with contextlib.closing(sqlite3.connect(system.home / "state.db", timeout=10)) as database:
            total, units = database.execute(
                "SELECT sum(requests), count(*) FROM rollout_units"
            ).fetchone()
        if total == expected:
            return int(units)
        assert time.monotonic() < deadline, (total, expected)
        time.sleep(0.2)


def test_a_shadow_that_fails_is_rolled_back_and_no_caller_sees_it(system: System) -> None:
    ports = free_port(), free_port()
    with running_stub(str(ports[0]), "their"):
        system.start({"name": "chat", "upstream": upstream(ports[0])})
        system.wait_ready()
        started: Json = {"upstream": upstream(ports[1]), "version": "7", "rollout": SHADOW}
        with chatting(system, 8, {"stub": {"tokens": 8, "pause_s": 0.01}}) as statuses:
            code, answer = system.post("/api/v1/endpoints/chat/rollout", started)
            assert code == 201, answer
            over = Rollout(system, "chat").wait_over(60)

    assert over["phase"] == "rolled_back", over
    errors = metric(over, "errors")
    assert (errors["baseline"], errors["outcome"]) == (0.0, "roll_back")
    assert set(statuses) == {200}


def encoder(folder: Path, *, turned: float) -> Path:
    """An encoder whose vectors have half the length of `turned` 0, and another direction."""
    folder.mkdir()
    (folder / "model.py").write_text(f"""\
import numpy as np


class Encoder:
    inputs = {{"text": ("BYTES", [-1])}}
    outputs = {{"embedding": ("FP32", [-1, 64])}}
    batched = True

    def infer(self, inputs):
        seeds = [len(text) for text in inputs["text"]]
        rows = [np.random.default_rng(seed).normal(size=(2, 64)) for seed in seeds]
        length = 0.5 if {turned} else 1.0
        vectors = [length * (row[0] + {turned} * row[1]) for row in rows]
        return {{"embedding": np.array(vectors, np.float32)}}
""")
    return folder


@pytest.mark.parametrize(
    ("turned", "limit", "phase"),
    [(0.05, 0.01, "promoted"), (0.5, 0.01, "rolled_back"), (0.05, None, "rolled_back")],
)
def test_a_shadow_of_an_encoder_is_judged_by_the_direction_of_its_embeddings(
    system: System, tmp_path: Path, turned: float, limit: float | None, phase: str
) -> None:
    one, two = encoder(tmp_path / "one", turned=0.0), encoder(tmp_path / "two", turned=turned)
    system.start({"name": "chat", "model": str(one), "allow_code": True})
    system.wait_ready()
    metrics = {"latency": None, "disagreement": {"max_cosine_distance": limit, "max_ratio": 0.2}}
    plan = {**SHADOW, "metrics": metrics}
    texts = {"stream": False, "input": ["a text", "a longer text"]}
    with chatting(system, 4, texts, "/v1/embeddings") as statuses:
        Rollout(system, "chat").start(two, plan)
        over = Rollout(system, "chat").wait_over(60)

    assert over["phase"] == phase, over
    share = metric(over, "disagreement")["candidate"]
    assert share == (0.0 if phase == "promoted" else 1.0)
    if limit is not None:
        cosine = 1 - 1 / (1 + turned**2) ** 0.5
        assert over["counted"]["mean_distance"] == pytest.approx(cosine, rel=0.5)
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
