"""CPU use of other processes, and cache eviction."""

import contextlib
import math
import os
import resource
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np

_PROC: Final = Path("/proc")
_IDLE, _IOWAIT = 3, 4
_PARENT: Final = 1  # fields of /proc/PID/stat by proc(5), counted from 0 after the name
_CPU_TIMES: Final = slice(11, 15)  # utime, stime, and those of reaped children
_POLL_EVERY_S: Final = 1.0
TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
"""Resolution of the kernel's CPU counters."""


class CpuWatch(Protocol):
    """Watch of other processes' CPU use on the cores of this process."""

    @property
    def cpus(self) -> int:
        """Number of watched cores."""

    def foreign_s(self) -> float | None:
        """Return the CPU seconds of other processes since a fixed point; None if unknown."""


class ProcStat:
    """CPU watch by `/proc/stat`: busy time minus that of this process and its children.

    Children are updated once a second. `cores`: None for those of the affinity.

    It counts other processes, interrupts, and time that the hypervisor gave to other machines
    (steal). Only cores of this process's affinity count: in a container with a cpuset, its own. In
    other containers `/proc/stat` is the host's, and includes neighbours. LXCFS excludes them, and
    so does a hypervisor that reports no steal: slow windows then remain unmarked.
    """

    def __init__(
        self,
        *,
        cores: Collection[int] | None = None,
        proc: Path = _PROC,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proc = proc
        self._monotonic = monotonic
        self._cores = os.sched_getaffinity(0) if cores is None else cores
        self._is_blind = False
        self._family: set[int] = set()
        self._look_again_at = -math.inf

    @property
    def cpus(self) -> int:
        """Number of cores of this process."""
        return len(self._cores)

    def foreign_s(self) -> float | None:
        """Return the CPU seconds of other processes since a fixed point."""
        if self._is_blind:
            return None
        try:
            text = (self._proc / "stat").read_text("ascii")
            at_s = self._monotonic()
            idle_s = idle_seconds(text, self._cores)
        except (OSError, ValueError, IndexError):
            self._is_blind = True
            return None
        if at_s >= self._look_again_at:
            pids = (int(entry.name) for entry in os.scandir(self._proc) if entry.name.isdigit())
            self._family = descendants(_stats(self._proc, pids), os.getpid())
            self._look_again_at = at_s + _POLL_EVERY_S
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        own_s = time.process_time() + children.ru_utime + children.ru_stime
        return (
            len(self._cores) * at_s
            - idle_s
            - (own_s + cpu_seconds(_stats(self._proc, self._family).values()))
        )


def idle_seconds(stat: str, cores: Collection[int]) -> float:
    """Return the total idle seconds of cores from `/proc/stat`.

    Raises:
        ValueError: A core is missing, or all counts are zero, as in some sandboxes.
    """
    lines = {words[0]: words[1:] for words in map(str.split, stat.splitlines()) if words}
    missing = [core for core in sorted(cores) if f"cpu{core}" not in lines]
    if missing:
        raise ValueError(f"core {missing[0]} is not in it")
    counts = [[int(word) for word in lines[f"cpu{core}"]] for core in cores]
    if not any(map(sum, counts)):
        raise ValueError("all its counts are 0")
    return sum(ticks[_IDLE] + ticks[_IOWAIT] for ticks in counts) * TICK_S


def descendants(stats: Mapping[int, str], pid: int) -> set[int]:
    """Return a process's living descendants.

    Args:
        stats: Text of `/proc/PID/stat` by PID.
    """
    parents = {number: int(fields[_PARENT]) for number, fields in _fields(stats)}
    family, is_growing = {pid}, True
    while is_growing:
        more = {n for n, parent in parents.items() if parent in family and n not in family}
        family |= more
        is_growing = bool(more)
    return family - {pid}


def cpu_seconds(stats: Iterable[str]) -> float:
    """Return the CPU seconds of processes and of their reaped children."""
    fields = (fields for _, fields in _fields(dict(enumerate(stats))))
    return sum(int(ticks) for words in fields for ticks in words[_CPU_TIMES]) * TICK_S


def _fields(stats: Mapping[int, str]) -> Iterator[tuple[int, Sequence[str]]]:
    for number, text in stats.items():
        # A program chooses its name, which may hold spaces and brackets: fields are counted from
        # its end.
        fields = text[text.rfind(")") + 1 :].split()
        if len(fields) >= _CPU_TIMES.stop:
            yield number, fields


def _stats(proc: Path, pids: Iterable[int]) -> Mapping[int, str]:
    stats = {}
    for pid in pids:
        try:
            stats[pid] = (proc / str(pid) / "stat").read_text("utf-8", "replace")
        except OSError:  # the process has just ended, or may not be read
            continue
    return stats


_CACHES: Final = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS: Final = {"K": 1024, "M": 1024**2, "G": 1024**3}
_LINE_BYTES: Final = 64
_BEYOND: Final = 1.25
_UNKNOWN_BYTES: Final = 64 * 1024**2
_MAX_BYTES: Final = 512 * 1024**2


class Eviction:
    """Cache eviction by writing a buffer larger than the last-level cache.

    It writes a byte to each line of the buffer. The private caches of other cores keep their
    content if the last-level cache does not include them: a model of several threads is less cold.
    """

    def __init__(self, size_bytes: int) -> None:
        self._lines = np.zeros(size_bytes, np.uint8)[::_LINE_BYTES]

    def __call__(self) -> None:
        """Evict the caches, which takes up to tens of milliseconds."""
        np.add(self._lines, 1, out=self._lines)

    @property
    def size_bytes(self) -> int:
        """Size of the buffer."""
        return self._lines.size * _LINE_BYTES


def eviction(caches: Path = _CACHES) -> Eviction:
    """Return an eviction for this processor, of at most 512 MiB.

    Virtual machines may report a shared cache of hundreds of megabytes.
    """
    largest = 0
    for path in caches.glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):  # Linux writes `307200K`
            text = path.read_text("ascii").strip()
            largest = max(largest, int(text.rstrip("KMG")) * _UNITS.get(text[-1:], 1))
    size_bytes = int(largest * _BEYOND) or _UNKNOWN_BYTES
    return Eviction(min(size_bytes, _MAX_BYTES))
