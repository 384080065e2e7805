"""Shapes that no memory could hold are the caller's mistake, and cost the replica nothing."""

import json
from typing import Any

import httpx
import pytest

from headrace.protocol.protos import message_class
from tests.e2e.replicas import Replica

pytestmark = pytest.mark.e2e

URL = "/v2/models/m/infer"
SHAPES: list[list[Any]] = [
    [1 << 62, 32],
    [1 << 31, 1 << 31, 1 << 31],
    [-1, 32],
    [-(1 << 63), 32],
    [1 << 40, 32],
    [0, 1 << 62],
    [1] * 1000,
    [],
]


def as_json(shape: list[Any]) -> tuple[bytes, dict[str, str]]:
    tensor = {"name": "input", "datatype": "FP32", "shape": shape, "data": [0.5] * 32}
    return json.dumps({"inputs": [tensor]}).encode(), {}


def as_binary(shape: list[Any]) -> tuple[bytes, dict[str, str]]:
    data = bytes(128)
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": "input", "datatype": "FP32", "shape": shape, "parameters": parameters}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + data, {"inference-header-content-length": str(len(head))}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape)[:24])
@pytest.mark.parametrize("encode", [as_json, as_binary], ids=["json", "binary"])
def test_over_http_such_a_shape_is_a_bad_request(
    replica: Replica,
    encode: Any,
    shape: list[Any],  # one of the two above
) -> None:
    content, headers = encode(shape)
    before = replica.rss_bytes()
    answer = httpx.post(f"{replica.url}{URL}", content=content, headers=headers)

    assert answer.status_code == 400, answer.text
    assert "input" in answer.json()["error"]
    assert replica.rss_bytes() < before + (16 << 20)


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_over_grpc_such_a_shape_is_an_invalid_argument(
    replica: Replica, raw: Any
) -> None:  # a flag of a table
    before = replica.rss_bytes()
    for shape in SHAPES:
        request = message_class("inference.ModelInferRequest")(model_name="m")
        tensor = request.inputs.add(name="input", datatype="FP32", shape=shape)
        if raw:
            request.raw_input_contents.append(bytes(128))
        else:
            tensor.contents.fp32_contents.extend([0.5] * 32)
        message = request.SerializeToString()
        answer = httpx.post(
            f"{replica.url}/inference.GRPCInferenceService/ModelInfer",
            content=b"\0" + len(message).to_bytes(4, "big") + message,
            headers={"content-type": "application/grpc", "te": "trailers"},
        )

        assert answer.headers["grpc-status"] == "3", (shape, answer.headers)
    assert replica.rss_bytes() < before + (16 << 20)
