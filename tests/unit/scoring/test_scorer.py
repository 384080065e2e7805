"""Rows are scored together; those that fail cost themselves only."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import (
    Array,
    Datatype,
    InvalidArgumentError,
    ModelSignature,
    RowIndependence,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    UnavailableError,
)
from headrace.engine import ServiceTimes
from headrace.scoring.loading import LoadedModel
from headrace.scoring.scorer import Scorer
from headrace.testing.virtual_time import TurnedClock

SIGNATURE = ModelSignature(
    inputs=(TensorSpec(name="x", datatype=Datatype.INT64, shape=(-1,)),),
    outputs=(TensorSpec(name="y", datatype=Datatype.INT64, shape=(-1,)),),
    batched=True,
)


class Doubler:
    """Twice the input; raises where a batch holds a negative number."""

    signature = SIGNATURE
    concurrent = False

    def __init__(self, error: Exception | None = None, *, short: bool = False) -> None:
        self.error = error or RuntimeFailedError("negative")
        self.short = short
        self.runs = 0

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        del outputs
        self.runs += 1
        if (inputs["x"] < 0).any():
            raise self.error
        return {"y": inputs["x"][:1] * 2 if self.short else inputs["x"] * 2}

    def close(self) -> None:
        self.runs = -1


def scorer(model: Doubler) -> Scorer:
    loaded = LoadedModel(
        model=model,
        runtime="python",
        signature=SIGNATURE,
        times=ServiceTimes(max_batch_size=32),
        plan=None,
    )
    return Scorer(loaded, name="doubler", version="1")


@given(rows=st.lists(st.integers(-3, 100), min_size=1, max_size=40))
def test_the_good_rows_are_answered_in_their_order_and_the_bad_ones_are_named(
    rows: list[int],
) -> None:
    found = scorer(Doubler()).score({"x": np.array(rows, np.int64)})

    bad = {place for place, value in enumerate(rows) if value < 0}
    assert set(found.errors) == bad
    good = [row for row in range(len(rows)) if row not in bad]
    assert found.rows_without_errors(len(rows)) == good
    answers = found.outputs["y"].tolist() if found.outputs else []
    assert answers == [value * 2 for value in rows if value >= 0]


def test_rows_that_are_all_good_are_one_run() -> None:
    model = Doubler()
    scorer(model).score({"x": np.arange(1000)})
    assert model.runs == 1


def test_one_bad_row_of_many_costs_a_few_runs() -> None:
    model = Doubler()
    rows = np.arange(1024)
    rows[700] = -1
    assert set(scorer(model).score({"x": rows}).errors) == {700}
    assert model.runs == 21


def test_what_stands_in_the_way_of_every_row_is_raised_at_once() -> None:
    model = Doubler(UnavailableError("the store is away"))
    with pytest.raises(UnavailableError, match="away"):
        scorer(model).score({"x": np.array([1, -1, 2])})
    assert model.runs == 1


def test_inputs_that_do_not_fit_are_told_before_anything_runs() -> None:
    model = Doubler()
    with pytest.raises(InvalidArgumentError, match="data-type"):
        scorer(model).score({"x": np.array([1.0])})
    assert model.runs == 0


def test_an_output_of_fewer_rows_than_the_batch_belongs_to_no_row() -> None:
    found = scorer(Doubler(short=True)).score({"x": np.array([1, 2, 3, 4])})
    # One row alone is answered with one row, which is right.
    assert found.errors == {}
    assert found.outputs["y"].tolist() == [2, 4, 6, 8]


class Declared:
    """A model whose rows are declared independent; `answer` says what a batch is answered."""

    concurrent = True
    signature = ModelSignature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1,)),),
        outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1,)),),
        batched=True,
        row_independence=RowIndependence.DECLARED,
    )

    def __init__(self, answer: Callable[[Array], Array]) -> None:
        self.answer = answer
        self.sizes: list[int] = []

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        del outputs
        self.sizes.append(len(inputs["x"]))
        return {"y": self.answer(inputs["x"])}

    def close(self) -> None:
        """Nothing to close."""


def scorer_of(
    model: Declared, clock: Callable[[], float] = time.monotonic, *, checks_rows: bool = True
) -> Scorer:
    loaded = LoadedModel(
        model=model,
        runtime="python",
        signature=model.signature,
        times=ServiceTimes(max_batch_size=32),
        plan=None,
    )
    return Scorer(loaded, name="declared", version="1", clock=clock, checks_rows=checks_rows)


def refuses_alone(x: Array) -> Array:
    if len(x) == 1:
        msg = "no row alone"
        raise ValueError(msg)
    return x


@pytest.mark.parametrize(
    ("answer", "differs"),
    [
        (lambda x: x - x.mean(), True),
        (lambda x: x * 2, False),
        (lambda x: np.random.default_rng().random(len(x), np.float32), False),
        (refuses_alone, False),
    ],
    ids=["mixes rows", "independent", "noise", "refuses a row alone"],
)
def test_a_declared_row_is_run_alone_and_compared(
    answer: Callable[[Array], Array], *, differs: bool
) -> None:
    model = Declared(answer)
    scorer = scorer_of(model)
    x = np.arange(1, 9, dtype=np.float32)
    scored = scorer.score({"x": x})

    assert len(scored.outputs["y"]) == 8
    assert 1 in model.sizes
    assert (scorer.difference is not None) == differs
    if scorer.difference is not None:
        assert "output 'y' differs by" in scorer.difference.text
        assert "in a batch of 8 rows" in scorer.difference.text


def doubles_in_place(x: Array) -> Array:
    x *= 2
    return x


def test_a_check_changes_no_answer_of_a_model_that_works_in_place() -> None:
    model = Declared(doubles_in_place)
    scorer = scorer_of(model)
    scored = scorer.score({"x": np.arange(8, dtype=np.float32)})

    assert scored.outputs["y"].tolist() == [2.0 * value for value in range(8)]
    assert scorer.difference is None
    assert len(model.sizes) > 1


def test_checks_of_declared_rows_are_seldom_and_end_with_a_difference() -> None:
    clock = TurnedClock()
    model = Declared(lambda x: x * 2)
    scorer = scorer_of(model, clock=clock.monotonic)
    for _ in range(4):  # at 0, 0.5, 1 and 1.5 s
        scorer.score({"x": np.ones(4, np.float32)})
        clock.turn(0.5)
    checks = model.sizes.count(1)
    model.answer = lambda x: x - x.mean()
    for _ in range(2):
        clock.turn(5.0)
        scorer.score({"x": np.arange(4, dtype=np.float32)})

    assert checks == 2
    assert scorer.difference is not None
    assert model.sizes.count(1) == 4  # two of them confirmed the difference


def test_a_model_whose_second_runs_have_side_effects_is_not_run_alone() -> None:
    model = Declared(lambda x: x - x.mean())
    scorer = scorer_of(model, checks_rows=False)
    scorer.score({"x": np.arange(4, dtype=np.float32)})

    assert model.sizes == [4]


def test_a_proven_row_is_not_run_alone() -> None:
    model = Declared(lambda x: x - x.mean())
    model.signature = replace(model.signature, row_independence=RowIndependence.PROVEN)
    scorer = scorer_of(model)
    scorer.score({"x": np.arange(4, dtype=np.float32)})

    assert model.sizes == [4]
    assert scorer.difference is None
