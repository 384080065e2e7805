"""What do the processes of the system use: processor time and memory?"""

from collections.abc import Mapping

from headrace.control.metrics import Labels, counter, gauge
from headrace.control.process import cpu_s, rss_bytes


def process_families(pids: Mapping[str, int]) -> str:
    """Processor time and memory of processes by name; those that ended meanwhile are left out."""
    times: list[tuple[Labels, float]] = []
    memory: list[tuple[Labels, float]] = []
    for name, pid in pids.items():
        labels = (("process", name),)
        used_s, resident = cpu_s(pid), rss_bytes(pid)
        if used_s is not None and resident is not None:
            times.append((labels, used_s))
            memory.append((labels, resident))
    return counter(
        "headrace_process_cpu_seconds_total", "Processor time used, in seconds.", times
    ) + gauge("headrace_process_memory_bytes", "Resident memory.", memory)
