"""The management API over HTTP. Imported late: FastAPI takes longer to load than a replica."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from headrace import __version__
from headrace.control.guards import App, Guard
from headrace.control.log_files import LogFollower, LogLine, merged_tail, render_line
from headrace.control.metrics import CONTENT_TYPE
from headrace.control.plane import Applied, ControlPlane
from headrace.control.problems import problem_body, problem_of
from headrace.control.status import Status
from headrace.control.triton_api import decode_index_request, index, load, unload
from headrace.core import Code, HeadraceError, InvalidArgumentError
from headrace.core.spec import SpecMistake, json_schema

PROBLEM_TYPE: Final = "application/problem+json"
_FOLLOW_S: Final = 0.2
_MAX_TAIL: Final = 100_000
_MAX_WAIT_S: Final = 3600.0
_BAD_REQUEST: Final = 400
_HTTP_CODES: Final = {
    404: Code.NOT_FOUND,
    405: Code.UNIMPLEMENTED,
    400: Code.INVALID_ARGUMENT,
}

LogFormat = Literal["text", "json"]


def build_api(plane: ControlPlane, *, allowed_hosts: frozenset[str]) -> App:
    """The management API as an ASGI application, behind its guard."""
    api = FastAPI(
        title="Headrace management API",
        version=__version__,
        description="Desired and observed state of one installation.",
        docs_url=None,  # they load scripts from another site
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )
    _add_errors(api)
    _add_state(api, plane)
    _add_logs(api, plane)
    _add_statistics(api, plane)
    _add_repository(api, plane)
    return Guard(app=api, allowed_hosts=allowed_hosts)


def build_metrics(plane: ControlPlane) -> App:
    """What listens on the metrics port: `/metrics` and nothing else."""
    api = FastAPI(openapi_url=None)
    _add_errors(api)

    @api.get("/metrics")
    async def metrics() -> Response:
        return Response(await plane.metrics(), media_type=CONTENT_TYPE)

    # A scraper reaches this port under any name; it can read only.
    return api


def build_gateway_answers(plane: ControlPlane) -> App:
    """What the gateway asks the control plane: statistics over all replicas."""
    api = FastAPI(openapi_url=None)
    _add_errors(api)
    _add_statistics(api, plane)
    return api


def _add_errors(api: FastAPI) -> None:
    @api.exception_handler(HeadraceError)
    async def known(_request: Request, error: HeadraceError) -> Response:
        status, body = problem_of(error)
        headers = {}
        if error.retry_after_s is not None:
            headers["retry-after"] = str(max(round(error.retry_after_s), 1))
        return Response(body, status, headers, media_type=PROBLEM_TYPE)

    @api.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> Response:
        mistakes = [
            SpecMistake(place=".".join(map(str, item["loc"])), message=str(item["msg"]))
            for item in error.errors()
        ]
        body = problem_body(
            status=_BAD_REQUEST,
            code=Code.INVALID_ARGUMENT,
            detail="; ".join(map(str, mistakes)),
            mistakes=mistakes,
        )
        return Response(body, _BAD_REQUEST, media_type=PROBLEM_TYPE)

    @api.exception_handler(HTTPException)
    async def by_status(request: Request, error: HTTPException) -> Response:
        code = _HTTP_CODES.get(error.status_code, Code.UNKNOWN)
        detail = f"{error.detail}: {request.method} {request.url.path}"
        body = problem_body(status=error.status_code, code=code, detail=detail)
        return Response(body, error.status_code, error.headers, media_type=PROBLEM_TYPE)

    @api.exception_handler(Exception)
    async def unexpected(_request: Request, _error: Exception) -> Response:
        # The traceback goes to the log; the caller learns only that it is there.
        detail = "internal error; the control plane's log has the details"
        body = problem_body(status=500, code=Code.INTERNAL, detail=detail)
        return Response(body, 500, media_type=PROBLEM_TYPE)


def _add_state(api: FastAPI, plane: ControlPlane) -> None:
    @api.get("/api/v1/status", summary="How everything is now")
    async def status() -> Status:
        return plane.status()

    @api.get("/api/v1/spec", summary="The spec as it was applied, and its generation")
    async def spec() -> dict[str, Any]:
        return {"generation": plane.desired.generation, "spec": plane.desired.spec}

    @api.get("/api/v1/schema", summary="JSON Schema of the spec file")
    async def schema() -> dict[str, Any]:
        return json_schema()

    @api.post("/api/v1/apply", summary="Want what the spec says, and nothing else")
    async def apply(
        document: dict[str, Any],
        wait_s: Annotated[float, Query(ge=0, le=_MAX_WAIT_S)] = 0.0,
    ) -> dict[str, Any]:
        applied = await plane.apply(document)
        return await _after(plane, applied, wait_s)

    @api.delete("/api/v1/endpoints/{name}", summary="Stop serving an endpoint")
    async def delete(name: str) -> dict[str, Any]:
        return asdict(await plane.remove_endpoint(name))

    @api.post("/api/v1/stop", summary="Drain and stop everything, then exit", status_code=202)
    async def stop() -> dict[str, Any]:
        plane.request_stop()
        return {"stopping": True}

    @api.get("/metrics", summary="Metrics of all processes, in Prometheus' text format")
    async def metrics() -> Response:
        return Response(await plane.metrics(), media_type=CONTENT_TYPE)


async def _after(plane: ControlPlane, applied: Applied, wait_s: float) -> dict[str, Any]:
    """What an apply answers; with the endpoints that are not ready after `wait_s`."""
    answer: dict[str, Any] = asdict(applied)
    if wait_s > 0:
        status = await plane.wait_ready(wait_s)
        answer["ready"] = status.ready
        answer["not_ready"] = {e.name: e.message for e in status.endpoints if not e.ready}
    return answer


def _add_logs(api: FastAPI, plane: ControlPlane) -> None:
    @api.get("/api/v1/logs", summary="What all processes say, in one stream")
    async def logs(
        *,
        follow: bool = False,
        tail: Annotated[int, Query(ge=0, le=_MAX_TAIL)] = 100,
        source: str = "",
        log_format: Annotated[LogFormat, Query(alias="format")] = "text",
    ) -> Response:
        known = plane.log_files.names()
        if source and source not in known:
            message = f"there is no log of {source[:100]!r}; there are: {', '.join(known)}"
            raise InvalidArgumentError(message)
        media_type = "application/x-ndjson" if log_format == "json" else "text/plain"
        # The follower is made first: a line that comes in between is seen twice rather than never.
        follower = LogFollower(plane.log_files, source=source)
        lines = await asyncio.to_thread(_tail, plane, tail, source)
        text = _rendered(lines, log_format)
        if not follow:
            return Response(text, media_type=media_type)
        return StreamingResponse(
            _followed(plane, text, follower, log_format), media_type=media_type
        )


def _tail(plane: ControlPlane, count: int, source: str) -> list[LogLine]:
    now = datetime.fromtimestamp(plane.clock.now(), UTC)
    of_day_s = now.hour * 3600 + now.minute * 60 + now.second + now.microsecond / 1e6
    return merged_tail(plane.log_files, count, now_of_day_s=of_day_s, source=source)


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


def _add_statistics(api: FastAPI, plane: ControlPlane) -> None:
    @api.get("/v2/models/stats", summary="Triton's statistics of all models")
    async def all_stats() -> JSONResponse:
        return JSONResponse(await plane.model_statistics())

    @api.get("/v2/models/{name}/stats", summary="Triton's statistics of one model")
    async def model_stats(name: str) -> JSONResponse:
        return JSONResponse(await plane.model_statistics(name))

    @api.get("/v2/models/{name}/versions/{version}/stats", summary="The same of one version")
    async def version_stats(name: str, version: str) -> JSONResponse:
        return JSONResponse(await plane.model_statistics(name, version))


def _add_repository(api: FastAPI, plane: ControlPlane) -> None:
    @api.post("/v2/repository/index", summary="Triton's index of models")
    async def repository_index(request: Request) -> JSONResponse:
        wanted = decode_index_request(await request.body())
        rows = await asyncio.to_thread(index, plane, only_ready=wanted.ready)
        return JSONResponse([{f: getattr(row, f) for f in row.__struct_fields__} for row in rows])

    @api.post("/v2/repository/models/{name}/load", summary="Serve a model of the registry")
    async def repository_load(name: str, request: Request) -> Response:
        await load(plane, name, await request.body())
        return Response()

    @api.post("/v2/repository/models/{name}/unload", summary="Stop serving a model")
    async def repository_unload(name: str, request: Request) -> Response:
        await unload(plane, name, await request.body())
        return Response()
