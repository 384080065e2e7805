"""A worker does what this process does, and refuses to where it does not see the same."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest

from headrace.core import Code, FailedPreconditionError, ReplicaSettings
from headrace.jobs.engines.ray_worker import (
    PACKAGES,
    JobOrder,
    ShardOutcome,
    ShardProgress,
    ShardWorker,
    order_of,
    versions,
    worker_class,
)
from headrace.jobs.manifest import OutputFolder
from headrace.jobs.messages import JobModel
from headrace.jobs.prepare import Job, JobRequest, load_scorer, plan_job, settle
from headrace.jobs.sources.open import open_source
from headrace.registry import read_content
from headrace.testing import models
from tests.unit.jobs.parts import files, run

NOW = datetime(2026, 11, 27, tzinfo=UTC)
ROWS, BAD = 50, 13


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    values = np.random.default_rng(3).standard_normal((ROWS, 32))
    values[BAD, 0] = 1e300
    columns = {f"f{i}": values[:, i] for i in range(32)}
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"id": range(ROWS), **columns}).write_parquet(path, row_group_size=20)
    (tmp_path / "mlp.onnx").write_bytes(models.mlp())
    return path


def job_in(rows: Path, output: Path) -> Job:
    model = rows.with_name("mlp.onnx")
    settings = ReplicaSettings(model_name="mlp", model_version="1", path=str(model))
    told, source = open_source(str(rows))
    scorer = load_scorer(settings)
    digest = str(read_content(model).digest)
    record, task = plan_job(
        JobRequest(output=output, keys={"id": "id"}, shard_rows=20),
        model=JobModel(reference="mlp", version="1", digest=digest, runtime="onnx"),
        settings=settings,
        source=source,
        location=told,
        scorer=scorer,
        run_id="one",
        started=None,
        now=NOW,
    )
    folder = OutputFolder(output)
    with folder.locked():
        record, left = settle(folder, record, task, None)
    return Job(record=record, task=task, source=source, scorer=scorer, left=left)


def encoded(order: JobOrder) -> bytes:
    return msgspec.json.encode(order)


def test_a_worker_writes_the_bytes_that_this_process_writes(rows: Path, tmp_path: Path) -> None:
    run(job_in(rows, tmp_path / "here"))
    job = job_in(rows, tmp_path / "there")
    worker = ShardWorker.open(encoded(order_of(job, str(rows))))
    outcomes = [
        msgspec.json.decode(worker.run(msgspec.json.encode(shard)), type=ShardOutcome)
        for shard in job.left.todo
    ]
    seen = msgspec.json.decode(worker.progress(), type=ShardProgress)
    worker.close()

    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert [one.done is not None and one.done.rows for one in outcomes] == [20, 20, 10]
    assert [len(one.samples) for one in outcomes] == [1, 0, 0]
    assert (seen.shard, seen.rows) == (2, 10)


def test_a_worker_that_is_stopped_leaves_nothing(rows: Path, tmp_path: Path) -> None:
    job = job_in(rows, tmp_path / "out")
    worker = ShardWorker.open(encoded(order_of(job, str(rows))))
    worker.stop()
    outcome = msgspec.json.decode(
        worker.run(msgspec.json.encode(job.left.todo[0])), type=ShardOutcome
    )

    assert outcome.code is Code.CANCELLED
    assert files(tmp_path / "out") == {}


def test_an_input_that_changed_is_an_outcome_and_no_exception(rows: Path, tmp_path: Path) -> None:
    job = job_in(rows, tmp_path / "out")
    worker = ShardWorker.open(encoded(order_of(job, str(rows))))
    shard = msgspec.structs.replace(job.left.todo[0], fingerprint="another")
    outcome = msgspec.json.decode(worker.run(msgspec.json.encode(shard)), type=ShardOutcome)

    assert outcome.done is None
    assert outcome.code is Code.FAILED_PRECONDITION
    assert "changed while it was read" in outcome.message


def test_a_folder_that_is_not_shared_and_another_model_are_refused(
    rows: Path, tmp_path: Path
) -> None:
    job = job_in(rows, tmp_path / "out")
    order = order_of(job, str(rows))
    elsewhere = msgspec.structs.replace(order.task, output=str(tmp_path / "mine"))

    with pytest.raises(FailedPreconditionError, match="mine is not the folder that the driver"):
        ShardWorker.open(encoded(msgspec.structs.replace(order, task=elsewhere)))
    with pytest.raises(FailedPreconditionError, match="not the folder that the driver"):
        ShardWorker.open(encoded(msgspec.structs.replace(order, run_id="another")))
    rows.with_name("mlp.onnx").write_bytes(models.mlp(seed=9))
    with pytest.raises(FailedPreconditionError, match="another than the driver's"):
        ShardWorker.open(encoded(order))
    rows.with_name("mlp.onnx").unlink()
    with pytest.raises(FailedPreconditionError, match="must lie under the same path"):
        ShardWorker.open(encoded(order))


def test_a_worker_of_another_version_says_so_and_loads_nothing(rows: Path, tmp_path: Path) -> None:
    job = job_in(rows, tmp_path / "out")
    order = encoded(order_of(job, str(rows)))
    other = {**versions(), "headrace": "9.9", "nonesuch": "1.0"}
    outcome = msgspec.json.decode(worker_class(other)(order).ready(), type=ShardOutcome)

    assert set(versions()) == set(PACKAGES)
    assert outcome.code is Code.FAILED_PRECONDITION
    assert f"headrace {versions()['headrace']}, not 9.9; nonesuch is missing" in outcome.message
    assert "install the driver's versions" in outcome.message


def test_a_held_worker_begins_runs_and_stops(rows: Path, tmp_path: Path) -> None:
    job = job_in(rows, tmp_path / "out")
    there = worker_class(versions())(encoded(order_of(job, str(rows))))
    there.stop()  # before it has begun, there is nothing to stop

    assert there.ready() == ""
    outcome = there.run(msgspec.json.encode(job.left.todo[0]))
    assert msgspec.json.decode(outcome, type=ShardOutcome).done is not None
    assert msgspec.json.decode(there.progress(), type=ShardProgress).rows == 20
    there.worker.close()


def test_a_worker_that_cannot_begin_says_why(rows: Path, tmp_path: Path) -> None:
    job = job_in(rows, tmp_path / "out")
    order = order_of(job, str(rows))
    lost = msgspec.structs.replace(order, run_id="another")
    ready = worker_class(versions())(encoded(lost)).ready()

    outcome = msgspec.json.decode(ready, type=ShardOutcome)
    assert outcome.code is Code.FAILED_PRECONDITION
    assert "could not begin" in outcome.message
    assert "is not the folder that the driver writes to" in outcome.message


def test_a_database_goes_with_its_name_and_a_path_from_the_root(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = job_in(rows, tmp_path / "out")
    by_path = order_of(job, "rows.parquet")
    database = msgspec.structs.replace(job.task.source, url="postgresql://db/rows")
    task = msgspec.structs.replace(job.task, source=database)
    by_name = order_of(
        Job(record=job.record, task=task, source=job.source, scorer=job.scorer, left=job.left),
        "postgresql://${WHO}@db/rows",
    )

    assert by_path.source == str(rows)
    assert by_name.source == "postgresql://${WHO}@db/rows"
