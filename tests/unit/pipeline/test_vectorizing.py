"""Vectorizers of scikit-learn answer in a pipeline as they do without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core import (
    Array,
    FailedPreconditionError,
    InvalidArgumentError,
    UnsupportedModelError,
)
from headrace.pipeline import Pipeline, load_pipeline
from headrace.pipeline import vectorize as vectorizing
from tests.unit.pipeline.elements import elements, one_by_one

skops = pytest.importorskip("skops.io", reason="needs skops: pip install 'headrace[sklearn]'")
text = pytest.importorskip("sklearn.feature_extraction.text")

Write = Callable[..., Path]
TEXTS = [
    "A river runs to the sea",
    "and not one drop comes back",
    "but as rain or snow",
    "",
    "ÅÄÖ ß",
]
ROWS = np.random.default_rng(3).normal(size=(30, 4))


@pytest.fixture
def load(write: Write) -> Callable[[Any], Pipeline]:
    def made(estimator: object) -> Pipeline:
        yaml = "steps: [{kind: vectorizer, path: v.skops}]"
        return load_pipeline(write(yaml, v__skops=skops.dumps(estimator)))

    return made


Load = Callable[[Any], Pipeline]


def _vectorizers() -> dict[str, Any]:
    from sklearn.decomposition import TruncatedSVD  # noqa: PLC0415
    from sklearn.pipeline import FeatureUnion, make_pipeline  # noqa: PLC0415

    chars = text.TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3))
    return {
        "count": text.CountVectorizer(ngram_range=(1, 2)),
        "tfidf": text.TfidfVectorizer(sublinear_tf=True),
        "hashing": text.HashingVectorizer(n_features=512),
        "union": FeatureUnion([("words", text.TfidfVectorizer()), ("chars", chars)]),
        "svd": make_pipeline(text.TfidfVectorizer(), TruncatedSVD(3, random_state=0)),
    }


@pytest.mark.parametrize("name", ["count", "tfidf", "hashing", "union", "svd"])
def test_texts_become_what_the_library_makes_of_them(load: Load, name: str) -> None:
    vectorizer = _vectorizers()[name].fit(TEXTS)
    asked = [*TEXTS, "rain and sea, river of snow", "nothing known"]

    got = load(vectorizer).run({"text": elements(*asked)})["features"]

    want = vectorizer.transform(asked)
    want = want.toarray() if hasattr(want, "toarray") else want
    assert got.dtype == np.float32
    assert np.array_equal(got, want.astype(np.float32))


@pytest.mark.parametrize("name", ["count", "tfidf", "hashing", "union"])
def test_texts_answer_together_as_alone(load: Load, name: str) -> None:
    pipeline = load(_vectorizers()[name].fit(TEXTS))
    batch = {"text": elements(*TEXTS, "sea " * 1000)}

    together, alone = pipeline.run(batch), one_by_one(pipeline, batch)

    assert np.array_equal(together["features"], alone["features"])


def test_a_column_transformer_takes_a_matrix(load: Load) -> None:
    from sklearn.compose import ColumnTransformer  # noqa: PLC0415
    from sklearn.preprocessing import OneHotEncoder, StandardScaler  # noqa: PLC0415

    rows = ROWS.copy()
    rows[:, 3] = np.arange(30) % 3
    kinds = [("n", StandardScaler(), [0, 1, 2]), ("c", OneHotEncoder(), [3])]
    transformer = ColumnTransformer(kinds).fit(rows)
    pipeline = load(transformer.set_params(n_jobs=2))
    transformer.set_params(n_jobs=1)

    got = pipeline.run({"input": rows})["features"]

    (spec,) = pipeline.signature.inputs
    assert (spec.datatype, spec.shape) == ("FP64", (-1, 4))
    assert np.array_equal(got, transformer.transform(rows).astype(np.float32))
    assert np.array_equal(got, one_by_one(pipeline, {"input": rows})["features"])
    rows[5, 3] = 7
    with pytest.raises(
        InvalidArgumentError, match="does not accept these values: Found unknown categor"
    ):
        pipeline.run({"input": rows})
    rows[5] = [0, np.inf, 0, 0]
    with pytest.raises(InvalidArgumentError, match="these values as in row 5 of 'input'"):
        pipeline.run({"input": rows})


def test_it_feeds_a_model_and_shows_what_it_takes(load: Load) -> None:
    pipeline = load(text.TfidfVectorizer().fit(TEXTS))

    assert pipeline.run(pipeline.example_inputs(rows=2, variable=6))["features"].shape[0] == 2
    assert pipeline.run({"text": elements()})["features"].shape == (0, 17)
    assert not pipeline.concurrent


def test_a_text_that_is_none_is_told_with_its_row(load: Load) -> None:
    pipeline = load(text.TfidfVectorizer().fit(TEXTS))

    with pytest.raises(InvalidArgumentError, match="text 2 is not UTF-8"):
        pipeline.run({"text": elements("a", "b", b"\xff")})
    with pytest.raises(InvalidArgumentError, match=r"text 0 has 1048577 bytes, more than 1048576"):
        pipeline.run({"text": elements(b"a" * ((1 << 20) + 1))})


def test_answers_beyond_all_bounds_are_refused(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load(text.HashingVectorizer(n_features=1024).fit(TEXTS))
    monkeypatch.setattr(vectorizing, "MAX_VALUES", 2048)

    assert pipeline.run({"text": elements("a", "b")})["features"].shape == (2, 1024)
    with pytest.raises(InvalidArgumentError, match="3 rows of 1024 features are more than 2048"):
        pipeline.run({"text": elements("a", "b", "c")})


def test_more_columns_than_can_be_served_are_refused(load: Load) -> None:
    with pytest.raises(UnsupportedModelError, match=r"returns 2097152 columns; 1 to 1048576"):
        load(text.HashingVectorizer(n_features=1 << 21).fit(TEXTS))


def _reads_files(kind: str) -> Any:  # noqa: ANN401  # any estimator
    from sklearn.pipeline import FeatureUnion  # noqa: PLC0415

    vectorizer = text.TfidfVectorizer(input=kind, vocabulary=["a", "b"])
    vectorizer.fit([__file__] if kind == "filename" else [Path(__file__).open()])  # noqa: SIM115
    return FeatureUnion([("one", text.HashingVectorizer(n_features=8)), ("two", vectorizer)])


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("kind", ["filename", "file"])
def test_a_vectorizer_that_opens_what_a_caller_names_is_refused(load: Load, kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"reads {kind}s, which callers would choose"):
        load(_reads_files(kind))


def _unfitted() -> Any:  # noqa: ANN401  # any estimator
    return text.TfidfVectorizer()


def _classifier() -> Any:  # noqa: ANN401  # any estimator
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    return LogisticRegression().fit(ROWS, np.arange(30) % 2)


def _words() -> Any:  # noqa: ANN401  # any estimator
    from sklearn.preprocessing import OneHotEncoder  # noqa: PLC0415

    return OneHotEncoder().fit(np.array([["a"], ["b"]], np.object_))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_unfitted, "does not transform texts: .*not fitted"),
        (_classifier, "holds a LogisticRegression, which is not a transformer"),
        (_words, "does not transform a matrix of 1 numbers"),
    ],
)
def test_what_does_not_transform_is_refused(load: Load, make: Callable[[], Any], said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"step 'vectorizer': .*v.skops: {said}"):
        load(make())


def test_what_is_no_skops_file_is_refused(write: Write) -> None:
    with pytest.raises(UnsupportedModelError, match=r"v\.skops: is truncated or corrupt"):
        load_pipeline(write("steps: [{kind: vectorizer, path: v.skops}]", v__skops=b"PK\x03\x04"))


def test_types_that_are_not_trusted_are_refused(load: Load) -> None:
    from sklearn.preprocessing import FunctionTransformer  # noqa: PLC0415

    with pytest.raises(UnsupportedModelError, match="does not trust"):
        load(FunctionTransformer(_odd).fit(ROWS))


def _odd(rows: Array) -> Array:
    return rows


def test_without_skops_the_extra_is_named(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = text.TfidfVectorizer().fit(TEXTS)
    load(raw)
    monkeypatch.setitem(__import__("sys").modules, "skops.io", None)
    with pytest.raises(FailedPreconditionError, match=r"pip install 'headrace\[sklearn\]'"):
        load(raw)


def test_a_classifier_of_the_library_takes_its_doubles(write: Write) -> None:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    vectorizer = text.TfidfVectorizer()
    classifier = LogisticRegression().fit(vectorizer.fit_transform(TEXTS), [0, 1, 1, 0, 2])
    yaml = """\
steps:
  - {kind: vectorizer, path: v.skops, datatype: FP64}
  - {kind: model, path: c.skops, inputs: {input: features}}
"""
    files = {"v__skops": skops.dumps(vectorizer), "c__skops": skops.dumps(classifier)}

    got = load_pipeline(write(yaml, **files)).run({"text": elements(*TEXTS)})

    want = classifier.predict_proba(vectorizer.transform(TEXTS).toarray())
    assert np.array_equal(got["probabilities"], want)


def _table(pandas: Any) -> Any:  # noqa: ANN401  # a module, and a data frame
    return pandas.DataFrame(
        {
            "town": ["Ulm", "Bonn", "Ulm", "Köln"],
            "age": [1.0, np.nan, 3.0, 4.5],
            "rooms": [1, 2, 3, 2],
            "note": ["by the river", "no river", "a sea view", "by the sea"],
        }
    )


def _mixed(*, unknown: str = "ignore") -> Any:  # noqa: ANN401  # any estimator
    from sklearn.compose import ColumnTransformer  # noqa: PLC0415
    from sklearn.impute import SimpleImputer  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import OneHotEncoder, StandardScaler  # noqa: PLC0415

    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    return ColumnTransformer(
        [
            ("town", OneHotEncoder(handle_unknown=unknown), ["town"]),
            ("numbers", numbers, ["age", "rooms"]),
            ("note", text.TfidfVectorizer(), "note"),
        ]
    )


COLUMNS = "columns: {town: BYTES, age: FP64, rooms: INT64, note: BYTES}"
TABLE = f"steps: [{{kind: vectorizer, path: v.skops, {COLUMNS}}}]"


@pytest.mark.parametrize("unknown", ["ignore", "error"])
def test_a_transformer_of_a_data_frame_takes_its_columns(write: Write, unknown: str) -> None:
    table = _table(pytest.importorskip("pandas"))
    transformer = _mixed(unknown=unknown).fit(table)
    pipeline = load_pipeline(write(TABLE, v__skops=skops.dumps(transformer)))
    inputs = {
        "town": elements(*table["town"]),
        "age": table["age"].to_numpy(),
        "rooms": table["rooms"].to_numpy(),
        "note": elements(*table["note"]),
    }

    got = pipeline.run(inputs)["features"]

    want = transformer.transform(table)
    want = want.toarray() if hasattr(want, "toarray") else want
    assert np.array_equal(got, want.astype(np.float32))
    assert np.array_equal(got, one_by_one(pipeline, inputs)["features"])
    assert pipeline.signature.outputs[0].shape == (-1, got.shape[1])
    strange = inputs | {"town": elements("Ulm", "Rom", "Ulm", "Ulm")}
    if unknown == "ignore":
        assert pipeline.run(strange)["features"][1, :3].tolist() == [0, 0, 0]
    else:
        with pytest.raises(InvalidArgumentError, match=r"does not accept these values.*'Rom'"):
            pipeline.run(strange)
    with pytest.raises(InvalidArgumentError, match="'note': text 3 is not UTF-8"):
        pipeline.run(inputs | {"note": elements("a", "b", "c", b"\xff")})


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("", "was fitted on a data frame: declare its 'columns'"),
        (", columns: {town: BYTES}", "was fitted on the columns town, age, rooms, note; 'columns'"),
        (
            ", columns: {town: FP64, age: FP64, rooms: FP64, note: FP64}",
            "are the datatypes in 'columns' those",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_columns_that_do_not_fit_are_refused(write: Write, columns: str, said: str) -> None:
    transformer = _mixed().fit(_table(pytest.importorskip("pandas")))
    yaml = f"steps: [{{kind: vectorizer, path: v.skops{columns}}}]"
    with pytest.raises(UnsupportedModelError, match=said):
        load_pipeline(write(yaml, v__skops=skops.dumps(transformer)))


def test_columns_of_what_was_fitted_without_names_are_refused(write: Write) -> None:
    yaml = "steps: [{kind: vectorizer, path: v.skops, columns: {a: FP64}}]"
    raw = skops.dumps(text.TfidfVectorizer().fit(TEXTS))
    with pytest.raises(UnsupportedModelError, match="was fitted on data without column names"):
        load_pipeline(write(yaml, v__skops=raw))


def test_without_pandas_it_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = _mixed().fit(_table(pytest.importorskip("pandas")))
    directory = write(TABLE, v__skops=skops.dumps(transformer))
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(FailedPreconditionError, match="'columns' needs the package pandas"):
        load_pipeline(directory)
