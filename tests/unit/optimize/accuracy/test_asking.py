"""Every example gets its own answer, whoever else fails, and whenever time is up."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headrace.core import (
    Array,
    RuntimeFailedError,
    Tensors,
)
from headrace.optimize.accuracy import Examples, ModelAnswers
from headrace.optimize.accuracy import inference as asking
from headrace.optimize.accuracy.examples import stacked_rows
from headrace.optimize.accuracy.inference import answers
from headrace.runtimes import LoadOptions
from headrace.runtimes.onnx.runtime import OnnxRuntime
from headrace.testing import models

Run = Callable[[Tensors], Tensors]


def numbered(n: int, *, batched: bool = True) -> Examples:
    x = np.arange(n, dtype=np.float32)[:, None]
    return Examples(inputs=stacked_rows({"x": x}, has_batch_axis=True), batched=batched)


def double(inputs: Tensors) -> Tensors:
    return {"y": inputs["x"] * 2, "big": np.repeat(inputs["x"], 9, axis=1)}


def values(found: ModelAnswers, output: str = "y") -> list[float | None]:
    return [None if row is None else float(row.reshape(-1)[0]) for row in found.rows[output]]


@pytest.mark.parametrize("threads", [1, 3])
def test_answers_come_in_the_examples_order(threads: int) -> None:
    found = answers(double, numbered(50), threads=threads)

    assert values(found) == [2.0 * i for i in range(50)]
    assert found.failures == {}
    assert found.stopped == ""


def test_several_threads_ask_at_once() -> None:
    together = threading.Barrier(2)

    def run(inputs: Tensors) -> Tensors:
        together.wait(timeout=30)
        return double(inputs)

    found = answers(run, numbered(4), threads=2, max_rows=1)

    assert values(found) == [0.0, 2.0, 4.0, 6.0]


def failing_on(wrong: float) -> Run:
    def run(inputs: Tensors) -> Tensors:
        if (inputs["x"] == wrong).any():
            raise RuntimeFailedError("it overflows")
        return double(inputs)

    return run


@pytest.mark.parametrize("batched", [True, False])
def test_an_example_that_fails_spoils_no_other_one(
    batched: bool,  # noqa: FBT001  # a parameter
) -> None:
    found = answers(failing_on(3.0), numbered(20, batched=batched))

    assert found.failures == {3: "it overflows"}
    assert [i for i, value in enumerate(values(found)) if value is None] == [3]


def test_answers_of_another_number_of_rows_are_failures() -> None:
    found = answers(lambda inputs: {"y": np.zeros((7, 1))}, numbered(3))  # noqa: ARG005  # fixed

    assert found.failures[0] == "output 'y' has the shape [7, 1] for 1 rows"
    assert found.rows == {}


def test_time_that_is_up_leaves_the_rest_unasked() -> None:
    ticks = iter(range(100))

    found = answers(double, numbered(40), deadline=2.0, clock=lambda: float(next(ticks)))

    assert int(found.has("y").sum()) == 24
    assert found.stopped == "the time limit was reached after 24 of 40 examples"


def test_parts_can_be_asked_one_after_the_other() -> None:
    some = answers(double, numbered(10), only=np.array([7, 2]))
    rest = answers(double, numbered(10), only=np.array([0, 1, 3, 4, 5, 6, 8, 9]))

    assert [i for i, value in enumerate(values(some)) if value is not None] == [2, 7]
    assert values(some.merged(rest)) == [2.0 * i for i in range(10)]
    assert values(ModelAnswers(n=10, rows={}).merged(some)) == values(some)


def test_large_outputs_are_kept_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "MAX_CACHED_BYTES", 40 * 5)
    monkeypatch.setattr(asking, "SMALL_ELEMENTS", 4)

    found = answers(double, numbered(30))

    assert int(found.has("y").sum()) == 30
    assert int(found.has("big").sum()) == 5


def test_rows_of_different_shape_are_not_stacked() -> None:
    def run(inputs: Tensors) -> Tensors:
        return {"y": np.zeros((1, 1 + int(inputs["x"][0, 0] > 0)), np.float32)}

    found = answers(run, numbered(3), max_rows=1)

    assert found.stacked("y", np.array([0, 1])) is None
    stacked = found.stacked("y", np.array([1, 2]))
    assert stacked is not None
    assert stacked.shape == (2, 2)


def test_a_real_model_answers_ragged_rows_as_it_does_alone(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(models.encoder())
    model = OnnxRuntime().load(path, LoadOptions())
    rng = np.random.default_rng(0)
    inputs: list[Tensors] = []
    for length in (3, 5, 3, 9, 5, 3):
        ids: Array = rng.integers(0, 50, (1, length))
        inputs.append({"input_ids": ids, "attention_mask": np.ones_like(ids)})

    found = answers(model.run, Examples(inputs=inputs), threads=2)

    for index, request in enumerate(inputs):
        row = found.rows["embedding"][index]
        assert row is not None
        assert row == pytest.approx(model.run(request)["embedding"][0], abs=1e-5)
    assert [None if r is None else r.shape for r in found.rows["tokens"]][:2] == [(3, 8), (5, 8)]
    model.close()
