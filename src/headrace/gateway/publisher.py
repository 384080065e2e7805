"""Publisher of snapshots and of certificates, by files that Envoy acknowledges.

Order: new clusters, filters, routes, listeners, then removal of old clusters. Each file is replaced
by a rename (Envoy does not notice other writes) and acknowledged by Envoy reporting its version
before the next is changed. Envoy also reads the files at its next start, so they hold the last good
state.
"""

import asyncio
import contextlib
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Final, Protocol, TypeAlias
from urllib.parse import quote

import orjson

from headrace.core import DeadlineExceededError, UnavailableError
from headrace.core.fetch import fetch
from headrace.core.files import size_of, write_atomic
from headrace.gateway.binary import (
    GatewayUnavailableError,
    SnapshotRejectedError,
    read_from,
    reason_in,
)
from headrace.gateway.resources import Resource
from headrace.gateway.snapshot import (
    CLUSTERS,
    FILTERS,
    KINDS,
    LISTENERS,
    ROUTES,
    FileKind,
    ResourceFile,
    Snapshot,
    make_document,
    read_document,
    with_old_clusters,
)
from headrace.gateway.tls import TYPE, is_secret_file, secret_file

_LIMIT_BYTES: Final = 64 << 20


class StatKind(StrEnum):
    """Envoy's name of a kind of statistics."""

    COUNTER = "Counters"
    GAUGE = "Gauges"
    TEXT = "TextReadouts"


@dataclass(frozen=True, slots=True)
class Admin:
    """Envoy's admin interface on a Unix socket. Safe to use from several tasks."""

    socket: Path
    timeout_s: float = 5.0

    async def get(self, path: str) -> str:
        """Return the body of a response with status 200.

        Raises:
            GatewayUnavailableError: No answer in time, or another status.
        """
        return await self._ask("GET", path)

    async def post(self, path: str) -> str:
        """Send a POST request; otherwise as `get`."""
        return await self._ask("POST", path)

    async def stats(self, pattern: str, kind: StatKind) -> dict[str, str | int]:
        """Return used statistics of one kind whose whole name matches the regular expression.

        Envoy has a hundred statistics per cluster and examines all of a kind; there are few texts.
        """
        body = await self.get(
            f"/stats?format=json&type={kind}&usedonly&filter=^({quote(pattern)})$"
        )
        stats = orjson.loads(body)["stats"]
        return {stat["name"]: stat["value"] for stat in stats if "name" in stat}

    async def _ask(self, method: str, path: str) -> str:
        try:
            answer = await fetch(
                f"unix:{self.socket}",
                path,
                method=method,
                timeout_s=self.timeout_s,
                limit_bytes=_LIMIT_BYTES,
            )
        except (DeadlineExceededError, UnavailableError) as error:
            msg = f"Envoy does not answer on {self.socket}: {error}"
            raise GatewayUnavailableError(msg) from error
        body = answer.body.decode(errors="replace")
        if answer.status != HTTPStatus.OK:
            msg = f"Envoy answers {answer.status} to {method} {path}: {body.strip()[:200]}"
            raise GatewayUnavailableError(msg)
        return body


_FIRST_POLL_S: Final = 0.001
_LONGEST_POLL_S: Final = 0.05
_LOG_POLLS: Final = 10
_LOG_POLL_S: Final = 0.01
_POLL_FOR_REFUSALS_S: Final = 0.008
_PRIVATE: Final = 0o600
_FOR_GROUP: Final = 0o640
_FileMark: TypeAlias = tuple[int, int, int]


class Statistics(Protocol):
    """Source of Envoy's statistics, by name."""

    async def stats(self, pattern: str, kind: StatKind) -> dict[str, str | int]:
        """Return the matching statistics; GatewayUnavailableError if Envoy does not respond."""


@dataclass(frozen=True, slots=True)
class FileWrite:
    """One file to replace."""

    kind: FileKind
    document: ResourceFile


def plan(
    current: Mapping[FileKind, ResourceFile], desired: Mapping[FileKind, ResourceFile]
) -> Sequence[FileWrite]:
    """Return the files to replace, in an order in which no route names a missing cluster."""
    order = [
        FileWrite(CLUSTERS, with_old_clusters(desired[CLUSTERS], current[CLUSTERS])),
        *(FileWrite(kind, desired[kind]) for kind in FILTERS.values()),
        FileWrite(ROUTES, desired[ROUTES]),
        FileWrite(LISTENERS, desired[LISTENERS]),
        FileWrite(CLUSTERS, desired[CLUSTERS]),
    ]
    now = dict(current)
    steps = []
    for step in order:
        if now[step.kind].version != step.document.version:
            steps.append(step)
            now[step.kind] = step.document
    return steps


def write_document(directory: Path, kind: FileKind, document: ResourceFile) -> None:
    """Replace a file of resources atomically; it is on disk when this returns.

    Raises:
        GatewayUnavailableError: The disk is full or cannot be written; the file is as it was.
    """
    path = directory / kind.file
    try:
        # A gateway of another user reads through the directory's group: see `make_private`.
        mode = _FOR_GROUP if directory.stat().st_mode & stat.S_IRGRP else _PRIVATE
        write_atomic(path, document.text.encode(), mode=mode)
    except OSError as error:
        raise GatewayUnavailableError(f"cannot write {path}: {error.strerror or error}") from error


def documents_of(snapshot: Snapshot) -> dict[FileKind, ResourceFile]:
    """Return the three files of a snapshot."""
    return {kind: snapshot.document(kind) for kind in KINDS}


@dataclass(slots=True, kw_only=True)
class Publisher:
    """Publisher of snapshots, one at a time; a newer waiting snapshot replaces an older one.

    After a cancelled publish the snapshot may be in force, in part or whole; the next publish
    starts from the current files. A file that is unchanged since this object wrote it is not
    read again.
    """

    directory: Path
    admin: Statistics
    log: Path
    timeout_s: float
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _newest: Snapshot | None = None
    _asked: int = 0
    _done: int = 0
    _files: dict[FileKind, tuple[_FileMark, ResourceFile]] = field(default_factory=dict)

    async def publish(self, snapshot: Snapshot) -> None:
        """Return once Envoy acts on `snapshot`, or on a newer one published meanwhile.

        Raises:
            SnapshotRejectedError: Envoy refused it and keeps what it had.
            GatewayUnavailableError: Envoy did not answer in time; the files are restored.
        """
        self._newest = snapshot
        self._asked += 1
        ticket = self._asked
        async with self._lock:
            if self._done >= ticket:
                return
            taken, newest = self._asked, self._newest
            documents = documents_of(newest)
            done: list[FileWrite] = []
            for step in plan({kind: self._read(kind) for kind in KINDS}, documents):
                before = FileWrite(step.kind, self._read(step.kind))
                done.insert(0, before)
                try:
                    await self._replace(step)
                except (SnapshotRejectedError, GatewayUnavailableError):
                    await self._restore(done)
                    raise
            self._done = taken

    async def _restore(self, steps: Sequence[FileWrite]) -> None:
        """Restore the previous files, the last change first; Envoy accepted these before."""
        for step in steps:
            try:
                await self._replace(step)
            except (SnapshotRejectedError, GatewayUnavailableError):
                # Envoy has exited or hangs: it reads the file at its next start. Or the disk is
                # full: then other files may be restored, and the next publish starts from the
                # current files.
                with contextlib.suppress(GatewayUnavailableError):
                    await self._write(step)

    async def _replace(self, step: FileWrite) -> None:
        refused = await self._refused(step.kind)
        offset = size_of(self.log)
        await self._write(step)
        await self.acknowledged(step, refused=refused, offset=offset)

    async def _write(self, step: FileWrite) -> None:
        await asyncio.to_thread(write_document, self.directory, step.kind, step.document)
        self._files[step.kind] = (_mark(self.directory / step.kind.file), step.document)

    async def acknowledged(self, step: FileWrite, *, refused: int, offset: int) -> None:
        """Wait until Envoy acts on a step's document.

        Args:
            refused: Envoy's number of rejected documents of this kind before the write.
            offset: Length of Envoy's log before the write.

        Raises:
            SnapshotRejectedError: Envoy refused it.
            GatewayUnavailableError: Envoy is gone, or did neither in time.
        """
        try:
            async with asyncio.timeout(self.timeout_s):
                is_taken = await self._is_taken(step, refused)
        except TimeoutError as error:
            reason = reason_in(read_from(self.log, offset)) or "no reason in its log"
            msg = f"Envoy did not accept {step.kind.file} in {self.timeout_s:g} s: {reason}"
            raise GatewayUnavailableError(msg) from error
        if not is_taken:
            raise SnapshotRejectedError(await self._reason(step.kind, offset))

    async def _is_taken(self, step: FileWrite, refused: int) -> bool:
        """Whether Envoy accepted the step's document, once it accepted or rejected it.

        A version is a hash, so it is enough that Envoy reports it, even if it reported the same
        before: it uses these resources. Most documents are accepted, so rejections are checked less
        often.
        """
        pause_s = _FIRST_POLL_S
        while True:
            # The version that Envoy uses; empty for none.
            kind = step.kind
            name = f"{kind.stats}.version_text"
            stats = await self.admin.stats(re.escape(name), StatKind.TEXT)
            if str(stats.get(name, "")) == step.document.version:
                return True
            if pause_s >= _POLL_FOR_REFUSALS_S and await self._refused(step.kind) > refused:
                return False
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_POLL_S)

    async def _refused(self, kind: FileKind) -> int:
        """Return the number of documents that Envoy rejected since its start."""
        stats = await self.admin.stats(
            rf"{re.escape(kind.stats)}[.]update_(rejected|failure)", StatKind.COUNTER
        )
        return sum(int(count) for count in stats.values())

    async def _reason(self, kind: FileKind, offset: int) -> str:
        """Return the reason of a rejection, which Envoy logs just after counting it."""
        for _ in range(_LOG_POLLS):
            if reason := reason_in(read_from(self.log, offset)):
                return reason
            await asyncio.sleep(_LOG_POLL_S)
        return f"{kind.file} (no reason in {self.log})"

    def _read(self, kind: FileKind) -> ResourceFile:
        """Return the current file: from memory if it was not replaced."""
        path = self.directory / kind.file
        mark = _mark(path)
        cached = self._files.get(kind)
        if cached is not None and cached[0] == mark:
            return cached[1]
        document = read_document(path.read_text())
        self._files[kind] = (mark, document)
        return document


def _mark(path: Path) -> _FileMark:
    """Return a value that changes whenever the file is replaced or written."""
    status = path.stat()
    return (status.st_ino, status.st_mtime_ns, status.st_size)


@dataclass(slots=True, kw_only=True)
class SecretFiles:
    """Publisher of secrets, one at a time.

    They are readable by this user only, as everything in the gateway's directory.
    """

    directory: Path
    publisher: Publisher
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def write(self, secret: Resource) -> None:
        """Write a secret where Envoy reads it at its start. Blocking."""
        kind = _kind(str(secret["name"]))
        write_document(self.directory, kind, make_document(kind, [secret]))

    def has(self, name: str) -> bool:
        """Whether a secret of this name was in force last."""
        return (self.directory / secret_file(name)).is_file()

    async def put(self, secret: Resource) -> None:
        """Return once Envoy uses `secret`; immediately if no active resource refers to it yet.

        Raises:
            SnapshotRejectedError: Envoy refused it, and keeps what it had.
            GatewayUnavailableError: Envoy is gone, or did not take it in time; it finds the new
                secret at its next start.
        """
        kind = _kind(str(secret["name"]))
        document = make_document(kind, [secret])
        async with self._lock:
            before = await asyncio.to_thread(self._read, kind)
            if before is not None and before.version == document.version:
                return
            is_used = await self._is_used(kind)
            refused = await self._refused(kind) if is_used else 0
            offset = size_of(self.publisher.log)
            await asyncio.to_thread(write_document, self.directory, kind, document)
            if not is_used:
                return
            try:
                await self.publisher.acknowledged(
                    FileWrite(kind, document), refused=refused, offset=offset
                )
            except SnapshotRejectedError:
                if before is not None:
                    await asyncio.to_thread(write_document, self.directory, kind, before)
                raise

    def keep_only(self, names: Collection[str]) -> None:
        """Remove all other secrets from disk. Blocking."""
        needed = {secret_file(name) for name in names}
        for path in self.directory.iterdir():
            if is_secret_file(path.name) and path.name not in needed:
                path.unlink(missing_ok=True)

    def _read(self, kind: FileKind) -> ResourceFile | None:
        with contextlib.suppress(FileNotFoundError):
            return read_document((self.directory / kind.file).read_text())
        return None

    async def _is_used(self, kind: FileKind) -> bool:
        """Whether Envoy has loaded it, so that it reports the version."""
        name = f"{kind.stats}.version_text"
        try:
            return name in await self.publisher.admin.stats(re.escape(name), StatKind.TEXT)
        except GatewayUnavailableError:
            return False  # Envoy reads the file when it starts

    async def _refused(self, kind: FileKind) -> int:
        pattern = rf"{re.escape(kind.stats)}[.]update_(rejected|failure)"
        counted = await self.publisher.admin.stats(pattern, StatKind.COUNTER)
        return sum(int(count) for count in counted.values())


def _kind(name: str) -> FileKind:
    return FileKind(secret_file(name), TYPE, f"sds.{name}")
