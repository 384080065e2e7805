import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.load.connection import is_infer_response

GOOD = {
    "model_name": "m",
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1]}],
}


def binary(tensor: bytes, claimed: int | None = None) -> tuple[bytes, bytes]:
    size = len(tensor) if claimed is None else claimed
    output = {
        "name": "y",
        "datatype": "FP32",
        "shape": [1],
        "parameters": {"binary_data_size": size},
    }
    head = json.dumps({"outputs": [output]}).encode()
    return head + tensor, str(len(head)).encode()


def test_answers_of_the_protocol_are_good() -> None:
    assert is_infer_response(orjson.dumps(GOOD), b"")
    assert is_infer_response(*binary(b"\0\0\0\0"))


def test_a_large_answer_is_looked_at_by_its_ends() -> None:
    large = orjson.dumps({**GOOD, "parameters": {"x": "y" * 100_000}})

    assert is_infer_response(large, b"")
    assert not is_infer_response(large[:-2], b"")
    assert not is_infer_response(b"<html>" + large, b"")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"hello",
        b'{"error":"no"}',
        b'{"outputs":{}}',
        b'{"outputs":[{}]}',
        orjson.dumps(GOOD)[:-1],
        orjson.dumps(GOOD) + b"x",
        b'{"outputs":' + b"[" * 50_000,
    ],
)
def test_anything_else_is_none(body: bytes) -> None:
    assert not is_infer_response(body, b"")


@pytest.mark.parametrize("length", [b"-1", b"x", b"99999", b"9" * 5000, b"1"])
def test_a_head_length_that_cannot_be_is_no_answer(length: bytes) -> None:
    body, _ = binary(b"\0\0\0\0")

    assert not is_infer_response(body, length)


@pytest.mark.parametrize("claimed", [0, 3, 5, -4, 1 << 70])
def test_tensors_that_are_not_as_long_as_they_claim_are_no_answer(claimed: int) -> None:
    assert not is_infer_response(*binary(b"\0\0\0\0", claimed))


@given(st.binary(max_size=200), st.binary(max_size=6))
def test_no_bytes_raise(body: bytes, length: bytes) -> None:
    assert is_infer_response(body, length) in {True, False}
