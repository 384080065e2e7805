"""History of endpoints over HTTP, and the overview of all of them."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Response

from headrace.control.api.answers import WhoAsks, answer, route
from headrace.control.auth.roles import Caller, Role
from headrace.control.model.desired import DesiredEndpoint
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.reconcile.status import EndpointStatus
from headrace.core import EndpointNotFoundError, InvalidArgumentError, PermissionDeniedError
from headrace.core.names import NAME_PATTERN
from headrace.monitor import LoadWindow, RequestHistory, RequestWindow

SPAN_S: Final = 60.0
_STALE_S: Final = 40.0
_WARNING_RATIO: Final = 0.01
_FAILING_RATIO: Final = 0.05
_READY: Final = "ready"


class EndpointHealth(StrEnum):
    """Health of an endpoint, from best to worst."""

    IDLE = "idle"
    """No requests."""
    OK = "ok"
    WARNING = "warning"
    """Some replicas are not ready, 1 % of the requests failed, or p99 exceeds the SLO."""
    FAILING = "failing"
    """It cannot become ready without help, or 5 % of the requests failed."""


class SortKey(StrEnum):
    """Sort keys of endpoints; names ascend, all other keys descend."""

    NAME = "name"
    STATE = "state"
    REQUESTS = "requests_per_s"
    ERRORS = "error_ratio"
    P50 = "p50_s"
    P95 = "p95_s"
    P99 = "p99_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class OverviewRow:
    """Summary of one endpoint.

    Rates and latencies cover all requests at the gateway in the last minute; latencies are null
    without requests.
    """

    name: str
    ready: bool
    state: EndpointHealth
    versions: tuple[str, ...]
    """Desired versions."""
    replicas_ready: int
    replicas_desired: int
    requests_per_s: float
    error_ratio: float
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    rollout: str | None
    """Phase of the current rollout, or null."""
    paused: bool = False
    """Whether the gateway refuses its requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """One page of the selected endpoints; `total` counts those of all pages."""

    total: int
    page: int
    size: int
    at: float | None
    """Time up to which requests are counted, in seconds since 1970; null before the first count."""
    endpoints: Sequence[OverviewRow]


def last_minute(history: RequestHistory, endpoint: str, now: float) -> RequestWindow:
    """Return an endpoint's requests of the last counted minute, or since counting began."""
    until = counted_until(history, now)
    began_at = until - SPAN_S if history.began_at is None else history.began_at
    seconds = min(SPAN_S, max(until - began_at, 1.0))
    return history.window(endpoint, until=until, seconds=seconds)


def counted_until(history: RequestHistory, now: float) -> float:
    """Return the time up to which requests are counted; `now` if counting has stopped."""
    looked_at = history.looked_at
    return now if looked_at is None or now - looked_at > _STALE_S else min(looked_at, now)


def row(
    endpoint: DesiredEndpoint, status: EndpointStatus, window: RequestWindow, *, rollout: str | None
) -> OverviewRow:
    """Return the summary of an endpoint. `rollout`: the phase of the current rollout."""
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
        paused=status.paused,
    )


def state_of(
    status: EndpointStatus, window: RequestWindow, *, slo_latency_s: float | None
) -> EndpointHealth:
    """Return the health of an endpoint."""
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
    """Return `rows` sorted; rows without a value come last in both directions."""
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
_MAX_CONCURRENT: Final = 20
_FRESH_S: Final = 3.0
_MAX_RECENT: Final = 64
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
    "first_token_p50_s": None,
    "first_token_p95_s": None,
    "output_tokens_per_s": None,
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
    """One step of a time series, which begins at `at`.

    Rates are null where nothing was counted, latencies without requests.

    Means over the step, reported by replicas: `batch_rows` is the number of rows in a batch,
    `queue_s` how long a request waited for its batch, `in_flight` the number of concurrent
    requests. They are null without requests, without reports, and for external upstreams.

    `first_token_p50_s` and `first_token_p95_s` are times to the first token of streams of OpenAI's
    API, `output_tokens_per_s` the generated tokens of all its answers. They are null for other
    endpoints.
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
    first_token_p50_s: float | None = None
    first_token_p95_s: float | None = None
    output_tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesView:
    """Time series of an endpoint in steps of `step_s` seconds; `version` empty: all versions."""

    endpoint: str
    version: str
    step_s: float
    points: Sequence[PointView]


@dataclass(slots=True)
class SystemHistory:
    """Time series of all endpoints together, computed once for all readers of a few seconds."""

    _recent: dict[tuple[frozenset[str] | None, float, int], tuple[float, SeriesView]] = field(
        default_factory=dict
    )

    async def read(
        self, plane: ControlPlane, caller: Caller, version: str, since_s: float, points: int
    ) -> SeriesView:
        """Return the series of the endpoints that a caller may see.

        Raises:
            InvalidArgumentError: A version is named, or more than a day.
        """
        if version or since_s > _DAY_S:
            message = "all endpoints together have no versions, and a history of a day at most"
            raise InvalidArgumentError(message)
        now, visible = plane.clock.now(), caller.endpoints(Role.VIEWER)
        key = (visible, since_s, points)
        for old, (read_at, _) in list(self._recent.items()):
            if not 0 <= now - read_at < _FRESH_S:
                del self._recent[old]
        if key not in self._recent:
            if len(self._recent) >= _MAX_RECENT:
                self._recent.pop(next(iter(self._recent)))
            self._recent[key] = (now, await self._computed(plane, visible, since_s, points))
        return self._recent[key][1]

    @staticmethod
    async def _computed(
        plane: ControlPlane, visible: frozenset[str] | None, since_s: float, points: int
    ) -> SeriesView:
        history = plane.telemetry.history
        until = counted_until(history, plane.clock.now())
        names = [
            endpoint.name
            for endpoint in plane.target_state.effective.endpoints
            if visible is None or endpoint.name in visible
        ]
        read = partial(history.series, since=until - since_s, until=until, points=points)
        windows = read()
        for begin in range(0, len(names), _MAX_CONCURRENT):
            part = read(*names[begin : begin + _MAX_CONCURRENT])
            windows = [window.plus(of_part) for window, of_part in zip(windows, part, strict=True)]
            await asyncio.sleep(0)
        return SeriesView(
            endpoint="",
            version="",
            step_s=windows[0].duration_s if windows else since_s,
            points=[_point(plane, window, LoadWindow()) for window in windows],
        )


def add_history(api: FastAPI, plane: ControlPlane) -> None:
    """Add the routes of histories and the overview."""
    totals = SystemHistory()

    @route(api, "GET /api/v1/history", SeriesView, SERIES)
    async def history(
        caller: WhoAsks,
        endpoint: Annotated[
            str,
            Query(
                pattern=f"^$|{NAME_PATTERN}",
                description="Whose; empty for the requests of all endpoints together that the "
                "caller may see.",
            ),
        ] = "",
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
        """Return requests, latency, batches and replicas of an endpoint over the last day."""
        if not endpoint:
            return answer(await totals.read(plane, caller, version, since_s, points))
        if not caller.may(Role.VIEWER, endpoint):
            raise PermissionDeniedError(f"{caller.name} may not see the history of '{endpoint}'")
        if plane.target_state.effective.endpoint(
            endpoint
        ) is None and not plane.telemetry.history.versions(endpoint):
            raise EndpointNotFoundError(endpoint)
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
        """List a summary of all endpoints, paginated."""
        key, reverse = _sort_key(sort)
        endpoints = _matching(plane, caller, search)
        begin = (page - 1) * size
        if key is SortKey.NAME:
            # Only the endpoints of the page are evaluated, so the cost does not grow with their
            # number.
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
    """Return the locally recorded points, and older points from Prometheus."""
    edges = [*(window.begin for window in windows), *(window.end for window in windows[-1:])]
    loads = plane.telemetry.load_history.series(endpoint, edges, version=version)
    points = [_point(plane, window, load) for window, load in zip(windows, loads, strict=True)]
    tokens = plane.telemetry.tokens.history
    first, last = tokens.began_at, tokens.looked_at
    if first is not None and last is not None and tokens.versions(endpoint):
        for step, (begin, end) in enumerate(pairwise(edges)):
            if first < end <= last:
                of_step = tokens.window(endpoint, until=end, seconds=end - begin, version=version)
                points[step] = replace(
                    points[step],
                    first_token_p50_s=of_step.quantile(0.5),
                    first_token_p95_s=of_step.quantile(0.95),
                    output_tokens_per_s=of_step.requests_per_s,
                )
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
    """Return the sort key and whether the order is reversed.

    Raises:
        InvalidArgumentError: The key is unknown.
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
    """Return one row per endpoint; the event loop gets control after every few rows."""
    now = plane.clock.now()
    rows: list[OverviewRow] = []
    statuses = plane.endpoint_statuses(endpoints, with_memory=False)
    for number, (endpoint, status) in enumerate(zip(endpoints, statuses, strict=True), start=1):
        window = last_minute(plane.telemetry.history, endpoint.name, now)
        record = plane.target_state.rollouts.get(endpoint.name)
        phase = None if record is None or record.state.phase.is_over else record.state.phase.value
        rows.append(row(endpoint, status, window, rollout=phase))
        if number % _MAX_CONCURRENT == 0:
            await asyncio.sleep(0)
    return rows
