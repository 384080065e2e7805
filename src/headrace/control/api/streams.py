"""Streams over HTTP: status, pause and resume."""

from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import FastAPI, Path, Query, Response

from headrace.control.api.answers import Actor, answer, route, view_of
from headrace.control.base.context import ServiceContext
from headrace.control.streams.status import StreamView
from headrace.control.streams.supervisor import StreamSupervisor
from headrace.control.streams.workers import RETENTION_S
from headrace.core.names import NAME_PATTERN

_Stream = Annotated[str, Path(pattern=NAME_PATTERN, description="The stream's name.")]

_MEMBER: Final[dict[str, Any]] = {
    "member": "fraud-0",
    "state": "running",
    "pid": 4711,
    "restarts": 0,
    "partitions": ["payments/0", "payments/1"],
    "lag_records": 12,
    "rate": 1840.5,
    "answered": 912_000,
    "dead_letters": 3,
    "message": "",
    "outdated": False,
}
_STREAM: Final[dict[str, Any]] = {
    "name": "fraud",
    "state": "running",
    "model": "fraud:3",
    "topics": ["payments"],
    "sink": "scores",
    "group": "fraud",
    "ready": 1,
    "workers": 1,
    "min_workers": 1,
    "max_workers": 4,
    "lag_records": 12,
    "lag_s": 0.02,
    "rate": 1840.5,
    "answered": 912_000,
    "dead_letters": 3,
    "retries": 0,
    "restarts": 0,
    "message": "",
    "scaling": "Steady",
    "members": [_MEMBER],
    "running": 1,
    "failing": 0,
    "paused": False,
    "stuck": False,
}
_POINT: Final[dict[str, Any]] = {
    "at": 1764000180.0,
    "answered_per_s": 1840.5,
    "dead_letters_per_s": 0.0,
    "lag_records": 12,
    "lag_s": 0.02,
    "running": 1,
}
_MAX_POINTS: Final = 360


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamList:
    """The streams of the spec."""

    streams: list[StreamView]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPointView:
    """One step of a stream's history."""

    at: float
    """End of the step, in seconds since 1970. Rates are means over the step; lag is its maximum,
    null if unknown; `running` counts the workers that consumed records at its end.
    """
    answered_per_s: float
    dead_letters_per_s: float
    lag_records: int | None
    lag_s: float | None
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamHistory:
    """History of a stream, the oldest step first."""

    points: list[StreamPointView]


def add_streams(api: FastAPI, context: ServiceContext, supervisor: StreamSupervisor) -> None:
    """Add the routes of streams."""

    @route(api, "GET /api/v1/streams", StreamList, {"streams": [_STREAM]})
    async def streams() -> Response:
        """List the streams with their status."""
        return answer(StreamList(streams=list(supervisor.views())))

    @route(api, "GET /api/v1/streams/{stream}", StreamView, _STREAM)
    async def stream(stream: _Stream) -> Response:
        """Return the status of a stream."""
        return answer(supervisor.view(stream))

    @route(api, "GET /api/v1/streams/{stream}/history", StreamHistory, {"points": [_POINT]})
    async def history(
        stream: _Stream,
        since_s: Annotated[
            float, Query(gt=0, le=RETENTION_S, description="How long ago it begins. Unit: seconds.")
        ] = RETENTION_S,
        points: Annotated[
            int, Query(ge=2, le=_MAX_POINTS, description="About how many steps at most.")
        ] = 90,
    ) -> Response:
        """Return the history of a stream over the last hour, lost at a restart."""
        series = supervisor.history(stream, seconds=since_s, maximum=points)
        views = [
            view_of(
                StreamPointView,
                point,
                answered_per_s=point.answered / point.seconds,
                dead_letters_per_s=point.dead_letters / point.seconds,
            )
            for point in series
        ]
        return answer(StreamHistory(points=views))

    @route(api, "POST /api/v1/streams/{stream}/pause", StreamView, {**_STREAM, "state": "paused"})
    async def pause(stream: _Stream, actor: Actor) -> Response:
        """Pause a stream; its offsets are kept."""
        return await order(stream, actor, paused=True)

    @route(api, "POST /api/v1/streams/{stream}/resume", StreamView, _STREAM)
    async def resume(stream: _Stream, actor: Actor) -> Response:
        """Resume a stream from its offsets."""
        return await order(stream, actor, paused=False)

    async def order(name: str, actor: str, *, paused: bool) -> Response:
        view = await supervisor.pause(name, paused=paused)
        await context.note("stream.pause" if paused else "stream.resume", name, actor=actor)
        return answer(view)
