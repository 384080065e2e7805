"""Object store interface, and its implementation in a directory that hosts share.

The registry of several hosts relies on three guarantees: a reader sees an object whole or not at
all, `create` succeeds once for a key, and `replace` succeeds only if the object is unchanged.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from headrace.core import ArtifactCorruptError, FailedPreconditionError
from headrace.core.files import move, sync_directory

MAX_READ_BYTES: Final = 64 << 20
"""Largest object that is read whole. Headrace writes none larger; more would fill the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """Listing entry of an object; `modified_at` in seconds since 1970, by the store's clock.

    `etag` changes whenever the content does.
    """

    key: str
    size_bytes: int
    modified_at: float
    etag: str


def check_small(location: str, key: str, size_bytes: int) -> None:
    """Raise ArtifactCorruptError if an object is too large to be read whole."""
    if size_bytes > MAX_READ_BYTES:
        raise ArtifactCorruptError(
            f"{location}/{key} is damaged: it has {size_bytes} bytes, more than the limit "
            f"of {MAX_READ_BYTES}"
        )


class ObjectStore(Protocol):
    """Objects under keys such as `registry/fraud/3.json`; safe to use from several threads.

    Every method raises UnavailableError where the store does not answer in time, and
    FailedPreconditionError where it refuses.
    """

    @property
    def where(self) -> str:
        """URL of the store for messages, without secrets."""

    def read(self, key: str) -> tuple[bytes, str] | None:
        """Return a small object with its etag; None if it does not exist.

        Raises:
            ArtifactCorruptError: It has more than `MAX_READ_BYTES`.
        """

    def read_range(self, key: str, start: int, length: int) -> bytes | None:
        """Return `length` bytes from `start`, fewer at the end; None if it does not exist."""

    def find(self, key: str) -> ObjectInfo | None:
        """Return the listing entry of an object; None if it does not exist."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List objects whose keys begin with `prefix`, which is empty or ends with `/`."""

    def create(self, key: str, data: bytes) -> bool:
        """Write an object that does not exist yet; return whether it holds `data` now."""

    def replace(self, key: str, data: bytes, etag: str) -> bool:
        """Overwrite the content with this `etag`; return whether the object holds `data` now."""

    def upload(self, key: str, chunks: Iterator[bytes], size_bytes: int) -> None:
        """Write or overwrite a large object; an error of `chunks` leaves it unchanged."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; missing ones are ignored."""

    def clean(self, before: float) -> None:
        """Delete leftovers of writers that were killed before that time, where they are visible."""


_TEMPORARY: Final = "tmp"
_LOCK: Final = ".lock"


class FileBucket:
    """Object store in a directory; `root` is created by the first write.

    Files appear atomically, by a link or a rename. `replace` holds a file lock, which a shared disk
    must support across its hosts (NFS does since version 4).
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.where = f"file://{root}"

    def read(self, key: str) -> tuple[bytes, str] | None:
        """Return a small object with its etag; None if it does not exist."""
        with self._errors():
            try:
                with (self._root / key).open("rb") as file:
                    status = os.fstat(file.fileno())
                    check_small(self.where, key, status.st_size)
                    return file.read(), _etag(status)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def read_range(self, key: str, start: int, length: int) -> bytes | None:
        """Return `length` bytes from `start`, fewer at the end; None if it does not exist."""
        with self._errors():
            try:
                with (self._root / key).open("rb") as file:
                    return os.pread(file.fileno(), length, start)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def find(self, key: str) -> ObjectInfo | None:
        """Return the listing entry of an object; None if it does not exist."""
        with self._errors():
            try:
                status = (self._root / key).stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return _info(key, status)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List objects whose keys begin with `prefix`, which is empty or ends with `/`."""
        with self._errors():
            for directory, _, names in os.walk(self._root / prefix):
                for name in sorted(names):
                    file = Path(directory, name)
                    key = file.relative_to(self._root).as_posix()
                    if key == _LOCK or key.startswith(f"{_TEMPORARY}/"):
                        continue
                    with suppress(FileNotFoundError):  # deleted since
                        yield _info(key, file.stat())

    def create(self, key: str, data: bytes) -> bool:
        """Write an object that does not exist yet; return whether it holds `data` now."""
        with self._errors(), self._written(key, iter((data,))) as temporary:
            try:
                os.link(temporary, self._root / key)
            except FileExistsError:
                stored = self.read(key)
                return stored is not None and stored[0] == data
            sync_directory((self._root / key).parent)
            return True

    def replace(self, key: str, data: bytes, etag: str) -> bool:
        """Overwrite the content with this `etag`; return whether the object holds `data` now."""
        with self._errors(), self._written(key, iter((data,))) as temporary, self._locked():
            stored = self.read(key)
            if stored is None or stored[1] != etag:
                return stored is not None and stored[0] == data
            self._publish(temporary, key)
            return True

    def upload(self, key: str, chunks: Iterator[bytes], size_bytes: int) -> None:  # noqa: ARG002  # others need it
        """Write or overwrite a large object; an error of `chunks` leaves it unchanged."""
        with self._errors(), self._written(key, chunks) as temporary:
            self._publish(temporary, key)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; missing ones are ignored."""
        with self._errors():
            for key in keys:
                (self._root / key).unlink(missing_ok=True)

    def clean(self, before: float) -> None:
        """Delete leftovers of writers that were killed before that time."""
        with self._errors():
            for file in (self._root / _TEMPORARY).glob("*"):
                with suppress(FileNotFoundError):  # its writer just ended
                    if file.stat().st_mtime < before:
                        file.unlink()

    def _publish(self, temporary: Path, key: str) -> None:
        move(temporary, self._root / key)

    @contextmanager
    def _written(self, key: str, chunks: Iterator[bytes]) -> Iterator[Path]:
        """Yield a flushed temporary file with `chunks` on the same disk, deleted afterwards."""
        (self._root / _TEMPORARY).mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._root / _TEMPORARY)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            (self._root / key).parent.mkdir(parents=True, exist_ok=True)
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._root / _LOCK).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise FailedPreconditionError(f"cannot use {self.where}: {reason}") from error


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(
        key=key, size_bytes=status.st_size, modified_at=status.st_mtime, etag=_etag(status)
    )


def _etag(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
