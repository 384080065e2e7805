from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2

from headrace.core import (
    DTYPES,
    Array,
    InferRequest,
    InferResponse,
    InvalidArgumentError,
    ModelNotFoundError,
    ModelSignature,
    RequestedOutput,
    RuntimeFailedError,
    UnsupportedError,
)
from headrace.protocol.grpc_codec import (
    CONTENTS_FIELDS,
    GrpcInferCodec,
    encode_parameters,
    parameter_values,
)
from tests.unit.protocol.models import FOUR, MIXED, PAIR, ROW, of

# Requests are made with Triton's own classes: what it sends is what has to be understood.
X = {"name": "x", "datatype": "FP32", "shape": [1, 4]}


def message(**fields: Any) -> bytes:  # noqa: ANN401  # protobuf's fields
    request = service_pb2.ModelInferRequest(**{"model_name": "m", "inputs": [X]} | fields)
    return bytes(request.SerializeToString())


def raw(**fields: Any) -> bytes:  # noqa: ANN401  # as above
    return message(**{"raw_input_contents": [FOUR.tobytes()]} | fields)


def decode(body: bytes, model: ModelSignature = ROW) -> InferRequest:
    return GrpcInferCodec("m", "3", model, max_batch_size=8).decode(body)


def refusal(body: bytes, model: ModelSignature = ROW) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        decode(body, model)
    return str(caught.value)


def parameter(value: object) -> Any:  # noqa: ANN401  # as above
    field = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    return service_pb2.InferParameter(**{field[type(value)]: value})


def test_raw_contents_are_decoded() -> None:
    got = decode(raw(id="a", model_version="3"))

    assert np.array_equal(got.inputs["x"], FOUR)
    assert got.inputs["x"].dtype == np.float32
    assert (got.model_name, got.model_version, got.id, got.rows) == ("m", "3", "a", 1)
    assert (got.outputs, got.parameters, got.timeout_s) == ((), None, None)


def test_a_message_may_be_a_view() -> None:
    assert np.array_equal(decode(memoryview(raw())).inputs["x"], FOUR)  # type: ignore[arg-type]  # bytes to others


@pytest.mark.parametrize("datatype", CONTENTS_FIELDS)
def test_typed_contents_of_every_datatype_are_decoded(datatype: str) -> None:
    values: list[Any] = [b"\xff", b"", b"c", b"d"] if datatype == "BYTES" else [0, 1, 1, 0]
    item = X | {"datatype": datatype, "contents": {CONTENTS_FIELDS[datatype]: values}}

    got = decode(message(inputs=[item]), of(datatype)).inputs["x"]

    assert got.tolist() == [values]
    assert got.dtype == DTYPES[datatype]


def test_several_inputs_in_any_order() -> None:
    one, two = np.array([1, 2]).tobytes(), np.array([3, 4]).tobytes()
    item = {"datatype": "INT64", "shape": [1, 2]}
    inputs = [item | {"name": "mask"}, item | {"name": "ids"}]

    got = decode(message(inputs=inputs, raw_input_contents=[one, two]), PAIR)

    assert got.inputs["mask"].tolist() == [[1, 2]]
    assert got.inputs["ids"].tolist() == [[3, 4]]


def test_parameters_and_outputs_are_understood() -> None:
    got = decode(
        raw(
            parameters={
                "timeout": parameter(1500),
                "priority": service_pb2.InferParameter(uint64_param=2),
                "mine": parameter("a"),
                "half": parameter(0.5),
                "on": parameter(True),  # noqa: FBT003  # a value
            },
            outputs=[{"name": "y", "parameters": {"classification": parameter(2)}}, {"name": "z"}],
        )
    )

    assert (got.timeout_s, got.priority) == (0.0015, 2)
    assert got.parameters == {"mine": "a", "half": 0.5, "on": True}
    assert got.outputs == (
        RequestedOutput(name="y", classification=2),
        RequestedOutput(name="z"),
    )


@pytest.mark.parametrize(
    "fields", [{"model_name": "other"}, {"model_name": ""}, {"model_version": "9"}]
)
def test_another_model_is_not_found(fields: dict[str, str]) -> None:
    with pytest.raises(ModelNotFoundError, match="Request for unknown model"):
        decode(raw(**fields))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"\xff", "failed to parse the request message"),
        (message(inputs=[]), "expected 1 inputs but got 0 inputs"),
        (raw(raw_input_contents=[b"", b""]), "expected 1 raw_input_contents"),
        (raw(inputs=[X | {"name": "w"}]), "unexpected inference input 'w' for model 'm'"),
        (raw(inputs=[X | {"datatype": "FP64"}]), "data-type is 'FP64', but model 'm' expects"),
        (raw(inputs=[X | {"datatype": "BF16"}]), "BF16 is not supported"),
        (raw(inputs=[X | {"shape": [1, 3]}]), "Expected [-1,4], got [1,3]"),
        (raw(inputs=[X | {"shape": [-1, 4]}]), "not a valid shape"),
        (raw(inputs=[X | {"shape": [9, 4]}]), "batch-size must be <= 8 for 'm'"),
        (raw(inputs=[X | {"shape": []}]), "has no shape but model requires batch dimension"),
        (raw(raw_input_contents=[b"\0" * 15]), "Expected 16, got 15"),
        (raw(inputs=[X, X], raw_input_contents=[b"\0" * 16] * 2), "already exists in request"),
        (
            raw(inputs=[X | {"contents": {"fp32_contents": [1]}}]),
            "contents field must not be specified when using raw_input_contents for 'x'",
        ),
        (message(), "has 4, got 0"),
        (message(inputs=[X | {"contents": {"fp32_contents": [1, 2, 3]}}]), "has 4, got 3"),
        (message(inputs=[X | {"contents": {"fp64_contents": [1] * 4}}]), "needs fp32_contents"),
        (
            message(inputs=[X | {"contents": {"fp32_contents": [1] * 4, "int_contents": [1]}}]),
            "unexpected explicit tensor data for input 'x'",
        ),
        (raw(parameters={"timeout": parameter("5")}), "'timeout' must be an unsigned integer"),
        (raw(parameters={"a": service_pb2.InferParameter()}), "parameter 'a' has no value"),
        (raw(outputs=[{"name": "q"}]), "unexpected inference output 'q'"),
    ],
)
def test_messages_that_are_wrong_are_refused(body: bytes, text: str) -> None:
    assert text in refusal(body)


def test_typed_values_out_of_range_are_refused() -> None:
    for datatype, field, value in (("INT8", "int_contents", 128), ("UINT8", "uint_contents", 256)):
        item = X | {"datatype": datatype, "contents": {field: [0, value, 0, 0]}}
        text = refusal(message(inputs=[item]), of(datatype))
        assert text == f"element 1 of 'x' is {value}, which is out of range for {datatype}"


def test_fp16_has_no_typed_contents() -> None:
    item = X | {"datatype": "FP16"}
    half = FOUR.astype("<f2")

    assert "raw_input_contents" in refusal(message(inputs=[item]), of("FP16"))
    got = decode(message(inputs=[item], raw_input_contents=[half.tobytes()]), of("FP16"))
    assert np.array_equal(got.inputs["x"], half)


def test_inputs_that_disagree_on_the_batch_size_are_refused() -> None:
    item = {"datatype": "INT64", "shape": [1, 1]}
    inputs = [item | {"name": "ids"}, item | {"name": "mask", "shape": [2, 1]}]
    body = message(inputs=inputs, raw_input_contents=[b"\0" * 8, b"\0" * 16])

    assert "disagree on the batch size" in refusal(body, PAIR)


def test_empty_contents_beside_raw_ones_are_no_mixture() -> None:
    assert decode(raw(inputs=[X | {"contents": {}}])).rows == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"parameters": {"sequence_id": parameter(5)}},
        {"inputs": [X | {"parameters": {"shared_memory_region": parameter("r")}}]},
        {"outputs": [{"name": "y", "parameters": {"shared_memory_region": parameter("r")}}]},
    ],
)
def test_sequences_and_shared_memory_are_unsupported(fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError):
        decode(raw(**fields))


def test_triton_s_client_is_understood() -> None:
    array = np.array([[b"a", b"bc"]], dtype=object)
    tensor = triton.InferInput("x", [1, 2], "BYTES")
    tensor.set_data_from_numpy(array)
    output = triton.InferRequestedOutput("y", class_count=3)
    # Its public calls need a server; this is what they send.
    request = triton._utils._get_inference_request(
        model_name="m",
        inputs=[tensor],
        model_version="",
        request_id="7",
        outputs=[output],
        sequence_id=0,
        sequence_start=False,
        sequence_end=False,
        priority=1,
        timeout=2000,
        parameters={"a": "b"},
    )

    got = decode(request.SerializeToString(), of("BYTES", -1, 2))

    assert got.inputs["x"].tolist() == [[b"a", b"bc"]]
    assert (got.id, got.priority, got.timeout_s, got.parameters) == ("7", 1, 0.002, {"a": "b"})
    assert got.outputs == (RequestedOutput(name="y", classification=3),)


# Answers


def ask(*outputs: RequestedOutput, id: str = "") -> InferRequest:  # noqa: A002  # the protocol's word
    return InferRequest(model_name="m", inputs={}, id=id, outputs=outputs)


def encode(request: InferRequest, parameters: Any = None, **outputs: Array) -> Any:  # noqa: ANN401  # as above
    codec = GrpcInferCodec("m", "3", ROW)
    response = InferResponse(model_name="m", outputs=outputs, parameters=parameters)
    body = codec.encode(response, request)
    assert codec.encode(response, request) == body
    parsed = service_pb2.ModelInferResponse.FromString(body)
    if not parameters:  # the order of a map's entries is free
        assert parsed.SerializeToString() == body
    return parsed


Y: Array = np.array([[0.25, 0.75]], dtype="<f4")
Z: Array = np.array([7], dtype="<i8")


def test_an_answer_has_raw_contents() -> None:
    got = encode(ask(id="a"), y=Y)

    assert (got.model_name, got.model_version, got.id) == ("m", "3", "a")
    (output,) = got.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", "FP32", [1, 2])
    assert list(got.raw_output_contents) == [Y.tobytes()]


def test_triton_s_client_reads_the_answer() -> None:
    result = triton.InferResult(encode(ask(), y=Y, z=np.array([[b"a"]], dtype=object)))

    assert np.array_equal(result.as_numpy("y"), Y)
    assert result.as_numpy("z").tolist() == [[b"a"]]


def test_outputs_come_in_the_order_and_form_that_was_asked_for() -> None:
    request = ask(RequestedOutput(name="z"), RequestedOutput(name="y", classification=1))

    got = encode(request, y=Y, z=Z)

    assert [output.name for output in got.outputs] == ["z", "y"]
    assert list(got.raw_output_contents) == [Z.tobytes(), b"\x0e\0\0\0" + b"0.750000:1:dog"]


def test_answers_of_any_shape_and_layout_are_written() -> None:
    for array in (
        np.array(5, dtype="<i4"),
        np.zeros((2, 0), dtype="<f4"),
        np.array([True]),
        np.array([1.5], dtype="<f2"),
        np.array([[1, 2], [3, 4]], dtype=">f8").T,
        np.zeros((3, 100_000), dtype="u1"),
    ):
        got = encode(ask(), y=array)
        (output,) = got.outputs
        values = np.frombuffer(got.raw_output_contents[0], DTYPES[output.datatype])
        assert np.array_equal(values.reshape(list(output.shape)), array)


def test_an_output_that_the_model_did_not_answer_is_its_failure() -> None:
    with pytest.raises(RuntimeFailedError, match="did not return output 'z'"):
        encode(ask(RequestedOutput(name="z")), y=Y)


def test_many_shapes_are_encoded_after_each_other() -> None:
    codec = GrpcInferCodec("m", "3", ROW)
    for length in range(1100):
        response = InferResponse(model_name="m", outputs={"y": np.zeros(length, dtype="u1")})
        assert codec.encode(response, ask())


def test_parameters_of_every_type_are_written() -> None:
    values = {"b": True, "i": -5, "u": 2**63, "d": 0.5, "s": "text"}

    got = encode(ask(), parameters=values, y=Y)

    assert parameter_values(got.parameters) == values


@pytest.mark.parametrize("value", [None, [1], 2**64, -(2**63) - 1])
def test_parameters_that_have_no_place_are_refused(value: object) -> None:
    with pytest.raises(InvalidArgumentError, match="parameter 'a'"):
        encode_parameters(service_pb2.ModelInferRequest().parameters, {"a": value})


def test_an_input_of_several_datatypes_is_decoded() -> None:
    inputs = [
        {"name": "ok", "datatype": "BOOL", "shape": [1, 1], "contents": {"bool_contents": [True]}},
        {"name": "age", "datatype": "INT64", "shape": [1, 1], "contents": {"int64_contents": [4]}},
        {
            "name": "name",
            "datatype": "BYTES",
            "shape": [1, 1],
            "contents": {"bytes_contents": [b"Bo"]},
        },
    ]

    got = decode(message(inputs=inputs), MIXED)

    assert [got.inputs[name].item() for name in ("age", "name", "ok")] == [4, b"Bo", True]
