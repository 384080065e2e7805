"""Execution of one shard: read, scored, and written to a temporary file that is then renamed.

Every engine calls the same function; its result is the shard's line in the manifest.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Final

from headrace.core import Datatype, FailedPreconditionError, ModelSignature
from headrace.core.files import replacing_output
from headrace.jobs.columns import feed
from headrace.jobs.libraries import pa, pl
from headrace.jobs.messages import ColumnPlan, CompletedShard, ErrorsTo, Shard, Task
from headrace.jobs.results import ColumnLayout, WindowRunner, keys_of
from headrace.jobs.sources.source import JobSource, ReadRequest, Rows
from headrace.jobs.writers import error_lines, open_writer, written
from headrace.scoring.scorer import Scorer

ERRORS: Final = "_errors"
"""Folder of error files within the output; readers of whole folders skip such names."""
_ENTIRE_BUFFERS: Final = 4
"""Buffers of a shard that is read at once: at most half of a worker's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """How a job watches and stops shards, in an engine and in each shard."""

    on_rows: Callable[[int, int, Sequence[str]], None] = lambda *_: None
    """Called from any thread with the number of rows answered since the last call, of rows with
    errors, and some of these errors. Numbers are negative after a worker is lost with its shard."""
    is_stopped: Callable[[], bool] = lambda: False
    """Called often; when it returns true, running shards are aborted and their files removed."""
    pool: Executor | None = None
    """Executor for the runs of one window; None to run them in the shard's thread."""
    lock: AbstractContextManager[object] = field(default_factory=threading.Lock)
    """Held for each run of a model that is not concurrent."""


def run_shard(
    task: Task, shard: Shard, source: JobSource, scorer: Scorer, hooks: Hooks
) -> CompletedShard:
    """Score the rows of one shard, and write them to its file in the task's folder.

    The same shard always gives the same bytes.

    Raises:
        JobStoppedError: The shard was stopped; no file exists under a final name.
        HeadraceError: The shard cannot be read, scored or written.
    """
    started = time.monotonic()
    folder = Path(task.output)
    layout = layout_of(task.plan, source, scorer, task.errors)
    names = [f"{shard.name}.{task.format}"]
    with ExitStack() as stack:
        side: IO[bytes] | None = None
        if task.errors is ErrorsTo.FILE:
            names.append(f"{ERRORS}/{shard.name}.jsonl")
            (folder / ERRORS).mkdir(exist_ok=True)
            side = stack.enter_context(replacing_output(folder / ERRORS / f"{shard.name}.jsonl"))
        file = stack.enter_context(replacing_output(folder / names[0]))
        count = _fill(task, shard, source, scorer, hooks, layout, file=file, side=side)
        if source.mark(shard) != shard.fingerprint:
            msg = f"{shard.file} changed while it was read; start again in another folder"
            raise FailedPreconditionError(msg)
    return CompletedShard(
        shard=shard.number,
        fingerprint=shard.fingerprint,
        digest=task.digest,
        rows=count.rows,
        errors=count.errors,
        files=[written(folder, name) for name in names],
        seconds=round(time.monotonic() - started, 3),
    )


def layout_of(
    plan: ColumnPlan, source: JobSource, scorer: Scorer, errors: ErrorsTo
) -> ColumnLayout:
    """Return the columns of the output, which depend only on the input's columns."""
    schema = source.schema(datatypes_of(plan, scorer.signature))
    fields = [schema.field(column) for column in dict.fromkeys(plan.keys.values())]
    empty = pl.from_arrow(pa.schema(fields).empty_table())
    assert isinstance(empty, pl.DataFrame)
    return ColumnLayout(
        plan=plan,
        signature=scorer.signature,
        version=scorer.version,
        errors=errors,
        keys=keys_of(empty, plan).schema,
    )


def datatypes_of(plan: ColumnPlan, signature: ModelSignature) -> dict[str, Datatype]:
    """Return, by column, the datatype of the input that the column belongs to."""
    return {
        column: spec.datatype
        for columns in plan.inputs
        if (spec := signature.input(columns.input)) is not None
        for column in columns.columns
    }


def _origin(file: str, part: Rows, row: int) -> str:
    """Return the file and line of a row, if known."""
    return "" if part.line_of is None else f"{file}:{part.line_of(row)}: "


@dataclass(slots=True, kw_only=True)
class _Count:
    rows: int = 0
    errors: int = 0


def _fill(  # noqa: PLR0917  # the parts of a shard's run
    task: Task,
    shard: Shard,
    source: JobSource,
    scorer: Scorer,
    hooks: Hooks,
    layout: ColumnLayout,
    *,
    file: IO[bytes],
    side: IO[bytes] | None,
) -> _Count:
    """Score a shard window by window."""
    plan, sizes = task.plan, task.sizes
    request = ReadRequest(
        columns=plan.columns,
        rows=sizes.window_rows,
        whole_bytes=_ENTIRE_BUFFERS * sizes.buffer_bytes,
        datatypes=datatypes_of(plan, scorer.signature),
    )
    answerer = WindowRunner(
        scorer=scorer,
        run_rows=sizes.run_rows,
        pool=hooks.pool,
        is_stopped=hooks.is_stopped,
        lock=hooks.lock,
    )
    writer = open_writer(file, layout.schema, task.format, buffer_bytes=sizes.buffer_bytes)
    count = _Count()
    try:
        for part in source.read(shard, request):
            window = feed(part.frame, plan, scorer.signature, broken=part.broken, nulls=task.nulls)
            keys = keys_of(part.frame, plan).cast(layout.keys)
            answers = answerer.answer(window, plan.outputs)
            origin = partial(_origin, Path(shard.file).name, part)
            table, errors = layout.table(keys, answers, origin)
            writer.write(table)
            if side is not None and errors:
                side.write(error_lines(keys, errors, count.rows))
            count.rows += part.frame.height
            count.errors += len(errors)
            hooks.on_rows(part.frame.height, len(errors), list(errors.values()))
    except BaseException:
        writer.abandon()
        raise
    writer.close()
    return count
