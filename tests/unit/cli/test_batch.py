"""`headrace batch`: what is refused before anything is written, and how a job ends."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from headrace.testing import models
from tests.unit.cli.conftest import Command

ROWS = 40


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).standard_normal((ROWS, 32)).astype(np.float32)
    frame = pl.DataFrame({"id": range(ROWS), **{f"f{i}": values[:, i] for i in range(32)}})
    path = tmp_path / "rows.parquet"
    frame.with_columns(f3=pl.when(pl.col("id") % 10 == 0).then(None).otherwise("f3")).write_parquet(
        path, row_group_size=10
    )
    return path


def test_a_job_says_what_it_did_as_json(
    headrace: Command, model: Path, rows: Path, tmp_path: Path
) -> None:
    done = headrace("batch", "run", "-m", model, "-i", rows, "-o", tmp_path / "out", "--keys", "id",
                    "--nulls", "error", "--run-id", "x", "--shard-rows", "10",
                    "--json")  # fmt: skip
    said = json.loads(done.out)
    assert done.status == 0
    assert (said["run_id"], said["rows"], said["errors"], said["shards"]) == ("x", ROWS, 4, 4)
    assert said["error_samples"] == ["column 'f3' is null"] * 4
    assert "run x: 4 of 4 shards to do" in done.err
    status = headrace("batch", "status", tmp_path / "out", "--json")
    told = json.loads(status.out)
    assert (told["run_id"], told["status"], told["done"]) == ("x", "done", 4)


def test_more_errors_than_allowed_have_a_status_of_their_own(
    headrace: Command, model: Path, rows: Path, tmp_path: Path
) -> None:
    arguments = ["batch", "run", "-m", model, "-i", rows, "-o", tmp_path / "out", "--keys", "id",
                 "--nulls", "error", "--run-id", "x", "--shard-rows", "10",
                 "--workers", "1"]  # fmt: skip
    few = headrace(*arguments, "--max-errors", "2")
    again = headrace(*arguments, "--max-errors", "2")
    more = headrace(*arguments, "--max-errors", "4")
    assert few.status == 4
    assert "more than --max-errors 2 allows: column 'f3' is null" in few.err
    assert "--resume x with a larger limit continues" in few.err
    assert again.status == 4
    assert (
        "3 rows have errors, more than --max-errors 2 allows. What is complete is kept" in again.err
    )
    assert more.status == 0
    assert "3 of them earlier" in more.err


def test_mistakes_are_told_at_once_and_leave_no_folder(
    headrace: Command, model: Path, rows: Path, tmp_path: Path
) -> None:
    done = headrace("batch", "run", "-m", model, "-i", rows, "-o", tmp_path / "out",
                    "--keys", "idd", "--map", "input=f0..f30,g31",
                    "--outputs", "probs")  # fmt: skip
    assert done.status == 1
    assert "3 mistakes; no data was read" in done.err
    assert "did you mean 'id'?" in done.err
    assert "did you mean 'prob'?" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m", "nobody", "-i", "rows.parquet"], "no file, directory or running endpoint 'nobody'"),
        (["-m", "mlp.onnx", "-i", "no.parquet"], "no file or folder matches"),
        (["-m", "mlp.onnx", "-i", "rows.parquet", "--resume", "y"], "run y does not exist"),
        (["-m", "mlp.onnx", "-i", "rows.parquet", "--run-id", "a b"], "run id 'a b'"),
        (["-m", "mlp.onnx", "-i", "rows.parquet", "--memory", "lots"], "'lots' is not a size"),
        (["-m", "mlp.onnx", "-i", "rows.parquet", "--map", "input"], "'input' is not a mapping"),
        (["-m", "mlp.onnx", "-i", "rows.parquet", "--sql", "SELECT 1"], "--sql needs a database"),
        (["-m", "model.py", "-i", "rows.parquet"], "--allow-code"),
    ],
)
def test_what_cannot_be_is_refused(  # noqa: PLR0917  # fixtures
    headrace: Command, model: Path, rows: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    assert model.exists()
    assert rows.exists()
    (tmp_path / "model.py").write_text(models.python_double())
    done = headrace("batch", "run", "-o", "out", *arguments)
    assert (done.status, said in done.err) == (1, True), done.err
    assert not (tmp_path / "out").exists()


def test_an_endpoint_of_a_spec_file_gives_its_class_names(
    headrace: Command, model: Path, rows: Path, tmp_path: Path
) -> None:
    endpoint = {"name": "odd", "model": str(model), "labels": {"prob": ["even", "odd"]}}
    (tmp_path / "spec.yaml").write_text(json.dumps({"version": 1, "endpoints": [endpoint]}))
    done = headrace("batch", "run", "-m", "odd", "--file", "spec.yaml", "-i", rows, "-o", "out",
                    "--outputs", "prob")  # fmt: skip
    assert done.status == 0, done.err
    assert "no --keys" in done.err
    found = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    assert found.columns == ["prob", "prob_label", "model_version", "error"]
    assert set(found["prob_label"]) == {"even", "odd"}
    assert found["model_version"].unique().to_list() == ["1"]
    missing = headrace("batch", "run", "-m", "od", "--file", "spec.yaml", "-i", rows, "-o", "two")
    assert missing.status == 1
    assert "spec.yaml has no endpoint 'od'; there are: odd" in missing.err


def test_a_folder_that_is_no_jobs_is_told(headrace: Command, tmp_path: Path) -> None:
    done = headrace("batch", "status", tmp_path)
    assert done.status == 1
    assert "is not the output directory of a job" in done.err
