"""Rows are scored together; those that fail cost themselves only."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import (
    Datatype,
    InvalidArgumentError,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    UnavailableError,
)
from headrace.engine import ServiceTimes
from headrace.scoring.loading import LoadedModel
from headrace.scoring.scorer import Scorer

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
    assert found.places(len(rows)) == [place for place in range(len(rows)) if place not in bad]
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
