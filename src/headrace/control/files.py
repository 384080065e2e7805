"""How is a file replaced so that a crash leaves the old one or the new one, never a part?"""

import contextlib
import os
import tempfile
from pathlib import Path


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace `path` by `data`.

    Args:
        durable: On disk before this returns. Without it a loss of power may lose the new content;
            enough for what describes running processes.

    Raises:
        OSError: The disk is full or the directory cannot be written; `path` is as before.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    """Make a rename itself last; some file systems cannot, and then it is not worth failing."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private_dir(path: Path) -> Path:
    """`path`, made with its parents if need be, readable by its owner only."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path
