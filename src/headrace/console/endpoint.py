"""Page of one endpoint: traffic, load and phases over time, drift, versions, replicas.

Load charts are left out if no replica reported, as for external servers.

Means of phases come from Triton's statistics, which count every phase; quantiles are the gateway's.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from headrace.console.charts import Chart, ChartLine, line_chart, seconds_unit
from headrace.console.rollout import (
    BASELINE_LOOK,
    NEW_LOOK,
    OLD_LOOK,
    OTHER_LOOK,
    SplitShare,
    shares_of,
)
from headrace.console.try_it import is_language_model, main_version
from headrace.console.view import PageRequest, PageView, Params, may_operate
from headrace.control.api.endpoints import EndpointView, GenerationHistory
from headrace.control.api.events import EventList
from headrace.control.api.features import DriftView
from headrace.control.api.history import Overview, OverviewRow, PointView, SeriesView
from headrace.control.reconcile.status import RevisionStatus
from headrace.control.rollouts.status import RolloutStatus
from headrace.control.telemetry.labels import LiveScore
from headrace.core.text import coarse_span, duration_text, number_text, percent_text
from headrace.monitor.drift import FeatureReport

_MARKS: Final = 4
_ORDER: Final = (OTHER_LOOK, OLD_LOOK, BASELINE_LOOK, NEW_LOOK)


def _durations(
    chart: Callable[..., Chart], seconds: Mapping[str, Sequence[float | None]], **texts: str
) -> Chart:
    """Return a chart of durations by name, in the unit of the longest."""
    longest = max((v for values in seconds.values() for v in values if v is not None), default=0.0)
    unit, per_s = seconds_unit(longest)
    lines = [
        ChartLine(
            name=name,
            values=[None if value is None else value * per_s for value in values],
            look=look,
            last=duration_text(next((v for v in reversed(values) if v is not None), None)),
        )
        for look, (name, values) in enumerate(seconds.items(), start=1)
    ]
    return chart(unit=unit, lines=lines, **texts)


def load_charts(points: Sequence[PointView], now: float) -> list[Chart]:
    """Return rows per batch, queue wait and requests in flight; empty without values."""
    if all(point.replicas_ready is None for point in points):
        return []
    chart = partial(line_chart, times=[point.at for point in points], until=now)
    return [
        chart(
            id_="batches",
            title="Batches",
            unit="rows per batch",
            hint="mean rows per model run",
            lines=[ChartLine(name="mean", values=[p.batch_rows for p in points], look=1)],
        ),
        _durations(
            chart,
            {"mean": [point.queue_s for point in points]},
            id_="queue",
            title="Queue",
            hint="mean wait of a request for its batch",
        ),
        chart(
            id_="in-flight",
            title="In flight",
            unit="requests",
            hint="mean requests queued or running in all replicas",
            nothing="no data from replicas",
            lines=[ChartLine(name="mean", values=[p.in_flight for p in points], look=1)],
        ),
    ]


def token_charts(points: Sequence[PointView], now: float) -> list[Chart]:
    """Return times to the first token and tokens per second; empty without values."""
    if all(point.output_tokens_per_s is None for point in points):
        return []
    chart = partial(line_chart, times=[point.at for point in points], until=now)
    quantiles = {
        "p50": [point.first_token_p50_s for point in points],
        "p95": [point.first_token_p95_s for point in points],
    }
    return [
        _durations(
            chart,
            quantiles,
            id_="first-token",
            title="First token",
            hint="from the request to the first token of a stream",
            nothing="no streams",
        ),
        chart(
            id_="tokens",
            title="Tokens",
            unit="tokens/s",
            hint="generated tokens of all answers",
            lines=[
                ChartLine(
                    name="output", values=[point.output_tokens_per_s for point in points], look=1
                )
            ],
        ),
    ]


def replicas_chart(points: Sequence[PointView], now: float) -> Chart | None:
    """Return ready replicas over time; None without values."""
    ready = [point.replicas_ready for point in points]
    maximum = max((value for value in ready if value is not None), default=None)
    if maximum is None:
        return None
    return line_chart(
        id_="ready",
        title="Ready over time",
        unit="replicas",
        times=[point.at for point in points],
        lines=[ChartLine(name="ready", values=ready, look=1)],
        until=now,
        # Marks of replica counts are integers.
        marks=min(max(math.ceil(maximum), 1), _MARKS),
    )


_NS_PER_S: Final = 1e9
_PHASES: Final = {
    "queue_s": "queue",
    "preprocess_s": "compute_input",
    "compute_s": "compute_infer",
    "postprocess_s": "compute_output",
}
"""Means on the page, by the name of the phase in Triton's statistics."""
Statistics = dict[str, Any]


def phases_of(statistics: Statistics | None) -> list[dict[str, Any]]:
    """Return a row per version with responses: rows, rows per batch, means of phases."""
    rows = []
    for version in (statistics or {}).get("model_stats", ()):
        answered, runs = version["inference_count"], version["execution_count"]
        if not answered:
            continue
        row = {
            "version": version["version"],
            "rows": answered,
            "batch_rows": answered / runs if runs else None,
        }
        for name, phase in _PHASES.items():
            sums = version["inference_stats"][phase]
            row[name] = sums["ns"] / sums["count"] / _NS_PER_S if sums["count"] else None
        rows.append(row)
    return rows


MOST: Final = 20
_NAMED: Final = 5
_FULL: Final = 100
_STATES: Final = {"ok": "ok", "drifted": "failing", "collecting": "idle"}
_WORDS: Final = {"ok": "no drift", "drifted": "drifted", "collecting": "collecting"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftRow:
    """One row of the drift table."""

    feature: FeatureReport
    name: str
    """Name of the feature."""
    look: str
    """CSS state of the row."""
    word: str
    """State as text."""
    filled: float
    """The feature's evidence in percent of what counts as drift."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftSection:
    """Drift section of an endpoint's page."""

    version: str
    """Model version."""
    rows: Sequence[DriftRow]
    """Rows of the table."""
    more: int
    """Number of features without a row."""
    drifted: str
    """Names of some drifted features."""
    waiting: str
    """Why there is no result yet; empty if there is one."""
    live: Sequence[str]
    """Accuracy from labels, one sentence per window."""


def drift_of(report: DriftView | None) -> DriftSection | None:
    """Return the drift section; None if drift is not watched."""
    if report is None or report.state == "off":
        return None
    names = [_name(feature) for feature in report.features if feature.state == "drifted"]
    others = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return DriftSection(
        version=report.version,
        rows=[_row(feature) for feature in report.features[:MOST]],
        more=max(len(report.features) - MOST, 0),
        drifted=", ".join(names[:_NAMED]) + others,
        waiting=_waiting(report),
        live=[text for window in report.live if (text := _live(window))],
    )


def _row(feature: FeatureReport) -> DriftRow:
    ratio = feature.evidence / feature.needed if feature.needed > 0 else 0.0
    return DriftRow(
        feature=feature,
        name=_name(feature),
        look=_STATES.get(feature.state, "idle"),
        word=_WORDS.get(feature.state, feature.state),
        filled=round(min(max(ratio, 0.0), 1.0) * _FULL, 1),
    )


def _name(feature: FeatureReport) -> str:
    return f"{feature.name} ({feature.label})" if feature.label else feature.name


def _waiting(report: DriftView) -> str:
    reference = report.reference
    if reference is None:
        return "No replica has reported counts yet."
    if report.state != "collecting":
        return ""
    if reference.collected_rows < reference.window_rows:
        return (
            "Collecting the reference from the first rows: "
            f"{reference.collected_rows:,} of {reference.window_rows:,} collected."
        )
    return "Not enough rows to compare yet."


def _live(score: LiveScore) -> str:
    """Return the accuracy of a span as text; empty without labels."""
    if not score.rows:
        return ""
    of = f"of {score.rows:,} labelled answers of the last {coarse_span(score.seconds)}"
    if score.accuracy is not None:
        return f"{percent_text(score.accuracy)} correct, {of}"
    return f"{number_text(score.mean_error)} off on average, {of}"


SPANS: Final = {"900": "15 min", "3600": "1 h", "21600": "6 h", "86400": "24 h"}
_POINTS: Final = 90
_GENERATIONS: Final = 10
_EVENTS: Final = 8
_COUNTED_WITHIN_S: Final = 2.0
_MAX_SIMILAR: Final = 200
"""Maximum number of endpoints whose names contain this one's, among which it is searched."""


async def endpoint(request: PageRequest) -> PageView:
    """Return the page of one endpoint."""
    name, now = request.names["name"], request.now
    span_s = request.word("span", *SPANS)
    ask = request.visitor
    endpoint_ = await ask.get(f"/api/v1/endpoints/{name}", EndpointView)
    recent = await ask.find(
        f"/api/v1/endpoints/{name}/history", GenerationHistory, {"limit": _GENERATIONS}
    )
    series = await ask.find(
        "/api/v1/history", SeriesView, {"endpoint": name, "since_s": span_s, "points": _POINTS}
    )
    events = await ask.get("/api/v1/events", EventList, {"endpoint": name, "limit": _EVENTS})
    stats = await ask.find(f"/v2/models/{name}/stats", Statistics)
    drift = drift_of(await ask.find(f"/api/v1/endpoints/{name}/drift", DriftView))
    # Completed steps only: an incomplete one would look like a decrease.
    points = (
        None
        if series is None
        else [
            point for point in series.points if point.at + series.step_s <= now - _COUNTED_WITHIN_S
        ]
    )
    ready = "ready" if endpoint_.status.ready else f"not ready: {endpoint_.status.message}"
    return PageView(
        template="endpoint.html",
        title=name,
        section="fleet",
        announcement=f"{name} is {ready}.",
        values={
            "endpoint": endpoint_,
            "shares": _shares(endpoint_.status.revisions, endpoint_.rollout),
            "replicas": [
                (revision, replica)
                for revision in endpoint_.status.revisions
                for replica in revision.replicas
            ],
            "charts": None if points is None else charts_of(points, now),
            "replicas_chart": replicas_chart(points or (), now),
            "drift": drift,
            "latest": await _last_minute(request, name),
            "phases": phases_of(stats),
            "generations": recent.generations if recent is not None else [],
            "rollout_ends": recent.rollouts if recent is not None else [],
            "events": list(reversed(events.events)),
            "span": span_s,
            "spans": SPANS,
            "is_language_model": is_language_model(
                endpoint_, await main_version(request, endpoint_)
            ),
            "may_operate": may_operate(request.caller, name),
            "buttons": _buttons(request, endpoint_),
        },
    )


def charts_of(points: Sequence[PointView], now: float) -> list[Chart]:
    """Return charts of traffic, latency and errors, and of metrics that replicas report."""
    chart = partial(line_chart, times=[point.at for point in points], until=now)
    quantiles = {
        "p50": [point.p50_s for point in points],
        "p95": [point.p95_s for point in points],
        "p99": [point.p99_s for point in points],
    }
    return [
        chart(
            id_="traffic",
            title="Requests",
            unit="requests/s",
            lines=[ChartLine(name="requests", values=[p.requests_per_s for p in points], look=1)],
        ),
        _durations(
            chart,
            quantiles,
            id_="latency",
            title="Latency",
            hint="p99: 99 % were at least this fast",
        ),
        chart(
            id_="errors",
            title="Errors and rejections",
            unit="requests/s",
            lines=[
                ChartLine(name="errors", values=[p.errors_per_s for p in points], look=3),
                ChartLine(name="rejections", values=[p.rejections_per_s for p in points], look=2),
            ],
        ),
        *token_charts(points, now),
        *load_charts(points, now),
    ]


def _buttons(request: PageRequest, endpoint: EndpointView) -> list[tuple[str, str, str]]:
    """Return path, text and look of each action that the visitor may start."""
    path = f"/endpoints/{endpoint.name}"
    if endpoint.spec is None or not may_operate(request.caller, endpoint.name):
        return []
    is_under_way = endpoint.rollout is not None and not endpoint.rollout.over
    is_ours = not any(revision.desired_replicas == 0 for revision in endpoint.status.revisions)
    buttons = [] if is_under_way else [(f"{path}/rollout", "Start a rollout", "primary")]
    if is_ours or endpoint.spec.get("autoscale") is not None:
        buttons.append((f"{path}/scale", "Scale", ""))
    if endpoint.status.paused:
        return [*buttons, (f"{path}/resume", "Resume", "")]
    return [*buttons, (f"{path}/pause", "Pause", "danger")]


async def _last_minute(request: PageRequest, name: str) -> OverviewRow | None:
    """Return the endpoint's summary, with the same numbers as the start page."""
    parameters: Params = {"search": name, "size": _MAX_SIMILAR}
    overview = await request.visitor.find("/api/v1/overview", Overview, parameters)
    rows = overview.endpoints if overview is not None else ()
    return next((row for row in rows if row.name == name), None)


def _shares(revisions: Sequence[RevisionStatus], rollout: RolloutStatus | None) -> list[SplitShare]:
    """Return the split, in the order and the fills of the rollout's page."""
    looks = {} if rollout is None else {rollout.to_version: NEW_LOOK}
    looks |= {revisions[0].version: OLD_LOOK} if rollout is None and revisions else {}
    looks |= {} if rollout is None else {rollout.from_version: OLD_LOOK}
    parts = [
        (
            f"version {revision.version}" + (f" ({revision.role})" if revision.role else ""),
            revision.weight,
            BASELINE_LOOK if revision.role else looks.get(revision.version, OTHER_LOOK),
        )
        for revision in revisions
    ]
    return shares_of(sorted(parts, key=lambda part: _ORDER.index(part[2])))
