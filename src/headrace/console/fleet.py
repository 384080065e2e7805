"""Pages that list endpoints, models, alerts, events and jobs.

`msgspec` decodes responses into the API's own types where it has them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from headrace.console.charts import Chart, ChartLine, line_chart, seconds_unit
from headrace.console.upload import may_upload
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
from headrace.control.api.history import Overview, OverviewRow, SeriesView
from headrace.control.api.jobs import JobList, RunList
from headrace.control.api.models import KnownVersion, ModelList
from headrace.control.api.streams import StreamList
from headrace.control.auth.roles import Role
from headrace.control.jobs.status import JobView
from headrace.control.model.audit_log import Entry
from headrace.control.plane.status import SystemStatus
from headrace.control.streams.status import StreamView
from headrace.core.text import duration_text
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


async def jobs(request: PageRequest) -> PageView:
    """Return the page of all jobs, problems first."""
    listed = await request.visitor.get("/api/v1/jobs", JobList)
    ordered = sorted(
        (job for job in listed.jobs if request.matches_search(job.name)),
        key=lambda job: (not needs_attention(job), job.name),
    )
    rows, pages = cut(ordered, page=request.page, size=_SIZE)
    return PageView(
        template="jobs.html",
        title="Jobs",
        section="jobs",
        announcement=jobs_text(listed.jobs),
        values={
            "rows": rows,
            "pages": pages,
            "problem": listed.problem,
            "unhealthy": [job for job in listed.jobs if needs_attention(job)],
            "is_empty": not listed.jobs,
            "states": {job.name: state_of(job) for job in rows},
            "looks": LOOKS,
        },
    )


async def job(request: PageRequest) -> PageView:
    """Return the page of one job and its runs; for a removed job only the runs."""
    name = request.names["job"]
    listed = await request.visitor.get("/api/v1/jobs", JobList)
    current = next((candidate for candidate in listed.jobs if candidate.name == name), None)
    parameters = {"limit": _RUNS}
    runs = await request.visitor.find(f"/api/v1/jobs/{name}/runs", RunList, parameters)
    if runs is None:
        raise RefusedError.of(_NOT_FOUND, f"no job {name!r}")
    announcement = f"Job {name} has not run yet."
    if current is not None and current.is_late:
        announcement = f"Job {name} is late."
    elif runs.runs:
        announcement = f"The last run of job {name} is {runs.runs[0].state}."
    return PageView(
        template="job.html",
        title=f"Job {name}",
        section="jobs",
        announcement=announcement,
        values={
            "name": name,
            "job": current,
            "state": None if current is None else state_of(current),
            "runs": runs.runs,
            "is_cut": len(runs.runs) == _RUNS,
            "problem": listed.problem,
            "looks": LOOKS,
        },
    )


def needs_attention(job: JobView) -> bool:
    """Whether a job needs attention: it is late, or its last run failed."""
    return state_of(job)[0] == "failing"


def state_of(job: JobView) -> tuple[str, str]:
    """Return a job's CSS state and its state as text."""
    if job.is_late:
        return "failing", "late"
    if job.last_run is not None and job.last_run.state == "failed":
        return "failing", "failed"
    if job.running:
        return "ok", "running"
    return ("idle", "no runs yet") if job.last_run is None else ("ok", "healthy")


def jobs_text(jobs: Sequence[JobView]) -> str:
    """Return the state of the jobs as a sentence."""
    if not jobs:
        return "No jobs yet."
    unhealthy = [job for job in jobs if needs_attention(job)]
    named = ", ".join(
        f"job {job.name} {'is late' if job.is_late else 'failed'}" for job in unhealthy
    )
    return f"{named[:500]}." if named else "All jobs are healthy."


SORTS: Final = {
    "name": "name",
    "state": "state, problems first",
    "requests_per_s": "requests",
    "error_ratio": "errors",
    "p99_s": "p99 latency",
}
SPANS: Final = {"900": "15 min", "3600": "1 h", "21600": "6 h", "86400": "24 h"}
_POINTS: Final = 60
_COUNTED_S: Final = 2.0
_SIZE: Final = 50
_PROBLEM_STATES: Final = ("failing", "warning")


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemSummary:
    """Summary of streams or jobs: their number, CSS state, and state as text."""

    total: int
    state: tuple[str, str]


async def fleet(request: PageRequest) -> PageView:
    """Return the start page."""
    sort = request.word("sort", *SORTS)
    parameters: Params = {
        "search": request.search,
        "sort": sort,
        "page": request.page,
        "size": _SIZE,
    }
    overview = await request.visitor.get("/api/v1/overview", Overview, parameters)
    span_s = request.word("span", *SPANS)
    since: Params = {"since_s": span_s, "points": _POINTS}
    series = await request.visitor.find("/api/v1/history", SeriesView, since)
    alerts = await request.visitor.find("/api/v1/alerts", AlertList)
    firing = [a for a in (alerts.alerts if alerts else ()) if a.state == "firing"]
    unhealthy = [row for row in overview.endpoints if row.state in _PROBLEM_STATES]
    streams, jobs = await _streams_and_jobs(request)
    return PageView(
        template="fleet.html",
        title="Fleet",
        section="fleet",
        announcement=_overview_text(overview, unhealthy, len(firing)),
        values={
            "rows": overview.endpoints,
            "sort": sort,
            "sorts": SORTS,
            "pages": pages_of(
                overview.total, page=request.page, size=_SIZE, shown=len(overview.endpoints)
            ),
            "charts": overview_charts(series, request.now) if series else [],
            "span": span_s,
            "spans": SPANS,
            "firing": firing,
            "unhealthy": unhealthy,
            "streams": system_summary(
                len(streams), [stream for stream in streams if not stream.is_well]
            ),
            "jobs": system_summary(len(jobs), [job for job in jobs if needs_attention(job)]),
            "is_empty": overview.total == 0 and not request.search and not streams and not jobs,
        },
    )


def overview_charts(series: SeriesView, now: float) -> list[Chart]:
    """Return requests, errors and p99 of all endpoints together; completed steps only."""
    points = [point for point in series.points if point.at + series.step_s <= now - _COUNTED_S]
    times = [point.at for point in points]
    slowest = max((p for point in points if (p := point.p99_s) is not None), default=0.0)
    unit, per_s = seconds_unit(slowest)
    latest = next((point.p99_s for point in reversed(points) if point.p99_s is not None), None)
    p99 = [None if point.p99_s is None else point.p99_s * per_s for point in points]
    lines = (
        ("all-requests", "Requests", "requests/s", [p.requests_per_s for p in points], 1, ""),
        ("all-errors", "Errors", "requests/s", [p.errors_per_s for p in points], 3, ""),
        ("all-p99", "Latency, p99", unit, p99, 1, duration_text(latest)),
    )
    return [
        line_chart(
            id_=id_,
            title=title,
            unit=unit_,
            times=times,
            lines=[ChartLine(name=title.lower(), values=values, look=look, last=last)],
            until=now,
        )
        for id_, title, unit_, values, look, last in lines
    ]


async def _streams_and_jobs(
    request: PageRequest,
) -> tuple[Sequence[StreamView], Sequence[JobView]]:
    """Return all streams and jobs; none for visitors limited to endpoints."""
    if not may_see_system(request.caller):
        return (), ()
    streams = await request.visitor.find("/api/v1/streams", StreamList)
    jobs = await request.visitor.find("/api/v1/jobs", JobList)
    return () if streams is None else streams.streams, () if jobs is None else jobs.jobs


def system_summary(total: int, unhealthy: Sequence[StreamView | JobView]) -> SystemSummary | None:
    """Return a summary of streams or jobs; None if there are none."""
    if not total:
        return None
    if not unhealthy:
        return SystemSummary(total=total, state=("ok", "all healthy"))
    more = f" and {len(unhealthy) - 1} more" if len(unhealthy) > 1 else ""
    needs = "need" if more else "needs"
    return SystemSummary(
        total=total, state=("warning", f"{unhealthy[0].name}{more} {needs} attention")
    )


def _overview_text(overview: Overview, unhealthy: list[OverviewRow], firing: int) -> str:
    """Return the state of the endpoints as a sentence."""
    if not overview.total:
        return "No endpoints yet."
    names = ", ".join(f"{row.name} is {row.state}" for row in unhealthy[:5])
    alerts = f" {firing} alerts are firing." if firing else ""
    return (f"{names}." if names else "All endpoints shown are healthy.") + alerts


_MAX_LISTED: Final = 200


async def models(request: PageRequest) -> PageView:
    """Return the page of all models."""
    listed = await request.visitor.get("/api/v1/models", ModelList)
    uses = await _uses(request)
    lines = [line for line in lines_of(listed, uses) if request.matches_search(line.name)]
    return PageView(
        template="models.html",
        title="Models",
        section="models",
        values={
            "may_upload": may_upload(request),
            "lines": lines[:_MAX_LISTED],
            "total": len(lines),
            "problems": listed.problems,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Endpoint that serves a version, with the version's share of its requests in percent."""

    endpoint: str
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """Model with all its versions, newest first, and the endpoints that serve them."""

    name: str
    versions: tuple[KnownVersion, ...]
    uses: tuple[str, ...]


async def model(request: PageRequest) -> PageView:
    """Return the page of one model: each version from its source to its endpoints."""
    name = request.names["name"]
    listed = await request.visitor.get(f"/api/v1/models/{name}", ModelList)
    uses = await _uses(request)
    return PageView(
        template="model.html",
        title=f"Model {name}",
        section="models",
        values={
            "name": name,
            "may_serve": request.caller.may_somewhere(Role.OPERATOR),
            "versions": [
                (version, uses.get(version.reference, ()), report_of(version.signature).text)
                for version in _newest_first(listed)
            ],
        },
    )


def lines_of(models: ModelList, uses: Mapping[str, tuple[Use, ...]]) -> list[ModelRow]:
    """Return the models of a list of versions, by name."""
    by_name: dict[str, list[KnownVersion]] = {}
    for version in _newest_first(models):
        by_name.setdefault(version.name, []).append(version)
    return [
        ModelRow(
            name=name,
            versions=tuple(versions),
            uses=tuple(
                sorted(
                    {
                        use.endpoint
                        for version in versions
                        for use in uses.get(version.reference, ())
                    }
                )
            ),
        )
        for name, versions in sorted(by_name.items())
    ]


def _newest_first(models: ModelList) -> list[KnownVersion]:
    return sorted(models.models, key=attrgetter("created_at"), reverse=True)


async def _uses(request: PageRequest) -> dict[str, tuple[Use, ...]]:
    """Return the endpoints that serve each version, by reference."""
    status = await request.visitor.get("/api/v1/status", SystemStatus)
    uses: dict[str, tuple[Use, ...]] = {}
    for endpoint in status.endpoints:
        for revision in endpoint.revisions:
            use = Use(endpoint=endpoint.name, weight=revision.weight)
            if revision.model:
                uses[revision.model] = (*uses.get(revision.model, ()), use)
    return uses


_STATES: Final = ("firing", "pending", "resolved")
_EVENTS: Final = 15
_MOST: Final = 2**53


async def alerts(request: PageRequest) -> PageView:
    """Return the page of all alerts, firing ones first."""
    listed = await request.visitor.find("/api/v1/alerts", AlertList)
    all_alerts = () if listed is None else listed.alerts
    ordered = sorted(all_alerts, key=lambda alert: (_rank(alert.state), alert.endpoint, alert.name))
    firing = sum(alert.state == "firing" for alert in all_alerts)
    return PageView(
        template="alerts.html",
        title="Alerts",
        section="alerts",
        announcement=f"{firing} alerts are firing.",
        values={"is_recorded": listed is not None, "alerts": ordered},
    )


async def activity(request: PageRequest) -> PageView:
    """Return the page of recent events, and of the audit log for admins."""
    events = await request.visitor.get("/api/v1/events", EventList, {"limit": _EVENTS})
    before = request.number("before", minimum=1, maximum=_MOST, usual=0)
    is_admin = request.caller.may(Role.ADMIN)
    entries = await _entries(request, before) if is_admin else []
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


async def _entries(request: PageRequest, before: int) -> list[Entry]:
    """Return a page of the audit log: the newest entries, or those right before one."""
    ask = request.visitor
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
