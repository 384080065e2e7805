from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core import Array, Datatype, UnsupportedModelError
from headrace.optimize.convert.convert import Conversion, convert
from headrace.optimize.sources import open_source
from headrace.runtimes import load_model
from headrace.runtimes.tables.lightgbm import read_lightgbm
from tests import tabular_models
from tests.tabular_models import AMOUNTS, CLASSES, ROWS, SURE, asked, library

pytestmark = pytest.mark.slow

lightgbm = library("lightgbm", "lightgbm")
library("onnxmltools", "convert")

from headrace.optimize.convert.tree_graph import lightgbm_graph  # noqa: E402  # imports onnx


def trained(folder: Path, target: Array, rows: Array = ROWS, **params: Any) -> Path:  # noqa: ANN401  # any setting
    settings = {"num_threads": 1, "verbose": -1, "num_leaves": 7, "min_data_in_leaf": 5} | params
    table = lightgbm.Dataset(rows.astype(np.float64), target)
    path = folder / "model.txt"
    lightgbm.train(settings, table, 8).save_model(path)
    return path


def converted(path: Path) -> tuple[Any, Any, Conversion]:
    """The model as LightGBM runs it and as ONNX Runtime does, and how it was converted."""
    target = path.with_suffix(".onnx")
    source = open_source(path, "lightgbm", allow_code=False)
    conversion = convert(source, target, max_changed_ratio=0)
    return load_model(path), load_model(target), conversion


POSITIVE = np.abs(AMOUNTS)
SHARE = 1 / (1 + np.exp(-AMOUNTS))
OBJECTIVES: dict[str, tuple[Array, dict[str, Any]]] = {
    "binary": (SURE, {"objective": "binary"}),
    "steep binary": (SURE, {"objective": "binary", "sigmoid": 2.5}),
    "multiclass": (CLASSES, {"objective": "multiclass", "num_class": 3}),
    "multiclassova": (CLASSES, {"objective": "multiclassova", "num_class": 3, "sigmoid": 0.7}),
    "regression": (AMOUNTS, {"objective": "regression"}),
    "regression sqrt": (AMOUNTS * 9, {"objective": "regression", "reg_sqrt": True}),
    "quantile": (AMOUNTS, {"objective": "quantile", "alpha": 0.9}),
    "huber": (AMOUNTS, {"objective": "huber"}),
    "poisson": (POSITIVE, {"objective": "poisson"}),
    "tweedie": (POSITIVE, {"objective": "tweedie"}),
    "gamma": (POSITIVE + 0.1, {"objective": "gamma"}),
    "cross_entropy": (SHARE, {"objective": "cross_entropy"}),
    "dart": (AMOUNTS, {"objective": "regression", "boosting": "dart"}),
    "forest": (
        CLASSES,
        {
            "objective": "multiclass",
            "num_class": 3,
            "boosting": "rf",
            "bagging_freq": 1,
            "bagging_fraction": 0.7,
        },
    ),
    "no split": (np.full(len(ROWS), 3.0), {"objective": "regression"}),
}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_each_objective_is_predicted_in_doubles_as_lightgbm_does(kind: str, tmp_path: Path) -> None:
    target, params = OBJECTIVES[kind]
    native, made, conversion = converted(trained(tmp_path, target, **params))
    rows = asked(200).astype(np.float64)
    want, got = native.run({"input": rows}), made.run({"input": rows})

    assert conversion.computes is Datatype.FP64
    assert conversion.converter.startswith("headrace ")
    assert made.signature.inputs == native.signature.inputs
    assert made.signature.outputs == native.signature.outputs
    assert list(got) == list(want)
    for name, values in want.items():
        if name == "label":
            assert np.array_equal(got[name], values)
        else:
            assert np.allclose(got[name], values, rtol=1e-12, atol=1e-15)


def test_values_that_fp32_cannot_tell_apart_go_down_the_branch_that_lightgbm_takes(
    tmp_path: Path,
) -> None:
    seconds = 1.76e9 + np.arange(240.0)[:, None]  # FP32 knows every 128th of them
    path = trained(tmp_path, np.arange(240) % 60 // 30, seconds, objective="binary")
    native, made, _ = converted(path)

    want, got = (model.run({"input": seconds}) for model in (native, made))

    assert np.array_equal(got["label"], want["label"])
    assert 0.3 < want["label"].mean() < 0.7  # so that going wrong would show
    fp32 = native.run({"input": seconds.astype(np.float32).astype(np.float64)})
    assert not np.array_equal(fp32["label"], want["label"])


def test_a_value_on_a_threshold_or_next_to_it_goes_where_lightgbm_sends_it(tmp_path: Path) -> None:
    path = trained(tmp_path, AMOUNTS, objective="regression")
    native, made, _ = converted(path)
    lines = (line for line in path.read_text().split("\n") if line.startswith("threshold="))
    cuts = np.array([float(one) for line in lines for one in line[10:].split(" ")])
    near = np.concatenate((np.nextafter(cuts, -np.inf), cuts, np.nextafter(cuts, np.inf)))
    rows = np.repeat(near[:, None], ROWS.shape[1], axis=1)

    want, got = (model.run({"input": rows})["prediction"] for model in (native, made))

    assert np.allclose(got, want, rtol=1e-13)
    assert len(np.unique(want)) > 3


@pytest.mark.parametrize("use_missing", [True, False])
def test_missing_values_go_where_they_went_in_training(use_missing: bool, tmp_path: Path) -> None:  # noqa: FBT001  # a case of two
    rows = ROWS.copy()
    rows[::4, 0] = np.nan
    path = trained(tmp_path, AMOUNTS, rows, objective="regression", use_missing=use_missing)
    native, made, conversion = converted(path)
    holes = {"input": np.where(np.arange(5) % 2 == 0, np.nan, asked().astype(np.float64))}

    assert conversion.computes is Datatype.FP64
    assert "with missing values" in conversion.differences.inputs
    assert np.allclose(made.run(holes)["prediction"], native.run(holes)["prediction"], rtol=1e-13)


def test_what_onnx_cannot_say_is_refused_with_the_reason(tmp_path: Path) -> None:
    holes = np.where(np.abs(ROWS) < 0.5, 0, ROWS)
    zeros = trained(tmp_path, AMOUNTS, holes, objective="regression", zero_as_missing=True)
    with pytest.raises(UnsupportedModelError, match=r"zeros count as missing"):
        lightgbm_graph(read_lightgbm(zeros).text)

    other = trained(tmp_path, SHARE, objective="cross_entropy_lambda")
    with pytest.raises(
        UnsupportedModelError, match="'cross_entropy_lambda' predicts is not supported"
    ):
        lightgbm_graph(read_lightgbm(other).text)


def test_what_is_not_known_in_doubles_is_left_to_onnxmltools(tmp_path: Path) -> None:
    path = trained(tmp_path, SHARE, objective="cross_entropy_lambda")

    with pytest.raises(UnsupportedModelError) as refused:
        converted(path)

    assert "model.txt: how its objective" in str(refused.value)
    assert "; onnxmltools" in str(refused.value)


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    path = tabular_models.lightgbm(tmp_path, "multiclass").path
    converted(path)
    first = path.with_suffix(".onnx").read_bytes()

    converted(path)

    assert path.with_suffix(".onnx").read_bytes() == first
