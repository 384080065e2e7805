"""Made-up rows reach every branch of trees, and many magnitudes elsewhere."""

from typing import Any

import numpy as np
import pytest

from headrace.core import Datatype, ModelSignature, Tensors, TensorSpec
from headrace.optimize.generated_inputs import (
    MISSING_ROWS,
    ROWS,
    generated_inputs,
    tree_thresholds,
    with_missing,
)
from tests.tabular_models import library

onnx = library("onnx", "convert")


def signature(
    *shape: int, datatype: Datatype = Datatype.FP64, batched: bool = True
) -> ModelSignature:
    spec = TensorSpec(name="x", datatype=datatype, shape=shape)
    return ModelSignature(inputs=(spec,), outputs=(spec,), batched=batched)


def test_values_lie_between_and_beyond_all_thresholds() -> None:
    cuts = np.array([-3.0, 0.5, 700.0])

    made = generated_inputs(signature(-1, 2), thresholds={1: cuts})["x"]

    assert made.shape == (ROWS, 2)
    assert set(np.searchsorted(cuts, made[:, 1])) == {0, 1, 2, 3}


def test_the_same_rows_are_made_every_time() -> None:
    one, other = (generated_inputs(signature(-1, 3))["x"] for _ in range(2))

    assert np.array_equal(one, other)
    assert np.abs(one).max() > 100
    assert np.array_equal(one, one.astype(np.float32).astype(np.float64))


@pytest.mark.parametrize(
    ("shape", "rows"), [((-1, 3, 640, 640), 4), ((-1, 100_000), 40), ((-1,), ROWS)]
)
def test_a_large_input_gets_fewer_rows(shape: tuple[int, ...], rows: int) -> None:
    assert len(generated_inputs(signature(*shape, datatype=Datatype.FP32))["x"]) == rows


def test_a_model_without_a_batch_is_asked_once() -> None:
    assert generated_inputs(signature(4, batched=False))["x"].shape == (4,)


def test_tokens_stay_where_any_table_has_them() -> None:
    made = generated_inputs(signature(-1, -1, datatype=Datatype.INT64), variable=8)["x"]

    assert set(np.unique(made)) == {0, 1}


def test_missing_values_are_put_into_numbers_only() -> None:
    rows: Tensors = {"x": np.ones((ROWS, 3), np.float32), "n": np.ones((ROWS, 1), np.int64)}
    made = with_missing(rows)

    assert made["x"].shape == (MISSING_ROWS, 3)
    assert 0 < np.isnan(made["x"]).mean() < 0.5
    assert not np.isnan(rows["x"]).any()
    assert with_missing({"n": rows["n"]}) == {}


def tree(source: str, values: list[float]) -> object:
    make = onnx.helper
    node = make.make_node(
        "TreeEnsembleRegressor",
        [source],
        ["y"],
        domain="ai.onnx.ml",
        nodes_values=[*values, 0.0, 9.0],
        nodes_featureids=[0] * len(values) + [1, 0],
        nodes_modes=["BRANCH_LEQ"] * (len(values) + 1) + ["LEAF"],
    )
    scale = make.make_node("Mul", ["x", "x"], ["scaled"])
    floats = onnx.TensorProto.FLOAT
    given = [make.make_tensor_value_info("x", floats, ["N", 2])]
    answers = [make.make_tensor_value_info("y", floats, ["N", 1])]
    graph = make.make_graph([scale, node], "g", given, answers)
    return make.make_model(graph)


def test_thresholds_are_read_from_the_trees() -> None:
    found = tree_thresholds(tree("x", [2.0, 1.0, float("nan"), 2.0]))

    assert {feature: list(cuts) for feature, cuts in found.items()} == {0: [1.0, 2.0], 1: [0.0]}


def test_thresholds_are_read_from_trees_of_the_newer_operator() -> None:
    model: Any = tree("x", [])
    splits = onnx.numpy_helper.from_array(np.array([5.0, np.inf, -1e300]))
    node = onnx.helper.make_node(
        "TreeEnsemble", ["x"], ["y"], nodes_featureids=[2, 2, 0], nodes_splits=splits
    )
    del model.graph.node[:]
    model.graph.node.append(node)

    found = tree_thresholds(model)

    assert {feature: list(cuts) for feature, cuts in found.items()} == {2: [5.0], 0: [-1e300]}


def test_thresholds_of_what_was_computed_first_are_none_of_the_input() -> None:
    assert tree_thresholds(tree("scaled", [2.0])) == {}


def test_indices_cover_their_table_and_masks_end_in_padding() -> None:
    specs = tuple(
        TensorSpec(name=name, datatype=Datatype.INT64, shape=(-1, -1))
        for name in ("input_ids", "attention_mask")
    )
    inputs = ModelSignature(inputs=specs, outputs=(), batched=True)

    rows = generated_inputs(inputs, variable=8, index_sizes={"input_ids": 30_000})

    assert rows["input_ids"].min() >= 0
    assert 29_000 < rows["input_ids"].max() < 30_000
    lengths = rows["attention_mask"].sum(axis=1)
    assert np.array_equal(rows["attention_mask"], np.arange(8) < lengths[:, np.newaxis])
    assert set(lengths[: ROWS // 2]) == {8}
    assert set(lengths[ROWS // 2 :]) == set(range(1, 9))
