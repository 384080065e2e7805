"""Tree engines and their choice by batch size."""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Tensors
from headrace.optimize.candidate import Candidate, CannotBuildError, ModelClass, RecipeContext
from headrace.optimize.compare import Comparison
from headrace.optimize.recipes.trees import (
    GAIN_RATIO,
    MAX_MEMBERS,
    NATIVE_TREES,
    ONNX_TREES,
    SLACK_RATIO,
    TREE_RECIPES,
    CallTime,
    as_rows,
    choose_by_batch,
    differences,
    mixing_problem,
)
from headrace.runtimes import load_model
from headrace.testing import models
from tests import tabular_models
from tests.tabular_models import AMOUNTS, KINDS, ROWS, Trained, library

pytestmark = pytest.mark.slow
library("onnxmltools", "convert")
library("skl2onnx", "convert")
TRAIN: dict[str, Callable[[Path, str], Trained]] = {
    "xgboost": tabular_models.xgboost,
    "lightgbm": tabular_models.lightgbm,
    "catboost": tabular_models.catboost,
    "sklearn": tabular_models.sklearn,
}


def context(
    source: Path,
    runtime: str,
    *,
    calibration: Sequence[Tensors] = (),
    model_class: ModelClass = ModelClass.TREES,
    on_progress: Callable[[str], None] = lambda _: None,
) -> RecipeContext:
    folder = source.parent / "made"
    folder.mkdir(exist_ok=True)
    return RecipeContext(
        source=source,
        runtime=runtime,
        model_class=model_class,
        folder=folder,
        calibration=calibration,
        threads=1,
        seed=0,
        deadline=math.inf,
        on_progress=on_progress,
    )


def examples(runtime: str, rows: int = 30) -> list[Tensors]:
    dtype = np.float64 if runtime in {"lightgbm", "sklearn"} else np.float32
    return [{"input": ROWS[i : i + 1].astype(dtype)} for i in range(rows)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRAIN)
def test_both_engines_of_a_model_answer_alike(name: str, kind: str, tmp_path: Path) -> None:
    shop = context(TRAIN[name](tmp_path, kind).path, name, calibration=examples(name))
    made: list[Candidate] = []
    for recipe in TREE_RECIPES:
        assert not recipe.inapplicable_reason(shop)
        made += recipe.build(shop)
    native, onnx = (load_model(one.path, one.runtime) for one in made)
    inputs = as_rows(examples(name, len(ROWS)))
    assert inputs is not None

    found = differences(native, onnx, inputs)

    assert [one.name for one in made] == ["native", "onnxruntime-trees"]
    assert found.rows == len(ROWS)
    assert not mixing_problem(found)
    assert native.signature.inputs == onnx.signature.inputs
    assert native.signature.outputs == onnx.signature.outputs
    told = made[1].recipe
    assert told["compared_inputs"].endswith("30 given rows")
    assert float(told["largest_relative_difference"]) <= float(told["tolerance"])
    assert int(told["size_bytes"]) == made[1].path.stat().st_size


def test_lightgbm_is_run_in_doubles_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    shop = context(
        tabular_models.lightgbm(tmp_path, "binary").path, "lightgbm", on_progress=said.append
    )

    (made,) = ONNX_TREES.build(shop)

    assert made.title == "ONNX Runtime, trees in FP64"
    assert made.recipe["converter"].startswith("headrace ")
    assert said == ["converting the trees to ONNX"]


def test_a_model_that_the_converter_refuses_is_not_built_and_says_why(tmp_path: Path) -> None:
    dart = tabular_models.xgboost(tmp_path, "binary", booster="dart")
    shop = context(dart.path, "xgboost")

    with pytest.raises(CannotBuildError, match="gbtree with one target"):
        ONNX_TREES.build(shop)
    assert not list(shop.folder.iterdir())


def test_a_model_that_answers_otherwise_once_converted_is_not_built(tmp_path: Path) -> None:
    lightgbm = library("lightgbm", "lightgbm")
    rows = np.where(np.abs(ROWS) < 0.7, 0, ROWS).astype(np.float64)
    settings = {"verbose": -1, "num_leaves": 7, "zero_as_missing": True}
    path = tmp_path / "zeros.txt"
    lightgbm.train(settings, lightgbm.Dataset(rows, AMOUNTS), 8).save_model(path)
    shop = context(path, "lightgbm", calibration=[{"input": row[None]} for row in rows])

    with pytest.raises(CannotBuildError, match=r"zeros count as missing.* differs by up to"):
        ONNX_TREES.build(shop)


def test_an_estimator_with_types_that_are_not_trusted_is_not_built(tmp_path: Path) -> None:
    splines = library("sklearn.preprocessing", "sklearn").SplineTransformer()
    logistic = library("sklearn.linear_model", "sklearn").LogisticRegression()
    estimator = library("sklearn.pipeline", "sklearn").make_pipeline(splines, logistic)
    path = tabular_models.sklearn(tmp_path, "binary", estimator).path

    with pytest.raises(CannotBuildError, match="types that skops does not trust"):
        ONNX_TREES.build(context(path, "sklearn"))


def test_examples_that_are_no_batch_are_refused(tmp_path: Path) -> None:
    shop = context(
        tabular_models.xgboost(tmp_path, "binary").path,
        "xgboost",
        calibration=[{"input": np.ones((1, 5))}, {"input": np.ones((1, 4))}],
    )

    with pytest.raises(CannotBuildError, match="the examples differ in shape"):
        ONNX_TREES.build(shop)
    with pytest.raises(CannotBuildError, match="the examples differ in shape"):
        as_rows([{"input": np.ones((1, 5))}, {}])


def test_examples_that_the_model_does_not_take_are_refused(tmp_path: Path) -> None:
    shop = context(
        tabular_models.xgboost(tmp_path, "binary").path,
        "xgboost",
        calibration=[{"input": np.ones((1, 99), np.float32)}],
    )

    with pytest.raises(CannotBuildError, match="does not take the given rows"):
        ONNX_TREES.build(shop)


def test_other_models_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(models.matmul())
    shop = context(path, "onnx")

    for recipe in TREE_RECIPES:
        assert recipe.inapplicable_reason(shop) == (
            "is a model of the runtime 'onnx'; those of catboost, lightgbm, sklearn, xgboost are "
            "rewritten"
        )
        with pytest.raises(CannotBuildError, match="is a model of the runtime 'onnx'"):
            recipe.build(shop)


def test_a_converter_that_is_absent_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = context(tabular_models.xgboost(tmp_path, "binary").path, "xgboost")
    monkeypatch.setitem(sys.modules, "onnxmltools", None)

    why = ONNX_TREES.inapplicable_reason(shop)

    assert why == "needs the package 'onnxmltools': pip install 'headrace[convert]'"
    assert not NATIVE_TREES.inapplicable_reason(shop)


US = 1e-6


Interval = CallTime
Times = dict[int, Interval]


def times(*us: float, wide: float = 0.01) -> Times:
    """At 1, 8, 32, 128 and 1,024 rows."""
    return {
        rows: Interval(one * US, one * US * (1 - wide), one * US * (1 + wide))
        for rows, one in zip((1, 8, 32, 128, 1024), us, strict=False)
    }


def engine_at(choice: list[tuple[str, int | None]], rows: int) -> str:
    return next(name for name, up_to in choice if up_to is None or rows <= up_to)


def test_an_engine_that_is_best_everywhere_is_alone() -> None:
    found = choose_by_batch({"native": times(20, 30, 50, 90), "onnx": times(10, 20, 30, 40)})

    assert found == [("onnx", None)]


def test_each_engine_takes_the_batches_that_it_is_quickest_at() -> None:
    # CatBoost with 100 trees: measured, one core.
    native, onnx = times(124, 195, 195, 245, 495), times(13, 44, 170, 758, 3143)

    (first, up_to), last = choose_by_batch({"catboost": native, "onnx": onnx})

    assert (first, last) == ("onnx", ("catboost", None))
    assert up_to is not None
    assert 32 <= up_to < 40  # where the lines cross


def test_a_gain_of_less_than_a_tenth_is_no_reason_for_a_second_engine() -> None:
    slightly = {"a": times(10, 20, 40, 100), "b": times(12, 22, 40, 91)}
    clearly = {"a": times(10, 20, 40, 100), "b": times(12, 22, 40, 89)}

    assert choose_by_batch(slightly) == [("a", None)]
    assert [name for name, _ in choose_by_batch(clearly)] == ["a", "b"]


def test_noise_is_no_reason_for_a_second_engine() -> None:
    a, b = (10.0, 20, 40, 100), (12.0, 22, 40, 80)

    assert len(choose_by_batch({"a": times(*a, wide=0.05), "b": times(*b, wide=0.05)})) == 2
    assert choose_by_batch({"a": times(*a, wide=0.2), "b": times(*b, wide=0.2)}) == [("a", None)]


def test_a_size_that_was_not_measured_lies_on_the_line_between_its_neighbours() -> None:
    a = {1: Interval(10 * US, 9 * US, 11 * US), 100: Interval(1000 * US, 990 * US, 1010 * US)}
    b = {10: Interval(99 * US, 98 * US, 100 * US)}  # as long below, a row as long above

    # At 10 rows `a` takes 100 us; at 1 `b` takes 99, at 100 it takes 990.
    assert choose_by_batch({"a": a, "b": b}) == [("a", None)]


def test_three_engines_share_what_each_is_best_at() -> None:
    measured = {
        "small": times(5, 40, 160, 640, 5120),
        "middle": times(20, 22, 60, 240, 1900),
        "large": times(90, 92, 95, 100, 300),
    }

    assert [name for name, _ in choose_by_batch(measured)] == ["small", "middle", "large"]


def test_engines_that_do_not_answer_alike_are_not_mixed() -> None:
    measured = {
        "fp32": times(10, 20, 40, 150, 2000),
        "native": times(90, 92, 95, 100, 300),
        "double": times(10.2, 20.4, 41, 150, 2000),
    }
    unlike = {frozenset({"fp32", "native"}), frozenset({"fp32", "double"})}

    assert [name for name, _ in choose_by_batch(measured)] == ["fp32", "native"]
    found = choose_by_batch(measured, unlike=unlike)
    assert [name for name, _ in found] == ["double", "native"]


def test_of_two_that_are_the_same_the_first_is_taken() -> None:
    assert choose_by_batch({"a": times(10, 20), "b": times(10, 20)}) == [("a", None)]
    assert choose_by_batch({"b": times(10, 20), "a": times(10, 20)}) == [("b", None)]


SIZES = st.sampled_from([1, 2, 8, 32, 128, 1024])


@st.composite
def interval(draw: st.DrawFn) -> Interval:
    value = draw(st.floats(1e-6, 1e-2))
    return Interval(value, value * draw(st.floats(0.5, 1)), value * draw(st.floats(1, 2)))


ANY = st.dictionaries(
    st.sampled_from("abcd"), st.dictionaries(SIZES, interval(), min_size=1), min_size=1
)
EVERYWHERE = st.dictionaries(
    st.sampled_from("abcd"),
    st.fixed_dictionaries({rows: interval() for rows in (1, 8, 32, 128)}),
    min_size=1,
)


@given(ANY)
def test_rows_rise_each_engine_comes_once_and_the_last_one_has_no_end(
    measured: dict[str, Times],
) -> None:
    found = choose_by_batch(measured)
    names = [name for name, _ in found]
    ends = [up_to for _, up_to in found[:-1]]

    assert found[-1][1] is None
    assert None not in ends
    assert all(a < b for a, b in zip([0, *ends], ends, strict=False) if a is not None and b)
    assert len(set(names)) == len(names) <= MAX_MEMBERS
    assert set(names) <= set(measured)


@given(EVERYWHERE)
def test_it_is_nowhere_slower_than_the_best_single_engine(measured: dict[str, Times]) -> None:
    found = choose_by_batch(measured)
    sizes = (1, 8, 32, 128)
    best = min(measured, key=lambda n: math.fsum(math.log(measured[n][s].value) for s in sizes))

    for rows in sizes:
        mine = measured[engine_at(found, rows)][rows].value
        assert mine <= (1 + SLACK_RATIO) * measured[best][rows].value


@given(EVERYWHERE)
def test_each_further_engine_is_worth_it_beyond_the_intervals(measured: dict[str, Times]) -> None:
    found = choose_by_batch(measured)
    if len(found) == 1:
        return
    names = [name for name, _ in found]

    for alone in names:
        assert any(
            mine.value <= (1 - GAIN_RATIO) * its.value and mine.high < its.low
            for rows in (1, 8, 32, 128)
            for mine, its in [(measured[engine_at(found, rows)][rows], measured[alone][rows])]
        )


@given(EVERYWHERE)
def test_engines_whose_intervals_overlap_everywhere_are_never_mixed(
    measured: dict[str, Times],
) -> None:
    blurred = {
        name: {rows: Interval(one.value, 1e-7, 1.0) for rows, one in own.items()}
        for name, own in measured.items()
    }

    assert len(choose_by_batch(blurred)) == 1


def comparison(**found: float | str) -> Comparison:
    return Comparison(inputs="rows", rows=1000, **found)  # type: ignore[arg-type]  # as it is typed


def test_engines_that_only_round_otherwise_may_be_mixed() -> None:
    assert not mixing_problem(comparison())
    assert not mixing_problem(comparison(largest_relative=2e-6, largest_absolute=8e-7))


def test_engines_whose_answers_could_be_told_apart_may_not_be_mixed() -> None:
    assert "1 of 1000 rows would get another class" in mixing_problem(comparison(changed_rows=1))
    assert "'prediction' would change by up to 0.0002" in mixing_problem(
        comparison(largest_relative=2e-4, output="prediction")
    )
    assert mixing_problem(comparison(largest_relative=math.nan))
