"""Files and batches of OpenAI's API, stored in `bulk/OWNER` of the home.

An owner is the name of an API key, or nobody where the gateway requires no authentication. Each
file is its content and a record; each batch is a record, and a directory while it runs.
"""

import re
import secrets
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec

from headrace.core import (
    Clock,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    PayloadTooLargeError,
)
from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import make_private_dir, size_of, write_atomic
from headrace.core.names import NAME_PATTERN
from headrace.core.text import duration_s
from headrace.jobs.openai_lines import PATHS, RequestCounts

MAX_FILE_BYTES: Final = 200 << 20
"""Bytes of an uploaded file, as for OpenAI's API."""
MAX_OWNER_BYTES: Final = 4 << 30
"""Bytes of an owner's files, with the results of batches."""
MAX_OWNER_FILES: Final = 1000
MAX_OWNER_BATCHES: Final = 1000
MAX_ACTIVE: Final = 100
"""Batches of an owner that are not over."""
MIN_FREE_BYTES: Final = 1 << 30
MAX_WINDOW_S: Final = 7 * 86_400.0
_NOBODY: Final = "nobody"
_ID: Final = re.compile(r"(file-|batch_)[0-9a-f]{24}[oe]?")
_ACTIVE: Final = frozenset({"validating", "in_progress", "finalizing", "cancelling"})
_Key = Annotated[str, msgspec.Meta(max_length=64)]
_Value = Annotated[str, msgspec.Meta(max_length=512)]
BATCH_PURPOSE: Final = "batch"
RESULTS_PURPOSE: Final = "batch_output"
T = TypeVar("T")


class BulkFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file, as in OpenAI's API. Times are in seconds since 1970."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    object: str = "file"
    status: str = "processed"
    status_details: str | None = None


class BulkBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch, as in OpenAI's API, and what `INTERNAL` names. Times are in seconds since 1970."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    status: str = "validating"
    object: str = "batch"
    errors: dict[str, Any] | None = None
    """Why it failed: a list of OpenAI's API, `{"object": "list", "data": [{"code", ...}]}`."""
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = msgspec.field(default_factory=RequestCounts)
    metadata: dict[str, str] | None = None
    owner: str
    key_id: str = ""
    """Id of the API key that created it, whose grants its requests have; empty for none."""
    failures: int = 0
    """Failed runs in a row."""
    next_try_at: float = 0.0

    @property
    def is_active(self) -> bool:
        """Whether the batch is not over."""
        return self.status in _ACTIVE


INTERNAL: Final = frozenset({"owner", "key_id", "failures", "next_try_at"})
"""Fields of `BulkBatch` that callers do not see."""


class NewBatch(msgspec.Struct, kw_only=True):
    """Body of `POST /v1/batches`; other fields are ignored."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Annotated[dict[_Key, _Value], msgspec.Meta(max_length=16)] | None = None


@dataclass(slots=True, kw_only=True)
class BulkStore:
    """Files and batches of a home. For one event loop; its file operations are short."""

    root: Path
    clock: Clock
    batches: dict[str, BulkBatch] = field(default_factory=dict)
    """All batches by id."""
    _incoming: dict[str, int] = field(default_factory=dict)
    """Bytes of an owner's uploads in progress."""

    def load(self) -> None:
        """Read the batches of an earlier control plane; damaged records are left out. Blocking."""
        for path in self.root.glob("*/batches/*.json"):
            batch = _read(path, BulkBatch)
            if batch is not None:
                self.batches[batch.id] = batch

    async def add_file(self, owner: str, filename: str, chunks: AsyncIterator[bytes]) -> BulkFile:
        """Store an uploaded file of the purpose `batch`, unless `chunks` raises an error.

        Raises:
            PayloadTooLargeError: The file, or all files of the owner, would be too large.
            FailedPreconditionError: The owner has too many files.
            OverloadedError: The disk is almost full.
        """
        folder = make_private_dir(self._folder(owner) / "files")
        if shutil.disk_usage(self.root).free < MIN_FREE_BYTES:
            msg = f"the disk of the gateway has less than {MIN_FREE_BYTES} bytes left"
            raise OverloadedError(msg, retry_after_s=60.0)
        if len(list(folder.glob("*.json"))) >= MAX_OWNER_FILES:
            msg = f"there are {MAX_OWNER_FILES} files already; delete some"
            raise FailedPreconditionError(msg)
        used = sum(size_of(path) for path in folder.parent.rglob("*") if path.is_file())
        file_id = f"file-{secrets.token_hex(12)}"
        path, size = folder / f"{file_id}.part", 0
        try:
            with path.open("xb") as file:
                async for chunk in chunks:
                    size += len(chunk)
                    self._incoming[owner] = self._incoming.get(owner, 0) + len(chunk)
                    if size > MAX_FILE_BYTES:
                        raise PayloadTooLargeError(limit_bytes=MAX_FILE_BYTES)
                    if used + self._incoming[owner] > MAX_OWNER_BYTES:
                        raise PayloadTooLargeError(limit_bytes=MAX_OWNER_BYTES)
                    file.write(chunk)
            return self.keep(owner, file_id, path, filename=filename, purpose=BATCH_PURPOSE)
        finally:
            self._incoming[owner] = self._incoming.get(owner, 0) - size
            path.unlink(missing_ok=True)

    def keep(
        self, owner: str, file_id: str, path: Path, *, filename: str, purpose: str
    ) -> BulkFile:
        """Make a finished file visible under an id, and return its record; repeatable."""
        folder = make_private_dir(self._folder(owner) / "files")
        data = folder / f"{file_id}.data"
        if path.exists():
            path.replace(data)
        record = BulkFile(
            id=file_id,
            bytes=size_of(data),
            created_at=int(self.clock.now()),
            filename=filename[:200],
            purpose=purpose,
        )
        write_atomic(folder / f"{file_id}.json", msgspec.json.encode(record))
        return record

    def files(self, owner: str) -> list[BulkFile]:
        """Return an owner's files, the newest first."""
        records = (_read(path, BulkFile) for path in (self._folder(owner) / "files").glob("*.json"))
        return sorted(filter(None, records), key=lambda file: (-file.created_at, file.id))

    def file(self, owner: str, file_id: str) -> BulkFile:
        """Return an owner's file.

        Raises:
            NotFoundError: The owner has no such file.
        """
        path = self._folder(owner) / "files" / f"{file_id}.json"
        record = _read(path, BulkFile) if _ID.fullmatch(file_id) else None
        if record is None:
            raise NotFoundError(f"No such File object: {file_id[:80]}")
        return record

    def content(self, owner: str, file_id: str) -> Path:
        """Return the path of a file's content; errors as `file`."""
        return self._folder(owner) / "files" / f"{self.file(owner, file_id).id}.data"

    def delete(self, owner: str, file_id: str) -> None:
        """Delete a file.

        Raises:
            NotFoundError: The owner has no such file.
            FailedPreconditionError: A batch that is not over reads it.
        """
        path = self.content(owner, file_id)
        for batch in self.of(owner):
            if batch.is_active and batch.input_file_id == file_id:
                msg = f"{batch.id} reads {file_id}; cancel the batch first, or wait for its end"
                raise FailedPreconditionError(msg)
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def of(self, owner: str) -> list[BulkBatch]:
        """Return an owner's batches, the newest first."""
        batches = (batch for batch in self.batches.values() if batch.owner == owner)
        return sorted(batches, key=lambda batch: (-batch.created_at, batch.id))

    def batch(self, owner: str, batch_id: str) -> BulkBatch:
        """Return an owner's batch.

        Raises:
            NotFoundError: The owner has no such batch.
        """
        batch = self.batches.get(batch_id)
        if batch is None or batch.owner != owner:
            raise NotFoundError(f"No such Batch object: {batch_id[:80]}")
        return batch

    def create(self, owner: str, key_id: str, new: NewBatch) -> BulkBatch:
        """Store a new batch.

        Raises:
            NotFoundError: The owner has no such file.
            InvalidArgumentError: The path or the window is not allowed.
            OverloadedError: The owner has too many batches.
        """
        window_s = duration_s(new.completion_window)
        if window_s is None or not 1 <= window_s <= MAX_WINDOW_S:
            raise InvalidArgumentError("completion_window is a duration up to 7d, such as 24h")
        if new.endpoint not in PATHS:
            paths = ", ".join(sorted(PATHS))
            msg = f"endpoint {new.endpoint[:80]!r} is not supported; use {paths}"
            raise InvalidArgumentError(msg)
        if self.file(owner, new.input_file_id).purpose != BATCH_PURPOSE:
            msg = f"{new.input_file_id} has not the purpose {BATCH_PURPOSE!r}"
            raise InvalidArgumentError(msg)
        own = self.of(owner)
        if sum(batch.is_active for batch in own) >= MAX_ACTIVE:
            msg = f"{MAX_ACTIVE} batches are not over yet; wait, or cancel some"
            raise OverloadedError(msg, retry_after_s=60.0)
        for old in [batch for batch in own if not batch.is_active][
            MAX_OWNER_BATCHES - MAX_ACTIVE :
        ]:
            self.work(self.batches.pop(old.id)).with_suffix(".json").unlink(missing_ok=True)
        now = self.clock.now()
        batch = BulkBatch(
            id=f"batch_{secrets.token_hex(12)}",
            **msgspec.structs.asdict(new),
            created_at=int(now),
            expires_at=int(now + window_s),
            owner=owner,
            key_id=key_id,
        )
        make_private_dir(self._folder(owner) / "batches")
        self.batches[batch.id] = batch
        return self.change(batch.id)

    def change(self, batch_id: str, *, is_stored: bool = True, **fields: Any) -> BulkBatch:  # noqa: ANN401  # fields of the record
        """Set values of a batch, and the time of a new status; return it.

        Args:
            is_stored: False for progress, which its run has on the disk: the next change stores it.
        """
        if "status" in fields:
            fields[f"{fields['status']}_at"] = int(self.clock.now())
        batch = msgspec.structs.replace(self.batches[batch_id], **fields)
        if is_stored:
            write_atomic(self.work(batch).with_suffix(".json"), msgspec.json.encode(batch))
        self.batches[batch_id] = batch
        return batch

    def work(self, batch: BulkBatch) -> Path:
        """Return the directory of a batch that runs; its record is beside it."""
        return self._folder(batch.owner) / "batches" / batch.id

    def _folder(self, owner: str) -> Path:
        if owner and not re.fullmatch(NAME_PATTERN, owner):
            raise InvalidArgumentError("the name of the key cannot own files")
        return self.root / (f"key-{owner}" if owner else _NOBODY)


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, *UNDECODABLE):
        return None
