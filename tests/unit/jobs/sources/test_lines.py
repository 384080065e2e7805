"""Text is cut at ends of lines only, and no byte is lost."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Array, InvalidArgumentError
from headrace.jobs.sources import json_lines
from headrace.jobs.sources.csv import find_rows
from headrace.jobs.sources.json_lines import cut_file

CELLS = st.text(st.sampled_from('ab,"\n\r é'), max_size=6)
TABLES = st.lists(st.lists(CELLS, min_size=2, max_size=2), max_size=30)


def csv_rows(data: bytes, *, complete: bool) -> Array:
    return find_rows(data, b",", 2, complete=complete).bounds[1:]


def written(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    return text.getvalue().encode()


@given(rows=TABLES, size=st.integers(1, 60))
def test_parts_of_csv_hold_whole_rows_whatever_is_in_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.csv"
    data = written(rows)
    path.write_bytes(data)

    shards = list(cut_file(str(path), begin=0, shard_bytes=size, first=0, row_ends=csv_rows))

    parts = [data[shard.begin : shard.end] for shard in shards]
    assert b"".join(parts) == data
    assert [shard.number for shard in shards] == list(range(len(shards)))
    found = [row for part in parts for row in csv.reader(io.StringIO(part.decode(), newline=""))]
    assert found == rows
    assert all(len(part) >= size for part in parts[:-1])


@given(
    texts=st.lists(st.text(st.sampled_from('a"\\é'), max_size=9), max_size=30),
    size=st.integers(1, 40),
    begin=st.integers(0, 3),
)
def test_parts_of_json_lines_end_where_lines_do(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int, begin: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    data = b"\n" * begin + "\n".join(texts).encode()
    path.write_bytes(data)

    shards = list(cut_file(str(path), begin=begin, shard_bytes=size, first=7))

    parts = [data[shard.begin : shard.end] for shard in shards]
    assert b"".join(parts) == data[begin:]
    assert all(part.endswith(b"\n") for part in parts[:-1])
    assert [shard.number for shard in shards] == list(range(7, 7 + len(shards)))


def test_cuts_do_not_depend_on_the_blocks_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(written([["a\nb", str(i)] for i in range(500)]))

    def ends() -> list[int]:
        cut = cut_file(str(path), begin=0, shard_bytes=100, first=0, row_ends=csv_rows)
        return [shard.end for shard in cut]

    whole = ends()
    monkeypatch.setattr(json_lines, "_BLOCK_BYTES", 7)
    assert ends() == whole


def test_a_row_longer_than_the_most_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(json_lines, "_BLOCK_BYTES", 100)
    path = tmp_path / "rows.csv"
    path.write_bytes(b"1,b\n" + b"2," + b"b" * 3000)

    with pytest.raises(InvalidArgumentError, match="is a quote missing"):
        list(cut_file(str(path), begin=0, shard_bytes=100, first=0, row_ends=csv_rows))


def test_an_unclosed_quote_costs_its_line_and_not_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(json_lines, "_BLOCK_BYTES", 100)
    path = tmp_path / "rows.csv"
    data = b'1,"open\n' + b"2,b\n" * 1000
    path.write_bytes(data)

    shards = list(cut_file(str(path), begin=0, shard_bytes=100, first=0, row_ends=csv_rows))

    assert b"".join(data[shard.begin : shard.end] for shard in shards) == data
    assert len(shards) > 30
    assert [shard.line for shard in shards] == [
        1 + data[: shard.begin].count(b"\n") for shard in shards
    ]
