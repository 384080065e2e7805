"""Missing and infinite values in JSON, and documents that mean the same on every decoding path."""

import json
import math
import struct
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.http import InferResult

from headrace.core import (
    DTYPES,
    Array,
    InferRequest,
    InferResponse,
    InvalidArgumentError,
    NullPolicy,
)
from headrace.protocol import InferDecoder, InferEncoder, V1Codec
from headrace.protocol.json_decode import LARGE_BODY_BYTES
from tests.unit.protocol.models import MIXED, ROW, binary, of, request, tensor

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
REFUSED: Final = "refused"
SPECIAL: Final = [math.nan, math.inf, -math.inf, -0.0, 1.5]


def literals(values: object) -> str:
    """Return JSON as Python, and Triton, write it: with NaN and Infinity."""
    return json.dumps(values)


def standard(values: list[float]) -> str:
    """Return JSON as Headrace writes it."""
    words = {math.inf: "Infinity", -math.inf: "-Infinity"}
    return json.dumps([None if math.isnan(value) else words.get(value, value) for value in values])


WRITERS: Final = [literals, standard]


def document(data: str, datatype: str = "FP32") -> bytes:
    return request(tensor("DATA", datatype=datatype)).replace(b'"DATA"', data.encode())


def same(got: Array, expected: Array) -> bool:
    return got.dtype == expected.dtype and bool(np.array_equal(got, expected, equal_nan=True))


# Values


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
@given(values=st.lists(st.sampled_from(SPECIAL) | st.floats(width=32), min_size=4, max_size=4))
def test_floats_survive_json_on_every_path(
    write: Callable[[object], str], datatype: str, values: list[float]
) -> None:
    expected = np.array([values], DTYPES[datatype])
    for data in (write(values), f"[{write(values)}]"):
        for padding in (b"", b" " * LARGE_BODY_BYTES):
            decoder = InferDecoder("m", "1", of(datatype))
            for _ in range(3):
                body = document(data, datatype) + padding
                assert same(decoder.decode(body).inputs["x"], expected)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
@pytest.mark.parametrize(
    "form", ['{"instances": [%s]}', '{"inputs": [%s]}', '{"inputs": {"x": [%s]}}']
)
def test_v1_takes_missing_and_infinite_values(
    write: Callable[[object], str], datatype: str, form: str
) -> None:
    body = (form % write(SPECIAL[:4])).encode()

    got = V1Codec("m", "1", of(datatype)).decode(body)

    assert same(got.inputs["x"], np.array([SPECIAL[:4]], DTYPES[datatype]))


@given(
    st.sampled_from(["FP32", "FP64"]).flatmap(
        lambda name: arrays.arrays(DTYPES[name], st.tuples(st.integers(1, 3), st.just(4)))
    )
)
def test_answers_can_be_sent_as_requests(array: Array) -> None:
    datatype = "FP32" if array.itemsize == 4 else "FP64"
    response = InferResponse(model_name="m", model_version="1", outputs={"x": array})
    encoder = InferEncoder("m", "1", of(datatype))
    asked = InferRequest(model_name="m", inputs={}, rows=len(array))

    for _ in range(2):
        body, _ = encoder.encode(response, asked)
        assert isinstance(body, bytes)
        outputs = json.loads(body, parse_constant=pytest.fail)["outputs"]
        got = InferDecoder("m", "1", of(datatype)).decode(request(*outputs)).inputs["x"]
        assert same(got, array)
        assert same(InferResult.from_response_body(body).as_numpy("x"), array)

    predictions = V1Codec("m", "1", of(datatype)).encode(response)
    rows = json.loads(predictions, parse_constant=pytest.fail)["predictions"]
    body = json.dumps({"instances": rows}).encode()
    assert same(V1Codec("m", "1", of(datatype)).decode(body).inputs["x"], array)


@pytest.mark.parametrize("value", ["null", "NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("datatype", ["INT32", "UINT64", "BOOL", "BYTES"])
@pytest.mark.parametrize("padding", [b"", b" " * LARGE_BODY_BYTES])
def test_only_floats_can_be_missing_or_infinite(value: str, datatype: str, padding: bytes) -> None:
    zero = '""' if datatype == "BYTES" else "0"
    data = f"[{zero}, {value}, {zero}, {zero}]"
    shown = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get(value, value)
    problem = f"is {shown}, but datatype {datatype} needs"

    with pytest.raises(InvalidArgumentError, match=f"element 1 of 'x' {problem}") as caught:
        InferDecoder("m", "1", of(datatype)).decode(document(data, datatype) + padding)

    assert str(caught.value).endswith("only inputs of floats can have missing or infinite values")
    with pytest.raises(InvalidArgumentError, match=problem):
        V1Codec("m", "1", of(datatype)).decode(f'{{"instances": [{data}]}}'.encode())


@pytest.mark.parametrize("padding", [b"", b" " * LARGE_BODY_BYTES])
def test_nulls_are_refused_where_they_are_errors(padding: bytes) -> None:
    decoder = InferDecoder("m", "1", ROW, nulls=NullPolicy.ERROR)
    codec = V1Codec("m", "1", ROW, nulls=NullPolicy.ERROR)

    with pytest.raises(InvalidArgumentError, match=r"element 1 of 'x' is null, .*`nulls: error`"):
        decoder.decode(document("[0, null, 0, 0]") + padding)
    with pytest.raises(InvalidArgumentError, match="element 1 of 'x' is null"):
        codec.decode(b'{"instances": [[0, null, 0, 0]]}')
    got = decoder.decode(document('[0, "NaN", Infinity, NaN]') + padding).inputs["x"]
    assert same(got, np.array([[0, np.nan, np.inf, np.nan]], "<f4"))


def test_a_header_before_binary_tensors_may_have_a_mark_and_literals() -> None:
    body, length = binary((tensor(None), struct.pack("<4f", 1, 2, 3, 4)), note="NOTE")
    body = BYTE_ORDER_MARK + body.replace(b'"NOTE"', b"   NaN")

    got = InferDecoder("m", "1", ROW).decode(body, length + len(BYTE_ORDER_MARK))

    assert got.inputs["x"].tolist() == [[1, 2, 3, 4]]


def test_literals_inside_texts_are_texts() -> None:
    body = request(
        {"name": "age", "shape": [1, 1], "datatype": "INT64", "data": [1]},
        {"name": "ok", "shape": [1, 1], "datatype": "BOOL", "data": [True]},
        {"name": "name", "shape": [1, 1], "datatype": "BYTES", "data": ['"NaN, Infinity\\']},
        note="NOTE",
    ).replace(b'"NOTE"', b"NaN")

    got = InferDecoder("m", "1", MIXED).decode(body)

    assert got.inputs["name"].tolist() == [[b'"NaN, Infinity\\']]


@pytest.mark.parametrize(
    "body",
    [
        b'{"NaN":"' + b'\\"' * 500_000,
        b"NaN" + b'"' * 1_000_000,
        b"NaN" * 300_000,
        b"-Infinity" * 100_000,
        b'["' * 300_000 + b"NaN",
    ],
)
def test_hostile_documents_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="failed to parse"):
        InferDecoder("m", "1", ROW).decode(body)


# One meaning

numbers = (
    st.integers(-(10**3), 10**3).map(str)
    | st.integers().map(str)
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.sampled_from(
        ["1e999", "1e38", "1E5", "-0", "0.1e+1", "9" * 400, "NaN", "Infinity", "-Infinity", "null"]
    )
)
elements = (
    numbers
    | numbers
    | numbers
    | st.sampled_from(
        ["true", "[1]", "{}", '"Infinity"', '"\\u004eaN"', '"x"', '"\\ud800"', "1.", "01"]
    )
)
rows = st.lists(numbers, min_size=4, max_size=4) | st.lists(elements, max_size=5)
data = st.one_of(rows, rows.map(lambda row: [f"[{','.join(row)}]"])).map(
    lambda items: f"[{','.join(items)}]"
)
keys = {
    "name": st.sampled_from(['"x"', '"x"', '"x"', '"y"', "NaN", "1"]),
    "shape": st.sampled_from(["[1,4]", "[1,4]", "[1,4]", "[4]", "[1,NaN]", "[2,4]"]),
    "datatype": st.just("DATATYPE"),
    "data": data,
}
spellings = {"data": ['"data"', '"d\\u0061ta"'], "shape": ['"shape"', '"sh\\u0061pe"']}


@st.composite
def documents(draw: st.DrawFn, datatype: str) -> bytes:
    """Requests with keys in any order, some of them twice, and with what JSON does not have."""
    order = draw(st.permutations(list(keys)))
    order += draw(st.lists(st.sampled_from(list(keys)), max_size=2))
    members = []
    for key in order:
        spelled = draw(st.sampled_from(spellings.get(key, [f'"{key}"'])))
        members.append(f"{spelled}: {draw(keys[key])}")
    extra = draw(st.sampled_from(["", ', "id": "NaN"', ', "id": null', ', "b": [NaN, "\\u00e9"]']))
    text = f'{{"inputs": [{{{", ".join(members)}}}]{extra}}}'.replace("DATATYPE", f'"{datatype}"')
    return draw(st.sampled_from([b"", b"", BYTE_ORDER_MARK])) + text.encode()


def outcome(decode: Callable[[], InferRequest]) -> object:
    try:
        got = decode()
    except InvalidArgumentError:
        return REFUSED
    ((name, array),) = got.inputs.items()
    return name, array.dtype.str, array.shape, array.tobytes(), got.id


@pytest.mark.slow
@given(st.data(), st.sampled_from(["FP32", "FP64", "INT64", "UINT8", "BOOL", "BYTES"]))
def test_every_path_gives_one_meaning_to_a_document(draw: st.DataObject, datatype: str) -> None:
    model = of(datatype)
    body = draw.draw(documents(datatype))
    decoder = InferDecoder("m", "1", model)

    first = outcome(lambda: decoder.decode(body))
    again = outcome(lambda: decoder.decode(body))
    large = outcome(lambda: InferDecoder("m", "1", model).decode(body + b" " * LARGE_BODY_BYTES))

    if datatype != "BYTES":  # arrays of objects have no bytes to compare
        assert first == again == large
    assert (first == REFUSED) == (again == REFUSED) == (large == REFUSED)


@pytest.mark.slow
@given(documents("FP64"))
@example(document("[1, 2, 3, 4]").replace(b'"data"', b'"data": [5, 6, 7, 8], "data"'))
def test_what_is_accepted_means_what_python_reads(body: bytes) -> None:
    got = outcome(lambda: InferDecoder("m", "1", of("FP64")).decode(body))
    if got == REFUSED:
        return

    text = body.decode("utf-8-sig")
    (item,) = json.loads(text)["inputs"]
    flat: list[Any] = item["data"][0] if isinstance(item["data"][0], list) else item["data"]
    expected = np.array([[np.nan if value is None else float(value) for value in flat]])
    assert got == (
        item["name"],
        "<f8",
        tuple(item["shape"]),
        expected.tobytes(),
        json.loads(text).get("id") or "",
    )
