"""Plan and records of scheduled jobs: which runs begin, and what becomes of each. Pure."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec

from headrace.control.model.job_runs import JobMark, JobRun, JobsLook, RunState
from headrace.core.backoff import Backoff
from headrace.core.spec.jobs import PLACEHOLDER, JobScheduleSpec, JobSpec
from headrace.core.text import size_bytes
from headrace.jobs.due import DueRuns, due, next_moment

AFTER_FAILURE: Final = Backoff(first_s=10.0, limit_s=900.0)
MOST_INTERRUPTIONS: Final = 10
"""A run that was interrupted so often and finished no shard in between has failed."""
MOST_SKIPPED: Final = 20
"""So many moments of one look that were left out stand in the history, the newest ones."""
_ID_TIME: Final = "%Y%m%dT%H%M%SZ"


def jobs_of(document: Mapping[str, Any]) -> dict[str, JobSpec]:
    """The jobs in a spec document that was checked before, by name."""
    return {job.name: job for job in map(JobSpec.model_validate, document.get("jobs") or ())}


def document_of(job: JobSpec) -> dict[str, Any]:
    """What a run keeps of its job."""
    return job.model_dump(mode="json", exclude_unset=True)


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """What to store of one job."""

    mark: JobMark
    runs: tuple[JobRun, ...] = ()
    skipped: int = 0
    """How many moments were left out, all of them."""


def planned(job: JobSpec, look: JobsLook, *, now: float) -> Planned | None:
    """What the schedule of a job asks for; None for nothing new."""
    schedule, mark = job.schedule, look.marks.get(job.name)
    if schedule is None:
        return None
    words = f"{schedule.cron} {schedule.timezone}"
    if mark is None:
        return Planned(mark=JobMark(job=job.name, schedule=words, since=now, handled=now))
    if mark.schedule != words:
        changed = msgspec.structs.replace(mark, schedule=words, since=now, handled=now)
        return Planned(mark=changed)
    running = sum(run.job == job.name for run in look.open)
    due_runs = due(schedule, handled=mark.handled, now=now, running=running)
    handled = due_runs.handled_to
    if handled is None or handled <= mark.handled:
        return None
    return Planned(
        mark=msgspec.structs.replace(mark, handled=handled),
        runs=_runs(job, due_runs, handled, now),
        skipped=sum(skip.due_at <= handled for skip in due_runs.skipped),
    )


def _runs(job: JobSpec, due_runs: DueRuns, handled: float, now: float) -> tuple[JobRun, ...]:
    # What waits is looked at again, and so is what was left out after it.
    starts = tuple(new_run(job, moment, now=now) for moment in due_runs.starts if moment <= handled)
    skipped = [skip for skip in due_runs.skipped if skip.due_at <= handled][-MOST_SKIPPED:]
    return starts + tuple(
        msgspec.structs.replace(
            new_run(job, skip.due_at, now=now),
            state=RunState.SKIPPED,
            message=skip.why,
            ended=now,
            output="",
        )
        for skip in skipped
    )


def new_run(job: JobSpec, moment: float, *, now: float, by: str = "", salt: str = "") -> JobRun:
    """A run that waits to be begun.

    Args:
        by: Who asked for it by hand; empty for the schedule.
        salt: What tells it from others of the same second; empty for the schedule's.
    """
    written = datetime.fromtimestamp(moment, UTC).strftime(_ID_TIME)
    id_ = f"{job.name}-{written}{f'-{salt}' if salt else ''}"
    return JobRun(
        id=id_,
        job=job.name,
        moment=moment,
        state=RunState.WAITING,
        document=document_of(job),
        trigger="manual" if salt else "schedule",
        actor=by,
        created=now,
        output=filled(job.output, run_id=id_, date=date_of(job, moment)),
    )


def date_of(job: JobSpec, moment: float) -> str:
    """The day of a moment, in the zone of the schedule; UTC without one."""
    zone = "UTC" if job.schedule is None else job.schedule.timezone
    return datetime.fromtimestamp(moment, UTC).astimezone(ZoneInfo(zone)).date().isoformat()


def filled(text: str, *, run_id: str, date: str) -> str:
    """`text` with its placeholders filled in."""
    values = {"run_id": run_id, "date": date}
    return PLACEHOLDER.sub(lambda match: values[match.group(1)], text)


def input_of(run: JobRun) -> str:
    """What a run reads."""
    job = JobSpec.model_validate(run.document)
    return filled(job.input, run_id=run.id, date=date_of(job, run.moment))


def memory_limit_of(run: JobRun) -> tuple[str, int]:
    """What a run may take, as it stands in the spec and in bytes; 0 for what there is."""
    limit = run.document.get("memory_limit") or ""
    return limit, size_bytes(limit) or 0


def arguments_of(run: JobRun, home: Path) -> list[str]:
    """The command line of a run, without the program: the same whenever it goes on."""
    job = JobSpec.model_validate(run.document)
    options: dict[str, object] = {
        "model": job.model,
        "input": input_of(run),
        "output": run.output,
        "input-format": job.input_format,
        "sql": job.sql,
        "sql-key": job.sql_key,
        "keys": ",".join(job.keys),
        "outputs": ",".join(job.outputs),
        "format": job.format,
        "errors": job.errors,
        "max-errors": job.max_errors,
        "nulls": job.nulls,
        "chunk-rows": job.chunk_rows,
        "shard-rows": job.shard_rows,
        "workers": job.workers,
        "memory": job.memory,
        "runtime": job.runtime,
        "run-id": run.id,
        "home": home.absolute(),
    }
    # With "=": a value may begin with a dash.
    flags = [f"--{key}={value}" for key, value in options.items() if value not in {None, ""}]
    maps = [f"--map={name}={','.join(columns)}" for name, columns in job.columns.items()]
    code = ["--allow-code"] if job.allow_code else []
    declared = ["--rows-independent"] if job.rows_independent else []
    return ["batch", "run", *flags, *maps, *code, *declared]


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """How one try of a run ended."""

    ok: bool = False
    interrupted: bool = False
    """Not by its own fault, so it is not counted."""
    final: bool = False
    """Another try would end the same way."""
    too_large: bool = False
    """Its memory was more than it may be."""
    message: str = ""


def after_attempt(run: JobRun, attempt: Attempt, *, now: float) -> JobRun:
    """What becomes of a run; nobody owns it any more unless it is over."""
    job = JobSpec.model_validate(run.document)
    if attempt.ok:
        return msgspec.structs.replace(run, state=RunState.SUCCEEDED, ended=now, message="")
    if run.cancelled_by:
        message = f"cancelled by {run.cancelled_by}"
        return msgspec.structs.replace(run, state=RunState.CANCELLED, ended=now, message=message)
    run = msgspec.structs.replace(run, message=attempt.message)
    if attempt.interrupted:
        return _interrupted(run, attempt.message, now=now)
    if attempt.final or run.tries > job.retries:
        return msgspec.structs.replace(run, state=RunState.FAILED, ended=now)
    delay_s = AFTER_FAILURE.delay_s(max(run.tries, 1))
    return msgspec.structs.replace(run, state=RunState.WAITING, next_try_at=now + delay_s)


def begun(run: JobRun, *, now: float) -> JobRun:
    """A run that somebody took, as it is when a try of it begins; over where none is to begin.

    One that is running has lost its owner: an interruption that nobody was left to note.
    """
    if run.state is RunState.RUNNING:
        run = _interrupted(run, "its control plane or its machine was lost", now=now)
        if run.state.is_over:
            return run
    return msgspec.structs.replace(
        run,
        state=RunState.RUNNING,
        tries=run.tries + 1,
        next_try_at=now,
        began=now if run.began is None else run.began,
    )


def _interrupted(run: JobRun, why: str, *, now: float) -> JobRun:
    """What becomes of a run that was ended from outside: it goes on, if that leads anywhere."""
    again = 1 if run.shards_done > run.shards_then else run.interruptions + 1
    run = msgspec.structs.replace(
        run,
        tries=max(run.tries - 1, 0),
        interruptions=again,
        shards_then=run.shards_done,
        message=why,
    )
    if again < MOST_INTERRUPTIONS:
        # The first time at once; who is ended again and again has to leave room for others.
        delay_s = AFTER_FAILURE.delay_s(again - 1) if again > 1 else 0.0
        return msgspec.structs.replace(run, state=RunState.WAITING, next_try_at=now + delay_s)
    message = (
        f"was interrupted {again} times and finished no shard in between, the last time: {why}; "
        "a smaller `shard_rows` lets a shorter time suffice"
    )
    return msgspec.structs.replace(run, state=RunState.FAILED, ended=now, message=message)


def takeable(
    runs: Iterable[JobRun], *, now: float, dead: frozenset[tuple[str, int]], room: int
) -> list[JobRun]:
    """Runs that somebody has to begin or go on with, the oldest first.

    Args:
        dead: Ids and fences of runs whose owners are known to be gone.
        room: How many may be taken.
    """
    free = [run for run in runs if not run.owner or (run.id, run.fence) in dead]
    # A clock that was set back must not keep a run waiting for the time that it lost.
    ready = [run for run in free if run.next_try_at <= now or run.next_try_at > now + _FAR_S]
    return sorted(ready, key=lambda run: (run.moment, run.id))[: max(room, 0)]


_FAR_S: Final = 2 * AFTER_FAILURE.limit_s


def lateness_s(job: JobSpec, look: JobsLook, *, now: float) -> float | None:
    """For how long a moment has passed for which no run succeeded; None where none is expected.

    A run that succeeded stands for all moments before its own, also one by hand.
    """
    schedule, mark = job.schedule, look.marks.get(job.name)
    if schedule is None or mark is None:
        return None
    best = look.succeeded.get(job.name)
    covered = mark.since if best is None else max(mark.since, best.moment)
    expected = _next(schedule, covered)
    return 0.0 if expected is None else max(now - expected, 0.0)


def is_late(job: JobSpec, look: JobsLook, *, now: float) -> bool:
    """Whether a job's newest success is too long ago."""
    schedule, late_s = job.schedule, lateness_s(job, look, now=now)
    if schedule is None or schedule.late_after_s is None or late_s is None:
        return False
    return late_s > schedule.late_after_s


def next_run_at(job: JobSpec, *, now: float) -> float | None:
    """When a job runs by itself next."""
    schedule = job.schedule
    return None if schedule is None else _next(schedule, now)


@lru_cache(maxsize=4096)
def _next(schedule: JobScheduleSpec, after: float) -> float | None:
    return next_moment(schedule, after)
