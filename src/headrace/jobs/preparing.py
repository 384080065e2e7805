"""From what a person asks for to a job that may begin, or go on: all is checked, no row is read."""

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
    FailedPreconditionError,
    FeatureSettings,
    InvalidArgumentError,
    NotFoundError,
    Nulls,
    OnUnavailable,
    ReplicaSettings,
)
from headrace.jobs.manifest import SUCCESS, OutputFolder, leftovers
from headrace.jobs.mapping import MappingError, plan_columns
from headrace.jobs.messages import (
    Done,
    ErrorsTo,
    Format,
    JobModel,
    JobRecord,
    Shard,
    SourceSettings,
    Task,
    Written,
)
from headrace.jobs.resuming import Left, check_same, left_to_do
from headrace.jobs.shard import layout_of
from headrace.jobs.sizes import MEMORY_BYTES, plan_sizes
from headrace.jobs.sources.source import Source
from headrace.jobs.writing import check_writable, written
from headrace.scoring.loading import LoadedModel, load_model
from headrace.scoring.scorer import Scorer

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]{0,127}")
_LOOK_UP_S: Final = 30.0
"""How long a look-up of features may take: a window asks for thousands, and nobody waits."""
_WARM_UP_S: Final = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a person asks for. `given`, `keys`, `outputs`: as `plan_columns`.

    `run_rows`, `shard_rows`: None for good numbers.
    """

    output: Path
    given: Mapping[str, Sequence[str]] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    outputs: Sequence[str] = ()
    format: Format = Format.PARQUET
    errors: ErrorsTo = ErrorsTo.COLUMN
    nulls: Nulls = Nulls.NAN
    run_rows: int | None = None
    shard_rows: int | None = None
    memory_bytes: int = MEMORY_BYTES
    workers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job that may run: what it is, what is left of it, and what it runs with."""

    record: JobRecord
    task: Task
    source: Source
    scorer: Scorer
    left: Left = field(default_factory=Left)


def load_scorer(settings: ReplicaSettings) -> Scorer:
    """The model of a job, loaded as a replica loads it.

    A store of features may take longer than a request would wait, and one that is away is waited
    for: an endpoint may answer with defaults then, and a job must not fill a table with them.
    """
    features = settings.features
    if isinstance(features, FeatureSettings):
        features = msgspec.structs.replace(
            features,
            timeout_s=max(features.timeout_s, _LOOK_UP_S),
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
    wish: Wish,
    *,
    model: JobModel,
    settings: ReplicaSettings,
    source: Source,
    told: SourceSettings,
    scorer: Scorer,
    run_id: str,
    begun: JobRecord | None,
    now: datetime,
) -> tuple[JobRecord, Task]:
    """Check everything and cut the input into shards.

    Args:
        begun: The job that goes on, whose sizes count; None for a new one.

    Raises:
        MappingError: Columns and the model do not fit.
        InvalidArgumentError: The input or the output cannot be as wished.
    """
    schema = source.schema()
    plan = plan_columns(
        scorer.signature,
        schema,
        given=wish.given,
        keys=wish.keys,
        outputs=wish.outputs,
        has_types=source.has_types,
    )
    why = check_writable(layout_of(plan, source, scorer, wish.errors).schema, wish.format)
    if why:
        raise MappingError([why])
    sizes = (
        begun.sizes
        if begun is not None
        else plan_sizes(
            scorer.signature,
            row_bytes=source.row_bytes(plan.columns),
            memory_bytes=wish.memory_bytes,
            workers=wish.workers,
            run_rows=wish.run_rows,
            shard_rows=wish.shard_rows,
        )
    )
    shards = source.cut(sizes, plan.columns)
    _check_apart(told, shards, wish.output)
    task = Task(
        model=settings,
        source=told,
        plan=plan,
        sizes=sizes,
        output=str(wish.output.absolute()),
        format=wish.format,
        errors=wish.errors,
        nulls=wish.nulls,
    )
    task = msgspec.structs.replace(task, digest=digest_of(model, task))
    record = JobRecord(
        id=run_id,
        begun_at=now.isoformat(timespec="seconds"),
        headrace=headrace.__version__,
        model=model,
        source=told,
        plan=plan,
        sizes=sizes,
        format=wish.format,
        errors=wish.errors,
        nulls=wish.nulls,
        shards=shards,
    )
    return record, task


def digest_of(model: JobModel, task: Task) -> str:
    """What the answers of a shard depend on besides its rows."""
    parts = (
        (model.digest, model.version, model.runtime, model.features, model.labels),
        (task.plan, task.sizes, task.format, task.errors, task.nulls),
    )
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


def new_run_id(now: datetime) -> str:
    """An id that sorts by time."""
    return f"{now.astimezone(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def check_run_id(run_id: str) -> str:
    """`run_id`, if it can stand in a command line and in a file; else InvalidArgumentError."""
    if _ID.fullmatch(run_id) is None:
        msg = (
            f"run id {run_id[:80]!r} is not allowed: use up to 128 letters, digits and '_.:+-', "
            "beginning with a letter or digit"
        )
        raise InvalidArgumentError(msg)
    return run_id


def find_begun(folder: OutputFolder, *, run_id: str, resume: str) -> JobRecord | None:
    """The job that goes on in a folder; None for a new one.

    Args:
        run_id: What a new one is to be called: one that began under this name goes on.
        resume: The one that has to have begun here. Either may be empty.

    Raises:
        NotFoundError: There is none to resume.
        FailedPreconditionError: The folder has another job's output.
    """
    record = folder.record()
    wanted = resume or run_id
    if record is None:
        if resume:
            raise NotFoundError(f"there is no run {resume} in {folder.path}: nothing began there")
        return None
    if record.id == wanted:
        return record
    done = "it is done" if folder.is_complete() else f"--resume {record.id} goes on with it"
    if resume:
        raise NotFoundError(f"{folder.path} has run {record.id}, not {resume}; {done}")
    msg = f"{folder.path} has the output of run {record.id}: {done}; or name another folder"
    raise FailedPreconditionError(msg)


def settle(
    folder: OutputFolder, record: JobRecord, task: Task, begun: JobRecord | None
) -> tuple[JobRecord, Left]:
    """Begin in the folder, or find out what is left; takes away what a killed run left.

    Raises:
        ChangedError: The job that began here was another.
        FailedPreconditionError: Something else lies here.
    """
    if begun is None:
        folder.begin(record)
        return record, Left(todo=list(record.shards))
    check_same(begun, record)

    def find(name: str) -> Written | None:
        try:
            return written(folder.path, name)
        except OSError:
            return None

    left = left_to_do(begun, folder.entries(), task.digest, find)
    kept: list[Done] = left.done
    # What says that all is there goes first, should something not be.
    folder.remove([SUCCESS] if left.todo else [])
    folder.remove(leftovers(folder.names(), kept))
    return begun, left


def _check_apart(told: SourceSettings, shards: Sequence[Shard], output: Path) -> None:
    """Raise InvalidArgumentError if output would lie among the input, and be read with it."""
    folder = output.absolute()
    root = Path(told.url)
    if root.is_dir() and folder.is_relative_to(root):
        msg = f"the output folder {output} lies in the input {root}; name another folder"
        raise InvalidArgumentError(msg)
    for file in dict.fromkeys(shard.file for shard in shards):
        if Path(file).is_relative_to(folder):
            msg = f"the input {file} lies in the output folder {output}; name another folder"
            raise InvalidArgumentError(msg)
