"""JSON lines: columns have the types of the model's inputs, and a bad line costs itself only."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Datatype
from headrace.jobs.messages import Sizes
from headrace.jobs.sources.json_lines import JsonLinesSource
from headrace.jobs.sources.source import ReadRequest

FED = {"amount": Datatype.FP32, "n": Datatype.INT64, "user.age": Datatype.FP64}
WANTED = ReadRequest(columns=["id", *FED], rows=3, datatypes=FED)


def read(
    path: Path, data: bytes, wanted: ReadRequest = WANTED, size: int = 1000
) -> tuple[pl.DataFrame, dict[int, str]]:
    """All rows without an error, and errors by line."""
    path.write_bytes(data)
    source = JsonLinesSource([str(path)])
    sizes = Sizes(shard_rows=10, shard_bytes=size, run_rows=4, window_rows=2, buffer_bytes=1000)
    frames: list[pl.DataFrame] = []
    broken: dict[int, str] = {}
    for shard in source.cut(sizes, wanted.columns):
        for part in source.read(shard, wanted):
            assert part.line_of is not None
            broken |= {part.line_of(row): why for row, why in part.broken.items()}
            is_good = [row not in part.broken for row in range(part.frame.height)]
            frames.append(part.frame.filter(pl.Series(is_good)))
    return pl.concat(frames), broken


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_a_fraction_after_twenty_whole_numbers_is_read_as_the_model_takes_it(
    tmp_path: Path,
) -> None:
    rows: list[Any] = [{"id": i, "amount": 1, "n": 1, "user": {"age": 3}} for i in range(30)]
    rows[25] |= {"amount": 1.5}
    rows[26] |= {"n": 1.5}
    rows[27] |= {"amount": 2**70, "user": {"age": 2**63}}
    rows[28] |= {"n": 2**63}
    rows[29] |= {"user": {"age": "old"}}

    frame, broken = read(tmp_path / "rows.jsonl", lines(*rows))

    assert broken == {
        27: "column 'n': '1.5' is no whole number",
        29: "column 'n': '9223372036854775808' does not fit into 64 bits",
        30: "column 'user.age': 'old' is no number",
    }
    assert frame["amount"].dtype == frame["user.age"].dtype == pl.Float64
    assert frame["amount"].to_list()[24:] == [1.0, 1.5, float(2**70)]
    assert frame["user.age"].to_list()[-1] == float(2**63)


@pytest.mark.parametrize("bad", ['"many"', "[1]", "{}", "true"])
def test_an_odd_value_in_the_first_lines_decides_no_type(tmp_path: Path, bad: str) -> None:
    data = b'{"id": 1, "amount": %b, "n": 7, "user": {"age": 1}}\n' % bad.encode()
    data += lines(*({"id": i, "amount": i, "n": i, "user": {"age": i}} for i in range(5)))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    assert JsonLinesSource([str(path)]).schema().field("amount").type == pa.int64()

    frame, broken = read(path, data)

    assert list(broken) == [1]
    assert broken[1].startswith("column 'amount'")
    assert frame["amount"].to_list() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_fields_of_objects_are_columns_by_dotted_names(tmp_path: Path) -> None:
    data = (
        b'{"id":1,"user":{"age":3,"at":{"x":[1,2]}},"user.own":5}\n{"id":2,"user":null}\n'
        b'{"id":3}\n{"id":4,"user":{"at":null}}\n{"id":5,"user":{"at":{"x":[]},"age":null}}\n'
    )
    wanted = ReadRequest(
        columns=["user.at.x", "user.age", "user.own"],
        rows=9,
        datatypes={
            "user.at.x": Datatype.FP32,
            "user.age": Datatype.INT32,
            "user.own": Datatype.INT32,
        },
    )
    expected = [([1.0, 2.0], 3, 5), (None,) * 3, (None,) * 3, (None,) * 3, ([], None, None)]
    frame, broken = read(tmp_path / "rows.jsonl", data, wanted)
    assert (frame.rows(), broken) == (expected, {})

    frame, broken = read(tmp_path / "rows.jsonl", data + b'{"user":5}\n{"user":\n', wanted)
    assert frame.rows() == expected
    assert broken[6] == "column 'user.at.x': '5' is no object with a 'at'"
    assert broken[7].startswith("is no JSON")


def test_a_key_with_dots_comes_before_a_path_of_that_name(tmp_path: Path) -> None:
    data = lines({"id": 1, "amount": 0, "n": 0, "user": {"age": 1}, "user.age": 2})
    frame, broken = read(tmp_path / "rows.jsonl", data)
    assert (frame["user.age"].to_list(), broken) == ([2.0], {})


def test_of_equal_keys_the_last_counts_whatever_else_the_lines_hold(tmp_path: Path) -> None:
    twice = b'{"id":1,"amount":1,"amount":2,"n":3,"user":{"age":4},"user":{"age":5,"age":6}}\n'
    for more in (b"", b"{\n"):
        frame, _ = read(tmp_path / "rows.jsonl", twice + more)
        assert frame.rows() == [(1, 2.0, 3, 6.0)]


def test_keys_of_several_kinds_are_texts(tmp_path: Path) -> None:
    some = {"amount": 1, "n": 1, "user": {"age": 1}}
    data = lines(*({"id": key, **some} for key in (1, "a", 2.5, None)))
    frame, broken = read(tmp_path / "rows.jsonl", data)
    assert (frame["id"].to_list(), broken) == (["1", "a", "2.5", None], {})


BAD = st.sampled_from(
    [
        b"{",
        b"[1]",
        b"3",
        b'{"id":1}{"id":2}',
        b'{"id":"\xff"}',
        b'{"amount":"x"}',
        b"nul",
        b'{"n":1}}',
    ]
)
GOOD = st.fixed_dictionaries(
    {"id": st.integers(0, 99)},
    optional={
        "amount": st.none() | st.integers(-9, 9) | st.floats(-1e9, 1e9),
        "n": st.none() | st.integers(-(2**63), 2**63 - 1),
        "user": st.none() | st.fixed_dictionaries({}, optional={"age": st.integers(0, 99)}),
        "text": st.text(max_size=5),
    },
)


@given(
    rows=st.lists(GOOD | BAD, max_size=12),
    size=st.integers(1, 100),
    ending=st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
)
def test_bad_lines_cost_themselves_only(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], size: int, ending: bytes
) -> None:
    first = {"id": 0, "amount": 0, "n": 0, "user": {"age": 0}}
    texts = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in [first, *rows]]
    good = [row for row in [first, *rows] if isinstance(row, dict)]
    per_row = ending.count(b"\n")

    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    frame, broken = read(path, ending.join(texts) + ending, size=size)

    assert sorted(broken) == [
        1 + at * per_row for at, row in enumerate([first, *rows]) if isinstance(row, bytes)
    ]
    assert frame.rows() == [
        (row["id"], row.get("amount"), row.get("n"), (row.get("user") or {}).get("age"))
        for row in good
    ]
