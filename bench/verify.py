"""Before anything is timed: does the server answer what bare ONNX Runtime answers?"""

import http.client
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from bench.payloads import (
    HEADER_LENGTH,
    INFER,
    Payload,
    grpc_request,
    read_binary,
    read_grpc,
    read_json,
)

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]


class WrongAnswerError(RuntimeError):
    """A server does not answer, or answers something else than bare ONNX Runtime."""


def check_http(name: str, port: int, payload: Payload, expected: Tensors) -> None:
    """Send one request and compare its answer.

    Raises:
        WrongAnswerError: It differs.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", payload.path, body=payload.body, headers=dict(payload.headers))
    response = connection.getresponse()
    body = response.read()
    connection.close()
    if response.status != http.client.OK:
        msg = f"{name} answered {response.status}: {body[:500]!r}"
        raise WrongAnswerError(msg)
    head = response.getheader(HEADER_LENGTH)
    compare(name, read_binary(body, int(head)) if head else read_json(body), expected)


def check_raw(name: str, port: int, payload: Payload, expected: Array) -> None:
    """Send one request to a server that answers with nothing but a tensor's bytes.

    Raises:
        WrongAnswerError: It differs.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", payload.path, body=payload.body)
    body = connection.getresponse().read()
    connection.close()
    got = np.frombuffer(body, expected.dtype).reshape(expected.shape)
    compare(name, {"answer": got}, {"answer": expected})


def check_grpc(name: str, port: int, model: str, inputs: Tensors, expected: Tensors) -> int:
    """Send one request by a real gRPC client; bytes of its framed answer.

    Raises:
        WrongAnswerError: The status is not OK, or the tensors differ.
    """
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(
            INFER,
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=lambda data: data,
        )
        try:
            raw: bytes = call(grpc_request(model, inputs), timeout=30)
        except grpc.RpcError as error:
            msg = f"{name} failed: {error}"
            raise WrongAnswerError(msg) from error
    compare(name, read_grpc(service_pb2.ModelInferResponse.FromString(raw)), expected)
    return 5 + len(raw)


def compare(name: str, got: Tensors, expected: Tensors) -> None:
    """Whether two sets of tensors are equal up to rounding.

    Raises:
        WrongAnswerError: They are not.
    """
    if set(got) != set(expected):
        msg = f"{name} answered {sorted(got)}, not {sorted(expected)}"
        raise WrongAnswerError(msg)
    for key, want in expected.items():
        if got[key].shape != want.shape or not np.allclose(got[key], want, rtol=1e-3, atol=1e-5):
            msg = f"{name} answered another '{key}' than bare ONNX Runtime: {got[key]} != {want}"
            raise WrongAnswerError(msg)
