"""Files and batches of OpenAI's API over HTTP, on the gateway's port.

The gateway has authenticated the caller and passes the API key on. Each key's name sees its own
files and batches only. Callers with tokens and certificates are refused: a batch runs after its
creator has left, with the rights of a key that can be revoked.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Final

import msgspec
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse

from headrace.control.api.answers import answer
from headrace.control.asgi.guards import read_body
from headrace.control.asgi.multipart import MultipartBody
from headrace.control.auth.credentials import PREFIXES, is_secret_of, secret_id
from headrace.control.jobs.bulk import BATCH_PURPOSE, INTERNAL, BulkBatch, BulkFile, NewBatch
from headrace.control.model.credentials import CredentialKind
from headrace.control.plane.control_plane import ControlPlane
from headrace.core import (
    InvalidArgumentError,
    NotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from headrace.core.error_kind import UNDECODABLE
from headrace.core.headers import CALLER_HEADER

BULK_PREFIXES: Final = ("/v1/files", "/v1/batches")
MAX_PAGE: Final = 100
MAX_FILES_PAGE: Final = 10_000
_MAX_BODY_BYTES: Final = 64 << 10
_LINES: Final = "application/jsonl"


Limit = Annotated[int, Query(ge=1)]
After = Annotated[str, Query(max_length=80)]


async def _caller(request: Request) -> tuple[str, str]:
    """Return the name and the id of the caller's API key; empty where the gateway needs none.

    Raises:
        UnauthenticatedError: The key is not valid.
        PermissionDeniedError: The caller has no key.
        NotFoundError: This control plane runs no batches.
    """
    plane: ControlPlane = request.app.state.plane
    if not plane.context.runs_here:
        raise NotFoundError("files and batches are not served here; send the requests singly")
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    text = request.headers.get("x-api-key", "") or bearer
    key_id = secret_id(PREFIXES[CredentialKind.KEY], text)
    if key_id is None:
        if request.headers.get(CALLER_HEADER):
            message = "files and batches need an API key; `headrace keys create` creates one"
            raise PermissionDeniedError(message)
        return "", ""
    key = await plane.store.credential(key_id)
    if key is None or not is_secret_of(key, text) or not key.is_valid(plane.clock.now()):
        raise UnauthenticatedError("Unknown, expired or revoked API key")
    return key.owner, key.id


Caller = Annotated[tuple[str, str], Depends(_caller)]


async def _owner(caller: Caller) -> str:
    return caller[0]


Owner = Annotated[str, Depends(_owner)]


async def _chunks(form: MultipartBody) -> AsyncIterator[bytes]:
    """Yield the file's content; refuse a form of another purpose, which may be its last field."""
    async for chunk in form.file_chunks():
        yield chunk
    if form.fields.get("purpose") != BATCH_PURPOSE:
        raise InvalidArgumentError(f"purpose must be {BATCH_PURPOSE!r}")


def add_files(api: FastAPI, plane: ControlPlane) -> None:
    """Add the routes of files."""
    api.state.plane = plane
    store = plane.workloads.bulk.store

    @api.post("/v1/files")
    async def upload(request: Request, owner: Owner) -> Response:
        """Store a file of the purpose `batch`."""
        form = MultipartBody(
            content_type=request.headers.get("content-type", ""), chunks=request.stream()
        )
        filename = await form.file_name()
        if not filename:
            raise InvalidArgumentError("the form has no file")
        return answer(await store.add_file(owner, filename, _chunks(form)))

    @api.get("/v1/files")
    async def files(
        owner: Owner,
        purpose: Annotated[str, Query(max_length=80)] = "",
        limit: Limit = MAX_FILES_PAGE,
        after: After = "",
        order: Annotated[str, Query(pattern="^(asc|desc)$")] = "desc",
    ) -> Response:
        """List the caller's files."""
        visible = [file for file in store.files(owner) if purpose in {"", file.purpose}]
        if order == "asc":
            visible.reverse()
        return answer(page(visible, after=after, limit=min(limit, MAX_FILES_PAGE)))

    @api.get("/v1/files/{file_id}")
    async def file(owner: Owner, file_id: str) -> Response:
        """Return a file's record."""
        return answer(store.file(owner, file_id))

    @api.get("/v1/files/{file_id}/content")
    async def content(owner: Owner, file_id: str) -> Response:
        """Return a file's content."""
        return FileResponse(store.content(owner, file_id), media_type=_LINES)

    @api.delete("/v1/files/{file_id}")
    async def delete(owner: Owner, file_id: str) -> Response:
        """Delete a file."""
        store.delete(owner, file_id)
        return answer({"id": file_id, "object": "file", "deleted": True})


def add_batches(api: FastAPI, plane: ControlPlane) -> None:
    """Add the routes of batches, beside those of files."""
    runner = plane.workloads.bulk
    store = runner.store

    @api.post("/v1/batches")
    async def create(request: Request, caller: Caller) -> Response:
        """Create a batch of a file's requests."""
        body = await read_body(request.receive, _MAX_BODY_BYTES)
        if body is None:
            raise PayloadTooLargeError(limit_bytes=_MAX_BODY_BYTES)
        try:
            new = msgspec.json.decode(body, type=NewBatch)
        except UNDECODABLE as error:
            raise InvalidArgumentError(f"the body is no batch: {error}") from None
        batch = store.create(*caller, new)
        runner.wake()
        return answer(document_of(batch))

    @api.get("/v1/batches")
    async def batches(owner: Owner, limit: Limit = 20, after: After = "") -> Response:
        """List the caller's batches, the newest first."""
        return answer(page(store.of(owner), after=after, limit=min(limit, MAX_PAGE)))

    @api.get("/v1/batches/{batch_id}")
    async def batch(owner: Owner, batch_id: str) -> Response:
        """Return a batch."""
        return answer(document_of(store.batch(owner, batch_id)))

    @api.post("/v1/batches/{batch_id}/cancel")
    async def cancel(owner: Owner, batch_id: str) -> Response:
        """Cancel a batch; results that it has are kept."""
        return answer(document_of(runner.cancel(owner, batch_id)))


def document_of(record: BulkFile | BulkBatch) -> dict[str, Any]:
    """Return a file or a batch as callers see it."""
    fields = msgspec.structs.asdict(record)
    return {name: value for name, value in fields.items() if name not in INTERNAL}


def page(items: Sequence[BulkFile | BulkBatch], *, after: str, limit: int) -> dict[str, Any]:
    """Return the items behind the one with the id `after`, as a list of OpenAI's API."""
    ids = [item.id for item in items]
    start = ids.index(after) + 1 if after in ids else 0
    some = items[start : start + limit]
    return {
        "object": "list",
        "data": [document_of(item) for item in some],
        "first_id": some[0].id if some else None,
        "last_id": some[-1].id if some else None,
        "has_more": len(items) > start + limit,
    }
