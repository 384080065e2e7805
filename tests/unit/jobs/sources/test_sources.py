"""Parquet, Arrow, SQLite and pictures: shards are all rows in order, and no column too many."""

import sqlite3
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.jobs.messages import Sizes
from headrace.jobs.sources.open import open_source
from headrace.jobs.sources.parquet import runs
from headrace.jobs.sources.source import JobSource, ReadRequest, kind_of, list_files
from headrace.jobs.sources.sql import without_password

SIZES = Sizes(shard_rows=10, shard_bytes=1 << 20, run_rows=4, window_rows=4, buffer_bytes=1000)


def read(source: JobSource, *columns: str, rows: int = 4) -> list[list[tuple[Any, ...]]]:
    """The rows of each shard."""
    found = []
    for number, shard in enumerate(source.cut(SIZES, columns)):
        assert shard.number == number
        parts = list(source.read(shard, ReadRequest(columns=columns, rows=rows)))
        assert all(part.frame.height <= rows for part in parts)
        assert all(part.frame.columns == list(columns) for part in parts)
        found.append([row for part in parts for row in part.frame.rows()])
        assert shard.rows in {None, len(found[-1])}
    return found


@given(
    counted=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 99)), max_size=20),
    rows=st.integers(1, 40),
    size=st.integers(1, 200),
)
def test_runs_of_neighbours_are_all_of_them_and_no_larger_than_asked(
    counted: list[tuple[int, int]], rows: int, size: int
) -> None:
    sizes = Sizes(shard_rows=rows, shard_bytes=size, run_rows=1, window_rows=1, buffer_bytes=1)
    found = runs(counted, sizes)
    assert [i for begin, end in found for i in range(begin, end)] == list(range(len(counted)))
    for begin, end in found:
        some = counted[begin:end]
        small = sum(n for n, _ in some) <= rows and sum(b for _, b in some) <= size
        assert small or end - begin == 1


@pytest.mark.parametrize("ending", ["parquet", "arrow", "arrows"])
def test_files_are_read_by_groups_and_only_what_is_asked_for(tmp_path: Path, ending: str) -> None:
    frame = pl.DataFrame({"id": range(25), "x": [i / 2 for i in range(25)], "big": ["b" * 99] * 25})
    table = frame.to_arrow()
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        frame.write_parquet(path, row_group_size=5)
    else:
        make = pa.ipc.new_file if ending == "arrow" else pa.ipc.new_stream
        with make(str(path), table.schema) as writer:
            writer.write_table(table, 5)
    _, source = open_source(str(path))
    found = read(source, "x", "id")
    assert [row for shard in found for row in shard] == [(i / 2, i) for i in range(25)]
    assert len(found) == (1 if ending == "arrows" else 3)
    assert 0 < source.row_bytes(["x"]) < source.row_bytes(["x", "big"])


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_damaged_files_and_other_columns_are_named(tmp_path: Path, ending: str) -> None:
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"x": [1]}).write_ipc(tmp_path / "a.arrow")
    pl.DataFrame({"x": ["text"]}).write_parquet(tmp_path / "b.parquet")
    pl.DataFrame({"x": ["text"]}).write_ipc(tmp_path / "b.arrow")
    _, source = open_source(str(tmp_path / f"*.{ending}"))
    with pytest.raises(InvalidArgumentError, match=rf"b.{ending}.*'x'"):
        source.cut(SIZES, ["x"])
    whole = (tmp_path / f"a.{ending}").read_bytes()
    (tmp_path / f"a.{ending}").write_bytes(whole[: len(whole) // 2])
    _, source = open_source(str(tmp_path / f"a.{ending}"))
    with pytest.raises(InvalidArgumentError, match=rf"a.{ending} cannot be read"):
        source.schema()


def database(path: Path, rows: int = 25) -> str:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE people (id INTEGER, x REAL, name TEXT)")
        people = [(i * 3, i / 2, None if i % 2 else f"n{i}") for i in range(rows)]
        connection.executemany("INSERT INTO people VALUES (?, ?, ?)", people)
    connection.close()
    return f"sqlite:///{path}"


def test_a_query_is_one_shard_or_ranges_of_its_key(tmp_path: Path) -> None:
    url = database(tmp_path / "people.db")
    query = "SELECT * FROM people WHERE id >= 0;"
    _, whole = open_source(url, query=query)
    _, ranges = open_source(url, query=query, key="id")
    rows = [(i / 2, i * 3) for i in range(25)]
    assert read(whole, "x", "id") == [rows]
    found = read(ranges, "x", "id")
    assert len(found) == 3
    assert [row for shard in found for row in shard] == rows


def test_a_query_that_fails_or_has_no_such_key_is_told(tmp_path: Path) -> None:
    url = database(tmp_path / "people.db")
    with pytest.raises(InvalidArgumentError, match=r"query failed.*no such table"):
        open_source(url, query="SELECT * FROM nobody")[1].schema()
    with pytest.raises(InvalidArgumentError, match="no column 'nr'"):
        open_source(url, query="SELECT * FROM people", key="nr")[1].cut(SIZES, ["x"])
    with pytest.raises(InvalidArgumentError, match="ranges need integers"):
        open_source(url, query="SELECT * FROM people", key="x")[1].cut(SIZES, ["x"])
    with pytest.raises(InvalidArgumentError, match="--sql 'SELECT"):
        open_source(url)
    with pytest.raises(InvalidArgumentError, match="does not exist"):
        open_source(f"sqlite:///{tmp_path}/no.db", query="SELECT 1")[1].schema()


def test_a_database_that_changed_has_another_mark(tmp_path: Path) -> None:
    url = database(tmp_path / "people.db")
    _, source = open_source(url, query="SELECT * FROM people")
    (before,) = source.cut(SIZES, ["x"])
    with sqlite3.connect(tmp_path / "people.db") as connection:
        connection.execute("UPDATE people SET x = 7")
    connection.close()
    (after,) = source.cut(SIZES, ["x"])
    assert before.fingerprint != after.fingerprint


def test_passwords_are_not_written_down() -> None:
    assert without_password("postgresql://me:secret@db:5432/x") == "postgresql://me@db:5432/x"
    assert without_password("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_pictures_are_rows_with_their_path_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.png", "a.JPG", "deep/c.png", ".hidden.png"):
        (tmp_path / name).write_bytes(name.encode())
    settings, source = open_source(str(tmp_path))
    assert settings.kind == "images"
    rows = [("a.JPG", b"a.JPG"), ("b.png", b"b.png"), ("deep/c.png", b"deep/c.png")]
    assert read(source, "path", "image") == [rows]


def test_a_picture_that_is_gone_costs_itself(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    _, source = open_source(str(tmp_path))
    (shard,) = source.cut(SIZES, [])
    (tmp_path / "a.png").unlink()
    (part,) = source.read(shard, ReadRequest(columns=["path", "image"], rows=9))
    assert part.frame.rows() == [("a.png", None), ("b.png", b"x")]
    assert "a.png cannot be read: No such file" in part.broken[0]


def test_what_names_no_file_or_several_formats_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no file or folder matches"):
        list_files(str(tmp_path / "no*"))
    (tmp_path / "a.csv").write_text("x\n1\n")
    (tmp_path / "a.parquet").write_text("")
    (tmp_path / "_SUCCESS").write_text("")
    files = list_files(str(tmp_path))
    assert [Path(name).name for name in files] == ["a.csv", "a.parquet"]
    with pytest.raises(InvalidArgumentError, match="several formats"):
        kind_of(files)
    with pytest.raises(InvalidArgumentError, match=r"format of rows.dat is unknown"):
        kind_of(["rows.dat"])
    with pytest.raises(InvalidArgumentError, match="not an input format"):
        open_source(str(tmp_path), kind="xml")
    with pytest.raises(FailedPreconditionError, match="no variable NOWHERE_SET: the input"):
        open_source("${NOWHERE_SET}/x.csv")


def test_a_store_elsewhere_is_read_by_fsspec(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for part in range(2):
        file = tmp_path / f"{part}.parquet"
        pl.DataFrame({"x": [part, part]}).write_parquet(file)
        memory.pipe(f"/jobs-test/{part}.parquet", file.read_bytes())
    _, source = open_source("memory://jobs-test/*.parquet")
    assert read(source, "x") == [[(0,), (0,)], [(1,), (1,)]]
    with pytest.raises((FailedPreconditionError, InvalidArgumentError), match="nowhere"):
        open_source("nowhere://x/*.parquet")
