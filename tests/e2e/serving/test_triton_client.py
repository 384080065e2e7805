"""NVIDIA's own client, unmodified, against a replica: over HTTP, and over gRPC by `--grpc-port`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from headrace.runtimes import load_model
from headrace.testing import models
from tests.e2e.replicas import Replica, running
from tests.ports import free_port

pytestmark = pytest.mark.e2e

ROWS = np.random.default_rng(7).standard_normal((3, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def served(model_folder: Path, mlp: Path) -> Iterator[Replica]:
    labels = {"prob": ["no", "yes"]}
    with running(
        model_folder, mlp, grpc_port=free_port(), batching={"max_batch_size": 8}, labels=labels
    ) as replica:
        yield replica


@pytest.fixture(scope="module")
def expected(mlp: Path) -> np.ndarray[Any, Any]:
    return load_model(mlp).run({"input": ROWS})["prob"]


@pytest.fixture(params=["http", "grpc"])
def kind(request: pytest.FixtureRequest) -> Any:
    return {"http": triton_http, "grpc": triton_grpc}[request.param]


@pytest.fixture
def client(served: Replica, kind: Any) -> Iterator[Any]:
    is_grpc = kind is triton_grpc
    port = served.settings.grpc_port if is_grpc else served.port
    with kind.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


def as_dict(answer: Any) -> dict[str, Any]:
    """gRPC clients answer with messages unless asked; HTTP clients with dicts."""
    return answer if isinstance(answer, dict) else dict(answer)


def inputs_of(kind: Any, rows: np.ndarray[Any, Any], **how: Any) -> list[Any]:
    tensor = kind.InferInput("input", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, **how)
    return [tensor]


def test_metadata(client: Any, kind: Any) -> None:
    as_json = {"as_json": True} if kind is triton_grpc else {}
    server = client.get_server_metadata(**as_json)
    assert server["name"] == "headrace"
    assert "classification" in server["extensions"]
    model = client.get_model_metadata("m", **as_json)
    assert model["name"] == "m"
    assert model["versions"] == ["1"]
    assert model["inputs"] == [
        {
            "name": "input",
            "datatype": "FP32",
            "shape": [-1, 32] if kind is triton_http else ["-1", "32"],
        }
    ]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_http_compression_both_ways(
    served: Replica, algorithm: str, expected: np.ndarray[Any, Any]
) -> None:
    with triton_http.InferenceServerClient(f"127.0.0.1:{served.port}") as client:
        answer = client.infer(
            "m",
            inputs_of(triton_http, ROWS),
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )

    np.testing.assert_allclose(answer.as_numpy("prob"), expected, rtol=1e-5)


def test_priority_and_timeout_are_taken(client: Any, kind: Any) -> None:
    client.infer("m", inputs_of(kind, ROWS), priority=1, timeout=5_000_000)


def refusal(client: Any, model: str, inputs: list[Any], **how: Any) -> str:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, inputs, **how)
    return f"{caught.value.status()} {caught.value.message()}"


def test_errors(client: Any, kind: Any) -> None:
    wrong_width = refusal(client, "m", inputs_of(kind, ROWS[:, :31].copy()))
    assert (
        "unexpected shape for input 'input' for model 'm'. Expected [-1,32], got [3,31]"
        in wrong_width
    )
    unknown = refusal(client, "other", inputs_of(kind, ROWS))
    assert "Request for unknown model: 'other' is not found" in unknown
    version = refusal(client, "m", inputs_of(kind, ROWS), model_version="7")
    assert "version 7 is not found" in version
    large = refusal(client, "m", inputs_of(kind, np.zeros((9, 32), np.float32)))
    assert "batch-size must be <= 8" in large
    sequence = refusal(client, "m", inputs_of(kind, ROWS), sequence_id=5, sequence_start=True)
    assert "sequence" in sequence
    if kind is triton_grpc:
        assert "StatusCode.INVALID_ARGUMENT" in wrong_width
        assert "StatusCode.NOT_FOUND" in unknown
    else:
        assert wrong_width.startswith("400 ")
        assert unknown.startswith("404 ")


def test_shared_memory_is_refused_as_unsupported(client: Any) -> None:
    with pytest.raises(InferenceServerException, match=r"(?i)shared memory"):
        client.register_system_shared_memory("region", "/key", 64)


def test_repository_index(client: Any, kind: Any) -> None:
    index = client.get_model_repository_index(**({"as_json": True} if kind is triton_grpc else {}))
    models_found = index["models"] if kind is triton_grpc else index

    assert models_found[0]["name"] == "m"
    assert models_found[0]["state"] == "READY"


def test_grpc_streaming(served: Replica, expected: np.ndarray[Any, Any]) -> None:
    answers: list[Any] = []
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{served.settings.grpc_port}") as client:
        client.start_stream(lambda result, error: answers.append((result, error)))
        for row in ROWS:
            client.async_stream_infer("m", inputs_of(triton_grpc, row[None]))
        client.async_stream_infer("m", inputs_of(triton_grpc, ROWS[:, :5].copy()))
        client.stop_stream()

    assert len(answers) == 4
    for (result, error), want in zip(answers[:3], expected, strict=True):
        assert error is None
        np.testing.assert_allclose(result.as_numpy("prob")[0], want, rtol=1e-5)
    assert "unexpected shape" in str(answers[3][1])


def test_strings_both_ways(model_folder: Path) -> None:
    path = model_folder / "strings.onnx"
    path.write_bytes(models.strings())
    model = load_model(path)
    spec = model.signature.inputs[0]
    with running(model_folder, path, grpc_port=free_port()) as replica:
        for kind, port in (
            (triton_http, replica.port),
            (triton_grpc, replica.settings.grpc_port),
        ):
            with kind.InferenceServerClient(f"127.0.0.1:{port}") as client:
                shape = [2 if size == -1 else size for size in spec.shape]
                words = np.full(shape, "grüße".encode(), dtype=np.object_)
                tensor = kind.InferInput(spec.name, shape, "BYTES")
                tensor.set_data_from_numpy(words)
                answer = client.infer("m", [tensor])
                output = model.signature.outputs[0].name
                np.testing.assert_array_equal(
                    answer.as_numpy(output), model.run({spec.name: words})[output]
                )
