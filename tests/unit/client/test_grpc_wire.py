from typing import Any

import grpc
import numpy as np
import pytest

from headrace.client import ProtocolError
from headrace.client.grpc_transport import failure
from headrace.client.grpc_wire import GrpcWire, decode_infer, to_document
from headrace.core import (
    InferRequest,
    OverloadedError,
    PayloadTooLargeError,
    RequestedOutput,
    UnavailableError,
)
from headrace.protocol.protos import message_class

ROW = np.array([[1.5, 2.5]], np.float32)


def response(*raws: bytes, datatype: str = "FP32") -> Any:  # noqa: ANN401  # made at run time
    message = message_class("inference.ModelInferResponse")(model_name="m", id="7")
    message.outputs.add(name="y", datatype=datatype, shape=[1, 2])
    message.raw_output_contents.extend(raws)
    return message


def sent(request: InferRequest) -> Any:  # noqa: ANN401  # as above
    exchange = GrpcWire().infer(request)
    return message_class("inference.ModelInferRequest").FromString(exchange.message.body)


def test_a_request_carries_raw_tensors_and_names_the_model_in_its_metadata() -> None:
    request = InferRequest(
        model_name="m",
        model_version="3",
        id="7",
        inputs={"x": ROW, "s": np.array([b"ab"], object)},
        outputs=(RequestedOutput(name="y", classification=2), RequestedOutput(name="z")),
        priority=1,
        parameters={"temperature": 0.5, "flag": True},
    )

    message = sent(request)
    metadata = dict(GrpcWire().infer(request).message.metadata)

    assert metadata == {"x-model": "m", "x-model-version": "3"}
    assert (message.model_name, message.model_version, message.id) == ("m", "3", "7")
    assert [(i.name, i.datatype, list(i.shape)) for i in message.inputs] == [
        ("x", "FP32", [1, 2]),
        ("s", "BYTES", [1]),
    ]
    assert list(message.raw_input_contents) == [ROW.tobytes(), b"\2\0\0\0ab"]
    assert message.outputs[0].parameters["classification"].int64_param == 2
    assert message.outputs[1].name == "z"
    assert message.parameters["priority"].int64_param == 1
    assert message.parameters["temperature"].double_param == 0.5
    assert message.parameters["flag"].bool_param


def test_raw_outputs_become_arrays() -> None:
    message = response(ROW.tobytes())
    message.parameters["k"].string_param = "v"

    answer = decode_infer(message)

    np.testing.assert_array_equal(answer.outputs["y"], ROW)
    assert answer.id == "7"
    assert answer.parameters == {"k": "v"}


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("FP32", "fp32_contents", [1.5, 2.5]),
        ("INT8", "int_contents", [1, -2]),
        ("BYTES", "bytes_contents", [b"a", b"\xff"]),
        ("BOOL", "bool_contents", [True, False]),
    ],
)
def test_typed_outputs_become_arrays(datatype: str, field: str, values: list[Any]) -> None:
    message = response(datatype=datatype)
    getattr(message.outputs[0].contents, field).extend(values)

    array = decode_infer(message).outputs["y"]

    assert array.shape == (1, 2)
    assert array.reshape(-1).tolist() == values


@pytest.mark.parametrize(
    ("raws", "datatype"),
    [((b"123",), "FP32"), ((b"", b""), "FP32"), ((), "FP32"), ((), "FP16"), ((bytes(8),), "WHAT")],
)
def test_tensors_that_are_not_the_protocols_are_told_as_that(
    raws: tuple[bytes, ...], datatype: str
) -> None:
    with pytest.raises(ProtocolError):
        decode_infer(response(*raws, datatype=datatype))


def test_typed_values_that_do_not_fit_are_told() -> None:
    message = response(datatype="INT8")
    message.outputs[0].contents.int_contents.extend([1, 400])

    with pytest.raises(ProtocolError, match="'y'"):
        decode_infer(message)


def test_bytes_that_are_no_message_are_told() -> None:
    exchange = GrpcWire().metadata("m", "")

    with pytest.raises(ProtocolError, match="ModelMetadata"):
        exchange.read(b"\xff\xff\xff")


def test_a_document_has_numbers_lists_maps_and_only_the_chosen_one() -> None:
    config = message_class("inference.ModelConfig")(name="m", max_batch_size=8)
    config.input.add(name="x", dims=[-1, 2])
    config.parameters["k"].string_value = "v"

    document = to_document(config)

    assert document["max_batch_size"] == 8
    assert document["input"][0]["dims"] == [-1, 2]
    assert isinstance(document["input"][0]["data_type"], str)
    assert document["parameters"] == {"k": {"string_value": "v"}}


def test_counters_are_numbers_not_text() -> None:
    statistics = message_class("inference.ModelStatisticsResponse")()
    statistics.model_stats.add(name="m", inference_count=2**60)

    assert to_document(statistics)["model_stats"][0]["inference_count"] == 2**60


def test_readiness_of_server_and_model_are_different_calls() -> None:
    wire = GrpcWire()

    assert wire.ready("", "").message.method.endswith("/ServerReady")
    assert wire.ready("m", "2").message.method.endswith("/ModelReady")
    assert wire.live().read(
        message_class("inference.ServerLiveResponse")(live=True).SerializeToString()
    )


class FailedCall(grpc.RpcError):  # type: ignore[misc]  # grpcio has no types
    """What grpcio raises, as far as the client looks at it."""

    def __init__(
        self, code: grpc.StatusCode, details: str | None, *trailing: tuple[str, str]
    ) -> None:
        self._code, self._details, self._trailing = code, details, trailing

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._trailing


@pytest.mark.parametrize(
    "details",
    ["SERVER: Received message larger than max (12 vs. 4)", "request too long"],
)
def test_a_size_that_never_fits_is_not_overload(details: str) -> None:
    error = failure(FailedCall(grpc.StatusCode.RESOURCE_EXHAUSTED, details))

    assert isinstance(error, PayloadTooLargeError)


def test_a_status_keeps_its_text_and_when_to_come_back() -> None:
    call = FailedCall(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", ("retry-after", "2"))

    error = failure(call)

    assert isinstance(error, OverloadedError)
    assert str(error) == "full"
    assert error.retry_after_s == 2
    assert isinstance(failure(FailedCall(grpc.StatusCode.UNAVAILABLE, None)), UnavailableError)
