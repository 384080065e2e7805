"""Memory of this process and this machine, and memory that is returned to the system."""

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
_LEAST_MEMORY_BYTES: Final = 2 << 30
_TIMES_SIZE: Final = 6
_OF_AVAILABLE: Final = 0.8
_PAUSE_S: Final = 2.0
LARGE_ABOVE: Final = 1 << 20
"""What a larger body is decoded to may be many times more, and worth giving back."""


def available_bytes() -> int:
    """What this machine can give without swapping."""
    text = _MEMINFO.read_text()
    start = text.find(_AVAILABLE) + len(_AVAILABLE)
    return int(text[start:].split(maxsplit=1)[0]) * 1024


def memory_limit_bytes(size_bytes: int) -> int:
    """How much a model of this size on disk may take while it is tried.

    Some times its size, for what loading needs besides the weights; never what others need.
    """
    available = available_bytes()
    return min(max(_LEAST_MEMORY_BYTES, _TIMES_SIZE * size_bytes), int(available * _OF_AVAILABLE))


def size_bytes(path: Path) -> int:
    """How large the model is on disk."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def private_bytes() -> int:
    """Resident memory that no file backs: what was allocated, and would have to be swapped."""
    _, resident, shared = _STATM.read_text().split()[:3]
    return (int(resident) - int(shared)) * _PAGE_BYTES


def peak_bytes() -> int:
    """The most that was ever resident; `getrusage` would count the parent's before the start."""
    text = _STATUS.read_text()
    start = text.find(_PEAK)
    return int(text[start + len(_PEAK) :].split(maxsplit=1)[0]) * 1024 if start >= 0 else 0


def give_back() -> None:
    """Return freed memory to the system, which glibc keeps otherwise; takes milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class MemoryTrimmer:
    """Gives memory back once no large body has come for two seconds. For one event loop."""

    __slots__ = ("_timer",)

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def had(self, body_bytes: int) -> None:
        """A request with a body of that size was answered."""
        if body_bytes <= LARGE_ABOVE:
            return
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(_PAUSE_S, _give_back_aside)

    def stop(self) -> None:
        """Forget it: the process ends."""
        if self._timer is not None:
            self._timer.cancel()


def _give_back_aside() -> None:
    threading.Thread(target=give_back, name="give back", daemon=True).start()
