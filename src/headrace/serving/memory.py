"""What does this process use, of memory and processor time, and what can it give back?"""

import ctypes
import resource
from pathlib import Path
from typing import Final

_PAGE_BYTES: Final = resource.getpagesize()
_STATM: Final = Path("/proc/self/statm")
_STATUS: Final = Path("/proc/self/status")
_MEMINFO: Final = Path("/proc/meminfo")
_AVAILABLE: Final = "MemAvailable:"
_PEAK: Final = "VmHWM:"


def resident_bytes(pid: int | None = None) -> int:
    """Resident memory; of another process, 0 once it is gone."""
    if pid is None:
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def available_bytes() -> int:
    """What this machine can give without swapping."""
    text = _MEMINFO.read_text()
    start = text.find(_AVAILABLE) + len(_AVAILABLE)
    return int(text[start:].split(maxsplit=1)[0]) * 1024


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


def cpu_s() -> float:
    """Processor time of all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
