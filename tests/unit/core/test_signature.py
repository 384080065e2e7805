import numpy as np
import pytest

from headrace.core import (
    Datatype,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    TensorSpec,
    check_inputs,
)

X = TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 2))
Y = TensorSpec(name="y", datatype=Datatype.INT64, shape=(-1,))
OUT = TensorSpec(name="out", datatype=Datatype.FP32, shape=(-1,))
BATCHED = ModelSignature(inputs=(X, Y), outputs=(OUT,), batched=True)
UNBATCHED = ModelSignature(inputs=(X, Y), outputs=(OUT,), batched=False)


def tensors(rows: int = 3, *, other_rows: int | None = None) -> Tensors:
    y_rows = rows if other_rows is None else other_rows
    return {"x": np.zeros((rows, 2), np.float32), "y": np.zeros(y_rows, np.int64)}


def test_tensors_are_found_by_name() -> None:
    assert (BATCHED.input("y"), BATCHED.output("out")) == (Y, OUT)
    assert (BATCHED.input("out"), BATCHED.output("x")) == (None, None)


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((1, 2), True), ((0, 2), True), ((1, 3), False), ((1,), False), ((1, 2, 1), False)],
)
def test_a_variable_dimension_takes_any_size(shape: tuple[int, ...], *, fits: bool) -> None:
    assert X.fits(shape) is fits


def test_a_batch_has_as_many_rows_as_its_axis_0() -> None:
    assert check_inputs("m", BATCHED, tensors(3)) == 3


def test_without_a_batch_axis_there_is_one_row() -> None:
    assert check_inputs("m", UNBATCHED, tensors(3, other_rows=5)) == 1


def wrong(change: Tensors, *, without: str = "") -> Tensors:
    inputs = tensors() | change
    inputs.pop(without, None)
    return inputs


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (wrong({}, without="y"), "expected 2 inputs but got 1 inputs for model 'm'. Missing: 'y'"),
        (wrong({"z": np.zeros(1)}), "unexpected inference input 'z' for model 'm'"),
        (wrong({"z": np.zeros(1)}, without="y"), "unexpected inference input 'z' for model 'm'"),
        (
            wrong({"y": np.zeros(3, np.float32)}),
            "inference input 'y' data-type is 'float32', but model 'm' expects 'INT64'",
        ),
        (
            wrong({"x": np.zeros((3, 4), np.float32)}),
            "unexpected shape for input 'x' for model 'm'. Expected [-1,2], got [3,4]",
        ),
        (
            tensors(3, other_rows=4),
            "inputs of model 'm' disagree on the batch size: 3 and 4 ('y')",
        ),
        (tensors(0), "inference request for model 'm' has a batch size of 0"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_words_of_triton(
    inputs: Tensors, message: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_inputs("m", BATCHED, inputs)

    assert str(caught.value) == message
