"""Download of a remote model that continues where an earlier one stopped.

    CACHE/KEY.lock          held during the download
    CACHE/KEY/state.json    the revision that the files are of
    CACHE/KEY/parts/        incomplete files
    CACHE/KEY/files/        complete files
    CACHE/KEY/model/        the model

`KEY` is a hash of the location. The directory is deleted once the model has been stored elsewhere,
and after a week in any case.
"""

import hashlib
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from headrace.core import (
    ArtifactCorruptError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from headrace.core.backoff import Backoff
from headrace.core.files import exclusive, make_private_dir, size_of, write_atomic
from headrace.core.text import bytes_text
from headrace.sources.listing import Listing, RemoteFile, Source, Unpack, check_listing
from headrace.sources.unpack import unpack_archive

T = TypeVar("T")
OnTransfer = Callable[[str, int, int | None], None]
"""Called with a description, the bytes done, and the total bytes; None if unknown."""
_RETRIES: Final = Backoff(first_s=0.5, limit_s=10.0)
_PROGRESS_BYTES: Final = 1 << 20
"""Bytes after which earlier failures do not count: large files may be cut often."""
_KEEP_S: Final = 7 * 86_400.0
_ARCHIVE: Final = re.compile(r"\.(tar|tar\.gz|tgz)$", re.IGNORECASE)
_ALWAYS_IN_DIRECTORY: Final = frozenset({"saved_model.pb"})
"""Files that are a model only together with their directory."""
_LOCK_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadLimits:
    """Limits of one download."""

    max_bytes: int = 64 << 30
    """Size of the model, before and after unpacking. Unit: bytes."""
    attempts: int = 6
    """Attempts in a row without progress."""
    min_bytes_per_s: int = 1024
    """Slower servers count as unavailable."""
    window_s: float = 60.0
    """Time over which the speed is measured. Unit: seconds."""


@dataclass(slots=True, kw_only=True)
class Downloader:
    """Download of one location into a cache directory."""

    source: Source
    location: str
    """Name of the model for messages; it holds no secrets."""
    cache: Path
    """Directory of incomplete downloads."""
    limits: DownloadLimits = field(default_factory=DownloadLimits)
    on_transfer: OnTransfer = lambda _what, _done, _total: None
    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random

    def resolve(self) -> Listing:
        """Return the current content, checked.

        Raises:
            HeadraceError: The source cannot be read, or its files are refused.
        """
        failures = 0
        listing: Listing | None = None
        while listing is None:
            try:
                listing = self.source.resolve()
            except UnavailableError as error:
                failures += 1
                self._pause(failures, error)
        check_listing(listing, self.location)
        total = sum(file.size_bytes or 0 for file in listing.files)
        self._check_size(total)
        return listing

    @contextmanager
    def downloaded(self, listing: Listing) -> Iterator[Path]:
        """Yield the model's file or directory; it is deleted if the block ends without an error.

        Raises:
            UnavailableError: The server stops answering, or another process downloads the same
                location.
            ArtifactCorruptError: The content differs from its published hash, or is refused.
            FailedPreconditionError: The disk is full, or the content changes meanwhile.
        """
        key = hashlib.sha256(self.location.encode()).hexdigest()[:32]
        folder = self.cache / key
        with ExitStack() as stack:
            try:
                make_private_dir(self.cache)
                self._delete_old()
                stack.enter_context(exclusive(self.cache / f"{key}.lock", timeout_s=_LOCK_S))
                path = self._download(listing, make_private_dir(folder))
            except OSError as error:
                where = f" ({error.filename})" if error.filename else ""
                message = f"cannot download {self.location}: {error.strerror or error}{where}"
                raise FailedPreconditionError(message) from error
            yield path
            shutil.rmtree(folder, ignore_errors=True)

    def _download(self, listing: Listing, folder: Path) -> Path:
        _forget_other(folder, listing.revision)
        parts, files = make_private_dir(folder / "parts"), make_private_dir(folder / "files")
        paths = [files / hashlib.sha256(file.path.encode()).hexdigest() for file in listing.files]
        left = sum(
            (file.size_bytes or 0) - size_of(parts / path.name)
            for file, path in zip(listing.files, paths, strict=True)
            if not path.exists()
        )
        if left > (free := shutil.disk_usage(folder).free):
            raise FailedPreconditionError(
                f"{self.location} needs {bytes_text(left)}, and {bytes_text(free)} are free in "
                f"{folder}"
            )
        total = _known_total(listing)
        done = 0
        for file, path in zip(listing.files, paths, strict=True):
            if not path.exists():
                self._fetch(file, parts / path.name, done, total)
                (parts / path.name).replace(path)
            done += path.stat().st_size
            self._check_size(done)
        return self._assembled(listing, paths, folder / "model")

    def _fetch(self, file: RemoteFile, part: Path, before: int, total: int | None) -> None:
        """Complete the file `part`.

        Args:
            before: Bytes of the files before it.
            total: Bytes of all files; None if unknown.
        """
        shown = f"{self.location} {file.path}".rstrip()
        failures, since = 0, size_of(part)
        is_continued, is_restarted = part.exists(), False
        while True:
            try:
                self._receive(file, part, before, total)
            except UnavailableError as error:
                if size_of(part) - since >= _PROGRESS_BYTES:
                    failures, since = 0, size_of(part)
                failures, is_continued = failures + 1, True
                self._pause(failures, error, cached_bytes=size_of(part))
                continue
            if not file.sha256 or _sha256(part) == file.sha256:
                return
            part.unlink()
            if is_restarted or not is_continued:
                message = f"{shown} is damaged: its content differs from its hash {file.sha256}"
                raise ArtifactCorruptError(message)
            is_restarted, since = True, 0  # the earlier part may be of another file

    def _receive(self, file: RemoteFile, part: Path, before: int, total: int | None) -> None:
        start = size_of(part)
        expected = file.size_bytes
        if expected is not None and start >= expected:
            if start == expected and expected:
                return
            start = 0
        with self.source.read(file, start) as body:
            expected = body.size_bytes if expected is None else expected
            if body.size_bytes not in {None, expected}:
                raise FailedPreconditionError(
                    f"{self.location} {file.path}: has {body.size_bytes} bytes instead of "
                    f"{expected}; run the command again"
                )
            received = body.offset
            window, window_bytes = self.monotonic(), received
            with part.open("r+b" if received else "wb") as stream:
                stream.seek(received)
                stream.truncate()
                for chunk in body.chunks:
                    stream.write(chunk)
                    received += len(chunk)
                    if expected is not None and received > expected:
                        stream.truncate(0)
                        raise ArtifactCorruptError(
                            f"{self.location} {file.path}: the server sends more than the "
                            f"{expected} bytes that it announced"
                        )
                    self._check_size(before + received)
                    self.on_transfer(f"downloading {self.location}", before + received, total)
                    now = self.monotonic()
                    if now - window >= self.limits.window_s:
                        self._check_speed((received - window_bytes) / (now - window))
                        window, window_bytes = now, received
        if expected is not None and received < expected:
            message = f"{self.location}: the connection was closed after {received} of {expected}"
            raise UnavailableError(f"{message} bytes")

    def _assembled(self, listing: Listing, paths: list[Path], model: Path) -> Path:
        """Make the model's file or directory of the downloaded files; return it."""
        shutil.rmtree(model, ignore_errors=True)
        is_packed = any(file.unpack is not Unpack.NO for file in listing.files)
        name = _ARCHIVE.sub("", listing.name) if is_packed else listing.name
        target = make_private_dir(model) / (name or "model")
        for file, path in zip(listing.files, paths, strict=True):
            if file.unpack is not Unpack.NO:
                target.mkdir(exist_ok=True)
                unpack_archive(
                    path,
                    target,
                    where=f"{self.location} {file.path}".rstrip(),
                    max_bytes=self.limits.max_bytes,
                    is_layer=file.unpack is Unpack.IMAGE,
                )
                continue
            copy = target / file.path if file.path else target
            try:
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.hardlink_to(path)
            except (FileExistsError, NotADirectoryError):
                message = f"{self.location}: {file.path} is listed as a file and as a directory"
                raise ArtifactCorruptError(message) from None
        if target.is_dir() and not any(path.is_file() for path in target.rglob("*")):
            raise ArtifactCorruptError(
                f"{self.location} holds no file of a model; an image has it in /models"
            )
        while target.is_dir() and len(entries := list(target.iterdir())) == 1:
            if entries[0].name in _ALWAYS_IN_DIRECTORY:
                break
            target = entries[0]  # runtimes detect more formats of a file than of a directory
        return target

    def _pause(self, failures: int, error: UnavailableError, *, cached_bytes: int = 0) -> None:
        """Wait before the next attempt.

        Raises:
            UnavailableError: There were too many.
        """
        if failures >= self.limits.attempts:
            rest = f"; {bytes_text(cached_bytes)} are kept, run the command again to continue"
            raise UnavailableError(f"{error}{rest if cached_bytes else ''}") from error
        pause_s = _RETRIES.jittered_s(failures, chance=self.chance())
        self.sleep(min(max(pause_s, error.retry_after_s or 0.0), self.limits.window_s))

    def _check_size(self, size: int) -> None:
        if size > self.limits.max_bytes:
            limit = bytes_text(self.limits.max_bytes)
            raise InvalidArgumentError(f"{self.location} is larger than the limit of {limit}")

    def _check_speed(self, bytes_per_s: float) -> None:
        if bytes_per_s < self.limits.min_bytes_per_s:
            message = f"{self.location}: the server sends {bytes_per_s:.0f} bytes per second"
            raise UnavailableError(message)

    def _delete_old(self) -> None:
        """Delete downloads that were not continued for a week."""
        before = time.time() - _KEEP_S  # noqa: TID251  # compared with times of files
        for entry in self.cache.iterdir():
            if entry.stat().st_mtime < before:
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)


class _State(msgspec.Struct, frozen=True):
    revision: str


def _forget_other(folder: Path, revision: str) -> None:
    """Delete files of another revision, or of an unknown one, and record this one."""
    file = folder / "state.json"
    try:
        stored = msgspec.json.decode(file.read_bytes(), type=_State).revision
    except (OSError, msgspec.DecodeError):
        stored = ""
    if not revision or stored != revision:
        for name in ("parts", "files", "model"):
            shutil.rmtree(folder / name, ignore_errors=True)
    write_atomic(file, msgspec.json.encode(_State(revision)))


def _known_total(listing: Listing) -> int | None:
    sizes = [file.size_bytes for file in listing.files]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
