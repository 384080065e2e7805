"""Who used the processors while something was measured: ours, by part, or somebody else.

A shared machine makes any figure lie. Everything we start carries two environment variables, so its
processor time can be told from that of strangers wherever it sits in the process tree.
"""

import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RUN_VARIABLE: Final = "HEADRACE_BENCH_RUN"
PART_VARIABLE: Final = "HEADRACE_BENCH_PART"
RUN_ID: Final = str(os.getpid())
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
BENCH: Final = "bench"
LOAD: Final = "load"
OTHER: Final = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Processor seconds used so far.

    `busy_s`: by all processes of the machine; `stolen_s`: by other virtual machines; `by_process`:
    by each of ours, with its part; `children_s`: by our children that ended, the load tools.
    """

    now: float
    busy_s: float
    stolen_s: float
    by_process: Mapping[tuple[int, str], float]
    children_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Cores in use on average between two readings."""

    by_part: Mapping[str, float]
    foreign: float
    stolen: float


def usage(before: Reading, after: Reading) -> Usage:
    """What each part used between two readings, and what nobody of ours did."""
    wall = max(after.now - before.now, 1e-9)
    parts: dict[str, float] = {}
    for (pid, part), seconds in after.by_process.items():
        spent = seconds - before.by_process.get((pid, part), 0.0)
        parts[part] = parts.get(part, 0.0) + spent / wall
    parts[LOAD] = parts.get(LOAD, 0.0) + (after.children_s - before.children_s) / wall
    foreign = (after.busy_s - before.busy_s) / wall - sum(parts.values())
    stolen = (after.stolen_s - before.stolen_s) / wall
    return Usage(by_part=parts, foreign=max(foreign, 0.0), stolen=stolen)


def read(now: float) -> Reading:
    """Take a reading; a few milliseconds."""
    busy, stolen = parse_stat(Path("/proc/stat").read_text())
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Reading(
        now=now,
        busy_s=busy,
        stolen_s=stolen,
        by_process={(pid, part): process_s(pid) for pid, part in ours()},
        children_s=children.ru_utime + children.ru_stime,
    )


def parse_stat(text: str) -> tuple[float, float]:
    """Seconds in processes and seconds stolen, from `/proc/stat`.

    Interrupts are left out: no process is charged for them, and loopback traffic causes many.
    """
    fields = [int(value) for value in text.split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _iowait, _irq, _softirq, stolen = fields[:8]
    return (user + nice + system) / TICKS_PER_S, stolen / TICKS_PER_S


def ours() -> list[tuple[int, str]]:
    """Every living process that this run started, and itself, with its part."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    marks = {pid: mark for pid in pids if (mark := _part(Path(f"/proc/{pid}")))}
    parents = {pid: _parent(pid) for pid in pids}
    parts = {pid: inherited(pid, marks, parents) for pid in pids if pid != os.getpid()}
    return [(os.getpid(), BENCH), *[(pid, part) for pid, part in parts.items() if part]]


def inherited(pid: int, marks: Mapping[int, str], parents: Mapping[int, int]) -> str:
    """The part of a process: its own mark, else that of the nearest marked ancestor; or empty.

    A process that gives itself a title (Ray's workers do) writes over its marks.
    """
    found = ""
    while pid in parents:
        found = marks.get(pid, "") or found
        if found not in {"", OTHER}:
            return found
        pid = parents[pid]
    return found


def _parent(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[1])


def process_s(pid: int) -> float:
    """Processor seconds of a process and of its children that ended, except of our own."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    values = text.rpartition(")")[2].split()
    user, system, children_user, children_system = (int(value) for value in values[11:15])
    if pid == os.getpid():
        return (user + system) / TICKS_PER_S
    return (user + system + children_user + children_system) / TICKS_PER_S


@contextmanager
def pinned(cores: set[int]) -> Iterator[None]:
    """Until the end of the block, what is started runs on `cores`."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pin(pid: int, cores: set[int]) -> None:
    """Move a running process, all its threads, to `cores`."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


def _part(process: Path) -> str:
    try:
        raw = (process / "environ").read_bytes()
    except OSError:
        return ""
    if f"{RUN_VARIABLE}={RUN_ID}\0".encode() not in raw:
        return ""
    mark = f"{PART_VARIABLE}=".encode()
    return next(
        (item[len(mark) :].decode() for item in raw.split(b"\0") if item.startswith(mark)), OTHER
    )
