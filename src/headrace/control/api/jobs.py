"""Jobs over HTTP: list, runs, start and cancel."""

from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Body, FastAPI, Path, Query, Response
from pydantic import Field

from headrace.control.api.answers import Actor, RequestBody, answer, route
from headrace.control.base.context import ServiceContext
from headrace.control.jobs.scheduler import JobScheduler
from headrace.control.jobs.status import JobRunView, JobView, job_view, run_view
from headrace.core import NotFoundError
from headrace.core.names import NAME_PATTERN

_CREATED: Final = 201
_MAX_LISTED: Final = 10_000
_RUN: Final[dict[str, Any]] = {
    "id": "nightly-20261127T060000Z",
    "job": "nightly",
    "state": "succeeded",
    "trigger": "schedule",
    "actor": "",
    "moment": 1795759200.0,
    "began": 1795759200.4,
    "ended": 1795759231.9,
    "duration_s": 31.5,
    "tries": 1,
    "interruptions": 0,
    "next_try_at": None,
    "output": "/data/scored/nightly-20261127T060000Z",
    "rows": 1797,
    "errors": 0,
    "shards": 1,
    "shards_done": 1,
    "message": "",
    "owner": "host:5c0e7a1f09b2d344/9f8e7d6c",
    "isolation": None,
}
_JOB: Final[dict[str, Any]] = {
    "name": "nightly",
    "model": "fraud",
    "input": "/data/{date}/*.parquet",
    "output": "/data/scored/{run_id}",
    "cron": "0 6 * * *",
    "timezone": "UTC",
    "next_run_at": 1795845600.0,
    "lateness_s": 0.0,
    "is_late": False,
    "running": [],
    "last_success": _RUN,
    "last_run": _RUN,
}

JobName = Annotated[str, Path(pattern=NAME_PATTERN, description="The job's name.")]


class Cancel(RequestBody):
    """The run to cancel."""

    run: str = Field(default="", max_length=200, description="Its id; empty for all of the job's.")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobList:
    """All jobs of the spec."""

    jobs: list[JobView]
    problem: str
    """Why the list may be out of date."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunList:
    """Runs of a job, the newest first."""

    runs: list[JobRunView]


def add_jobs(api: FastAPI, context: ServiceContext, scheduler: JobScheduler) -> None:
    """Add the routes of jobs."""

    @route(api, "GET /api/v1/jobs", JobList, {"jobs": [_JOB], "problem": ""})
    async def list_jobs() -> Response:
        """List all jobs: next run, current run and results of the last runs."""
        current = await scheduler.now()
        now = context.clock.now()
        views = [
            job_view(job, current.snapshot, now=now, isolation=scheduler.isolation_of)
            for job in current.jobs.values()
        ]
        return answer(JobList(jobs=views, problem=scheduler.problem))

    @route(api, "GET /api/v1/jobs/{name}/runs", RunList, {"runs": [_RUN]})
    async def list_runs(
        name: JobName, limit: Annotated[int, Query(ge=1, le=_MAX_LISTED)] = 100
    ) -> Response:
        """List the runs of a job, the newest first; also of a job that was removed."""
        runs = await context.store.jobs.runs(name, limit=limit)
        if not runs:
            await scheduler.job(name)
        return answer(RunList(runs=[run_view(run, scheduler.isolation_of) for run in runs]))

    @route(api, "GET /api/v1/jobs/{name}/runs/{run_id}", JobRunView, _RUN)
    async def get_run(name: JobName, run_id: Annotated[str, Path(max_length=200)]) -> Response:
        """Return one run."""
        run = await context.store.jobs.run(run_id)
        if run is None or run.job != name:
            raise NotFoundError(f"job '{name}' has no run '{run_id}'")
        return answer(run_view(run, scheduler.isolation_of))

    @route(
        api,
        "POST /api/v1/jobs/{name}/run",
        JobRunView,
        _RUN | {"state": "waiting", "trigger": "manual"},
        status=_CREATED,
    )
    async def begin(name: JobName, actor: Actor) -> Response:
        """Run a job now, independent of its schedule."""
        run = await scheduler.begin(name, by=actor)
        headers = {"location": f"/api/v1/jobs/{name}/runs/{run.id}"}
        return answer(run_view(run), status=_CREATED, headers=headers)

    @route(
        api, "POST /api/v1/jobs/{name}/cancel", RunList, {"runs": [_RUN | {"state": "cancelled"}]}
    )
    async def cancel(
        name: JobName,
        actor: Actor,
        body: Annotated[Cancel, Body()] = Cancel(),  # noqa: B008  # frozen
    ) -> Response:
        """Cancel a run, or all unfinished runs of a job; completed work is kept."""
        ended = await scheduler.cancel(name, by=actor, id_=body.run)
        return answer(RunList(runs=[run_view(run) for run in ended]))
