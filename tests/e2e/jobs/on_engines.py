"""What must be true on any engine: a job, its output here, and its output there."""

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest

from headrace.testing import models
from tests.e2e.jobs.commands import Command, digests, rows_of

ROWS = 24_000
BAD = (17, 8_003, 23_999)
SHARDS = 24
LIMIT_S = 240.0
"""Of a run: on busy cores, Ray and Spark take half a minute to begin."""


def needs(package: str, program: str = "") -> pytest.MarkDecorator:
    """Skip where it is not installed."""
    missing = importlib.util.find_spec(package) is None
    reason = f"{package} is not installed: make engines brings it"
    if program and not missing:
        missing, reason = shutil.which(program) is None, f"there is no {program}"
    return pytest.mark.skipif(missing, reason=reason)


@dataclass(slots=True)
class Case:
    """A job over bad and good rows, slow enough to be disturbed, and what it comes to here."""

    folder: Path
    local: dict[str, str] = field(default_factory=dict)

    @classmethod
    def made(cls, folder: Path) -> "Case":
        values = np.random.default_rng(5).standard_normal((ROWS, 32))
        values[list(BAD), 3] = 1e300  # too large for a float of 32 bits
        data = folder / "data"
        data.mkdir()
        for part in range(3):
            rows = slice(part * ROWS // 3, (part + 1) * ROWS // 3)
            columns = {f"f{i}": values[rows, i] for i in range(32)}
            frame = pl.DataFrame({"id": np.arange(ROWS)[rows], **columns})
            frame.write_parquet(data / f"part{part}.parquet", row_group_size=1_000)
        (folder / "mlp.onnx").write_bytes(models.mlp())
        case = cls(folder)
        summary = case.command("local").summary()
        assert (summary["rows"], summary["errors"]) == (ROWS, len(BAD))
        case.local = digests(folder / "local")
        assert len(case.local) == SHARDS
        return case

    def command(self, output: str, *more: str) -> Command:
        # Runs of two rows are slow, so that there is a time to kill something in.
        return Command(
            ["-m", self.folder / "mlp.onnx", "-i", self.folder / "data", "-o", self.folder / output,
             "--keys", "id", "--shard-rows", "1000", "--chunk-rows", "2", "--run-id", "night",
             "--workers", "2", *more],
            self.folder / "home",
        )  # fmt: skip

    def check(self, output: str) -> None:
        """The same bytes as here, and nothing beside them."""
        folder = self.folder / output
        assert digests(folder) == self.local
        assert (folder / "_SUCCESS").exists()
        assert sorted(rows_of(folder)["id"].to_list()) == list(range(ROWS))


def until_some(process: subprocess.Popen[str], folder: Path, shards: int = 2) -> None:
    """Wait until shards are in the manifest, and the process is still there."""
    manifest = folder / "_headrace" / "manifest.jsonl"
    deadline = time.monotonic() + LIMIT_S
    while not manifest.exists() or len(manifest.read_bytes().splitlines()) < shards:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(process: subprocess.Popen[str], is_one: Callable[[psutil.Process], bool]) -> list[int]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if is_one(child):
                found.append(child.pid)
        except psutil.NoSuchProcess:
            continue
    return sorted(found)


def check_a_lost_worker(
    case: Case, engine: str, is_worker: Callable[[psutil.Process], bool]
) -> None:
    output = f"{engine}-lost"
    process = case.command(output, "--engine", engine, "--json").start()
    until_some(process, case.folder / output)
    workers = children(process, is_worker)
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 0, err
    assert workers[0] not in children_of_all(workers)
    case.check(output)


def children_of_all(pids: list[int]) -> list[int]:
    """Those that still run."""
    return [pid for pid in pids if psutil.pid_exists(pid)]


def check_a_killed_driver(case: Case, engine: str) -> None:
    output = f"{engine}-killed"
    job = case.command(output, "--engine", engine)
    process = job.start()
    until_some(process, case.folder / output)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (case.folder / output / "_SUCCESS").exists()

    status, out, err = job.run("--json", timeout_s=LIMIT_S)  # workers may still be about

    assert status == 0, err
    assert '"skipped":0' not in out
    case.check(output)


def check_an_interrupt(case: Case, engine: str) -> None:
    output = f"{engine}-interrupted"
    job = case.command(output, "--engine", engine)
    for number in (signal.SIGINT, signal.SIGTERM):
        process = job.start()
        done = case.folder / output / "_headrace" / "manifest.jsonl"
        before = len(done.read_bytes().splitlines()) if done.exists() else 0
        until_some(process, case.folder / output, before + 2)
        process.send_signal(number)
        _, err = process.communicate(timeout=LIMIT_S)

        assert process.returncode == 130, err
        assert "--resume night goes on" in err
        assert not list((case.folder / output).glob(".*.tmp"))
    status, _, err = job.run("--engine", "local", timeout_s=LIMIT_S)
    assert status == 0, err
    case.check(output)


def check_too_many_errors(case: Case, engine: str) -> None:
    output = f"{engine}-errors"
    job = case.command(output, "--engine", engine)

    status, _, err = job.run("--max-errors", "2", timeout_s=LIMIT_S)
    again = job.run("--max-errors", "3", "--json", timeout_s=LIMIT_S)

    assert status == 4, err
    assert "3 rows have errors, more than --max-errors 2 allows: column 'f3'" in err
    assert again[0] == 0, again[2]
    assert '"errors":3' in again[1]
    case.check(output)
