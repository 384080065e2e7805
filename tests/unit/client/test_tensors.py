import math

import numpy as np
import pytest

from headrace.client.tensors import TensorLike, is_exact, to_tensors
from headrace.core import Datatype, InvalidArgumentError, ModelSignature, TensorSpec


def signature(datatype: Datatype) -> ModelSignature:
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1, 2))
    return ModelSignature(inputs=(spec,), outputs=(), batched=True)


@pytest.mark.parametrize(
    ("value", "datatype", "dtype"),
    [
        ([[1, 2]], Datatype.FP32, "<f4"),
        ([[1.5, 2]], Datatype.FP16, "<f2"),
        ([[1.0, 2.0]], Datatype.INT64, "<i8"),
        ([[True, False]], Datatype.BOOL, "bool"),
        ([[1, 255]], Datatype.UINT8, "uint8"),
    ],
)
def test_a_list_takes_the_datatype_of_the_model(
    value: TensorLike, datatype: Datatype, dtype: str
) -> None:
    array = to_tensors({"x": value}, signature(datatype))["x"]

    assert array.dtype == np.dtype(dtype)
    assert array.tolist() == value


@pytest.mark.parametrize("datatype", [Datatype.FP16, Datatype.FP32, Datatype.FP64])
@pytest.mark.parametrize("value", [None, math.nan, "NaN"])
def test_missing_values_of_floats_are_nan(value: object, datatype: Datatype) -> None:
    array = to_tensors({"x": [[1.5, value], [-math.inf, 2]]}, signature(datatype))["x"]

    assert array.dtype == datatype.dtype
    expected = np.array([[1.5, np.nan], [-np.inf, 2]], datatype.dtype)
    assert np.array_equal(array, expected, equal_nan=True)


@pytest.mark.parametrize("value", [None, math.nan])
def test_integers_cannot_be_missing(value: object) -> None:
    with pytest.raises(InvalidArgumentError, match="'x'"):
        to_tensors({"x": [[1, value]]}, signature(Datatype.INT64))


@pytest.mark.parametrize(
    ("value", "datatype"),
    [
        ([[1, 256]], Datatype.UINT8),
        ([[-1, 2]], Datatype.UINT32),
        ([[1.5, 2]], Datatype.INT64),
        ([["1.5", 2]], Datatype.INT64),
        ([[1, 2], [3]], Datatype.FP32),
        ([[2, 1]], Datatype.BOOL),
    ],
)
def test_a_list_that_does_not_fit_is_refused_with_the_name(
    value: TensorLike, datatype: Datatype
) -> None:
    with pytest.raises(InvalidArgumentError, match="'x'"):
        to_tensors({"x": value}, signature(datatype))


def test_texts_that_are_no_numbers_are_refused_with_their_place() -> None:
    with pytest.raises(InvalidArgumentError, match="element 1 of 'x' is a string"):
        to_tensors({"x": [[1.5, "2"]]}, signature(Datatype.FP32))


def test_an_array_is_never_cast() -> None:
    array = to_tensors({"x": np.zeros((1, 2), np.float64)}, signature(Datatype.FP32))["x"]

    assert array.dtype == np.float64


def test_big_endian_and_strided_arrays_become_what_the_wire_carries() -> None:
    big = np.arange(6, dtype=">i4").reshape(2, 3).T

    array = to_tensors({"x": big}, None)["x"]

    assert array.dtype == np.dtype("<i4")
    assert array.flags.c_contiguous
    assert array.tolist() == big.tolist()


def test_a_scalar_array_keeps_its_rank() -> None:
    assert to_tensors({"x": np.float32(1)}, None)["x"].shape == ()


@pytest.mark.parametrize(
    "value", [[["a", b"\xff"]], np.array([["a", "b"]]), np.array([["a", b"b"]], dtype=object)]
)
def test_strings_become_bytes_in_utf8(value: TensorLike) -> None:
    array = to_tensors({"x": value}, signature(Datatype.BYTES))["x"]

    assert array.dtype == np.object_
    assert all(type(element) is bytes for element in array.flat)
    assert array.shape == (1, 2)


def test_an_object_array_of_something_else_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="holds a int"):
        to_tensors({"x": np.array([1, 2], dtype=object)}, None)


def test_complex_numbers_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"input 'x'.*complex"):
        to_tensors({"x": np.zeros(1, complex)}, None)


def test_inputs_have_to_be_a_mapping() -> None:
    with pytest.raises(InvalidArgumentError, match="mapping"):
        to_tensors([1], None)  # type: ignore[arg-type]  # what the test is about


def test_without_a_signature_numpy_decides() -> None:
    assert to_tensors({"x": [1.5]}, None)["x"].dtype == np.float64


def test_arrays_bring_their_dtype_and_lists_do_not() -> None:
    assert is_exact(np.zeros(1))
    assert is_exact(np.float32(1))
    assert not is_exact([1])
    assert not is_exact("text")


def test_an_infinite_float_survives_the_cast() -> None:
    array = to_tensors({"x": [[1e300, float("nan")]]}, signature(Datatype.FP32))["x"]

    assert np.isinf(array[0, 0])
    assert np.isnan(array[0, 1])
