"""Which rows share a run of the model, and what each of them gets."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from headrace.core import Datatype, Tensors, UnavailableError
from headrace.jobs.columns import Fed
from headrace.jobs.results import Answerer, Answers, StoppedError
from tests.unit.jobs.parts import Fake, scorer, signature, spec

TEXT = signature([spec("t", Datatype.BYTES, -1)], [spec("n", Datatype.INT64, -1)])
TOKENS = signature([spec("t", Datatype.INT64, -1, -1)], [spec("n", Datatype.INT64, -1)])


def lengths(inputs: Tensors) -> Tensors:
    t = inputs["t"]
    if t.ndim == 1:
        return {"n": np.array([len(row) for row in t], np.int64)}
    return {"n": np.full(t.shape[0], t.shape[1], np.int64)}


def texts(*sizes: int, bad: dict[int, str] | None = None) -> Fed:
    rows = np.array([b"a" * size for size in sizes], np.object_)
    return Fed(rows=len(sizes), dense={"t": rows}, bad=bad or {})


def by_row(answers: Answers) -> dict[int, int]:
    return {
        int(place): int(value)
        for places, outputs in answers.parts
        for place, value in zip(places, outputs["n"], strict=True)
    }


def test_texts_of_near_lengths_share_a_run_and_answers_find_their_rows() -> None:
    model = Fake(TEXT, lengths)
    found = Answerer(scorer=scorer(model), run_rows=2).answer(texts(9, 1, 8, 2, 7), ["n"])
    assert [[len(row) for row in run["t"]] for run in model.runs] == [[1, 2], [7, 8], [9]]
    assert by_row(found) == {0: 9, 1: 1, 2: 8, 3: 2, 4: 7}


def test_a_bad_row_is_not_run() -> None:
    model = Fake(TEXT, lengths)
    found = Answerer(scorer=scorer(model), run_rows=9).answer(texts(3, 4, 5, bad={1: "bad"}), ["n"])
    assert by_row(found) == {0: 3, 2: 5}
    assert found.errors == {1: "bad"}


def test_rows_of_equal_shapes_only_share_a_run() -> None:
    model = Fake(TOKENS, lengths)
    rows = [np.zeros(size, np.int64) for size in (3, 1, 3, 3, 2)]
    found = Answerer(scorer=scorer(model), run_rows=2).answer(
        Fed(rows=5, ragged={"t": rows}), ["n"]
    )
    assert [run["t"].shape for run in model.runs] == [(1, 1), (1, 2), (2, 3), (1, 3)]
    assert by_row(found) == {0: 3, 1: 1, 2: 3, 3: 3, 4: 2}


def test_a_model_without_rows_runs_one_at_a_time() -> None:
    described = signature(
        [spec("x", Datatype.FP32, 2)], [spec("n", Datatype.FP32, 1)], batched=False
    )
    model = Fake(described, lambda inputs: {"n": inputs["x"].sum(keepdims=True)})
    fed = Fed(rows=2, dense={"x": np.array([[1, 2], [3, 4]], np.float32)})
    found = Answerer(scorer=scorer(model), run_rows=1).answer(fed, ["n"])
    assert [outputs["n"].tolist() for _, outputs in found.parts] == [[3.0], [7.0]]


def test_what_is_away_is_waited_for_and_then_given_up() -> None:
    waits: list[float] = []
    calls = iter([UnavailableError("away"), UnavailableError("away"), None])

    def sometimes(inputs: Tensors) -> Tensors:
        error = next(calls, None)
        if error is not None:
            raise error
        return lengths(inputs)

    answerer = Answerer(scorer=scorer(Fake(TEXT, sometimes)), run_rows=4, sleep=waits.append)
    assert by_row(answerer.answer(texts(1, 2), ["n"])) == {0: 1, 1: 2}
    assert waits == [0.2, 0.5]

    def never(_: Tensors) -> Tensors:
        raise UnavailableError("away")

    answerer = Answerer(scorer=scorer(Fake(TEXT, never)), run_rows=4, sleep=waits.append)
    with pytest.raises(UnavailableError, match="away"):
        answerer.answer(texts(1), ["n"])
    assert len(waits) == 2 + 6


def test_a_stop_is_heard_before_the_next_run() -> None:
    model = Fake(TEXT, lengths)
    answerer = Answerer(scorer=scorer(model), run_rows=1, is_stopped=lambda: len(model.runs) == 2)
    with pytest.raises(StoppedError):
        answerer.answer(texts(1, 2, 3, 4), ["n"])
    assert len(model.runs) == 2


def test_runs_beside_each_other_come_to_the_same() -> None:
    fed = texts(*range(1, 60))
    with ThreadPoolExecutor(4) as pool:
        answerer = Answerer(scorer=scorer(Fake(TEXT, lengths)), run_rows=3, pool=pool)
        found = answerer.answer(fed, ["n"])
    assert by_row(found) == {i: i + 1 for i in range(59)}
