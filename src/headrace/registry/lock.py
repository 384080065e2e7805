"""One writer at a time, over threads and processes."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.core import UnavailableError

_POLL_S = 0.005


@contextmanager
def exclusive(file: Path, *, timeout_s: float) -> Iterator[None]:
    """Hold the lock on `file` for the block; the kernel frees it if the process dies.

    Raises:
        UnavailableError: Somebody else held it for `timeout_s`.
    """
    # A descriptor of its own: the lock then also keeps out other threads of this process.
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _acquire(descriptor, file, timeout_s)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, file: Path, timeout_s: float) -> None:
    give_up_at = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up_at:
                msg = f"another process has held {file} for {timeout_s:g} s; try again"
                raise UnavailableError(msg) from None
            time.sleep(_POLL_S)
        else:
            return
