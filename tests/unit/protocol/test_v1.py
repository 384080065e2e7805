import json
from typing import Any

import numpy as np
import pytest

from headrace.core import (
    Array,
    InferRequest,
    InferResponse,
    InvalidArgumentError,
    ModelSignature,
)
from headrace.protocol import V1Codec
from tests.unit.protocol.models import FOUR, MIXED, PAIR, ROW, of, signature, spec

SCALAR = signature(spec("x", "FP32"), batched=False)


def decode(document: object, model: ModelSignature = ROW) -> InferRequest:
    return V1Codec("m", "3", model, max_batch_size=8).decode(json.dumps(document).encode())


def refusal(document: object, model: ModelSignature = ROW) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        decode(document, model)
    return str(caught.value)


@pytest.mark.parametrize(
    "document",
    [
        {"instances": [[1, 2, 3, 4]]},
        {"instances": [{"x": [1, 2, 3, 4]}]},
        {"inputs": [[1, 2, 3, 4]]},
        {"inputs": {"x": [[1, 2, 3, 4]]}},
        {"signature_name": "serving_default", "instances": [[1, 2, 3, 4]]},
    ],
)
def test_a_row_is_decoded_in_every_form(document: object) -> None:
    got = decode(document)

    assert np.array_equal(got.inputs["x"], FOUR)
    assert (got.model_name, got.model_version, got.rows) == ("m", "3", 1)


def test_rows_of_several_inputs_are_objects() -> None:
    rows = [
        {"age": [30], "name": ["Zoë"], "ok": [True]},
        {"ok": [0], "age": [40], "name": [{"b64": "/w=="}]},
    ]
    columns = {"age": [30, 40], "name": ["Zoë", {"b64": "/w=="}], "ok": [[True], [0]]}

    for document in ({"instances": rows}, {"inputs": columns}):
        got = decode(document, MIXED)
        assert got.inputs["age"].tolist() == [[30], [40]]
        assert got.inputs["name"].tolist() == [["Zoë".encode()], [b"\xff"]]
        assert got.inputs["ok"].tolist() == [[True], [False]]
        assert got.rows == 2


def test_bare_values_are_rows_of_a_column() -> None:
    assert decode({"instances": [1, 2, 3]}, of("INT64", -1, 1)).inputs["x"].tolist() == [
        [1],
        [2],
        [3],
    ]
    assert decode({"instances": [1, 2, 3]}, of("INT64", -1)).inputs["x"].tolist() == [1, 2, 3]


def test_strings_may_be_base64() -> None:
    got = decode({"instances": [{"b64": "YQ=="}, "b"]}, of("BYTES", -1))

    assert got.inputs["x"].tolist() == [b"a", b"b"]


def test_an_input_called_b64_is_an_input() -> None:
    model = signature(spec("b64", "BYTES", -1))

    assert decode({"instances": [{"b64": "YQ=="}]}, model).inputs["b64"].tolist() == [b"YQ=="]


def test_halves_may_be_sent_in_v1() -> None:
    assert decode({"instances": [[1, 2, 3, 4.5]]}, of("FP16")).inputs["x"].dtype == np.float16
    assert "out of range for FP16" in refusal({"instances": [[1, 2, 3, 1e6]]}, of("FP16"))


def test_a_model_without_a_batch_takes_its_tensor() -> None:
    model = of("FP32", 2, 2, batched=False)

    for document in (
        {"instances": [[1, 2], [3, 4]]},
        {"inputs": [[1, 2], [3, 4]]},
        {"instances": [{"x": [[1, 2], [3, 4]]}]},
    ):
        got = decode(document, model)
        assert got.inputs["x"].tolist() == [[1, 2], [3, 4]]
        assert got.rows == 1
    assert decode({"inputs": 5}, SCALAR).inputs["x"] == 5


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ([], 'Expected "instances" or "inputs"'),
        ({}, 'Expected "instances" or "inputs"'),
        ({"instances": {}}, 'Expected "instances" to be a list'),
        ({"instances": None}, 'Expected "instances" to be a list'),
        ({"instances": [[1]], "inputs": [[1]]}, "got both"),
        ({"instances": []}, "Expected [-1,4], got [0]"),
        ({"instances": [[1, 2, 3]]}, "Expected [-1,4], got [1,3]"),
        ({"instances": [[1, 2, 3, 4], [1, 2]]}, "not nested as its shape"),
        ({"instances": [[1, 2, 3, "4"]]}, "element 3 of 'x' is a string"),
        ({"instances": [[1, 2, 3, [4]]]}, "element 3 of 'x' is an array"),
        ({"instances": [[1, 2, 3, {"b64": "YQ=="}]]}, "element 3 of 'x' is an object"),
        ({"instances": [[1, 2, 3, 1e39]]}, "out of range for FP32"),
        ({"instances": [{"w": [1, 2, 3, 4]}]}, "unexpected inference input 'w'"),
        ({"instances": [{"x": [1, 2, 3, 4]}, 5]}, "instance 1 does not name the same inputs"),
        ({"instances": [[0] * 4] * 9}, "batch-size must be <= 8"),
        ({"inputs": {}}, "expected 1 inputs but got 0"),
        ({"inputs": "a"}, "has no shape but model requires batch dimension"),
        ({"inputs": None}, "has no shape but model requires batch dimension"),
    ],
)
def test_documents_that_are_wrong_are_refused(document: object, text: str) -> None:
    assert text in refusal(document)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"instances": [[1]]}, "several inputs"),
        ({"inputs": [[1]]}, "to be an object by input name"),
        ({"instances": [{"ids": [1]}]}, "expected 2 inputs but got 1"),
        ({"inputs": {"ids": [[1]], "mask": [[1], [1]]}}, "disagree on the batch size"),
    ],
)
def test_documents_for_several_inputs_are_checked(document: object, text: str) -> None:
    assert text in refusal(document, PAIR)


def test_two_instances_need_a_batch_axis() -> None:
    model = of("FP32", 1, batched=False)

    assert "has no batch axis" in refusal({"instances": [{"x": [1]}, {"x": [2]}]}, model)


@pytest.mark.parametrize("value", ["?", 5, None, "YQ"])
def test_base64_that_is_none_is_refused(value: object) -> None:
    assert "not valid base64" in refusal({"instances": [{"b64": value}]}, of("BYTES", -1))


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"instances": [nan]}'])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="failed to parse"):
        V1Codec("m", "3", ROW).decode(body)


def test_strings_nested_deeply_are_refused() -> None:
    body = b'{"instances": ' + b"[" * 900 + b"]" * 900 + b"}"

    with pytest.raises(InvalidArgumentError):
        V1Codec("m", "3", of("BYTES", -1, 1)).decode(body)


# Answers


def predictions(model: ModelSignature = ROW, **outputs: Array) -> Any:  # noqa: ANN401  # JSON
    body = V1Codec("m", "3", model).encode(InferResponse(model_name="m", outputs=outputs))
    document = json.loads(body)
    assert list(document) == ["predictions"]
    return document["predictions"]


def test_the_only_output_is_rows() -> None:
    assert predictions(y=np.array([[0.25, 0.75], [1, 0]], dtype="<f4")) == [[0.25, 0.75], [1, 0]]
    assert predictions(y=np.array([3, 4])) == [3, 4]
    assert predictions(y=np.zeros((0, 2))) == []
    assert predictions(y=np.array([[1.5, np.nan]], dtype="<f2")) == [[1.5, None]]
    assert predictions(y=np.array([np.inf, -np.inf, np.nan])) == ["Infinity", "-Infinity", None]


def test_several_outputs_are_objects() -> None:
    got = predictions(
        y=np.array([[1, 2], [3, 4]], dtype="<f4").T,
        n=np.array([5, 6]),
        b=np.array([True, False]),
        s=np.array([b"a", b"\xff"], dtype=object),
        t=np.array([["a"], ["b"]]),
    )

    assert got == [
        {"y": [1, 3], "n": 5, "b": True, "s": "a", "t": ["a"]},
        {"y": [2, 4], "n": 6, "b": False, "s": {"b64": "/w=="}, "t": ["b"]},
    ]


def test_a_model_without_a_batch_answers_its_tensors() -> None:
    assert predictions(SCALAR, y=np.array(5)) == [5]
    assert predictions(SCALAR, y=np.array(b"a", dtype=object)) == ["a"]
    assert predictions(SCALAR, y=np.array([[1, 2]]), z=np.array(3)) == [{"y": [[1, 2]], "z": 3}]
