"""Categorical features are predicted as their library does, whatever callers call them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core import (
    Array,
    CodeNotAllowedError,
    Datatype,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    UnsupportedModelError,
)
from headrace.optimize.sources import open_source
from headrace.runtimes import Runtime, inspect_model, load_model
from headrace.runtimes.tables.catboost import CatboostRuntime
from headrace.runtimes.tables.lightgbm import LightgbmRuntime
from headrace.runtimes.tables.xgboost import XgboostRuntime
from headrace.testing.contracts import RuntimeContract
from tests.tabular_models import library

pandas = library("pandas", "sklearn")

COUNT = 300
RNG = np.random.default_rng(3)
CITIES = ("Bern", "Basel", "Chur", "Thun")
PLANS = (10, 20, 30)


def frame() -> Any:  # noqa: ANN401  # a data frame
    return pandas.DataFrame(
        {
            "age": RNG.normal(size=COUNT),
            "city": pandas.Categorical(RNG.choice(CITIES, COUNT), categories=CITIES),
            "plan": pandas.Categorical(RNG.choice(PLANS, COUNT), categories=PLANS),
            "income": RNG.normal(size=COUNT),
        }
    )


ROWS = frame()
SCORE = (
    ROWS["age"] + (ROWS["city"] == "Chur") * 2 + (ROWS["plan"] == 20) + RNG.normal(size=COUNT) / 5
)
TARGETS: dict[str, Array] = {
    "binary": (SCORE > 0.5).to_numpy(int),
    "multiclass": np.digitize(SCORE, [0.0, 1.0]),
    "regression": SCORE.to_numpy(),
}


def with_gaps() -> Any:  # noqa: ANN401  # a data frame
    asked = frame()
    for step, name in enumerate(asked.columns, 5):
        asked.loc[::step, name] = np.nan
    return asked


def inputs_of(rows: Any, signature: ModelSignature) -> Tensors:  # noqa: ANN401  # a data frame
    """A frame as callers send it: an empty text where a category is missing."""
    inputs: Tensors = {}
    for spec in signature.inputs:
        column = rows[spec.name]
        if spec.datatype is Datatype.BYTES:
            texts = np.empty(len(rows), np.object_)
            gaps = column.isna().tolist()
            texts[:] = [
                b"" if gap else str(one).encode()
                for one, gap in zip(column.tolist(), gaps, strict=True)
            ]
            inputs[spec.name] = texts
        else:
            inputs[spec.name] = column.to_numpy(float).astype(spec.datatype.dtype)
    return inputs


def xgboost(folder: Path, kind: str, suffix: str = ".json") -> tuple[Path, Callable[[Any], Array]]:
    library_ = library("xgboost", "xgboost")
    make = library_.XGBRegressor if kind == "regression" else library_.XGBClassifier
    model = make(n_estimators=6, enable_categorical=True, max_cat_to_onehot=2, n_jobs=1)
    model.fit(ROWS, TARGETS[kind])
    path = folder / f"model{suffix}"
    model.save_model(path)
    return path, model.predict if kind == "regression" else model.predict_proba


def lightgbm(folder: Path, kind: str) -> tuple[Path, Callable[[Any], Array]]:
    library_ = library("lightgbm", "lightgbm")
    make = library_.LGBMRegressor if kind == "regression" else library_.LGBMClassifier
    model = make(n_estimators=6, verbose=-1, min_data_per_group=5, cat_smooth=1, n_jobs=1)
    model.fit(ROWS, TARGETS[kind])
    path = folder / "model.txt"
    model.booster_.save_model(path)
    return path, model.predict if kind == "regression" else model.predict_proba


def catboost(folder: Path, kind: str) -> tuple[Path, Callable[[Any], Array]]:
    library_ = library("catboost", "catboost")
    make = library_.CatBoostRegressor if kind == "regression" else library_.CatBoostClassifier
    model = make(iterations=6, verbose=0, allow_writing_files=False, cat_features=["city", "plan"])
    model.fit(texts(ROWS), TARGETS[kind])
    path = folder / "model.cbm"
    model.save_model(str(path))
    return path, model.predict if kind == "regression" else model.predict_proba


def texts(rows: Any) -> Any:  # noqa: ANN401  # a data frame
    """As CatBoost takes categories, which knows no missing one."""
    plain = rows.assign(city=rows["city"].astype(object), plan=rows["plan"].astype(object))
    plain["city"] = plain["city"].where(plain["city"].notna(), "")
    plain["plan"] = [str(one) if one == one else "" for one in plain["plan"].tolist()]  # noqa: PLR0124  # not a number
    return plain


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("suffix", [".json", ".ubj"])
def test_xgboost_takes_names_of_categories(kind: str, suffix: str, tmp_path: Path) -> None:
    path, expected = xgboost(tmp_path, kind, suffix)
    model, asked = load_model(path), with_gaps()

    *_, got = model.run(inputs_of(asked, model.signature)).values()

    kinds = [str(spec.datatype) for spec in model.signature.inputs]
    assert kinds == ["FP32", "BYTES", "FP64", "FP32"]
    assert np.array_equal(got, expected(asked))


@pytest.mark.parametrize("kind", TARGETS)
def test_lightgbm_takes_names_of_categories(kind: str, tmp_path: Path) -> None:
    path, expected = lightgbm(tmp_path, kind)
    model, asked = load_model(path), with_gaps()

    *_, got = model.run(inputs_of(asked, model.signature)).values()

    kinds = [str(spec.datatype) for spec in model.signature.inputs]
    assert kinds == ["FP64", "BYTES", "FP64", "FP64"]
    assert np.array_equal(got, expected(asked))


@pytest.mark.parametrize("kind", TARGETS)
def test_catboost_takes_names_of_categories_where_code_is_allowed(
    kind: str, tmp_path: Path
) -> None:
    path, expected = catboost(tmp_path, kind)
    asked = texts(with_gaps())
    asked.loc[::9, "city"] = "Geneva"
    with pytest.raises(CodeNotAllowedError, match="has categorical features, whose statistics"):
        inspect_model(path)

    seen = inspect_model(path, allow_code=True)
    model = load_model(path)
    *_, got = model.run(inputs_of(asked, model.signature)).values()

    assert seen.runs_code
    kinds = [str(spec.datatype) for spec in model.signature.inputs]
    assert kinds == ["FP32", "BYTES", "BYTES", "FP32"]
    assert np.array_equal(got, expected(asked))


def test_a_category_that_xgboost_was_not_trained_on_is_refused(tmp_path: Path) -> None:
    model = load_model(xgboost(tmp_path, "binary")[0])
    inputs = inputs_of(ROWS[:2], model.signature)
    inputs["city"][1] = b"Geneva"

    with pytest.raises(InvalidArgumentError, match="'city' has a category that the model was not"):
        model.run(inputs)


def test_names_that_xgboost_stores_wrongly_are_refused(tmp_path: Path) -> None:
    """It counts their characters, and cuts their bytes."""
    rows = ROWS.assign(city=ROWS["city"].cat.rename_categories(["Zürich", "Bern", "a", "b"]))
    model = library("xgboost", "xgboost").XGBRegressor(n_estimators=2, enable_categorical=True)
    path = tmp_path / "model.json"
    model.fit(rows, TARGETS["regression"]).save_model(path)

    with pytest.raises(UnsupportedModelError, match="not ASCII at feature 1, which XGBoost mixes"):
        load_model(path)


def test_a_category_that_lightgbm_was_not_trained_on_is_missing(tmp_path: Path) -> None:
    path, expected = lightgbm(tmp_path, "binary")
    model = load_model(path)
    inputs = inputs_of(ROWS[:2], model.signature)
    inputs["city"][1], inputs["plan"][0] = b"Geneva", 99.0
    asked = ROWS[:2].astype({"city": object, "plan": object})
    asked.loc[1, "city"], asked.loc[0, "plan"] = "Geneva", 99

    got = model.run(inputs)["probabilities"]

    assert np.array_equal(got, expected(asked.astype({"city": "category", "plan": "category"})))


@pytest.mark.parametrize("name", ["xgboost", "lightgbm"])
def test_categories_without_names_are_the_numbers_of_the_training(
    name: str, tmp_path: Path
) -> None:
    codes = np.column_stack(
        (ROWS["age"], ROWS["city"].cat.codes, ROWS["plan"].cat.codes, ROWS["income"])
    ).astype(np.float32)
    if name == "xgboost":
        made = library("xgboost", "xgboost").XGBClassifier(
            n_estimators=6, enable_categorical=True, feature_types=["q", "c", "c", "q"]
        )
        made.fit(codes, TARGETS["binary"]).save_model(tmp_path / "model.json")
        path = tmp_path / "model.json"
    else:
        made = library("lightgbm", "lightgbm").LGBMClassifier(n_estimators=6, verbose=-1)
        made.fit(codes, TARGETS["binary"], categorical_feature=[1, 2])
        path = tmp_path / "model.txt"
        made.booster_.save_model(path)
    asked = codes.copy()
    asked[::3, 1], asked[::4, 2], asked[::5, 1] = 77, -3, np.nan
    model = load_model(path)
    (spec,) = model.signature.inputs

    got = model.run({"input": asked.astype(spec.datatype.dtype)})["probabilities"]

    assert spec.shape == (-1, 4)
    assert np.array_equal(got, made.predict_proba(asked))


@pytest.mark.parametrize("train", [xgboost, lightgbm, catboost])
def test_categories_are_not_converted(train: Any, tmp_path: Path) -> None:  # noqa: ANN401  # one of three
    path, _ = train(tmp_path, "binary")

    with pytest.raises(UnsupportedModelError, match=r"categorical features, .* without --convert"):
        open_source(path, train.__name__, allow_code=True)


def _change(key: str, index: int, value: int) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        trees = document["learner"]["gradient_booster"]["model"]["trees"]
        tree = next(tree for tree in trees if tree["categories"])
        tree[key][index] = value

    return change


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("categories", -1, "a category that is not a valid code"),
        ("categories", 1 << 30, "a category that is not a valid code"),
        ("categories_sizes", 10_000, "begins at the wrong position"),
        ("categories_sizes", 0, "begins at the wrong position"),
        ("categories_segments", 5, "begins at the wrong position"),
        ("categories_nodes", 10_000, "some splits of"),
    ],
)
def test_categories_of_xgboost_that_lead_elsewhere_are_refused(
    key: str, value: int, reason: str, tmp_path: Path
) -> None:
    path, _ = xgboost(tmp_path, "binary")
    document = json.loads(path.read_text())
    _change(key, 0, value)(document)
    path.write_text(json.dumps(document))

    with pytest.raises(UnsupportedModelError, match=f"truncated or corrupt: .*{reason}"):
        load_model(path)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("cat_boundaries", "0 99", "begin at the wrong position|other categories than"),
        ("cat_boundaries", "5", "begin at the wrong position"),
        ("cat_threshold", "-1", "other categories than it declares"),
        ("num_cat", "70", "begin at the wrong position"),
    ],
)
def test_categories_of_lightgbm_that_lead_elsewhere_are_refused(
    key: str, value: str, reason: str, tmp_path: Path
) -> None:
    path, _ = lightgbm(tmp_path, "binary")
    head, first, rest = path.read_text().partition("Tree=0\n")
    before, _, after = rest.partition(f"{key}=")
    changed = f"{before}{key}={value}\n{after.partition(chr(10))[2]}"
    trees = (first + changed).partition("end of trees")[0].split("Tree=")[1:]
    sizes = " ".join(str(len("Tree=" + tree)) for tree in trees)
    lines = [f"tree_sizes={sizes}" if "tree_sizes" in one else one for one in head.split("\n")]
    path.write_text("\n".join(lines) + first + changed)

    with pytest.raises(UnsupportedModelError, match=f"truncated or corrupt: .*({reason})"):
        load_model(path)


class CategoriesContract(RuntimeContract):
    rounding = 0.0
    made_by: type[Runtime]
    train: Callable[[Path, str], tuple[Path, Any]]

    @pytest.fixture
    def runtime(self) -> Runtime:
        return self.made_by()

    @pytest.fixture
    def model_path(self, tmp_path: Path) -> Path:
        return type(self).train(tmp_path, "multiclass")[0]

    @pytest.fixture
    def broken_path(self, model_path: Path) -> Path:
        path = model_path.with_name("half" + model_path.suffix)
        path.write_bytes(model_path.read_bytes()[: model_path.stat().st_size // 2])
        return path


class TestLightgbm(CategoriesContract):
    made_by = LightgbmRuntime
    train = staticmethod(lightgbm)


class TestCatboost(CategoriesContract):
    made_by = CatboostRuntime
    train = staticmethod(catboost)


def test_the_runtime_of_xgboost_has_an_example_of_each_category(tmp_path: Path) -> None:
    """The contract's own examples name a category that no model was trained on."""
    seen = inspect_model(xgboost(tmp_path, "binary")[0])

    assert XgboostRuntime().name == seen.runtime
    assert seen.first_run is not None
    assert not seen.first_run.error
