"""A replica of SmolLM2: OpenAI's API on its second socket, and the usual routes on the first."""

import json
import signal
import stat
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from headrace.core.settings import LlmSpec, Pooling
from tests.e2e.replicas import Replica, running, start, stop
from tests.gguf_models import LLAMA, Value, gguf, smollm2, write_defaults
from tests.ports import free_port

pytestmark = pytest.mark.e2e
ASKED = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
CHAT = {"messages": ASKED, "temperature": 0, "max_tokens": 24}
CANNOT_LOAD = 3
ONE_THREAD = {"intra_op_threads": 1}
"""Several threads wait for each other at each layer: on a busy machine they take much longer."""


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> Path:
    return smollm2(request)


@pytest.fixture(scope="module")
def replica(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    folder = tmp_path_factory.mktemp("llm")
    with running(folder, model, uds=str(folder / "http.sock"), **ONE_THREAD) as replica:
        yield replica


def openai(replica: Replica) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=f"{replica.settings.uds}.openai")
    return httpx.Client(transport=transport, base_url="http://replica/v1", timeout=60)


def chat(replica: Replica, **body: Any) -> dict[str, Any]:
    with openai(replica) as client:
        answer = client.post("/chat/completions", json=CHAT | body)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def text_of(chunks: list[dict[str, Any]]) -> str:
    parts = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
    return "".join(filter(None, parts))


def test_a_chat_is_answered(replica: Replica) -> None:
    answer = chat(replica)

    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["model"] == "m"
    assert answer["usage"]["prompt_tokens"] > 10


def test_a_stream_ends_with_its_usage(replica: Replica) -> None:
    body = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    with openai(replica) as client, client.stream("POST", "/chat/completions", json=body) as answer:
        chunks = events(answer)

    assert "Paris" in text_of(chunks)
    assert chunks[-1]["usage"]["completion_tokens"] == len(chunks) - 2  # the first has the role
    assert chunks[-1]["choices"] == []


def test_a_completion_continues_its_prompt(replica: Replica) -> None:
    body = {"prompt": "One, two, three,", "max_tokens": 4, "temperature": 0}
    with openai(replica) as client:
        answer = client.post("/completions", json=body).json()

    assert "four" in answer["choices"][0]["text"]


def test_an_answer_follows_a_json_schema(replica: Replica) -> None:
    properties = {"city": {"type": "string", "maxLength": 20}, "large": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": ["city", "large"]}
    form = {"type": "json_schema", "json_schema": {"name": "c", "schema": schema, "strict": True}}
    answer = chat(replica, response_format=form, max_tokens=64)

    document = json.loads(answer["choices"][0]["message"]["content"])
    assert document.keys() == {"city", "large"}
    assert isinstance(document["large"], bool)


def test_two_chats_at_once_answer_as_each_alone(replica: Replica) -> None:
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda _: chat(replica), range(2)))

    assert all("Paris" in answer["choices"][0]["message"]["content"] for answer in answers)


def test_its_load_is_reported(replica: Replica) -> None:
    def reported() -> dict[str, Any]:
        transport = httpx.HTTPTransport(uds=str(replica.settings.uds))
        with httpx.Client(transport=transport, base_url="http://replica") as client:
            document: dict[str, Any] = client.get("/internal/report").json()
            return document

    def wait(in_flight: int) -> dict[str, Any]:
        deadline = time.monotonic() + 30.0
        while (told := reported())["in_flight"] != in_flight:
            assert time.monotonic() < deadline, told
            time.sleep(0.05)
        return told

    before = wait(0)
    slots = LlmSpec().slots
    with ThreadPoolExecutor() as pool:
        long = {"max_tokens": 64, "ignore_eos": True}
        answers = [pool.submit(chat, replica, **long) for _ in range(slots + 2)]
        during = wait(slots + 2)
        for answer in answers:
            answer.result()
    after = wait(0)

    assert (during["queued"], during["max_concurrent_runs"]) == (2, slots)
    assert after["run_s"] > before["run_s"]


def test_a_replica_without_metrics_of_llama_cpp_serves_and_warns_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import xllamacpp\n"
        "class Server(xllamacpp.Server):\n"
        "    def handle_metrics(self):\n"
        "        return 'llamacpp:requests_processing many'\n"
        "xllamacpp.Server = Server\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    settings = {"uds": str(tmp_path / "http.sock"), "drain_timeout_s": 1.0, **ONE_THREAD}
    with running(tmp_path, model, **settings) as replica:
        time.sleep(1.5)  # three readings
        assert "Paris" in chat(replica)["choices"][0]["message"]["content"]
        assert stop(replica) == 0

    assert replica.log_text().count("autoscaling does not see") == 1


def test_embeddings_of_a_chat_model_are_refused_unless_a_pooling_is_set(
    replica: Replica, model: Path, tmp_path: Path
) -> None:
    with openai(replica) as client:
        refused = client.post("/embeddings", json={"input": "a"})
    assert refused.json()["error"]["type"] == "not_supported_error"

    spec = LlmSpec(slots=1, context_tokens=256, pooling=Pooling.MEAN)
    settings = {"uds": str(tmp_path / "http.sock"), "llm": spec, **ONE_THREAD}
    with running(tmp_path, model, **settings) as other, openai(other) as client:
        answer = client.post("/embeddings", json={"input": ["a cat", "a dog"]}).json()
        vectors = [item["embedding"] for item in answer["data"]]
        assert [len(vector) for vector in vectors] == [576, 576]
        assert sum(x * x for x in vectors[0]) == pytest.approx(1, abs=1e-3)
        assert "Paris" in chat(other)["choices"][0]["message"]["content"]


def test_a_lora_adapter_beside_the_model_is_applied(model: Path, tmp_path: Path) -> None:
    """One of rank 1, of noise: the answer makes no sense with it, and is the model's without."""
    noise = np.random.default_rng(0).normal(0, 0.5, (30, 2, 576)).astype("<f4")
    tensors = [
        (f"blk.{layer}.attn_q.weight.lora_{side}", shape, 0, noise[layer, i].tobytes())
        for layer in range(30)
        for i, (side, shape) in enumerate({"a": (576, 1), "b": (1, 576)}.items())
    ]
    keys: dict[str, Value] = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 1.0,
    }
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "noise.gguf").write_bytes(gguf(keys, tensors))
    (folder / "base.gguf").symlink_to(model)

    with running(tmp_path, folder, uds=str(tmp_path / "http.sock"), **ONE_THREAD) as replica:
        changed, plain = (
            chat(replica, **body)["choices"][0]["message"]["content"]
            for body in ({}, {"lora": [{"id": 0, "scale": 0.0}]})
        )

    assert "Paris" in plain
    assert "Paris" not in changed


def version(folder: Path, model: Path, template: str = "", **settings: Any) -> Path:
    """A directory with the model, and with the template and settings of requests of a version."""
    write_defaults(folder, template, **settings)
    (folder / "model.gguf").symlink_to(model)
    return folder


def texts(replica: Replica, **body: Any) -> set[str]:
    """The answers to one question with three seeds, of 8 tokens; as likely as the settings say."""
    question = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 8}
    with openai(replica) as client:
        answers = [
            client.post("/chat/completions", json=question | {"seed": seed} | body).json()
            for seed in range(3)
        ]
    return {answer["choices"][0]["message"]["content"] for answer in answers}


@pytest.fixture(scope="module")
def likeliest(replica: Replica) -> set[str]:
    """The only text of `texts` at a temperature of 0; without it, the seeds have several."""
    assert len(texts(replica)) > 1
    return texts(replica, temperature=0)


@pytest.mark.parametrize(
    ("settings", "own"),
    [
        ({"temperature": 0}, {"temperature": 1.5}),
        ({"do_sample": False, "temperature": 0.9}, {"temperature": 1.5}),
        ({"top_k": 1}, {"top_k": 0}),
        ({"top_p": 0.001}, {"top_p": 1}),
        ({"min_p": 1}, {"min_p": 0}),
    ],
)
def test_sampling_settings_of_a_version_are_the_defaults_of_requests(
    likeliest: set[str],
    model: Path,
    tmp_path: Path,
    settings: dict[str, Any],
    own: dict[str, Any],
) -> None:
    folder = version(tmp_path / "m", model, **settings)
    with running(tmp_path, folder, uds=str(tmp_path / "http.sock"), **ONE_THREAD) as other:
        by_default, by_request = texts(other), texts(other, **own)

    assert by_default == likeliest
    assert len(by_request) > 1


def test_a_version_limits_and_penalizes_tokens_unless_the_request_does(
    likeliest: set[str], model: Path, tmp_path: Path
) -> None:
    folder = version(tmp_path / "m", model, repetition_penalty=1.8, max_new_tokens=5)
    unset = {"max_tokens": None}
    with running(tmp_path, folder, uds=str(tmp_path / "http.sock"), **ONE_THREAD) as other:
        limited, longer = chat(other, **unset), chat(other, max_completion_tokens=7, **unset)
        penalized, plain = (
            texts(other, temperature=0),
            texts(other, temperature=0, repeat_penalty=1),
        )
        with openai(other) as client:
            body = {"prompt": "One, two, three,", "temperature": 0}
            completion = client.post("/completions", json=body).json()

    assert limited["choices"][0]["finish_reason"] == "length"
    assert limited["usage"]["completion_tokens"] == 5
    assert longer["usage"]["completion_tokens"] == 7
    assert completion["usage"]["completion_tokens"] == 5
    assert penalized != plain == likeliest


def test_the_template_of_a_version_replaces_that_of_the_model(
    replica: Replica, model: Path, tmp_path: Path
) -> None:
    template = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    folder = version(tmp_path / "m", model, template)
    with running(tmp_path, folder, uds=str(tmp_path / "http.sock"), **ONE_THREAD) as other:
        usage = chat(other)["usage"]

    assert 10 < usage["prompt_tokens"] < chat(replica)["usage"]["prompt_tokens"] - 10


def test_settings_of_a_version_win_over_those_in_the_model_file(
    model: Path, tmp_path: Path
) -> None:
    content = model.read_bytes()
    magic, form, tensors, keys = struct.unpack_from("<4sIQQ", content)
    added = gguf({"general.sampling.temp": 0.0, "a": "a" * 38})[24:]
    greedy = tmp_path / "greedy.gguf"
    header = struct.pack("<4sIQQ", magic, form, tensors, keys + 2)
    greedy.write_bytes(header + added + content[24:])
    folder = version(tmp_path / "m", greedy, temperature=1.5)
    sockets = [{"uds": str(tmp_path / name)} for name in ("a.sock", "b.sock")]
    with (
        running(tmp_path, greedy, **sockets[0], **ONE_THREAD) as alone,
        running(tmp_path, folder, **sockets[1], **ONE_THREAD) as changed,
    ):
        assert len(texts(alone)) == 1
        assert len(texts(changed)) > 1


def test_a_template_that_llama_cpp_refuses_is_named_by_the_replica(
    model: Path, tmp_path: Path
) -> None:
    folder = version(tmp_path / "m", model, "{{ messages | nosuch }}")
    replica = start(tmp_path, folder, uds=str(tmp_path / "http.sock"))
    try:
        assert replica.process.wait(30) == CANNOT_LOAD
    finally:
        stop(replica)

    *_, last = lines = replica.log_text().splitlines()
    assert "cannot serve this model or its chat template; the lines above say why" in last
    assert any("filter 'nosuch'" in line for line in lines)


def test_the_usual_routes_answer_on_the_first_address(replica: Replica) -> None:
    metadata = httpx.get(f"{replica.url}/v2/models/m").json()
    assert (metadata["name"], metadata["platform"]) == ("m", "gguf")
    assert metadata["inputs"] == metadata["outputs"] == []
    for path in ("/v2/health/live", "/v2/models/m/ready", "/v2/models/m/stats", "/metrics"):
        assert httpx.get(f"{replica.url}{path}").status_code == 200


@pytest.mark.parametrize(
    "inputs", [[], [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]]
)
def test_tensors_are_refused_with_the_path_to_call(
    replica: Replica, inputs: list[dict[str, Any]]
) -> None:
    answer = httpx.post(f"{replica.url}/v2/models/m/infer", json={"inputs": inputs})

    assert answer.status_code == 400
    assert "/v1/chat/completions" in answer.json()["error"]


def test_each_protocol_refuses_tensors(replica: Replica) -> None:
    for path in ("/v1/models/m:predict", "/invocations", "/endpoints/m/invocations"):
        answer = httpx.post(f"{replica.url}{path}", json={"instances": [1]})
        assert answer.status_code == 400
        assert "/v1/chat/completions" in answer.json()["error"]


def test_a_caller_that_leaves_stops_the_generation(replica: Replica) -> None:
    body = CHAT | {"stream": True, "max_tokens": 3500, "ignore_eos": True}
    with openai(replica) as client, client.stream("POST", "/chat/completions", json=body) as answer:
        next(line for line in answer.iter_lines() if "content" in line)

    transport = httpx.HTTPTransport(uds=f"{replica.settings.uds}.openai")
    with httpx.Client(transport=transport, timeout=20) as client:
        until = time.monotonic() + 20
        while "requests_processing 1" in (metrics := client.get("http://m/metrics").text):
            assert time.monotonic() < until, "the generation goes on"
            time.sleep(0.05)
    assert "llamacpp:requests_processing 0" in metrics


def test_the_second_socket_is_for_the_owner(replica: Replica) -> None:
    mode = Path(f"{replica.settings.uds}.openai").stat().st_mode

    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_a_stream_in_progress_ends_before_a_stopped_replica(model: Path, tmp_path: Path) -> None:
    body = CHAT | {"stream": True, "max_tokens": 60, "ignore_eos": True}
    with (
        running(tmp_path, model, uds=str(tmp_path / "http.sock"), **ONE_THREAD) as replica,
        openai(replica) as client,
        client.stream("POST", "/chat/completions", json=body) as answer,
    ):
        lines = answer.iter_lines()
        first = next(line for line in lines if "content" in line)
        replica.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]

        assert first
        assert rest[-1] == "data: [DONE]"
        assert (
            json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        )
        assert replica.process.wait(20) == 0


def test_a_stream_is_cut_at_the_end_of_the_drain(model: Path, tmp_path: Path) -> None:
    body = CHAT | {"stream": True, "max_tokens": 4000, "ignore_eos": True}
    settings = {"uds": str(tmp_path / "http.sock"), "drain_timeout_s": 0.5, **ONE_THREAD}
    with (
        running(tmp_path, model, **settings) as replica,
        openai(replica) as client,
        client.stream("POST", "/chat/completions", json=body) as answer,
    ):
        lines = answer.iter_lines()
        next(line for line in lines if "content" in line)
        replica.process.send_signal(signal.SIGTERM)

        with pytest.raises(httpx.TransportError):
            list(lines)
        assert replica.process.wait(20) == 0


def test_a_port_serves_instead_of_a_socket(model: Path, tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path, model, openai_port=port) as replica:
        models = httpx.get(f"http://127.0.0.1:{port}/v1/models").json()
        elsewhere = httpx.post(f"{replica.url}/v1/chat/completions", json=CHAT)

    (line,) = (line for line in replica.log_text().splitlines() if "OpenAI" in line)
    assert "listening" in line
    assert str(port) in line
    assert elsewhere.status_code == 404
    assert "(`headrace serve`: on --openai-port)" in elsewhere.json()["error"]
    assert [entry["id"] for entry in models["data"]] == ["m"]


@pytest.mark.parametrize(
    ("content", "settings", "reason"),
    [
        (gguf(LLAMA, [("t", (1 << 40,), 0, b"")]), {}, "ends before its tensors do"),
        (gguf({**LLAMA, "general.architecture": "no"}), {}, "does not declare the layers"),
        (gguf(), {}, "llama.cpp cannot serve this model"),
        (gguf(), {"uds": ""}, "--openai-port"),
        (gguf(), {"llm": LlmSpec(context_tokens=9000)}, "is 8192 tokens"),
        (gguf({**LLAMA, "llama.block_count": 4_000_000}), {}, "needs 4.19 TB"),
    ],
)
def test_a_replica_that_cannot_serve_its_model_says_why(
    tmp_path: Path, content: bytes, settings: dict[str, Any], reason: str
) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(content)
    replica = start(tmp_path, model, **{"uds": str(tmp_path / "http.sock"), **settings})
    try:
        assert replica.process.wait(30) == CANNOT_LOAD
    finally:
        stop(replica)

    assert reason in replica.log_text().splitlines()[-1]
