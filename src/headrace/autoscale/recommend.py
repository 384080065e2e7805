"""Recommendation of threads and memory for one replica, from what was observed."""

import math
from typing import Final

import msgspec

from headrace.core.text import bytes_text

_MEMORY_ROOM: Final = 1.3
"""Over the observed peak: a batch that is larger than any so far, and the allocator's remains."""
_BURST_ROOM: Final = 1.5
_MEMORY_STEP: Final = 16 << 20
_ENOUGH_REQUESTS: Final = 100
_ENOUGH_BUSY_S: Final = 1.0
_ONE_THREAD: Final = 1.15
"""Cores per busy run up to which a run is said to use one."""


class ReplicaUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What the replicas of one arm did, added up over `seconds` and over the `replicas` copies.

    `cpu_s`: processor time. `busy_s`: time of all runs. `answered`: requests. `rss_bytes` and
    `peak_rss_bytes`: of the largest copy. `intra_op_threads` and `max_concurrent_runs`: as set.
    """

    seconds: float
    replicas: int
    answered: int
    cpu_s: float
    busy_s: float
    rss_bytes: int
    peak_rss_bytes: int
    intra_op_threads: int = 0
    max_concurrent_runs: int = 0


class ResourceRecommendation(msgspec.Struct, frozen=True, kw_only=True):
    """What one replica should have; None for what too little is known about.

    `cores`: what one copy used on average. `message`: one line for people.
    """

    memory_bytes: int | None = None
    intra_op_threads: int | None = None
    max_concurrent_runs: int | None = None
    cores: float | None = None
    message: str = ""


def recommend(observed: ReplicaUsage) -> ResourceRecommendation:
    """The recommendation; its message says from which numbers it came."""
    if observed.seconds <= 0.0 or not observed.replicas or not observed.peak_rss_bytes:
        return ResourceRecommendation(message="nothing was observed yet")
    memory = math.ceil(observed.peak_rss_bytes * _MEMORY_ROOM / _MEMORY_STEP) * _MEMORY_STEP
    cores = observed.cpu_s / observed.seconds / observed.replicas
    threads, runs, explanation = _threads(observed)
    message = (
        f"memory {bytes_text(memory)} (peak {bytes_text(observed.peak_rss_bytes)}, now "
        f"{bytes_text(observed.rss_bytes)}); {explanation}; {cores:.2f} cores used per replica"
    )
    return ResourceRecommendation(
        memory_bytes=memory,
        intra_op_threads=threads,
        max_concurrent_runs=runs,
        cores=cores,
        message=message,
    )


def _threads(observed: ReplicaUsage) -> tuple[int | None, int | None, str]:
    """Threads of one run and runs at once, and why."""
    is_little = observed.answered < _ENOUGH_REQUESTS or observed.busy_s < _ENOUGH_BUSY_S
    if is_little or not observed.max_concurrent_runs:
        return None, None, f"threads: too little was run to say ({observed.answered} requests)"
    per_run = observed.cpu_s / observed.busy_s
    at_once = observed.busy_s / observed.seconds / observed.replicas
    used = f"{per_run:.1f} cores per run, {at_once:.1f} of {observed.max_concurrent_runs} at once"
    threads = min(max(round(per_run), 1), max(observed.intra_op_threads, 1))
    if per_run <= _ONE_THREAD:
        threads = 1
    # The mean keeps half its size for bursts; never more than there are now.
    runs = min(max(math.ceil(at_once * _BURST_ROOM), 1), observed.max_concurrent_runs)
    return threads, runs, f"intra_op_threads {threads}, max_concurrent_runs {runs} ({used})"
