import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core import CodeNotAllowedError, UnsupportedModelError
from headrace.runtimes import inspect_model, load_model
from tests import tabular_models
from tests.tabular_models import FEATURES, KINDS, ROWS, asked, library, target

SKLEARN = "mlserver_sklearn.SKLearnModel"


def folder(path: Path, implementation: object = SKLEARN, **settings: Any) -> Path:  # noqa: ANN401  # any setting
    document = {"name": "m", "implementation": implementation, **settings}
    (path / "model-settings.json").write_text(json.dumps(document))
    return path


def dump_linear(path: Path, *, named: bool = False) -> Any:  # noqa: ANN401  # an estimator
    linear = library("sklearn.linear_model", "sklearn").LogisticRegression(max_iter=1000)
    rows: Any = ROWS.astype(np.float64)
    if named:
        rows = library("pandas", "sklearn").DataFrame(rows, columns=list("abcde"))
    linear.fit(rows, target("multiclass"))
    library("joblib", "sklearn").dump(linear, path)
    return linear


@pytest.mark.slow  # imports the libraries
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["xgboost", "lightgbm", "catboost"])
def test_trees_answer_what_their_library_predicts(name: str, kind: str, tmp_path: Path) -> None:
    train = {
        "xgboost": (tabular_models.xgboost, "mlserver_xgboost.XGBoostModel", "model.bst"),
        "lightgbm": (tabular_models.lightgbm, "mlserver_lightgbm.LightGBMModel", "model.bst"),
        "catboost": (tabular_models.catboost, "mlserver_catboost.CatboostModel", "model.cbm"),
    }
    make, implementation, file = train[name]
    trained = make(tmp_path, kind)
    trained.path.rename(tmp_path / file)
    rows = asked().astype(np.float64 if name == "lightgbm" else np.float32)
    predictions, *probabilities = trained.expected(rows)
    if name == "lightgbm" and kind != "regression":
        predictions = probabilities[0][:, 1] if kind == "binary" else probabilities[0]
        probabilities = []

    model = load_model(folder(tmp_path, implementation))
    answers = model.run({"input": rows})
    model.close()

    assert list(answers) == ["predict", *["predict_proba"] * len(probabilities)]
    for answer, want in zip(answers.values(), [predictions, *probabilities], strict=True):
        assert np.array_equal(answer, want)
    for spec in model.signature.outputs:
        assert spec.fits(answers[spec.name].shape)


@pytest.mark.slow
def test_the_settings_name_inputs_and_outputs(tmp_path: Path) -> None:
    linear = dump_linear(tmp_path / "iris.joblib")
    folder(
        tmp_path,
        parameters={"uri": "./iris.joblib", "version": "v0.1.0"},
        inputs=[{"name": "x", "datatype": "FP32", "shape": [-1, FEATURES]}],
        outputs=[{"name": "species", "datatype": "INT64", "shape": [-1]}],
    )
    rows = asked(missing=False)

    model = load_model(tmp_path)
    answers = model.run({"x": rows})

    assert [(s.name, s.datatype, s.shape) for s in model.signature.inputs] == [
        ("x", "FP32", (-1, FEATURES))
    ]
    assert list(answers) == ["species"]
    assert np.array_equal(answers["species"], linear.predict(rows.astype(np.float64)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_an_input_for_each_column_is_taken_in_the_order_of_training(tmp_path: Path) -> None:
    linear = dump_linear(tmp_path / "model.joblib", named=True)
    names = list("edcba")
    folder(
        tmp_path,
        inputs=[{"name": name, "datatype": "FP64", "shape": [-1, 1]} for name in names],
        parameters={"extra": {"predict_fn": "predict_proba"}},
    )
    rows = asked(missing=False).astype(np.float64)
    columns = {name: rows[:, [i]] for i, name in enumerate("abcde")}

    model = load_model(tmp_path)
    answers = model.run(columns)

    assert [spec.name for spec in model.signature.inputs] == list("abcde")
    assert list(answers) == ["predict_proba", "predict"]
    frame = library("pandas", "sklearn").DataFrame(rows, columns=list("abcde"))
    assert np.array_equal(answers["predict_proba"], linear.predict_proba(frame))
    first_run = inspect_model(tmp_path, allow_code=True).first_run
    assert first_run is not None
    assert first_run.error == ""


@pytest.mark.slow
def test_a_pickle_in_the_folder_needs_an_allow(tmp_path: Path) -> None:
    dump_linear(tmp_path / "model.joblib")

    with pytest.raises(CodeNotAllowedError, match=r"'model\.joblib' is a pickle"):
        inspect_model(folder(tmp_path))
    assert inspect_model(tmp_path, allow_code=True).runtime == "mlserver"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"implementation": "models.Mine"}, "the implementation 'models.Mine' is not supported"),
        ({"implementation": "evil.SKLearnModel"}, "is not supported"),
        ({"implementation": 3}, "cannot be read: Expected `str`"),
        ({"parameters": {"uri": "../model.joblib"}}, "`uri` leads out of the directory"),
        ({"parameters": {"uri": "/etc/passwd"}}, "`uri` leads out of the directory"),
        ({"parameters": {"uri": "gone.pkl"}}, r"there is no file gone\.pkl in the directory"),
        ({}, r"there is no file model\.joblib, model\.pickle or model\.pkl in the directory"),
    ],
)
def test_settings_that_no_runtime_serves_are_refused_with_the_reason(
    tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        inspect_model(folder(tmp_path, **settings), allow_code=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 7]}]},
            r"`inputs` are not those of the model, which takes input FP64 \[-1, 5\]",
        ),
        (
            {"outputs": [{"name": n, "datatype": "FP32", "shape": [-1]} for n in ("predict", "b")]},
            "the model has no output b; it has predict, predict_proba",
        ),
    ],
)
def test_settings_that_contradict_the_model_are_refused(
    tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    dump_linear(tmp_path / "model.joblib")

    with pytest.raises(UnsupportedModelError, match=reason):
        load_model(folder(tmp_path, **settings))
