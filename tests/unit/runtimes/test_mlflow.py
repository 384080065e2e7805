"""MLflow folders without MLflow: manifests as MLflow writes them, and files of real libraries."""

import json
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from headrace.core import (
    CodeNotAllowedError,
    Datatype,
    FailedPreconditionError,
    InvalidArgumentError,
    RuntimeFailedError,
    UnsupportedModelError,
)
from headrace.core.predictions import PredictionForm
from headrace.runtimes import LoadOptions, inspect_model, load_model
from headrace.runtimes.mlflow.native import NativeModel
from headrace.runtimes.mlflow.pyfunc import PyfuncModel
from tests.tabular_models import AMOUNTS, CLASSES, ROWS, SURE, asked, library

COLUMNS = ("e", "d", "c", "b", "a")
FRAME = {"columns": list(COLUMNS), "data": ROWS[:3].tolist()}


def folder(
    path: Path,
    flavor: str,
    options: Mapping[str, Any],
    *,
    signature: object = None,
    example: object = None,
    pyfunc: Mapping[str, Any] | None = None,
) -> Path:
    """Write the files of a folder beside the model."""
    path.mkdir(exist_ok=True)
    document: dict[str, Any] = {
        "flavors": {
            flavor: dict(options),
            "python_function": {"loader_module": f"mlflow.{flavor}", **(pyfunc or {})},
        }
    }
    if signature is not None:
        document["signature"] = {"inputs": json.dumps(signature), "outputs": None, "params": None}
    if example is not None:
        (path / "example.json").write_text(json.dumps(example))
        document["saved_input_example_info"] = {"serving_input_path": "example.json"}
    (path / "MLmodel").write_text(json.dumps(document))  # JSON is YAML
    (path / "requirements.txt").write_text("mlflow==3.17.2\npandas<4\n")
    return path


def columns(kind: str = "double", names: tuple[str, ...] = COLUMNS) -> list[dict[str, Any]]:
    return [{"type": kind, "name": name, "required": True} for name in names]


def table(rows: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: rows[:, i].astype(np.float64) for i, name in enumerate(COLUMNS)}


def opened(path: Path) -> NativeModel:
    model = load_model(path)
    assert isinstance(model, NativeModel)
    return model


def prediction(model: NativeModel, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return what `/invocations` answers."""
    (name,) = model.predictions.outputs
    return model.run(table(rows), [name])[name]


def test_scikit_learn_takes_one_input_per_column_and_predicts_the_same(tmp_path: Path) -> None:
    skops = library("skops.io", "sklearn")
    linear = library("sklearn.linear_model", "sklearn")
    estimator = linear.LogisticRegression().fit(ROWS, CLASSES)
    path = folder(
        tmp_path / "m",
        "sklearn",
        {"pickled_model": "model.skops"},
        signature=columns(),
        example={"dataframe_split": FRAME},
    )
    skops.dump(estimator, path / "model.skops")

    inspected = inspect_model(path)
    assert (inspected.runtime, inspected.runs_code) == ("mlflow", False)
    assert [spec.name for spec in inspected.signature.inputs] == list(COLUMNS)
    assert inspected.signature.batched
    assert inspected.signature.example == dict(zip(COLUMNS, map(float, ROWS[0]), strict=True))
    model = opened(path)
    np.testing.assert_array_equal(prediction(model, ROWS), estimator.predict(ROWS.astype(float)))
    np.testing.assert_array_equal(
        model.run(table(ROWS), ["probabilities"])["probabilities"],
        estimator.predict_proba(ROWS.astype(float)),
    )
    examples = model.example_inputs(rows=4, variable=1)
    np.testing.assert_array_equal(examples["e"], ROWS[[0, 1, 2, 0], 0].astype(np.float64))


def test_predict_proba_as_the_function_of_pyfunc_is_the_prediction(tmp_path: Path) -> None:
    skops = library("skops.io", "sklearn")
    linear = library("sklearn.linear_model", "sklearn")
    estimator = linear.LogisticRegression().fit(ROWS, SURE)
    path = folder(
        tmp_path / "m",
        "sklearn",
        {"pickled_model": "model.skops"},
        signature=columns(),
        pyfunc={"predict_fn": "predict_proba"},
    )
    skops.dump(estimator, path / "model.skops")
    np.testing.assert_array_equal(
        prediction(opened(path), ROWS), estimator.predict_proba(ROWS.astype(float))
    )


def test_pickle_needs_permission(tmp_path: Path) -> None:
    joblib = library("joblib", "sklearn")
    linear = library("sklearn.linear_model", "sklearn")
    estimator = linear.LinearRegression().fit(ROWS, AMOUNTS)
    path = folder(tmp_path / "m", "sklearn", {"pickled_model": "model.pkl"}, signature=columns())
    joblib.dump(estimator, path / "model.pkl")
    with pytest.raises(CodeNotAllowedError, match=r"model\.pkl"):
        inspect_model(path)
    assert inspect_model(path, allow_code=True).runs_code
    np.testing.assert_array_equal(
        prediction(opened(path), ROWS), estimator.predict(ROWS.astype(float))
    )


def test_text_columns_reach_the_pipeline_by_name(tmp_path: Path) -> None:
    pd = library("pandas", "sklearn")
    compose = library("sklearn.compose", "sklearn")
    pipeline = library("sklearn.pipeline", "sklearn")
    preprocessing = library("sklearn.preprocessing", "sklearn")
    linear = library("sklearn.linear_model", "sklearn")
    skops = library("skops.io", "sklearn")
    data = pd.DataFrame({"color": ["red", "blue", "red", "green"], "size": [1, 2, 3, 4]})
    encode = preprocessing.OneHotEncoder(handle_unknown="ignore")
    steps = compose.ColumnTransformer([("t", encode, ["color"])], remainder="passthrough")
    estimator = pipeline.make_pipeline(steps, linear.LinearRegression()).fit(data, [1, 2, 3, 4])
    path = folder(
        tmp_path / "m",
        "sklearn",
        {"pickled_model": "model.skops"},
        signature=[
            {"type": "string", "name": "color"},
            {"type": "long", "name": "size"},
        ],
    )
    skops.dump(estimator, path / "model.skops")
    model = opened(path)
    datatypes = [spec.datatype for spec in model.signature.inputs]
    assert datatypes == [Datatype.BYTES, Datatype.INT64]
    inputs = {
        "color": np.array([b"blue", b"red"], np.object_),
        "size": np.array([2, 3], np.int64),
    }
    expected = estimator.predict(data.iloc[1:3])
    np.testing.assert_array_equal(model.run(inputs)["prediction"], expected)


@pytest.mark.parametrize("name", ["XGBClassifier", "XGBRegressor", "Booster"])
def test_xgboost_predicts_what_its_class_predicts(tmp_path: Path, name: str) -> None:
    xgboost = library("xgboost", "xgboost")
    rows = asked()
    path = folder(
        tmp_path / "m",
        "xgboost",
        {"data": "model.ubj", "model_class": f"xgboost.x.{name}"},
        signature=columns(),
    )
    if name == "Booster":
        model = xgboost.train(
            {"objective": "binary:logistic"}, xgboost.DMatrix(ROWS, SURE), num_boost_round=5
        )
        expected = model.predict(xgboost.DMatrix(rows))
    else:
        target = AMOUNTS if name == "XGBRegressor" else CLASSES
        model = getattr(xgboost, name)(n_estimators=5).fit(ROWS, target)
        expected = model.predict(rows)
    model.save_model(path / "model.ubj")
    answer = prediction(opened(path), rows)
    np.testing.assert_array_equal(answer, expected)
    assert answer.dtype == expected.dtype


@pytest.mark.parametrize("objective", ["multi:softmax", "multi:softprob"])
def test_booster_of_classes_predicts_what_its_objective_says(
    tmp_path: Path, objective: str
) -> None:
    xgboost = library("xgboost", "xgboost")
    data = xgboost.DMatrix(ROWS, CLASSES)
    model = xgboost.train({"objective": objective, "num_class": 3}, data, num_boost_round=5)
    path = folder(tmp_path / "m", "xgboost", {"data": "model.ubj"}, signature=columns())
    model.save_model(path / "model.ubj")
    expected = model.predict(xgboost.DMatrix(ROWS))
    np.testing.assert_array_equal(prediction(opened(path), ROWS), expected)


def test_xgboost_classifier_without_classes_is_refused(tmp_path: Path) -> None:
    xgboost = library("xgboost", "xgboost")
    model = xgboost.XGBClassifier(n_estimators=3, objective="binary:hinge").fit(ROWS, SURE)
    options = {"data": "model.ubj", "model_class": "xgboost.sklearn.XGBClassifier"}
    path = folder(tmp_path / "m", "xgboost", options)
    model.save_model(path / "model.ubj")
    with pytest.raises(UnsupportedModelError, match="not the result of 'predict'"):
        load_model(path)


@pytest.mark.parametrize("objective", ["binary", "multiclass", "regression"])
def test_lightgbm_booster_predicts_the_same(tmp_path: Path, objective: str) -> None:
    lightgbm = library("lightgbm", "lightgbm")
    target = {"binary": SURE, "multiclass": CLASSES, "regression": AMOUNTS}[objective]
    settings = {"objective": objective, "verbose": -1, "num_leaves": 5}
    if objective == "multiclass":
        settings["num_class"] = 3
    model = lightgbm.train(settings, lightgbm.Dataset(ROWS, target), 5)
    path = folder(tmp_path / "m", "lightgbm", {"data": "model.lgb"}, signature=columns())
    model.save_model(path / "model.lgb")
    rows = asked()
    expected = model.predict(rows.astype(np.float64))
    np.testing.assert_array_equal(prediction(opened(path), rows), expected)


@pytest.mark.parametrize("classes", [2, 3])
def test_catboost_predicts_the_same_with_the_same_shape(tmp_path: Path, classes: int) -> None:
    catboost = library("catboost", "catboost")
    model = catboost.CatBoostClassifier(iterations=5, verbose=0, allow_writing_files=False)
    model.fit(ROWS, SURE if classes == 2 else CLASSES)
    options = {"data": "model.cb", "model_type": "CatBoostClassifier", "save_format": "cbm"}
    path = folder(tmp_path / "m", "catboost", options, signature=columns())
    model.save_model(str(path / "model.cb"))
    expected = model.predict(ROWS)
    answer = prediction(opened(path), ROWS)
    assert answer.shape == expected.shape
    np.testing.assert_array_equal(answer, expected)


def test_onnx_keeps_its_tensors_and_answers_as_a_dictionary_or_records(tmp_path: Path) -> None:
    skl2onnx = library("skl2onnx", "convert")
    linear = library("sklearn.linear_model", "sklearn")
    estimator = linear.LinearRegression().fit(ROWS, AMOUNTS)
    for signature, form in (
        (None, PredictionForm.RECORDS),
        (columns(), PredictionForm.RECORDS),
        (
            [{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 5]}}],
            PredictionForm.MAPPING,
        ),
    ):
        path = folder(tmp_path / "m", "onnx", {"data": "model.onnx"}, signature=signature)
        (path / "model.onnx").write_bytes(skl2onnx.to_onnx(estimator, ROWS[:1]).SerializeToString())
        model = opened(path)
        assert model.predictions.of_table is form
        assert model.predictions.of_tensors is PredictionForm.MAPPING
        assert len(model.signature.inputs) == (5 if model.predictions.is_table else 1)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("", "declares no flavors"),
        ("flavors: {a: [", "declares no flavors"),
        ("flavors: !!python/object:os.system {}", "declares no flavors"),
        ("flavors: {onnx: {data: missing.onnx}}", "which does not exist"),
        ("flavors: {onnx: {data: ../outside.onnx}}", "outside of the folder"),
        ("flavors: {onnx: {data: x}}\nsignature: {inputs: '[1]'}", "cannot be read"),
        ('flavors: {onnx: {data: x}}\nsignature: {inputs: \'[{"type": "tensor"}]\'}', "be read"),
    ],
)
def test_damaged_manifest_is_refused(tmp_path: Path, document: str, reason: str) -> None:
    (tmp_path / "outside.onnx").write_bytes(b"x")
    path = tmp_path / "m"
    path.mkdir()
    (path / "MLmodel").write_text(document)
    with pytest.raises(UnsupportedModelError, match=reason):
        inspect_model(path, allow_code=True)


def test_missing_mlflow_is_refused_with_the_command_that_installs_it(tmp_path: Path) -> None:
    if find_spec("mlflow") is not None:
        pytest.skip("MLflow is installed")
    path = folder(tmp_path / "m", "prophet", {"data": "x"}, signature=columns())
    with pytest.raises(CodeNotAllowedError, match="MLflow loads its flavor 'prophet'"):
        inspect_model(path)
    install = r"pip install mlflow==3\.17\.2 'pandas<4'"
    with pytest.raises(FailedPreconditionError, match=install):
        inspect_model(path, allow_code=True)


class MLflowException(Exception):  # noqa: N818  # MLflow's own name
    """As MLflow raises it for an input that contradicts the signature."""

    __module__ = "mlflow.exceptions"


@pytest.fixture
def pyfunc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PyfuncModel]:
    """Return a function that loads a folder by a stand-in for MLflow, with this `predict`."""

    def load(
        predict: Callable[[Any], Any],
        *,
        options: LoadOptions | None = None,
        signature: object = None,
        example: object = None,
    ) -> PyfuncModel:
        module = ModuleType("mlflow.pyfunc")
        module.load_model = lambda _: SimpleNamespace(predict=predict)  # type: ignore[attr-defined]  # a stand-in
        monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
        monkeypatch.setitem(sys.modules, "mlflow.pyfunc", module)
        path = folder(tmp_path / "m", "own", {}, signature=signature, example=example)
        model = load_model(path, options=options)
        assert isinstance(model, PyfuncModel)
        return model

    return load


def test_pyfunc_gets_a_data_frame_of_its_types(pyfunc: Callable[..., PyfuncModel]) -> None:
    pd = pytest.importorskip("pandas")
    taken = []

    def predict(frame: Any) -> Any:  # noqa: ANN401  # a data frame
        taken.append(frame)
        return frame["n"] * 2

    model = pyfunc(
        predict,
        signature=[
            {"type": "double", "name": "n"},
            {"type": "string", "name": "s"},
            {"type": "datetime", "name": "t"},
            {"type": "array", "name": "l", "items": {"type": "double"}},
        ],
        example={
            "dataframe_split": {
                "columns": ["n", "s", "t", "l"],
                "data": [[1.5, "x", "2026-01-02T03:04:05", [1, 2]]],
            }
        },
    )
    (frame,) = taken
    assert frame["s"].tolist() == ["x"]
    assert frame["t"].tolist() == [pd.Timestamp("2026-01-02T03:04:05")]
    assert frame["l"].tolist() == [[1, 2]]
    assert not model.signature.batched
    assert [spec.name for spec in model.signature.outputs] == ["n"]
    assert model.predictions.of_table is PredictionForm.RECORDS
    inputs = model.example_inputs(rows=1, variable=1)
    np.testing.assert_array_equal(model.run(inputs)["n"], [3.0])
    inputs["t"] = np.array([b"yesterday"], np.object_)
    with pytest.raises(InvalidArgumentError, match="not a time in ISO 8601"):
        model.run(inputs)


def _tensor(dtype: str, *shape: int, name: str | None = None) -> dict[str, Any]:
    spec: dict[str, Any] = {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}}
    return spec | ({"name": name} if name else {})


@pytest.mark.parametrize(
    ("result", "form", "names"),
    [
        (lambda rows: rows.sum(axis=1), PredictionForm.VALUES, ["prediction"]),
        (lambda rows: ["a"] * len(rows), PredictionForm.VALUES, ["prediction"]),
        (lambda rows: {"x": rows, "y": rows[:, 0]}, PredictionForm.MAPPING, ["x", "y"]),
        (lambda rows: {"any": [None, len(rows)]}, PredictionForm.DOCUMENT, ["prediction"]),
        (lambda _: "text", PredictionForm.DOCUMENT, ["prediction"]),
    ],
)
def test_pyfunc_may_return_any_object(
    pyfunc: Callable[..., PyfuncModel],
    result: Callable[[Any], Any],
    form: PredictionForm,
    names: list[str],
) -> None:
    model = pyfunc(result, signature=[_tensor("float32", -1, 2)])
    assert model.predictions.of_tensors is form
    assert list(model.predictions.outputs) == names
    outputs = model.run({"input": np.ones((3, 2), np.float32)})
    assert list(outputs) == names


def test_pyfunc_gets_named_tensors_as_a_dictionary(pyfunc: Callable[..., PyfuncModel]) -> None:
    model = pyfunc(
        lambda tensors: tensors["a"] + tensors["b"][:, :1],
        signature=[_tensor("int64", -1, 1, name="a"), _tensor("int64", -1, 2, name="b")],
        options=LoadOptions(rows_independent=True),
    )
    assert model.signature.batched
    ones = np.ones((3, 2), np.int64)
    outputs = model.run({"a": ones[:, :1], "b": ones})
    np.testing.assert_array_equal(outputs["prediction"], [[2], [2], [2]])


def test_errors_of_pyfunc_are_the_callers_or_the_models(
    pyfunc: Callable[..., PyfuncModel],
) -> None:
    def predict(rows: Any) -> Any:  # noqa: ANN401  # an array
        if len(rows) == 3:
            raise MLflowException("Failed to enforce schema")
        if len(rows) == 4:
            raise ZeroDivisionError("no")
        return rows if len(rows) < 5 else rows.tolist()

    model = pyfunc(predict, signature=[_tensor("float32", -1, 2)])
    for rows, kind, message in (
        (3, InvalidArgumentError, "MLflow refuses it: Failed to enforce schema"),
        (4, RuntimeFailedError, "the model failed: no"),
        (5, RuntimeFailedError, "unlike for the input example"),
    ):
        with pytest.raises(kind, match=message):
            model.run({"input": np.ones((rows, 2), np.float32)})
    model.close()
    with pytest.raises(RuntimeFailedError, match="closed"):
        model.run({"input": np.ones((1, 2), np.float32)})


def test_pyfunc_without_signature_or_with_a_failing_example_is_refused(
    pyfunc: Callable[..., PyfuncModel],
) -> None:
    with pytest.raises(UnsupportedModelError, match="has no signature"):
        pyfunc(lambda rows: rows)

    def fail(_: object) -> None:
        raise ValueError("too small")

    with pytest.raises(UnsupportedModelError, match="does not predict generated inputs: too small"):
        pyfunc(fail, signature=[_tensor("float32", -1, 2)])
