"""How far is a job, as its folder says? Read without a library of tables, while it runs.

Whoever looks may have more rights than the run, whose model may be hostile: nothing is followed,
waited for, or read without end.

`manifest.py` says what stands where.
"""

import os
import stat
from pathlib import Path
from typing import Final

import msgspec

from headrace.core.error_kind import UNDECODABLE

_JOB: Final = Path("_headrace") / "job.json"
_MANIFEST: Final = Path("_headrace") / "manifest.jsonl"
_MOST_BYTES: Final = 1 << 28


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What is done. `shards`: how many there are in all."""

    run_id: str
    shards: int
    shards_done: int
    rows: int
    errors: int


class _Job(msgspec.Struct):
    id: str
    shards: list[msgspec.Raw]


class _Done(msgspec.Struct):
    shard: int
    rows: int
    errors: int


def read_progress(output: Path) -> Progress | None:
    """How far the job of an output folder is; None where none can be read, as before it began.

    A line that is being written is not counted yet.
    """
    try:
        job = msgspec.json.decode(_read(output / _JOB), type=_Job)
    except (OSError, ValueError, *UNDECODABLE):
        return None
    try:
        whole = _read(output / _MANIFEST).rpartition(b"\n")[0]
        lines = [msgspec.json.decode(line, type=_Done) for line in whole.splitlines()]
    except (OSError, *UNDECODABLE):
        lines = []
    done = {line.shard: line for line in lines}.values()
    return Progress(
        run_id=job.id,
        shards=len(job.shards),
        shards_done=len(done),
        rows=sum(one.rows for one in done),
        errors=sum(one.errors for one in done),
    )


def _read(path: Path) -> bytes:
    """A plain file, at most so much of it.

    Raises:
        OSError: There is none.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags), "rb") as file:  # noqa: PTH123  # of a descriptor
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise FileNotFoundError(path)
        return file.read(_MOST_BYTES)
