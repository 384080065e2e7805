"""Arrays of an `.npz` are examples, and a hostile one takes no memory."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from headrace.core import Array, Datatype, InvalidArgumentError
from headrace.optimize.accuracy import DataWish, Examples, read_labelled
from tests.unit.optimize.accuracy.signatures import MATRIX, TEXT, of, spec


def saved(tmp_path: Path, **arrays: Array) -> Path:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # its stub takes a flag by name
    return path


def read(path: Path, wish: DataWish | None = None) -> Examples:
    return read_labelled(path, MATRIX, wish or DataWish(), beside=path)


def test_arrays_named_like_inputs_are_the_examples(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float64).reshape(4, 3)

    found = read(saved(tmp_path, x=x, labels=np.array([0, 1, 1, 0]), other=np.zeros(2)))

    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 1, 0]
    assert found.inputs[2]["x"].tolist() == [[6.0, 7.0, 8.0]]
    assert found.inputs[2]["x"].dtype == np.float32


def test_labels_may_have_any_name_and_be_texts(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.zeros((3, 3)), kind=np.array(["b", "a", "b"]))

    found = read(path, DataWish(label="kind"))

    assert found.names == ("a", "b")
    assert found.labels is not None
    assert found.labels.tolist() == [1, 0, 1]
    assert read(path).labels is None


def test_a_model_without_a_batch_axis_gets_rows_of_its_shape(tmp_path: Path) -> None:
    signature = of(spec("x", 1, 2, 2), batched=False)
    path = saved(tmp_path, x=np.arange(12.0).reshape(3, 2, 2), y=np.arange(3) * 0.5)

    found = read_labelled(path, signature, DataWish(), beside=path)

    assert found.inputs[1]["x"].tolist() == [[[4.0, 5.0], [6.0, 7.0]]]
    assert found.labels is not None
    assert found.labels.dtype == np.float64


def test_flat_rows_take_the_inputs_shape(tmp_path: Path) -> None:
    signature = of(spec("x", -1, 1, 2, 2))
    path = saved(tmp_path, x=np.arange(8.0).reshape(2, 4))

    found = read_labelled(path, signature, DataWish(), beside=path)

    assert found.inputs[1]["x"].tolist() == [[[[4.0, 5.0], [6.0, 7.0]]]]


def test_texts_are_bytes(tmp_path: Path) -> None:
    path = saved(tmp_path, text=np.array(["a", "é"]), y=np.array([0, 1]))

    found = read_labelled(path, TEXT, DataWish(), beside=path)

    assert found.inputs[1]["text"].tolist() == ["é".encode()]


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"z": np.zeros((2, 3))}, "has no array 'x', only z; name them as inputs"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(3)}, "different numbers of rows: x 2, y 3"),
        ({"x": np.zeros((0, 3))}, "no or different numbers of rows: x 0"),
        ({"x": np.array(1.0)}, "no or different numbers of rows: x 0"),
        ({"x": np.zeros((2, 4))}, "input 'x' takes [3] a row, this is [4]"),
        ({"x": np.zeros((2, 3), complex)}, "input 'x' takes FP32, not complex128"),
        ({"x": np.zeros((2, 3)), "y": np.zeros((2, 2))}, "give one number a row"),
        ({"x": np.zeros((2, 3)), "y": np.array([0, np.nan])}, "label 1 (from 0) is not a finite"),
        ({"x": np.full((2, 3), 1e300)}, "input 'x': 1e+300 is no FP32"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(2), "label": np.zeros(2)}, "say which"),
    ],
)
def test_arrays_that_do_not_fit_say_why(
    tmp_path: Path, arrays: dict[str, Array], told: str
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        read(saved(tmp_path, **arrays))

    assert told in str(error.value)
    assert "data.npz" in str(error.value)


def test_a_wished_array_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="has no array 'z', only x"):
        read(saved(tmp_path, x=np.zeros((1, 3))), DataWish(label="z"))


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.array([[1, "a", None]], np.object_))

    with pytest.raises(InvalidArgumentError, match="Python objects; save texts as"):
        read(path)


def test_texts_for_numbers_are_refused_and_numbers_for_texts(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.array([["a", "b", "c"]]), text=np.zeros(1))

    with pytest.raises(InvalidArgumentError, match="takes FP32, not <U1"):
        read(path)
    with pytest.raises(InvalidArgumentError, match="takes texts, not float64"):
        read_labelled(path, TEXT, DataWish(), beside=path)


@pytest.mark.parametrize(
    "member", [b"", b"\x93NUMPY\x01\x00", b"not an array", b"\x93NUMPY\x09\x00v"]
)
def test_members_that_are_no_arrays_are_refused(tmp_path: Path, member: bytes) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", member)

    with pytest.raises(InvalidArgumentError, match=r"data\.npz cannot be read"):
        read(path)


def test_an_array_that_says_to_be_larger_than_it_is_takes_no_memory(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 3)}
    )
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"\0" * 64)

    with pytest.raises(InvalidArgumentError, match="says to be larger than it is"):
        read(path)


def test_whole_numbers_for_a_model_of_whole_numbers_have_to_fit(tmp_path: Path) -> None:
    signature = of(spec("x", -1, 1, datatype=Datatype.INT8))
    path = saved(tmp_path, x=np.array([[300]]))

    with pytest.raises(InvalidArgumentError, match="input 'x': 300 is no INT8"):
        read_labelled(path, signature, DataWish(), beside=path)
