"""Status of jobs as documents and metrics. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from headrace.control.jobs.plan import is_late, lateness_s, next_run_at
from headrace.control.local.sandbox import Isolation
from headrace.control.model.job_runs import JobRun, JobsSnapshot, RunState
from headrace.core.redact import redact_text
from headrace.core.spec.jobs import JobSpec
from headrace.observe.metrics import Family, gauge

IsolationOf = Callable[[str], Isolation | None]
"""Returns the isolation of a run's process, by run id."""


def _no_isolation(_run_id: str) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRunView:
    """One run.

    Times are in seconds since 1970; `state` is that of the history.
    """

    id: str
    job: str
    state: str
    trigger: str
    actor: str
    moment: float
    began: float | None
    ended: float | None
    duration_s: float | None
    tries: int
    interruptions: int
    """Interruptions since it last finished a shard."""
    next_try_at: float | None
    output: str
    rows: int
    errors: int
    shards: int
    shards_done: int
    message: str
    owner: str
    isolation: Isolation | None = None
    """Isolation of its process; None if it does not run here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """One job."""

    name: str
    model: str
    input: str
    output: str
    cron: str
    timezone: str
    next_run_at: float | None
    lateness_s: float | None
    """Seconds since the first scheduled time without a successful run."""
    is_late: bool
    running: list[JobRunView]
    last_success: JobRunView | None
    last_run: JobRunView | None


def run_view(run: JobRun, isolation: IsolationOf = _no_isolation) -> JobRunView:
    """Return the view of a run."""
    waits = run.state is RunState.WAITING and run.tries > 0
    started, ended = run.began, run.ended if run.state.is_over else None
    return JobRunView(
        id=run.id,
        job=run.job,
        state=run.state.value,
        trigger=run.trigger,
        actor=run.actor,
        moment=run.moment,
        began=run.began,
        ended=run.ended,
        duration_s=None if started is None or ended is None else max(ended - started, 0.0),
        tries=run.tries,
        interruptions=run.interruptions,
        next_try_at=run.next_try_at if waits else None,
        output=run.output,
        rows=run.rows,
        errors=run.errors,
        shards=run.shards,
        shards_done=run.shards_done,
        message=run.message,
        owner=run.owner,
        isolation=isolation(run.id),
    )


def job_view(
    job: JobSpec, snapshot: JobsSnapshot, *, now: float, isolation: IsolationOf = _no_isolation
) -> JobView:
    """Return the view of a job."""
    last, success = snapshot.ended.get(job.name), snapshot.succeeded.get(job.name)
    return JobView(
        name=job.name,
        model=job.model,
        input=redact_text(job.input),
        output=job.output,
        cron="" if job.schedule is None else job.schedule.cron,
        timezone="" if job.schedule is None else job.schedule.timezone,
        next_run_at=next_run_at(job, now=now),
        lateness_s=lateness_s(job, snapshot, now=now),
        is_late=is_late(job, snapshot, now=now),
        running=[run_view(run, isolation) for run in snapshot.open if run.job == job.name],
        last_success=None if success is None else run_view(success),
        last_run=None if last is None else run_view(last),
    )


def job_families(
    jobs: Mapping[str, JobSpec], snapshot: JobsSnapshot | None, *, now: float
) -> list[Family]:
    """Return the metrics of jobs."""
    if snapshot is None:
        return []
    views = [job_view(job, snapshot, now=now) for job in jobs.values()]
    valid = [(view.name, view.last_success) for view in views if view.last_success is not None]
    return [
        _gauge(
            "last_success_timestamp_seconds",
            "When the newest run that succeeded ended.",
            [(name, run.ended) for name, run in valid],
        ),
        _gauge(
            "duration_seconds",
            "Duration of the last run.",
            [(name, r.duration_s) for name, r in valid],
        ),
        _gauge("rows", "Rows that it answered.", [(name, run.rows) for name, run in valid]),
        _gauge(
            "errors", "Of them those that have errors.", [(name, run.errors) for name, run in valid]
        ),
        _gauge(
            "lateness_seconds",
            "Since the first moment that no run has succeeded for; 0 for none.",
            [(view.name, view.lateness_s) for view in views],
        ),
        _gauge(
            "late",
            "1 while that is longer than late_after_s.",
            [(view.name, view.is_late) for view in views],
        ),
        _gauge(
            "running", "Runs that are not over.", [(view.name, len(view.running)) for view in views]
        ),
        _gauge(
            "failed",
            "1 if the newest run that ended failed.",
            [
                (job, job in snapshot.ended and snapshot.ended[job].state is RunState.FAILED)
                for job in jobs
            ],
        ),
    ]


def _gauge(name: str, text: str, values: Iterable[tuple[str, float | None]]) -> Family:
    # Not `job`: Prometheus adds a label of that name to every series, and would rename this one.
    samples = [((("job_name", job),), value) for job, value in values if value is not None]
    return gauge(f"headrace_job_{name}", text, samples)
