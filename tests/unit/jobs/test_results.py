"""Answers of a job's model, and their columns."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from headrace.core import (
    Array,
    Datatype,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    UnavailableError,
)
from headrace.jobs.columns import TensorWindow
from headrace.jobs.messages import ColumnPlan, ErrorsTo
from headrace.jobs.results import (
    ColumnLayout,
    JobStoppedError,
    WindowResults,
    WindowRunner,
    keys_of,
)
from tests.unit.jobs.parts import Fake, scorer, signature, spec


def layout(described: ModelSignature) -> ColumnLayout:
    return ColumnLayout(
        plan=ColumnPlan(inputs=[], keys={}, outputs=[one.name for one in described.outputs]),
        signature=described,
        version="7",
        errors=ErrorsTo.COLUMN,
        keys=pa.schema([]),
    )


def rows_of(described: ModelSignature, answers: WindowResults) -> list[dict[str, Any]]:
    made, _ = layout(described).table(pa.table({}), answers)
    assert made.schema == layout(described).schema
    found: list[dict[str, Any]] = made.to_pylist()
    return found


def answered(rows: int, *parts: tuple[list[int], Tensors], **errors: str) -> WindowResults:
    return WindowResults(
        rows=rows,
        parts=[(np.array(places), outputs) for places, outputs in parts],
        errors={int(place[1:]): text for place, text in errors.items()},
    )


def outputs(
    *shape: int,
    datatype: Datatype = Datatype.FP32,
    **more: Any,  # noqa: ANN401  # any field
) -> ModelSignature:
    return signature([], [spec("y", datatype, *shape)], **more)


def floats(*values: Any) -> Array:  # noqa: ANN401  # numbers, nested or not
    return np.array(values, np.float32)


def test_parts_in_any_order_find_their_rows_and_errors_are_null() -> None:
    found = rows_of(
        outputs(-1, 2),
        answered(3, ([2], {"y": floats([5, 6])}), ([0], {"y": floats([1, 2])}), _1="bad"),
    )
    assert found == [
        {"y": [1, 2], "model_version": "7", "error": None},
        {"y": None, "model_version": "7", "error": "bad"},
        {"y": [5, 6], "model_version": "7", "error": None},
    ]


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((-1,), pa.float32()),
        ((-1, 1), pa.float32()),
        ((-1, 3), pa.list_(pa.float32(), 3)),
        ((-1, 2, 3), pa.list_(pa.list_(pa.float32(), 3), 2)),
        ((-1, -1), pa.large_list(pa.float32())),
    ],
)
def test_one_value_is_a_scalar_and_several_are_lists(
    shape: tuple[int, ...], kind: pa.DataType
) -> None:
    assert layout(outputs(*shape)).schema.field("y").type == kind
    sizes = [2 if size == -1 else size for size in shape]
    value = np.arange(np.prod(sizes), dtype=np.float32).reshape(sizes)
    found = rows_of(outputs(*shape), answered(2, ([0, 1], {"y": value})))
    assert [row["y"] for row in found] == value.reshape([2, *shape[1:]] if kind != pa.float32()
                                                        else [2]).tolist()  # fmt: skip


def test_rows_of_different_lengths_are_lists() -> None:
    found = rows_of(
        outputs(-1, -1),
        answered(3, ([0, 2], {"y": floats([1, 2], [3, 4])}), ([1], {"y": floats([5])})),
    )
    assert [row["y"] for row in found] == [[1, 2], [5], [3, 4]]


def test_a_shape_that_the_model_does_not_declare_is_its_failure() -> None:
    with pytest.raises(RuntimeFailedError, match=r"rows of the shapes \[\[3\]\], and not \[2\]"):
        rows_of(outputs(-1, 2), answered(1, ([0], {"y": floats([1, 2, 3])})))


def test_class_names_stand_beside_the_values() -> None:
    described = outputs(-1, 2, labels={"y": ("no", "yes")})
    found = rows_of(described, answered(3, ([0, 2], {"y": floats([0.9, 0.1], [0, 1])}), _1="bad"))
    assert [row["y_label"] for row in found] == ["no", None, "yes"]


def test_texts_that_are_none_cost_their_row() -> None:
    values = np.array([b"\xc3\xa9", b"\xff", "plain"], np.object_)
    found = rows_of(outputs(-1, datatype=Datatype.BYTES), answered(3, ([0, 1, 2], {"y": values})))
    assert [(row["y"], row["error"]) for row in found] == [
        ("é", None),
        (None, "output 'y' is not UTF-8"),
        ("plain", None),
    ]


def test_no_rows_and_no_answers_have_the_same_columns() -> None:
    assert rows_of(outputs(-1, 2), answered(0)) == []
    found = rows_of(outputs(-1, 2), answered(1, _0="bad"))
    assert found == [{"y": None, "model_version": "7", "error": "bad"}]


def test_a_model_without_rows_loses_its_first_axis_of_one() -> None:
    described = outputs(1, 2, batched=False)
    parts = [([i], {"y": floats([i, i])}) for i in range(2)]
    assert [row["y"] for row in rows_of(described, answered(2, *parts))] == [[0, 0], [1, 1]]


def test_keys_keep_their_types_and_categories_are_texts() -> None:
    frame = pl.DataFrame({"a": [1], "b": ["x"]}, schema={"a": pl.UInt8, "b": pl.Categorical})
    found = keys_of(frame, ColumnPlan(inputs=[], keys={"k": "a", "c": "b"}, outputs=[]))
    assert found.to_pylist() == [{"k": 1, "c": "x"}]
    assert found.schema.field("k").type == pa.uint8()
    assert found.schema.field("c").type == pa.large_string()


TEXT = signature([spec("t", Datatype.BYTES, -1)], [spec("n", Datatype.INT64, -1)])
TOKENS = signature([spec("t", Datatype.INT64, -1, -1)], [spec("n", Datatype.INT64, -1)])


def lengths(inputs: Tensors) -> Tensors:
    t = inputs["t"]
    if t.ndim == 1:
        return {"n": np.array([len(row) for row in t], np.int64)}
    return {"n": np.full(t.shape[0], t.shape[1], np.int64)}


def texts(*sizes: int, bad: dict[int, str] | None = None) -> TensorWindow:
    rows = np.array([b"a" * size for size in sizes], np.object_)
    return TensorWindow(rows=len(sizes), dense={"t": rows}, bad=bad or {})


def by_row(answers: WindowResults) -> dict[int, int]:
    return {
        int(place): int(value)
        for places, outputs in answers.parts
        for place, value in zip(places, outputs["n"], strict=True)
    }


def test_texts_of_near_lengths_share_a_run_and_answers_find_their_rows() -> None:
    model = Fake(TEXT, lengths)
    found = WindowRunner(scorer=scorer(model), run_rows=2).answer(texts(9, 1, 8, 2, 7), ["n"])
    assert [[len(row) for row in run["t"]] for run in model.runs] == [[1, 2], [7, 8], [9]]
    assert by_row(found) == {0: 9, 1: 1, 2: 8, 3: 2, 4: 7}


def test_a_bad_row_is_not_run() -> None:
    model = Fake(TEXT, lengths)
    found = WindowRunner(scorer=scorer(model), run_rows=9).answer(
        texts(3, 4, 5, bad={1: "bad"}), ["n"]
    )
    assert by_row(found) == {0: 3, 2: 5}
    assert found.errors == {1: "bad"}


def test_rows_of_equal_shapes_only_share_a_run() -> None:
    model = Fake(TOKENS, lengths)
    rows = [np.zeros(size, np.int64) for size in (3, 1, 3, 3, 2)]
    found = WindowRunner(scorer=scorer(model), run_rows=2).answer(
        TensorWindow(rows=5, ragged={"t": rows}), ["n"]
    )
    assert [run["t"].shape for run in model.runs] == [(1, 1), (1, 2), (2, 3), (1, 3)]
    assert by_row(found) == {0: 3, 1: 1, 2: 3, 3: 3, 4: 2}


def test_a_model_without_rows_runs_one_at_a_time() -> None:
    described = signature(
        [spec("x", Datatype.FP32, 2)], [spec("n", Datatype.FP32, 1)], batched=False
    )
    model = Fake(described, lambda inputs: {"n": inputs["x"].sum(keepdims=True)})
    fed = TensorWindow(rows=2, dense={"x": np.array([[1, 2], [3, 4]], np.float32)})
    found = WindowRunner(scorer=scorer(model), run_rows=1).answer(fed, ["n"])
    assert [outputs["n"].tolist() for _, outputs in found.parts] == [[3.0], [7.0]]


def test_what_is_away_is_waited_for_and_then_given_up() -> None:
    waits: list[float] = []
    calls = iter([UnavailableError("away"), UnavailableError("away"), None])

    def sometimes(inputs: Tensors) -> Tensors:
        error = next(calls, None)
        if error is not None:
            raise error
        return lengths(inputs)

    answerer = WindowRunner(scorer=scorer(Fake(TEXT, sometimes)), run_rows=4, sleep=waits.append)
    assert by_row(answerer.answer(texts(1, 2), ["n"])) == {0: 1, 1: 2}
    assert waits == [0.2, 0.5]

    def never(_: Tensors) -> Tensors:
        raise UnavailableError("away")

    answerer = WindowRunner(scorer=scorer(Fake(TEXT, never)), run_rows=4, sleep=waits.append)
    with pytest.raises(UnavailableError, match="away"):
        answerer.answer(texts(1), ["n"])
    assert len(waits) == 2 + 6


def test_a_stop_is_heard_before_the_next_run() -> None:
    model = Fake(TEXT, lengths)
    answerer = WindowRunner(
        scorer=scorer(model), run_rows=1, is_stopped=lambda: len(model.runs) == 2
    )
    with pytest.raises(JobStoppedError):
        answerer.answer(texts(1, 2, 3, 4), ["n"])
    assert len(model.runs) == 2


def test_runs_beside_each_other_come_to_the_same() -> None:
    fed = texts(*range(1, 60))
    with ThreadPoolExecutor(4) as pool:
        answerer = WindowRunner(scorer=scorer(Fake(TEXT, lengths)), run_rows=3, pool=pool)
        found = answerer.answer(fed, ["n"])
    assert by_row(found) == {i: i + 1 for i in range(59)}
