"""`headrace batch list | runs | start | cancel`: jobs of the spec."""

import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

import typer

from headrace.cli.base.options import ControlPlaneOptions, Json, argument, option
from headrace.cli.base.output import (
    FAILED,
    Column,
    progress,
    say,
    show_answer,
    show_document,
    write,
    write_json,
)
from headrace.core import UnavailableError, span

if TYPE_CHECKING:
    from headrace.cli.base.management import Management

_POLL_S: Final = 0.5
_UNREACHABLE_S: Final = 60.0
"""Time limit for a control plane that does not respond."""
_OPEN: Final = frozenset({"waiting", "running"})
_quoted = partial(quote, safe="")
_Job = Annotated[str, argument("The job's name in the spec.", shown=False)]


def _time(moment: float | None) -> str:
    return "-" if moment is None else f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%SZ}"


def _state(run: dict[str, Any]) -> str:
    """Return a run's state, and its progress if it is active."""
    if run["state"] != "running" or not run["shards"]:
        return str(run["state"])
    return f"running {run['shards_done']}/{run['shards']}"


def _schedule(job: dict[str, Any]) -> str:
    zone = f" {job['timezone']}" if job["timezone"] not in {"", "UTC"} else ""
    return f"{job['cron']}{zone}" if job["cron"] else "by hand"


def _last_run(job: dict[str, Any]) -> str:
    last = job["last_run"]
    return "-" if last is None else f"{last['state']} {_time(last['ended'])}"


JOB_COLUMNS: Final[dict[str, Column]] = {
    "job": "name",
    "schedule": _schedule,
    "next": lambda job: _time(job["next_run_at"]),
    "now": lambda job: ", ".join(map(_state, job["running"])) or "-",
    "last run": _last_run,
    "rows": lambda job: "-" if job["last_run"] is None else f"{job['last_run']['rows']:,}",
    "late": lambda job: span(job["lateness_s"]) if job["is_late"] else "-",
}
RUN_COLUMNS: Final[dict[str, Column]] = {
    "run": "id",
    "state": _state,
    "began": lambda run: _time(run["began"]),
    "took": lambda run: "-" if run["duration_s"] is None else span(run["duration_s"]),
    "rows": "rows",
    "errors": "errors",
    "tries": "tries",
    "why": lambda run: run["message"] or (f"by {run['actor']}" if run["actor"] else "-"),
}


def list_(*, json: Json = False, plane: ControlPlaneOptions) -> None:
    """List the jobs of the spec with next run, active runs and last result.

    For example:

        headrace batch list
    """
    document = plane.connect().get("/api/v1/jobs")
    if document["problem"] and not json:
        say(f"possibly outdated: {document['problem']}")
    empty = "no jobs; define them under `jobs` in the spec"
    show_document(document, document["jobs"], JOB_COLUMNS, json=json, empty=empty)
    if json:
        return
    for run in (run for job in document["jobs"] for run in job["running"]):
        for problem in (run["isolation"] or {}).get("problems", ()):
            say(f"run {run['id']} is not isolated: {problem}")


def runs(
    name: _Job,
    *,
    limit: Annotated[
        int, option("Number of newest runs to list.", "--limit", "-n", min=1, max=10_000)
    ] = 20,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """List the runs of a job, newest first, including skipped runs.

    For example:

        headrace batch runs nightly
    """
    document = plane.connect().get(f"/api/v1/jobs/{_quoted(name)}/runs", limit=limit)
    empty = f"job '{name}' has not run yet"
    show_document(document, document["runs"], RUN_COLUMNS, json=json, empty=empty)


def start(
    name: _Job,
    *,
    wait: Annotated[
        bool, option("Wait until the run ends; exit status 1 if it fails.", "--wait", "-w")
    ] = False,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Run a job of the spec now, regardless of its schedule; prints the run id.

    For example:

        headrace batch start nightly --wait
    """
    api = plane.connect()
    run = api.post(f"/api/v1/jobs/{_quoted(name)}/run")
    if wait:
        say(f"run {run['id']}")
        run = _wait_for_run(api, run)
    if json:
        write_json(run)
    else:
        write(run["id"])
    if not wait:
        return
    if run["state"] != "succeeded":
        say(f"run {run['id']} {run['state']}: {run['message']}")
        raise typer.Exit(FAILED)
    wrong = f", {run['errors']:,} of them with errors" if run["errors"] else ""
    say(f"{run['rows']:,} rows{wrong}: {run['output']}")


def cancel(
    name: _Job,
    *,
    run: Annotated[str, option("Which.", metavar="ID", shown="all of the job's")] = "",
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Cancel the active runs of a job; finished output is kept.

    For example:

        headrace batch cancel nightly
    """
    path = f"/api/v1/jobs/{_quoted(name)}/cancel"
    document = plane.connect().post(path, {"run": run})
    lines = [
        f"run {ended['id']} {'is being ended' if ended['state'] in _OPEN else 'ended'}"
        for ended in document["runs"]
    ]
    show_answer(document, *(lines or ["no run is active"]), json=json)


def _wait_for_run(api: "Management", run: dict[str, Any]) -> dict[str, Any]:
    path = f"/api/v1/jobs/{_quoted(run['job'])}/runs/{_quoted(run['id'])}"
    answered = time.monotonic()
    with progress(f"run {run['id']}"):
        while run["state"] in _OPEN:
            time.sleep(_POLL_S)
            try:
                run = api.get(path)
                answered = time.monotonic()
            except UnavailableError:
                # A restarted control plane continues the run.
                if time.monotonic() - answered > _UNREACHABLE_S:
                    raise
    return run
