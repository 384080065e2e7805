import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from headrace.core import Tensors
from headrace.optimize.candidate import Candidate, CannotBuildError, ModelClass, Workshop
from headrace.optimize.recipes.trees import (
    TREE_RECIPES,
    NativeTrees,
    OnnxTrees,
    as_rows,
    differences,
    why_not_mixed,
)
from headrace.runtimes import load_model
from headrace.testing import models
from tests import tabular_models
from tests.tabular_models import AMOUNTS, KINDS, ROWS, Trained, library

pytestmark = pytest.mark.slow

library("onnxmltools", "convert")
library("skl2onnx", "convert")

TRAIN: dict[str, Callable[[Path, str], Trained]] = {
    "xgboost": tabular_models.xgboost,
    "lightgbm": tabular_models.lightgbm,
    "catboost": tabular_models.catboost,
    "sklearn": tabular_models.sklearn,
}


def workshop(
    source: Path,
    runtime: str,
    *,
    calibration: Sequence[Tensors] = (),
    model_class: ModelClass = ModelClass.TREES,
    say: Callable[[str], None] = lambda _: None,
) -> Workshop:
    folder = source.parent / "made"
    folder.mkdir(exist_ok=True)
    return Workshop(
        source=source,
        runtime=runtime,
        model_class=model_class,
        folder=folder,
        calibration=calibration,
        threads=1,
        seed=0,
        deadline=math.inf,
        say=say,
    )


def examples(runtime: str, rows: int = 30) -> list[Tensors]:
    dtype = np.float64 if runtime in {"lightgbm", "sklearn"} else np.float32
    return [{"input": ROWS[i : i + 1].astype(dtype)} for i in range(rows)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRAIN)
def test_both_engines_of_a_model_answer_alike(name: str, kind: str, tmp_path: Path) -> None:
    shop = workshop(TRAIN[name](tmp_path, kind).path, name, calibration=examples(name))
    made: list[Candidate] = []
    for recipe in TREE_RECIPES:
        assert not recipe.why_not(shop)
        made += recipe.build(shop)
    native, onnx = (load_model(one.path, one.runtime) for one in made)
    inputs = as_rows(examples(name, len(ROWS)))
    assert inputs is not None

    found = differences(native, onnx, inputs)

    assert [one.name for one in made] == ["native", "onnxruntime-trees"]
    assert found.rows == len(ROWS)
    assert not why_not_mixed(found)
    assert native.signature.inputs == onnx.signature.inputs
    assert native.signature.outputs == onnx.signature.outputs
    told = made[1].recipe
    assert told["compared_inputs"].endswith("30 given rows")
    assert float(told["largest_relative_difference"]) <= float(told["tolerance"])
    assert int(told["size_bytes"]) == made[1].path.stat().st_size


def test_lightgbm_is_run_in_doubles_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    shop = workshop(tabular_models.lightgbm(tmp_path, "binary").path, "lightgbm", say=said.append)

    (made,) = OnnxTrees().build(shop)

    assert made.title == "ONNX Runtime, trees in FP64"
    assert made.recipe["converter"].startswith("headrace ")
    assert said == ["converting the trees to ONNX"]


def test_a_model_that_the_converter_refuses_is_not_built_and_says_why(tmp_path: Path) -> None:
    dart = tabular_models.xgboost(tmp_path, "binary", booster="dart")
    shop = workshop(dart.path, "xgboost")

    with pytest.raises(CannotBuildError, match="gbtree with one target"):
        OnnxTrees().build(shop)
    assert not list(shop.folder.iterdir())


def test_a_model_that_answers_otherwise_once_converted_is_not_built(tmp_path: Path) -> None:
    lightgbm = library("lightgbm", "lightgbm")
    rows = np.where(np.abs(ROWS) < 0.7, 0, ROWS).astype(np.float64)
    settings = {"verbose": -1, "num_leaves": 7, "zero_as_missing": True}
    path = tmp_path / "zeros.txt"
    lightgbm.train(settings, lightgbm.Dataset(rows, AMOUNTS), 8).save_model(path)
    shop = workshop(path, "lightgbm", calibration=[{"input": row[None]} for row in rows])

    with pytest.raises(CannotBuildError, match=r"zeros count as missing.* differs by up to"):
        OnnxTrees().build(shop)


def test_an_estimator_with_types_that_are_not_trusted_is_not_built(tmp_path: Path) -> None:
    splines = library("sklearn.preprocessing", "sklearn").SplineTransformer()
    logistic = library("sklearn.linear_model", "sklearn").LogisticRegression()
    estimator = library("sklearn.pipeline", "sklearn").make_pipeline(splines, logistic)
    path = tabular_models.sklearn(tmp_path, "binary", estimator).path

    with pytest.raises(CannotBuildError, match="types that skops does not trust"):
        OnnxTrees().build(workshop(path, "sklearn"))


def test_examples_that_are_no_batch_are_refused(tmp_path: Path) -> None:
    shop = workshop(
        tabular_models.xgboost(tmp_path, "binary").path,
        "xgboost",
        calibration=[{"input": np.ones((1, 5))}, {"input": np.ones((1, 4))}],
    )

    with pytest.raises(CannotBuildError, match="the examples are not alike"):
        OnnxTrees().build(shop)
    with pytest.raises(CannotBuildError, match="the examples are not alike"):
        as_rows([{"input": np.ones((1, 5))}, {}])


def test_examples_that_the_model_does_not_take_are_refused(tmp_path: Path) -> None:
    shop = workshop(
        tabular_models.xgboost(tmp_path, "binary").path,
        "xgboost",
        calibration=[{"input": np.ones((1, 99), np.float32)}],
    )

    with pytest.raises(CannotBuildError, match="does not take the rows that were given"):
        OnnxTrees().build(shop)


def test_other_models_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(models.matmul())
    shop = workshop(path, "onnx")

    for recipe in TREE_RECIPES:
        assert recipe.why_not(shop) == (
            "is a model of the runtime 'onnx'; those of catboost, lightgbm, sklearn, xgboost are "
            "rewritten"
        )
        with pytest.raises(CannotBuildError, match="is a model of the runtime 'onnx'"):
            recipe.build(shop)


def test_a_converter_that_is_absent_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = workshop(tabular_models.xgboost(tmp_path, "binary").path, "xgboost")
    monkeypatch.setitem(sys.modules, "onnxmltools", None)

    why = OnnxTrees().why_not(shop)

    assert why == "needs the package 'onnxmltools': pip install 'headrace[convert]'"
    assert not NativeTrees().why_not(shop)
