"""Memory of this process and this machine, and return of freed memory to the system."""

import asyncio
import ctypes
import resource
import threading
from pathlib import Path
from typing import Final

_PAGE_BYTES: Final = resource.getpagesize()
_STATM: Final = Path("/proc/self/statm")
_STATUS: Final = Path("/proc/self/status")
_MEMINFO: Final = Path("/proc/meminfo")
_AVAILABLE: Final = "MemAvailable:"
_PEAK: Final = "VmHWM:"
_MIN_MEMORY_BYTES: Final = 2 << 30
_TIMES_SIZE: Final = 6
_OF_AVAILABLE: Final = 0.8
_PAUSE_S: Final = 2.0
LARGE_ABOVE: Final = 1 << 20
"""The decoded form of a larger body may be many times larger, and is worth returning to the system.
"""


def available_bytes() -> int:
    """Return the bytes that this machine can provide without swapping."""
    text = _MEMINFO.read_text()
    start = text.find(_AVAILABLE) + len(_AVAILABLE)
    return int(text[start:].split(maxsplit=1)[0]) * 1024


def memory_limit_bytes(size_bytes: int) -> int:
    """Return the memory limit of a load check for a model of this size on disk.

    It is a multiple of the size, for what loading needs besides the weights, and never includes
    memory that other processes need.
    """
    available = available_bytes()
    return min(max(_MIN_MEMORY_BYTES, _TIMES_SIZE * size_bytes), int(available * _OF_AVAILABLE))


def size_bytes(path: Path) -> int:
    """Return the size of the model on disk."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def private_bytes() -> int:
    """Return resident memory without a backing file, which would have to be swapped."""
    _, resident, shared = _STATM.read_text().split()[:3]
    return (int(resident) - int(shared)) * _PAGE_BYTES


def peak_bytes() -> int:
    """Return the peak resident memory; `getrusage` would include the parent's before the start."""
    text = _STATUS.read_text()
    start = text.find(_PEAK)
    return int(text[start + len(_PEAK) :].split(maxsplit=1)[0]) * 1024 if start >= 0 else 0


def give_back() -> None:
    """Return freed memory to the system, which glibc would keep; takes milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class MemoryTrimmer:
    """Timer that returns memory two seconds after the last large body. For one event loop."""

    __slots__ = ("_timer",)

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def had(self, body_bytes: int) -> None:
        """Record that a request with a body of that size was answered."""
        if body_bytes <= LARGE_ABOVE:
            return
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(_PAUSE_S, _release_in_thread)

    def stop(self) -> None:
        """Cancel the timer when the process ends."""
        if self._timer is not None:
            self._timer.cancel()


def _release_in_thread() -> None:
    threading.Thread(target=give_back, name="give back", daemon=True).start()
