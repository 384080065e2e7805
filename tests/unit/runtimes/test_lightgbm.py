from pathlib import Path

import numpy as np
import pytest

from headrace.core import UnsupportedModelError
from headrace.runtimes import load_model
from headrace.runtimes.tables.lightgbm import read_lightgbm
from tests.tabular_models import AMOUNTS, ROWS, asked, library, lightgbm


def _resized(text: str) -> str:
    """`text` with the sizes of its trees put right after a change."""
    head, first, rest = text.partition("Tree=0\n")
    trees, _, _ = (first + rest).partition("end of trees")
    numbers = [len("Tree=" + part) for part in trees.split("Tree=")[1:]]
    lines = [
        "tree_sizes=" + " ".join(map(str, numbers)) if line.startswith("tree_sizes=") else line
        for line in head.split("\n")
    ]
    return "\n".join(lines) + first + rest


def _edit(text: str, key: str, value: str) -> str:
    """`text` with the first number of the first list of this name replaced."""
    before, mark, after = text.partition(f"\n{key}=")
    line, _, rest = after.partition("\n")
    return f"{before}{mark}{' '.join([value, *line.split()[1:]])}\n{rest}"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("left_child", "77", "the nodes of tree 0 do not form a tree"),
        ("left_child", "0", "the nodes of tree 0 do not form a tree"),
        ("right_child", "-99", "the nodes of tree 0 do not form a tree"),
        ("split_feature", "5", "an unknown feature"),
        ("split_feature", "-1", "an unknown feature"),
        ("decision_type", "1", "the categories of tree 0 begin at the wrong position"),
        ("threshold", "much", "a threshold of tree 0 is not a number"),
        ("left_child", "1_0", "a left_child of tree 0 is not a number"),
        ("right_child", "\u0662", "is not a number"),
        ("threshold", "1 2", "threshold"),
        ("leaf_value", "", "a leaf_value of tree 0 is not a number"),
        ("leaf_weight", "1 2", "leaf_weight"),
        ("num_leaves", "100000", "does not have as many leaves"),
        ("num_leaves", "0", "does not have as many leaves"),
        ("num_cat", "1", "the categories of tree 0 begin at the wrong position"),
        ("is_linear", "1", "linear leaves"),
        ("num_class", "100000000", "classes"),
        ("num_tree_per_iteration", "2", "classes"),
        ("feature_names", "a b", "the number of feature_names differs"),
        ("max_feature_idx", "-1", "no features"),
        ("objective", "multiclass num_class:7", "another number of classes"),
    ],
)
def test_what_would_crash_or_mislead_is_refused(
    key: str, value: str, reason: str, tmp_path: Path
) -> None:
    path = lightgbm(tmp_path, "multiclass").path
    path.write_text(_resized(_edit(path.read_text(), key, value)))

    with pytest.raises(UnsupportedModelError, match=reason) as refused:
        read_lightgbm(path)
    assert path.name in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("tree_sizes=", "tree_sizes=5 ", "tree"),
        ("tree_sizes=", "sizes=", "it lacks 'tree_sizes'"),
        ("left_child=", "left_child =0\nleft_child=", "has no name"),
        ("end of trees", "end of", "`end of trees` is missing"),
        ("tree\n", "tree\r\n", "Unix line ends"),
        ("pandas_categorical:null", 'pandas_categorical:[["a", "b"]]', "0 are categorical"),
        ("\nversion=v4", "\nversion=v4\nversion=v4", "appears twice"),
    ],
)
def test_text_that_is_not_as_lightgbm_writes_it_is_refused(
    old: str, new: str, reason: str, tmp_path: Path
) -> None:
    path = lightgbm(tmp_path, "multiclass").path
    path.write_bytes(path.read_text().replace(old, new, 1).encode())

    with pytest.raises(UnsupportedModelError, match=reason):
        read_lightgbm(path)


def test_something_else_by_the_runtimes_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("trees\n")

    with pytest.raises(UnsupportedModelError, match="first line is not `tree`"):
        load_model(path, "lightgbm")


def test_values_are_compared_as_doubles(tmp_path: Path) -> None:
    lgb = library("lightgbm", "lightgbm")
    seconds = 1_700_000_000 + np.arange(200, dtype=np.float64)[:, None]
    params = {"objective": "regression", "min_data_in_leaf": 1, "num_threads": 1, "verbose": -1}
    booster = lgb.train(params, lgb.Dataset(seconds, np.arange(200.0)), 5)
    path = tmp_path / "clock.txt"
    booster.save_model(path)
    (answer,) = load_model(path).run({"input": seconds}).values()

    assert np.array_equal(answer, booster.predict(seconds))
    assert not np.array_equal(answer, booster.predict(seconds.astype(np.float32)))


def test_a_model_of_one_leaf_answers_it(tmp_path: Path) -> None:
    lgb = library("lightgbm", "lightgbm")
    params = {"objective": "regression", "num_threads": 1, "verbose": -1, "min_gain_to_split": 1e9}
    booster = lgb.train(params, lgb.Dataset(ROWS.astype(np.float64), AMOUNTS), 3)
    path = tmp_path / "leaf.lgb"
    booster.save_model(path)
    rows = asked().astype(np.float64)
    (answer,) = load_model(path).run({"input": rows}).values()

    assert np.array_equal(answer, booster.predict(rows))
