"""Training data becomes a sketch, and what is known of drift becomes a table."""

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from headrace.cli.base.output import rows_text
from headrace.cli.base.sketch import sketch
from headrace.cli.base.tables import column_of, read_tensors, read_times
from headrace.cli.drift import DRIFT_COLUMNS, headline, hours_text, live_lines
from headrace.control.telemetry.drift_files import DriftFiles
from headrace.core import (
    Datatype,
    FailedPreconditionError,
    InvalidArgumentError,
    ModelSignature,
    TensorSpec,
)
from tests.unit.cli.conftest import Command


def signature(
    *inputs: tuple[str, Datatype, tuple[int, ...]], batched: bool = True
) -> ModelSignature:
    specs = tuple(TensorSpec(name=n, datatype=d, shape=s) for n, d, s in inputs)
    output = TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1,) if batched else (1,))
    return ModelSignature(inputs=specs, outputs=(output,), batched=batched)


TABLE = signature(("x", Datatype.FP32, (-1, 2)))
NAMED = signature(("age", Datatype.FP32, (-1,)), ("city", Datatype.BYTES, (-1, 1)))


def csv_file(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "train.csv"
    path.write_text("\n".join(lines))
    return path


def test_columns_are_the_only_input_in_their_order(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "age,income", "1,10", "2,", "3,30")

    tensors, made_of = read_tensors(path, TABLE)

    assert tensors["x"].shape == (3, 2)
    assert np.isnan(tensors["x"][1, 1])
    assert made_of == {"x": ("age", "income")}


def test_columns_that_are_named_like_inputs_and_outputs_are_those(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "city,age,y", "Ulm,1,0.5", ",2,0.7")

    tensors, _ = read_tensors(path, NAMED)

    assert tensors["city"].tolist() == [["Ulm"], [""]]
    assert tensors["age"].tolist() == [[1.0], [2.0]]
    assert tensors["y"].tolist() == [[0.5], [0.7]]


def test_named_columns_leave_the_others_out(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "a,label,b", "1,9,2")

    assert read_tensors(path, TABLE, columns=["b", "a"])[0]["x"].tolist() == [[2.0, 1.0]]


@pytest.mark.parametrize(
    ("lines", "columns", "text"),
    [
        (("a,b,c", "1,2,3"), [], "select columns with --columns"),
        (("a,b", "1,2"), ["a", "z"], "has no column 'z'"),
        (("a,b", "1,2,3"), [], "row 2: 3 values under 2 names"),
        (("a,b",), [], "has no rows"),
        (("a,b", "1,x"), [], "column 2 is text"),
    ],
    ids=["width", "unknown", "ragged", "empty", "text"],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, lines: tuple[str, ...], columns: list[str], text: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        read_tensors(csv_file(tmp_path, *lines), TABLE, columns=columns)


def test_an_input_without_a_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no column for input city"):
        read_tensors(csv_file(tmp_path, "age,z", "1,2"), NAMED)


def test_arrays_are_taken_by_name(tmp_path: Path) -> None:
    path = tmp_path / "train.npz"
    np.savez(path, x=np.zeros((4, 2)), y=np.ones(4))
    lone = tmp_path / "x.npy"
    np.save(lone, np.zeros((3, 2)))
    other = tmp_path / "other.npz"
    np.savez(other, z=np.zeros(3))

    assert {name: array.shape for name, array in read_tensors(path, TABLE)[0].items()} == {
        "x": (4, 2),
        "y": (4,),
    }
    assert read_tensors(lone, TABLE)[0]["x"].shape == (3, 2)
    with pytest.raises(InvalidArgumentError, match="no input or output named z"):
        read_tensors(other, TABLE)
    (tmp_path / "bad.npz").write_bytes(b"nonsense")
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        read_tensors(tmp_path / "bad.npz", TABLE)


def test_parquet_needs_pyarrow_or_a_file_that_is_parquet(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(b"nonsense")

    with pytest.raises((FailedPreconditionError, InvalidArgumentError)):
        read_tensors(path, TABLE)


def test_what_a_parquet_column_lacks_is_missing() -> None:
    numbers = column_of([1, None, 1])
    texts = column_of(["a", None, b"c"])

    assert numbers.tolist()[::2] == [1.0, 1.0]
    assert np.isnan(numbers[1])
    assert texts.tolist() == ["a", "", b"c"]


def test_a_feature_is_a_row() -> None:
    feature = {
        "name": "x[3]",
        "label": "age",
        "role": "input",
        "state": "drifted",
        "rows": 300,
        "psi": 0.5,
        "js": None,
        "ks": 0.25,
        "evidence": 4.04,
        "needed": 3.6,
        "missing_ratio": 0.012,
        "out_of_range_ratio": None,
    }

    bare = feature | {"label": "", "needed": 0.0}
    lines = rows_text([feature, bare], DRIFT_COLUMNS).plain.splitlines()[1:]
    cells, bare_cells = (re.split(r"\s{2,}", line) for line in lines)

    assert cells[:4] == ["x[3] (age)", "input", "drifted", "300"]
    assert cells[4:] == ["0.5", "-", "0.25", "4.0 of 3.6", "1.2 %", "-"]
    assert (bare_cells[0], bare_cells[7]) == ("x[3]", "-")


def test_a_sketch_names_features_as_replicas_do_and_labels_them_as_the_file(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    lines = [f"{a:.4f},{b:.4f}" for a, b in random.normal(size=(200, 2))]

    made = sketch(csv_file(tmp_path, "age,income", *lines), TABLE)

    bins = [one["bins"] for one in made["features"]]
    assert [(one["name"], one["label"]) for one in bins] == [("x[0]", "age"), ("x[1]", "income")]
    assert (made["source"], made["rows"]) == ("data", 200)


def test_times_are_no_input_and_two_days_of_them_make_hours(tmp_path: Path) -> None:
    moments = [f"2026-11-{20 + i // 48:02}T{i // 2 % 24:02}:{i % 2 * 30:02}:00" for i in range(150)]
    lines = [f"{i},{moment},{i % 9}.5" for i, moment in enumerate(moments)]
    path = csv_file(tmp_path, "a,when,b", *lines)

    hourly = sketch(path, TABLE, time_column="when")
    plain = sketch(csv_file(tmp_path, "a,b", *(f"{i},{i}" for i in range(150))), TABLE)

    assert [one["bins"]["label"] for one in hourly["features"]] == ["a", "b"]
    assert hourly["covers_s"] == 149 * 1800.0
    assert [sum(hour) for hour in hourly["features"][0]["hours"]][:4] == [8, 8, 8, 6]
    assert (plain["covers_s"], plain["features"][0]["hours"]) == (0.0, [])


@pytest.mark.parametrize(
    "cells",
    [["2026-11-29", "soon"], ["1", ""], ["1", "1764430000000"]],
    ids=["text", "missing", "milliseconds"],
)
def test_what_is_no_time_is_refused(tmp_path: Path, cells: list[str]) -> None:
    with pytest.raises(InvalidArgumentError, match="row 2: column 't' has no time; write ISO"):
        read_times(csv_file(tmp_path, "t,a", *(f"{cell},1" for cell in cells)), "t")


def test_times_are_texts_numbers_and_moments(tmp_path: Path) -> None:
    moment = datetime(2026, 11, 29, 16, tzinfo=UTC)
    texts = csv_file(tmp_path, "t", "2026-11-29T16:00:00", "2026-11-29T17:00:00+01:00")
    array = tmp_path / "t.npz"
    np.savez(array, t=np.array(["2026-11-29T16:00:00"], "datetime64[ns]"), x=np.zeros((1, 2)))

    assert read_times(texts, "t").tolist() == [moment.timestamp()] * 2
    assert read_times(array, "t").tolist() == [moment.timestamp()]
    assert read_tensors(array, TABLE, without="t")[0].keys() == {"x"}
    assert column_of([moment, moment.replace(tzinfo=None), moment.date()]).tolist() == [
        moment.timestamp(),
        moment.timestamp(),
        moment.timestamp() - 16 * 3600,
    ]
    with pytest.raises(InvalidArgumentError, match="has no column 'when' of times: t"):
        read_times(texts, "when")


@pytest.mark.parametrize(
    ("is_hourly", "covers_s", "text"),
    [
        (True, 2e5, "of the same hour of the day"),
        (False, None, "the rows have no times"),
        (False, 7200.0, "the rows cover 2.0 h; 48 h are needed"),
    ],
)
def test_it_is_said_whether_hours_are_told_apart(
    *, is_hourly: bool, covers_s: float | None, text: str
) -> None:
    assert text in hours_text({"is_hourly": is_hourly, "covers_s": covers_s})


def test_a_model_that_takes_one_row_has_a_sketch_too(tmp_path: Path) -> None:
    lines = [f"{i},{i % 7}" for i in range(200)]
    one_row = signature(("x", Datatype.FP32, (2,)), batched=False)

    made = sketch(csv_file(tmp_path, "a,b", *lines), one_row)

    assert [one["bins"]["name"] for one in made["features"]] == ["x[0]", "x[1]"]


def test_too_few_rows_make_no_sketch(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="has 1 rows; the minimum is 100"):
        sketch(csv_file(tmp_path, "a,b", "1,2"), TABLE)


@pytest.mark.slow
def test_a_model_is_pushed_with_its_training_data(
    headrace: Command, home: Path, model: Path, tmp_path: Path
) -> None:
    names = ",".join(f"c{i}" for i in range(32))
    rows = np.random.default_rng(1).normal(size=(150, 32))
    path = csv_file(tmp_path, names, *(",".join(f"{v:.4f}" for v in row) for row in rows))

    pushed = headrace("models", "push", "fraud", model, "--reference", path)
    kept = DriftFiles(home).reference("fraud:1")
    headrace("models", "rm", "fraud:1")

    assert pushed.status == 0
    assert kept is not None
    assert (kept.rows, len(kept.features)) == (150, 32)
    assert DriftFiles(home).reference("fraud:1") is None


def test_an_endpoint_is_shown_where_no_command_is_named(headrace: Command) -> None:
    assert "no system runs" in headrace("drift", "fraud").err
    assert "no system runs" in headrace("drift", "show", "reference").err
    assert "no system runs" in headrace("drift", "reference", "reset", "fraud").err


def test_live_scores_are_told_by_window() -> None:
    scores = [
        {"seconds": 3600.0, "rows": 20, "accuracy": 0.95, "mean_error": None},
        {"seconds": 604_800.0, "rows": 50, "accuracy": None, "mean_error": 1.25},
    ]

    assert live_lines(scores) == [
        "last hour: 95.0% right, of 20 labelled",
        "last week: 1.25 off, of 50 labelled",
    ]


REFERENCE = {"source": "data", "rows": 500, "at": 1.0, "collected_rows": 0, "window_rows": 2000}


@pytest.mark.parametrize(
    ("state", "reference", "text"),
    [
        ("off", None, "add `drift: {}` to it"),
        ("collecting", None, "has 0 rows for its reference"),
        ("collecting", REFERENCE | {"rows": 0, "collected_rows": 7}, "has 7 of 2000 rows"),
        ("collecting", REFERENCE, "not enough rows to compare yet"),
        ("ok", REFERENCE, "no drift from the reference (500 rows of data)"),
        ("ok", REFERENCE | {"source": "window"}, "500 rows of the first requests"),
        ("drifted", REFERENCE, "age drifted: 9% below 3"),
    ],
    ids=["off", "nothing", "window", "few", "ok", "first", "drifted"],
)
def test_one_line_says_what_it_means(
    state: str, reference: dict[str, object] | None, text: str
) -> None:
    features = [{"name": "age", "state": state, "why": "9% below 3"}]

    told = headline({"endpoint": "e", "state": state, "reference": reference, "features": features})

    assert text in told
