"""Registry of model versions over HTTP, and uploads of models."""

import asyncio
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import FastAPI, Header, Query, Request, Response
from pydantic import Field
from starlette.requests import ClientDisconnect

from headrace.control.api import answers as examples
from headrace.control.api.answers import (
    Actor,
    ModelName,
    RequestBody,
    Version,
    WhoAsks,
    answer,
    route,
)
from headrace.control.auth.roles import Caller, Role
from headrace.control.desired.models import ModelWork, caller_leaves
from headrace.control.plane.control_plane import ControlPlane
from headrace.core import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    OverloadedError,
    PayloadTooLargeError,
    RequestCancelledError,
)
from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import move
from headrace.core.untar import MAX_PART_BYTES, unpack
from headrace.registry import (
    ModelVersion,
    Registry,
    VersionNotFoundError,
    VersionSignature,
    read_content,
)
from headrace.registry.shared import GRACE_S

MAX_UPLOAD_BYTES: Final = 64 << 30
MAX_UPLOADS: Final = 8
"""Maximum number of concurrent uploads per caller."""
MAX_ALL_UPLOADS: Final = 64
SILENCE_S: Final = 60.0
"""How long an upload may send nothing before it is aborted."""
_WRITE_BYTES: Final = 1 << 20
_RETRY_S: Final = 5.0
UploadFormat = Literal["file", "tar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Parameters of an upload."""

    name: str
    filename: str
    """Name of the file, or of the directory that a tar archive holds."""
    format: UploadFormat
    digest: str = ""
    """Digest that the model must have, in the registry's format; empty for any."""
    runtime: str = ""
    allow_code: bool = False
    """Whether the model's format may be one that runs its author's code."""
    source: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    caller: Caller
    length_bytes: int | None = None


@dataclass(slots=True, kw_only=True)
class Uploads:
    """Stores uploads in `registry`, with a bounded number at a time."""

    registry: Registry
    directory: Path
    """Directory of incomplete uploads; `Registry.gc` removes the files that a crash leaves there.
    """
    work: ModelWork
    """Threads that store and inspect models."""
    max_bytes: int = MAX_UPLOAD_BYTES
    silence_s: float = SILENCE_S
    allow_code: bool = False
    """Whether models that run their authors' code need no permission per upload."""
    _under_way: Counter[str] = field(default_factory=Counter)

    async def take(
        self,
        upload: Upload,
        chunks: AsyncIterator[bytes],
        *,
        left: Callable[[], AbstractAsyncContextManager[threading.Event]],
    ) -> ModelVersion:
        """Store a model as the next version of its name; the same content is the same version.

        Args:
            left: Opened when everything is received; its event is set when the caller disconnects.

        Raises:
            InvalidArgumentError: The content differs from the parameters, or is no model that can
                be served.
            PayloadTooLargeError: The upload is larger than allowed.
            OverloadedError: Too many uploads are in progress.
            DeadlineExceededError: The caller stopped sending.
            FailedPreconditionError: The disk is full.
        """
        caller = upload.caller.name
        if self._under_way[caller] >= MAX_UPLOADS or self._under_way.total() >= MAX_ALL_UPLOADS:
            message = f"{self._under_way[caller]} of your uploads are under way; wait for one"
            raise OverloadedError(message, retry_after_s=_RETRY_S)
        self._check_name(upload.filename)
        if upload.length_bytes is not None and upload.length_bytes > self.max_bytes:
            raise PayloadTooLargeError(limit_bytes=self.max_bytes, got_bytes=upload.length_bytes)
        self._under_way[caller] += 1
        try:
            with self._staging(upload.length_bytes or 0) as staging:
                await self._receive(staging / "body", chunks)
                async with left() as event:
                    return await self.work.run(
                        upload.caller.name, self._store, upload, staging, event
                    )
        finally:
            self._under_way[caller] -= 1

    @staticmethod
    def _check_name(filename: str) -> None:
        is_odd = filename in {"", ".", ".."} or "/" in filename or not filename.isprintable()
        if is_odd or len(filename.encode()) > MAX_PART_BYTES:
            raise InvalidArgumentError(f"{filename[:200]!r} is not allowed as a file's name")

    @contextmanager
    def _staging(self, length_bytes: int) -> Iterator[Path]:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.directory).free
            if length_bytes > free:
                message = (
                    f"the upload has {length_bytes} bytes, and {free} are free; "
                    "`headrace models gc` may free more"
                )
                raise FailedPreconditionError(message)
            with tempfile.TemporaryDirectory(
                dir=self.directory, prefix="upload-", ignore_cleanup_errors=True
            ) as staging:
                yield Path(staging)
        except OSError as error:
            raise FailedPreconditionError(f"cannot store the upload: {error.strerror}") from error

    async def _receive(self, path: Path, chunks: AsyncIterator[bytes]) -> None:
        """Write all `chunks` to `path`, one part at a time in a thread."""
        size, pending = 0, bytearray()
        with path.open("xb") as file:
            while True:
                try:
                    async with asyncio.timeout(self.silence_s):
                        chunk = await anext(chunks, None)
                except TimeoutError:
                    message = f"the upload sent no data for {self.silence_s:g} s; send it again"
                    raise DeadlineExceededError(message) from None
                if chunk is None:
                    break
                size += len(chunk)
                if size > self.max_bytes:
                    raise PayloadTooLargeError(limit_bytes=self.max_bytes)
                pending += chunk
                if len(pending) >= _WRITE_BYTES:
                    await asyncio.to_thread(file.write, pending)
                    pending = bytearray()
            await asyncio.to_thread(file.write, pending)

    def _store(self, upload: Upload, staging: Path, left: threading.Event) -> ModelVersion:
        model = staging / "model" / upload.filename
        model.parent.mkdir()
        if upload.format == "file":
            move(staging / "body", model, durable=False)
        else:
            unpack(staging / "body", model, max_bytes=self.max_bytes)
            (staging / "body").unlink()
        if upload.digest and (digest := read_content(model).digest) != upload.digest:
            message = f"the upload has digest {digest}, not {upload.digest}; send it again"
            raise InvalidArgumentError(message)
        return self.registry.push(
            upload.name,
            model,
            runtime=upload.runtime,
            allow_code=upload.allow_code or self.allow_code,
            source=upload.source or f"uploaded as {upload.filename}",
            by=upload.caller.name,
            owner=upload.caller.name,
            inspect=self.work.inspect_for(upload.caller.name, left),
            metadata=upload.metadata,
        )


_CREATED: Final = 201
_MAX_TEXT: Final = 4096
_BASE64: Final = r"^[A-Za-z0-9+/]+={0,2}$"
_DIGEST: Final = r"^$|^sha256:[0-9a-f]{64}$"


class KnownVersion(ModelVersion, frozen=True, kw_only=True):
    """A model version with its signatures."""

    signatures: tuple[VersionSignature, ...] = ()


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """Versions by name and number, and the index files that cannot be read."""

    models: tuple[KnownVersion, ...] = ()
    problems: tuple[str, ...] = ()


class Signed(RequestBody):
    """A signature of a model version: raw Ed25519 in base64, over the version's statement."""

    key: str = Field(pattern=_BASE64, max_length=64, description="The public key.")
    signature: str = Field(pattern=_BASE64, max_length=128, description="Its signature.")
    at: float = Field(default=0.0, ge=0, description="When, in seconds since 1970; not verified.")
    by: str = Field(default="", max_length=256, description="Author; not verified.")


def add_models(api: FastAPI, plane: ControlPlane) -> None:
    """Add the routes of the registry."""
    _add_reading(api, plane)
    _add_changing(api, plane)
    uploads = Uploads(
        registry=plane.registry,
        directory=plane.home.root / "artifacts" / "tmp",
        allow_code=plane.desired_state.allow_code,
        work=plane.desired_state.work,
    )

    @route(
        api,
        "POST /api/v1/models/{name}",
        KnownVersion,
        examples.MODEL,
        status=_CREATED,
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
                description="Metadata stored with the version: a JSON object of strings.",
                examples=['{"run": "2025-11-24"}'],
            ),
        ] = "",
        content_length: Annotated[int | None, Header(ge=0)] = None,
    ) -> Response:
        """Upload a model as the next version of a name."""
        target = Upload(
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
            target, _chunks(request), left=lambda: caller_leaves(request.receive)
        )
        await plane.note(
            "model.push", version.reference, after=_audit_facts(version), actor=caller.name
        )
        location = f"/api/v1/models/{version.name}/versions/{version.version}"
        document = await asyncio.to_thread(plane.registry.document, version)
        return answer(document, status=_CREATED, headers={"location": location})


def _metadata(text: str) -> dict[str, str]:
    """Return the `metadata` of an upload.

    Raises:
        InvalidArgumentError: The text is no JSON object of strings.
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
    @route(api, "GET /api/v1/models", ModelList, {"models": [examples.MODEL], "problems": []})
    async def models(caller: WhoAsks) -> Response:
        """List all model versions."""
        listing = await asyncio.to_thread(_listed, plane, None)
        names = {version["name"] for version in listing["models"]}
        readable = await asyncio.to_thread(plane.desired_state.readable_models, caller, names)
        listing["models"] = [
            version for version in listing["models"] if version["name"] in readable
        ]
        if not caller.may(Role.VIEWER):
            listing["problems"] = []  # files that cannot be read may be of any model
        return answer(listing)

    @route(
        api, "GET /api/v1/models/{name}", ModelList, {"models": [examples.MODEL], "problems": []}
    )
    async def model(name: ModelName, caller: WhoAsks) -> Response:
        """List the versions of one model."""
        listing = await asyncio.to_thread(_listed, plane, name)
        if not listing["models"]:
            everything = await asyncio.to_thread(plane.registry.list)
            names = [version.name for version in everything]
            readable = await asyncio.to_thread(plane.desired_state.readable_models, caller, names)
            raise VersionNotFoundError(name, "", sorted(readable))
        return answer(listing)

    @route(api, "GET /api/v1/models/{name}/versions/{version}", KnownVersion, examples.MODEL)
    async def version(name: ModelName, version: Version) -> Response:
        """Return one model version: digest, signature, creator, time and origin."""
        return answer(await asyncio.to_thread(_display, plane, f"{name}:{version}"))


def _add_changing(api: FastAPI, plane: ControlPlane) -> None:
    @route(api, "DELETE /api/v1/models/{name}/versions/{version}", KnownVersion, examples.MODEL)
    async def remove(name: ModelName, version: Version, actor: Actor) -> Response:
        """Remove a version; refused while an endpoint uses it."""
        removed = await asyncio.to_thread(
            plane.registry.remove, name, version, plane.desired_state.in_use()
        )
        plane.telemetry.drift.files.forget_reference(removed.reference)
        await plane.note(
            "model.remove", removed.reference, before=_audit_facts(removed), actor=actor
        )
        return answer(await asyncio.to_thread(plane.registry.document, removed))

    @route(
        api,
        "POST /api/v1/models/{name}/versions/{version}/signatures",
        KnownVersion,
        examples.MODEL,
        status=_CREATED,
    )
    async def sign(name: ModelName, version: Version, signature: Signed, actor: Actor) -> Response:
        """Add a signature that was made elsewhere to a version."""
        version_signature = VersionSignature(
            key=signature.key,
            signature=signature.signature,
            signed_at=signature.at,
            by=signature.by,
        )
        await asyncio.to_thread(plane.registry.add_signature, name, version, version_signature)
        await plane.note(
            "model.sign", f"{name}:{version}", after={"key": version_signature.key}, actor=actor
        )
        document = await asyncio.to_thread(_display, plane, f"{name}:{version}")
        return answer(document, status=_CREATED)

    @route(api, "POST /api/v1/gc", example={"artifacts": [], "temporary": 0, "freed_bytes": 0})
    async def gc(
        actor: Actor,
        grace_s: Annotated[
            float,
            Query(
                ge=3600,
                description="Minimum age of unused content in a shared store since its last push.",
            ),
        ] = GRACE_S,
    ) -> Response:
        """Delete stored content that no version refers to."""
        removed = asdict(await asyncio.to_thread(plane.registry.gc, grace_s=grace_s))
        await plane.note("model.gc", "", after=removed, actor=actor)
        return answer(removed)


def _listed(plane: ControlPlane, name: str | None) -> dict[str, list[Any]]:
    return {
        "models": [plane.registry.document(version) for version in plane.registry.list(name)],
        "problems": [str(problem) for problem in plane.registry.problems(name)],
    }


def _display(plane: ControlPlane, reference: str) -> dict[str, Any]:
    return plane.registry.document(plane.registry.get(reference))


def _audit_facts(version: ModelVersion) -> dict[str, Any]:
    """Return the audit log's facts about a version."""
    return {
        "digest": version.digest,
        "runtime": version.runtime,
        "size_bytes": version.size_bytes,
        "source": version.source,
    }
