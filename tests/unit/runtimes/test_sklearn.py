import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core import CodeNotAllowedError, UnsupportedModelError
from headrace.runtimes import inspect_model, load_model
from tests.tabular_models import CLASSES, ROWS, asked, library, sklearn


def _archive(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    path.write_bytes(buffer.getvalue())
    return path


def test_types_that_are_not_trusted_are_named_and_need_an_allow(tmp_path: Path) -> None:
    steps = library("sklearn.pipeline", "sklearn")
    splines = library("sklearn.preprocessing", "sklearn").SplineTransformer()
    linear = library("sklearn.linear_model", "sklearn").Ridge()
    trained = sklearn(tmp_path, "regression", steps.make_pipeline(splines, linear))
    rows = asked(missing=False).astype(np.float64)

    with pytest.raises(CodeNotAllowedError, match=r"skops does not trust.*BSpline.*allow_code"):
        inspect_model(trained.path)
    assert inspect_model(trained.path, allow_code=True).runs_code
    (got,) = load_model(trained.path).run({"input": rows}).values()
    (want,) = trained.expected(rows)
    assert np.array_equal(got, want)


def test_a_function_of_another_module_is_named_and_refused(tmp_path: Path) -> None:
    library("skops.io", "sklearn")
    node = {
        "__class__": "system",
        "__module__": "os",
        "__loader__": "FunctionNode",
        "__id__": 1,
        "content": {"module_path": "os", "function": "system"},
        "protocol": 2,
        "_skops_version": "0.16.0",
    }
    path = _archive(tmp_path / "evil.skops", {"schema.json": json.dumps(node).encode()})

    with pytest.raises(CodeNotAllowedError, match=r"evil\.skops.*does not trust, os\.system"):
        inspect_model(path)


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    path = _archive(tmp_path / "other.skops", {"readme.txt": b"hello"})

    with pytest.raises(UnsupportedModelError, match=r"without schema\.json"):
        load_model(path)


@pytest.mark.slow
def test_an_archive_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    files = {"schema.json": b"{}", "zeros.npy": bytes(65 << 20)}
    path = _archive(tmp_path / "bomb.skops", files, zipfile.ZIP_DEFLATED)

    with pytest.raises(UnsupportedModelError, match="unpacks to"):
        load_model(path)


@pytest.mark.parametrize("name", ["cluster.DBSCAN", "neighbors.KernelDensity"])
def test_what_does_not_predict_or_transform_is_refused(tmp_path: Path, name: str) -> None:
    package, _, kind = name.partition(".")
    clusters = getattr(library(f"sklearn.{package}", "sklearn"), kind)().fit(ROWS)
    library("skops.io", "sklearn").dump(clusters, tmp_path / "clusters.skops")

    with pytest.raises(UnsupportedModelError, match=f"{kind}, which cannot predict or transform"):
        load_model(tmp_path / "clusters.skops")


def test_a_transformer_gives_what_it_transforms(tmp_path: Path) -> None:
    scaler = library("sklearn.preprocessing", "sklearn").StandardScaler().fit(ROWS)
    library("skops.io", "sklearn").dump(scaler, tmp_path / "scaler.skops")
    rows = asked().astype(np.float64)

    answers = load_model(tmp_path / "scaler.skops").run({"input": rows})

    assert np.array_equal(answers["transformed"], scaler.transform(rows), equal_nan=True)


def test_what_does_not_say_how_many_features_it_takes_is_refused(tmp_path: Path) -> None:
    ridge = library("sklearn.linear_model", "sklearn").Ridge()
    library("skops.io", "sklearn").dump(ridge, tmp_path / "unfitted.skops")

    with pytest.raises(UnsupportedModelError, match="how many features"):
        load_model(tmp_path / "unfitted.skops")


def test_several_labels_are_refused(tmp_path: Path) -> None:
    linear = library("sklearn.linear_model", "sklearn")
    several = library("sklearn.multioutput", "sklearn").MultiOutputClassifier(
        linear.LogisticRegression()
    )
    several.fit(ROWS, np.stack((CLASSES, CLASSES > 0), axis=1))
    library("skops.io", "sklearn").dump(several, tmp_path / "several.skops")

    with pytest.raises(UnsupportedModelError, match="several labels"):
        load_model(tmp_path / "several.skops")


def test_a_classifier_that_is_not_sure_of_anything_gives_labels_only(tmp_path: Path) -> None:
    linear = library("sklearn.linear_model", "sklearn")
    trained = linear.RidgeClassifier().fit(ROWS, np.array(["a", "b", "c"])[CLASSES])
    library("skops.io", "sklearn").dump(trained, tmp_path / "words.skops")
    rows = asked(missing=False).astype(np.float64)
    answers = load_model(tmp_path / "words.skops").run({"input": rows})

    assert list(answers) == ["label"]
    assert answers["label"].tolist() == [str(word).encode() for word in trained.predict(rows)]


def test_a_pipeline_is_one_model(tmp_path: Path) -> None:
    steps = library("sklearn.pipeline", "sklearn")
    scale = library("sklearn.preprocessing", "sklearn").StandardScaler()
    linear = library("sklearn.linear_model", "sklearn").LogisticRegression()
    trained = sklearn(tmp_path, "multiclass", steps.make_pipeline(scale, linear))
    rows = asked(missing=False).astype(np.float64)
    answers = load_model(trained.path).run({"input": rows})

    for got, want in zip(answers.values(), trained.expected(rows), strict=True):
        assert np.array_equal(got, want)


def test_an_estimator_starts_no_processes_of_its_own(tmp_path: Path) -> None:
    linear = library("sklearn.linear_model", "sklearn")
    scale = library("sklearn.preprocessing", "sklearn").StandardScaler()
    descent = linear.SGDClassifier(loss="log_loss", n_jobs=2)
    pipeline = library("sklearn.pipeline", "sklearn").make_pipeline(scale, descent)
    trained = sklearn(tmp_path, "multiclass", pipeline)
    model: Any = load_model(trained.path)

    assert model._answers.outputs["label"].__self__.estimator[-1].n_jobs == 1


def test_an_imputer_keeps_a_dtype_that_is_read_without_code(tmp_path: Path) -> None:
    linear = library("sklearn.linear_model", "sklearn")
    impute = library("sklearn.impute", "sklearn")
    pipeline = library("sklearn.pipeline", "sklearn")
    estimator = pipeline.make_pipeline(impute.SimpleImputer(), linear.LogisticRegression())
    trained = sklearn(tmp_path, "binary", estimator)
    rows = asked().astype(np.float64)

    answer = load_model(trained.path).run({"input": rows})

    for got, want in zip(answer.values(), trained.expected(rows), strict=True):
        assert np.array_equal(got, want)


@pytest.mark.parametrize("loader", ["ObjectNode", "ReduceNode", "FunctionNode", "MethodNode"])
def test_a_dtype_that_is_to_be_made_otherwise_is_refused(tmp_path: Path, loader: str) -> None:
    library("skops.io", "sklearn")
    node = {
        "__class__": "dtype",
        "__module__": "numpy",
        "__loader__": loader,
        "__id__": 1,
        "content": {"module_path": "numpy", "function": "dtype"},
        "protocol": 2,
        "_skops_version": "0.16.0",
    }
    path = _archive(tmp_path / "odd.skops", {"schema.json": json.dumps(node).encode()})

    with pytest.raises(UnsupportedModelError, match=r"odd\.skops"):
        load_model(path)


@pytest.mark.parametrize(
    "name", ["sklearn.linear_model.LogisticRegression", "lightgbm.LGBMClassifier"]
)
def test_estimator_of_named_columns_takes_a_matrix_without_a_warning(
    tmp_path: Path, name: str
) -> None:
    module, _, kind = name.rpartition(".")
    pandas = library("pandas", "sklearn")
    estimator = getattr(library(module, "sklearn"), kind)()
    estimator.fit(pandas.DataFrame(ROWS, columns=list("abcde")), CLASSES)
    library("joblib", "sklearn").dump(estimator, tmp_path / "m.joblib")

    model = load_model(tmp_path / "m.joblib")

    assert model.signature.columns == {"input": tuple("abcde")}
    assert model.run({"input": ROWS.astype(np.float64)})["label"].shape == (len(ROWS),)
