"""Pages that list endpoints, models, alerts, events and jobs.

Where the API has a type for its answer, that is the message; `msgspec` reads it from JSON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from headrace.console.view import (
    PageRequest,
    PageView,
    RefusedError,
    cut,
    may_see_system,
    pages_of,
)
from headrace.control.api.access import AuditLogPage
from headrace.control.api.alerts import AlertList
from headrace.control.api.events import EventList
from headrace.control.api.history import Overview, OverviewRow
from headrace.control.api.jobs import JobList, RunList
from headrace.control.api.models import KnownVersion, ModelList
from headrace.control.api.streams import StreamList
from headrace.control.auth.roles import Role
from headrace.control.jobs.status import JobView
from headrace.control.model.audit_log import Entry
from headrace.control.plane.status import SystemStatus
from headrace.control.streams.status import StreamView
from headrace.observe.row_checks import report_of

if TYPE_CHECKING:
    from headrace.console.view import Params

LOOKS: Final = {
    "succeeded": "ok",
    "failed": "failing",
    "cancelled": "warning",
    "skipped": "warning",
    "running": "ok",
    "waiting": "idle",
}
_RUNS: Final = 100
_NOT_FOUND: Final = 404


async def jobs(question: PageRequest) -> PageView:
    """All jobs, those in trouble first."""
    found = await question.visitor.get("/api/v1/jobs", JobList)
    ordered = sorted(
        (one for one in found.jobs if question.finds(one.name)),
        key=lambda one: (not is_troubled(one), one.name),
    )
    rows, pages = cut(ordered, page=question.page, size=_SIZE)
    return PageView(
        template="jobs.html",
        title="Jobs",
        section="jobs",
        say=said_of(found.jobs),
        values={
            "rows": rows,
            "pages": pages,
            "problem": found.problem,
            "troubled": [one for one in found.jobs if is_troubled(one)],
            "is_empty": not found.jobs,
            "states": {one.name: state_of(one) for one in rows},
            "looks": LOOKS,
        },
    )


async def job(question: PageRequest) -> PageView:
    """One job and its runs; of one that the spec does not name any more the runs alone."""
    name = question.names["job"]
    found = await question.visitor.get("/api/v1/jobs", JobList)
    known = next((one for one in found.jobs if one.name == name), None)
    asked = {"limit": _RUNS}
    runs = await question.visitor.find(f"/api/v1/jobs/{name}/runs", RunList, asked)
    if runs is None:
        raise RefusedError.of(_NOT_FOUND, f"there is no job {name!r}")
    said = f"Job {name} never ran."
    if known is not None and known.is_late:
        said = f"Job {name} is late."
    elif runs.runs:
        said = f"The last run of job {name} is {runs.runs[0].state}."
    return PageView(
        template="job.html",
        title=f"Job {name}",
        section="jobs",
        say=said,
        values={
            "name": name,
            "job": known,
            "state": None if known is None else state_of(known),
            "runs": runs.runs,
            "is_cut": len(runs.runs) == _RUNS,
            "problem": found.problem,
            "looks": LOOKS,
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


SORTS: Final = {
    "name": "name",
    "state": "state, the worst first",
    "requests_per_s": "requests",
    "error_ratio": "errors",
    "p99_s": "p99 latency",
}
_SIZE: Final = 50
_TROUBLES: Final = ("failing", "warning")


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemSummary:
    """What there is besides endpoints: how many, the look of their state, and it in words."""

    total: int
    state: tuple[str, str]


async def fleet(question: PageRequest) -> PageView:
    """The start page."""
    sort = question.word("sort", *SORTS)
    asked: Params = {"search": question.search, "sort": sort, "page": question.page, "size": _SIZE}
    found = await question.visitor.get("/api/v1/overview", Overview, asked)
    alerts = await question.visitor.find("/api/v1/alerts", AlertList)
    firing = [a for a in (alerts.alerts if alerts else ()) if a.state == "firing"]
    troubled = [row for row in found.endpoints if row.state in _TROUBLES]
    streams, jobs = await _beside(question)
    return PageView(
        template="fleet.html",
        title="Fleet",
        section="fleet",
        say=_said(found, troubled, len(firing)),
        values={
            "rows": found.endpoints,
            "sort": sort,
            "sorts": SORTS,
            "pages": pages_of(
                found.total, page=question.page, size=_SIZE, shown=len(found.endpoints)
            ),
            "firing": firing,
            "troubled": troubled,
            "streams": beside_of(len(streams), [one for one in streams if not one.is_well]),
            "jobs": beside_of(len(jobs), [one for one in jobs if is_troubled(one)]),
            "is_empty": found.total == 0 and not question.search and not streams and not jobs,
        },
    )


async def _beside(question: PageRequest) -> tuple[Sequence[StreamView], Sequence[JobView]]:
    """All streams and jobs; none for who sees some endpoints only."""
    if not may_see_system(question.caller):
        return (), ()
    streams = await question.visitor.find("/api/v1/streams", StreamList)
    jobs = await question.visitor.find("/api/v1/jobs", JobList)
    return () if streams is None else streams.streams, () if jobs is None else jobs.jobs


def beside_of(total: int, troubled: Sequence[StreamView | JobView]) -> SystemSummary | None:
    """Streams or jobs in a word; None if there are none."""
    if not total:
        return None
    if not troubled:
        return SystemSummary(total=total, state=("ok", "all well"))
    more = f" and {len(troubled) - 1} more" if len(troubled) > 1 else ""
    needs = "need" if more else "needs"
    return SystemSummary(total=total, state=("warning", f"{troubled[0].name}{more} {needs} a look"))


def _said(found: Overview, troubled: list[OverviewRow], firing: int) -> str:
    """What changed for the worse or the better, in a sentence."""
    if not found.total:
        return "No endpoint yet."
    names = ", ".join(f"{row.name} is {row.state}" for row in troubled[:5])
    alerts = f" {firing} alerts are firing." if firing else ""
    return (f"{names}." if names else "All endpoints shown are well.") + alerts


_MOST_LISTED: Final = 200


async def models(question: PageRequest) -> PageView:
    """All models."""
    found = await question.visitor.get("/api/v1/models", ModelList)
    uses = await _uses(question)
    lines = [line for line in lines_of(found, uses) if question.finds(line.name)]
    return PageView(
        template="models.html",
        title="Models",
        section="models",
        values={
            "lines": lines[:_MOST_LISTED],
            "total": len(lines),
            "problems": found.problems,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """An endpoint that serves a version, with its share of that endpoint's requests in percent."""

    endpoint: str
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """A model: all its versions, the newest first, and who serves any of them."""

    name: str
    versions: tuple[KnownVersion, ...]
    uses: tuple[str, ...]


async def model(question: PageRequest) -> PageView:
    """One model: each version from its source to who serves it."""
    name = question.names["name"]
    found = await question.visitor.get(f"/api/v1/models/{name}", ModelList)
    uses = await _uses(question)
    return PageView(
        template="model.html",
        title=f"Model {name}",
        section="models",
        values={
            "name": name,
            "versions": [
                (version, uses.get(version.reference, ()), report_of(version.signature).text)
                for version in _newest_first(found)
            ],
        },
    )


def lines_of(found: ModelList, uses: Mapping[str, tuple[Use, ...]]) -> list[ModelRow]:
    """The models of a list of versions, by name."""
    by_name: dict[str, list[KnownVersion]] = {}
    for version in _newest_first(found):
        by_name.setdefault(version.name, []).append(version)
    return [
        ModelRow(
            name=name,
            versions=tuple(versions),
            uses=tuple(
                sorted({use.endpoint for one in versions for use in uses.get(one.reference, ())})
            ),
        )
        for name, versions in sorted(by_name.items())
    ]


def _newest_first(found: ModelList) -> list[KnownVersion]:
    return sorted(found.models, key=attrgetter("created_at"), reverse=True)


async def _uses(question: PageRequest) -> dict[str, tuple[Use, ...]]:
    """Who serves what, by the version's reference."""
    status = await question.visitor.get("/api/v1/status", SystemStatus)
    found: dict[str, tuple[Use, ...]] = {}
    for endpoint in status.endpoints:
        for revision in endpoint.revisions:
            use = Use(endpoint=endpoint.name, weight=revision.weight)
            if revision.model:
                found[revision.model] = (*found.get(revision.model, ()), use)
    return found


_STATES: Final = ("firing", "pending", "resolved")
_EVENTS: Final = 15
_MOST: Final = 2**53


async def alerts(question: PageRequest) -> PageView:
    """All alerts, the firing ones first."""
    found = await question.visitor.find("/api/v1/alerts", AlertList)
    known = () if found is None else found.alerts
    ordered = sorted(known, key=lambda one: (_rank(one.state), one.endpoint, one.name))
    firing = sum(one.state == "firing" for one in known)
    return PageView(
        template="alerts.html",
        title="Alerts",
        section="alerts",
        say=f"{firing} alerts are firing.",
        values={"is_recorded": found is not None, "alerts": ordered},
    )


async def activity(question: PageRequest) -> PageView:
    """What happened lately, and for admins who changed what."""
    events = await question.visitor.get("/api/v1/events", EventList, {"limit": _EVENTS})
    before = question.number("before", least=1, most=_MOST, usual=0)
    is_admin = question.caller.may(Role.ADMIN)
    entries = await _entries(question, before) if is_admin else []
    oldest = min((entry.id for entry in entries), default=1)
    return PageView(
        template="activity.html",
        title="Activity",
        section="activity",
        values={
            "events": list(reversed(events.events)),
            "entries": list(reversed(entries)),
            "is_admin": is_admin,
            "before": before,
            "older": oldest if oldest > 1 else 0,
        },
    )


async def _entries(question: PageRequest, before: int) -> list[Entry]:
    """A page of the trail: the newest entries, or those right before one."""
    ask = question.visitor
    if not before:
        return list(
            (
                await ask.get("/api/v1/trail", AuditLogPage, {"newest": "true", "limit": _SIZE})
            ).entries
        )
    after = max(before - 1 - _SIZE, 0)
    limit = min(_SIZE, before - 1)
    if limit < 1:
        return []
    return list(
        (await ask.get("/api/v1/trail", AuditLogPage, {"after": after, "limit": limit})).entries
    )


def _rank(state: str) -> int:
    return _STATES.index(state) if state in _STATES else len(_STATES)
