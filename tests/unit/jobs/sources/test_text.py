"""CSV and JSON lines: a row that cannot be read costs itself only."""

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Datatype, InvalidArgumentError
from headrace.jobs.messages import Shard, Sizes
from headrace.jobs.sources import json_lines
from headrace.jobs.sources.csv import CsvSource, head_of, parse
from headrace.jobs.sources.json_lines import JsonLinesSource
from headrace.jobs.sources.source import ReadRequest

NAMES = ["id", "a", "ok", "t"]
WANTED = ReadRequest(
    columns=["t", "a", "ok", "id"],
    rows=100,
    datatypes={"a": Datatype.FP32, "ok": Datatype.BOOL},
)
SIZES = Sizes(shard_rows=10, shard_bytes=40, run_rows=4, window_rows=2, buffer_bytes=1000)


def parsed(data: bytes, **numbers: Datatype) -> tuple[pl.DataFrame, dict[int, str]]:
    wanted = ReadRequest(columns=["id", *numbers, "t"], rows=9, datatypes=numbers)
    return parse(data, NAMES, wanted, separator=",")


def test_numbers_are_read_and_keys_stay_text() -> None:
    frame, broken = parsed(b'007,1.5,1,"x\ny"\n8,,0,z\n', a=Datatype.FP32)
    assert broken == {}
    assert frame.rows() == [("007", 1.5, "x\ny"), ("8", None, "z")]


def test_a_bad_number_a_long_row_and_a_bad_text_are_told_by_row() -> None:
    data = b"1,abc,true,x\n2,2.5,no,y\n3,1,1,y,5\n4, 1 ,FALSE,\xff\n5,,1,q\n"
    frame, broken = parse(data, NAMES, WANTED, separator=",")
    assert broken == {
        0: "column 'a': 'abc' is no FP32",
        1: "column 'ok': 'no' is no BOOL",
        2: "has 5 values, and the header has 4 names",
        3: "column 't' is not UTF-8",
    }
    assert frame["a"].to_list() == [None, 2.5, 1.0, 1.0, None]
    assert frame["ok"].to_list() == [True, None, True, False, True]


@given(values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8))
def test_whole_numbers_keep_every_digit(values: list[int]) -> None:
    data = "".join(f"k,{value},1,t\n" for value in values).encode()
    frame, broken = parsed(data, a=Datatype.INT64)
    assert broken == {}
    assert frame["a"].to_list() == values


@given(values=st.lists(st.floats(allow_nan=False, width=64), min_size=1, max_size=8))
def test_fractions_are_read_as_json_is(values: list[float]) -> None:
    data = "".join(f"k,{value!r},1,t\n" for value in values).encode()
    frame, broken = parsed(data, a=Datatype.FP32)
    assert broken == {}
    assert frame["a"].to_list() == values


def test_files_have_to_have_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,a\n1,2\n")
    (tmp_path / "b.csv").write_text("id,b\n1,2\n")
    source = CsvSource([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")])
    with pytest.raises(InvalidArgumentError, match=r"b.csv begins with other names"):
        source.cut(SIZES, ["id"])


@pytest.mark.parametrize("text", ["", "\n1,2\n", "a,a\n", "a,,b\n", '"open\n'])
def test_a_file_without_names_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match=r"column names|two columns|is empty"):
        head_of(str(path))


def read(source: CsvSource | JsonLinesSource, wanted: ReadRequest) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for shard in source.cut(SIZES, wanted.columns):
        for part in source.read(shard, wanted):
            assert part.frame.height <= wanted.rows
            rows += part.frame.rows()
    return rows


def test_shards_of_a_file_with_a_mark_in_front_are_all_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = "".join(f'{i},{i / 2},"a\nb"\n' for i in range(50))
    path.write_bytes(b"\xef\xbb\xbf" + f"id,a,t\n{lines}".encode())
    wanted = ReadRequest(columns=["id", "a"], rows=3, datatypes={"a": Datatype.FP64})
    source = CsvSource([str(path)])
    assert len(source.cut(SIZES, ["id"])) > 3
    assert read(source, wanted) == [(str(i), i / 2) for i in range(50)]


def test_json_lines_tell_their_columns_by_their_first_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"id":1,"x":[1,2.5],"t":null}\n\n{"id":2,"t":"a","n":[[1],[2]]}\n{"ok":true}\n'
    )
    found = JsonLinesSource([str(path)]).schema({})
    assert dict(zip(found.names, found.types, strict=True)) == {
        "id": pa.int64(),
        "x": pa.large_list(pa.float64()),
        "t": pa.large_string(),
        "n": pa.large_list(pa.large_list(pa.int64())),
        "ok": pa.bool_(),
    }


def test_a_bad_json_line_costs_itself_only() -> None:
    types = {"id": pl.Int64(), "x": pl.List(pl.Float64), "t": pl.String()}
    data = (
        b'{"id":1,"x":[1,2],"t":"a"}\n{"id":2,"x":[1\n[3]\n{"id":4.5}\n{"id":5,"x":["q"]}\n'
        b'{"id":true,"x":null}\n{"id":7,"x":[1],"t":3}\n{"id":8,"x":[3],"t":"\\u00e9"}'
    )
    frame, broken = json_lines.parse(data, types)
    assert sorted(broken) == [1, 2, 3, 4, 5, 6]
    assert broken[2] == "is no JSON object"
    assert broken[3] == "column 'id': '4.5' is no whole number"
    assert broken[4] == "column 'x': \"['q']\" is no list of numbers"
    assert frame.row(0) == (1, [1.0, 2.0], "a")
    assert frame.row(7) == (8, [3.0], "é")


def test_shards_of_json_lines_are_all_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"id": {i}, "x": [{i}, 0.5]}}\n' for i in range(40)))
    source = JsonLinesSource([str(path)])
    found = read(source, ReadRequest(columns=["id", "x"], rows=2))
    assert found == [(i, [float(i), 0.5]) for i in range(40)]


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    shard = Shard(number=0, file=str(tmp_path / "no.csv"), begin=0, end=1, fingerprint="")
    with pytest.raises(InvalidArgumentError, match=r"no.csv cannot be read: No such file"):
        list(CsvSource([shard.file]).read(shard, WANTED))
