"""Preparation of a job: model, columns, sizes and shards are fixed before the first row is read.

Sizes follow from the model and the memory alone, never from timings: a row's last digits can depend
on how many rows share a run, so a job that is repeated or resumed takes the same sizes.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

import headrace
from headrace.core import (
    VARIABLE,
    Datatype,
    FailedPreconditionError,
    FeatureLookup,
    InvalidArgumentError,
    ModelSignature,
    NotFoundError,
    NullPolicy,
    OnUnavailable,
    ReplicaSettings,
)
from headrace.core.text import size_bytes
from headrace.jobs.columns import row_shape, width
from headrace.jobs.manifest import (
    SUCCESS,
    OutputFolder,
    RemainingShards,
    check_same,
    leftovers,
    remaining_shards,
)
from headrace.jobs.mapping import MappingError, plan_columns
from headrace.jobs.messages import (
    CompletedShard,
    ErrorsTo,
    FileFormat,
    JobModel,
    JobRecord,
    OutputFile,
    Shard,
    Sizes,
    SourceLocation,
    Task,
)
from headrace.jobs.shard import layout_of
from headrace.jobs.sources.source import JobSource
from headrace.jobs.writers import check_writable, written
from headrace.scoring.loading import LoadedModel, load_model
from headrace.scoring.scorer import Scorer

MEMORY_BYTES: Final = 512 << 20
_SHARD_ROWS: Final = 1 << 18
_SLOW_SHARD_ROWS: Final = 1 << 14
"""Shard rows for models of texts or images: about as much work as a shard of other models."""
_SHARD_BYTES: Final = 64 << 20
_WINDOW_ROWS: Final = 1 << 15
"""Rows of a window: enough to make its fixed cost negligible; fewer where rows are large."""
_SORTED_ROWS: Final = 4096
_RUN_BYTES: Final = 256 << 10
"""Size of the inputs of one run: they and the results should stay in a core's cache."""
_MAX_RUN_ROWS: Final = 4096
_MIN_RUN_ROWS: Final = 8
_TEXT_RUN_ROWS: Final = 16
"""Runs of 32 take 7 % longer per row with an encoder of 22 M weights; runs of 8 equally long."""
_COPIES: Final = 8
"""Maximum copies of a window in memory: as read, columns, rows, answers, and output."""
_MAX_BUFFER: Final = 16 << 20


def plan_sizes(
    signature: ModelSignature,
    *,
    row_bytes: float,
    memory_bytes: int,
    workers: int,
    run_rows: int | None = None,
    shard_rows: int | None = None,
) -> Sizes:
    """Return the sizes that fit into `memory_bytes` when `workers` shards run at once.

    Args:
        row_bytes: Size in memory of one row of the columns that are read; 0 if unknown.
        run_rows: Rows of one run of the model; None for the default of the model.
        shard_rows: Rows of a shard; None for the default of the model.

    Raises:
        InvalidArgumentError: Not even one row fits.
    """
    share = memory_bytes / max(workers, 1) / _COPIES
    row_size = max(row_bytes, _input_bytes(signature) or 0)
    fitting = int(share / row_size) if row_size else _WINDOW_ROWS
    if fitting < 1:
        msg = (
            f"one row of {row_size:.0f} bytes needs {_COPIES} copies in each of {workers} workers, "
            f"more than --memory {memory_bytes >> 20}MiB; raise --memory or lower --workers"
        )
        raise InvalidArgumentError(msg)
    slow = is_slow(signature)
    rows = run_rows or usual_run_rows(signature)
    window = max(rows, _SORTED_ROWS if slow else _WINDOW_ROWS)
    window = min(window, fitting)
    return Sizes(
        shard_rows=shard_rows or (_SLOW_SHARD_ROWS if slow else _SHARD_ROWS),
        shard_bytes=_SHARD_BYTES,
        run_rows=min(rows, window),
        window_rows=window,
        buffer_bytes=int(min(share, _MAX_BUFFER)),
    )


def usual_run_rows(signature: ModelSignature) -> int:
    """Return the default number of rows of one run: thousands of small rows, few large ones."""
    if not signature.batched:
        return 1
    size = _input_bytes(signature)
    if size is None or is_slow(signature):
        return _TEXT_RUN_ROWS
    rows = max(_RUN_BYTES // max(size, 1), 1)
    return min(max(1 << (rows.bit_length() - 1), _MIN_RUN_ROWS), _MAX_RUN_ROWS)


def is_slow(signature: ModelSignature) -> bool:
    """Return whether rows are texts, images or sequences, which are slow to score."""
    return any(
        spec.datatype is Datatype.BYTES or VARIABLE in row_shape(spec, batched=signature.batched)
        for spec in signature.inputs
    )


def _input_bytes(signature: ModelSignature) -> int | None:
    """Return the bytes of one row of all inputs; None if they depend on the row."""
    total = 0
    for spec in signature.inputs:
        size = width(row_shape(spec, batched=signature.batched))
        if size is None or spec.datatype is Datatype.BYTES:
            return None
        total += size * spec.datatype.dtype.itemsize
    return total


def parse_bytes(text: str) -> int:
    """Return the number of bytes in a size such as `512MiB`, `1GB` or a plain number.

    Raises:
        InvalidArgumentError: The text is not a size.
    """
    size = size_bytes(text)
    if size is None:
        raise InvalidArgumentError(f"'{text}' is not a size; write 512MiB or 2GB")
    return size


_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]{0,127}")
_LOOKUP_S: Final = 30.0
"""Timeout of a feature lookup: a window looks up thousands of rows, and no caller waits."""
_WARM_UP_S: Final = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """Settings of a job, as passed by the user."""

    output: Path
    mapping: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Columns by model input, as in `plan_columns`."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Key columns, as in `plan_columns`."""
    outputs: Sequence[str] = ()
    """Outputs to write; empty for all."""
    format: FileFormat = FileFormat.PARQUET
    errors: ErrorsTo = ErrorsTo.COLUMN
    nulls: NullPolicy = NullPolicy.NAN
    run_rows: int | None = None
    """Rows of one run of the model; None to choose."""
    shard_rows: int | None = None
    """Rows of a shard; None to choose."""
    memory_bytes: int = MEMORY_BYTES
    workers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A prepared job: its record, its remaining shards, and the objects that run them."""

    record: JobRecord
    task: Task
    source: JobSource
    scorer: Scorer
    left: RemainingShards = field(default_factory=RemainingShards)


def load_scorer(settings: ReplicaSettings) -> Scorer:
    """Load a job's model as a replica does.

    A feature store may take longer than a request would wait, and an unavailable one is waited for:
    an endpoint may answer with defaults, but a job must not fill a table with them.
    """
    features = settings.features
    if isinstance(features, FeatureLookup):
        features = msgspec.structs.replace(
            features,
            timeout_s=max(features.timeout_s, _LOOKUP_S),
            on_unavailable=OnUnavailable.REJECT,
        )
        settings = msgspec.structs.replace(settings, features=features)
    loaded: LoadedModel = load_model(settings, warm_up_s=_WARM_UP_S)
    return Scorer(
        loaded,
        name=settings.model_name,
        version=settings.model_version,
        checks_rows=settings.batching.row_check_ratio != 0,
    )


def plan_job(
    request: JobRequest,
    *,
    model: JobModel,
    settings: ReplicaSettings,
    source: JobSource,
    location: SourceLocation,
    scorer: Scorer,
    run_id: str,
    started: JobRecord | None,
    now: datetime,
) -> tuple[JobRecord, Task]:
    """Validate a job and split its input into shards.

    Args:
        begun: The job to resume, whose sizes apply; None for a new one.

    Raises:
        MappingError: Columns do not fit the model.
        InvalidArgumentError: The input or the output is invalid.
    """
    schema = source.schema()
    plan = plan_columns(
        scorer.signature,
        schema,
        mapping=request.mapping,
        keys=request.keys,
        outputs=request.outputs,
        has_types=source.has_types,
    )
    reason = check_writable(layout_of(plan, source, scorer, request.errors).schema, request.format)
    if reason:
        raise MappingError([reason])
    sizes = (
        started.sizes
        if started is not None
        else plan_sizes(
            scorer.signature,
            row_bytes=source.row_bytes(plan.columns),
            memory_bytes=request.memory_bytes,
            workers=request.workers,
            run_rows=request.run_rows,
            shard_rows=request.shard_rows,
        )
    )
    shards = source.cut(sizes, plan.columns)
    _check_apart(location, shards, request.output)
    task = Task(
        model=settings,
        source=location,
        plan=plan,
        sizes=sizes,
        output=str(request.output.absolute()),
        format=request.format,
        errors=request.errors,
        nulls=request.nulls,
    )
    task = msgspec.structs.replace(task, digest=digest_of(model, task))
    record = JobRecord(
        id=run_id,
        begun_at=now.isoformat(timespec="seconds"),
        headrace=headrace.__version__,
        model=model,
        source=location,
        plan=plan,
        sizes=sizes,
        format=request.format,
        errors=request.errors,
        nulls=request.nulls,
        shards=shards,
    )
    return record, task


def digest_of(model: JobModel, task: Task) -> str:
    """Return the digest of what the answers of a shard depend on besides its rows."""
    parts = (
        (model.digest, model.version, model.runtime, model.features, model.labels),
        (task.plan, task.sizes, task.format, task.errors, task.nulls),
    )
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


def new_run_id(now: datetime) -> str:
    """Return a new id, sortable by time."""
    return f"{now.astimezone(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def check_run_id(run_id: str) -> str:
    """Return `run_id` if it is valid; raise InvalidArgumentError otherwise."""
    if _ID.fullmatch(run_id) is None:
        msg = (
            f"run id {run_id[:80]!r} is not allowed: use up to 128 letters, digits and '_.:+-', "
            "beginning with a letter or digit"
        )
        raise InvalidArgumentError(msg)
    return run_id


def find_begun(folder: OutputFolder, *, run_id: str, resume: str) -> JobRecord | None:
    """Return the job to resume in a folder; None for a new one.

    Args:
        run_id: Id of a new run; a run that began with this id is resumed.
        resume: Id of the run that must have begun here. Either may be empty.

    Raises:
        NotFoundError: No run to resume exists.
        FailedPreconditionError: The folder has another job's output.
    """
    record = folder.record()
    requested = resume or run_id
    if record is None:
        if resume:
            raise NotFoundError(f"run {resume} does not exist in {folder.path}: no run began there")
        return None
    if record.id == requested:
        return record
    done = "it is complete" if folder.is_complete() else f"--resume {record.id} continues it"
    if resume:
        raise NotFoundError(f"{folder.path} has run {record.id}, not {resume}; {done}")
    msg = f"{folder.path} has the output of run {record.id}: {done}; or choose another folder"
    raise FailedPreconditionError(msg)


def settle(
    folder: OutputFolder, record: JobRecord, task: Task, started: JobRecord | None
) -> tuple[JobRecord, RemainingShards]:
    """Start the job in the folder, or find its remaining shards; delete a killed run's leftovers.

    Raises:
        ChangedError: The job that began here differs.
        FailedPreconditionError: The folder has other content.
    """
    if started is None:
        folder.begin(record)
        return record, RemainingShards(todo=list(record.shards))
    check_same(started, record)

    def find(name: str) -> OutputFile | None:
        try:
            return written(folder.path, name)
        except OSError:
            return None

    left = remaining_shards(started, folder.entries(), task.digest, find)
    completed: list[CompletedShard] = left.done
    # `_SUCCESS` is removed first if shards remain, so that it never marks incomplete output.
    folder.remove([SUCCESS] if left.todo else [])
    folder.remove(leftovers(folder.names(), completed))
    return started, left


def _check_apart(location: SourceLocation, shards: Sequence[Shard], output: Path) -> None:
    """Raise InvalidArgumentError if the output folder and the input files overlap."""
    folder = output.absolute()
    root = Path(location.url)
    if root.is_dir() and folder.is_relative_to(root):
        msg = f"the output folder {output} is inside the input {root}; choose another folder"
        raise InvalidArgumentError(msg)
    for file in dict.fromkeys(shard.file for shard in shards):
        if Path(file).is_relative_to(folder):
            msg = f"the input {file} is inside the output folder {output}; choose another folder"
            raise InvalidArgumentError(msg)
