import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.base.read_inputs import read_inputs, refuse_nulls, with_batch_axis
from headrace.client.tensors import to_tensors
from headrace.core import (
    Array,
    Datatype,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    TensorSpec,
)

ROWS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


def spec(name: str, datatype: Datatype = Datatype.FP32, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape or (-1, 3))


def signature(*inputs: TensorSpec, is_batched: object = True) -> ModelSignature:
    return ModelSignature(inputs=inputs, outputs=(), batched=bool(is_batched))


ONE = signature(spec("x"))
TWO = signature(spec("age", Datatype.FP32, -1, 1), spec("name", Datatype.BYTES, -1))


def plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else value


def saved(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(**arrays: Array) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # NumPy's flag shares the keywords
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(ROWS).encode(),
        json.dumps({"instances": ROWS}).encode(),
        json.dumps({"inputs": ROWS}).encode(),
        json.dumps({"x": ROWS}).encode(),
        json.dumps({"inputs": {"x": ROWS}}).encode(),
        json.dumps({"instances": [{"x": row} for row in ROWS]}).encode(),
        json.dumps({"inputs": [{"name": "x", "data": ROWS}]}).encode(),
        json.dumps(
            {"inputs": [{"name": "x", "shape": [2, 3], "data": [v for row in ROWS for v in row]}]}
        ).encode(),
        b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
        b"1,2,3\n4,5,6\n",
        b"1,2,3\r\n\r\n4,5,6",
        b"a,b,c\n1,2,3\n4,5,6\n",
        b'"1", 2 ,3\n4,5,6\n',
        saved(np.array(ROWS)),
        saved(np.array(ROWS, np.float32)),
        saved(np.array(ROWS, np.int64)),
        zipped(x=np.array(ROWS)),
    ],
)
def test_every_form_gives_the_same_rows(data: bytes) -> None:
    assert plain(read_inputs(data, ONE)["x"]) == ROWS


@pytest.mark.parametrize(
    "data",
    [
        b'{"instances": [[1, null, -Infinity]]}',
        b'\xef\xbb\xbf[[1, NaN, "-Infinity"]]',
        b'{"inputs": [{"name": "x", "shape": [1, 3], "data": [1, null, -Infinity]}]}',
        b"1,,-inf\n",
        b"1,NaN,-Infinity\n",
    ],
)
def test_every_form_can_have_missing_values(data: bytes) -> None:
    array = to_tensors(read_inputs(data, ONE), ONE)["x"]

    assert np.array_equal(array, np.array([[1, np.nan, -np.inf]], "<f4"), equal_nan=True)


@pytest.mark.parametrize("data", [b"[[1.5, null, 3]]", b"1.5,,3\n"])
def test_a_null_is_refused_on_request(data: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="element 1 of 'x' is null"):
        refuse_nulls(read_inputs(data, ONE), ONE)


@pytest.mark.parametrize("data", [b"[[1.5, NaN, 3]]", b"1.5,NaN,3\n", b"[[1.5, 2, 3]]"])
def test_numbers_are_not_refused_with_nulls(data: bytes) -> None:
    refuse_nulls(read_inputs(data, ONE), ONE)


def test_a_header_that_names_inputs_assigns_the_columns() -> None:
    inputs = read_inputs(b"name,age\nann,31\nbob,4\n", TWO)

    assert inputs == {"age": [[31.0], [4.0]], "name": ["ann", "bob"]}


def test_csv_of_text_has_no_header_unless_it_names_the_input() -> None:
    words = signature(spec("text", Datatype.BYTES, -1, 1))

    assert read_inputs(b"hello\nworld\n", words) == {"text": [["hello"], ["world"]]}
    assert read_inputs(b"text\nhello\n", words) == {"text": [["hello"]]}


def test_csv_rows_take_the_shape_of_the_input() -> None:
    image = signature(spec("image", Datatype.UINT8, -1, 2, 2))

    assert read_inputs(b"1,2,3,4\n", image) == {"image": [[[1, 2], [3, 4]]]}


def test_csv_of_an_open_length_takes_equal_rows_of_any_length() -> None:
    tokens = signature(spec("ids", Datatype.INT64, -1, -1))

    assert read_inputs(b"1,2\n3,4\n", tokens) == {"ids": [[1, 2], [3, 4]]}


def test_csv_reads_truth_values() -> None:
    flags = signature(spec("f", Datatype.BOOL, -1, 2))

    assert read_inputs(b"true,0\nFalse,1\n", flags) == {"f": [[True, False], [False, True]]}


def test_v1_rows_of_names_become_columns() -> None:
    rows = {"instances": [{"age": [31], "name": "ann"}, {"age": [4], "name": "bob"}]}

    inputs = read_inputs(json.dumps(rows).encode(), TWO)

    assert inputs == {"age": [[31], [4]], "name": ["ann", "bob"]}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no rows"),
        (b'{"instances": 3}', "no rows"),
        (b'{"instances": [{"x": 1}, {"y": 1}]}', "same names"),
        (b'{"y": [1]}', "the model takes 'x'"),
        (b'{"inputs": {"y": [1]}}', "the input names 'y'"),
        (b'{"inputs": [{"name": "x", "shape": [9], "data": [1]}]}', "shape"),
        (b'{"inputs": [{"name": "y", "data": [1]}]}', "the model takes 'x'"),
        (b"1,2\n", "line 1 of the CSV has 2 values; input 'x' takes 3"),
        (b"a,b,c\n1,2,3\n1,2\n", "line 3"),
        (b"1,zwei,3\n4,5,6\n", "line 1, column 2"),
        (b"1,2,3\n1,zwei,3\n", "line 2, column 2 of the CSV: 'zwei' is no FP32"),
        (b"a,b,c\n", "no rows"),
        (b'"1,2', "cannot be read"),
        (b"\xff\xfe\x00", "neither UTF-8 text nor a NumPy file"),
        (saved(np.array(ROWS))[:40], "cannot be read"),
        (b"\x93NUMPY nonsense", "cannot be read"),
        (b"PK\x03\x04 nonsense", "damaged"),
        (zipped(y=np.array(ROWS)), "the model takes 'x'"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(data: bytes, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        read_inputs(data, ONE)


@pytest.mark.parametrize("data", [b"1,2\n", b"[[1]]", saved(np.zeros(1)), b'{"inputs": [1]}'])
def test_unnamed_values_need_a_model_with_one_input(data: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match=r"one input; this one has 'age', 'name'"):
        read_inputs(data, TWO)


@pytest.mark.parametrize(
    ("data", "text"), [(b"age,name\n1\n", "without a value"), (b"age,name\n", "no rows")]
)
def test_named_columns_need_values(data: bytes, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        read_inputs(data, TWO)


def test_a_long_list_of_names_is_cut() -> None:
    wide = signature(*(spec(f"f{i:02}") for i in range(20)))

    with pytest.raises(InvalidArgumentError, match="and 12 more"):
        read_inputs(b"[[1]]", wide)


def test_an_object_array_is_not_unpickled() -> None:
    data = saved(np.array([{"a": 1}], dtype=object))

    with pytest.raises(InvalidArgumentError, match="allow_pickle"):
        read_inputs(data, ONE)


@given(st.binary(max_size=100) | st.text(max_size=60).map(str.encode))
def test_no_input_breaks_the_reader(data: bytes) -> None:
    try:
        read_inputs(data, ONE)
    except HeadraceError:
        return


@pytest.mark.parametrize("value", [[1.0, 2.0, 3.0], np.array([1.0, 2.0, 3.0])])
def test_a_lone_row_gets_its_batch_axis(value: object) -> None:
    assert plain(with_batch_axis({"x": value}, ONE)["x"]) == [[1.0, 2.0, 3.0]]


def test_rows_keep_their_axes() -> None:
    assert with_batch_axis({"x": ROWS}, ONE) == {"x": ROWS}
    assert with_batch_axis({"y": 1}, ONE) == {"y": 1}
    assert with_batch_axis({"x": [1]}, signature(spec("x"), is_batched=False)) == {"x": [1]}
