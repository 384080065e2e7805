import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headrace.core import Datatype, RowIndependence, RuntimeFailedError, Tensors, TensorSpec
from headrace.runtimes import BatchProbe, difference_ratio, probe_batch
from headrace.runtimes.rows.values import RowVerdict

FP32 = Datatype.FP32
Array = np.ndarray[Any, Any]


def spec(name: str, *shape: int, datatype: Datatype = FP32) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def proven() -> RowVerdict:
    return RowVerdict(why_not="")


def unproven() -> RowVerdict:
    return RowVerdict(why_not="node 'n' (Op) is an operator that is not known to keep rows apart")


def probe(
    function: Callable[[Array], Array],
    *,
    output: TensorSpec | None = None,
    verdict: Callable[[], RowVerdict] = proven,
    declared: str = "",
) -> BatchProbe:
    return probe_batch(
        lambda inputs: {"y": function(inputs["x"])},
        (spec("x", -1, 4),),
        (output or spec("y", -1, 4),),
        analyse=verdict,
        declared=declared,
    )


def test_a_proven_model_is_batched() -> None:
    result = probe(lambda x: x * 2)

    assert (result.batched, result.row_independence) == (True, RowIndependence.PROVEN)
    assert (result.variable, result.reason) == (2, "no operator of the graph mixes rows")


def test_a_model_that_is_not_proven_is_not_batched() -> None:
    result = probe(lambda x: x * 2, verdict=unproven)

    assert (result.batched, result.row_independence) == (False, RowIndependence.UNPROVEN)
    assert result.reason == unproven().why_not


def test_a_declared_model_is_batched() -> None:
    result = probe(lambda x: x * 2, verdict=unproven, declared="the author")

    assert (result.batched, result.row_independence) == (True, RowIndependence.DECLARED)
    assert result.reason == f"the author declares it; not proven: {unproven().why_not}"


def test_a_declaration_that_runs_contradict_is_followed_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        result = probe(lambda x: x - x.mean(axis=0), verdict=unproven, declared="the author")

    assert (result.batched, result.row_independence) == (True, RowIndependence.DECLARED)
    assert "differs by" in result.difference
    assert "as the author declares, although output 'y' of a row" in caplog.text


def test_a_declaration_makes_no_batch_of_outputs_without_rows() -> None:
    result = probe(lambda x: x.sum(), verdict=unproven, declared="the author")

    assert (result.batched, result.row_independence) == (False, RowIndependence.REFUTED)


def test_rounding_is_no_difference() -> None:
    result = probe(lambda x: x * np.float32(1 + 1e-5 * len(x)), verdict=unproven)

    assert not result.difference


def test_a_difference_is_measured_by_its_own_row() -> None:
    """Beside a row of 1e3, what a small row is off by is nothing."""
    result = probe(lambda x: x + np.float32(1e-4) * x.max(), verdict=unproven)

    assert result.row_independence is RowIndependence.REFUTED


def test_a_step_of_quantisation_is_no_difference_for_a_proven_model() -> None:
    assert probe(lambda x: x * np.float32(1 + 0.003 * len(x))).batched
    slight = probe(lambda x: x * np.float32(1 + 0.003 * len(x)), verdict=unproven)
    assert slight.row_independence is RowIndependence.REFUTED


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / 255 if x.max() > 1 else x,
        lambda x: x / 255 if x.max() > 10 else x,
        lambda x: x * 2 if x.min() < -5 else x,
        lambda x: x * 2 if np.abs(x).max() < 0.01 else x,
        lambda x: x * 0 if np.isnan(x).any() else x,
        lambda x: x * len(np.unique(x.sum(axis=1))),
        lambda x: x * 3 if len(x) > 1 and (x[0] == x[1]).all() else x,
    ],
    ids=["above 1", "above 10", "negative", "tiny", "missing", "duplicates", "equal neighbours"],
)
def test_rows_of_other_magnitudes_refute_what_ordinary_ones_do_not(
    function: Callable[[Array], Array],
) -> None:
    result = probe(lambda x: np.asarray(function(x)), verdict=unproven)

    assert result.row_independence is RowIndependence.REFUTED


def test_integers_are_probed_too() -> None:
    def marked(inputs: Tensors) -> Tensors:
        return {"y": inputs["x"] * (2 if inputs["x"].max() > 500 else 1)}

    result = probe_batch(
        marked,
        (spec("x", -1, 4, datatype=Datatype.INT64),),
        (spec("y", -1, 4, datatype=Datatype.INT64),),
        analyse=unproven,
    )
    assert result.row_independence is RowIndependence.REFUTED


def test_a_row_that_the_model_rejects_alone_is_left_out() -> None:
    def table(inputs: Tensors) -> Tensors:
        if inputs["x"].max() > 1:
            msg = "index out of range"
            raise RuntimeFailedError(msg)
        return {"y": inputs["x"]}

    ints = (spec("x", -1, 4, datatype=Datatype.INT64),)
    assert probe_batch(table, ints, (replace(ints[0], name="y"),), analyse=proven).batched


def test_probing_ends_where_runs_are_slow() -> None:
    now = iter(np.arange(0, 1000, 0.2))
    runs = []

    def slow(inputs: Tensors) -> Tensors:
        runs.append(len(inputs["x"]))
        return {"y": inputs["x"]}

    found = probe_batch(
        slow,
        (spec("x", -1, 4),),
        (spec("y", -1, 4),),
        analyse=proven,
        clock=lambda: float(next(now)),
    )
    assert found.batched
    assert runs == [1, 2, 1, 3]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: np.cumsum(x, axis=0), "differs by"),
        (lambda x: x - x.mean(axis=0), "differs by"),
        (lambda x: x[::-1], "differs by"),
        (lambda x: x[:1], "axis 0 of output 'y' is not the number of rows"),
        (lambda x: x.sum(), "axis 0 of output 'y' is not the number of rows"),
        (lambda x: x @ x.T, "the shape of output 'y' depends on the number of rows"),
        (lambda x: np.argmax(x, axis=0)[: len(x)], "differs in a batch"),
    ],
    ids=["sum so far", "mean", "reversed", "first row", "sum", "gram matrix", "best row"],
)
def test_rows_that_meet_are_none(function: Callable[[Array], Array], reason: str) -> None:
    found = probe(lambda x: np.asarray(function(x)))

    assert not found.batched
    assert reason in found.reason


def test_a_model_for_one_row_is_not_batched() -> None:
    def one_row(x: Array) -> Array:
        if len(x) > 1:
            msg = "reshape to [1, 4] failed"
            raise RuntimeFailedError(msg)
        return x

    found = probe(one_row)
    assert (found.batched, "fails on several rows: reshape" in found.reason) == (False, True)


def test_a_label_may_flip_where_the_scores_agree() -> None:
    def tie(inputs: Tensors) -> Tensors:
        rows = len(inputs["x"])
        return {"score": inputs["x"], "label": np.full(rows, rows % 2, np.int64)}

    outputs = (spec("score", -1, 4), spec("label", -1, datatype=Datatype.INT64))
    assert probe_batch(tie, (spec("x", -1, 4),), outputs, analyse=proven).batched


def test_labels_alone_have_to_be_equal() -> None:
    found = probe(lambda x: np.full(len(x), len(x), np.int64))

    assert not found.batched
    assert "output 'y' of a row differs in a batch" in found.reason


@pytest.mark.parametrize(
    ("inputs", "names", "reason"),
    [
        ((), {}, "takes no inputs"),
        ((spec("x", 1, 4),), {}, "axis 0 of input 'x' has a fixed size"),
        ((spec("x", -1), spec("n")), {}, "axis 0 of input 'n' has a fixed size"),
        ((spec("x", -1), spec("n", -1)), {"x": "N", "n": "M"}, "different names"),
    ],
)
def test_the_declaration_can_rule_a_batch_out(
    inputs: tuple[TensorSpec, ...], names: dict[str, str], reason: str
) -> None:
    found = probe_batch(
        lambda _: {"y": np.zeros((1, 4), np.float32)},
        inputs,
        (spec("y", -1, 4),),
        axis_names=names,
    )

    assert not found.batched
    assert reason in found.reason


def test_one_name_at_all_inputs_is_a_candidate() -> None:
    inputs = (spec("a", -1), spec("b", -1), spec("c", -1))
    names = {"a": "N", "b": "N"}  # c's axis has no name

    result = probe_batch(
        lambda t: {"y": t["a"]}, inputs, (spec("y", -1),), axis_names=names, analyse=proven
    )
    assert result.batched


@pytest.mark.parametrize("needed", [1, 8, 32, 64, 224])
def test_sizes_are_tried_until_the_model_runs(needed: int) -> None:
    def picky(inputs: Tensors) -> Tensors:
        if inputs["x"].shape[1] < needed or needed == 1 != inputs["x"].shape[1]:
            msg = "too small"
            raise RuntimeFailedError(msg)
        return {"y": inputs["x"][:, :1]}

    found = probe_batch(picky, (spec("x", -1, -1),), (spec("y", -1, 1),), analyse=proven)
    assert (found.batched, found.variable) == (True, needed)


@pytest.mark.parametrize(
    ("verdict", "declared", "batched"),
    [(proven, "", True), (unproven, "", False), (unproven, "the author", True)],
)
def test_a_model_that_never_runs_is_decided_without_runs(
    verdict: Callable[[], RowVerdict], declared: str, *, batched: bool
) -> None:
    def fails(_: Tensors) -> Tensors:
        msg = "needs real data"
        raise RuntimeFailedError(msg)

    result = probe_batch(
        fails, (spec("x", -1, 4),), (spec("y", -1),), analyse=verdict, declared=declared
    )
    assert (result.batched, result.variable) == (batched, None)
    assert "did not run on generated inputs" in result.reason
    assert not probe_batch(fails, (spec("x", 3, 4),), (spec("y", 3),), analyse=verdict).batched


@pytest.mark.parametrize(
    ("declared", "seen"),
    [((1,), (-1, -1)), ((-1, 4), (-1, 4)), ((1, 5), (-1, -1)), ((), (-1, -1))],
)
def test_declared_shapes_give_way_to_what_was_seen(
    declared: tuple[int, ...], seen: tuple[int, ...]
) -> None:
    assert probe(lambda x: x, output=spec("y", *declared)).outputs[0].shape == seen


@pytest.mark.parametrize(
    ("got", "want", "ratio"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([np.nan, np.inf], [np.nan, np.inf], 0),
        ([np.nan, 1.0], [1.0, 1.0], np.inf),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ([0.0], [0.0], 0),
        ([], [], 0),
        ([1.0], [1.0, 1.0], np.inf),
    ],
)
def test_a_difference_is_measured_by_the_largest_value(
    got: list[float], want: list[float], ratio: float
) -> None:
    assert difference_ratio(np.array(got), np.array(want)) == pytest.approx(ratio)


def test_anything_but_numbers_with_a_point_is_equal_or_not() -> None:
    assert difference_ratio(np.array([b"a"], object), np.array([b"a"], object)) == 0
    assert difference_ratio(np.array([1]), np.array([2])) == 1
