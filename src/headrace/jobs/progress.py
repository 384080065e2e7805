"""How far is a job, as its folder says? Read without a library of tables, while it runs.

Whoever looks may have more rights than the run, whose model may be hostile: nothing is followed,
waited for, or read without end.

`manifest.py` says what stands where.
"""

from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import read_regular

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
    read = partial(read_regular, limit_bytes=_MOST_BYTES, follow=False)
    try:
        job = msgspec.json.decode(read(output / _JOB), type=_Job)
    except (OSError, ValueError, *UNDECODABLE):
        return None
    try:
        whole = read(output / _MANIFEST).rpartition(b"\n")[0]
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
