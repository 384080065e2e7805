"""`headrace features push`: rows of files and streams become values, wrong ones are told."""

import io
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from headrace.cli.base.tables import MAX_LINE_BYTES
from tests.unit.cli.conftest import Command, Outcome

DEFINITIONS = """
entities:
  - {name: customer, join_key: customer_id, datatype: INT64}
feature_views:
  - name: stats
    entities: [customer]
    source: {}
    features:
      - {name: age, datatype: INT64, default: -1}
      - {name: city, datatype: BYTES}
      - {name: spend, datatype: FP32}
      - {name: is_new, datatype: BOOL}
feature_services:
  - {name: fraud, features: [stats]}
"""
NOW = datetime.now(UTC).replace(microsecond=250_000)
Push = Callable[[str | bytes], Outcome]


@pytest.fixture
def headrace(headrace: Command, tmp_path: Path) -> Command:
    (tmp_path / "features.yaml").write_text(DEFINITIONS)
    assert headrace("features", "apply").status == 0
    return headrace


@pytest.fixture
def push(headrace: Command, monkeypatch: pytest.MonkeyPatch) -> Push:
    """Push what stands on standard input."""

    def run(data: str | bytes) -> Outcome:
        content = data.encode() if isinstance(data, str) else data
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return headrace("features", "push", "stats", "-", "--json")

    return run


def row(customer: object, **changes: object) -> dict[str, object]:
    values = {"age": 33, "city": "Zürich", "spend": 0.5, "is_new": True}
    time = NOW.isoformat()
    return {"customer_id": customer, "event_timestamp": time, **values, **changes}


def lines(*rows: object) -> str:
    return "".join(f"{json.dumps(one)}\n" for one in rows)


def served(headrace: Command, customer: int) -> dict[str, object]:
    got = headrace("features", "get", "fraud", "-k", f"customer_id={customer}", "--json")
    (found,) = json.loads(got.out)["rows"]
    features: dict[str, object] = found["features"]
    return features


def test_rows_of_json_are_served(headrace: Command, push: Push) -> None:
    told = push(lines(row(1), row(2, age=None, spend=1), row(3)).replace("\n", "\n\n", 1))

    assert json.loads(told.out) == {
        "view": "stats",
        "rows": 3,
        "written": 3,
        "older": 0,
        "refused_rows": 0,
        "refused": [],
    }
    assert told.status == 0
    assert served(headrace, 1) == {"age": 33, "city": "Zürich", "spend": 0.5, "is_new": True}
    assert served(headrace, 2) == {"age": -1, "city": "Zürich", "spend": 1.0, "is_new": True}


def test_rows_of_csv_are_served(headrace: Command, push: Push) -> None:
    names = "customer_id,event_timestamp,city,age,spend,is_new"
    told = push(f'\ufeff{names}\n1,{NOW.isoformat()},"a, b",5,0.25,TRUE\n2,{NOW},,,nan,0\n')

    assert json.loads(told.out)["written"] == 2
    assert served(headrace, 1) == {"age": 5, "city": "a, b", "spend": 0.25, "is_new": True}
    assert served(headrace, 2) == {"age": -1, "city": "", "spend": None, "is_new": False}


def test_rows_of_parquet_are_served(headrace: Command, push: Push, tmp_path: Path) -> None:
    rows = [row(1, event_timestamp=NOW), row(2, event_timestamp=NOW, city=None)]
    pl.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")

    told = headrace("features", "push", "stats", "rows.parquet")
    again = json.loads(push((tmp_path / "rows.parquet").read_bytes()).out)

    assert told.err == "stats: 2 of 2 rows written, 0 older than the stored value, 0 rejected\n"
    assert again["written"] == 2
    assert served(headrace, 2)["city"] == ""


def test_an_older_row_never_replaces_a_newer_one(headrace: Command, push: Push) -> None:
    push(lines(row(1)))

    told = push(lines(row(1, age=1, event_timestamp=(NOW - timedelta(1)).isoformat()), row(2)))

    assert json.loads(told.out)["written"] == 1
    assert json.loads(told.out)["older"] == 1
    assert told.status == 0
    assert served(headrace, 1)["age"] == 33


def test_wrong_rows_are_told_and_the_others_written(headrace: Command, push: Push) -> None:
    without = row(1)
    del without["city"]
    wrong = [
        (row(1, age="x"), "'age' is INT64 and takes 64-bit integers, not 'x'"),
        (without, "'city' is missing"),
        (row("1"), "customer_id: '1' is not a valid customer; it must be an integer"),
        (row(1, event_timestamp="soon"), "'soon' is not a time; write it as 2026-11-27T06:00:00Z"),
        (row(1, event_timestamp="2026-01-01"), "has no time zone"),
        (row(1, event_timestamp=5), "5 is not a datetime"),
        (row(1, event_timestamp=None), "None is not a datetime"),
        (row(1, other=1), "'other' is not a column of the view; it has: customer_id"),
        ([1], "it is not a JSON object"),
    ]

    told = push(lines(row(7), *(one for one, _ in wrong)) + '{"a": \n' + lines(row(8)))

    report = json.loads(told.out)
    assert told.status == 1
    assert (report["rows"], report["written"], report["refused_rows"]) == (12, 2, 10)
    assert [one["row"] for one in report["refused"]] == list(range(2, 12))
    for (_, words), one in zip(wrong, report["refused"], strict=False):
        assert words in one["why"]
    assert "it is not JSON: " in report["refused"][-1]["why"]
    assert served(headrace, 8)["age"] == 33


def test_many_refused_rows_are_told_up_to_a_bound(headrace: Command, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(lines(*[row(1, age="x")] * 6_000))

    told = headrace("features", "push", "stats", "rows.jsonl")

    assert told.err.count(" rejected: ") == 20
    assert "and 5980 more\n" in told.err
    assert told.status == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "- has no rows"),
        (b"\n\n \n", "- has no rows"),
        (b"PAR1 and no more", "cannot be read as Parquet"),
        (b'a,b\n"1', "cannot be read as CSV"),
        (b"a,b\n\xff\n", "cannot be read as CSV"),
        (b"{" + b" " * MAX_LINE_BYTES, "a line of more than"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(push: Push, content: bytes, words: str) -> None:
    told = push(content)

    assert words in told.err
    assert told.status == 1


def test_a_row_of_csv_with_other_values_than_names_is_refused(push: Push) -> None:
    told = push("customer_id,age\n1\n")

    assert json.loads(told.out)["refused"] == [{"row": 1, "why": "it has 1 values under 2 names"}]


def test_a_view_or_file_that_is_not_there_is_told(headrace: Command) -> None:
    nobody = headrace("features", "push", "nobody", "-")
    nothing = headrace("features", "push", "stats", "none.csv")

    assert "feature view 'nobody' is not defined; defined: stats" in nobody.err
    assert "none.csv" in nothing.err
    assert (nobody.status, nothing.status) == (1, 1)


def test_a_view_without_a_file_says_that_it_is_not_materialized(headrace: Command) -> None:
    told = headrace("features", "materialize", "stats")

    assert "'stats' has no Parquet source (source.path)" in told.err
    assert told.status == 1


def test_without_a_file_of_definitions_one_is_shown(headrace: Command, tmp_path: Path) -> None:
    (tmp_path / "features.yaml").unlink()
    told = headrace("features", "apply")
    shown = told.err.partition("for example\n\n")[2].partition("\n\nor pass another")[0]
    (tmp_path / "features.yaml").write_text(shown)

    applied = headrace("features", "apply")

    assert told.status == 1
    assert "view customer_stats is created" in applied.err
    assert headrace("features", "apply", "other.yaml").err.startswith(
        "headrace: cannot read other.yaml"
    )


def test_help_says_how_to_begin(headrace: Command) -> None:
    told = headrace("features", "--help")

    assert "headrace features get fraud -k customer_id=17" in told.out
