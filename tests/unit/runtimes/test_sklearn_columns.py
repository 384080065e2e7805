"""Estimators of data frames take one input for each column, and answer as they do themselves."""

import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

from headrace.core import (
    Array,
    Datatype,
    FailedPreconditionError,
    InvalidArgumentError,
    Tensors,
    UnsupportedModelError,
)
from headrace.optimize.sources import open_source
from headrace.runtimes import LoadOptions, inspect_model, load_model
from tests.tabular_models import library

pandas = library("pandas", "sklearn")
skops = library("skops.io", "sklearn")
compose = library("sklearn.compose", "sklearn")
ensemble = library("sklearn.ensemble", "sklearn")
impute = library("sklearn.impute", "sklearn")
linear = library("sklearn.linear_model", "sklearn")
scale = library("sklearn.preprocessing", "sklearn")
pipe = library("sklearn.pipeline", "sklearn").make_pipeline

ROWS = 200
_RNG = np.random.default_rng(5)


def with_gaps(values: Array, missing: object) -> Array:
    values[_RNG.random(ROWS) < 0.1] = missing
    return values


def people() -> Any:  # noqa: ANN401  # a data frame
    """Numbers and words, some of them missing, a flag, and a column that no model uses."""
    return pandas.DataFrame(
        {
            "age": with_gaps(_RNG.normal(40, 9, ROWS), np.nan),
            "job": pandas.Series(_RNG.choice(["clerk", "cook", "smith"], ROWS), dtype=object),
            "city": pandas.Series(
                with_gaps(_RNG.choice(["Basel", "Bern"], ROWS).astype(object), np.nan),
                dtype=object,
            ),
            "mean income": _RNG.normal(size=ROWS),
            "children": _RNG.integers(0, 4, ROWS),
            "is_member": _RNG.random(ROWS) < 0.5,
            "id": [f"p{i}" for i in range(ROWS)],
        }
    )


PEOPLE = people()
TARGET = np.where(PEOPLE["mean income"] + (PEOPLE["job"] == "cook") > 0.3, "yes", "no")
NAMES = ["age", "job", "city", "mean income", "children", "is_member"]


def table(**options: Any) -> Any:  # noqa: ANN401  # a transformer
    numbers = pipe(impute.SimpleImputer(strategy="median"), scale.StandardScaler())
    words = pipe(
        impute.SimpleImputer(strategy="most_frequent"),
        scale.OneHotEncoder(**{"handle_unknown": "ignore"} | options),
    )
    return compose.ColumnTransformer(
        [
            ("numbers", numbers, ["age", "mean income"]),
            ("words", words, ["job", "city"]),
            ("codes", scale.OneHotEncoder(handle_unknown="ignore"), ["children", "is_member"]),
        ]
    )


def ordinal() -> Any:  # noqa: ANN401  # a transformer
    encoder = scale.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    return compose.ColumnTransformer(
        [("words", encoder, ["job", "city"]), ("id", "drop", ["id"])], remainder="passthrough"
    )


def estimators() -> dict[str, Any]:
    calibration = library("sklearn.calibration", "sklearn")
    search = library("sklearn.model_selection", "sklearn")
    trees = library("sklearn.tree", "sklearn")
    logistic = linear.LogisticRegression
    tree = pipe(table(), trees.DecisionTreeClassifier(max_depth=3))
    chosen = compose.make_column_selector(pattern="job|city")
    return {
        "linear": pipe(table(), logistic()),
        "forest": pipe(table(), ensemble.RandomForestClassifier(8, random_state=0)),
        "boosting": pipe(ordinal(), ensemble.HistGradientBoostingClassifier(max_iter=8)),
        "calibrated": calibration.CalibratedClassifierCV(pipe(table(), logistic()), cv=3),
        "search": search.GridSearchCV(tree, {"decisiontreeclassifier__max_depth": [2, 3]}, cv=3),
        "voting": ensemble.VotingClassifier(
            [("linear", pipe(table(), logistic())), ("tree", tree)], voting="soft"
        ),
        "selector": pipe(
            compose.make_column_transformer((scale.OneHotEncoder(handle_unknown="ignore"), chosen)),
            logistic(),
        ),
    }


def inputs_of(frame: Any, names: list[str]) -> Tensors:  # noqa: ANN401  # a data frame
    """A frame as callers send it: an empty text where a word is missing."""
    inputs: Tensors = {}
    for name in names:
        column = frame[name]
        if column.dtype == object:
            texts = np.empty(len(frame), np.object_)
            words = [
                "" if gap else str(value) for value, gap in zip(column, column.isna(), strict=True)
            ]
            texts[:] = [word.encode() for word in words]
            inputs[name] = texts
        else:
            inputs[name] = column.to_numpy(float)
    return inputs


@pytest.mark.parametrize("suffix", [".skops", ".joblib"])
@pytest.mark.parametrize("kind", estimators())
def test_an_estimator_of_a_data_frame_answers_as_it_does_itself(
    kind: str, suffix: str, tmp_path: Path
) -> None:
    estimator = estimators()[kind].fit(PEOPLE, TARGET)
    path = tmp_path / f"model{suffix}"
    (skops.dump if suffix == ".skops" else joblib.dump)(estimator, path)

    seen = inspect_model(path, allow_code=suffix == ".joblib")

    names = ["job", "city"] if kind == "selector" else NAMES
    kinds = {spec.name: spec.datatype for spec in seen.signature.inputs}
    assert kinds == {
        name: Datatype.BYTES if name in {"job", "city"} else Datatype.FP64 for name in names
    }
    assert seen.first_run is not None
    assert not seen.first_run.error
    assert seen.signature.batched
    got = load_model(path).run(inputs_of(PEOPLE, names))
    assert np.array_equal(got["probabilities"], estimator.predict_proba(PEOPLE))
    assert got["label"].tolist() == [str(one).encode() for one in estimator.predict(PEOPLE)]


def test_categories_of_boosting_by_their_dtype_are_words(tmp_path: Path) -> None:
    frame = PEOPLE[NAMES].astype({"job": "category", "city": "category"})
    estimator = ensemble.HistGradientBoostingClassifier(
        max_iter=8, categorical_features="from_dtype"
    ).fit(frame, TARGET)
    path = tmp_path / "model.joblib"
    joblib.dump(estimator, path)
    model = load_model(path)

    got = model.run(inputs_of(PEOPLE, NAMES))

    assert np.array_equal(got["probabilities"], estimator.predict_proba(frame))
    assert model.signature.row_independence == "proven", model.signature.row_reason


@pytest.mark.parametrize("missing", [None, np.nan])
def test_an_empty_text_is_the_missing_value_of_the_training(
    missing: object, tmp_path: Path
) -> None:
    column = np.array([["a"], ["b"], [missing]] * 10, object)
    target = np.array([0, 1, 2] * 10)
    estimator = pipe(scale.OneHotEncoder(), linear.LogisticRegression()).fit(column, target)
    path = tmp_path / "model.skops"
    skops.dump(estimator, path)

    got = load_model(path).run({"x0": np.array([b"a", b"b", b""], np.object_)})

    assert np.array_equal(got["probabilities"], estimator.predict_proba(column[:3]))


def test_an_empty_text_that_is_a_category_stays_one(tmp_path: Path) -> None:
    column = np.array([["a"], [""]] * 10, object)
    estimator = pipe(scale.OneHotEncoder(), linear.LogisticRegression()).fit(column, [0, 1] * 10)
    path = tmp_path / "model.skops"
    skops.dump(estimator, path)

    got = load_model(path).run({"x0": np.array([b"a", b""], np.object_)})

    assert got["label"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("value", "reason"), [(b"juggler", "unknown categories"), (b"\xff", "not valid UTF-8")]
)
def test_a_value_that_an_encoder_refuses_is_the_callers_fault(
    value: bytes, reason: str, tmp_path: Path
) -> None:
    estimator = pipe(table(handle_unknown="error"), linear.LogisticRegression())
    path = tmp_path / "model.skops"
    skops.dump(estimator.fit(PEOPLE, TARGET), path)
    inputs = inputs_of(PEOPLE[:1], NAMES)
    inputs["job"][0] = value

    with pytest.raises(InvalidArgumentError, match=reason):
        load_model(path).run(inputs)


def test_pandas_that_is_absent_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.skops"
    skops.dump(pipe(table(), linear.LogisticRegression()).fit(PEOPLE, TARGET), path)
    monkeypatch.setitem(sys.modules, "pandas", None)

    with pytest.raises(FailedPreconditionError, match=r"model\.skops .*: pip install pandas"):
        load_model(path)


def test_a_data_frame_is_not_converted_and_served_as_it_is(tmp_path: Path) -> None:
    library("skl2onnx", "convert")
    path = tmp_path / "model.skops"
    skops.dump(pipe(table(), linear.LogisticRegression()).fit(PEOPLE, TARGET), path)

    with pytest.raises(UnsupportedModelError, match=r"columns of a data frame.* without --convert"):
        open_source(path, "sklearn", allow_code=False)


def test_a_value_that_the_encoder_of_one_column_refuses_is_the_callers_fault(
    tmp_path: Path,
) -> None:
    column = np.array([["a"], ["b"]] * 10, object)
    estimator = pipe(scale.OneHotEncoder(), linear.LogisticRegression()).fit(column, [0, 1] * 10)
    path = tmp_path / "model.skops"
    skops.dump(estimator, path)

    with pytest.raises(InvalidArgumentError, match="unknown categories"):
        load_model(path).run({"x0": np.array([b"c"], np.object_)})


def test_a_pipeline_that_begins_with_texts_takes_texts(tmp_path: Path) -> None:
    texts = library("sklearn.feature_extraction.text", "sklearn")
    words = ["good day", "bad day", "good night", "bad night"] * 5
    estimator = pipe(texts.TfidfVectorizer(), linear.LogisticRegression())
    estimator.fit(words, ["plus", "minus"] * 10)
    path = tmp_path / "model.skops"
    skops.dump(estimator, path)

    got = load_model(path).run({"input": np.array([b"good day", b""], np.object_)})

    assert np.array_equal(got["probabilities"], estimator.predict_proba(["good day", ""]))


def test_a_vectorizer_that_reads_files_is_refused(tmp_path: Path) -> None:
    texts = library("sklearn.feature_extraction.text", "sklearn")
    file = tmp_path / "a.txt"
    file.write_text("good day")
    estimator = pipe(texts.CountVectorizer(input="filename"), linear.LogisticRegression())
    path = tmp_path / "model.joblib"
    joblib.dump(estimator.fit([str(file), str(file)], [0, 1]), path)

    with pytest.raises(UnsupportedModelError, match="reads filenames, which callers would choose"):
        load_model(path)


def center(rows: Array) -> Array:
    """Looks at all rows of a batch."""
    return np.asarray(rows - rows.mean(axis=0))


def test_a_function_of_somebodys_is_not_batched_unless_that_is_declared(tmp_path: Path) -> None:
    step = scale.FunctionTransformer(center)
    rows = _RNG.normal(size=(50, 3))
    path = tmp_path / "model.joblib"
    joblib.dump(pipe(step, linear.LogisticRegression()).fit(rows, rows[:, 0] > 0), path)

    model = load_model(path)
    declared = load_model(path, options=LoadOptions(rows_independent=True))

    assert not model.signature.batched
    assert model.signature.row_independence == "unproven"
    assert "calls 'center', which may look at several rows" in model.signature.row_reason
    assert declared.signature.batched
    assert declared.signature.row_independence == "declared"
