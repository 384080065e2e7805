"""What does this machine have for replicas? Cores and memory that this process may use."""

from pathlib import Path
from typing import Final

from headrace.core.spec_scale import BudgetSpec
from headrace.engine import usable_cores

_MEMORY_SHARE: Final = 0.9
"""The rest is for the system, the gateway and the control plane."""
_CGROUP: Final = Path("/sys/fs/cgroup")
_MEMINFO: Final = Path("/proc/meminfo")


def machine_budget(
    wanted: BudgetSpec | None = None, *, cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO
) -> BudgetSpec:
    """What all replicas together may use: as wanted, else what there is.

    Args:
        wanted: Its None fields are filled in.
        cgroup: Where this container's limits stand (cgroup v2).
    """
    wanted = wanted or BudgetSpec()
    cpus, memory = wanted.cpus, wanted.memory_bytes
    if cpus is None:
        cpus = min(float(usable_cores()), _cpu_limit(cgroup / "cpu.max") or float("inf"))
    if memory is None:
        known = [_memory_limit(cgroup / "memory.max"), _total_memory(meminfo)]
        limits = [limit for limit in known if limit is not None]
        memory = int(min(limits) * _MEMORY_SHARE) if limits else None
    return BudgetSpec(cpus=cpus, memory_bytes=memory)


def _cpu_limit(path: Path) -> float | None:
    """Cores by `cpu.max`: microseconds per period, or `max`."""
    words = _words(path)
    if len(words) != 2 or not all(word.isdigit() for word in words):  # noqa: PLR2004  # quota, period
        return None
    quota, period = int(words[0]), int(words[1])
    return quota / period if quota and period else None


def _memory_limit(path: Path) -> int | None:
    """Bytes by `memory.max`, which may say `max`."""
    words = _words(path)
    return int(words[0]) if words and words[0].isdigit() else None


def _total_memory(path: Path) -> int | None:
    """Bytes of `MemTotal`, which stands there in kB."""
    words = _words(path)
    if "MemTotal:" not in words:
        return None
    return int(words[words.index("MemTotal:") + 1]) * 1024


def _words(path: Path) -> list[str]:
    try:
        return path.read_text("ascii").split()
    except (OSError, UnicodeDecodeError):
        return []
