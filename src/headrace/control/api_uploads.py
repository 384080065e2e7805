"""Uploads of models: streamed to disk, checked, unpacked and pushed to the registry."""

import asyncio
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from headrace.control.access.roles import Caller
from headrace.control.model_work import ModelWork
from headrace.control.untar import MAX_PART_BYTES, unpack
from headrace.core import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    OverloadedError,
    PayloadTooLargeError,
)
from headrace.core.files import move
from headrace.registry import ModelVersion, Registry, read_content

MAX_UPLOAD_BYTES: Final = 64 << 30
MAX_UPLOADS: Final = 8
"""How many uploads of one caller are under way at once."""
MAX_ALL_UPLOADS: Final = 64
SILENCE_S: Final = 60.0
"""How long an upload may say nothing before it is given up."""
_WRITE_BYTES: Final = 1 << 20
_RETRY_S: Final = 5.0

UploadFormat = Literal["file", "tar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What a caller says about the model that it sends.

    `filename`: what the file, or the directory that a tar archive holds, is called. `digest`: what
    the model has to have, as the registry writes it; empty for any. `allow_code`: whether it may
    be of a format that runs its author's code.
    """

    name: str
    filename: str
    format: UploadFormat
    digest: str = ""
    runtime: str = ""
    allow_code: bool = False
    source: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    caller: Caller
    length_bytes: int | None = None


@dataclass(slots=True, kw_only=True)
class Uploads:
    """Takes uploads into `registry`, several at once but not any number.

    `allow_code`: whether models that run their authors' code need not be allowed one by one.
    `work`: where models are stored and inspected.
    `directory`: where they are kept until they are whole; what a crash leaves there,
    `Registry.gc` takes away.
    """

    registry: Registry
    directory: Path
    work: ModelWork
    max_bytes: int = MAX_UPLOAD_BYTES
    silence_s: float = SILENCE_S
    allow_code: bool = False
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
            left: Opened when all is received; its event is set when the caller has left.

        Raises:
            InvalidArgumentError: It is not what was announced, or no model that can be served.
            PayloadTooLargeError: It is larger than allowed.
            OverloadedError: Too many are under way.
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
        """Write all `chunks` to `path`, a part at a time in a thread."""
        size, pending = 0, bytearray()
        with path.open("xb") as file:
            while True:
                try:
                    async with asyncio.timeout(self.silence_s):
                        chunk = await anext(chunks, None)
                except TimeoutError:
                    message = f"the upload said nothing for {self.silence_s:g} s; send it again"
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
        if upload.digest and (found := read_content(model).digest) != upload.digest:
            message = f"the upload has digest {found}, not {upload.digest}; send it again"
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
