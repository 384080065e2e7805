"""Course of `headrace batch run`: lock, model, columns, shards, progress."""

# rich is loaded where somebody watches
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from headrace.cli.batch.model import Chosen, choose_model, go_on_confined, inputs_of, read_chosen
from headrace.cli.output import progress, say
from headrace.jobs.manifest import OutputFolder
from headrace.jobs.messages import Done, JobRecord, Shard
from headrace.jobs.preparing import (
    Job,
    Wish,
    check_run_id,
    find_begun,
    load_scorer,
    new_run_id,
    plan_job,
    settle,
)
from headrace.jobs.running import Engine, Summary, Watch, run_job
from headrace.jobs.sources.opening import open_source


@contextmanager
def batch_progress(job: Job) -> Iterator[Watch]:
    """Show how far a job is, where somebody watches.

    How many rows there are is known of some formats only; of all it is known how large shards are.
    """
    if not sys.stderr.isatty():
        yield Watch()
        return

    shards = job.record.shards
    counted = all(shard.rows is not None for shard in shards)
    total = sum(_weight(shard, counted=counted) for shard in shards)
    before = sum(_weight(shards[done.shard], counted=counted) for done in job.left.done)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
    )
    lock = threading.Lock()
    rows = errors = 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"run {job.record.id}", total=total or None, said="", completed=before)

        def on_rows(more: int, wrong: int) -> None:
            nonlocal rows, errors
            with lock:
                rows, errors = rows + more, errors + wrong
                started = bar.tasks[0].elapsed or 0.0
            speed = rows / started if started > 0 else 0.0
            said = f"{rows:,} rows, {speed:,.0f}/s" + (f", {errors:,} errors" if errors else "")
            bar.update(task, said=said, advance=more if counted else 0)

        def on_shard(done: Done, shard: Shard) -> None:
            del done
            if not counted:
                bar.update(task, advance=_weight(shard, counted=False))

        yield Watch(on_rows=on_rows, on_shard=on_shard)


def _weight(shard: Shard, *, counted: bool) -> int:
    return (shard.rows or 0) if counted else max(shard.size_bytes, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The command line, taken apart.

    `confined`, `chosen`: see `go_on_confined`; what it is told, and what it leaves.
    """

    wish: Wish
    engine: Engine
    model: str
    source: str
    file: Path | None
    kind: str
    query: str
    key: str
    resume: str
    run_id: str
    max_errors: int | None
    runtime: str
    allow_code: bool
    rows_independent: bool
    server: str | None
    home: Path
    confined: int | None = None
    chosen: Path | None = None


def run_batch(asked: Asked) -> Summary:
    """Run a job, or what is left of one.

    Raises:
        HeadraceError: As each step says.
        KeyboardInterrupt: It was; what is done stays, and how to go on was told.
    """
    now = datetime.now(UTC)
    for given in (asked.run_id, asked.resume):
        if given:
            check_run_id(given)
    if asked.confined is not None:
        _confine(asked, asked.confined)
    told, source = open_source(asked.source, kind=asked.kind, query=asked.query, key=asked.key)
    # Before a folder is made: what cannot be is told without a trace.
    folder = OutputFolder(asked.wish.output)
    begun = find_begun(folder, run_id=asked.run_id, resume=asked.resume)
    with progress("loading the model"):
        chosen = _choose(asked)
        scorer = load_scorer(chosen.settings)
    with closing(scorer):
        run_id = (begun.id if begun else "") or asked.run_id or new_run_id(now)

        def plan(begun: JobRecord | None) -> Job:
            record, task = plan_job(
                asked.wish,
                model=chosen.told,
                settings=chosen.settings,
                source=source,
                told=told,
                scorer=scorer,
                run_id=run_id,
                begun=begun,
                now=now,
            )
            return Job(record=record, task=task, source=source, scorer=scorer)

        job = plan(begun)
        with folder.locked():
            # Between the look and the lock another run may have begun, or gone on.
            again = find_begun(folder, run_id=run_id, resume=asked.resume)
            job = job if again == begun else plan(again)
            record, left = settle(folder, job.record, job.task, again)
            job = replace(job, record=record, left=left)
            return _run(asked, job, folder, chosen)


def _choose(asked: Asked) -> Chosen:
    if asked.chosen is not None:
        return read_chosen(asked.chosen)
    return choose_model(
        asked.model,
        file=asked.file,
        server=asked.server,
        home=asked.home,
        runtime=asked.runtime,
        allow_code=asked.allow_code,
        rows_independent=asked.rows_independent,
    )


def _confine(asked: Asked, serial: int) -> NoReturn:
    """Go on in a process that can do no more than it has to.

    Nothing is read here that a model wrote, in a try before this one.
    """
    inputs = inputs_of(asked.source)
    go_on_confined(
        _choose(asked),
        inputs,
        home=asked.home,
        run_id=check_run_id(asked.run_id),
        output=asked.wish.output,
        workers=asked.wish.workers,
        serial=serial,
    )


def _run(asked: Asked, job: Job, folder: OutputFolder, chosen: Chosen) -> Summary:
    run_id = job.record.id
    done, total = len(job.left.done), len(job.record.shards)
    say(f"run {run_id}: {total - done} of {total} shards to do, by {chosen.told.reference}")
    for number, why in job.left.redo.items():
        say(f"shard {number} is done again: {why}")
    if not job.record.plan.keys:
        say("no --keys: rows of the output are known by their order only")
    try:
        with batch_progress(job) as watch:
            return run_job(
                job,
                folder,
                engine=asked.engine,
                max_errors=asked.max_errors,
                clock=time.monotonic,
                watch=watch,
            )
    except KeyboardInterrupt:
        say(f"interrupted; what is done stays, and --resume {run_id} goes on with the rest")
        raise
