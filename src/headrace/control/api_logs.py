"""The logs of all processes over HTTP: their end, and what comes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from fastapi import FastAPI, Query, Response
from fastapi.responses import StreamingResponse

from headrace.control.access.roles import Caller, Role
from headrace.control.api_answers import WhoAsks
from headrace.control.log_files import (
    LogFiles,
    LogFollower,
    LogLine,
    merged_tail,
    render_line,
)
from headrace.control.plane import ControlPlane
from headrace.core import InvalidArgumentError

_FOLLOW_S: Final = 0.2
_MAX_TAIL: Final = 100_000

LogFormat = Literal["text", "json"]


def add_logs(api: FastAPI, plane: ControlPlane) -> None:
    """Add the route of the logs."""

    @api.get("/api/v1/logs", summary="What all processes say, in one stream")
    async def logs(
        *,
        caller: WhoAsks,
        follow: bool = False,
        tail: Annotated[int, Query(ge=0, le=_MAX_TAIL)] = 100,
        source: str = "",
        log_format: Annotated[LogFormat, Query(alias="format")] = "text",
    ) -> Response:
        files = _seen_by(caller, plane)
        known = files.names()
        if source and source not in known:
            message = f"there is no log of {source[:100]!r}; there are: {', '.join(known)}"
            raise InvalidArgumentError(message)
        media_type = "application/x-ndjson" if log_format == "json" else "text/plain"
        # The follower is made first: a line that comes in between is seen twice rather than never.
        follower = LogFollower(files, source=source)
        lines = await asyncio.to_thread(_tail, plane, files, tail, source)
        text = _rendered(lines, log_format)
        if not follow:
            return Response(text, media_type=media_type)
        return StreamingResponse(
            _followed(plane, text, follower, log_format), media_type=media_type
        )


def _seen_by(caller: Caller, plane: ControlPlane) -> LogFiles:
    """All logs; for whoever sees some endpoints only, those of their replicas that there are."""
    mine = caller.endpoints(Role.VIEWER)
    if mine is None:
        return plane.log_files
    replicas = plane.reconciler.replicas.values()
    names = frozenset(replica.name for replica in replicas if replica.endpoint in mine)
    return replace(plane.log_files, only=names)


def _tail(plane: ControlPlane, files: LogFiles, count: int, source: str) -> list[LogLine]:
    now = datetime.fromtimestamp(plane.clock.now(), UTC)
    of_day_s = now.hour * 3600 + now.minute * 60 + now.second + now.microsecond / 1e6
    return merged_tail(files, count, now_of_day_s=of_day_s, source=source)


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
