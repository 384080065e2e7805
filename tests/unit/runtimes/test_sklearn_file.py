"""Skops files whose trees were tampered with are refused before scikit-learn follows them."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core import Array, UnsupportedModelError
from headrace.runtimes import load_model
from tests import sklearn_models
from tests.tabular_models import library

skops = library("skops.io", "sklearn")
Change = Callable[[Array], None]


def written(folder: Path, name: str) -> Path:
    estimator, data = sklearn_models.estimators()[name]
    path = folder / "model.skops"
    skops.dump(estimator.fit(*sklearn_models.data(data)), path)
    return path


def tampered(path: Path, change: Change, *, field: str) -> Path:
    """The archive with every structured array that has `field` changed."""
    made = path.with_name("tampered.skops")
    changed = 0
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as new:
        for entry in old.namelist():
            data = old.read(entry)
            if entry.endswith(".npy"):
                array = np.load(io.BytesIO(data), allow_pickle=False)
                if array.dtype.names and field in array.dtype.names:
                    change(array)
                    changed += 1
                    stream = io.BytesIO()
                    np.save(stream, array)
                    data = stream.getvalue()
            new.writestr(entry, data)
    assert changed
    return made


def put(field: str, value: int) -> Change:
    def change(array: Array) -> None:
        array[field][0] = value

    return change


@pytest.mark.parametrize("name", ["RandomForestClassifier", "GradientBoostingClassifier"])
@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("feature", 10_000, "an unknown feature"),
        ("feature", -7, "an unknown feature"),
        ("left_child", 1_000_000, "the nodes of a tree do not form a tree"),
        ("right_child", 0, "the nodes of a tree do not form a tree"),
        ("left_child", -5, "the nodes of a tree do not form a tree"),
    ],
)
def test_trees_that_would_crash_scikit_learn_are_refused(
    name: str, field: str, value: int, reason: str, tmp_path: Path
) -> None:
    path = tampered(written(tmp_path, name), put(field, value), field="left_child")

    with pytest.raises(UnsupportedModelError, match=f"truncated or corrupt: .*{reason}"):
        load_model(path)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("feature_idx", 10_000, "an unknown feature"),
        ("left", 1_000_000, "the nodes of a tree do not form a tree"),
        ("right", 0, "the nodes of a tree do not form a tree"),
        ("is_categorical", 1, "uses categories"),
    ],
)
def test_histograms_that_would_crash_scikit_learn_are_refused(
    field: str, value: int, reason: str, tmp_path: Path
) -> None:
    file = written(tmp_path, "HistGradientBoostingClassifier")

    with pytest.raises(UnsupportedModelError, match=f"truncated or corrupt: .*{reason}"):
        load_model(tampered(file, put(field, value), field="feature_idx"))


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The archive with its schema changed."""
    made = path.with_name("rewritten.skops")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as new:
        for entry in old.namelist():
            data = old.read(entry)
            if entry == "schema.json":
                schema = json.loads(data)
                change(schema)
                data = json.dumps(schema).encode()
            new.writestr(entry, data)
    return made


def test_an_estimator_that_claims_other_features_than_its_tree_is_refused(tmp_path: Path) -> None:
    def change(schema: dict[str, Any]) -> None:
        number = schema["content"]["content"]["n_features_in_"]
        number |= {"content": "99", "__id__": 1}  # else it is the number that another place holds

    path = rewritten(written(tmp_path, "DecisionTreeClassifier"), change)

    with pytest.raises(UnsupportedModelError, match="another number of features than its"):
        load_model(path)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_stage_with_more_trees_than_answers_is_refused(depth: int, tmp_path: Path) -> None:
    """Their numbers would be written behind the answers, also where another model begins so."""
    make, data = sklearn_models.estimators()["GradientBoostingClassifier"]
    rows, target = sklearn_models.data(data)
    dummy = library("sklearn.dummy", "sklearn").DummyClassifier(strategy="prior")
    clone = library("sklearn.base", "sklearn").clone
    model = dummy.fit(rows, target > 0)
    for _ in range(depth + 1):
        beginning, model = model, clone(make).fit(rows, target)
        model.init_ = beginning
    path = tmp_path / "model.skops"
    skops.dump(model, path)

    with pytest.raises(UnsupportedModelError, match="truncated or corrupt"):
        load_model(path)


def test_boosting_that_begins_with_itself_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "GradientBoostingClassifier")

    def change(schema: dict[str, Any]) -> None:
        schema["content"]["content"]["init_"] = {
            "__class__": "GradientBoostingClassifier",
            "__module__": "sklearn.ensemble._gb",
            "__loader__": "CachedNode",
            "__id__": schema["__id__"],
        }

    with pytest.raises(UnsupportedModelError):
        load_model(rewritten(path, change))


def test_an_index_of_neighbours_is_made_of_its_rows(tmp_path: Path) -> None:
    """Whatever the file says of it: its numbers are not read."""
    estimator, data = sklearn_models.estimators()["KNeighborsClassifier"]
    rows, target = sklearn_models.data(data)
    other = estimator.fit(rows[::-1], target[::-1])._tree
    estimator.fit(rows, target)
    want = estimator.predict_proba(rows)
    estimator._tree = other
    path = tmp_path / "model.skops"
    skops.dump(estimator, path)

    got = load_model(path).run({"input": rows})["probabilities"]

    assert np.array_equal(got, want)
