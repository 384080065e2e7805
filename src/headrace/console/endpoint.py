"""Page of one endpoint: traffic and load over time, drift, versions and replicas."""

from collections.abc import Sequence
from typing import Final

from headrace.console.charts import Chart, Line, line_chart, seconds_unit
from headrace.console.drift import drift_of
from headrace.console.load import load_charts, replicas_chart
from headrace.console.phases import StatsList, phases_of
from headrace.console.shares import Share, shares_of
from headrace.console.view import Question, View
from headrace.console.visitor import Params, may_operate
from headrace.control.api.endpoints import EndpointView, History
from headrace.control.api.events import EventList
from headrace.control.api.features import DriftView
from headrace.control.api.history import Overview, OverviewRow, PointView, SeriesView
from headrace.control.reconcile.status import RevisionStatus
from headrace.core.text import duration_text

SPANS: Final = {"900": "15 min", "3600": "1 h", "21600": "6 h", "86400": "24 h"}
_POINTS: Final = 90
_GENERATIONS: Final = 10
_EVENTS: Final = 8
_COUNTED_WITHIN_S: Final = 2.0
_MOST_ALIKE: Final = 200
"""Endpoints with a name that has this one's in it, among which it is looked for."""


async def endpoint(question: Question) -> View:
    """The page of one endpoint."""
    name, now = question.names["name"], question.now
    span_s = question.word("span", *SPANS)
    ask = question.visitor
    found = await ask.get(f"/api/v1/endpoints/{name}", EndpointView)
    recent = await ask.find(f"/api/v1/endpoints/{name}/history", History, {"limit": _GENERATIONS})
    series = await ask.find(
        "/api/v1/history", SeriesView, {"endpoint": name, "since_s": span_s, "points": _POINTS}
    )
    events = await ask.get("/api/v1/events", EventList, {"endpoint": name, "limit": _EVENTS})
    stats = await ask.find(f"/v2/models/{name}/stats", StatsList)
    drift = drift_of(await ask.find(f"/api/v1/endpoints/{name}/drift", DriftView))
    points = None if series is None else _whole(series, now)
    ready = "ready" if found.status.ready else f"not ready: {found.status.message}"
    return View(
        template="endpoint.html",
        title=name,
        section="fleet",
        say=f"{name} is {ready}.",
        values={
            "endpoint": found,
            "shares": _shares(found.status.revisions),
            "replicas": [
                (revision, replica)
                for revision in found.status.revisions
                for replica in revision.replicas
            ],
            "charts": None if points is None else charts_of(points, now),
            "replicas_chart": replicas_chart(points or (), now),
            "drift": drift,
            "latest": await _last_minute(question, name),
            "phases": phases_of(stats),
            "generations": recent.generations if recent is not None else [],
            "rollout_ends": recent.rollouts if recent is not None else [],
            "events": list(reversed(events.events)),
            "span": span_s,
            "spans": SPANS,
            "may_operate": may_operate(question.caller, name),
            "now": now,
        },
    )


def charts_of(points: Sequence[PointView], now: float) -> list[Chart]:
    """Traffic, latency and errors of a history, and what replicas say of themselves."""
    times = [point.at for point in points]
    slowest = max((p for point in points if (p := point.p99_s) is not None), default=0.0)
    unit, per_s = seconds_unit(slowest)

    def quantile(name: str, values: Sequence[float | None], look: int) -> Line:
        latest = next((value for value in reversed(values) if value is not None), None)
        scaled = [None if value is None else value * per_s for value in values]
        return Line(name=name, values=scaled, look=look, last=duration_text(latest))

    return [
        line_chart(
            id_="traffic",
            title="Requests",
            unit="requests/s",
            times=times,
            lines=[Line(name="requests", values=[p.requests_per_s for p in points], look=1)],
            until=now,
        ),
        line_chart(
            id_="latency",
            title="Latency",
            unit=unit,
            hint="p99: 99 of 100 took no longer",
            times=times,
            lines=[
                quantile("p50", [p.p50_s for p in points], 1),
                quantile("p95", [p.p95_s for p in points], 2),
                quantile("p99", [p.p99_s for p in points], 3),
            ],
            until=now,
        ),
        line_chart(
            id_="errors",
            title="Errors and rejections",
            unit="requests/s",
            times=times,
            lines=[
                Line(name="errors", values=[p.errors_per_s for p in points], look=3),
                Line(name="rejections", values=[p.rejections_per_s for p in points], look=2),
            ],
            until=now,
        ),
        *load_charts(points, now),
    ]


def _whole(series: SeriesView, now: float) -> list[PointView]:
    """The steps that are over and counted: one that goes on would look like a fall."""
    return [one for one in series.points if one.at + series.step_s <= now - _COUNTED_WITHIN_S]


async def _last_minute(question: Question, name: str) -> OverviewRow | None:
    """The endpoint at a glance, with the very numbers of the start page."""
    asked: Params = {"search": name, "size": _MOST_ALIKE}
    found = await question.visitor.find("/api/v1/overview", Overview, asked)
    rows = found.endpoints if found is not None else ()
    return next((row for row in rows if row.name == name), None)


def _shares(revisions: Sequence[RevisionStatus]) -> list[Share]:
    named = [
        (f"version {one.version}" + (f" ({one.role})" if one.role else ""), one.weight)
        for one in revisions
    ]
    return shares_of(named)
