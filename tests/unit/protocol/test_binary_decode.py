import struct

import numpy as np
import pytest

from headrace.core import InferRequest, InvalidArgumentError, ModelSignature
from headrace.protocol import InferDecoder
from tests.unit.protocol.models import (
    FOUR,
    MIXED,
    PAIR,
    ROW,
    binary,
    of,
    request,
    signature,
    spec,
    tensor,
)

X = tensor(None)


def decode(body: bytes, header_length: int | None, model: ModelSignature = ROW) -> InferRequest:
    return InferDecoder("m", "3", model).decode(body, header_length)


def refusal(body: bytes, header_length: int | None, model: ModelSignature = ROW) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        decode(body, header_length, model)
    return str(caught.value)


def elements(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def test_a_tensor_follows_the_json() -> None:
    body, length = binary((X, FOUR.tobytes()), id="a", parameters={"binary_data_output": True})

    got = decode(body, length)

    assert np.array_equal(got.inputs["x"], FOUR)
    assert (got.id, got.rows, got.binary_data_output) == ("a", 1, True)


def test_an_aligned_tensor_is_a_view_and_no_tensor_is_unaligned() -> None:
    views = 0
    for padding in range(4):
        header = request(X | {"parameters": {"binary_data_size": 16}}) + b" " * padding
        got = decode(header + FOUR.tobytes(), len(header)).inputs["x"]
        assert got.flags.aligned
        assert np.array_equal(got, FOUR)
        views += got.base is not None

    assert views == 1


def test_binary_and_json_tensors_share_a_request() -> None:
    name = {"name": "name", "shape": [2, 1], "datatype": "BYTES"}
    age: dict[str, object] = {"name": "age", "shape": [2, 1], "datatype": "INT64", "data": [1, 2]}
    ok = {"name": "ok", "shape": [2, 1], "datatype": "BOOL"}
    sized: list[dict[str, object]] = [
        name | {"parameters": {"binary_data_size": 11}},
        age,
        ok | {"parameters": {"binary_data_size": 2}},
    ]
    header = request(*sized)

    got = decode(header + elements(b"abc", b"") + b"\1\0", len(header), MIXED)

    assert got.inputs["name"].tolist() == [[b"abc"], [b""]]
    assert got.inputs["age"].tolist() == [[1], [2]]
    assert got.inputs["ok"].tolist() == [[True], [False]]


def test_tensors_follow_in_the_order_of_the_json() -> None:
    item = {"shape": [1, 2], "datatype": "INT64"}
    one, two = np.array([1, 2]).tobytes(), np.array([3, 4]).tobytes()

    body, length = binary((item | {"name": "mask"}, one), (item | {"name": "ids"}, two))
    got = decode(body, length, PAIR)

    assert got.inputs["mask"].tolist() == [[1, 2]]
    assert got.inputs["ids"].tolist() == [[3, 4]]


@pytest.mark.parametrize("datatype", ["FP16", "FP64", "INT8", "UINT16", "UINT64"])
def test_every_datatype_has_a_binary_form(datatype: str) -> None:
    model = of(datatype)
    array = np.array([[1, 2, 3, 4]], dtype=model.inputs[0].datatype.dtype)

    body, length = binary((X | {"datatype": datatype}, array.tobytes()))

    assert np.array_equal(decode(body, length, model).inputs["x"], array)


def test_an_empty_tensor_has_no_bytes() -> None:
    body, length = binary((X | {"shape": [1, 0]}, b""))

    assert decode(body, length, of("FP32", -1, -1)).inputs["x"].shape == (1, 0)


@pytest.mark.parametrize("length", [-1, -(2**70), 1000, 2**70])
def test_a_header_length_out_of_range_is_refused(length: int) -> None:
    body, _ = binary((X, FOUR.tobytes()))

    text = refusal(body, length)

    assert text.startswith(f"inference header size should be in range (0, {len(body)}), got: ")


def test_sizes_that_do_not_fit_are_refused() -> None:
    body, length = binary((X, FOUR.tobytes()))

    assert refusal(body + b"\0", length).startswith("unexpected additional input data for model")
    assert refusal(body[:-1], length).startswith("unexpected end of binary data: input 'x'")
    assert refusal(body, length - 1).startswith("failed to parse the request JSON buffer")
    assert refusal(*binary((X, b"\0" * 12))) == (
        "input byte size mismatch for input 'x' for model 'm'. Expected 16, got 12"
    )


@pytest.mark.parametrize("size", [-1, 2**63, 2**200])
def test_a_binary_size_that_is_none_is_refused(size: int) -> None:
    header = request(X | {"parameters": {"binary_data_size": size}})

    refusal(header + FOUR.tobytes(), len(header))


@pytest.mark.parametrize("size", ["16", 16.0, True, [16]])
def test_a_binary_size_that_is_no_integer_is_refused(size: object) -> None:
    header = request(X | {"parameters": {"binary_data_size": size}})

    assert "failed to parse" in refusal(header + FOUR.tobytes(), len(header))


def test_data_given_twice_is_refused() -> None:
    body, length = binary((tensor([1, 2, 3, 4]), FOUR.tobytes()))

    assert "both 'data' and 'binary_data_size'" in refusal(body, length)


def test_data_not_given_is_refused() -> None:
    header = request(X)

    assert refusal(header, len(header)).startswith("input 'x' has no data")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (elements(b"a"), "expected 2 elements"),
        (elements(b"a", b"b", b"c"), "unexpected additional data"),
        (elements(b"abcd") + b"\1\0", "expected 2 elements"),
        (elements(b"a") + b"\xff\xff\xff\xff", "element 1 should have 4294967295 bytes but 0"),
        (b"\0\0\0", "expected 2 elements"),
    ],
)
def test_bytes_elements_with_wrong_lengths_are_refused(raw: bytes, text: str) -> None:
    body, length = binary((X | {"datatype": "BYTES", "shape": [2, 1]}, raw))

    assert text in refusal(body, length, of("BYTES", -1, 1))


def test_a_huge_shape_of_bytes_allocates_nothing() -> None:
    body, length = binary((X | {"datatype": "BYTES", "shape": [2**36, 1]}, elements(b"a")))

    assert "68719476736 elements in 5 bytes" in refusal(body, length, of("BYTES", -1, 1))


def test_a_bool_is_a_byte_of_zero_or_one() -> None:
    item = X | {"datatype": "BOOL"}

    body, length = binary((item, b"\0\1\1\0"))
    assert decode(body, length, of("BOOL")).inputs["x"].tolist() == [[False, True, True, False]]
    body, length = binary((item, b"\0\1\2\0"))
    assert "neither 0 nor 1" in refusal(body, length, of("BOOL"))


# Raw requests: the whole body is one tensor


@pytest.mark.parametrize("shape", [(-1, 4), (-1, -1), (1, 4)])
def test_a_raw_body_is_a_batch_of_one(shape: tuple[int, ...]) -> None:
    got = decode(FOUR.tobytes(), 0, of("FP32", *shape))

    assert np.array_equal(got.inputs["x"], FOUR)
    assert (got.rows, got.binary_data_output) == (1, True)


def test_a_raw_body_fills_the_open_dimension_of_a_model_without_a_batch() -> None:
    got = decode(FOUR.tobytes(), 0, of("FP32", -1, 2, batched=False))

    assert got.inputs["x"].shape == (2, 2)


def test_a_raw_body_is_one_string() -> None:
    assert decode(b"abc", 0, of("BYTES", -1, 1)).inputs["x"].tolist() == [[b"abc"]]
    assert "can hold one BYTES element" in refusal(b"abc", 0, of("BYTES", -1, 2))


def test_raw_bodies_that_do_not_fit_are_refused() -> None:
    assert "Expected 16, got 15" in refusal(FOUR.tobytes()[:-1], 0)
    assert "Expected 16, got 0" in refusal(b"", 0)
    assert "exactly one input" in refusal(FOUR.tobytes(), 0, PAIR)
    assert "more than one variable dimension" in refusal(b"", 0, of("FP32", -1, -1, -1))
    assert "Expected 0, got 4" in refusal(b"\0" * 4, 0, of("FP32", 0, -1, batched=False))


def test_a_model_without_inputs_needs_none() -> None:
    model = signature(outputs=(spec("y", "FP32", 2),), batched=False)

    assert decode(b'{"inputs": []}', None, model).inputs == {}
