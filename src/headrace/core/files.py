"""Files and directories: bounded reads, atomic replacement, durable renames and locks."""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from headrace.core.errors import FailedPreconditionError, HeadraceError, UnavailableError

TEMPORARY: Final = ".tmp"
"""Suffix of an incomplete file; a crash leaves `.NAME.HEX.tmp`."""
_CANNOT_SYNC: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF})
"""Errors of file systems that cannot flush a directory, such as some network file systems."""


def read_regular(path: Path, *, limit_bytes: int, follow: bool = True) -> bytes:
    """Return the content of an untrusted file.

    Named pipes do not block, and devices are not read.

    Args:
        follow: Whether `path` itself may be a symbolic link.

    Raises:
        OSError: It cannot be read, is not a regular file, or is larger than `limit_bytes`.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(limit_bytes + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit_bytes:
        raise OSError(errno.EFBIG, f"larger than the limit of {limit_bytes} bytes", str(path))
    return data


@contextmanager
def replacing(path: Path, *, mode: int | None = 0o600, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a new file that replaces `path` when the block ends without an error.

    Readers and crashes see the old file or the new one, never a part.

    Args:
        mode: Permissions of the new file; None for what the umask allows.
        durable: The content and the new name are on disk when the block ends. Without it a loss of
            power may lose the new content, which is acceptable for data about running processes.

    Raises:
        OSError: The disk is full or the directory cannot be written; `path` is as before.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666 if mode is None else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            if mode is not None:
                os.fchmod(descriptor, mode)
            if durable:
                file.flush()
                os.fsync(descriptor)
        move(temporary, path, durable=durable)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_output(path: Path) -> Iterator[IO[bytes]]:
    """Open an output file that gets its name, on disk, when the block succeeds.

    Raises:
        FailedPreconditionError: The disk is full, or the folder is not writable.
    """
    try:
        with replacing(path, mode=None) as file:
            yield file
    except OSError as error:
        reason = error.strerror or str(error)
        raise FailedPreconditionError(f"{path} cannot be written: {reason}") from error


def write_atomic(
    path: Path, data: bytes, *, mode: int | None = 0o600, durable: bool = True
) -> None:
    """Replace `path` by `data`, with the arguments and errors of `replacing`."""
    with replacing(path, mode=mode, durable=durable) as file:
        file.write(data)


def move(source: Path, target: Path, *, durable: bool = True) -> None:
    """Rename a file or directory, replacing a file at `target`.

    Args:
        durable: The new name is on disk when this returns. The caller flushes the content of
            `source` before.
    """
    source.replace(target)
    if durable:
        sync_directory(target.parent)


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to disk, if the file system can."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def make_private_dir(path: Path) -> Path:
    """Create `path` and missing parents, readable by their owner only."""
    if not path.parent.is_dir():
        make_private_dir(path.parent)
    path.mkdir(exist_ok=True, mode=0o700)
    return path


_POLL_S = 0.005


@contextmanager
def exclusive(file: Path, *, timeout_s: float, busy: HeadraceError | None = None) -> Iterator[None]:
    """Hold the lock on `file` for the block; the kernel releases it if the process dies.

    Raises:
        HeadraceError: Another process or thread held it for `timeout_s`: `busy`, or without it an
            UnavailableError.
    """
    # A separate descriptor per call, so that the lock also excludes other threads of this process.
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _acquire(descriptor, file, timeout_s, busy)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, file: Path, timeout_s: float, busy: HeadraceError | None) -> None:
    give_up_at = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up_at:
                msg = f"another process has held {file} for {timeout_s:g} s; try again"
                raise busy or UnavailableError(msg) from None
            time.sleep(_POLL_S)
        else:
            return


def size_of(path: Path) -> int:
    """Return the file's size in bytes, 0 if it does not exist."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
