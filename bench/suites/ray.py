"""How does a job scale over the workers of Ray, and at what cost beside those of one machine?

A small perceptron shows what the engines cost, and a model of 3 ms a row how they scale. Ray is one
of the job's own. Rates are those of the middle half of the shards: the start stands by itself.
"""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from bench import cpu
from bench.context import Context
from bench.results import SuiteResult, Table, cell
from bench.scaling import watch_job
from bench.verify import WrongAnswerError
from bench.windows import Arm, Rounds, Window, figure, interleave, ratio

FLOATS: Final = 32
WORKERS: Final = (1, 2, 4)
LOCAL, RAY = "local", "ray"
SKIPPED: Final = "Ray is not installed: make setup ENV=ray, then .venv-ray/bin/python -m bench ray"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A model and its rows: `files` of one shard each."""

    model: str
    rows: int
    files: int
    quick_files: int


LOADS: Final = (
    Load(model="mlp", rows=250_000, files=64, quick_files=16),
    Load(model="busy", rows=250, files=32, quick_files=16),
)


def run(context: Context) -> SuiteResult:
    """Answer the same files by both engines with 1, 2 and 4 workers, in turn."""
    if find_spec("ray") is None:
        return SuiteResult(name="ray", skipped=SKIPPED)
    jobs = [
        _Job(context=context, load=load, engine=engine, workers=workers)
        for load in LOADS
        for workers in WORKERS
        for engine in (LOCAL, RAY)
    ]
    for load in LOADS:
        _write(context.home / load.model, load, load.quick_files if context.quick else load.files)
    arms = [Arm(name=job.name, measure=job.measure) for job in jobs]
    rounds = interleave(arms, rounds=1 if context.quick else 3, take=_watched)
    _check_alike(jobs)
    return SuiteResult(
        name="ray",
        table=Table(headings=_HEADINGS, rows=[_row(rounds, job) for job in jobs]),
        notes=[f"{len(os.sched_getaffinity(0))} cores: more workers than that share them"],
        rounds=rounds,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    context: Context
    load: Load
    engine: str
    workers: int

    @property
    def name(self) -> str:
        return _name(self.load.model, self.engine, self.workers)

    @property
    def output(self) -> Path:
        return self.context.home / self.name.replace(" ", "-")

    def measure(self) -> Mapping[str, float]:
        shutil.rmtree(self.output, ignore_errors=True)
        rows = self.context.home / self.load.model
        command = [
            *(str(Path(sys.executable).with_name("headrace")), "batch", "run", "--json"),
            *("--model", str(self.context.models[self.load.model])),
            *("--input", f"{rows}/*.parquet", "--output", str(self.output)),
            *("--keys", "id", "--map", f"input=f0..f{FLOATS - 1}"),
            *("--engine", self.engine, "--workers", str(self.workers)),
        ]
        return watch_job(command, self.output)


def _name(model: str, engine: str, workers: int) -> str:
    return f"{model} {engine} {workers}"


def _write(folder: Path, load: Load, files: int) -> None:
    folder.mkdir()
    values = np.random.default_rng(0).standard_normal((load.rows, FLOATS), dtype=np.float32)
    columns = {f"f{i}": values[:, i] for i in range(FLOATS)}
    first = folder / "rows-000.parquet"
    pl.DataFrame({"id": np.arange(load.rows), **columns}).write_parquet(first)
    for number in range(1, files):
        (folder / f"rows-{number:03d}.parquet").hardlink_to(first)


def _watched(arm: Arm) -> Window:
    """Measure once; what the job's processes did not use, strangers did. Not repeated: too long."""
    began, before, own = time.monotonic(), cpu.parse_stat(_stat()), time.process_time()
    figures = arm.measure()
    wall_s = time.monotonic() - began
    busy_s, stolen_s = (b - a for a, b in zip(before, cpu.parse_stat(_stat()), strict=True))
    own_s = time.process_time() - own
    usage = cpu.Usage(
        by_part={"job": figures["cpu_s"] / wall_s, cpu.BENCH: own_s / wall_s},
        foreign=max(busy_s - figures["cpu_s"] - own_s, 0.0) / wall_s,
        stolen=stolen_s / wall_s,
    )
    return Window(figures=figures, usage=usage)


def _stat() -> str:
    return Path("/proc/stat").read_text()


def _check_alike(jobs: list[_Job]) -> None:
    """Raise WrongAnswerError unless both engines wrote the same bytes with as many workers."""
    outputs = {
        (job.load.model, job.workers, job.engine): {
            part.name: hashlib.sha256(part.read_bytes()).hexdigest()
            for part in job.output.glob("part-*.parquet")
        }
        for job in jobs
    }
    for (model, workers, engine), found in outputs.items():
        if not found or found != outputs[model, workers, LOCAL]:
            msg = f"{_name(model, engine, workers)} wrote other bytes than one machine"
            raise WrongAnswerError(msg)


_HEADINGS: Final = (
    *("model, engine, workers", "rows/s", "of local", "of 1 worker"),
    *("CPU, us/row", "local's CPU over it", "first shard, s", "whole job, s"),
)


def _row(rounds: Rounds, job: _Job) -> list[str]:
    local = _name(job.load.model, LOCAL, job.workers)
    alone = _name(job.load.model, job.engine, 1)
    return [
        job.name,
        cell(figure(rounds, job.name, "rows_per_s")),
        cell(ratio(rounds, job.name, local, "rows_per_s"), 2),
        cell(ratio(rounds, job.name, alone, "rows_per_s"), 2),
        cell(figure(rounds, job.name, "cpu_us_per_row"), 2),
        cell(ratio(rounds, local, job.name, "cpu_us_per_row"), 2),
        cell(figure(rounds, job.name, "first_s"), 1),
        cell(figure(rounds, job.name, "whole_s"), 1),
    ]
