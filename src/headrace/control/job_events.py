"""What is told of jobs: what is new about failing, being late, or being left out. Pure."""

from collections.abc import Iterable
from typing import Any

from headrace.control.job_plan import Planned, lateness_s
from headrace.control.job_records import JobRun, JobsLook, RunState
from headrace.control.state.records import Event
from headrace.core import span
from headrace.core.spec_jobs import JobSpec


def run_event(run: JobRun, before: JobRun | None) -> Event | None:
    """What is told of a run that is over; None for one that succeeded as the one before did.

    Args:
        before: The newest run of the job that succeeded or failed before.
    """
    data: dict[str, Any] = {"job": run.job, "run": run.id, "rows": run.rows, "errors": run.errors}
    at = run.ended or run.moment
    match run.state:
        case RunState.FAILED:
            message = f"run {run.id} failed after {run.tries} tries: {run.message}"
            return _event(at, "JobFailed", message, data)
        case RunState.CANCELLED:
            message = f"run {run.id} was cancelled"
            return _event(at, "JobCancelled", message, data, actor=run.cancelled_by)
        case RunState.SUCCEEDED if before is None:
            return _event(at, "JobSucceeded", f"run {run.id} wrote {run.rows} rows", data)
        case RunState.SUCCEEDED if before is not None and before.state is RunState.FAILED:
            message = f"job '{run.job}' succeeds again: run {run.id} wrote {run.rows} rows"
            return _event(at, "JobRecovered", message, data)
        case _:
            return None


def memory_event(run: JobRun, message: str, *, now: float) -> Event:
    """What is told of a try that was ended because of its memory."""
    data = {"job": run.job, "run": run.id, "memory_limit": run.document.get("memory_limit")}
    return _event(now, "JobTooLarge", f"run {run.id} {message}", data)


def planned_events(planned: Iterable[Planned], *, now: float) -> list[Event]:
    """What is told of moments that were left out."""
    return [
        _event(
            now,
            "JobSkipped",
            f"job '{one.mark.job}': {one.skipped} moments were left out, the last as {_why(one)}",
            {"job": one.mark.job, "skipped": one.skipped},
        )
        for one in planned
        if one.skipped
    ]


def late_event(job: JobSpec, look: JobsLook, *, now: float) -> Event:
    """What is told of a job that has become late."""
    late_s = lateness_s(job, look, now=now) or 0.0
    message = f"job '{job.name}' is late: a run should have succeeded {span(late_s)} ago"
    return _event(now, "JobLate", message, {"job": job.name, "late_s": round(late_s, 3)})


def _why(planned: Planned) -> str:
    skipped = [run for run in planned.runs if run.state is RunState.SKIPPED]
    return max(skipped, key=lambda run: run.moment).message


def _event(at: float, reason: str, message: str, data: dict[str, Any], *, actor: str = "") -> Event:
    return Event(
        at=at, endpoint="", kind="job", reason=reason, message=message, data=data, actor=actor
    )
