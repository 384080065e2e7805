"""OpenAI's routes of real replicas and pools with encoders."""

import base64
import gzip
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from headrace.core import Array
from headrace.runtimes import load_model
from tests import hub_folders
from tests.e2e.replicas import Replica, running
from tests.e2e.serving.pools import entry, running_pool
from tests.unit.pipeline.elements import elements

pytestmark = pytest.mark.e2e

TEXTS = ["Anna Smith lives in Berlin", "a", "a b a b a b", "", "b"]


def sentence_model(folder: Path) -> Path:
    return hub_folders.write_text(folder, "BertModel", output="last_hidden_state")


def vectors_of(folder: Path, *texts: str) -> Array:
    model = load_model(folder)
    vectors = model.run({"text": elements(*texts)})["embedding"]
    model.close()
    return vectors


def numbers_in(answer: httpx.Response) -> Array:
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]], np.float32)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence_model(tmp_path_factory.mktemp("hub") / "vectors")


@pytest.fixture(scope="module")
def replica(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    folder = tmp_path_factory.mktemp("replica")
    with running(folder, encoder, max_body_bytes=4 << 20) as replica:
        yield replica
        assert "Traceback" not in replica.log_text()


def test_vectors_are_those_of_the_pipeline_in_both_encodings(
    replica: Replica, encoder: Path
) -> None:
    expected = vectors_of(encoder, *TEXTS)
    url = f"{replica.url}/v1/embeddings"

    floats = httpx.post(url, json={"model": "m", "input": TEXTS})
    encoded = httpx.post(url, json={"model": "m:1", "input": TEXTS, "encoding_format": "base64"})
    compressed = httpx.post(
        url,
        content=gzip.compress(json.dumps({"model": "m", "input": TEXTS}).encode()),
        headers={"content-encoding": "gzip"},
    )

    assert numbers_in(floats).tobytes() == expected.tobytes()
    raw = [base64.b64decode(item["embedding"]) for item in encoded.json()["data"]]
    assert b"".join(raw) == expected.tobytes()
    assert compressed.json() == floats.json()
    tokens = sum(len(text.split()) + 2 for text in TEXTS)
    assert floats.json()["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_callers_share_batches_and_a_bad_text_fails_only_its_caller(
    replica: Replica, encoder: Path
) -> None:
    texts = [" ".join("ab"[j % 2] for j in range(i % 9)) for i in range(300)]
    expected = vectors_of(encoder, *texts)

    def embed(i: int) -> httpx.Response:
        text = "x" * (1 << 20) + "x" if i % 50 == 7 else texts[i]
        return client.post("/v1/embeddings", json={"model": "m", "input": text})

    before = batches(replica)
    with (
        httpx.Client(base_url=replica.url, timeout=60) as client,
        ThreadPoolExecutor(16) as callers,
    ):
        answers = list(callers.map(embed, range(300)))

    for i, answer in enumerate(answers):
        if i % 50 == 7:
            assert answer.status_code == 400
            assert answer.json()["error"]["type"] == "invalid_request_error"
        else:
            np.testing.assert_allclose(numbers_in(answer)[0], expected[i], atol=1e-6)
    assert batches(replica) - before < 300


def batches(replica: Replica) -> int:
    (statistics,) = httpx.get(f"{replica.url}/v2/models/m/stats").json()["model_stats"]
    return int(statistics["execution_count"])


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < until, what
        time.sleep(0.01)


def failures(replica: Replica) -> int:
    (statistics,) = httpx.get(f"{replica.url}/v2/models/m/stats").json()["model_stats"]
    return int(statistics["inference_stats"]["fail"]["count"])


def test_body_above_the_limit_is_refused_in_the_same_form(replica: Replica) -> None:
    answer = httpx.post(f"{replica.url}/v1/embeddings", content=b" " * (5 << 20))

    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_caller_that_leaves_cancels_its_request(replica: Replica) -> None:
    body = json.dumps({"model": "m", "input": ["a " * 1000] * 1000}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    failed, ran = failures(replica), batches(replica)
    with socket.create_connection(("127.0.0.1", replica.port)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.sendall(head.encode() + body)
        wait_until(lambda: batches(replica) > ran, "the request does not run")

    wait_until(lambda: failures(replica) > failed, "the request is not cancelled")
    answer = httpx.post(f"{replica.url}/v1/embeddings", json={"model": "m", "input": "a"})
    assert answer.status_code == 200


def test_replica_with_a_cross_encoder_ranks_documents(tmp_path: Path) -> None:
    folder = hub_folders.write_text(tmp_path / "ranker", labels=("LABEL_0",))
    documents = ["smith", "a b", "berlin in"] * 30
    model = load_model(folder)
    pairs = {"text": elements(*["anna"] * 90), "text_pair": elements(*documents)}
    scores = model.run(pairs)["score"]
    model.close()

    with running(tmp_path, folder) as replica:
        answer = httpx.post(
            f"{replica.url}/v2/rerank",
            json={"model": "m", "query": "anna", "documents": documents, "top_n": 31},
        )

    best = answer.json()["results"]
    assert [result["index"] for result in best] == np.argsort(-scores, kind="stable")[:31].tolist()
    assert answer.json()["usage"]["total_tokens"] == 30 * (4 + 5 + 5)


def test_pool_answers_for_the_model_that_the_body_names(tmp_path: Path, mlp: Path) -> None:
    one, two = sentence_model(tmp_path / "one"), sentence_model(tmp_path / "two")
    (two / "1_Pooling").mkdir()
    hub_folders.write_json(two, "1_Pooling/config.json", {"pooling_mode": "max"})
    modules = [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    hub_folders.write_json(two, "modules.json", modules)
    with running_pool(tmp_path) as copy:
        copy.declare(
            entry("one", one), entry("two", two), entry("two", one, version="2"), entry("m", mlp)
        )
        for model, folder in (("one", one), ("two:1", two), ("two", one)):
            answer = copy.client.post("/v1/embeddings", json={"model": model, "input": TEXTS})
            assert numbers_in(answer).tobytes() == vectors_of(folder, *TEXTS).tobytes()
        unknown = copy.client.post("/v1/embeddings", json={"model": "three", "input": "a"})
        other = copy.client.post("/v1/embeddings", json={"model": "m", "input": "a"})

    assert (unknown.status_code, other.status_code) == (404, 404)
    assert unknown.json()["error"]["code"] == "model_not_found"
    assert "embeds no texts" in other.json()["error"]["message"]
