import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from headrace.core import Datatype, RuntimeFailedError, Tensors, TensorSpec
from headrace.runtimes import Probe, difference_ratio, probe_batch

FP32 = Datatype.FP32
Array = np.ndarray[Any, Any]


def spec(name: str, *shape: int, datatype: Datatype = FP32) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def probe(function: Callable[[Array], Array], *, output: TensorSpec | None = None) -> Probe:
    return probe_batch(
        lambda inputs: {"y": function(inputs["x"])},
        (spec("x", -1, 4),),
        (output or spec("y", -1, 4),),
    )


def test_rows_that_do_not_meet_are_a_batch() -> None:
    found = probe(lambda x: x * 2)

    assert (found.batched, found.variable) == (True, 2)
    assert "alike" in found.reason


def test_rounding_is_no_difference() -> None:
    assert probe(lambda x: x * np.float32(1 + 1e-5 * len(x))).batched


def test_a_slight_difference_is_served_and_told(caplog: pytest.LogCaptureFixture) -> None:
    """Dynamic quantisation takes its scale over the whole batch."""
    with caplog.at_level(logging.WARNING):
        assert probe(lambda x: x * np.float32(1 + 0.01 * len(x))).batched

    assert "slightly differently" in caplog.text


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: np.cumsum(x, axis=0), "rows answer differently"),
        (lambda x: x - x.mean(axis=0), "rows answer differently"),
        (lambda x: x[::-1], "rows answer differently"),
        (lambda x: x[:1], "axis 0 of output 'y' is not the number of rows"),
        (lambda x: x.sum(), "axis 0 of output 'y' is not the number of rows"),
        (lambda x: x @ x.T, "the shape of output 'y' depends on the number of rows"),
        (lambda x: np.argmax(x, axis=0)[: len(x)], "rows answer differently"),
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
    assert probe_batch(tie, (spec("x", -1, 4),), outputs).batched


def test_labels_alone_have_to_be_equal() -> None:
    found = probe(lambda x: np.full(len(x), len(x), np.int64))

    assert (found.batched, found.reason) == (False, "rows answer differently together than alone")


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

    assert probe_batch(lambda t: {"y": t["a"]}, inputs, (spec("y", -1),), axis_names=names).batched


@pytest.mark.parametrize("needed", [1, 8, 32, 64, 224])
def test_sizes_are_tried_until_the_model_runs(needed: int) -> None:
    def picky(inputs: Tensors) -> Tensors:
        if inputs["x"].shape[1] < needed or needed == 1 != inputs["x"].shape[1]:
            msg = "too small"
            raise RuntimeFailedError(msg)
        return {"y": inputs["x"][:, :1]}

    found = probe_batch(picky, (spec("x", -1, -1),), (spec("y", -1, 1),))
    assert (found.batched, found.variable) == (True, needed)


def test_a_model_that_never_runs_is_believed_and_that_is_said() -> None:
    def fails(_: Tensors) -> Tensors:
        msg = "needs real data"
        raise RuntimeFailedError(msg)

    found = probe_batch(fails, (spec("x", -1, 4),), (spec("y", -1),))
    assert (found.batched, found.variable) == (True, None)
    assert "not proved" in found.reason
    assert not probe_batch(fails, (spec("x", 3, 4),), (spec("y", 3),)).batched


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
