"""Whatever bytes arrive, a codec answers with a request or a HeadraceError."""

import contextlib
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from headrace.core import (
    DTYPES,
    Array,
    HeadraceError,
    InferRequest,
    InferResponse,
    ModelSignature,
    check_inputs,
)
from headrace.protocol import InferDecoder, InferEncoder, V1Codec
from headrace.protocol.grpc_codec import GrpcInferCodec, frame, unframe
from headrace.protocol.json_decode import LARGE_BODY_BYTES
from headrace.protocol.protos import message_class
from tests.unit.protocol.models import MIXED, PAIR, ROW, binary, of, request, tensor

MODELS = [
    ROW,
    PAIR,
    MIXED,
    of("BYTES", -1, 2),
    of("FP16"),
    of("UINT8", -1, 2, 2),
    of("FP64", -1, batched=False),
]
models = st.sampled_from(MODELS)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)
shapes = st.lists(st.integers(-1, 5) | st.integers(), max_size=4)
inputs = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "ids", "mask", "age", "name", "ok"]) | json_values,
        "shape": shapes | json_values,
        "datatype": st.sampled_from([*DTYPES, "BF16"]) | json_values,
        "data": st.lists(json_values, max_size=8) | json_values,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "shared_memory_region", "x"]), json_values
        ),
    },
)
documents = st.fixed_dictionaries(
    {"inputs": st.lists(inputs, max_size=4) | json_values},
    optional={
        "id": json_values,
        "parameters": st.dictionaries(
            st.sampled_from(["timeout", "priority", "binary_data_output", "triton_x", "a"]),
            json_values,
        ),
        "outputs": st.lists(st.fixed_dictionaries({"name": json_values}), max_size=3) | json_values,
        "instances": json_values,
    },
)
VALID = request(tensor([1, 2, 3, 4]), id="a", parameters={"timeout": 5}, outputs=[{"name": "y"}])
VALID_BINARY, VALID_LENGTH = binary((tensor(None), b"\0" * 16), id="a")


def survives(decode: Callable[[], InferRequest], model: ModelSignature) -> None:
    with contextlib.suppress(HeadraceError):
        request = decode()
        assert check_inputs("m", model, request.inputs) == request.rows


@given(models, st.binary(max_size=300), st.none() | st.integers(-5, 400))
def test_any_bytes(model: ModelSignature, body: bytes, length: int | None) -> None:
    survives(lambda: InferDecoder("m", "1", model).decode(body, length), model)
    survives(lambda: V1Codec("m", "1", model).decode(body), model)
    survives(lambda: GrpcInferCodec("m", "1", model).decode(body), model)
    with contextlib.suppress(HeadraceError):
        unframe(body)


@pytest.mark.slow
@given(models, documents, st.binary(max_size=40), st.none() | st.integers(-2, 2))
def test_any_document(
    model: ModelSignature, document: object, tail: bytes, shift: int | None
) -> None:
    header = json.dumps(document).encode()
    body, length = (header, None) if shift is None else (header + tail, len(header) + shift)

    survives(lambda: InferDecoder("m", "1", model).decode(body, length), model)
    survives(lambda: V1Codec("m", "1", model).decode(body), model)


@pytest.mark.slow
@given(models, documents)
def test_any_large_document(model: ModelSignature, document: object) -> None:
    body = json.dumps(document).encode() + b" " * LARGE_BODY_BYTES

    survives(lambda: InferDecoder("m", "1", model).decode(body), model)


@given(st.data())
def test_any_change_of_a_valid_request(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(VALID) - 1))
    until = data.draw(st.integers(at, min(at + 8, len(VALID))))
    new = data.draw(st.binary(max_size=8) | st.sampled_from([b"[", b"]", b'"', b"1e999", b"null"]))
    body = VALID[:at] + new + VALID[until:]

    survives(lambda: InferDecoder("m", "1", ROW).decode(body), ROW)


@given(st.data())
def test_any_change_of_a_valid_binary_request(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(VALID_BINARY) - 1))
    new = data.draw(st.binary(max_size=8))
    body = VALID_BINARY[:at] + new + VALID_BINARY[at + 1 :]
    length = VALID_LENGTH + data.draw(st.integers(-3, 3))

    survives(lambda: InferDecoder("m", "1", ROW).decode(body, length), ROW)


@given(st.data())
def test_any_change_of_a_valid_message(data: st.DataObject) -> None:
    message = message_class("inference.ModelInferRequest")(
        model_name="m",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 4]}],
        raw_input_contents=[b"\0" * 16],
    )
    valid = message.SerializeToString()
    at = data.draw(st.integers(0, len(valid) - 1))
    body = valid[:at] + data.draw(st.binary(max_size=4)) + valid[at + 1 :]

    survives(lambda: GrpcInferCodec("m", "1", ROW).decode(body), ROW)


NUMBERS = ["FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]
SPECIAL = st.sampled_from([math.nan, math.inf, -math.inf])
numbers = st.sampled_from(NUMBERS).flatmap(
    lambda datatype: arrays.arrays(
        DTYPES[datatype],
        arrays.array_shapes(min_dims=1, max_dims=3, max_side=4),
        elements=SPECIAL | st.floats(width=32) if datatype.startswith("FP") else None,
    )
)


@pytest.mark.parametrize("padding", [0, LARGE_BODY_BYTES])
@given(array=numbers, nested=st.booleans())
def test_json_tensors_come_back(array: Array, nested: bool, padding: int) -> None:  # noqa: FBT001  # a parameter
    datatype = next(name for name, dtype in DTYPES.items() if dtype == array.dtype)
    model = of(datatype, *([-1] * array.ndim))
    data = array.tolist() if nested else array.ravel().tolist()
    body = request(tensor(data, shape=list(array.shape), datatype=datatype)) + b" " * padding

    got = InferDecoder("m", "1", model).decode(body).inputs["x"]

    assert got.dtype == array.dtype
    assert np.array_equal(got, array, equal_nan=True)


@given(numbers | arrays.arrays(np.bool_, (2, 3)), st.booleans())
def test_answers_say_what_the_model_said(array: Array, is_binary: bool) -> None:  # noqa: FBT001  # a parameter
    ask = InferRequest(model_name="m", inputs={}, binary_data_output=is_binary)
    response = InferResponse(model_name="m", outputs={"y": array})

    body, length = InferEncoder("m", "1", ROW).encode(response, ask)

    assert isinstance(body, bytes)
    (output,) = json.loads(body[:length])["outputs"]
    assert DTYPES[output["datatype"]] == array.dtype
    flat = np.frombuffer(body[length:], array.dtype) if is_binary else output["data"]
    answered = np.array(flat, array.dtype).reshape(output["shape"])  # as clients do
    assert np.array_equal(answered, array, equal_nan=True)


@given(st.lists(st.binary(max_size=5), min_size=1, max_size=4))
def test_strings_come_back(elements: list[bytes]) -> None:
    raw = b"".join(len(element).to_bytes(4, "little") + element for element in elements)
    item = tensor(None, shape=[len(elements), 1], datatype="BYTES")
    body, length = binary((item, raw))

    got = InferDecoder("m", "1", of("BYTES", -1, 1)).decode(body, length)

    assert got.inputs["x"].ravel().tolist() == elements


@given(st.binary(max_size=10_000))
def test_a_frame_comes_back(message: bytes) -> None:
    assert bytes(unframe(frame(message))) == message


@given(st.lists(st.floats(width=32), min_size=4, max_size=4))
def test_grpc_numbers_come_back(row: list[float]) -> None:
    item = {"name": "x", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32_contents": row}}
    message = message_class("inference.ModelInferRequest")(model_name="m", inputs=[item])

    got = GrpcInferCodec("m", "1", ROW).decode(message.SerializeToString())

    assert all(
        a == b or (math.isnan(a) and math.isnan(b))
        for a, b in zip(got.inputs["x"].ravel().tolist(), row, strict=True)
    )
