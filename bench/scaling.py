"""How fast is a job once all its workers are at work, and what processor time does that take?

A job tells its rows and seconds itself, but these have the start in them, which for a cluster is
longer than many a job. So its files are looked at when it is done, and its processes while it runs.
"""

import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import psutil

LOOK_S: Final = 0.25
LEAST: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """Rates of the middle half of the shards."""

    rows_per_s: float
    cpu_us_per_row: float


@dataclass(slots=True)
class TreeTime:
    """Processor seconds of a process and all that it started, those that ended included.

    Marks in their environment would not do: Ray's workers write their titles over it.
    """

    root: psutil.Process
    by_process: dict[tuple[int, float], float] = field(default_factory=dict)

    def look(self) -> float:
        """Seconds so far."""
        with suppress(psutil.NoSuchProcess):
            for one in (self.root, *self.root.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    used = one.cpu_times()
                    self.by_process[one.pid, one.create_time()] = used.user + used.system
        return sum(self.by_process.values())


def steady(done: Sequence[tuple[float, int]], cpu: Sequence[tuple[float, float]]) -> Steady:
    """Rates between the first quarter of the shards and the last.

    Args:
        done: When each shard was done, and its rows; `LEAST` of them or more.
        cpu: Processor seconds so far, at times in order.
    """
    assert len(done) >= LEAST
    shards = sorted(done)
    quarter = len(shards) // 4
    middle = shards[quarter : len(shards) - quarter]
    begin, end = shards[quarter - 1][0], middle[-1][0]
    rows = sum(rows for _, rows in middle)
    times, used = zip(*cpu, strict=True)
    spent_s = float(np.interp(end, times, used) - np.interp(begin, times, used))
    return Steady(rows_per_s=rows / (end - begin), cpu_us_per_row=spent_s / rows * 1e6)


def watch_job(command: Sequence[str], output: Path) -> Mapping[str, float]:
    """Run a job to its end; its rates, when its first shard was done, and what it took in all.

    Raises:
        CalledProcessError: It failed.
    """
    began, samples = _now(), []
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        tree = TreeTime(psutil.Process(process.pid))
        while process.poll() is None:
            samples.append((_now(), tree.look()))
            time.sleep(LOOK_S)
        ended = _now()
        assert process.stderr is not None
        if process.returncode:
            raise subprocess.CalledProcessError(
                process.returncode, command, stderr=process.stderr.read()
            )
    done = shards_of(output)
    rates = steady(done, samples)
    return {
        "rows_per_s": rates.rows_per_s,
        "cpu_us_per_row": rates.cpu_us_per_row,
        "first_s": min(at for at, _ in done) - began,
        "whole_s": ended - began,
        "cpu_s": tree.look(),
    }


def shards_of(output: Path) -> list[tuple[float, int]]:
    """When each shard of a job was written, and its rows."""
    lines = (output / "_headrace" / "manifest.jsonl").read_bytes().splitlines()
    return [
        ((output / one["files"][0]["name"]).stat().st_mtime, one["rows"])
        for one in map(msgspec.json.decode, lines)
    ]


def _now() -> float:
    """On the clock that files have."""
    return time.clock_gettime(time.CLOCK_REALTIME)
