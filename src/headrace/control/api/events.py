"""Events and logs over HTTP, as lists and as streams."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Final, Literal

import msgspec
from fastapi import Body, FastAPI, Header, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from headrace.control.api import answers as examples
from headrace.control.api.answers import RequestBody, WhoAsks, answer, route
from headrace.control.auth.roles import Caller, Role
from headrace.control.base.log_files import (
    LogFiles,
    LogFilter,
    LogFollower,
    LogLevel,
    LogLine,
    merged_tail,
    render_line,
)
from headrace.control.model.records import Event, Feedback
from headrace.control.plane.control_plane import ControlPlane
from headrace.core import InvalidArgumentError, OverloadedError, PermissionDeniedError
from headrace.core.names import NAME_PATTERN
from headrace.rollout.readings import REWARD_LIMIT

HEARTBEAT_S: Final = 15.0
MAX_WATCHERS: Final = 256
_RETRY: Final = b"retry: 2000\n\n"
_HEARTBEAT: Final = b": still there\n\n"
_MAX_ITEMS: Final = 1000
_MAX_ID: Final = 2**62
_WATCH_RETRY_S: Final = 10.0
_EVENT_LINE: Final = msgspec.json.encode(examples.EVENT).decode()
_Endpoint = Annotated[
    str, Query(pattern=f"^$|{NAME_PATTERN}", description="Only this endpoint's; empty for all.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventList:
    """Events in order."""

    events: list[Event]


class Reward(RequestBody):
    """Reward of one response; higher is better."""

    request_id: str = Field(
        min_length=1, max_length=256, description="The answer's `x-request-id`."
    )
    reward: float = Field(
        ge=-REWARD_LIMIT,
        le=REWARD_LIMIT,
        allow_inf_nan=False,
        description="A number: a click, a sum of money.",
    )
    at: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="When it was earned, in seconds since 1970; null for now.",
    )


class Truth(RequestBody):
    """True label of one response, for endpoints whose spec says `drift: {labels: true}`."""

    request_id: str = Field(
        min_length=1, max_length=256, description="The answer's `x-request-id`."
    )
    label: bool | int | float | Annotated[str, Field(max_length=200)] = Field(
        description="Class name or class number, or the value, of the first row."
    )


Rewards = Annotated[list[Reward | Truth], Field(min_length=1, max_length=_MAX_ITEMS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardResult:
    """`taken`, `duplicate` (the first counts) or `waiting` (the request is not recorded yet).

    A label can also be `unfit`: the prediction is a number and the label is not. An operator of
    some endpoints can get `unknown`: no response of their endpoints has this id yet, and nothing
    was stored; send it again.
    """

    request_id: str
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardResults:
    """One result per item, in the same order."""

    results: list[RewardResult]


def add_events(api: FastAPI, plane: ControlPlane) -> None:
    """Add the routes of events and feedback."""
    watchers = Watchers()

    @route(api, "GET /api/v1/events", EventList, {"events": [examples.EVENT]})
    async def events(
        caller: WhoAsks,
        endpoint: _Endpoint = "",
        after: Annotated[int, Query(ge=0, le=_MAX_ID, description="Only newer than this.")] = 0,
        limit: Annotated[int, Query(ge=1, le=_MAX_ITEMS, description="The newest so many.")] = 100,
    ) -> Response:
        """List events in order."""
        visible = _endpoints(caller, endpoint)
        if visible is None:
            return answer(
                {"events": await plane.journal.events(endpoint, after=after, limit=limit)}
            )
        events = [
            event
            for name in visible
            for event in await plane.journal.events(name, after=after, limit=limit)
        ]
        return answer({"events": sorted(events, key=lambda event: event.id)[-limit:]})

    @api.get(
        "/api/v1/watch",
        summary="Event stream, as server-sent events",
        response_class=StreamingResponse,
        responses={
            200: {
                "content": {
                    "text/event-stream": {
                        "example": f"id: 812\nevent: rollout\ndata: {_EVENT_LINE}\n\n"
                    }
                }
            }
        },
    )
    async def watch(
        caller: WhoAsks,
        endpoint: _Endpoint = "",
        after: Annotated[
            int | None,
            Query(
                ge=0, le=_MAX_ID, description="Begin after this event; null begins with new ones."
            ),
        ] = None,
        last_event_id: Annotated[str, Header(max_length=32, pattern=r"^\d{0,18}$")] = "",
    ) -> StreamingResponse:
        watchers.check_room()
        start = int(last_event_id) if last_event_id else after
        if start is None:
            newest = await plane.journal.events(limit=1)
            start = newest[-1].id if newest else 0
        events = plane.journal.watch(endpoint, after=start)
        visible = _endpoints(caller, endpoint)
        if visible is not None:
            events = (event async for event in events if event.endpoint in visible)
        stream = stream_events(events, stopping=plane.stop_requested)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(
            watchers.counted(stream), media_type="text/event-stream", headers=headers
        )

    @route(api, "POST /api/v1/feedback", RewardResults, examples.RESULTS)
    async def feedback(
        body: Annotated[Reward | Truth | Rewards, Body(openapi_examples=examples.FEEDBACK)],
        caller: WhoAsks,
    ) -> Response:
        """Record rewards or true labels of responses."""
        items = body if isinstance(body, list) else [body]
        now, endpoints = plane.clock.now(), caller.endpoints(Role.OPERATOR)
        rewards = [
            Feedback(
                request_id=item.request_id,
                reward=item.reward,
                at=now if item.at is None else item.at,
            )
            for item in items
            if isinstance(item, Reward)
        ]
        taken = iter(await plane.store.add_feedback(*rewards, endpoints=endpoints))
        add_label = partial(plane.telemetry.drift.labels.add_label, now=now, endpoints=endpoints)
        results = [
            RewardResult(
                request_id=item.request_id,
                outcome=next(taken)
                if isinstance(item, Reward)
                else await asyncio.to_thread(add_label, item.request_id, item.label),
            )
            for item in items
        ]
        return answer(RewardResults(results=results))


def _endpoints(caller: Caller, endpoint: str) -> frozenset[str] | None:
    """Return the endpoints whose events a caller gets; None for `endpoint`, or else for all."""
    visible = caller.endpoints(Role.VIEWER)
    if visible is None or endpoint in visible:
        return None
    if endpoint:
        raise PermissionDeniedError(f"{caller.name} may not see the events of '{endpoint}'")
    return visible


@dataclass(slots=True)
class Watchers:
    """Counts the readers of streams and bounds their number."""

    most: int = MAX_WATCHERS
    count: int = 0

    def check_room(self) -> None:
        """Refuse another reader at the limit.

        Raises:
            OverloadedError: The limit is reached.
        """
        if self.count >= self.most:
            message = f"{self.most} readers watch already"
            raise OverloadedError(message, retry_after_s=_WATCH_RETRY_S)

    async def counted(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield from `stream`, which counts as open while it is read."""
        self.count += 1
        try:
            async for part in stream:
                yield part
        finally:
            self.count -= 1


async def stream_events(
    events: AsyncIterator[Event], *, stopping: asyncio.Event
) -> AsyncIterator[bytes]:
    """Yield encoded events, with a comment as heartbeat, until `stopping` is set.

    The next event is read after the previous one was sent: a slow reader holds one event, not a
    queue.
    """
    stop = asyncio.ensure_future(stopping.wait())
    coming = asyncio.ensure_future(anext(events, None))
    try:
        yield _RETRY
        while not stop.done():
            await asyncio.wait(
                {stop, coming}, timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED
            )
            if coming.done():
                event = coming.result()
                if event is None:
                    return
                yield encode_event(event)
                coming = asyncio.ensure_future(anext(events, None))
            elif not stop.done():
                yield _HEARTBEAT
    finally:
        stop.cancel()
        coming.cancel()
        await asyncio.wait({stop, coming})


def encode_event(event: Event) -> bytes:
    """Return one encoded event; its JSON contains no line breaks."""
    data = msgspec.json.encode(event)
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.id, event.kind.encode(), data)


_FOLLOW_S: Final = 0.2
_MAX_TAIL: Final = 100_000
LogFormat = Literal["text", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSources:
    """Names of processes, for `source` of `/api/v1/logs`."""

    sources: list[str]


def add_logs(api: FastAPI, plane: ControlPlane) -> None:
    """Add the route of the logs."""

    @api.get("/api/v1/logs", summary="Merged log of all processes")
    async def logs(
        *,
        caller: WhoAsks,
        follow: bool = False,
        tail: Annotated[int, Query(ge=0, le=_MAX_TAIL)] = 100,
        source: str = "",
        level: Annotated[
            LogLevel, Query(description="Only lines of this level or a higher one.")
        ] = LogLevel.DEBUG,
        text: Annotated[
            str, Query(max_length=200, description="Only lines with this text, in any case.")
        ] = "",
        log_format: Annotated[LogFormat, Query(alias="format")] = "text",
    ) -> Response:
        files = _seen_by(caller, plane)
        names = files.names()
        if source and source not in names:
            message = f"there is no log of {source[:100]!r}; there are: {', '.join(names)}"
            raise InvalidArgumentError(message)
        only = LogFilter(source=source, level=level, text=text)
        media_type = "application/x-ndjson" if log_format == "json" else "text/plain"
        # The follower starts first: a line written in between appears twice instead of never.
        follower = LogFollower(files, only=only)
        now = datetime.fromtimestamp(plane.clock.now(), UTC)
        of_day_s = (now - now.replace(hour=0, minute=0, second=0, microsecond=0)).total_seconds()
        lines = await asyncio.to_thread(merged_tail, files, tail, now_of_day_s=of_day_s, only=only)
        first = _rendered(lines, log_format)
        if not follow:
            return Response(first, media_type=media_type)
        return StreamingResponse(
            _followed(plane, first, follower, log_format), media_type=media_type
        )

    @route(api, "GET /api/v1/logs/sources", LogSources, {"sources": ["control", "gateway"]})
    async def sources(caller: WhoAsks) -> Response:
        """List the processes that have a log."""
        return answer(LogSources(sources=_seen_by(caller, plane).names()))


def _seen_by(caller: Caller, plane: ControlPlane) -> LogFiles:
    """Return the logs that a caller may read: all, or those of its endpoints' current replicas."""
    visible = caller.endpoints(Role.VIEWER)
    if visible is None:
        return plane.log_files
    replicas = plane.reconciling.reconciler.replicas.values()
    names = frozenset(replica.name for replica in replicas if replica.endpoint in visible)
    return replace(plane.log_files, only=names)


async def _followed(
    plane: ControlPlane, text: str, follower: LogFollower, log_format: LogFormat
) -> AsyncIterator[str]:
    yield text
    while not plane.stop_requested.is_set():
        lines = await asyncio.to_thread(lambda: list(follower.read_new()))
        if lines:
            yield _rendered(lines, log_format)
        else:
            await asyncio.sleep(_FOLLOW_S)


def _rendered(lines: list[LogLine], log_format: LogFormat) -> str:
    return "".join(f"{render_line(line, log_format=log_format)}\n" for line in lines)
