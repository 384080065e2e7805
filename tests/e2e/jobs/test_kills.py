"""A job that is killed at any moment and run again comes to the same; no partial file shows."""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from headrace.registry import Registry
from headrace.runtimes import inspect_model
from headrace.testing import models
from tests.e2e.jobs.commands import Command, digests, kill_after, rows_of, watched
from tests.tabular_models import FEATURES, xgboost

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROWS = 60_000
KILLS = int(os.environ.get("CHAOS_JOB_KILLS", "8"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(5)
    for part in range(3):
        values = rng.standard_normal((ROWS // 3, 32), dtype=np.float32)
        columns = {f"f{i}": values[:, i] for i in range(32)}
        ids = np.arange(part * ROWS // 3, (part + 1) * ROWS // 3)
        pl.DataFrame({"id": ids, **columns}).write_parquet(
            folder / f"part{part}.parquet", row_group_size=2_000
        )
    return folder


def command(tmp_path: Path, data: Path, output: Path) -> Command:
    model = tmp_path / "mlp.onnx"
    model.write_bytes(models.mlp())
    return Command(
        ["-m", model, "-i", data, "-o", output, "--keys", "id", "--shard-rows", "2000",
         "--run-id", "night"],
        tmp_path / "home",
    )  # fmt: skip


@pytest.mark.long
def test_kills_at_random_moments_leave_whole_files_and_the_run_comes_to_the_same(
    tmp_path: Path, data: Path
) -> None:
    undisturbed = command(tmp_path, data, tmp_path / "undisturbed")
    began = time.monotonic()
    status, _, err = undisturbed.run()
    whole_s = time.monotonic() - began
    assert status == 0, err
    moments = random.Random(11)  # noqa: S311  # moments, no secrets
    output = tmp_path / "killed"
    killed = command(tmp_path, data, output)

    kills = 0
    with watched(output) as wrong:
        for _ in range(KILLS):
            # Later than half: the process loads its libraries for most of the time.
            kills += kill_after(killed.start(), moments.uniform(0.4, 1.0) * whole_s)
            assert not (output / "_SUCCESS").exists() or digests(output) == digests(
                tmp_path / "undisturbed"
            )
        summary = killed.summary()

    assert kills > 0
    assert wrong == []
    assert summary["rows"] == ROWS
    assert digests(output) == digests(tmp_path / "undisturbed")
    assert sorted(rows_of(output)["id"].to_list()) == list(range(ROWS))


@pytest.mark.long
def test_what_is_done_is_skipped_and_a_file_that_was_changed_since_is_done_again(
    tmp_path: Path, data: Path
) -> None:
    output = tmp_path / "out"
    job = command(tmp_path, data, output)
    job.summary()
    before = digests(output)
    part = output / "part-00003.parquet"
    part.write_bytes(part.read_bytes()[:-10])
    (output / "part-00007.parquet").unlink()
    (output / ".part-00009.parquet.tmp").write_bytes(b"left by a crash")

    summary = job.summary("--resume", "night")

    assert summary["shards"] - summary["skipped"] == 2
    assert summary["redone"] == {
        "3": "part-00003.parquet was modified",
        "7": "part-00007.parquet is missing",
    }
    assert digests(output) == before


@pytest.mark.long
def test_another_model_mapping_or_input_is_refused_and_named(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "out"
    job = command(tmp_path, data, output)
    job.summary()
    before = digests(output)
    other = tmp_path / "other.onnx"
    other.write_bytes(models.mlp(seed=3))

    by_model = job.run("--model", other)
    by_mapping = job.run("--map", "input=" + ",".join(f"f{i}" for i in reversed(range(32))))
    extra = data / "part9.parquet"
    pl.read_parquet(data / "part0.parquet").write_parquet(extra)
    by_input = job.run()
    extra.unlink()

    assert [by_model[0], by_mapping[0], by_input[0]] == [1, 1, 1]
    assert "the model changed from" in by_model[2]
    assert "input 'input' used f0, f1" in by_mapping[2]
    assert "input files new: part9.parquet" in by_input[2]
    assert digests(output) == before


@pytest.mark.long
def test_an_interrupt_tells_how_to_go_on(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "out"
    job = command(tmp_path, data, output)
    for number in (signal.SIGINT, signal.SIGTERM):
        process = job.start()
        deadline = time.monotonic() + 60
        while not list(output.glob("part-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)

        assert process.returncode == 130, err
        assert "--resume night goes on" in err
        assert not list(output.glob(".*.tmp"))
        for path in output.glob("part-*"):
            path.unlink()

    assert job.summary()["rows"] == ROWS


@pytest.mark.long
def test_two_runs_at_once_and_a_second_run_into_one_folder_are_refused(
    tmp_path: Path, data: Path
) -> None:
    output = tmp_path / "out"
    job = command(tmp_path, data, output)
    first = job.start()
    deadline = time.monotonic() + 60
    while not list(output.glob("part-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # it holds its lock
    try:
        second = job.run()
        other = job.run("--run-id", "other")
    finally:
        first.send_signal(signal.SIGCONT)
    first.communicate(timeout=120)

    assert first.returncode == 0
    assert second[0] == 1
    assert "another run uses" in second[2]
    assert other[0] == 1
    assert "has the output of run night" in other[2]


@pytest.mark.long
def test_a_version_of_the_registry_answers_as_its_library_does(tmp_path: Path) -> None:
    trained = xgboost(tmp_path, "multiclass")
    home = tmp_path / "home"
    version = Registry(home, inspect_model).push("trees", trained.path)
    rows = np.random.default_rng(1).normal(size=(500, FEATURES)).astype(np.float32)
    columns = {f"f{i}": rows[:, i] for i in range(FEATURES)}
    pl.DataFrame({"id": range(500), **columns}).write_csv(tmp_path / "rows.csv", float_precision=9)
    arguments: list[str | Path] = [
        "-m",
        "trees@1",
        "-i",
        tmp_path / "rows.csv",
        "-o",
        tmp_path / "out",
        "--keys",
        "id",
    ]

    summary = Command(arguments, home).summary()

    found = rows_of(tmp_path / "out")
    assert (summary["rows"], summary["errors"]) == (500, 0)
    assert found["model_version"].unique().to_list() == [version.version]
    assert found["id"].to_list() == [str(i) for i in range(500)]
    expected = trained.expected(rows)
    for name, values in zip([s.name for s in version.signature.outputs], expected, strict=True):
        got = found[name].to_numpy()
        np.testing.assert_array_equal(np.stack(list(got)).reshape(values.shape), values)
