import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headrace.client import ProtocolError
from headrace.client.http_transport import HttpReply
from headrace.client.http_wire import HttpWire, decode_infer
from headrace.client.tensors import from_raw, to_raw
from headrace.core import (
    DTYPES,
    Array,
    Datatype,
    HeadraceError,
    NotFoundError,
    OverloadedError,
    datatype_of,
)

NUMBERS = [dtype for name, dtype in DTYPES.items() if name != Datatype.BYTES]


def reply(
    outputs: list[dict[str, Any]], raw: bytes = b"", *, length: str | None = None
) -> HttpReply:
    head = json.dumps({"model_name": "m", "outputs": outputs}).encode()
    headers = {}
    if raw or length is not None:
        headers["inference-header-content-length"] = str(len(head)) if length is None else length
    return HttpReply(status=200, headers=headers, body=head + raw)


def binary(name: str, datatype: str, shape: list[int], size: object) -> dict[str, Any]:
    parameters = {"binary_data_size": size}
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}


@given(hnp.arrays(st.sampled_from(NUMBERS), hnp.array_shapes(min_dims=0, min_side=0)))
def test_numbers_survive_the_raw_form(array: Array) -> None:
    datatype = datatype_of(array.dtype)

    back = from_raw("x", datatype, array.shape, bytes(to_raw(array)))

    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()
    assert back.shape == array.shape


@given(hnp.arrays(object, hnp.array_shapes(min_side=0), elements=st.binary(max_size=9)))
def test_byte_strings_survive_the_raw_form(array: Array) -> None:
    back = from_raw("x", "BYTES", array.shape, bytes(to_raw(array)))

    assert back.tolist() == array.tolist()


def test_binary_and_json_outputs_may_stand_in_one_answer() -> None:
    outputs = [
        binary("a", "FP32", [2], 8),
        {"name": "b", "datatype": "INT64", "shape": [1, 2], "data": [[1, 2]]},
        binary("c", "BYTES", [1], 5),
    ]
    raw = np.array([1, 2], "<f4").tobytes() + b"\x01\0\0\0z"

    response = decode_infer(reply(outputs, raw))

    assert response.outputs["a"].tolist() == [1, 2]
    assert response.outputs["b"].tolist() == [[1, 2]]
    assert response.outputs["c"].tolist() == [b"z"]


def test_a_binary_output_is_a_view_into_the_answer() -> None:
    answer = reply([binary("a", "FP32", [2], 8)], bytes(8))

    array = decode_infer(answer).outputs["a"]

    assert not array.flags.owndata
    assert not array.flags.writeable


def test_json_outputs_take_null_for_not_a_number_and_text_for_bytes() -> None:
    outputs = [
        {"name": "a", "datatype": "FP32", "shape": [2], "data": [1.5, None]},
        {"name": "b", "datatype": "BYTES", "shape": [1, 2], "data": ["x", "ü"]},
    ]

    response = decode_infer(reply(outputs))

    assert np.isnan(response.outputs["a"][1])
    assert response.outputs["b"].tolist() == [[b"x", "ü".encode()]]


@pytest.mark.parametrize(
    "answer",
    [
        reply([binary("a", "FP32", [2], 8)], bytes(7)),
        reply([binary("a", "FP32", [2], 8)], bytes(9)),
        reply([binary("a", "FP32", [3], 8)], bytes(8)),
        reply([binary("a", "BF16", [4], 8)], bytes(8)),
        reply([binary("a", "FP32", [2], "8")], bytes(8)),
        reply([binary("a", "FP32", [2], -8)], bytes(8)),
        reply([binary("a", "BYTES", [1], 8)], bytes(8)),
        reply([{"name": "a", "datatype": "FP32", "shape": [2], "data": ["x"]}]),
        reply([{"name": "a", "datatype": "INT8", "shape": [1], "data": [400]}]),
        reply([{"name": "a", "datatype": "WHAT", "shape": [1], "data": [1]}]),
        reply([{"name": "a", "datatype": "BYTES", "shape": [3], "data": ["x"]}]),
        reply([{"name": "a", "datatype": "FP32", "shape": [1]}] * 2, length="x"),
        reply([], length="99999"),
        HttpReply(status=200, headers={}, body=b"<html>"),
        HttpReply(status=200, headers={}, body=b"[" * 100_000),
        HttpReply(status=200, headers={}, body=b"\xff\xfe"),
    ],
)
def test_an_answer_that_is_not_the_protocols_is_told_as_that(answer: HttpReply) -> None:
    with pytest.raises(ProtocolError):
        decode_infer(answer)


@given(st.binary(max_size=200), st.none() | st.text(max_size=4))
def test_no_answer_breaks_the_client(body: bytes, length: str | None) -> None:
    headers = {} if length is None else {"inference-header-content-length": length}

    try:
        decode_infer(HttpReply(status=200, headers=headers, body=body))
    except HeadraceError:
        return


def test_an_error_is_read_whatever_the_case_of_its_headers() -> None:
    answer = HttpReply(status=429, headers={"Retry-After": "3"}, body=b'{"error": "full"}')

    with pytest.raises(OverloadedError, match="full") as caught:
        decode_infer(answer)

    assert caught.value.retry_after_s == 3


def test_a_page_of_another_server_is_no_metadata() -> None:
    exchange = HttpWire().server_metadata()

    with pytest.raises(ProtocolError, match="does not speak"):
        exchange.read(HttpReply(status=200, headers={}, body=b"<html></html>"))


def test_a_page_is_not_repeated_in_the_error() -> None:
    page = HttpReply(status=404, headers={}, body=b"\n<!DOCTYPE HTML><p>no</p>")

    with pytest.raises(NotFoundError, match=r"^the server answered with HTTP status 404$"):
        decode_infer(page)
