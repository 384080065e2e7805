"""Documents of jobs, as JSON: the job, its shards, and the progress that its folder shows.

A shard may be run in another process or on another machine, so all that it needs is here. No
library of tables is needed. A reader of progress may have more rights than the run, whose model may
be hostile: links are not followed, and nothing is waited for or read without a bound. `manifest.py`
describes the folder.
"""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from headrace.core import NullPolicy, ReplicaSettings
from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import read_regular


class FileFormat(StrEnum):
    """How the output is written."""

    PARQUET = "parquet"
    CSV = "csv"
    JSONL = "jsonl"
    ARROW = "arrow"


class ErrorsTo(StrEnum):
    """Where the errors of rows go."""

    COLUMN = "column"
    """Into the column `error`, beside outputs that are null."""
    FILE = "file"
    """Into a file of their own; the output holds rows without errors only."""


class Shard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the input that is read, scored and written on its own.

    `begin` and `end` count what the kind of source counts: row groups, bytes, batches, files, keys.
    `fingerprint` changes when the input does. `rows`: None where nobody knows before it is read.
    `line`: the number of its first line in a file of text, from 1. `first_row`: rows of its row
    group that are in shards before, where a large group is cut.
    """

    number: int
    file: str
    begin: int
    end: int
    fingerprint: str
    rows: int | None = None
    size_bytes: int = 0
    line: int = 0
    first_row: int = 0

    @property
    def name(self) -> str:
        """What its output is called, without an ending."""
        return f"part-{self.number:05d}"


class SourceLocation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where rows come from. `query`, `key`: of databases. `kind`: a module of `jobs.sources`."""

    kind: str
    url: str
    query: str = ""
    key: str = ""


class InputColumns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of which columns an input of the model is made: one, or several scalars beside each other."""

    input: str
    columns: list[str]


class ColumnPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is read, and what it becomes. `keys`: what a key is called, and its column."""

    inputs: list[InputColumns]
    keys: dict[str, str]
    outputs: list[str]

    @property
    def columns(self) -> list[str]:
        """All that has to be read, each once."""
        inputs = [column for input_columns in self.inputs for column in input_columns.columns]
        return list(dict.fromkeys([*self.keys.values(), *inputs]))


class Sizes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much is taken at once; the same in a run that goes on, so that its digits are the same.

    `run_rows`: rows of one run of the model. `window_rows`: rows that are read, sorted and answered
    together. `buffer_bytes`: results that wait to be written together.
    """

    shard_rows: int
    shard_bytes: int
    run_rows: int
    window_rows: int
    buffer_bytes: int


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every shard of a job has in common. `digest` stands for what its answers depend on."""

    model: ReplicaSettings
    source: SourceLocation
    plan: ColumnPlan
    sizes: Sizes
    output: str
    format: FileFormat = FileFormat.PARQUET
    errors: ErrorsTo = ErrorsTo.COLUMN
    nulls: NullPolicy = NullPolicy.NAN
    digest: str = ""


class OutputFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of the output, by its name within the folder."""

    name: str
    size_bytes: int
    sha256: str


class CompletedShard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A shard that is done: a line of the manifest."""

    shard: int
    fingerprint: str
    digest: str
    rows: int
    errors: int
    files: list[OutputFile]
    seconds: float = 0.0


class JobModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model of a job: what answers depend on.

    `features`, `labels`: digests of what they are; empty for none.
    """

    reference: str
    version: str
    digest: str
    runtime: str
    features: str = ""
    labels: str = ""


class JobRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a folder of output is: written before the first shard, read by whoever goes on."""

    id: str
    begun_at: str
    headrace: str
    model: JobModel
    source: SourceLocation
    plan: ColumnPlan
    sizes: Sizes
    format: FileFormat
    errors: ErrorsTo
    nulls: NullPolicy
    shards: list[Shard]


_JOB: Final = Path("_headrace") / "job.json"
_MANIFEST: Final = Path("_headrace") / "manifest.jsonl"
_MAX_BYTES: Final = 1 << 28


class JobProgress(msgspec.Struct, frozen=True, kw_only=True):
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


def read_progress(output: Path) -> JobProgress | None:
    """How far the job of an output folder is; None where none can be read, as before it began.

    A line that is being written is not counted yet.
    """
    read = partial(read_regular, limit_bytes=_MAX_BYTES, follow=False)
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
    return JobProgress(
        run_id=job.id,
        shards=len(job.shards),
        shards_done=len(done),
        rows=sum(line.rows for line in done),
        errors=sum(line.errors for line in done),
    )
