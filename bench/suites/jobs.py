"""How many rows a second does a job answer beside Polars with ONNX Runtime alone, in what memory?

A small perceptron over Parquet of 32 floats a row, in files that are read again and again (links).
Each arm is a process; its start is left out, and its memory is what the kernel saw at most.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from bench.context import Context
from bench.results import SuiteResult, Table, Target, cell
from bench.windows import Arm, Rounds, figure, interleave, ratio

FLOATS: Final = 32
FILE_ROWS: Final = 250_000
FILES: Final = 32
QUICK_FILES: Final = 4
POLARS, HEADRACE = "polars", "headrace"


def run(context: Context) -> SuiteResult:
    """Answer the same files by both, in turn."""
    folder = context.home / "rows"
    _write(folder, QUICK_FILES if context.quick else FILES)
    model = str(context.models["mlp"])
    single = str(context.home / "polars.parquet")
    output = context.home / "answers"
    loop = [sys.executable, "-m", "bench.polars_loop", model, f"{folder}/*.parquet", single]
    command = [
        *(str(Path(sys.executable).with_name("headrace")), "batch", "run", "--json"),
        *("--model", model, "--input", f"{folder}/*.parquet", "--output", str(output)),
        *("--keys", "id", "--map", f"input=f0..f{FLOATS - 1}"),
    ]

    def job() -> Mapping[str, float]:
        shutil.rmtree(output, ignore_errors=True)
        return _measured(command)

    arms = [
        Arm(name=POLARS, measure=lambda: _measured([*loop, str(FLOATS)])),
        Arm(name=HEADRACE, measure=job),
    ]
    rounds = interleave(arms, rounds=context.rounds)
    return SuiteResult(name="jobs", table=_table(rounds), targets=_targets(rounds), rounds=rounds)


def _write(folder: Path, files: int) -> None:
    folder.mkdir()
    values = np.random.default_rng(0).standard_normal((FILE_ROWS, FLOATS), dtype=np.float32)
    columns = {f"f{i}": values[:, i] for i in range(FLOATS)}
    first = folder / "rows-000.parquet"
    frame = pl.DataFrame({"id": np.arange(FILE_ROWS), **columns})
    frame.write_parquet(first, row_group_size=FILE_ROWS // 2)
    for number in range(1, files):
        (folder / f"rows-{number:03d}.parquet").hardlink_to(first)


def _measured(command: Sequence[str]) -> Mapping[str, float]:
    """What a process says of itself, and what the kernel says of it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.read())
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "rows_per_s": said["rows"] / said["seconds"],
        "cpu_us_per_row": (used.ru_utime + used.ru_stime) / said["rows"] * 1e6,
        "memory_mb": used.ru_maxrss / 1024,
    }


def _table(rounds: Rounds) -> Table:
    rows = [
        [
            arm,
            cell(figure(rounds, arm, "rows_per_s"), 0),
            cell(figure(rounds, arm, "cpu_us_per_row"), 2),
            cell(figure(rounds, arm, "memory_mb"), 0),
        ]
        for arm in (POLARS, HEADRACE)
    ]
    return Table(headings=["job", "rows/s", "CPU, us/row", "memory, MB"], rows=rows)


def _targets(rounds: Rounds) -> list[Target]:
    return [
        Target(
            text="time of a job over that of Polars and ONNX Runtime alone",
            value=ratio(rounds, POLARS, HEADRACE, "rows_per_s").median,
            limit=1.5,
            is_ceiling=True,
        ),
        Target(
            text="memory of a job",
            value=figure(rounds, HEADRACE, "memory_mb").median,
            limit=1000.0,
            unit="MB",
            is_ceiling=True,
        ),
    ]
