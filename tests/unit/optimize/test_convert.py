"""What is converted answers as its own library does, or is refused with the difference."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

from headrace.core import (
    CodeNotAllowedError,
    Datatype,
    FailedPreconditionError,
    InvalidArgumentError,
    UnsupportedModelError,
)
from headrace.optimize import Conversion, convertible_runtimes
from headrace.optimize.convert.convert import convert
from headrace.optimize.sources import (
    ConversionSource,
    Way,
    import_converter,
    open_source,
    source_runtime,
)
from headrace.runtimes import inspect_model, load_model
from headrace.testing import models
from tests import savedmodels, tabular_models
from tests.tabular_models import CLASSES, FEATURES, KINDS, ROWS, Trained, asked, library

pytestmark = pytest.mark.slow

library("onnxmltools", "convert")
library("skl2onnx", "convert")

TRAIN: dict[str, Callable[[Path, str], Trained]] = {
    "xgboost": tabular_models.xgboost,
    "lightgbm": tabular_models.lightgbm,
    "catboost": tabular_models.catboost,
    "sklearn": tabular_models.sklearn,
}
TAKES_MISSING = ("xgboost", "lightgbm", "catboost")


def made(path: Path, *, allow_code: bool = False, **options: Any) -> tuple[Path, Conversion]:  # noqa: ANN401  # as `convert` takes them
    source = open_source(path, source_runtime(path), allow_code=allow_code)
    target = path.with_suffix(".onnx")
    return target, convert(source, target, **{"max_changed_ratio": 0.001} | options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRAIN)
def test_each_library_is_converted_and_answers_the_same(
    name: str, kind: str, tmp_path: Path
) -> None:
    trained = TRAIN[name](tmp_path, kind)
    target, conversion = made(trained.path)
    before, after = inspect_model(trained.path), inspect_model(target)
    rows = asked(missing=name in TAKES_MISSING)
    model = load_model(target)
    (spec,) = after.signature.inputs
    answers = model.run({"input": rows.astype(spec.datatype.dtype)})

    assert after.runtime == "onnx"
    assert after.signature.inputs == before.signature.inputs
    assert after.signature.outputs == before.signature.outputs
    assert after.signature.batched is before.signature.batched
    for got, want in zip(answers.values(), trained.expected(rows), strict=True):
        assert np.allclose(got, want, rtol=1e-5, atol=1e-6)
    found = conversion.differences
    assert found.largest_relative < 1e-5
    assert found.changed_rows == 0
    assert ("with missing values" in found.inputs) is (name in TAKES_MISSING)


@pytest.mark.parametrize("name", TRAIN)
def test_the_same_model_is_converted_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    path = TRAIN[name](tmp_path, "binary").path

    first = made(path)[0].read_bytes()

    assert made(path)[0].read_bytes() == first


def test_a_model_stopped_early_is_converted_as_it_predicts(tmp_path: Path) -> None:
    xgb = library("xgboost", "xgboost")
    model = xgb.XGBClassifier(n_estimators=60, early_stopping_rounds=3, n_jobs=1)
    half = len(ROWS) // 2
    noise = np.random.default_rng(3).permutation(CLASSES[half:])
    model.fit(ROWS[:half], CLASSES[:half], eval_set=[(ROWS[half:], noise)], verbose=False)
    path = tmp_path / "early.json"
    model.save_model(path)
    assert model.best_iteration < 50

    target, _ = made(path)

    got = load_model(target).run({"input": asked()})["probabilities"]
    assert np.allclose(got, model.predict_proba(asked()), atol=1e-6)


def test_words_as_classes_stay_words(tmp_path: Path) -> None:
    catboost = library("catboost", "catboost")
    words = np.array(["low", "mid", "high"])[CLASSES]
    model = catboost.CatBoostClassifier(iterations=5, verbose=0, allow_writing_files=False)
    path = tmp_path / "words.cbm"
    model.fit(ROWS, words).save_model(str(path))

    target, _ = made(path)

    labels = load_model(target).run({"input": asked()})["label"]
    assert set(labels) <= {b"low", b"mid", b"high"}


def forest(folder: Path) -> Any:  # noqa: ANN401  # ships no types
    ensemble = library("sklearn.ensemble", "sklearn")
    estimator = ensemble.RandomForestClassifier(10, random_state=0)
    tabular_models.sklearn(folder, "multiclass", estimator)
    return estimator


@pytest.mark.parametrize("missing", [False, True])
def test_a_forest_is_converted_as_its_trees_compare_and_send_missing_values(
    tmp_path: Path, *, missing: bool
) -> None:
    estimator = forest(tmp_path)

    target, conversion = made(tmp_path / "multiclass.skops")

    rows = ROWS.astype(np.float64) + 1e-9  # which trees round to FP32
    rows[::3, 1] = np.nan if missing else rows[::3, 1]
    got = load_model(target).run({"input": rows})["probabilities"]
    assert np.allclose(got, estimator.predict_proba(rows), rtol=0, atol=1e-6)
    assert "with missing values" in conversion.differences.inputs
    assert conversion.computes is Datatype.FP64


@pytest.mark.parametrize("kind", ["ensemble.RandomForestClassifier", "tree.DecisionTreeClassifier"])
def test_splits_of_missing_values_from_all_others_are_converted(tmp_path: Path, kind: str) -> None:
    """Such a split compares with infinity, and skl2onnx does not return from that."""
    package, _, name = kind.partition(".")
    rows = ROWS.astype(np.float64)
    rows[::2, 1] = np.nan
    estimator = getattr(library(f"sklearn.{package}", "sklearn"), name)(random_state=0)
    estimator.fit(rows, np.arange(len(rows)) % 2)
    path = tmp_path / "gaps.joblib"
    joblib.dump(estimator, path)
    trees = [tree.tree_ for tree in getattr(estimator, "estimators_", [estimator])]
    assert any(np.isinf(tree.threshold).any() for tree in trees)

    target, _ = made(path, allow_code=True)

    rows[0, 1] = np.finfo(np.float32).max
    got = load_model(target).run({"input": rows})["probabilities"]
    assert np.allclose(got, estimator.predict_proba(rows), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["forest.joblib", "forest.pkl"])
def test_a_pickle_is_converted_where_its_code_may_run(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    joblib.dump(forest(tmp_path), path)
    with pytest.raises(CodeNotAllowedError):
        made(path)

    target, conversion = made(path, allow_code=True)

    assert conversion.converter.startswith("skl2onnx ")
    assert inspect_model(target).runtime == "onnx"


@pytest.mark.parametrize(
    ("content", "reason"), [(["a list"], "holds a list, which cannot"), (None, "unpickl")]
)
def test_a_pickle_of_something_else_is_refused(
    tmp_path: Path, content: object, reason: str
) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x04 broken") if content is None else joblib.dump(content, path)

    with pytest.raises(UnsupportedModelError, match=rf"a\.pkl: .*{reason}"):
        made(path, allow_code=True)


boosts = pytest.mark.filterwarnings("ignore:Field onnx.AttributeProto.ints:DeprecationWarning")
"""skl2onnx gives protobuf booleans for numbers, which it takes until 7.34."""


def test_categories_are_not_converted_and_served_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"categorical features.* without --convert"):
        made(boosting(tmp_path, categorical_features=[4]), allow_code=True)


@pytest.mark.parametrize("loss", ["squared_error", "poisson", "gamma", "absolute_error"])
def test_histogram_boosting_is_converted_in_doubles(tmp_path: Path, loss: str) -> None:
    path = boosting(tmp_path, loss=loss)

    target, conversion = made(path, allow_code=True)

    rows = asked().astype(np.float64)
    got, want = (load_model(one).run({"input": rows})["prediction"] for one in (target, path))
    assert np.allclose(got, want, rtol=1e-12)
    assert conversion.converter.startswith("headrace ")
    assert conversion.differences.inputs.endswith("with missing values")


@boosts
def test_thresholds_that_a_converter_rounds_are_found_without_data(tmp_path: Path) -> None:
    """As skl2onnx converts boosting whose thresholds are values of the training."""
    ensemble = library("sklearn.ensemble", "sklearn")
    rows, target = library("sklearn.datasets", "sklearn").load_breast_cancer(return_X_y=True)
    path = tmp_path / "cancer.joblib"
    joblib.dump(ensemble.HistGradientBoostingClassifier(max_iter=20).fit(rows, target), path)
    source = open_source(path, "sklearn", allow_code=True)
    double = [way for way in source.ways if way.computes is Datatype.FP64 and not way.converter]

    with pytest.raises(UnsupportedModelError, match=r"on and beside all \d+ thresholds, output"):
        convert(replace(source, ways=tuple(double)), path.with_suffix(".onnx"), max_changed_ratio=0)


@boosts
def test_what_only_doubles_hold_is_told_of_a_conversion_to_single_precision(
    tmp_path: Path,
) -> None:
    ensemble = library("sklearn.ensemble", "sklearn")
    whole = np.round(ROWS * 8).astype(np.float64)  # FP32 holds all thresholds between such
    path = tmp_path / "whole.joblib"
    joblib.dump(ensemble.HistGradientBoostingRegressor(max_iter=5).fit(whole, ROWS[:, 0]), path)
    source = open_source(path, "sklearn", allow_code=True)
    single = [way for way in source.ways if way.computes is Datatype.FP32]

    conversion = convert(
        replace(source, ways=tuple(single)), path.with_suffix(".onnx"), max_changed_ratio=0
    )

    about = conversion.metadata(digest="sha256:00", runtime="sklearn", filename="a")  # type: ignore[arg-type]  # as good as a digest
    assert int(about["differs_beside_thresholds"].split()[0]) > 0
    assert "FP64" not in about["compared_inputs"]


def boosting(folder: Path, **options: object) -> Path:
    ensemble = library("sklearn.ensemble", "sklearn")
    rows = ROWS.astype(np.float64)
    rows[:, 4] = np.round(np.abs(rows[:, 4]) * 3)
    estimator = ensemble.HistGradientBoostingRegressor(max_iter=5, **options)
    path = folder / "boosting.joblib"
    joblib.dump(estimator.fit(rows, np.abs(ROWS[:, 0]) + rows[:, 4]), path)
    return path


def test_what_skl2onnx_does_not_know_is_said(tmp_path: Path) -> None:
    neighbors = library("sklearn.semi_supervised", "sklearn")
    path = tmp_path / "spread.joblib"
    joblib.dump(neighbors.LabelSpreading().fit(ROWS, CLASSES), path)

    with pytest.raises(
        UnsupportedModelError, match=r"spread\.joblib: skl2onnx cannot convert it: "
    ):
        made(path, allow_code=True)


def test_a_tuned_threshold_is_not_converted(tmp_path: Path) -> None:
    """skl2onnx converts the classifier inside, whose labels are others."""
    search = library("sklearn.model_selection", "sklearn")
    bayes = library("sklearn.naive_bayes", "sklearn").GaussianNB()
    path = tmp_path / "tuned.joblib"
    joblib.dump(search.TunedThresholdClassifierCV(bayes).fit(ROWS, CLASSES > 1), path)

    with pytest.raises(UnsupportedModelError, match=r"tuned threshold, .* without --convert"):
        made(path, allow_code=True)


def test_a_classifier_without_probabilities_gives_its_label_alone(tmp_path: Path) -> None:
    svm = library("sklearn.svm", "sklearn")
    trained = tabular_models.sklearn(tmp_path, "multiclass", svm.LinearSVC())
    target, _ = made(trained.path)

    seen = inspect_model(target)
    got = load_model(target).run({"input": ROWS.astype(np.float64)})

    assert [spec.name for spec in seen.signature.outputs] == ["label"]
    want = load_model(trained.path).run({"input": ROWS.astype(np.float64)})
    assert np.array_equal(got["label"], want["label"])


@pytest.mark.parametrize("kind", ["targets", "dart"])
def test_what_onnxmltools_does_not_know_is_refused_with_a_way_out(
    tmp_path: Path, kind: str
) -> None:
    xgb = library("xgboost", "xgboost")
    targets = ROWS[:, :2] if kind == "targets" else ROWS[:, 0]
    booster = "gbtree" if kind == "targets" else "dart"
    model = xgb.XGBRegressor(n_estimators=4, booster=booster, n_jobs=1).fit(ROWS, targets)
    path = tmp_path / "model.json"
    model.save_model(path)

    with pytest.raises(
        UnsupportedModelError, match=r"gbtree with one target; .* without --convert"
    ):
        made(path)


def test_beyond_the_tolerance_nothing_is_left(tmp_path: Path) -> None:
    path = tabular_models.xgboost(tmp_path, "multiclass").path

    with pytest.raises(UnsupportedModelError, match=r"'probabilities' differs by up to .*1e-12"):
        made(path, tolerance=1e-12)
    assert not path.with_suffix(".onnx").exists()


def test_given_rows_are_compared_too(tmp_path: Path) -> None:
    path = tabular_models.lightgbm(tmp_path, "binary").path
    given = {"input": ROWS.astype(np.float64)}

    _, conversion = made(path, data_rows=given)

    assert conversion.differences.inputs.endswith(f"{len(ROWS)} given rows")
    assert conversion.computes is Datatype.FP64


def test_rows_that_the_model_does_not_take_are_refused(tmp_path: Path) -> None:
    path = tabular_models.sklearn(tmp_path, "binary").path
    given = {"input": np.full((3, FEATURES), np.nan)}

    with pytest.raises(InvalidArgumentError, match="does not take the given rows"):
        made(path, data_rows=given)


def test_a_version_keeps_where_it_comes_from(tmp_path: Path) -> None:
    _, conversion = made(tabular_models.xgboost(tmp_path, "binary").path)

    kept = conversion.metadata(digest="sha256:00", runtime="xgboost", filename="binary.json")  # type: ignore[arg-type]  # as good as a digest

    assert kept["converted_from"] == "sha256:00"
    assert kept["converter"].startswith("onnxmltools ")
    assert kept["converter_library"].startswith("xgboost ")
    assert kept["tested_on_data"] == "no"
    assert "largest_relative_difference" not in kept
    assert float(kept["tolerance"]) == 1e-4


def test_figures_of_a_version_are_those_of_the_rows_that_were_given(tmp_path: Path) -> None:
    path = tabular_models.xgboost(tmp_path, "binary").path
    _, conversion = made(path, data_rows={"input": ROWS})

    kept = conversion.metadata(digest="sha256:00", runtime="xgboost", filename="binary.json")  # type: ignore[arg-type]  # as good as a digest

    assert kept["tested_on_data"] == f"{len(ROWS)} given rows"
    assert float(kept["largest_relative_difference"]) < float(kept["tolerance"]) == 1e-4
    assert kept["changed_class_ratio"] == "0"


def test_what_cannot_be_converted_is_said_to_be(tmp_path: Path) -> None:
    onnx, python = tmp_path / "a.onnx", tmp_path / "a.py"
    onnx.write_bytes(models.matmul())
    python.write_text(models.python_double())

    with pytest.raises(UnsupportedModelError, match=r"a\.onnx is ONNX already"):
        source_runtime(onnx)
    with pytest.raises(
        UnsupportedModelError,
        match="'python', which has no converter; models of catboost, huggingface",
    ):
        source_runtime(python)
    assert convertible_runtimes() == (
        "catboost",
        "huggingface",
        "lightgbm",
        "savedmodel",
        "sklearn",
        "tflite",
        "torch_export",
        "torchscript",
        "xgboost",
    )


def test_what_nothing_loads_is_told_with_what_can_be_converted(tmp_path: Path) -> None:
    keras = tmp_path / "a.keras"
    keras.write_bytes(b"\x89HDF\r\n\x1a\n")

    with pytest.raises(
        UnsupportedModelError, match=r"model\.export.*savedmodel.* can be converted"
    ):
        source_runtime(keras)
    with pytest.raises(UnsupportedModelError, match=r"no such file or directory$"):
        source_runtime(tmp_path / "gone")


def test_a_converter_that_is_absent_says_what_to_install() -> None:
    with pytest.raises(FailedPreconditionError, match=r"pip install 'headrace\[convert\]'"):
        import_converter("no_such_converter")


@pytest.mark.parametrize(
    ("runtime", "package", "extra"),
    [
        ("torchscript", "onnxscript", "convert-torch"),
        ("torch_export", "onnxscript", "convert-torch"),
        ("savedmodel", "tensorflow", "convert-tensorflow"),
        ("tflite", "tensorflow", "convert-tensorflow,tflite"),
    ],
)
def test_a_framework_that_is_absent_is_named_with_its_extra(
    runtime: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    path = savedmodels.write(tmp_path / "saved")

    with pytest.raises(FailedPreconditionError) as caught:
        open_source(path, runtime, allow_code=True)

    assert f"needs the package '{package}'" in str(caught.value)
    assert str(caught.value).endswith(f"pip install 'headrace[{extra}]'")


def lengths(factor: str) -> Any:  # noqa: ANN401  # onnx ships no types
    """x times the number of its columns; or times what that was once."""
    onnx = import_converter("onnx")
    floats = onnx.TensorProto.FLOAT
    make = onnx.helper.make_node
    nodes = [
        make("Shape", ["x"], ["size"], start=1),
        make("Cast", ["size"], ["wide"], to=floats),
        make("Mul", ["x", factor], ["y"]),
    ]
    once = [
        onnx.helper.make_tensor("number", floats, [1], [2.0]),
        onnx.helper.make_tensor("row", floats, [2], [2.0, 2.0]),
    ]
    values = [onnx.helper.make_tensor_value_info(name, floats, ["n", "m"]) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], once)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


@pytest.mark.parametrize(
    ("factor", "reason"),
    [
        ("number", "rows of size 1, output 'y' differs"),
        ("row", "of size 8: the model failed"),
    ],
)
def test_a_size_that_is_baked_in_is_found(factor: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "lengths.onnx"
    path.write_bytes(lengths("wide").SerializeToString())

    def source(factor: str) -> ConversionSource:
        way = Way(computes=Datatype.FP32, convert=lambda: lengths(factor))
        return ConversionSource(
            model=load_model(path), ways=(way,), converter="mine", library="mine"
        )

    good = convert(source("wide"), tmp_path / "a.onnx", max_changed_ratio=0, no_missing=True)
    with pytest.raises(UnsupportedModelError, match=reason):
        convert(source(factor), tmp_path / "b.onnx", max_changed_ratio=0)

    found = good.differences.inputs
    assert found == " and ".join(f"1024 generated rows of size {size}" for size in (2, 1, 8))
    assert not (tmp_path / "b.onnx").exists()
