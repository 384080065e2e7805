"""Run of `headrace batch run`: lock, model, columns, shards, progress."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import typer

from headrace.cli.base.connection import CommandTarget
from headrace.cli.base.output import progress, progress_bar, say
from headrace.cli.batch.commands import EngineChoice, RunOptions
from headrace.cli.batch.model import Chosen, choose_model, exec_in_sandbox
from headrace.core import InvalidArgumentError
from headrace.engine import usable_cores
from headrace.jobs.manifest import OutputFolder
from headrace.jobs.mapping import parse_keys, parse_map
from headrace.jobs.messages import CompletedShard, JobRecord, Shard
from headrace.jobs.prepare import (
    Job,
    JobRequest,
    check_run_id,
    find_begun,
    load_scorer,
    new_run_id,
    parse_bytes,
    plan_job,
    settle,
)
from headrace.jobs.run import JobWatch, LocalEngine, Summary, run_job
from headrace.jobs.sources.open import open_source
from headrace.scoring.scorer import Scorer

if TYPE_CHECKING:
    from headrace.jobs.engines.ray import RayEngine


def open_engine(
    name: EngineChoice, *, address: str, workers: int | None, source: str
) -> "LocalEngine | RayEngine":
    """Return the engine of a name.

    Args:
        address: Address of a cluster; empty for a local one that ends with the job.
        workers: Concurrent shards; None for the number of cores.
        source: The input as the command names it.

    Raises:
        BadParameter: The engine was removed.
        InvalidArgumentError: The address is not valid for the engine.
        FailedPreconditionError: Ray is not installed.
    """
    if name is EngineChoice.SPARK:
        msg = "spark was removed; use ray on a cluster, or local on one machine"
        raise typer.BadParameter(msg, param_hint="--engine")
    if name is EngineChoice.LOCAL:
        if address:
            raise InvalidArgumentError(f"--address {address} needs --engine ray")
        return LocalEngine(workers=workers or usable_cores())
    from headrace.jobs.engines.ray import (  # noqa: PLC0415  # an extra
        LOCAL,
        RayEngine,
        check_address,
        import_ray,
    )

    import_ray()
    # A temporary cluster is as large as the job needs.
    size = workers if address else workers or usable_cores()
    return RayEngine(source=source, address=check_address(address or LOCAL), workers=size)


@contextmanager
def batch_progress(job: Job) -> Iterator[JobWatch]:
    """Show the progress of a job on a terminal.

    The number of rows is known for some formats only; the size of shards is known for all.
    """
    shards = job.record.shards
    counted = all(shard.rows is not None for shard in shards)

    def weight(shard: Shard) -> int:
        return (shard.rows or 0) if counted else max(shard.size_bytes, 1)

    lock = threading.Lock()
    started = time.monotonic()
    rows = errors = 0
    with progress_bar(f"run {job.record.id}", sum(map(weight, shards)) or None) as update:
        update(completed=sum(weight(shards[done.shard]) for done in job.left.done))

        def on_rows(advanced: int, wrong: int) -> None:
            nonlocal rows, errors
            with lock:
                rows, errors = rows + advanced, errors + wrong
            speed = rows / max(time.monotonic() - started, 1e-3)
            note = f"{rows:,} rows, {speed:,.0f}/s" + (f", {errors:,} errors" if errors else "")
            update(note=note, advance=advanced if counted else 0)

        def on_shard(_: CompletedShard, shard: Shard) -> None:
            if not counted:
                update(advance=weight(shard))

        yield JobWatch(on_rows=on_rows, on_shard=on_shard)


def run_batch(
    options: RunOptions,
    target: CommandTarget,
    *,
    load: Callable[[], tuple[Chosen, Scorer]] | None = None,
) -> Summary:
    """Run a job, or the rest of an interrupted one.

    Args:
        load: Returns the model and its scorer; None to load the model that the options name.

    Raises:
        HeadraceError: A step of the run failed.
        KeyboardInterrupt: The run was interrupted; finished output is kept.
    """
    now = datetime.now(UTC)
    request = JobRequest(
        output=options.output,
        mapping=parse_map(options.mapping or []),
        keys=parse_keys(options.keys or []),
        outputs=[name.strip() for name in options.outputs.split(",") if name.strip()],
        format=options.output_format,
        errors=options.errors,
        nulls=options.nulls,
        run_rows=options.chunk_rows,
        shard_rows=options.shard_rows,
        memory_bytes=parse_bytes(options.memory),
        workers=options.workers or usable_cores(),
    )
    engine = open_engine(
        options.engine, address=options.address, workers=options.workers, source=options.source
    )
    for id_ in (options.run_id, options.resume):
        if id_:
            check_run_id(id_)
    if options.confined is not None:
        # Before the sandbox, nothing is read that a model may have written in an earlier attempt.
        exec_in_sandbox(options, target, serial=options.confined, workers=request.workers)
    description, source = open_source(
        options.source, kind=options.input_format, query=options.sql, key=options.sql_key
    )
    # Before a folder is created: impossible runs are refused without a trace.
    folder = OutputFolder(request.output)
    started = find_begun(folder, run_id=options.run_id, resume=options.resume)
    with progress("loading the model"):
        if load is not None:
            selected, scorer = load()
        else:
            if options.chosen is None:
                selected = choose_model(options, target)
            else:
                selected = msgspec.json.decode(options.chosen.read_bytes(), type=Chosen)
            scorer = load_scorer(selected.settings)
    with closing(scorer):
        run_id = (started.id if started else "") or options.run_id or new_run_id(now)

        def plan(started: JobRecord | None) -> Job:
            record, task = plan_job(
                request,
                model=selected.job_model,
                settings=selected.settings,
                source=source,
                location=description,
                scorer=scorer,
                run_id=run_id,
                started=started,
                now=now,
            )
            return Job(record=record, task=task, source=source, scorer=scorer)

        job = plan(started)
        with folder.locked():
            # Another run may have begun or resumed between the check and the lock.
            again = find_begun(folder, run_id=run_id, resume=options.resume)
            job = job if again == started else plan(again)
            record, left = settle(folder, job.record, job.task, again)
            job = replace(job, record=record, left=left)
            return _run(job, folder, engine, max_errors=options.max_errors)


def _run(
    job: Job, folder: OutputFolder, engine: "LocalEngine | RayEngine", *, max_errors: int | None
) -> Summary:
    run_id, model = job.record.id, job.record.model.reference
    done, total = len(job.left.done), len(job.record.shards)
    say(f"run {run_id}: {total - done} of {total} shards to do, by {model}")
    for number, reason in job.left.redo.items():
        say(f"shard {number} is repeated: {reason}")
    if not job.record.plan.keys:
        say("no --keys: output rows can be matched to input rows by order only")
    try:
        with batch_progress(job) as watch:
            return run_job(
                job,
                folder,
                engine=engine,
                max_errors=max_errors,
                clock=time.monotonic,
                watch=watch,
            )
    except KeyboardInterrupt:
        say(f"interrupted; finished shards are kept; --resume {run_id} goes on with the rest")
        raise
