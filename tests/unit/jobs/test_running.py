"""Whatever a kill leaves, a run that goes on comes to the same files."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import (
    ArtifactCorruptError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    RowIndependence,
    Tensors,
    UnavailableError,
)
from headrace.jobs.manifest import ChangedError, OutputFolder
from headrace.jobs.messages import ErrorsTo, FileFormat
from headrace.jobs.prepare import find_begun
from headrace.jobs.run import TooManyErrorsError
from tests.unit.jobs.parts import SUMS, Fake, files, prepared, run, sums, table

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, SHARDS = 57, 6


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("in") / "rows.parquet"
    table(ROWS, bad=[4, 33]).write_parquet(path, row_group_size=10)
    return path


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    summary = run(prepared(source, output))
    assert (summary.rows, summary.errors, summary.shards) == (ROWS, 2, SHARDS)
    return output


def lines_of(folder: Path) -> list[bytes]:
    return (folder / "_headrace" / "manifest.jsonl").read_bytes().splitlines(keepends=True)


@pytest.mark.slow
@given(
    lines=st.integers(0, SHARDS),
    torn=st.integers(0, 80),
    renamed=st.integers(0, SHARDS),
    partial=st.integers(0, 200),
    lost=st.sets(st.integers(0, SHARDS - 1), max_size=2),
)
def test_any_prefix_of_steps_that_survives_a_kill_comes_to_the_same_output(  # noqa: PLR0917  # fixtures and what is drawn
    source: Path,
    undisturbed: Path,
    tmp_path_factory: pytest.TempPathFactory,
    lines: int,
    torn: int,
    renamed: int,
    partial: int,
    lost: set[int],
) -> None:
    """Lines of the manifest, files that have their names already, one that is half written."""
    output = tmp_path_factory.mktemp("killed") / "out"
    shutil.copytree(undisturbed, output)
    (output / "_SUCCESS").unlink()
    every = lines_of(output)
    torn_line = every[lines][:-1][:torn] if lines < SHARDS else b""
    (output / "_headrace" / "manifest.jsonl").write_bytes(b"".join(every[:lines]) + torn_line)
    for number in range(SHARDS):
        part = output / f"part-{number:05d}.parquet"
        if number >= max(lines, renamed) or number in lost:
            data = part.read_bytes()
            part.rename(output / f".{part.name}.tmp")
            (output / f".{part.name}.tmp").write_bytes(data[:partial])

    job = prepared(source, output)
    assert len(job.left.done) == len(set(range(lines)) - lost)
    assert {path.name for path in output.glob("part-*")} == {
        one.name for done in job.left.done for one in done.files
    }
    summary = run(job)

    assert summary.skipped == len(set(range(lines)) - lost)
    assert (summary.rows, summary.errors) == (ROWS, 2)
    assert files(output) == files(undisturbed)
    assert (output / "_SUCCESS").exists()


def test_rows_come_out_in_order_with_keys_version_and_errors(undisturbed: Path) -> None:
    found = pl.read_parquet(sorted(undisturbed.glob("part-*.parquet")))
    assert found.columns == ["id", "y", "model_version", "error"]
    assert found.schema["y"] == pl.Array(pl.Float32, 2)
    assert found["id"].to_list() == list(range(ROWS))
    bad = found.filter(pl.col("error").is_not_null())
    assert bad.rows() == [(4, None, "3", "thirteen"), (33, None, "3", "thirteen")]
    assert found["y"][0].to_list() == [201.0, -1.0]
    assert found["y"].null_count() == 2


def test_workers_come_to_the_same_files_as_one(
    source: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run(prepared(source, tmp_path / "out", shard_rows=10), workers=4)
    assert files(tmp_path / "out") == files(undisturbed)


def test_few_shards_share_their_runs_among_the_workers(source: Path, tmp_path: Path) -> None:
    one = Fake(SUMS, sums)
    run(prepared(source, tmp_path / "one", model=one, shard_rows=1000, run_rows=5))
    many = Fake(SUMS, sums)
    job = prepared(source, tmp_path / "many", model=many, shard_rows=1000, run_rows=5)
    run(job, workers=3)
    assert files(tmp_path / "one") == files(tmp_path / "many")
    assert len(many.runs) == len(one.runs)


def test_errors_go_to_a_side_file_and_the_output_has_the_others(
    source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run(prepared(source, output, errors=ErrorsTo.FILE))
    found = pl.read_parquet(sorted(output.glob("part-*.parquet")))
    assert found.columns == ["id", "y", "model_version"]
    assert found["id"].to_list() == [i for i in range(ROWS) if i not in {4, 33}]
    told = [
        json.loads(line)
        for path in sorted((output / "_errors").iterdir())
        for line in path.read_text().splitlines()
    ]
    assert told == [
        {"row": 4, "keys": {"id": 4}, "error": "thirteen"},
        {"row": 3, "keys": {"id": 33}, "error": "thirteen"},
    ]


@pytest.mark.parametrize("form", FileFormat)
def test_every_format_holds_the_same_values(source: Path, tmp_path: Path, form: FileFormat) -> None:
    output = tmp_path / "out"
    run(prepared(source, output, format=form, shard_rows=1000))
    (path,) = output.glob("part-*")
    assert path.suffix == f".{form}"
    if form is FileFormat.CSV:
        found = pl.read_csv(path)
        assert found.columns == ["id", "y_0", "y_1", "model_version", "error"]
        values = found.select("y_0", "y_1").rows()
    else:
        readers: dict[FileFormat, Callable[[Path], pl.DataFrame]] = {
            FileFormat.JSONL: pl.read_ndjson,
            FileFormat.ARROW: pl.read_ipc,
            FileFormat.PARQUET: pl.read_parquet,
        }
        cells = readers[form](path)["y"].to_list()
        values = [(None, None) if cell is None else tuple(cell) for cell in cells]
    expected = [(None, None) if i in {4, 33} else (float(201 + 4 * i), -1.0) for i in range(ROWS)]
    assert values == expected


def test_more_errors_than_allowed_end_the_job_and_a_larger_limit_goes_on(
    source: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with pytest.raises(TooManyErrorsError, match=r"2 rows have errors.*--max-errors 1.*thirteen"):
        run(prepared(source, output), max_errors=1)
    assert not (output / "_SUCCESS").exists()

    job = prepared(source, output)
    assert 0 < len(job.left.done) < SHARDS
    run(job, max_errors=2)

    assert files(output) == files(undisturbed)


def test_a_run_that_is_done_is_proved_and_not_done_again(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(prepared(source, output))
    model = Fake(SUMS, sums)
    summary = run(prepared(source, output, model=model))
    assert (summary.skipped, summary.rows, model.runs) == (SHARDS, ROWS, [])


def test_the_summary_says_that_rows_depend_on_each_other(source: Path, tmp_path: Path) -> None:
    declared = replace(SUMS, row_independence=RowIndependence.DECLARED)
    coupled = run(prepared(source, tmp_path / "out", model=Fake(declared, less_the_mean)))
    alone = run(prepared(source, tmp_path / "other", model=Fake(SUMS, less_the_mean)))

    assert "output 'y' differs" in coupled.row_problem
    assert alone.row_problem == ""


def less_the_mean(inputs: Tensors) -> Tensors:
    return {"y": inputs["x"] - inputs["x"].mean(axis=0)}


def test_nothing_says_done_while_something_is_done_again(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(prepared(source, output))
    (output / "part-00002.parquet").unlink()
    job = prepared(source, output)
    assert not (output / "_SUCCESS").exists()
    assert job.left.redo == {2: "part-00002.parquet is missing"}
    run(job)
    assert (output / "_SUCCESS").exists()


def test_an_error_of_every_row_ends_the_job_and_leaves_whole_files_only(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.jobs.results._RETRY_WAITS_S", ())

    def away(_: object) -> dict[str, np.ndarray]:
        raise UnavailableError("the store is away")

    output = tmp_path / "out"
    with pytest.raises(UnavailableError, match="away"):
        run(prepared(source, output, model=Fake(SUMS, away)))
    assert files(output) == {}


def test_what_changed_is_named(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(prepared(source, output))
    with pytest.raises(ChangedError, match="the model changed from fake:3"):
        prepared(source, output, digest="sha256:2")
    with pytest.raises(ChangedError, match="input 'x' used x0, x1, and now x1, x0"):
        prepared(source, output, mapping={"x": ["x1", "x0"]})
    with pytest.raises(ChangedError, match="format was parquet, and now csv"):
        prepared(source, output, format=FileFormat.CSV)
    with pytest.raises(ChangedError, match="keys were id, and now none"):
        prepared(source, output, keys={})


def test_an_input_that_changed_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    table(10).write_parquet(folder / "a.parquet")
    table(10).write_parquet(folder / "b.parquet")
    output = tmp_path / "out"
    run(prepared(folder, output))
    table(11).write_parquet(folder / "a.parquet")
    (folder / "b.parquet").rename(folder / "c.parquet")
    with pytest.raises(ChangedError) as caught:
        prepared(folder, output)
    assert caught.value.changes == (
        "input files gone: b.parquet",
        "input files new: c.parquet",
        "input files changed: a.parquet",
    )


def test_an_input_that_changes_while_it_is_read_ends_the_job(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table(10).write_parquet(path)
    data = path.read_bytes()

    def touching(inputs: Tensors) -> Tensors:
        path.write_bytes(data)
        os.utime(path, ns=(1, 1))
        return sums(inputs)

    job = prepared(path, tmp_path / "out", model=Fake(SUMS, touching))
    with pytest.raises(FailedPreconditionError, match="changed while it was read"):
        run(job)
    assert files(tmp_path / "out") == {}


def test_a_folder_with_something_else_in_it_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs.txt").write_text("mine")
    with pytest.raises(FailedPreconditionError, match=r"is not empty.*theirs.txt"):
        prepared(source, tmp_path)


def test_output_among_the_input_is_refused(source: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="is inside the input"):
        prepared(source.parent, source.parent / "out")


def test_a_run_is_found_by_its_id_only(source: Path, tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "out")
    assert find_begun(folder, run_id="one", resume="") is None
    with pytest.raises(NotFoundError, match="no run began there"):
        find_begun(folder, run_id="", resume="one")
    run(prepared(source, folder.path))
    found = find_begun(folder, run_id="", resume="one")
    assert found is not None
    assert found.id == "one"
    with pytest.raises(NotFoundError, match="has run one, not two; it is complete"):
        find_begun(folder, run_id="", resume="two")
    with pytest.raises(FailedPreconditionError, match="the output of run one"):
        find_begun(folder, run_id="two", resume="")


def test_two_runs_at_once_are_kept_apart(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "out")
    with (
        folder.locked(),
        pytest.raises(FailedPreconditionError, match="another run uses"),
        OutputFolder(tmp_path / "out").locked(),
    ):
        pass


def test_a_damaged_manifest_is_told_by_its_line(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(prepared(source, output))
    lines = lines_of(output)
    (output / "_headrace" / "manifest.jsonl").write_bytes(lines[0] + b"{}\n" + lines[2])
    with pytest.raises(ArtifactCorruptError, match="line 2 is damaged"):
        prepared(source, output)


def test_an_input_without_rows_is_a_job_that_is_done(tmp_path: Path) -> None:
    table(0).write_parquet(tmp_path / "rows.parquet")
    summary = run(prepared(tmp_path / "rows.parquet", tmp_path / "out"))
    assert summary.rows == 0
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_file_that_a_lost_worker_left_unfinished_is_gone_in_the_end(
    source: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    job = prepared(source, output)
    left = output / ".part-00001.parquet.0.tmp"
    left.write_bytes(b"half of it")

    run(job)

    assert not left.exists()
    assert sorted(one.name for one in output.iterdir()) == sorted(
        one.name for one in undisturbed.iterdir()
    )
