import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from headrace.core import Datatype, ModelSignature, TensorSpec, check_inputs, example_inputs

dimensions = st.one_of(st.just(-1), st.integers(1, 3))
specs = st.builds(
    TensorSpec,
    name=st.text("abc", min_size=1, max_size=5),
    datatype=st.sampled_from(Datatype),
    shape=st.lists(dimensions, max_size=3).map(tuple),
)
batched_specs = st.builds(
    TensorSpec,
    name=st.text("abc", min_size=1, max_size=5),
    datatype=st.sampled_from(Datatype),
    shape=st.lists(dimensions, max_size=3).map(lambda shape: (-1, *shape)),
)


def signature(*inputs: TensorSpec, batched: bool = False) -> ModelSignature:
    return ModelSignature(inputs=inputs, outputs=(), batched=batched)


def one(name: str, datatype: Datatype, *shape: int) -> ModelSignature:
    return signature(TensorSpec(name=name, datatype=datatype, shape=shape))


@given(
    inputs=st.lists(specs, min_size=1, max_size=3, unique_by=lambda spec: spec.name),
    variable=st.integers(0, 3),
)
def test_examples_fit_any_signature(inputs: list[TensorSpec], variable: int) -> None:
    given_signature = signature(*inputs)

    assert check_inputs("m", given_signature, example_inputs(given_signature, variable=variable))


@given(
    inputs=st.lists(batched_specs, min_size=1, max_size=3, unique_by=lambda spec: spec.name),
    rows=st.integers(1, 4),
)
def test_examples_of_a_batched_model_have_the_rows_that_were_asked_for(
    inputs: list[TensorSpec], rows: int
) -> None:
    given_signature = signature(*inputs, batched=True)

    assert check_inputs("m", given_signature, example_inputs(given_signature, rows=rows)) == rows


def test_the_same_arguments_make_the_same_examples() -> None:
    model = one("x", Datatype.FP32, 4)

    assert np.array_equal(example_inputs(model)["x"], example_inputs(model)["x"])
    assert not np.array_equal(example_inputs(model)["x"], example_inputs(model, seed=1)["x"])


@pytest.mark.parametrize("datatype", [Datatype.FP16, Datatype.FP64, Datatype.UINT8, Datatype.BOOL])
def test_values_lie_between_0_and_1(datatype: Datatype) -> None:
    values = example_inputs(one("x", datatype, 50))["x"].astype(np.float64)

    assert 0 <= values.min() < values.max() <= 1


def test_bytes_are_one_letter() -> None:
    assert example_inputs(one("x", Datatype.BYTES, 2))["x"].tolist() == [b"a", b"a"]


@pytest.mark.parametrize("name", ["image", "Photo_2", "jpeg_bytes"])
def test_bytes_named_like_a_picture_are_one_that_json_can_hold(name: str) -> None:
    raw = example_inputs(one(name, Datatype.BYTES, 1))[name][0]

    with Image.open(io.BytesIO(raw)) as picture:
        assert picture.convert("RGB").size == (1, 1)
    assert raw.isascii()


def test_a_mask_hides_nothing() -> None:
    assert example_inputs(one("attention_mask", Datatype.INT64, 50))["attention_mask"].all()
