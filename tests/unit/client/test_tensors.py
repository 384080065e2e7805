import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


NUMBERS = st.sampled_from([d for d in Datatype if d is not Datatype.BYTES])
EDGES = (0, 1, 5, 127, 128, 255, 2**24, 2**24 + 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1)
VALUES = st.one_of(
    st.sampled_from([sign * value for value in EDGES for sign in (1, -1)]),
    st.sampled_from([0.1, 0.5, -0.0, 1e300, 65504.0, 2.0**63, 2.0**64, float("inf")]),
    st.integers(-(2**64), 2**64),
    st.floats(allow_nan=False),
)


@settings(max_examples=500)
@given(NUMBERS, NUMBERS, st.lists(VALUES, min_size=1, max_size=5))
def test_an_array_of_numbers_is_cast_exactly_if_no_value_changes(
    own: Datatype, wanted: Datatype, values: list[float]
) -> None:
    with np.errstate(all="ignore"):
        whole = [int(v) for v in values if v == v // 1] or [0]
        bits = 1 if own is Datatype.BOOL else own.dtype.itemsize * 8
        array = (
            np.array(values, own.dtype)
            if own.dtype.kind == "f"
            else np.array([v % 2 ** (bits - (own.dtype.kind == "i")) for v in whole], own.dtype)
        )
        cast = array.astype(wanted.dtype)
    is_kept = own == wanted or array.tolist() == cast.tolist()  # Python compares exactly
    try:
        sent = to_tensors({"x": array}, signature(wanted))["x"]
    except InvalidArgumentError:
        is_float = wanted.dtype.kind == "f" and own.dtype.kind in "iu"
        most = 2 ** (np.finfo(wanted.dtype).nmant + 1) if is_float else 2**64
        assert not is_kept or any(abs(v) > most for v in array.tolist())
    else:
        assert is_kept
        assert (sent.dtype, sent.tolist()) == (wanted.dtype, array.tolist())


def test_what_would_change_is_said_with_a_value_and_the_way_out() -> None:
    array = np.array([[0.5, 0.1, np.nan]])

    with pytest.raises(InvalidArgumentError) as caught:
        to_tensors({"x": array}, signature(Datatype.FP32))

    assert str(caught.value) == (
        "input 'x' is float64, the model takes FP32, and 1 of 3 values would change: "
        "0.1 becomes 0.10000000149011612; to accept that, pass it as `.astype('float32')`"
    )


def test_texts_and_numbers_are_never_cast_to_each_other() -> None:
    texts = to_tensors({"x": np.array(["1"])}, signature(Datatype.FP32))["x"]
    numbers = to_tensors({"x": np.zeros(1)}, signature(Datatype.BYTES))["x"]

    assert (texts.dtype, numbers.dtype) == (np.object_, np.float64)


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
