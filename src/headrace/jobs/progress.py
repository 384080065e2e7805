"""How far is a job, as its folder says? Read without a library of tables, while it runs.

`manifest.py` says what stands where.
"""

from pathlib import Path
from typing import Final

import msgspec

_JOB: Final = Path("_headrace") / "job.json"
_MANIFEST: Final = Path("_headrace") / "manifest.jsonl"


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
        job = msgspec.json.decode((output / _JOB).read_bytes(), type=_Job)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    try:
        whole = (output / _MANIFEST).read_bytes().rpartition(b"\n")[0]
        lines = [msgspec.json.decode(line, type=_Done) for line in whole.splitlines()]
    except (OSError, msgspec.MsgspecError):
        lines = []
    done = {line.shard: line for line in lines}.values()
    return Progress(
        run_id=job.id,
        shards=len(job.shards),
        shards_done=len(done),
        rows=sum(one.rows for one in done),
        errors=sum(one.errors for one in done),
    )
