"""History of endpoints over HTTP, and the overview of all of them."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Response

from headrace.control.api.answers import WhoAsks, answer, route
from headrace.control.auth.roles import Caller, Role
from headrace.control.model.desired import DesiredEndpoint
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.reconcile.status import EndpointStatus
from headrace.core import InvalidArgumentError, ModelNotFoundError, PermissionDeniedError
from headrace.core.names import NAME_PATTERN
from headrace.monitor import LoadWindow, RequestHistory, RequestWindow

SPAN_S: Final = 60.0
_STALE_S: Final = 40.0
_WARNING_RATIO: Final = 0.01
_FAILING_RATIO: Final = 0.05
_READY: Final = "ready"


class EndpointHealth(StrEnum):
    """How an endpoint is, the worst last."""

    IDLE = "idle"
    """No requests."""
    OK = "ok"
    WARNING = "warning"
    """Not all of it is ready, a hundredth of the requests failed, or p99 is above its SLO."""
    FAILING = "failing"
    """It cannot become ready by itself, or a twentieth of the requests failed."""


class SortKey(StrEnum):
    """Fields by which endpoints are sorted; names from A to Z, all else from the most down."""

    NAME = "name"
    STATE = "state"
    REQUESTS = "requests_per_s"
    ERRORS = "error_ratio"
    P50 = "p50_s"
    P95 = "p95_s"
    P99 = "p99_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class OverviewRow:
    """One endpoint.

    Rates and latencies are of the last minute, as the gateway saw all requests; latencies are null
    if there was none.
    """

    name: str
    ready: bool
    state: EndpointHealth
    versions: tuple[str, ...]
    """Those that are wanted."""
    replicas_ready: int
    replicas_desired: int
    requests_per_s: float
    error_ratio: float
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    rollout: str | None
    """The phase of the one that is under way, or null."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """One page of all endpoints that were asked for; `total` counts those of all pages."""

    total: int
    page: int
    size: int
    at: float | None
    """Until when requests were counted, in seconds since 1970; null if nothing was counted yet."""
    endpoints: Sequence[OverviewRow]


def last_minute(history: RequestHistory, endpoint: str, now: float) -> RequestWindow:
    """What an endpoint got in the last minute that was counted; less if that began later."""
    until = counted_until(history, now)
    began_at = until - SPAN_S if history.began_at is None else history.began_at
    seconds = min(SPAN_S, max(until - began_at, 1.0))
    return history.window(endpoint, until=until, seconds=seconds)


def counted_until(history: RequestHistory, now: float) -> float:
    """Until when requests are known: a moment before `now`, unless nobody looks any more."""
    looked_at = history.looked_at
    return now if looked_at is None or now - looked_at > _STALE_S else min(looked_at, now)


def row(
    endpoint: DesiredEndpoint, status: EndpointStatus, window: RequestWindow, *, rollout: str | None
) -> OverviewRow:
    """An endpoint at a glance. `rollout`: the phase of one that is under way."""
    revisions = [
        revision
        for revision in status.revisions
        if revision.desired_replicas or revision.desired_weight
    ]
    ready = sum(replica.state == _READY for revision in revisions for replica in revision.replicas)
    p50, p95, p99 = (window.quantile(q) for q in (0.5, 0.95, 0.99))
    return OverviewRow(
        name=status.name,
        ready=status.ready,
        state=state_of(status, window, slo_latency_s=endpoint.slo_latency_s),
        versions=tuple(dict.fromkeys(revision.version for revision in revisions)),
        replicas_ready=ready,
        replicas_desired=sum(revision.desired_replicas for revision in revisions),
        requests_per_s=window.requests_per_s,
        error_ratio=window.error_ratio,
        p50_s=p50,
        p95_s=p95,
        p99_s=p99,
        rollout=rollout,
    )


def state_of(
    status: EndpointStatus, window: RequestWindow, *, slo_latency_s: float | None
) -> EndpointHealth:
    """How an endpoint is."""
    if status.failed or window.error_ratio >= _FAILING_RATIO:
        return EndpointHealth.FAILING
    p99 = window.quantile(0.99)
    is_slow = p99 is not None and slo_latency_s is not None and p99 > slo_latency_s
    if not status.ready or window.error_ratio >= _WARNING_RATIO or is_slow:
        return EndpointHealth.WARNING
    return EndpointHealth.OK if window.requests else EndpointHealth.IDLE


_RANKS: Final[Mapping[EndpointHealth, int]] = {
    state: rank for rank, state in enumerate(EndpointHealth)
}


def sort_rows(rows: Sequence[OverviewRow], key: SortKey, *, reverse: bool) -> list[OverviewRow]:
    """`rows` in order; those without a value come last either way."""
    by_name = sorted(rows, key=lambda row: row.name)
    if key is SortKey.NAME:
        return by_name[::-1] if reverse else by_name
    valued = [(value, row) for row in by_name if (value := _value(row, key)) is not None]
    valued.sort(key=lambda pair: pair[0], reverse=not reverse)
    return [row for _, row in valued] + [row for row in by_name if _value(row, key) is None]


def _value(row: OverviewRow, key: SortKey) -> float | None:
    value: float | None = _RANKS[row.state] if key is SortKey.STATE else getattr(row, key.value)
    return value


_DAY_S: Final = 24 * 3600
_LONGEST_S: Final = 31 * _DAY_S
_MAX_POINTS: Final = 1440
_MAX_SIZE: Final = 500
_MAX_PAGE: Final = 100_000
_MAX_SEARCH: Final = 100
_AT_ONCE: Final = 20
_VERSION: Final = r"^$|^\d{1,18}(~[a-z][a-z0-9]*)?$"
POINT: Final[dict[str, Any]] = {
    "at": 1764000180.0,
    "requests_per_s": 412.5,
    "errors_per_s": 0.4,
    "rejections_per_s": 0.0,
    "p50_s": 0.0042,
    "p95_s": 0.0087,
    "p99_s": 0.0121,
    "batch_rows": 6.2,
    "queue_s": 0.0008,
    "in_flight": 1.9,
    "replicas_ready": 3.0,
}
SERIES: Final[dict[str, Any]] = {
    "endpoint": "fraud",
    "version": "",
    "step_s": 30.0,
    "points": [POINT],
}
ROW: Final[dict[str, Any]] = {
    "name": "fraud",
    "ready": True,
    "state": "ok",
    "versions": ["3", "4"],
    "replicas_ready": 3,
    "replicas_desired": 3,
    "requests_per_s": 412.5,
    "error_ratio": 0.001,
    "p50_s": 0.0042,
    "p95_s": 0.0087,
    "p99_s": 0.0121,
    "rollout": "progressing",
}
OVERVIEW: Final[dict[str, Any]] = {
    "total": 1,
    "page": 1,
    "size": 50,
    "at": 1764000184.0,
    "endpoints": [ROW],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PointView:
    """One step, from `at` on. Rates are null where nobody counted, latencies where none came.

    What replicas say, as means over the step: `batch_rows` is how many rows a batch had, `queue_s`
    how long a request waited for its batch, `in_flight` how many requests replicas had at once.
    Null where there was none, where no replica said it, and of servers that somebody else runs.
    """

    at: float
    requests_per_s: float | None
    errors_per_s: float | None
    rejections_per_s: float | None
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    batch_rows: float | None = None
    queue_s: float | None = None
    in_flight: float | None = None
    replicas_ready: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesView:
    """An endpoint over time in steps of `step_s` seconds; `version` is empty for all together."""

    endpoint: str
    version: str
    step_s: float
    points: Sequence[PointView]


def add_history(api: FastAPI, plane: ControlPlane) -> None:
    """Add the routes of what was and of how it is at a glance."""

    @route(api, "GET /api/v1/history", SeriesView, SERIES)
    async def history(
        caller: WhoAsks,
        endpoint: Annotated[str, Query(pattern=NAME_PATTERN, description="Whose.")],
        version: Annotated[
            str, Query(pattern=_VERSION, description="Only this version's; empty for all.")
        ] = "",
        since_s: Annotated[
            float,
            Query(
                ge=1,
                le=_LONGEST_S,
                description="How far back, in seconds; more than a day where there is a Prometheus "
                "to ask (`--prometheus-url`).",
            ),
        ] = 3600.0,
        points: Annotated[
            int, Query(ge=1, le=_MAX_POINTS, description="About how many steps.")
        ] = 120,
    ) -> Response:
        """Requests, latency, batches and replicas of an endpoint over the last day."""
        if not caller.may(Role.VIEWER, endpoint):
            raise PermissionDeniedError(f"{caller.name} may not see the history of '{endpoint}'")
        if plane.target_state.effective.endpoint(
            endpoint
        ) is None and not plane.telemetry.history.versions(endpoint):
            raise ModelNotFoundError(endpoint)
        if since_s > _DAY_S and plane.telemetry.prometheus is None:
            message = "since_s: more than a day is known with --prometheus-url only"
            raise InvalidArgumentError(message)
        until = counted_until(plane.telemetry.history, plane.clock.now())
        windows = plane.telemetry.history.series(
            endpoint, since=until - since_s, until=until, points=points, version=version
        )
        return answer(
            SeriesView(
                endpoint=endpoint,
                version=version,
                step_s=windows[0].duration_s if windows else since_s,
                points=await _points(plane, endpoint, version, windows, until),
            )
        )

    @route(api, "GET /api/v1/overview", Overview, OVERVIEW)
    async def overview(
        caller: WhoAsks,
        search: Annotated[
            str, Query(max_length=_MAX_SEARCH, description="Only names with this in them.")
        ] = "",
        page: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 1,
        size: Annotated[int, Query(ge=1, le=_MAX_SIZE)] = 50,
        sort: Annotated[
            str,
            Query(
                max_length=32,
                description=f"One of {', '.join(SortKey)}; a - before it turns the order round.",
            ),
        ] = "name",
    ) -> Response:
        """All endpoints at a glance, by the page."""
        key, reverse = _sort_key(sort)
        endpoints = _matching(plane, caller, search)
        begin = (page - 1) * size
        if key is SortKey.NAME:
            # Only those of the page are looked at: this one is fast however many there are.
            endpoints.sort(key=lambda endpoint: endpoint.name, reverse=reverse)
            rows = await _rows(plane, endpoints[begin : begin + size])
        else:
            every = await _rows(plane, endpoints)
            rows = sort_rows(every, key, reverse=reverse)[begin : begin + size]
        polled_at = plane.telemetry.history.looked_at
        return answer(
            Overview(total=len(endpoints), page=page, size=size, at=polled_at, endpoints=rows)
        )


async def _points(
    plane: ControlPlane, endpoint: str, version: str, windows: Sequence[RequestWindow], until: float
) -> list[PointView]:
    """What is known here, and before that what Prometheus knows."""
    edges = [*(window.begin for window in windows), *(window.end for window in windows[-1:])]
    loads = plane.telemetry.load_history.series(endpoint, edges, version=version)
    points = [_point(plane, window, load) for window, load in zip(windows, loads, strict=True)]
    began_at = plane.telemetry.history.began_at
    known_from = until if began_at is None else max(began_at, until - _DAY_S)
    before = sum(window.end <= known_from for window in windows)
    if plane.telemetry.prometheus is None or not before:
        return points
    series = await plane.telemetry.prometheus.series(
        endpoint,
        version,
        first_end=windows[0].end,
        last_end=windows[before - 1].end,
        step_s=windows[0].duration_s,
    )
    for step in range(before):
        values = {name: by_step[step] for name, by_step in series.items() if step in by_step}
        points[step] = replace(points[step], **values)
    return points


def _point(plane: ControlPlane, window: RequestWindow, load: LoadWindow) -> PointView:
    began_at, looked_at = plane.telemetry.history.began_at, plane.telemetry.history.looked_at
    is_counted = (
        began_at is not None
        and looked_at is not None
        and window.end > began_at
        and window.begin < looked_at
    )
    return PointView(
        at=window.begin,
        requests_per_s=window.requests_per_s if is_counted else None,
        errors_per_s=window.errors_per_s if is_counted else None,
        rejections_per_s=window.rejections_per_s if is_counted else None,
        p50_s=window.quantile(0.5),
        p95_s=window.quantile(0.95),
        p99_s=window.quantile(0.99),
        batch_rows=load.batch_rows,
        queue_s=load.queue_s,
        in_flight=load.in_flight,
        replicas_ready=load.ready,
    )


def _sort_key(sort: str) -> tuple[SortKey, bool]:
    """What to sort by, and whether the other way round.

    Raises:
        InvalidArgumentError: There is no such key.
    """
    name = sort.removeprefix("-")
    try:
        return SortKey(name), sort != name
    except ValueError:
        allowed = ", ".join(SortKey)
        raise InvalidArgumentError(f"sort: {sort!r} is unknown; use one of {allowed}") from None


def _matching(plane: ControlPlane, caller: Caller, search: str) -> list[DesiredEndpoint]:
    visible, text = caller.endpoints(Role.VIEWER), search.strip().lower()
    return [
        endpoint
        for endpoint in plane.target_state.effective.endpoints
        if (visible is None or endpoint.name in visible) and text in endpoint.name.lower()
    ]


async def _rows(plane: ControlPlane, endpoints: Sequence[DesiredEndpoint]) -> list[OverviewRow]:
    """One row per endpoint, a few at a time: nothing else waits for all of them."""
    now = plane.clock.now()
    rows: list[OverviewRow] = []
    statuses = plane.endpoint_statuses(endpoints, with_memory=False)
    for number, (endpoint, status) in enumerate(zip(endpoints, statuses, strict=True), start=1):
        window = last_minute(plane.telemetry.history, endpoint.name, now)
        rows.append(row(endpoint, status, window, rollout=_phase(plane, endpoint.name)))
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
    return rows


def _phase(plane: ControlPlane, name: str) -> str | None:
    record = plane.target_state.rollouts.get(name)
    if record is None or record.state.phase.is_over:
        return None
    return record.state.phase.value
