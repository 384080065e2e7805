import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core import UnsupportedModelError
from headrace.runtimes import load_model
from headrace.runtimes.file_bytes import BrokenFileError
from headrace.runtimes.tables.xgboost import decode_ubjson, looks_like_xgboost, read_xgboost
from tests.tabular_models import CLASSES, ROWS, SURE, asked, library, xgboost

Change = Callable[[dict[str, Any]], object]


def _trees(document: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document["learner"]["gradient_booster"]["model"]["trees"]
    return found


def _changed(folder: Path, change: Change) -> Path:
    path = xgboost(folder, "multiclass").path
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def _put(tree: int, key: str, place: int, value: float) -> Change:
    def change(document: dict[str, Any]) -> None:
        _trees(document)[tree][key][place] = value

    return change


def _model(**values: object) -> Change:
    return lambda document: document["learner"]["gradient_booster"]["model"].update(values)


def _learner(**values: object) -> Change:
    return lambda document: document["learner"].update(values)


def _params(**values: str) -> Change:
    return lambda document: document["learner"]["learner_model_param"].update(values)


CHANGES: dict[str, tuple[Change, str]] = {
    "child beyond the end": (
        _put(0, "left_children", 0, 99),
        "the nodes of tree 0 do not form a tree",
    ),
    "circle": (_put(0, "left_children", 0, 0), "the nodes of tree 0 do not form a tree"),
    "negative child": (_put(0, "right_children", 0, -5), "the nodes of tree 0 do not form a tree"),
    "two parents": (_put(0, "right_children", 0, 1), "the nodes of tree 0 do not form a tree"),
    "wrong parent": (_put(1, "parents", 1, 77), "the nodes of tree 1 do not form a tree"),
    "feature beyond the end": (_put(1, "split_indices", 0, 5), "an unknown feature"),
    "categorical split": (
        _put(1, "split_type", 0, 1),
        "some splits of tree 1 by category",
    ),
    "short list": (lambda d: _trees(d)[0]["split_conditions"].pop(), "of different lengths"),
    "no list": (lambda d: _trees(d)[0].update(parents="none"), "a value is not a list of numbers"),
    "features of a tree": (
        lambda d: _trees(d)[0]["tree_param"].update(num_feature="9"),
        "another number of features",
    ),
    "leaves of several outputs": (
        lambda d: _trees(d)[0]["tree_param"].update(size_leaf_vector="3"),
        "multi_output_tree",
    ),
    "another tree's place": (
        lambda d: _trees(d)[3].update(id=0),
        "tree 3 has the number of another",
    ),
    "lost tree": (lambda d: _trees(d).pop(), "the number of trees differs"),
    "no objective": (lambda d: d["learner"].pop("objective"), "it lacks 'objective'"),
    "categories": (
        _model(cats={"enc": [{}], "feature_segments": [0, 0], "sorted_idx": []}),
        "belong to other features",
    ),
    "names": (_learner(feature_names=["a"]), "the number of feature_names differs"),
    "no features": (_params(num_feature="0"), "no features"),
    "negative classes": (_params(num_class="-3"), "-3 classes"),
    "other classes": (_params(num_class="2"), "another number"),
    "several labels": (_params(num_target="2"), "several labels"),
    "linear": (
        lambda d: d["learner"]["gradient_booster"].update(name="gblinear"),
        "another booster than trees",
    ),
    "class of a tree": (
        lambda d: d["learner"]["gradient_booster"]["model"]["tree_info"].__setitem__(0, 3),
        "a tree belongs to no class",
    ),
    "best iteration": (
        lambda d: d["learner"]["attributes"].update(scikit_learn="{}", best_iteration="-3"),
        "its best iteration is -3",
    ),
    "rounds": (_model(iteration_indptr=[0, 999]), "its rounds do not cover its trees"),
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.values(), ids=CHANGES)
def test_what_would_crash_or_mislead_is_refused(
    change: Change, reason: str, tmp_path: Path
) -> None:
    path = _changed(tmp_path, change)

    with pytest.raises(UnsupportedModelError, match=reason) as refused:
        read_xgboost(path)
    assert path.name in str(refused.value)


def test_a_name_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    path = xgboost(tmp_path, "binary").path
    text = path.read_text().replace('"left_children":', '"left_children":[9],"left_children":', 1)
    path.write_text(text)

    with pytest.raises(UnsupportedModelError, match="appears twice"):
        read_xgboost(path)


def test_json_that_nests_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text('{"learner":{"attributes":' + "[" * 200_000)

    with pytest.raises(UnsupportedModelError, match="nests too deeply"):
        read_xgboost(path)


def test_both_formats_hold_the_same(tmp_path: Path) -> None:
    read = [read_xgboost(xgboost(tmp_path, "binary", suffix=s).path) for s in (".json", ".ubj")]

    assert read[0] == read[1]


def test_ubjson_is_recognised_by_content(tmp_path: Path) -> None:
    path = xgboost(tmp_path, "binary", suffix=".ubj").path
    assert looks_like_xgboost(path)

    path.write_bytes(b"\x00" * 100)
    assert not looks_like_xgboost(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"?",
        b"[$Z#i\x02",
        b"[$l#L\x00\x00\x00\x00\x00\x00\x00\x09\x00",
        b"SL\xff\xff\xff\xff\xff\xff\xff\xff",
        b"Sd\x00\x00\x00\x00",
        b"{i\x01aZi\x01aZ}",
        b"[" * 100,
        b"[ZTF",
    ],
)
def test_what_is_no_ubjson_is_broken(data: bytes) -> None:
    with pytest.raises(BrokenFileError):
        decode_ubjson(data)


def test_ubjson_lists_of_a_given_length_are_read() -> None:
    assert decode_ubjson(b"[#i\x03ZTF") == [None, True, False]
    assert decode_ubjson(b"[i\x05U\xff]") == [5, 255]


@pytest.mark.parametrize("params", [{"gamma": 1.5, "tree_method": "exact"}, {"booster": "dart"}])
def test_pruned_and_dropped_trees_answer_as_the_library_does(
    params: dict[str, Any], tmp_path: Path
) -> None:
    trained = xgboost(tmp_path, "binary", n_estimators=12, max_depth=6, **params)
    rows = asked()
    label, probabilities = load_model(trained.path).run({"input": rows}).values()

    assert np.array_equal(label, trained.expected(rows)[0])
    assert np.array_equal(probabilities, trained.expected(rows)[1])


def test_the_best_iteration_counts_as_it_does_for_the_class_that_was_saved(
    tmp_path: Path,
) -> None:
    xgb = library("xgboost", "xgboost")
    model = xgb.XGBClassifier(n_estimators=60, early_stopping_rounds=3, n_jobs=1, max_depth=6)
    noise = np.random.default_rng(3).integers(0, 2, len(SURE))
    model.fit(ROWS[:120], noise[:120], eval_set=[(ROWS[120:], noise[120:])], verbose=False)
    path = tmp_path / "early.ubj"
    model.save_model(path)
    rows = asked()

    assert read_xgboost(path).rounds == model.best_iteration + 1 < 60
    answer = load_model(path).run({"input": rows}, ["probabilities"])["probabilities"]
    assert np.array_equal(answer, model.predict_proba(rows))


def test_an_objective_that_only_names_the_class_still_gives_probabilities(tmp_path: Path) -> None:
    xgb = library("xgboost", "xgboost")
    params = {"objective": "multi:softmax", "num_class": 3, "nthread": 1, "max_depth": 2}
    booster = xgb.train(params, xgb.DMatrix(ROWS, CLASSES), 4)
    path = tmp_path / "softmax.json"
    booster.save_model(path)
    rows = asked()
    answers = load_model(path).run({"input": rows})

    assert np.array_equal(answers["label"], booster.predict(xgb.DMatrix(rows)).astype(np.int64))
    assert answers["probabilities"].shape == (len(rows), 3)


def test_several_targets_give_a_column_each(tmp_path: Path) -> None:
    xgb = library("xgboost", "xgboost")
    booster = xgb.train({"nthread": 1, "max_depth": 2}, xgb.DMatrix(ROWS, ROWS[:, :2]), 4)
    path = tmp_path / "two.ubj"
    booster.save_model(path)
    rows = asked()
    (prediction,) = load_model(path).run({"input": rows}).values()

    assert np.array_equal(prediction, booster.predict(xgb.DMatrix(rows)))
