"""Texts, pictures and queries through real models; memory stays bounded whatever the files are."""

import json
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import polars as pl
import psutil
import pytest

from headrace.runtimes import load_model
from headrace.testing import models
from tests.contract.postgres import (
    PASSWORD,
    NoPostgresError,
    PostgresServer,
    running_postgres,
)
from tests.e2e.jobs.commands import Command, rows_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {
        "type": "WordLevel",
        "vocab": {"[PAD]": 0, "[UNK]": 1, **{f"w{i}": i + 2 for i in range(40)}},
        "unk_token": "[UNK]",
    },
}


@pytest.mark.long
def test_texts_of_all_lengths_answer_as_alone_and_a_bad_one_costs_itself(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "encoder.onnx").write_bytes(models.encoder())
    (folder / "pipeline.yaml").write_text(
        "steps:\n  - {kind: tokenizer, file: tokenizer.json, max_length: 64,"
        " outputs: {token_type_ids: types}}\n  - {kind: model, path: encoder.onnx}\n"
        "outputs: [embedding]\n"
    )
    random = np.random.default_rng(4)
    texts: list[bytes | None] = [
        " ".join(f"w{i}" for i in random.integers(0, 40, length)).encode()
        for length in random.integers(1, 60, 300)
    ]
    texts[7], texts[20] = b"w1 \xff", None
    pl.DataFrame({"id": range(300), "review": texts}).write_parquet(tmp_path / "texts.parquet")
    job = Command(
        ["-m", folder, "-i", tmp_path / "texts.parquet", "-o", tmp_path / "out", "--keys", "id",
         "--map", "text=review", "--outputs", "embedding"],
        tmp_path / "home",
    )  # fmt: skip

    summary = job.summary()

    found = rows_of(tmp_path / "out")
    assert (summary["rows"], summary["errors"]) == (300, 2)
    assert found["id"].to_list() == list(range(300))
    assert found["error"][7] == "text 0 is not UTF-8 (byte 3)"
    assert found["error"][20] == "column 'review' is null"
    model = load_model(folder)
    for place in range(0, 300, 3):
        text = texts[place]
        if found["error"][place] is None and text is not None:
            rows = np.empty(1, np.object_)
            rows[0] = text
            alone = model.run({"text": rows})["embedding"][0]
            np.testing.assert_allclose(found["embedding"][place], alone, rtol=1e-4, atol=1e-6)
    model.close()


@pytest.mark.long
def test_pictures_of_a_folder_answer_by_their_path(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    model = tmp_path / "pictures"
    model.mkdir()
    (model / "model.onnx").write_bytes(models.image(size=32))
    (model / "pipeline.yaml").write_text(
        "steps:\n"
        "  - {kind: image, size: [32, 32], outputs: {pixels: image}, inputs: {image: file}}\n"
        "  - {kind: model, path: model.onnx}\n"
    )
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    random = np.random.default_rng(1)
    for i in range(20):
        pixels = random.integers(0, 255, (40, 30, 3), np.uint8)
        image.fromarray(pixels).save(data / ("deep" if i % 2 else ".") / f"{i:02d}.png")
    (data / "broken.png").write_bytes(b"no picture")
    job = Command(
        ["-m", model, "-i", data, "-o", tmp_path / "out", "--keys", "path", "--map", "file=image"],
        tmp_path / "home",
    )

    summary = job.summary()

    found = rows_of(tmp_path / "out")
    assert (summary["rows"], summary["errors"]) == (21, 1)
    assert found.filter(pl.col("error").is_not_null())["path"].to_list() == ["broken.png"]
    assert found["path"].is_sorted()


@pytest.mark.parametrize("errors", ["column", "file"])
def test_damaged_rows_of_csv_are_told_by_file_and_line(tmp_path: Path, errors: str) -> None:
    (tmp_path / "matmul.onnx").write_bytes(models.matmul())
    good = [b"%d,1,2,3,%d" % (i, i) for i in range(40)]
    names = b"id,x0,x1,x2,x3"
    lines = [names, *good[:10], b"d,1,2,3,4,5,6", *good[10:20], b'd,1,2,3,4"5', *good[20:30]]
    lines += [b'd,"1,2,3,4', *good[30:35], b"d,1,\xff,3,4", b"d,1\0,2,3,4", *good[35:]]
    (tmp_path / "good.csv").write_bytes(b"\n".join([names, *good]) + b"\n")
    (tmp_path / "rows.csv").write_bytes(b"\n".join(lines) + b"\n")
    some: list[str | Path] = ["-m", tmp_path / "matmul.onnx", "--keys", "id"]
    some += ["--map", "x=x0..x3", "--errors", errors]
    alone = Command([*some, "-i", tmp_path / "good.csv", "-o", tmp_path / "a"], tmp_path / "home")
    job = Command([*some, "-i", tmp_path / "rows.csv", "-o", tmp_path / "b"], tmp_path / "home")
    reasons = [
        "rows.csv:12: has 7 values, and the header has 5 names",
        "rows.csv:23: a quote stands inside a value",
        "rows.csv:34: a quote is not closed",
        "rows.csv:40: column 'x1' is not UTF-8",
        "rows.csv:41: has a NUL byte",
    ]

    status, _, err = job.run("--max-errors", "4", "--run-id", "r")

    assert status == 4
    assert "5 rows have errors, more than --max-errors 4 allows: rows.csv:12" in err
    summary = job.summary("--max-errors", "5", "--run-id", "r")
    assert (summary["rows"], summary["errors"]) == (45, 5)
    assert alone.summary()["errors"] == 0
    found = rows_of(tmp_path / "b")
    if errors == "column":
        wrong = found.filter(pl.col("error").is_not_null())
        assert wrong["error"].to_list() == reasons
        found = found.filter(pl.col("error").is_null())
    else:
        texts = (tmp_path / "b" / "_errors" / "part-00000.jsonl").read_text().splitlines()
        assert [json.loads(text)["error"] for text in texts] == reasons
    assert found.equals(rows_of(tmp_path / "a"))


def test_json_lines_are_read_as_the_model_takes_them(tmp_path: Path) -> None:
    (tmp_path / "matmul.onnx").write_bytes(models.matmul())
    rows: list[Any] = [{"id": i, "x": [1, 2, 3, 4], "user": {"id": i}} for i in range(60)]
    rows[3] |= {"x": "none"}
    rows[40] |= {"x": [1.5, 2, 3, 4]}
    lines = [json.dumps(row) for row in rows]
    lines[50] = '{"id": 50,'
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    job = Command(
        ["-m", tmp_path / "matmul.onnx", "-i", tmp_path / "rows.jsonl", "-o", tmp_path / "out",
         "--keys", "id=user.id", "--chunk-rows", "1"],
        tmp_path / "home",
    )  # fmt: skip

    summary = job.summary()

    assert (summary["rows"], summary["errors"]) == (60, 2)
    found = rows_of(tmp_path / "out")
    errors = found.filter(pl.col("error").is_not_null())["error"].to_list()
    assert errors[0] == "rows.jsonl:4: column 'x': 'none' is no list of numbers"
    assert errors[1].startswith("rows.jsonl:51: is no JSON")
    assert found["id"].to_list() == [*range(50), None, *range(51, 60)]
    model = load_model(tmp_path / "matmul.onnx")
    (expected,) = model.run({"x": np.array([[1.5, 2, 3, 4]], np.float32)})["y"]
    model.close()
    assert found["y"][40].to_list() == expected.tolist()


def test_one_row_group_of_structs_is_several_shards_in_order(tmp_path: Path) -> None:
    (tmp_path / "matmul.onnx").write_bytes(models.matmul())
    rows = np.random.default_rng(0).standard_normal((500, 4)).astype(np.float32)
    users = pl.Series("user", [{"id": i, "x": row.tolist()} for i, row in enumerate(rows)])
    data = tmp_path / "rows.parquet"
    users.to_frame().cast(
        {"user": pl.Struct({"id": pl.Int64, "x": pl.List(pl.Float32)})}
    ).write_parquet(data, row_group_size=500)
    job = Command(
        ["-m", tmp_path / "matmul.onnx", "-i", data, "-o", tmp_path / "out", "--keys",
         "id=user.id", "--map", "x=user.x", "--shard-rows", "60", "--chunk-rows", "1"],
        tmp_path / "home",
    )  # fmt: skip

    summary = job.summary()

    assert (summary["rows"], summary["errors"], summary["shards"]) == (500, 0, 4)
    found = rows_of(tmp_path / "out")
    assert found["id"].to_list() == list(range(500))
    model = load_model(tmp_path / "matmul.onnx")
    alone = [model.run({"x": row[None]})["y"][0].tolist() for row in rows]
    model.close()
    assert found["y"].to_list() == alone


def test_a_query_in_ranges_answers_as_its_rows(tmp_path: Path) -> None:
    (tmp_path / "matmul.onnx").write_bytes(models.matmul())
    rows = np.random.default_rng(0).standard_normal((500, 4)).astype(np.float32)
    with sqlite3.connect(tmp_path / "rows.db") as connection:
        connection.execute(
            "CREATE TABLE r (id INTEGER PRIMARY KEY, a REAL, b REAL, c REAL, d REAL)"
        )
        values: list[tuple[Any, ...]] = [(i, *map(float, row)) for i, row in enumerate(rows)]
        connection.executemany("INSERT INTO r VALUES (?, ?, ?, ?, ?)", values)
    connection.close()
    job = Command(
        ["-m", tmp_path / "matmul.onnx", "-i", f"sqlite:///{tmp_path}/rows.db",
         "--sql", "SELECT * FROM r WHERE id < 450", "--sql-key", "id", "--shard-rows", "100",
         "--map", "x=a,b,c,d", "--keys", "id", "-o", tmp_path / "out"],
        tmp_path / "home",
    )  # fmt: skip

    summary = job.summary()

    found = rows_of(tmp_path / "out")
    assert (summary["shards"], summary["rows"]) == (5, 450)
    assert found["id"].to_list() == list(range(450))
    model = load_model(tmp_path / "matmul.onnx")
    expected = model.run({"x": rows[:450]})["y"]
    np.testing.assert_allclose(np.stack(found["y"].to_list()), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """One row group of 200 MB, whose rows are read a window at a time."""
    (tmp_path / "matmul.onnx").write_bytes(models.matmul(features=1024))
    values = np.random.default_rng(0).standard_normal(1024 * 5000, dtype=np.float32)

    def peak(copies: int) -> float:
        path = tmp_path / f"{copies}.parquet"
        lists = pl.Series("x", values).reshape((5000, 1024))
        pl.concat([pl.DataFrame({"x": lists})] * copies).write_parquet(
            path, row_group_size=5000 * copies, compression="uncompressed", use_pyarrow=True
        )
        job = Command(
            ["-m", tmp_path / "matmul.onnx", "-i", path, "-o", tmp_path / f"out-{copies}",
             "--memory", "64MiB", "--json"],
            tmp_path / "home",
        )  # fmt: skip
        process = job.start()
        most = 0
        seen = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                most = max(most, seen.memory_info().rss)
            except psutil.NoSuchProcess:
                break
        _, err = process.communicate()
        assert process.returncode == 0, err
        return most / (1 << 20)

    small, large = peak(1), peak(10)
    assert large - small < 100


def test_a_query_of_postgres_is_read_and_its_password_is_written_nowhere(tmp_path: Path) -> None:
    try:
        with running_postgres() as server:
            _postgres(server, tmp_path)
    except NoPostgresError as error:
        pytest.skip(str(error))


def _postgres(server: PostgresServer, tmp_path: Path) -> None:
    (tmp_path / "matmul.onnx").write_bytes(models.matmul())
    with server.connect() as connection:
        connection.execute(
            "CREATE TABLE r AS SELECT i AS id, 'n' || i AS name, i / 2.0::float8 AS a,"
            " i::real AS b, i::int2 AS c, CASE WHEN i % 50 = 0 THEN NULL ELSE i::int8 END AS d"
            " FROM generate_series(1, 300) AS i"
        )
    url = server.tcp_url(PASSWORD)
    arguments: list[str | Path] = [
        "-m", tmp_path / "matmul.onnx", "-i", url, "--sql", "SELECT * FROM r", "--sql-key", "id",
        "--shard-rows", "100", "--map", "x=a,b,c,d", "--keys", "id,name", "-o", tmp_path / "out",
        "--nulls", "error",
    ]  # fmt: skip
    job = Command(arguments, tmp_path / "home")

    summary = job.summary()

    found = rows_of(tmp_path / "out")
    assert (summary["shards"], summary["rows"], summary["errors"]) == (3, 300, 6)
    assert found["name"].to_list() == [f"n{i}" for i in range(1, 301)]
    assert set(found["error"].drop_nulls()) == {"column 'd' is null"}
    written = (tmp_path / "out" / "_headrace" / "job.json").read_text()
    wrong = Command([*arguments[:5], "SELECT * FROM nobody", *arguments[6:]], tmp_path / "home")
    status, _, err = wrong.run("-o", tmp_path / "two")
    assert status == 1
    assert 'relation "nobody" does not exist' in err
    for text in (written, err):
        assert PASSWORD not in text
        assert quote(PASSWORD, safe="") not in text
