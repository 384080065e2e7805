"""Planner of scheduled jobs: which runs begin, and their states after attempts. Pure."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec

from headrace.control.model.job_runs import JobMark, JobRun, JobsSnapshot, RunState
from headrace.core.backoff import Backoff
from headrace.core.spec.jobs import PLACEHOLDER, JobScheduleSpec, JobSpec
from headrace.core.text import size_bytes
from headrace.jobs.due import DueRuns, due, next_moment

AFTER_FAILURE: Final = Backoff(first_s=10.0, limit_s=900.0)
MAX_INTERRUPTIONS: Final = 10
"""Interruptions without a finished shard in between after which a run has failed."""
MAX_SKIPPED: Final = 20
"""Most skipped times of one step in the history; the newest are kept."""
_ID_TIME: Final = "%Y%m%dT%H%M%SZ"


def jobs_of(document: Mapping[str, Any]) -> dict[str, JobSpec]:
    """Return the jobs in a validated spec document, by name."""
    return {job.name: job for job in map(JobSpec.model_validate, document.get("jobs") or ())}


def document_of(job: JobSpec) -> dict[str, Any]:
    """Return the document of a job that its runs store."""
    return job.model_dump(mode="json", exclude_unset=True)


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """Changes of one job to store."""

    mark: JobMark
    runs: tuple[JobRun, ...] = ()
    skipped: int = 0
    """Number of all skipped times."""


def planned(job: JobSpec, snapshot: JobsSnapshot, *, now: float) -> Planned | None:
    """Return the changes due by a job's schedule; None without changes."""
    schedule, mark = job.schedule, snapshot.marks.get(job.name)
    if schedule is None:
        return None
    words = f"{schedule.cron} {schedule.timezone}"
    if mark is None:
        return Planned(mark=JobMark(job=job.name, schedule=words, since=now, handled=now))
    if mark.schedule != words:
        changed = msgspec.structs.replace(mark, schedule=words, since=now, handled=now)
        return Planned(mark=changed)
    running = sum(run.job == job.name for run in snapshot.open)
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
    # A waiting time is evaluated again, and so are skipped times after it.
    starts = tuple(new_run(job, moment, now=now) for moment in due_runs.starts if moment <= handled)
    skipped = [skip for skip in due_runs.skipped if skip.due_at <= handled][-MAX_SKIPPED:]
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
    """Return a new waiting run.

    Args:
        by: User who started it manually; empty for the schedule.
        salt: Distinguishes manual runs of the same second; empty for the schedule.
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
    """Return the date of a time in the schedule's zone; UTC without one."""
    zone = "UTC" if job.schedule is None else job.schedule.timezone
    return datetime.fromtimestamp(moment, UTC).astimezone(ZoneInfo(zone)).date().isoformat()


def filled(text: str, *, run_id: str, date: str) -> str:
    """Return `text` with its placeholders replaced."""
    values = {"run_id": run_id, "date": date}
    return PLACEHOLDER.sub(lambda match: values[match.group(1)], text)


def input_of(run: JobRun) -> str:
    """Return the input of a run."""
    job = JobSpec.model_validate(run.document)
    return filled(job.input, run_id=run.id, date=date_of(job, run.moment))


def memory_limit_of(run: JobRun) -> tuple[str, int]:
    """Return a run's memory limit as in the spec and in bytes; 0 for no limit."""
    limit = run.document.get("memory_limit") or ""
    return limit, size_bytes(limit) or 0


def arguments_of(run: JobRun, home: Path) -> list[str]:
    """Return the arguments of a run's command; they are the same for each attempt."""
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
    # With "=", because a value may begin with a dash.
    flags = [f"--{key}={value}" for key, value in options.items() if value not in {None, ""}]
    maps = [f"--map={name}={','.join(columns)}" for name, columns in job.columns.items()]
    code = ["--allow-code"] if job.allow_code else []
    declared = ["--rows-independent"] if job.rows_independent else []
    return ["batch", "run", *flags, *maps, *code, *declared]


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """Outcome of one attempt of a run."""

    ok: bool = False
    interrupted: bool = False
    """Whether it was interrupted from outside, so that it does not count as a failure."""
    final: bool = False
    """Whether another attempt would fail in the same way."""
    too_large: bool = False
    """Whether it exceeded its memory limit."""
    message: str = ""


def after_attempt(run: JobRun, attempt: Attempt, *, now: float) -> JobRun:
    """Return the run after an attempt; it has no owner any more unless it is over."""
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
    """Return a taken run as its next attempt begins; over if none may begin.

    A run in state running has lost its owner, which counts as an interruption.
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


def _interrupted(run: JobRun, reason: str, *, now: float) -> JobRun:
    """Return an interrupted run: waiting again, or failed after `MAX_INTERRUPTIONS`."""
    again = 1 if run.shards_done > run.shards_then else run.interruptions + 1
    run = msgspec.structs.replace(
        run,
        tries=max(run.tries - 1, 0),
        interruptions=again,
        shards_then=run.shards_done,
        message=reason,
    )
    if again < MAX_INTERRUPTIONS:
        # The first time immediately; repeatedly interrupted runs leave room for others.
        delay_s = AFTER_FAILURE.delay_s(again - 1) if again > 1 else 0.0
        return msgspec.structs.replace(run, state=RunState.WAITING, next_try_at=now + delay_s)
    message = (
        f"was interrupted {again} times and finished no shard in between, the last time: {reason}; "
        "a smaller `shard_rows` lets a shorter time suffice"
    )
    return msgspec.structs.replace(run, state=RunState.FAILED, ended=now, message=message)


def takeable(
    runs: Iterable[JobRun], *, now: float, dead: frozenset[tuple[str, int]], free_slots: int
) -> list[JobRun]:
    """Return runs without an owner to begin or continue, oldest first.

    Args:
        dead: Ids and fences of runs whose owners are known to be gone.
        room: Most runs to return.
    """
    free = [run for run in runs if not run.owner or (run.id, run.fence) in dead]
    # A clock that was set back must not delay a run by the same time.
    ready = [run for run in free if run.next_try_at <= now or run.next_try_at > now + _FAR_S]
    return sorted(ready, key=lambda run: (run.moment, run.id))[: max(free_slots, 0)]


_FAR_S: Final = 2 * AFTER_FAILURE.limit_s


def lateness_s(job: JobSpec, snapshot: JobsSnapshot, *, now: float) -> float | None:
    """Return the seconds since the first scheduled time without a successful run; None without one.

    A successful run, also a manual one, covers all earlier times.
    """
    schedule, mark = job.schedule, snapshot.marks.get(job.name)
    if schedule is None or mark is None:
        return None
    best = snapshot.succeeded.get(job.name)
    covered = mark.since if best is None else max(mark.since, best.moment)
    expected = _next(schedule, covered)
    return 0.0 if expected is None else max(now - expected, 0.0)


def is_late(job: JobSpec, snapshot: JobsSnapshot, *, now: float) -> bool:
    """Whether a job's newest success is older than allowed."""
    schedule, late_s = job.schedule, lateness_s(job, snapshot, now=now)
    if schedule is None or schedule.late_after_s is None or late_s is None:
        return False
    return late_s > schedule.late_after_s


def next_run_at(job: JobSpec, *, now: float) -> float | None:
    """Return the next scheduled time of a job."""
    schedule = job.schedule
    return None if schedule is None else _next(schedule, now)


@lru_cache(maxsize=4096)
def _next(schedule: JobScheduleSpec, after: float) -> float | None:
    return next_moment(schedule, after)
