"""`headrace batch run` as a process, and what it leaves."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

HEADRACE = Path(sys.executable).with_name("headrace")


@dataclass(slots=True)
class Command:
    """One command line, run as often as it takes."""

    arguments: Sequence[str | Path]
    home: Path
    errors: list[str] = field(default_factory=list)

    def start(self, *more: str | Path) -> subprocess.Popen[str]:
        line = [HEADRACE, "batch", "run", *self.arguments, *more]
        environment = {**os.environ, "HEADRACE_HOME": str(self.home)}
        return subprocess.Popen(
            [str(word) for word in line],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *more: str | Path, timeout_s: float = 120.0) -> tuple[int, str, str]:
        with self.start(*more) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return process.returncode, out, err

    def summary(self, *more: str | Path) -> Any:
        status, out, err = self.run("--json", *more)
        assert status == 0, err
        return json.loads(out)


def kill_after(process: subprocess.Popen[str], seconds: float) -> bool:
    """Whether the process was still there to be killed."""
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    return False


def digests(folder: Path) -> dict[str, str]:
    """All that a reader of the folder takes for output, by name."""
    files = [path for path in folder.rglob("*") if path.is_file() and "_headrace" not in path.parts]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != "_SUCCESS"
    }


def rows_of(folder: Path) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted(folder.glob("part-*.parquet"))])


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """What was wrong with any file under a final name, looked at again and again."""
    wrong: list[str] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            for path in sorted(folder.glob("*")):
                if path.name.startswith(".") or not path.is_file():
                    continue
                if path.suffix == ".parquet":
                    try:
                        pq.read_metadata(path)
                    except Exception as error:  # noqa: BLE001  # whatever it is, it is wrong
                        wrong.append(f"{path.name}: {error}")
            time.sleep(0.005)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        thread.join()
