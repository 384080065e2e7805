"""Job documents in JSON: the job, its shards, and the progress in its output folder.

A shard may run in another process or on another machine, so its document is self-contained.
No table library is needed. A reader of progress may have more rights than the run, whose model may
be hostile: links are not followed, and reads are bounded. `manifest.py` describes the folder.
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
    """Output format."""

    PARQUET = "parquet"
    CSV = "csv"
    JSONL = "jsonl"
    ARROW = "arrow"


class ErrorsTo(StrEnum):
    """Destination of row errors."""

    COLUMN = "column"
    """The column `error`, beside null outputs."""
    FILE = "file"
    """A separate file; the output has only rows without errors."""


class Shard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the input that is read, scored and written on its own."""

    number: int
    file: str
    begin: int
    """First unit, which depends on the source: row groups, bytes, batches, files or keys."""
    end: int
    """Last unit (exclusive)."""
    fingerprint: str
    """Changes when the input changes."""
    rows: int | None = None
    """Number of rows; None if unknown before reading."""
    size_bytes: int = 0
    line: int = 0
    """Line number of its first line in a text file, from 1."""
    first_row: int = 0
    """Rows of its row group in earlier shards, where a large group is split."""

    @property
    def name(self) -> str:
        """Name of its output file, without suffix."""
        return f"part-{self.number:05d}"


class SourceLocation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Location of the input rows."""

    kind: str
    """A module of `jobs.sources`."""
    url: str
    query: str = ""
    """SQL query, for databases."""
    key: str = ""
    """Column by which a query is split, for databases."""


class InputColumns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Columns of a model input: one column, or several scalar ones side by side."""

    input: str
    columns: list[str]


class ColumnPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Columns to read, and the inputs and keys that they become."""

    inputs: list[InputColumns]
    keys: dict[str, str]
    """Column of each key, by the key's name."""
    outputs: list[str]

    @property
    def columns(self) -> list[str]:
        """All columns to read, without duplicates."""
        inputs = [column for input_columns in self.inputs for column in input_columns.columns]
        return list(dict.fromkeys([*self.keys.values(), *inputs]))


class Sizes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of work units; a resumed run takes the same, so that results have the same digits."""

    shard_rows: int
    shard_bytes: int
    run_rows: int
    """Number of rows of one run of the model."""
    window_rows: int
    """Number of rows that are read, sorted and answered together."""
    buffer_bytes: int
    """Size of the results that are written together."""


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings common to all shards of a job."""

    model: ReplicaSettings
    source: SourceLocation
    plan: ColumnPlan
    sizes: Sizes
    output: str
    format: FileFormat = FileFormat.PARQUET
    errors: ErrorsTo = ErrorsTo.COLUMN
    nulls: NullPolicy = NullPolicy.NAN
    digest: str = ""
    """Digest of what affects answers."""


class OutputFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An output file, by its name within the folder."""

    name: str
    size_bytes: int
    sha256: str


class CompletedShard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A completed shard: a line of the manifest."""

    shard: int
    fingerprint: str
    digest: str
    rows: int
    errors: int
    files: list[OutputFile]
    seconds: float = 0.0


class JobModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Model of a job, with the digests that its answers depend on."""

    reference: str
    version: str
    digest: str
    runtime: str
    features: str = ""
    """Digest of the feature definitions; empty for none."""
    labels: str = ""
    """Digest of the class names; empty for none."""


class JobRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Record of the job in an output folder, written before the first shard and read to resume."""

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
    """Progress of a job."""

    run_id: str
    shards: int
    """Total number of shards."""
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
    """Return the progress of the job in a folder; None if it cannot be read.

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
