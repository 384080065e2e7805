"""Which request is timed?"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from headrace.core import Datatype, ModelSignature, Tensors, TensorSpec
from headrace.optimize.search.inputs import (
    served_run,
    shapes_text,
    timed_request,
)

IDS = TensorSpec(name="ids", datatype=Datatype.INT64, shape=(-1, -1))
TEXT = ModelSignature(inputs=(IDS,), outputs=(), batched=True)
FIXED = ModelSignature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(1, 3)),), outputs=(), batched=False
)


def test_an_example_is_repeated_to_rows_and_length() -> None:
    made = timed_request({"ids": np.array([[1, 2, 3]])}, TEXT, rows=2, length=5)

    assert made["ids"].tolist() == [[1, 2, 3, 1, 2], [1, 2, 3, 1, 2]]


def test_a_longer_example_is_cut() -> None:
    made = timed_request({"ids": np.array([[1, 2, 3]])}, TEXT, rows=1, length=2)

    assert made["ids"].tolist() == [[1, 2]]


def test_without_a_length_examples_stay_as_they_are() -> None:
    made = timed_request({"ids": np.array([[1, 2, 3]])}, TEXT, rows=1, length=None)

    assert made["ids"].tolist() == [[1, 2, 3]]


def test_a_model_that_is_not_batched_is_asked_as_it_is() -> None:
    x = np.ones((1, 3), np.float32)

    assert timed_request({"x": x}, FIXED, rows=7, length=9)["x"].shape == (1, 3)


def test_a_scalar_stays_one() -> None:
    rate = TensorSpec(name="sr", datatype=Datatype.INT64, shape=())
    signature = ModelSignature(inputs=(rate,), outputs=(), batched=False)

    made = timed_request({"sr": np.array(16000)}, signature, rows=1, length=9)

    assert made["sr"].shape == ()


def test_an_empty_axis_stays_empty() -> None:
    made = timed_request({"ids": np.zeros((1, 0), np.int64)}, TEXT, rows=2, length=5)

    assert made["ids"].shape == (2, 0)


def test_only_an_axis_besides_the_batch_is_a_length() -> None:
    row = TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 3))

    assert TEXT.has_variable_size
    assert not ModelSignature(inputs=(row,), outputs=(), batched=True).has_variable_size
    assert shapes_text({"ids": np.zeros((1, 5))}) == "ids [1, 5]"


class Counting:
    """Answers the sum of each row, and how many rows came with it."""

    concurrent = True

    def __init__(self, *, batched: bool) -> None:
        self.signature = replace(TEXT, batched=batched)

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        del outputs
        ids = inputs["ids"]
        return {"sum": ids.sum(axis=1), "company": np.full(len(ids), len(ids))}

    def close(self) -> None:
        """Nothing."""


def test_what_lost_batching_runs_each_row_of_a_batch_by_itself() -> None:
    request = {"ids": np.arange(12).reshape(4, 3)}
    together = served_run(Counting(batched=True), TEXT)(request)
    alone = served_run(Counting(batched=False), TEXT)(request)
    never = served_run(Counting(batched=False), replace(TEXT, batched=False))(request)

    assert alone["sum"].tolist() == together["sum"].tolist() == [3, 12, 21, 30]
    assert (together["company"][0], alone["company"][0], never["company"][0]) == (4, 1, 4)
