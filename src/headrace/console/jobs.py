"""How are the jobs? All of them, and the runs of one."""

from collections.abc import Sequence
from typing import Final

from headrace.console.paging import MOST_PAGES, MOST_TEXT, cut
from headrace.console.view import Question, View
from headrace.console.visitor import RefusedError
from headrace.control.api.jobs import JobList, RunList
from headrace.control.jobs.status import JobRunView, JobView

LOOKS: Final = {
    "succeeded": "ok",
    "failed": "failing",
    "cancelled": "warning",
    "skipped": "warning",
    "running": "ok",
    "waiting": "idle",
}
_SIZE: Final = 50
_RUNS: Final = 100
_NOT_FOUND: Final = 404


async def jobs(question: Question) -> View:
    """All jobs, those in trouble first."""
    search = question.query.get("search", "").strip()[:MOST_TEXT]
    page = question.number("page", least=1, most=MOST_PAGES, usual=1)
    found = await question.visitor.get("/api/v1/jobs", JobList)
    ordered = sorted(
        (one for one in found.jobs if search.lower() in one.name.lower()),
        key=lambda one: (not is_troubled(one), one.name),
    )
    rows, pages = cut(ordered, page=page, size=_SIZE)
    return View(
        template="jobs.html",
        title="Jobs",
        section="jobs",
        say=said_of(found.jobs),
        values={
            "rows": rows,
            "pages": pages,
            "search": search,
            "problem": found.problem,
            "troubled": [one for one in found.jobs if is_troubled(one)],
            "is_empty": not found.jobs,
            "states": {one.name: state_of(one) for one in rows},
            "looks": LOOKS,
            "now": question.now,
        },
    )


async def job(question: Question) -> View:
    """One job and its runs; of one that the spec does not name any more the runs alone."""
    name = question.names["job"]
    found = await question.visitor.get("/api/v1/jobs", JobList)
    known = next((one for one in found.jobs if one.name == name), None)
    asked = {"limit": _RUNS}
    runs = await question.visitor.find(f"/api/v1/jobs/{name}/runs", RunList, asked)
    if runs is None:
        raise RefusedError.of(_NOT_FOUND, f"there is no job {name!r}")
    return View(
        template="job.html",
        title=f"Job {name}",
        section="jobs",
        say=_said(name, known, runs.runs),
        values={
            "name": name,
            "job": known,
            "state": None if known is None else state_of(known),
            "runs": runs.runs,
            "is_cut": len(runs.runs) == _RUNS,
            "problem": found.problem,
            "looks": LOOKS,
            "now": question.now,
        },
    )


def is_troubled(one: JobView) -> bool:
    """Whether somebody should look: no run came in time, or the last one failed."""
    return state_of(one)[0] == "failing"


def state_of(one: JobView) -> tuple[str, str]:
    """A job's look and its state in words."""
    if one.is_late:
        return "failing", "late"
    if one.last_run is not None and one.last_run.state == "failed":
        return "failing", "failed"
    if one.running:
        return "ok", "running"
    return ("idle", "never ran") if one.last_run is None else ("ok", "well")


def said_of(found: Sequence[JobView]) -> str:
    """How jobs are, in a sentence."""
    if not found:
        return "No job yet."
    troubled = [one for one in found if is_troubled(one)]
    named = ", ".join(
        f"job {one.name} {'is late' if one.is_late else 'failed'}" for one in troubled
    )
    return f"{named[:500]}." if named else "All jobs are well."


def _said(name: str, known: JobView | None, runs: Sequence[JobRunView]) -> str:
    if known is not None and known.is_late:
        return f"Job {name} is late."
    return f"The last run of job {name} is {runs[0].state}." if runs else f"Job {name} never ran."
