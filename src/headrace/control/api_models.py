"""The registry of model versions over HTTP: list, show, upload, remove, clean up."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final

import msgspec
from fastapi import FastAPI, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from headrace.control import api_examples as examples
from headrace.control.access.roles import Caller, Role
from headrace.control.api_answers import Actor, ModelName, Version, WhoAsks, answer, shown
from headrace.control.api_uploads import Upload, UploadFormat, Uploads
from headrace.control.model_work import caller_leaves
from headrace.control.plane import ControlPlane
from headrace.core import ArtifactCorruptError, InvalidArgumentError, RequestCancelledError
from headrace.core.error_kind import UNDECODABLE
from headrace.registry import ModelVersion, VersionNotFoundError, VersionSignature

_CREATED: Final = 201
_MAX_TEXT: Final = 4096
_BASE64: Final = r"^[A-Za-z0-9+/]+={0,2}$"
_DIGEST: Final = r"^$|^sha256:[0-9a-f]{64}$"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelList:
    """Versions by name and number, and the index files that cannot be read."""

    models: list[dict[str, Any]]
    problems: list[str]


class Signed(BaseModel):
    """A signature of a model version: raw Ed25519 in base64, over the version's statement."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str = Field(pattern=_BASE64, max_length=64, description="The public key.")
    signature: str = Field(pattern=_BASE64, max_length=128, description="Its signature.")
    at: float = Field(default=0.0, ge=0, description="When, in seconds since 1970; not proved.")
    by: str = Field(default="", max_length=256, description="By whom; not proved.")


def add_models(api: FastAPI, plane: ControlPlane) -> None:
    """Add the routes of the registry."""
    _add_reading(api, plane)
    _add_changing(api, plane)
    uploads = Uploads(
        registry=plane.registry,
        directory=plane.home.root / "artifacts" / "tmp",
        allow_code=plane.orders.allow_code,
        work=plane.orders.work,
    )

    @api.post(
        "/api/v1/models/{name}",
        summary="Upload a model as the next version of a name",
        status_code=_CREATED,
        responses=shown(examples.MODEL, status=_CREATED, schema="ModelVersion"),
        openapi_extra={
            "requestBody": {
                "required": True,
                "description": "The file itself, or a tar archive of a directory's files.",
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
                },
            }
        },
    )
    async def upload(
        *,
        request: Request,
        name: ModelName,
        caller: WhoAsks,
        filename: Annotated[str, Query(min_length=1, max_length=255, examples=["model.onnx"])],
        upload_format: Annotated[UploadFormat, Query(alias="format")] = "file",
        digest: Annotated[
            str, Query(pattern=_DIGEST, description="Refused if the content is another.")
        ] = "",
        runtime: Annotated[str, Query(pattern=r"^[a-z0-9_]{0,64}$")] = "",
        allow_code: Annotated[
            bool,
            Query(description="Whether it may be of a format that runs code of its author's."),
        ] = False,
        source: Annotated[str, Query(max_length=_MAX_TEXT)] = "",
        metadata: Annotated[
            str,
            Query(
                max_length=_MAX_TEXT,
                description="What to keep beside the version: a JSON object of texts.",
                examples=['{"run": "2025-11-24"}'],
            ),
        ] = "",
        content_length: Annotated[int | None, Header(ge=0)] = None,
    ) -> Response:
        wanted = Upload(
            name=name,
            filename=filename,
            format=upload_format,
            digest=digest,
            runtime=runtime,
            allow_code=allow_code,
            source=source,
            metadata=_metadata(metadata),
            caller=caller,
            length_bytes=content_length,
        )
        version = await uploads.take(
            wanted, _chunks(request), left=lambda: caller_leaves(request.receive)
        )
        await plane.note("model.push", version.reference, after=_told(version), actor=caller.name)
        location = f"/api/v1/models/{version.name}/versions/{version.version}"
        document = await asyncio.to_thread(_document, plane, version)
        return answer(document, status=_CREATED, headers={"location": location})


def _metadata(text: str) -> dict[str, str]:
    """What an upload's `metadata` says.

    Raises:
        InvalidArgumentError: It is no JSON object of texts.
    """
    try:
        return msgspec.json.decode(text, type=dict[str, str]) if text else {}
    except UNDECODABLE as error:
        msg = f"metadata has to be a JSON object of texts: {error}"
        raise InvalidArgumentError(msg) from None


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect:
        raise RequestCancelledError("the upload broke off") from None


def _add_reading(api: FastAPI, plane: ControlPlane) -> None:
    @api.get(
        "/api/v1/models",
        summary="All model versions",
        response_model=ModelList,
        responses=shown({"models": [examples.MODEL], "problems": []}),
    )
    async def models(caller: WhoAsks) -> Response:
        found = await asyncio.to_thread(_listed, plane, None)
        return answer(await asyncio.to_thread(_seen_by, caller, plane, found))

    @api.get(
        "/api/v1/models/{name}",
        summary="The versions of one model",
        response_model=ModelList,
        responses=shown({"models": [examples.MODEL], "problems": []}),
    )
    async def model(name: ModelName, caller: WhoAsks) -> Response:
        found = await asyncio.to_thread(_listed, plane, name)
        if not found.models:
            everything = await asyncio.to_thread(plane.registry.list)
            names = [version.name for version in everything]
            readable = await asyncio.to_thread(plane.readable_models, caller, names)
            raise VersionNotFoundError(name, "", sorted(readable))
        return answer(found)

    @api.get(
        "/api/v1/models/{name}/versions/{version}",
        summary="One model version: digest, signature, who, when, whence",
        responses=shown(examples.MODEL, schema="ModelVersion"),
    )
    async def version(name: ModelName, version: Version) -> Response:
        return answer(await asyncio.to_thread(_shown, plane, f"{name}:{version}"))


def _add_changing(api: FastAPI, plane: ControlPlane) -> None:
    @api.delete(
        "/api/v1/models/{name}/versions/{version}",
        summary="Remove a version; refused while an endpoint uses it",
        responses=shown(examples.MODEL, schema="ModelVersion"),
    )
    async def remove(name: ModelName, version: Version, actor: Actor) -> Response:
        removed = await asyncio.to_thread(plane.registry.remove, name, version, plane.in_use())
        plane.drift.files.forget_reference(removed.reference)
        await plane.note("model.remove", removed.reference, before=_told(removed), actor=actor)
        return answer(await asyncio.to_thread(_document, plane, removed))

    @api.post(
        "/api/v1/models/{name}/versions/{version}/signatures",
        summary="Add a signature of a version, made elsewhere",
        status_code=_CREATED,
        responses=shown(examples.MODEL, status=_CREATED, schema="ModelVersion"),
    )
    async def sign(name: ModelName, version: Version, signature: Signed, actor: Actor) -> Response:
        given = VersionSignature(
            key=signature.key, signature=signature.signature, at=signature.at, by=signature.by
        )
        await asyncio.to_thread(plane.registry.add_signature, name, version, given)
        await plane.note("model.sign", f"{name}:{version}", after={"key": given.key}, actor=actor)
        document = await asyncio.to_thread(_shown, plane, f"{name}:{version}")
        return answer(document, status=_CREATED)

    @api.post(
        "/api/v1/gc",
        summary="Delete stored content that no version refers to",
        responses=shown({"artifacts": [], "temporary": 0, "freed_bytes": 0}),
    )
    async def gc(actor: Actor) -> Response:
        removed = asdict(await asyncio.to_thread(plane.registry.gc))
        await plane.note("model.gc", "", after=removed, actor=actor)
        return answer(removed)


def _listed(plane: ControlPlane, name: str | None) -> ModelList:
    return ModelList(
        models=[_document(plane, version) for version in plane.registry.list(name)],
        problems=[str(problem) for problem in plane.registry.problems(name)],
    )


def _shown(plane: ControlPlane, reference: str) -> dict[str, Any]:
    return _document(plane, plane.registry.get(reference))


def _document(plane: ControlPlane, version: ModelVersion) -> dict[str, Any]:
    try:
        signatures = plane.registry.signatures(version)
    except ArtifactCorruptError:
        signatures = ()  # what cannot be read vouches for nothing
    return {
        **msgspec.to_builtins(version),
        "reference": version.reference,
        "runs_code": version.executes_code,
        "signatures": msgspec.to_builtins(signatures),
    }


def _told(version: ModelVersion) -> dict[str, Any]:
    """What the trail says about a version."""
    return {
        "digest": version.digest,
        "runtime": version.runtime,
        "size_bytes": version.size_bytes,
        "source": version.source,
    }


def _seen_by(caller: Caller, plane: ControlPlane, found: ModelList) -> ModelList:
    """What a caller may see of it; of files that cannot be read only whoever sees all is told."""
    readable = plane.readable_models(caller, {version["name"] for version in found.models})
    return ModelList(
        models=[version for version in found.models if version["name"] in readable],
        problems=found.problems if caller.may(Role.VIEWER) else [],
    )
