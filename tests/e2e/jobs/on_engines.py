"""What must be true on any engine: a job, its output here, and its output there."""

import contextlib
import importlib.util
import json
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
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
"""Of a run: on busy cores, Ray takes half a minute to begin."""
AWAY_S = 90.0
"""Until a cluster that does not answer has been given up."""


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where it is not installed."""
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: make setup ENV=ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """An engine: how a command names it, and which processes are its workers.

    `name`: in names of outputs. `root`: whose descendants the workers are; None for the command's.
    """

    name: str
    options: Sequence[str]
    is_worker: Callable[[psutil.Process], bool]
    root: int | None = None

    def workers(self, command: subprocess.Popen[str]) -> list[psutil.Process]:
        """Those that run now."""
        found = []
        for one in psutil.Process(self.root or command.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [one] if self.is_worker(one) else []
        return sorted(found, key=lambda one: one.pid)


@dataclass(slots=True)
class Case:
    """A job over bad and good rows, slow enough to be disturbed, and what it comes to here."""

    folder: Path
    local: dict[str, str] = field(default_factory=dict)

    @classmethod
    def made(cls, folder: Path) -> "Case":
        case = cls.given(folder)
        summary = case.command("local").summary()
        assert (summary["rows"], summary["errors"]) == (ROWS, len(BAD))
        case.local = digests(folder / "local")
        assert len(case.local) == SHARDS
        return case

    @classmethod
    def given(cls, folder: Path) -> "Case":
        """Not run here."""
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
        return cls(folder)

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


def check_the_output(case: Case, where: Where) -> None:
    job = case.command(where.name, *where.options, "--json")

    status, out, err = job.run(timeout_s=LIMIT_S)

    assert status == 0, err
    assert f'"rows":{ROWS},"errors":{len(BAD)}' in out
    case.check(where.name)


def check_a_lost_worker(case: Case, where: Where) -> None:
    output = f"{where.name}-lost"
    process = case.command(output, *where.options, "--json").start()
    until_some(process, case.folder / output)
    lost, *_ = where.workers(process)
    lost.kill()
    _, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 0, err
    assert not lost.is_running() or lost.status() == psutil.STATUS_ZOMBIE
    case.check(output)


def check_a_killed_driver(case: Case, where: Where) -> None:
    output = f"{where.name}-killed"
    job = case.command(output, *where.options)
    process = job.start()
    until_some(process, case.folder / output)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (case.folder / output / "_SUCCESS").exists()

    # Workers of the killed one may still be about.
    status, out, err = job.run("--resume", "night", "--json", timeout_s=LIMIT_S)

    assert status == 0, err
    assert json.loads(out)["skipped"] >= 2
    case.check(output)


def check_interrupts(case: Case, at_first: Where, then: Where) -> None:
    output = f"{at_first.name}-interrupted"
    for where, number in ((at_first, signal.SIGINT), (then, signal.SIGTERM)):
        process = case.command(output, *where.options).start()
        done = case.folder / output / "_headrace" / "manifest.jsonl"
        before = len(done.read_bytes().splitlines()) if done.exists() else 0
        until_some(process, case.folder / output, before + 2)
        process.send_signal(number)
        _, err = process.communicate(timeout=LIMIT_S)

        assert process.returncode == 130, err
        assert "--resume night goes on" in err
        assert not list((case.folder / output).glob(".*.tmp"))
    status, _, err = case.command(output).run(timeout_s=LIMIT_S)
    assert status == 0, err
    case.check(output)


def check_too_many_errors(case: Case, where: Where) -> None:
    output = f"{where.name}-errors"
    job = case.command(output, *where.options)

    status, _, err = job.run("--max-errors", "2", timeout_s=LIMIT_S)
    again = job.run("--max-errors", "3", "--json", timeout_s=LIMIT_S)

    assert status == 4, err
    assert "3 rows have errors, more than --max-errors 2 allows: column 'f3'" in err
    assert again[0] == 0, again[2]
    assert json.loads(again[1])["errors"] == 3
    case.check(output)


def check_nobody_there(case: Case, engine: str, address: str) -> str:
    """What is told then, in time."""
    output = case.folder / "nowhere"
    job = case.command("nowhere", "--engine", engine, "--address", address)

    status, _, err = job.run(timeout_s=AWAY_S)

    assert status == 3, err
    assert not list(output.glob("part-*"))
    return err.splitlines()[-1]


def end(process: subprocess.Popen[bytes], timeout_s: float = 30.0) -> None:
    """End a process of ours, and what it started."""
    left = []
    with contextlib.suppress(psutil.NoSuchProcess):
        left = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(left, timeout=5)
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def until_logged(process: subprocess.Popen[bytes], log: Path, words: str) -> None:
    """Wait until a process of ours says something."""
    deadline = time.monotonic() + LIMIT_S
    while words not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
