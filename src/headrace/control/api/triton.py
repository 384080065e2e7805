"""Triton's statistics and repository operations over HTTP."""

import asyncio
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from headrace.control.api.answers import WhoAsks, answer
from headrace.control.auth.roles import Caller, Role
from headrace.control.desired.models import caller_leaves
from headrace.control.model.observed import ReplicaPhase
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.plane.metrics import all_model_statistics
from headrace.core import (
    FailedPreconditionError,
    InvalidArgumentError,
    UnsupportedError,
    check_name,
)
from headrace.core.error_kind import UNDECODABLE
from headrace.gateway.filters import SERVICE
from headrace.protocol import IndexEntry, decode_index_request, repository_index
from headrace.protocol.grpc_wire import frame


def add_statistics(api: FastAPI, plane: ControlPlane) -> None:
    """Add the statistics routes, which the gateway calls too."""

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
    """Add the RPC `ModelStatistics` over all models, in the framing of the gateway's bridge.

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
    async def list_models(request: Request, caller: WhoAsks) -> Response:
        only_ready = decode_index_request(await request.body())
        entries = await asyncio.to_thread(index, plane)
        names = await asyncio.to_thread(
            plane.desired_state.readable_models, caller, {row.name for row in entries}
        )
        visible = (row for row in entries if row.name in names)
        return answer(repository_index(visible, ready=only_ready))

    @api.post("/v2/repository/models/{name}/load", summary="Serve a model of the registry")
    async def load_model(name: str, request: Request, caller: WhoAsks) -> Response:
        body = await request.body()
        async with caller_leaves(request.receive) as left:
            await load(plane, name, body, caller=caller, cancel=left)
        return Response()

    @api.post("/v2/repository/models/{name}/unload", summary="Stop serving a model")
    async def unload_model(name: str, request: Request, caller: WhoAsks) -> Response:
        await unload(plane, name, await request.body(), caller=caller)
        return Response()


_LOAD_TIMEOUT_S: Final = 600.0


class LoadRequest(msgspec.Struct, frozen=True):
    """Parameters of Triton's load and unload requests."""

    parameters: dict[str, Any] = {}


def index(plane: ControlPlane) -> list[IndexEntry]:
    """Return every served version and every other version of the registry."""
    served = list(_served(plane))
    served_versions = {(row.name, row.version) for row in served}
    stored = [
        IndexEntry(name=v.name, version=v.version, state="UNAVAILABLE", reason="not loaded")
        for v in plane.registry.list()
        if (v.name, v.version) not in served_versions
    ]
    return sorted([*served, *stored], key=lambda row: (row.name, int(row.version)))


def _served(plane: ControlPlane) -> Iterator[IndexEntry]:
    observed = plane.reconciling.reconciler.observed()
    for endpoint in plane.target_state.effective.endpoints:
        for arm in endpoint.arms:
            replicas = [r for r in observed.replicas.values() if r.revision_id == arm.revision.id]
            reasons = "; ".join(dict.fromkeys(r.reason for r in replicas if r.reason))
            entry = partial(IndexEntry, endpoint.name, arm.revision.version)
            if any(replica.phase is ReplicaPhase.READY for replica in replicas):
                yield entry("READY")
            elif any(replica.phase is ReplicaPhase.EXITED for replica in replicas):
                yield entry("UNAVAILABLE", reasons)
            else:
                yield entry("LOADING")


async def load(
    plane: ControlPlane, name: str, body: bytes, *, caller: Caller, cancel: threading.Event
) -> None:
    """Serve `name`, or reload it; return when it is ready.

    Raises:
        UnsupportedError: The request carries a configuration or files.
        FailedPreconditionError: The endpoint did not become ready; the message gives the reason.
    """
    check_name(name)
    parameters = sorted(_decode(body).parameters)
    if parameters:
        message = (
            f"load with parameters ({', '.join(parameters)}) is not supported: push the model with "
            "`headrace models push`, and set what it needs in the spec file"
        )
        raise UnsupportedError(message)
    await plane.desired_state.load(name, caller=caller, cancel=cancel)
    status = await plane.wait_ready(_LOAD_TIMEOUT_S, name=name)
    endpoint = next((e for e in status.endpoints if e.name == name), None)
    if endpoint is None or not endpoint.ready:
        reason = "it was removed during the load" if endpoint is None else endpoint.message
        raise FailedPreconditionError(f"failed to load '{name}', {reason}")


async def unload(plane: ControlPlane, name: str, body: bytes, *, caller: Caller) -> None:
    """Stop serving `name`."""
    _decode(body)
    await plane.desired_state.remove_endpoint(check_name(name), caller=caller)


def _decode(body: bytes) -> LoadRequest:
    if not body.strip():
        return LoadRequest()
    try:
        return msgspec.json.decode(body, type=LoadRequest)
    except UNDECODABLE as error:
        raise InvalidArgumentError(f"failed to parse the request JSON buffer: {error}") from error
