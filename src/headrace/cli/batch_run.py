"""How `headrace batch run` goes: lock, model, columns, shards, in this order."""

import time
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from headrace.cli.batch_confined import go_on_confined, inputs_of, read_chosen
from headrace.cli.batch_model import Chosen, choose_model
from headrace.cli.batch_progress import batch_progress
from headrace.cli.output import progress, say
from headrace.jobs.manifest import OutputFolder
from headrace.jobs.messages import JobRecord
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
from headrace.jobs.running import Engine, Summary, run_job
from headrace.jobs.sources.opening import open_source


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
