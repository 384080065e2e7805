"""Every row of the error map, over HTTP and gRPC, through the gateway."""

import json
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.e2e.control.system import System

pytestmark = pytest.mark.e2e

ROW = [0.5] * 32
GOOD: dict[str, Any] = {"name": "input", "shape": [1, 32], "datatype": "FP32", "data": ROW}
SLOW: dict[str, Any] = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}


@pytest.fixture(scope="module")
def http(up: System) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=up.where().http_url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def channel(up: System) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(up.where().grpc_target) as channel:
        yield channel


def body(*inputs: Any, **fields: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **fields}).encode()


def infer(http: httpx.Client, content: bytes, **headers: str) -> httpx.Response:
    return http.post("/v2/models/m/infer", content=content, headers=headers)


ROWS: list[tuple[str, bytes, int, str]] = [
    ("malformed JSON", b"{not json", 400, "failed to parse the request JSON buffer"),
    ("empty body", b"", 400, "failed to parse the request JSON buffer"),
    ("no object", b"[]", 400, ""),
    ("nesting", b'{"inputs":' + b"[" * 200 + b"]" * 200 + b"}", 400, ""),
    (
        "unknown input",
        body({**GOOD, "name": "n"}),
        400,
        "unexpected inference input 'n' for model 'm'",
    ),
    ("input count", body(), 400, "expected 1 inputs but got 0"),
    (
        "wrong shape",
        body({**GOOD, "shape": [1, 31], "data": ROW[1:]}),
        400,
        "unexpected shape for input 'input' for model 'm'. Expected [-1,32], got [1,31]",
    ),
    (
        "wrong datatype",
        body({**GOOD, "datatype": "INT64", "data": [1] * 32}),
        400,
        "inference input 'input' data-type is 'INT64', but model 'm' expects 'FP32'",
    ),
    (
        "batch too big",
        body({**GOOD, "shape": [9, 32], "data": ROW * 9}),
        400,
        "inference request batch-size must be <= 8 for 'm'",
    ),
    ("batch of zero", body({**GOOD, "shape": [0, 32], "data": []}), 400, ""),
    ("FP16 in JSON", body({**GOOD, "datatype": "FP16"}), 400, "FP16"),
    ("too few values", body({**GOOD, "data": ROW[1:]}), 400, ""),
    ("a string for a number", body({**GOOD, "data": ["x", *ROW[1:]]}), 400, ""),
    ("true for a number", body({**GOOD, "data": [True, *ROW[1:]]}), 400, ""),
    ("reserved parameter", body(GOOD, parameters={"triton_x": 1}), 400, "triton_x"),
    ("object parameter", body(GOOD, parameters={"x": {"y": 1}}), 400, ""),
    ("unknown output", body(GOOD, outputs=[{"name": "nope"}]), 400, "nope"),
    (
        "shared memory",
        body({**GOOD, "parameters": {"shared_memory_region": "r"}}),
        501,
        "shared memory",
    ),
    ("sequence", body(GOOD, parameters={"sequence_id": 3}), 501, "sequence"),
]


@pytest.mark.parametrize(
    ("content", "status", "text"), [row[1:] for row in ROWS], ids=[r[0] for r in ROWS]
)
def test_http(http: httpx.Client, content: bytes, status: int, text: str) -> None:
    answer = infer(http, content)

    assert answer.status_code == status, answer.text
    assert text in answer.json()["error"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("length", "text"),
    [("999999", "inference header size should be in range"), ("-1", ""), ("x", ""), ("5", "")],
)
def test_http_header_length(http: httpx.Client, length: str, text: str) -> None:
    answer = infer(http, body(GOOD), **{"inference-header-content-length": length})

    assert answer.status_code == 400
    assert text in answer.json()["error"]


def test_http_binary_sizes_missing_or_surplus(http: httpx.Client) -> None:
    raw = np.zeros(32, np.float32).tobytes()
    named = {key: GOOD[key] for key in ("name", "shape", "datatype")}
    for tensor, tail in (
        ({**named, "parameters": {"binary_data_size": 128}}, raw + b"more"),
        ({**named, "parameters": {"binary_data_size": 128}}, raw[:100]),
        ({**named, "parameters": {"binary_data_size": 64}}, raw[:64]),
        (named, raw),
    ):
        head = body(tensor)
        answer = infer(http, head + tail, **{"inference-header-content-length": str(len(head))})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]


def test_http_unknown_model_version_path_and_method(http: httpx.Client) -> None:
    for path, status, text in (
        ("/v2/models/x/infer", 404, "Request for unknown model: 'x' is not found"),
        (
            "/v2/models/m/versions/9/infer",
            404,
            "Request for unknown model: 'm' version 9 is not found",
        ),
        ("/v1/models/x:predict", 404, "x"),
        ("/nothing", 404, "Not Found"),
        ("/v2/models/m/nothing", 404, "Not Found"),
    ):
        answer = http.post(path, content=body(GOOD))
        assert answer.status_code == status, path
        assert text in answer.json()["error"]
    wrong = http.get("/v2/models/m/infer")
    assert wrong.status_code == 405
    assert wrong.json() == {"error": "Method Not Allowed"}


def test_http_too_large_is_413(http: httpx.Client) -> None:
    answer = infer(http, b" " * ((64 << 20) + 1))

    assert answer.status_code == 413
    assert answer.json()["error"]


def test_http_full_queue_is_429_with_a_time_to_come_back(up: System) -> None:
    url = f"{up.where().http_url}/v2/models/slow/infer"

    def call(_: int) -> httpx.Response:
        return httpx.post(url, content=body(SLOW), timeout=30)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(call, range(8)))

    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert all("full" in answer.json()["error"] for answer in refused)


@pytest.mark.parametrize(
    ("fields", "headers"),
    [({"parameters": {"timeout": 50_000}}, {}), ({}, {"x-headrace-timeout-s": "0.05"})],
)
def test_http_deadline_is_504(
    http: httpx.Client, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    answer = http.post("/v2/models/slow/infer", content=body(SLOW, **fields), headers=headers)

    assert answer.status_code == 504, answer.text
    assert "deadline" in answer.json()["error"]


# gRPC


def message(name: str = "m", version: str = "", **changes: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=name, model_version=version)
    tensor = request.inputs.add(
        name=changes.get("input", "input"),
        datatype=changes.get("datatype", "FP32"),
        shape=changes.get("shape", [1, 32]),
    )
    del tensor
    request.raw_input_contents.append(changes.get("raw", np.zeros(32, np.float32).tobytes()))
    return request


def call(channel: grpc.Channel, request: bytes, *, timeout: float | None = 30) -> grpc.RpcError:
    method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=timeout)
    return caught.value


GRPC_ROWS: list[tuple[str, bytes, grpc.StatusCode, str]] = [
    (name, request.SerializeToString(), code, text)
    for name, request, code, text in (
        (
            "unknown model",
            message("x"),
            grpc.StatusCode.NOT_FOUND,
            "unknown model: 'x' is not found",
        ),
        ("unknown version", message("m", "9"), grpc.StatusCode.NOT_FOUND, "version 9 is not found"),
        (
            "unknown input",
            message(input="n"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "unexpected inference input 'n'",
        ),
        (
            "wrong shape",
            message(shape=[1, 31]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "unexpected shape",
        ),
        (
            "wrong datatype",
            message(datatype="INT64"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "data-type is 'INT64'",
        ),
        (
            "batch too big",
            message(shape=[9, 32], raw=bytes(9 * 128)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "batch-size must be <= 8",
        ),
        ("too few bytes", message(raw=bytes(7)), grpc.StatusCode.INVALID_ARGUMENT, ""),
        ("no model", message(""), grpc.StatusCode.NOT_FOUND, "unknown model: ''"),
    )
] + [
    ("garbage", b"\xff\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT, ""),
]


@pytest.mark.parametrize(
    ("request_", "code", "text"), [r[1:] for r in GRPC_ROWS], ids=[r[0] for r in GRPC_ROWS]
)
def test_grpc(channel: grpc.Channel, request_: bytes, code: grpc.StatusCode, text: str) -> None:
    error = call(channel, request_)

    assert error.code() == code, error
    assert text in error.details()


def slow_message() -> bytes:
    raw = struct.pack("<2f", 1, 2)
    return bytes(message("slow", input="x", shape=[1, 2], raw=raw).SerializeToString())


def test_grpc_deadline_is_deadline_exceeded(channel: grpc.Channel) -> None:
    assert call(channel, slow_message(), timeout=0.05).code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_grpc_full_queue_is_resource_exhausted(channel: grpc.Channel) -> None:
    method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    calls = [method.future(slow_message(), timeout=30) for _ in range(8)]

    codes = {one.code() for one in calls}

    assert codes == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    refused = [one for one in calls if one.code() == grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert all("full" in one.details() for one in refused)
    assert all(dict(one.trailing_metadata()).get("grpc-retry-pushback-ms") for one in refused)


def test_grpc_unsupported_calls_are_unimplemented(channel: grpc.Channel) -> None:
    for rpc in (
        "SystemSharedMemoryStatus",
        "CudaSharedMemoryStatus",
        "TraceSetting",
        "LogSettings",
    ):
        method = channel.unary_unary(f"/inference.GRPCInferenceService/{rpc}")
        with pytest.raises(grpc.RpcError) as caught:
            method(b"", timeout=10)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert caught.value.details()
