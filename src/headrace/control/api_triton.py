"""Triton's statistics and repository verbs over HTTP."""

import asyncio

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from headrace.control.access.roles import Role
from headrace.control.api_answers import WhoAsks
from headrace.control.model_work import caller_leaves
from headrace.control.plane import ControlPlane
from headrace.control.scrape import all_model_statistics
from headrace.control.triton_api import decode_index_request, index, load, unload
from headrace.gateway.filters import SERVICE
from headrace.protocol.grpc_wire import frame


def add_statistics(api: FastAPI, plane: ControlPlane) -> None:
    """Add the routes of the statistics, which the gateway asks too."""

    @api.get("/v2/models/stats", summary="Triton's statistics of all models")
    async def all_stats(caller: WhoAsks) -> JSONResponse:
        return JSONResponse(await all_model_statistics(plane, only=caller.endpoints(Role.VIEWER)))

    @api.get("/v2/models/{name}/stats", summary="Triton's statistics of one model")
    async def model_stats(name: str) -> JSONResponse:
        return JSONResponse(await all_model_statistics(plane, name))

    @api.get("/v2/models/{name}/versions/{version}/stats", summary="The same of one version")
    async def version_stats(name: str, version: str) -> JSONResponse:
        return JSONResponse(await all_model_statistics(plane, name, version))


def add_grpc_statistics(api: FastAPI, plane: ControlPlane) -> None:
    """Add the rpc `ModelStatistics` of all models, as the gateway's bridge carries it.

    A call that names a model goes to its replicas instead.
    """

    @api.post(f"/{SERVICE}/ModelStatistics")
    async def statistics(caller: WhoAsks) -> Response:
        from headrace.protocol.grpc_messages import encode_response  # noqa: PLC0415  # loads protobuf

        document = await all_model_statistics(plane, only=caller.endpoints(Role.VIEWER))
        message = await asyncio.to_thread(encode_response, "ModelStatistics", document)
        return Response(frame(message), media_type="application/grpc")


def add_repository(api: FastAPI, plane: ControlPlane) -> None:
    """Add the routes of the repository."""

    @api.post("/v2/repository/index", summary="Triton's index of models")
    async def repository_index(request: Request, caller: WhoAsks) -> JSONResponse:
        wanted = decode_index_request(await request.body())
        found = await asyncio.to_thread(index, plane, only_ready=wanted.ready)
        names = await asyncio.to_thread(plane.readable_models, caller, {row.name for row in found})
        rows = [row for row in found if row.name in names]
        return JSONResponse([{f: getattr(row, f) for f in row.__struct_fields__} for row in rows])

    @api.post("/v2/repository/models/{name}/load", summary="Serve a model of the registry")
    async def repository_load(name: str, request: Request, caller: WhoAsks) -> Response:
        body = await request.body()
        async with caller_leaves(request.receive) as left:
            await load(plane, name, body, caller=caller, cancel=left)
        return Response()

    @api.post("/v2/repository/models/{name}/unload", summary="Stop serving a model")
    async def repository_unload(name: str, request: Request, caller: WhoAsks) -> Response:
        await unload(plane, name, await request.body(), caller=caller)
        return Response()
