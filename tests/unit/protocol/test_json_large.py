import json
from typing import Any

import numpy as np
import pytest

from headrace.core import DTYPES, InvalidArgumentError, ModelSignature
from headrace.protocol import InferDecoder
from headrace.protocol.json_decode import LARGE_BODY_BYTES
from headrace.protocol.json_large import parse_large
from tests.unit.protocol.models import PAIR, of, request, tensor

COLUMNS = 2000


def large(data: list[Any], datatype: str = "FP32", shape: tuple[int, ...] = (4, 2000)) -> bytes:
    body = request(tensor(data, shape=list(shape), datatype=datatype))
    return body + b" " * max(0, LARGE_BODY_BYTES + 1 - len(body))


def decode(body: bytes, model: ModelSignature) -> Any:  # noqa: ANN401  # an array
    return InferDecoder("m", "1", model).decode(body).inputs["x"]


def refusal(body: bytes, model: ModelSignature) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        decode(body, model)
    return str(caught.value)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT8", "UINT32", "INT64", "UINT64"])
def test_large_tensors_are_decoded_by_simdjson(datatype: str, nested: bool) -> None:  # noqa: FBT001  # a parameter
    dtype = DTYPES[datatype]
    limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
    array = np.arange(4 * COLUMNS).reshape(4, COLUMNS).astype(dtype)
    array[0, :2] = limits.min, limits.max
    body = large(array.tolist() if nested else array.ravel().tolist(), datatype)

    got = decode(body, of(datatype, -1, COLUMNS))

    assert parse_large(body) is not None
    assert got.dtype == dtype
    assert np.array_equal(got, array)


def test_integers_do_not_pass_through_floats() -> None:
    values = [2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)] * 2000
    body = large(values, "INT64")

    assert decode(body, of("INT64", -1, COLUMNS)).ravel().tolist() == values


def test_large_requests_keep_their_options() -> None:
    item = {"shape": [2, COLUMNS], "datatype": "INT64", "data": [[1] * COLUMNS] * 2}
    body = request(
        item | {"name": "ids"},
        item | {"name": "mask"},
        id="abc",
        parameters={"timeout": 5, "binary_data_output": True},
        outputs=[{"name": "y", "parameters": {"classification": 1}}],
    )

    got = InferDecoder("m", "1", PAIR).decode(body)

    assert parse_large(body) is not None
    assert (got.id, got.rows, got.timeout_s, got.binary_data_output) == ("abc", 2, 5e-6, True)
    assert got.outputs[0].classification == 1


def test_rows_of_a_few_values_are_decoded_without_simdjson() -> None:
    body = large([[1, 2]] * 5000, shape=(5000, 2))

    assert parse_large(body) is None
    assert decode(body, of("FP32", -1, 2)).shape == (5000, 2)


def test_large_strings_and_booleans_are_decoded_without_simdjson() -> None:
    assert decode(large(["a"] * 8000, "BYTES"), of("BYTES", -1, COLUMNS))[3, 5] == b"a"
    assert decode(large([True] * 8000, "BOOL"), of("BOOL", -1, COLUMNS)).all()


def test_large_integers_of_any_size_are_floats() -> None:
    body = large([7] + [0] * 7999, "FP64").replace(b"[7,", b"[1" + b"0" * 30 + b",")

    assert decode(body, of("FP64", -1, COLUMNS))[0, 0] == 1e30


def test_text_with_brackets_costs_only_time() -> None:
    body = request(tensor([1] * 8000, shape=[4, COLUMNS]), id="[" * 100)

    assert parse_large(body) is None
    assert InferDecoder("m", "1", of("FP32", -1, COLUMNS)).decode(body).id == "[" * 100


def test_the_last_of_equal_keys_counts() -> None:
    body = large([1] * 8000).replace(b'"shape"', b'"shape": [9], "shape"')

    assert decode(body, of("FP32", -1, COLUMNS)).shape == (4, COLUMNS)


ROWS = [[1.5] * COLUMNS for _ in range(4)]
RAGGED = {
    "a short row": [*ROWS[:3], ROWS[3][1:]],
    "a long and a short row": [ROWS[0] + [1.5], ROWS[1][1:], *ROWS[2:]],
    "a row too many": [*ROWS, []],
    "rows and values": [*ROWS[:3], *ROWS[3]],
    "values and rows": [*ROWS[0], *ROWS[1:]],
    "a value in its own brackets": [*ROWS[:3], [*ROWS[3][1:], [1.5]]],
    "an empty list between values": [[*ROWS[0][2:], [], [1.5, 1.5]], *ROWS[1:]],
    "flat, but for one value": [*(ROWS[0] * 4)[1:], [1.5]],
    "flat, with pairs": [*(ROWS[0] * 4)[3:], [], [1.5, 1.5], 1.5],
    "transposed": [list(row) for row in zip(*ROWS, strict=True)],
    "one level too deep": [ROWS],
}


@pytest.mark.parametrize("data", RAGGED.values(), ids=RAGGED.keys())
def test_ragged_data_is_refused(data: list[Any]) -> None:
    refusal(large(data), of("FP32", -1, COLUMNS))


@pytest.mark.parametrize(
    ("datatype", "value", "text"),
    [
        ("FP32", "1e39", "element 1 of 'x' is 1e+39, which is out of range for FP32"),
        ("FP32", "true", "element 1 of 'x' is a boolean"),
        ("FP64", '"1"', "element 1 of 'x' is a string"),
        ("FP64", "1e999", "failed to parse"),
        ("INT8", "null", "element 1 of 'x' is null, but datatype INT8 needs an integer"),
        ("INT8", "NaN", "element 1 of 'x' is nan, but datatype INT8 needs an integer"),
        ("INT64", "1.5", "element 1 of 'x' is a number with a fraction"),
        ("INT64", "9223372036854775808", "out of range for INT64"),
        ("UINT64", "-1", "out of range for UINT64"),
        ("UINT8", "300", "element 1 of 'x' is 300, which is out of range for UINT8"),
        ("INT8", "-129", "out of range for INT8"),
        ("FP16", "1", "receiving FP16 data via JSON is not supported"),
    ],
)
def test_values_that_do_not_fit_are_refused(datatype: str, value: str, text: str) -> None:
    body = large([0, 7] + [0] * 7998, datatype).replace(b"[0, 7,", b"[0, " + value.encode() + b",")

    assert text in refusal(body, of(datatype, -1, COLUMNS))


@pytest.mark.parametrize("change", [(b"}", b""), (b'"x"', b'"\xff"'), (b'"x"', b'"\\ud800"')])
def test_large_documents_that_are_no_json_are_refused(change: tuple[bytes, bytes]) -> None:
    body = large([0] * 8000).replace(*change)

    assert "failed to parse the request JSON buffer" in refusal(body, of("FP32", -1, COLUMNS))


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"inputs": 5}', b'{"inputs": [5]}'])
def test_large_documents_that_are_no_request_are_refused(body: bytes) -> None:
    padded = body + b" " * LARGE_BODY_BYTES

    assert "failed to parse the request JSON buffer" in refusal(padded, of("FP32"))


def test_binary_parameters_and_missing_data_are_refused() -> None:
    many = [0] * 8000
    for item in (
        tensor(many, shape=[4, COLUMNS], parameters={"binary_data_size": 5}),
        tensor(None, colour="red" * 9000),
    ):
        refusal(json.dumps({"inputs": [item]}).encode(), of("FP32", -1, COLUMNS))


def test_names_and_counts_are_checked() -> None:
    many = [0] * 8000

    assert "unexpected inference input" in refusal(
        request(tensor(many, name="w", shape=[4, COLUMNS])), of("FP32", -1, COLUMNS)
    )
    assert "has 8000, got 7999" in refusal(large(many[1:]), of("FP32", -1, COLUMNS))
