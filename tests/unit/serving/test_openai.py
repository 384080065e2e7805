"""OpenAI's routes of a replica with an encoder, without sockets."""

import asyncio
import base64
import json
from typing import Any

import msgspec
import numpy as np
import pytest

from headrace.core import Array
from headrace.runtimes import Model, load_model
from headrace.serving.application import Application
from headrace.serving.telemetry.report import Observe
from tests import hub_folders
from tests.unit.pipeline.elements import elements
from tests.unit.serving.parts import Answer, Caller, a_loaded, a_state, an_application, read

pytestmark = pytest.mark.anyio

PATH = "/v1/embeddings"
TEXTS = ("Anna Smith lives in Berlin", "a", "a b a b a b", "")
TOKENS = sum(len(text.split()) + 2 for text in TEXTS)  # [CLS] and [SEP]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = hub_folders.write_text(
        tmp_path_factory.mktemp("vectors"), "BertModel", output="last_hidden_state"
    )
    return load_model(folder)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = hub_folders.write_text(tmp_path_factory.mktemp("ranker"), labels=("LABEL_0",))
    return load_model(folder)


def application_of(model: Model, **settings: object) -> Application:
    state = a_state(**settings)
    application = Application(state, has_repository=False)
    state.serve(a_loaded(model))  # type: ignore[arg-type]  # any model
    application.model_loaded()
    return application


async def ask(application: Application, path: str = PATH, **fields: object) -> Answer:
    return await send(application, path, json.dumps({"model": "m", **fields}).encode())


async def send(application: Application, path: str, body: bytes, method: str = "POST") -> Answer:
    exchange = Caller().request(method, path, body)
    application.handle(exchange)
    for _ in range(200):
        await asyncio.sleep(0)
    return read(exchange)


def vectors_in(answer: Answer) -> Array:
    assert answer.status == 200, answer.body
    return np.array([item["embedding"] for item in answer.json["data"]], np.float32)


def error_in(answer: Answer) -> dict[str, Any]:
    error: dict[str, Any] = answer.json["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


async def test_vectors_are_those_of_the_pipeline_bit_for_bit(model: Model) -> None:
    application = application_of(model)
    expected = model.run({"text": elements(*TEXTS)})["embedding"]

    floats = await ask(application, input=TEXTS)
    encoded = await ask(application, input=TEXTS, encoding_format="base64")

    assert vectors_in(floats).tobytes() == expected.tobytes()
    raw = [base64.b64decode(item["embedding"]) for item in encoded.json["data"]]
    assert b"".join(raw) == expected.tobytes()
    assert floats.json["usage"] == {"prompt_tokens": TOKENS, "total_tokens": TOKENS}
    assert floats.json["model"] == "m"


async def test_more_texts_than_a_batch_are_answered_in_order(model: Model) -> None:
    application = application_of(model)
    texts = [" ".join(["a"] * (i % 7)) for i in range(100)]

    answer = await ask(application, input=texts)

    expected = np.concatenate([model.run({"text": elements(text)})["embedding"] for text in texts])
    np.testing.assert_allclose(vectors_in(answer), expected, atol=1e-6)
    assert answer.json["usage"]["prompt_tokens"] == sum(len(text.split()) + 2 for text in texts)


async def test_requests_of_both_protocols_share_a_batch(model: Model) -> None:
    application = application_of(model)
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a b"]}
    infer = Caller().request(
        "POST", "/v2/models/m/infer", json.dumps({"inputs": [tensor]}).encode()
    )
    embed = Caller().request("POST", PATH, b'{"model": "m", "input": "a b"}')
    alone = Caller().request("POST", infer.path.decode(), infer.body)  # type: ignore[arg-type]  # bytes here

    application.handle(infer)
    application.handle(embed)
    for _ in range(20):
        await asyncio.sleep(0)
    application.handle(alone)
    for _ in range(20):
        await asyncio.sleep(0)

    (output,) = read(infer).json["outputs"]
    assert read(infer).body == read(alone).body
    assert vectors_in(read(embed)).tolist() == [pytest.approx(output["data"])]


async def test_bad_text_costs_only_its_own_caller(model: Model) -> None:
    application = application_of(model)
    exchanges = [
        Caller().request("POST", PATH, json.dumps({"model": "m", "input": text}).encode())
        for text in ("a", "x" * (1 << 21))
    ]
    for exchange in exchanges:
        application.handle(exchange)
    for _ in range(20):
        await asyncio.sleep(0)

    good, bad = map(read, exchanges)
    assert len(vectors_in(good)) == 1
    assert bad.status == 400
    assert "more than 1048576" in error_in(bad)["message"]


async def test_dimensions_are_checked_before_the_model_runs(model: Model) -> None:
    application = application_of(model)

    cut = await ask(application, input="a", dimensions=2)
    wrong = await ask(application, input="a", dimensions=4)

    (vector,) = vectors_in(cut)
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert wrong.status == 400
    assert error_in(wrong)["param"] == "dimensions"


@pytest.mark.parametrize(
    ("name", "status"), [("m", 200), ("m:1", 200), ("m:2", 404), ("n", 404), ("", 404)]
)
async def test_replica_answers_to_its_own_name_only(model: Model, name: str, status: int) -> None:
    answer = await ask(application_of(model), model=name, input="a")

    assert answer.status == status
    if status != 200:
        error = error_in(answer)
        assert error["code"] == "model_not_found"
        assert f"`{name}` does not exist" in error["message"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
async def test_documents_are_ranked_by_the_scores_of_their_pairs(ranker: Model, path: str) -> None:
    application = application_of(ranker)
    documents = ["smith", "a b", "berlin in", ""]
    pairs = {"text": elements(*["anna"] * 4), "text_pair": elements(*documents)}
    scores = ranker.run(pairs)["score"]

    whole = await ask(application, path, query="anna", documents=documents)
    best = await ask(
        application,
        path,
        query="anna",
        documents=[{"text": text} for text in documents],
        top_n=2,
        return_documents=True,
    )

    results = whole.json["results"]
    order = np.argsort(-scores, kind="stable").tolist()
    assert [result["index"] for result in results] == order
    found = np.array([result["relevance_score"] for result in results], np.float32)
    assert found.tobytes() == scores[order].tobytes()
    assert whole.json["id"]
    assert whole.json["model"] == "m"
    tokens = sum(3 + len(text.split()) for text in documents)
    assert whole.json["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert best.json["results"] == [
        {**result, "document": {"text": documents[result["index"]]}} for result in results[:2]
    ]


async def test_wrong_rerank_is_refused_with_its_field(ranker: Model) -> None:
    application = application_of(ranker)

    empty = await ask(application, "/v1/rerank", query="a", documents=[])
    number = await ask(application, "/v2/rerank", query="a", documents=["b"], top_n=0)
    embed = await ask(application, input="a")

    assert [error_in(answer)["param"] for answer in (empty, number)] == ["documents", "top_n"]
    assert (empty.status, number.status, embed.status) == (400, 400, 404)
    assert "embeds no texts; send requests to /v1/rerank" in error_in(embed)["message"]


async def test_model_that_embeds_nothing_says_what_it_serves(model: Model) -> None:
    other = await ask(an_application(), input="a")
    rank = await ask(application_of(model), "/v1/rerank", query="a", documents=["b"])

    assert (other.status, rank.status) == (404, 404)
    assert "embeds no texts; send requests to /v2/models/m/infer" in error_in(other)["message"]
    assert "ranks no documents; send requests to /v1/embeddings" in error_in(rank)["message"]


async def test_errors_outside_of_the_model_have_the_same_form(model: Model) -> None:
    application = application_of(model)
    loading = Application(a_state(), has_repository=False)

    malformed = await send(application, PATH, b"{")
    wrong_method = await send(application, f"{PATH}?api-version=1", b"", "GET")
    not_ready = await ask(loading, input="a")

    assert (malformed.status, wrong_method.status, not_ready.status) == (400, 405, 503)
    assert "retry-after: 1" in not_ready.head.lower()
    for answer in (malformed, wrong_method, not_ready):
        error_in(answer)


async def test_request_whose_deadline_passed_gets_504(model: Model) -> None:
    exchange = Caller().request(
        "POST", PATH, b'{"model": "m", "input": "a"}', {"x-headrace-timeout-s": "0.000001"}
    )
    application_of(model).handle(exchange)

    assert read(exchange).status == 504
    assert error_in(read(exchange))["type"] == "server_error"


async def test_answers_are_observed_like_those_of_other_routes(model: Model) -> None:
    application = application_of(model)
    body = msgspec.json.encode(Observe(key="r", predictions=True))
    assert (await send(application, "/internal/observe", body, "PUT")).status == 200
    exchange = Caller().request(
        "POST", PATH, b'{"model": "m", "input": "a"}', {"x-headrace-split": "r"}
    )
    application.handle(exchange)
    for _ in range(20):
        await asyncio.sleep(0)

    report = (await send(application, "/internal/report", b"", "GET")).json
    assert read(exchange).status == 200
    assert sum(report["predictions"]["counts"].values()) == 1
