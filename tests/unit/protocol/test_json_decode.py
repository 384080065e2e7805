import json
from typing import Any

import numpy as np
import pytest

from headrace.core import (
    DTYPES,
    InferRequest,
    InvalidArgumentError,
    ModelSignature,
    RequestedOutput,
    UnsupportedError,
)
from headrace.protocol import InferDecoder
from tests.unit.protocol.models import FOUR, MIXED, PAIR, ROW, of, request, signature, spec, tensor

INTEGERS = ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]


def decode(
    body: bytes, model: ModelSignature = ROW, max_batch_size: int | None = None
) -> InferRequest:
    return InferDecoder("m", "3", model, max_batch_size=max_batch_size).decode(body)


def refusal(body: bytes, model: ModelSignature = ROW, max_batch_size: int | None = None) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        decode(body, model, max_batch_size=max_batch_size)
    return str(caught.value)


@pytest.mark.parametrize("data", [[1, 2.0, 3, 4e0], [[1, 2, 3, 4]]], ids=["flat", "nested"])
def test_a_row_is_decoded_flat_or_nested(data: list[Any]) -> None:
    got = decode(request(tensor(data), id="abc"))

    assert np.array_equal(got.inputs["x"], FOUR)
    assert got.inputs["x"].dtype == np.float32
    assert (got.model_name, got.model_version, got.id, got.rows) == ("m", "3", "abc", 1)
    assert (got.outputs, got.priority, got.timeout_s, got.parameters) == ((), 0, None, None)


def test_one_decoder_takes_flat_and_nested_by_turns() -> None:
    decoder = InferDecoder("m", "1", ROW)
    bodies = [request(tensor([1, 2, 3, 4])), request(tensor([[1, 2, 3, 4]]))] * 3

    assert all(np.array_equal(decoder.decode(body).inputs["x"], FOUR) for body in bodies)


def test_arrays_cannot_be_written() -> None:
    assert not decode(request(tensor([1, 2, 3, 4]))).inputs["x"].flags.writeable


def test_rows_are_counted() -> None:
    assert decode(request(tensor([1] * 12, shape=[3, 4]))).rows == 3
    assert (
        decode(request(tensor([1] * 12, shape=[3, 4])), of("FP32", 3, 4, batched=False)).rows == 1
    )


def test_several_inputs_of_one_datatype_in_any_order() -> None:
    item = {"shape": [2, 3], "datatype": "INT64"}
    ids = item | {"name": "ids", "data": [[1, 2, 3], [4, 5, 6]]}
    mask = item | {"name": "mask", "data": [[1, 1, 1], [1, 1, 0]]}

    got = decode(request(mask, ids), PAIR)

    assert got.inputs["ids"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert got.inputs["mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert got.rows == 2


def test_inputs_of_several_datatypes() -> None:
    got = decode(
        request(
            {"name": "age", "shape": [2, 1], "datatype": "INT64", "data": [30, 40]},
            {"name": "name", "shape": [2, 1], "datatype": "BYTES", "data": [["Zoë"], ["Bo"]]},
            {"name": "ok", "shape": [2, 1], "datatype": "BOOL", "data": [True, 0]},
        ),
        MIXED,
    )

    assert got.inputs["age"].tolist() == [[30], [40]]
    assert got.inputs["name"].tolist() == [["Zoë".encode()], [b"Bo"]]
    assert got.inputs["ok"].tolist() == [[True], [False]]


def test_null_is_as_good_as_absent() -> None:
    body = json.dumps(
        {
            "id": None,
            "parameters": None,
            "outputs": None,
            "inputs": [tensor([1, 2, 3, 4]) | {"parameters": None}],
        }
    ).encode()

    assert decode(body).id == ""


def test_unknown_fields_are_ignored() -> None:
    got = decode(request(tensor([1, 2, 3, 4], colour="red", parameters={"a": 1}), extra=[1]))

    assert np.array_equal(got.inputs["x"], FOUR)


def test_the_last_of_equal_keys_counts() -> None:
    body = request(tensor([1, 2, 3, 4])).replace(b'"shape"', b'"shape": [9], "shape"')

    assert decode(body).rows == 1


# Values


@pytest.mark.parametrize("datatype", INTEGERS)
@pytest.mark.parametrize("nested", [False, True])
def test_integers_keep_their_limits(datatype: str, nested: bool) -> None:  # noqa: FBT001  # a parameter
    limits = np.iinfo(DTYPES[datatype])
    row = [int(limits.min), int(limits.max), 0, 1]
    body = request(tensor([row] if nested else row, datatype=datatype))

    got = decode(body, of(datatype)).inputs["x"]

    assert got.tolist() == [row]
    assert got.dtype == DTYPES[datatype]


@pytest.mark.parametrize("datatype", INTEGERS)
@pytest.mark.parametrize("beyond", [-1, 1])
def test_integers_beyond_their_limits_are_refused(datatype: str, beyond: int) -> None:
    limits = np.iinfo(DTYPES[datatype])
    value = int(limits.max) + 1 if beyond > 0 else int(limits.min) - 1

    text = refusal(request(tensor([0, 0, value, 0], datatype=datatype)), of(datatype))

    assert text == f"element 2 of 'x' is {value}, which is out of range for {datatype}"


@pytest.mark.parametrize(
    ("datatype", "value", "problem"),
    [
        ("FP32", "1.5", "a string"),
        ("FP32", True, "a boolean"),
        ("FP32", {}, "an object"),
        ("FP64", [1], "an array"),
        ("INT64", 1.5, "a number with a fraction"),
        ("INT64", 1.0, "a number with a fraction"),
        ("INT64", True, "a boolean"),
        ("INT64", "1", "a string"),
        ("UINT8", None, "null"),
        ("BOOL", "true", "a string"),
        ("BOOL", 0.0, "a number with a fraction"),
        ("BYTES", 1, "an integer"),
        ("BYTES", None, "null"),
    ],
)
def test_values_of_another_type_are_refused(datatype: str, value: object, problem: str) -> None:
    zero = "" if datatype == "BYTES" else 0

    text = refusal(request(tensor([zero, value, zero, zero], datatype=datatype)), of(datatype))

    assert text.startswith(f"element 1 of 'x' is {problem}")
    assert f"datatype {datatype} needs" in text


@pytest.mark.parametrize(
    ("datatype", "value", "shown"),
    [
        ("FP32", "1e39", "1e+39"),
        ("FP32", "-3.5e38", "-3.5e+38"),
        ("FP64", "1" + "0" * 310, "a huge integer"),
        ("FP64", "1e999", None),
        ("INT64", "1" + "0" * 40, "a huge integer"),
        ("INT64", "1" + "0" * 5000, None),
        ("BOOL", "2", "2"),
        ("BOOL", "-1", "-1"),
    ],
)
def test_numbers_out_of_range_are_refused(datatype: str, value: str, shown: str | None) -> None:
    body = request(tensor([7, 0, 0, 0], datatype=datatype)).replace(b"[7", b"[" + value.encode())

    text = refusal(body, of(datatype))

    assert "out of range" in text
    assert shown is None or f"element 0 of 'x' is {shown}," in text


@pytest.mark.parametrize("value", ["-NaN", "+Infinity", "- Infinity", "nan", "inf", "Inf", "1NaN"])
def test_other_spellings_of_what_json_has_no_number_for_are_refused(value: str) -> None:
    body = request(tensor([7, 0, 0, 0])).replace(b"[7", b"[" + value.encode())

    assert refusal(body).startswith("failed to parse the request JSON buffer")


def test_fp16_has_no_json() -> None:
    text = refusal(request(tensor([1, 2, 3, 4], datatype="FP16")), of("FP16"))

    assert text.startswith("receiving FP16 data via JSON is not supported. Please use the binary")


# Shapes and nesting


@pytest.mark.parametrize("data", [[1, 2, 3], [1, 2, 3, 4, 5], [], [[1, 2, 3]]])
def test_another_number_of_elements_is_refused(data: list[Any]) -> None:
    refusal(request(tensor(data)))


@pytest.mark.parametrize(
    "data",
    [
        [[1, 2, 3, 4], [5, 6, 7]],
        [[1, 2, 3, 4, 5], [6, 7, 8]],
        [[1, 2], [3, 4], [5, 6], [7, 8]],
        [[[1, 2, 3, 4], [5, 6, 7, 8]]],
        [[1, 2, 3, 4], 5, 6, 7, 8],
        [1, 2, 3, 4, [5, 6, 7, 8]],
        [[], []],
        [[1, 2, 3, [4]], [5, 6, 7, 8]],
    ],
)
def test_ragged_data_is_refused(data: list[Any]) -> None:
    for datatype in ("FP32", "BYTES"):
        item = json.loads(json.dumps(data), parse_int=float if datatype == "FP32" else str)
        refusal(request(tensor(item, shape=[2, 4], datatype=datatype)), of(datatype))


def test_data_nested_deeper_than_any_shape_is_refused() -> None:
    for depth in (101, 900, 100_000):
        body = request(tensor([7])).replace(b"[7]", b"[" * depth + b"]" * depth)
        refusal(body)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ([1, 3], "unexpected shape for input 'x' for model 'm'. Expected [-1,4], got [1,3]"),
        ([4], "unexpected shape for input 'x' for model 'm'. Expected [-1,4], got [4]"),
        ([], "input 'x' has no shape but model requires batch dimension for 'm'"),
        ([-1, 4], "shape [-1,4] of input 'x' is not a valid shape"),
        ([0, 4], "inference request for model 'm' has a batch size of 0"),
        ([10**30, 4], "shape [huge,4] of input 'x' is not a valid shape"),
        ([1] * 70, "shape [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,...] of input 'x' is not a valid shape"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(shape: list[int], text: str) -> None:
    assert refusal(request(tensor([1, 2, 3, 4], shape=shape))) == text


@pytest.mark.parametrize("shape", [[2**39, 2**39], [0, 2**39, 2**39], [1, 2**39, 2**39]])
def test_a_shape_whose_product_overflows_is_refused(shape: list[int]) -> None:
    model = of("FP32", *[-1] * len(shape), batched=False)

    assert "larger than any request" in refusal(request(tensor([], shape=shape)), model)


@pytest.mark.parametrize("shape", ["4", [1.5, 4], ["1", 4], [True, 4], None, [None, 4]])
def test_a_shape_that_is_no_list_of_integers_is_refused(shape: object) -> None:
    body = json.dumps({"inputs": [tensor([1, 2, 3, 4]) | {"shape": shape}]}).encode()

    assert refusal(body).startswith("failed to parse the request JSON buffer")


def test_rank_zero_and_empty_tensors_are_decoded() -> None:
    scalar = decode(request(tensor([5], shape=[])), signature(spec("x", "FP32"), batched=False))
    empty = decode(request(tensor([], shape=[1, 0])), of("FP32", -1, -1))

    assert scalar.inputs["x"].shape == ()
    assert scalar.inputs["x"] == 5
    assert empty.inputs["x"].shape == (1, 0)


def test_a_batch_that_is_too_large_is_refused() -> None:
    body = request(tensor([0] * 12, shape=[3, 4]))

    assert decode(body, max_batch_size=3).rows == 3
    assert "batch-size must be <= 2 for 'm'" in refusal(body, max_batch_size=2)


def test_many_shapes_are_decoded_after_each_other() -> None:
    decoder = InferDecoder("m", "1", of("FP32", -1, -1))

    for length in range(1500):
        body = request(tensor([1.0] * (length % 7), shape=[1, length % 7]))
        assert decoder.decode(body).inputs["x"].shape == (1, length % 7)
    for length in range(1100):
        with pytest.raises(InvalidArgumentError):
            decoder.decode(request(tensor([], shape=[1, length + 1])))


# Names and datatypes


def test_names_that_do_not_fit_are_refused() -> None:
    row = tensor([1, 2, 3, 4])
    ids = {"name": "ids", "shape": [1, 1], "datatype": "INT64", "data": [1]}

    assert refusal(request(tensor([1], name="w"))) == "unexpected inference input 'w' for model 'm'"
    assert refusal(request(row, row)) == "input 'x' already exists in request for model 'm'"
    assert refusal(request()).startswith("expected 1 inputs but got 0 inputs for model 'm'")
    assert refusal(request(ids), PAIR).startswith("expected 2 inputs but got 1 inputs")
    assert len(refusal(request(tensor([1], name="w" * 100_000)))) < 300


def test_inputs_that_disagree_on_the_batch_size_are_refused() -> None:
    ids = {"name": "ids", "shape": [1, 2], "datatype": "INT64", "data": [1, 2]}
    mask = {"name": "mask", "shape": [2, 1], "datatype": "INT64", "data": [1, 2]}

    assert "disagree on the batch size: 1 and 2" in refusal(request(ids, mask), PAIR)


def test_another_datatype_is_refused() -> None:
    got = refusal(request(tensor([1, 2, 3, 4], datatype="FP64")))

    assert got == "inference input 'x' data-type is 'FP64', but model 'm' expects 'FP32'"
    assert "BF16 is not supported" in refusal(request(tensor([1], datatype="BF16")))


# Documents


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"inputs"',
        b'{"inputs": null}',
        b'{"inputs": {}}',
        b'{"inputs": [1]}',
        b'{"inputs": [{}]}',
        b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": 5}]}',
        b'{"inputs": [{"name": 1, "shape": [1, 4], "datatype": "FP32", "data": [1]}]}',
        request(tensor([1, 2, 3, 4])) + b"x",
        request(tensor([1, 2, 3, 4]))[:-3],
        request(tensor([1, 2, 3, 4]), id=5),
        request(tensor([1, 2, 3, 4]), parameters=[1]),
        request(tensor([1, 2, 3, 4]), outputs=[{}]),
        request(tensor([1, 2, 3, 4])).replace(b'"x"', b'"\xff"'),
        request(tensor([1, 2, 3, 4])).replace(b'"x"', b'"\\ud800"'),
        b"\xef\xbb\xbf" * 2 + request(tensor([1, 2, 3, 4])),
        b"\x1f\x8b\x08\x00",
    ],
)
def test_a_document_that_is_no_request_is_refused(body: bytes) -> None:
    text = refusal(body)

    assert text.startswith("failed to parse the request JSON buffer: ")
    assert len(text) < 400


def test_missing_data_is_refused() -> None:
    text = refusal(request(tensor(None)))

    assert text.startswith("input 'x' has no data")
    assert "must specify" not in text


def test_binary_data_without_a_header_length_is_refused() -> None:
    body = request(tensor(None, parameters={"binary_data_size": 16}))

    text = refusal(body)

    assert text.startswith("must specify valid 'Inference-Header-Content-Length' in request header")


@pytest.mark.parametrize("region", ["r", 1])
def test_shared_memory_is_unsupported(region: object) -> None:
    parameters = {"shared_memory_region": region, "shared_memory_byte_size": 16}
    for data in (None, [1, 2, 3, 4]):
        with pytest.raises(UnsupportedError, match="shared memory"):
            decode(request(tensor(data, parameters=parameters)))


# Parameters and outputs


def test_parameters_are_understood() -> None:
    parameters = {
        "priority": 2,
        "timeout": 1500,
        "binary_data_output": True,
        "triton_enable_empty_final_response": False,
        "sequence_id": 0,
        "sequence_start": False,
        "mine": "a",
        "half": 0.5,
        "on": True,
        "n": -1,
    }

    got = decode(request(tensor([1, 2, 3, 4]), parameters=parameters))

    assert (got.priority, got.timeout_s, got.binary_data_output) == (2, 0.0015, True)
    assert got.parameters == {"mine": "a", "half": 0.5, "on": True, "n": -1}


def test_a_timeout_of_zero_is_none() -> None:
    got = decode(request(tensor([1, 2, 3, 4]), parameters={"timeout": 0, "priority": 0}))

    assert got.timeout_s is None
    assert got.parameters is None


@pytest.mark.parametrize(
    "parameters",
    [
        {"timeout": -1},
        {"timeout": 1.5},
        {"timeout": "5"},
        {"timeout": True},
        {"timeout": 2**64},
        {"priority": -1},
        {"priority": None},
        {"binary_data_output": 1},
        {"triton_x": 1},
        {"triton_enable_empty_final_response": 1},
        {"headers": "x"},
        {"mine": None},
        {"mine": [1]},
        {"mine": {"a": 1}},
    ],
)
def test_parameters_that_are_wrong_are_refused(parameters: dict[str, Any]) -> None:
    assert next(iter(parameters)) in refusal(request(tensor([1, 2, 3, 4]), parameters=parameters))


@pytest.mark.parametrize("name", ["sequence_id", "sequence_start", "sequence_end"])
def test_sequences_are_unsupported(name: str) -> None:
    with pytest.raises(UnsupportedError, match="sequence"):
        decode(request(tensor([1, 2, 3, 4]), parameters={name: 1}))


def test_requested_outputs_are_understood() -> None:
    outputs = [
        {"name": "z", "parameters": {"binary_data": False, "unknown": [1]}},
        {"name": "y", "parameters": {"classification": 2}},
    ]

    got = decode(request(tensor([1, 2, 3, 4]), outputs=outputs))

    assert got.outputs == (
        RequestedOutput(name="z", binary_data=False),
        RequestedOutput(name="y", classification=2),
    )


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ([{"name": "q"}], "unexpected inference output 'q' for model 'm'"),
        ([{"name": "y"}, {"name": "y"}], "more than once"),
        ([{"name": "y", "parameters": {"classification": -1}}], "classification"),
        ([{"name": "y", "parameters": {"classification": True}}], "classification"),
        ([{"name": "y", "parameters": {"binary_data": "yes"}}], "binary_data"),
    ],
)
def test_outputs_that_are_wrong_are_refused(outputs: list[Any], text: str) -> None:
    assert text in refusal(request(tensor([1, 2, 3, 4]), outputs=outputs))


def test_outputs_in_shared_memory_are_unsupported() -> None:
    outputs = [{"name": "y", "parameters": {"shared_memory_region": "r"}}]

    with pytest.raises(UnsupportedError, match="shared memory"):
        decode(request(tensor([1, 2, 3, 4]), outputs=outputs))
