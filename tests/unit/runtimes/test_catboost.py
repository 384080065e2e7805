import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core import Array, UnsupportedModelError
from headrace.runtimes import load_model
from headrace.runtimes.file_bytes import FlatbufferTable
from headrace.runtimes.tables.catboost import read_catboost
from tests.tabular_models import AMOUNTS, CLASSES, ROWS, asked, catboost, library


def _list_at(data: bytes, field: int) -> int:
    """Where the numbers of a list of the trees begin in a file."""
    trees = FlatbufferTable.root(data[8:]).table(1)
    assert trees is not None
    place = trees._target(field)
    assert place is not None
    return 8 + place + 4


@pytest.mark.parametrize(
    ("field", "layout", "value", "reason"),
    [
        (1, "<i", 9999, "an unknown border"),
        (1, "<i", -1, "an unknown border"),
        (2, "<i", 40, "the wrong number of splits"),
        (2, "<i", -3, "the wrong number of splits"),
        (3, "<i", 1, "begins at the wrong position"),
        (17, "<H", 999, "an unknown feature"),
    ],
)
def test_trees_that_would_crash_the_library_are_refused(
    field: int, layout: str, value: int, reason: str, tmp_path: Path
) -> None:
    path = catboost(tmp_path, "multiclass").path
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, _list_at(bytes(data), field), value)
    path.write_bytes(data)

    with pytest.raises(UnsupportedModelError, match=reason) as refused:
        read_catboost(path)
    assert path.name in str(refused.value)


@pytest.mark.parametrize(
    ("field", "layout", "value", "reason"),
    [(10, "<H", 60000, "in another tree"), (11, "<I", 9999, "an unknown leaf")],
)
def test_uneven_trees_that_would_crash_the_library_are_refused(
    field: int, layout: str, value: int, reason: str, tmp_path: Path
) -> None:
    path = catboost(tmp_path, "multiclass", grow_policy="Lossguide").path
    data = bytearray(path.read_bytes())
    at = _list_at(bytes(data), field)
    for node in range(4):
        struct.pack_into(layout, data, at + 4 * node, value)
    path.write_bytes(data)

    with pytest.raises(UnsupportedModelError, match=reason):
        read_catboost(path)


@pytest.mark.parametrize("policy", ["SymmetricTree", "Lossguide", "Depthwise"])
def test_trees_of_every_shape_answer_as_the_library_does(policy: str, tmp_path: Path) -> None:
    trained = catboost(tmp_path, "multiclass", grow_policy=policy)
    rows = asked()
    answers = load_model(trained.path).run({"input": rows})

    for got, want in zip(answers.values(), trained.expected(rows), strict=True):
        assert np.array_equal(got, want)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        ("Poisson", np.abs(AMOUNTS)),
        ("Tweedie:variance_power=1.5", np.abs(AMOUNTS)),
        ("RMSEWithUncertainty", AMOUNTS),
        ("MultiRMSE", ROWS[:, :2]),
    ],
)
def test_a_loss_with_its_own_scale_answers_as_the_regressor_does(
    loss: str, target: Array, tmp_path: Path
) -> None:
    model = library("catboost", "catboost").CatBoostRegressor(
        loss_function=loss, iterations=5, depth=3, verbose=0, allow_writing_files=False
    )
    model.fit(ROWS, target).save_model(str(tmp_path / "loss.cbm"))
    rows = asked()
    (prediction,) = load_model(tmp_path / "loss.cbm").run({"input": rows}).values()

    assert np.array_equal(prediction, model.predict(rows))


def test_classes_that_are_words_come_as_words(tmp_path: Path) -> None:
    model = _classifier().fit(ROWS, np.array(["low", "middle", "high"])[CLASSES])
    model.save_model(str(tmp_path / "words.cbm"))
    label = load_model(tmp_path / "words.cbm").run({"input": asked()}, ["label"])["label"]

    assert label.tolist() == [str(word).encode() for word in model.predict(asked()).ravel()]


def test_a_threshold_of_the_models_own_decides_the_label(tmp_path: Path) -> None:
    model = _classifier().fit(ROWS, CLASSES > 0)
    model.set_probability_threshold(0.9)
    model.save_model(str(tmp_path / "sure.cbm"))
    rows = asked()
    label, probabilities = load_model(tmp_path / "sure.cbm").run({"input": rows}).values()

    assert np.array_equal(label, probabilities[:, 1] > 0.9)


@pytest.mark.parametrize("classes", [2, 3])
def test_classes_that_are_as_likely_are_told_apart_as_the_library_does(
    classes: int, tmp_path: Path
) -> None:
    # The one feature says nothing: each class has as many rows of either value.
    of_no_use = np.arange(60)[:, None] // 30
    model = _classifier(iterations=2, l2_leaf_reg=1e-3).fit(of_no_use, np.arange(60) % classes)
    model.save_model(str(tmp_path / "tie.cbm"))
    rows = np.zeros((3, 1), np.float32)
    label, probabilities = load_model(tmp_path / "tie.cbm").run({"input": rows}).values()

    assert np.ptp(probabilities) < 1e-12
    assert np.array_equal(label, model.predict(rows).reshape(3))


def test_a_label_alone_is_the_one_that_comes_with_the_probabilities(tmp_path: Path) -> None:
    model = load_model(catboost(tmp_path, "multiclass").path)
    rows = asked()

    assert np.array_equal(
        model.run({"input": rows}, ["label"])["label"], model.run({"input": rows})["label"]
    )


def test_many_borders_take_several_bytes(tmp_path: Path) -> None:
    model = _classifier(border_count=1000, iterations=20).fit(ROWS, CLASSES > 0)
    model.save_model(str(tmp_path / "fine.cbm"))
    rows = asked()
    answer = load_model(tmp_path / "fine.cbm").run({"input": rows}, ["probabilities"])

    assert np.array_equal(answer["probabilities"], model.predict_proba(rows))


def test_several_labels_are_refused(tmp_path: Path) -> None:
    model = _classifier(loss_function="MultiLogloss").fit(ROWS, (ROWS[:, :2] > 0).astype(int))
    model.save_model(str(tmp_path / "labels.cbm"))

    with pytest.raises(UnsupportedModelError, match="several labels"):
        load_model(tmp_path / "labels.cbm")


def test_settings_that_are_no_json_are_refused(tmp_path: Path) -> None:
    path = catboost(tmp_path, "binary").path
    path.write_bytes(path.read_bytes().replace(b'{"detailed', b"\x00}detailed", 1))

    with pytest.raises(UnsupportedModelError, match="truncated or corrupt"):
        load_model(path)


def test_something_behind_the_model_is_refused(tmp_path: Path) -> None:
    path = catboost(tmp_path, "binary").path
    path.write_bytes(path.read_bytes() + b"more")

    with pytest.raises(UnsupportedModelError, match="data follows"):
        load_model(path)


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"\x04\0\0\0\xff\xff\xff\x7f"])
def test_offsets_that_lead_out_of_a_flat_buffer_are_value_errors(data: bytes) -> None:
    with pytest.raises(ValueError, match="out of the data"):
        FlatbufferTable.root(data).text(0)


def _classifier(**params: Any) -> Any:  # noqa: ANN401  # any setting, and it ships no types
    settings = {"iterations": 5, "depth": 3, "verbose": 0, "allow_writing_files": False}
    return library("catboost", "catboost").CatBoostClassifier(**(settings | params))
