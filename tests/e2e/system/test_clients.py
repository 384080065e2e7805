"""Clients that people have, unmodified, through the gateway: NVIDIA's, and curl."""

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException

from headrace.client import Client
from tests.e2e.control.system import System

pytestmark = pytest.mark.e2e

ROWS = np.random.default_rng(7).standard_normal((3, 32)).astype(np.float32)


def host_of(system: System, kind: Any) -> str:
    where = system.where()
    is_grpc = kind in (triton_grpc, triton_grpc_aio)
    return where.grpc_target if is_grpc else where.http_url.removeprefix("http://")


@pytest.fixture(params=[triton_http, triton_grpc], ids=["http", "grpc"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def client(up: System, kind: Any) -> Iterator[Any]:
    with kind.InferenceServerClient(host_of(up, kind)) as client:
        yield client


def inputs_of(kind: Any, rows: np.ndarray[Any, Any] = ROWS, **how: Any) -> list[Any]:
    tensor = kind.InferInput("input", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, **how)
    return [tensor]


def as_json(kind: Any) -> dict[str, bool]:
    return {"as_json": True} if kind is triton_grpc else {}


def test_health_metadata_config_and_statistics(client: Any, kind: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert client.is_model_ready("m", "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata(**as_json(kind))["name"] == "headrace"
    assert client.get_model_metadata("m", **as_json(kind))["versions"] == ["1"]
    config = client.get_model_config("m", **as_json(kind))
    assert config.get("config", config)["max_batch_size"] == 8
    client.infer("m", inputs_of(kind))
    (statistics,) = client.get_inference_statistics("m", **as_json(kind))["model_stats"]
    assert int(statistics["inference_stats"]["success"]["count"]) > 0


def test_infer_gives_the_same_answer_by_every_client(up: System, client: Any, kind: Any) -> None:
    where = up.where()
    with Client(where.http_url) as http, Client(f"grpc://{where.grpc_target}") as grpc:
        ours = [c.infer("m", {"input": ROWS}).outputs["prob"] for c in (http, grpc)]

    answer = client.infer("m", inputs_of(kind), request_id="r-1")

    response = answer.get_response()
    assert (response["id"] if kind is triton_http else response.id) == "r-1"
    np.testing.assert_array_equal(answer.as_numpy("prob"), ours[0])
    np.testing.assert_array_equal(ours[0], ours[1])


def test_json_tensors_and_classification(client: Any, kind: Any) -> None:
    how: dict[str, Any] = {"binary_data": False} if kind is triton_http else {}
    classes = [kind.InferRequestedOutput("prob", class_count=1)]

    best = client.infer("m", inputs_of(kind, **how), outputs=classes).as_numpy("prob")
    values = client.infer("m", inputs_of(kind, **how)).as_numpy("prob")

    for row, probabilities in zip(best, values, strict=True):
        value, index, label = row[0].decode().split(":")
        assert int(index) == probabilities.argmax()
        assert label == ["no", "yes"][int(index)]
        assert float(value) == pytest.approx(float(probabilities.max()), rel=1e-4)


def test_another_endpoint_is_found_by_its_name_in_the_body(client: Any, kind: Any) -> None:
    spec = client.get_model_metadata("words", **as_json(kind))["inputs"][0]
    shape = [2 if int(size) == -1 else int(size) for size in spec["shape"]]
    words = kind.InferInput(spec["name"], shape, "BYTES")
    words.set_data_from_numpy(np.full(shape, b"grau", dtype=np.object_))

    answer = client.infer("words", [words])

    assert answer.get_response() is not None


def test_errors_carry_status_and_text(client: Any, kind: Any) -> None:
    cases = {
        ("NOT_FOUND", "404", "Request for unknown model: 'other' is not found"): (
            "other",
            ROWS,
            "",
        ),
        ("NOT_FOUND", "404", "version 7 is not found"): ("m", ROWS, "7"),
        ("INVALID_ARGUMENT", "400", "unexpected shape for input 'input'"): ("m", ROWS[:, :5], ""),
        ("INVALID_ARGUMENT", "400", "batch-size must be <= 8"): ("m", np.tile(ROWS, (3, 1)), ""),
    }
    for (code, status, text), (model, rows, version) in cases.items():
        with pytest.raises(InferenceServerException, match=text) as caught:
            client.infer(model, inputs_of(kind, np.ascontiguousarray(rows)), model_version=version)
        assert (code if kind is triton_grpc else status) in str(caught.value.status())


def test_the_repository_is_not_on_the_gateway(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="management port"):
        client.load_model("m")
    with pytest.raises(InferenceServerException, match="management port"):
        client.get_model_repository_index()


def test_the_repository_is_on_the_management_port(up: System) -> None:
    admin = up.where().admin_url.removeprefix("http://")
    with triton_http.InferenceServerClient(admin) as client:
        index = client.get_model_repository_index({"authorization": f"Bearer {up.token()}"})
        with pytest.raises(InferenceServerException, match="requires a token"):
            client.get_model_repository_index()

    assert {entry["name"]: entry["state"] for entry in index}["m"] == "READY"


@pytest.mark.parametrize("kind", [triton_http_aio, triton_grpc_aio], ids=["http", "grpc"])
def test_the_async_clients(up: System, kind: Any) -> None:
    sync = triton_http if kind is triton_http_aio else triton_grpc

    async def run() -> None:
        async with kind.InferenceServerClient(host_of(up, kind)) as client:
            assert await client.is_server_ready()
            await client.get_model_metadata("m")
            await client.get_model_config("m")
            await client.get_inference_statistics("m")
            answers = await asyncio.gather(*(client.infer("m", inputs_of(sync)) for _ in range(20)))
            assert len({answer.as_numpy("prob").tobytes() for answer in answers}) == 1
            with pytest.raises(InferenceServerException, match="unknown model"):
                await client.infer("other", inputs_of(sync))

    asyncio.run(run())


def test_a_stream_through_the_gateway_is_refused_with_the_way_out(up: System) -> None:
    answers: list[Any] = []
    with triton_grpc.InferenceServerClient(up.where().grpc_target) as client:
        client.start_stream(lambda result, error: answers.append((result, error)))
        with contextlib.suppress(InferenceServerException):  # refused before the first request
            client.async_stream_infer("m", inputs_of(triton_grpc))
        client.stop_stream()

    assert "--grpc-port" in str(answers[0][1])


def curl(*arguments: str) -> tuple[int, Any]:
    found = shutil.which("curl")
    if found is None:
        pytest.skip("curl is not installed")
    run = subprocess.run(
        [found, "-s", "-w", "\n%{http_code}", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    body, _, status = run.stdout.rpartition("\n")
    return int(status), json.loads(body) if body else None


def test_curl_as_in_kserves_docs(up: System) -> None:
    url = up.where().http_url
    row = [0.5] * 32
    v1 = curl("-d", json.dumps({"instances": [row, row]}), f"{url}/v1/models/m:predict")
    v2 = curl(
        "-H",
        "Content-Type: application/json",
        "-d",
        json.dumps(
            {"inputs": [{"name": "input", "shape": [1, 32], "datatype": "FP32", "data": row}]}
        ),
        f"{url}/v2/models/m/infer",
    )

    assert v1[0] == v2[0] == 200
    assert len(v1[1]["predictions"]) == 2
    assert v1[1]["predictions"][0] == pytest.approx(v2[1]["outputs"][0]["data"])
    assert curl(f"{url}/v1/models/m") == (200, {"name": "m", "ready": True})
    assert curl(f"{url}/v1/models")[1]["models"] == ["m", "slow", "words"]
    assert curl(f"{url}/v2/health/ready")[0] == 200
    assert curl(f"{url}/v2/models/m/ready")[0] == 200
    assert curl(f"{url}/v2/models/m")[1]["platform"] == "onnxruntime_onnx"
    unknown = curl("-d", "{}", f"{url}/v1/models/nothing:predict")
    assert unknown[0] == 404
    assert "nothing" in unknown[1]["error"]
