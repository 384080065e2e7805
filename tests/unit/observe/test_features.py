"""Which features a model's tensors hold, and what stands in their columns."""

import numpy as np
import pytest

from headrace.core import Array, Datatype, ModelSignature, TensorSpec
from headrace.observe.features import (
    INPUT,
    MAX_COLUMNS,
    MAX_FEATURES,
    OUTPUT,
    TensorFeatures,
    features_of,
)

FP32, INT64, BYTES = Datatype.FP32, Datatype.INT64, Datatype.BYTES


def of_input(datatype: Datatype, *shape: int, batched: bool = True) -> TensorFeatures:
    spec = TensorSpec(name="x", datatype=datatype, shape=shape)
    return features_of(ModelSignature(inputs=(spec,), outputs=(), batched=batched))[0]


def of_output(datatype: Datatype, *shape: int) -> TensorFeatures:
    spec = TensorSpec(name="y", datatype=datatype, shape=shape)
    return features_of(ModelSignature(inputs=(), outputs=(spec,), batched=True))[0]


def test_each_element_of_a_small_row_is_a_feature() -> None:
    assert of_input(FP32, -1, 3).names == ("x[0]", "x[1]", "x[2]")
    assert of_input(FP32, -1).names == of_input(FP32, -1, 1).names == ("x",)
    assert of_input(FP32, 2, batched=False).names == ("x[0]", "x[1]")
    assert of_input(FP32, -1, 2, 2).names == ("x[0]", "x[1]", "x[2]", "x[3]")


def test_a_large_or_varying_row_is_summarised() -> None:
    summary = ("x.mean", "x.std", "x.min", "x.max")

    assert of_input(FP32, -1, 3, 224, 224).names == summary
    assert of_input(INT64, -1, -1).names == (*summary, "x.size")
    assert of_input(BYTES, -1, -1).names == ("x.size",)
    assert of_input(FP32, -1, MAX_COLUMNS + 1).names == summary


def test_scores_are_also_the_class_with_the_highest() -> None:
    features = of_output(FP32, -1, 3)

    assert features.names == ("y[0]", "y[1]", "y[2]", "y.class")
    assert features.block(np.array([[0.1, 0.7, 0.2]], np.float32), 9)[0, 3] == 1.0
    assert of_output(INT64, -1, 2).names == ("y[0]", "y[1]")


def test_tensors_beyond_the_bound_are_left_out_and_outputs_have_room() -> None:
    inputs = tuple(
        TensorSpec(name=f"x{i}", datatype=FP32, shape=(-1, MAX_COLUMNS)) for i in range(3)
    )
    output = TensorSpec(name="y", datatype=FP32, shape=(-1, 10))

    found = features_of(ModelSignature(inputs=inputs, outputs=(output,), batched=True))

    assert [(one.tensor, one.role) for one in found] == [("x0", INPUT), ("y", OUTPUT)]
    assert sum(len(one.names) for one in found) <= MAX_FEATURES


def test_of_many_rows_a_few_are_taken_evenly_spread() -> None:
    rows = np.arange(100, dtype=np.float32)[:, None]

    assert of_input(FP32, -1, 1).block(rows, 4)[:, 0].tolist() == [0.0, 25.0, 50.0, 75.0]
    assert len(of_input(FP32, -1, 1).block(rows, 100)) == 100


def test_a_block_shares_no_memory_with_the_request() -> None:
    rows = np.zeros((2, 2), np.float64)
    spec = of_input(Datatype.FP64, -1, 2)

    block = spec.block(rows, 9)
    rows[:] = 7.0

    assert not block.any()


def test_an_image_is_its_mean_spread_least_and_largest() -> None:
    image = np.linspace(0, 1, 1024, dtype=np.float32).reshape(1, 32, 32)

    found = of_input(FP32, -1, 32, 32).block(image, 9)

    assert found[0] == pytest.approx([0.5, 0.2889, 0.0, 1.0], abs=1e-3)


def test_of_tokens_the_number_counts_and_an_empty_row_has_no_mean() -> None:
    tokens = of_input(INT64, -1, -1)

    assert tokens.block(np.array([[3, 5, 7]]), 9)[0].tolist()[::4] == [5.0, 3.0]
    assert np.isnan(tokens.block(np.zeros((1, 0), np.int64), 9)[0, 0])


def test_texts_are_cut_and_need_not_be_utf8() -> None:
    texts: Array = np.array([b"a" * 500, b"\xff", "b"], np.object_)

    found = of_input(BYTES, -1).block(texts, 9)[:, 0]

    assert [len(found[0]), found[1], found[2]] == [64, "\ufffd", "b"]


def test_what_is_not_finite_stays_so() -> None:
    values = np.array([[np.nan, np.inf]], np.float32)
    wide = np.full((1, 200), np.inf, np.float32)

    assert np.isnan(of_input(FP32, -1, 2).block(values, 9)[0, 0])
    assert np.isinf(of_input(FP32, -1, 200).block(wide, 9)[0, 0])
