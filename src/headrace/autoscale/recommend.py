"""Recommendation of threads and memory for one replica, from its observed usage."""

import math
from typing import Final

import msgspec

from headrace.core.text import bytes_text

_MEMORY_ROOM: Final = 1.3
"""Factor over the observed peak: for a larger batch than before, and allocator fragmentation."""
_BURST_ROOM: Final = 1.5
_MEMORY_STEP: Final = 16 << 20
_ENOUGH_REQUESTS: Final = 100
_ENOUGH_BUSY_S: Final = 1.0
_ONE_THREAD: Final = 1.15
"""Maximum cores per busy run of a single-threaded run."""


class ReplicaUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Usage of one arm's replicas, summed over `seconds` and over the `replicas`."""

    seconds: float

    replicas: int

    answered: int
    """Number of completed requests."""

    cpu_s: float
    """Processor time."""

    busy_s: float
    """Time of all runs."""

    rss_bytes: int
    """Memory of the largest replica."""

    peak_rss_bytes: int
    """Peak memory of the largest replica."""

    intra_op_threads: int = 0
    """Configured threads of one run."""

    max_concurrent_runs: int = 0
    """Configured concurrent runs."""


class ResourceRecommendation(msgspec.Struct, frozen=True, kw_only=True):
    """Recommended resources of one replica; None where data is insufficient."""

    memory_bytes: int | None = None
    intra_op_threads: int | None = None
    max_concurrent_runs: int | None = None
    cores: float | None = None
    """Mean usage of one replica."""

    message: str = ""
    """One line with the inputs."""


def recommend(observed: ReplicaUsage, *, counts_runs: bool = True) -> ResourceRecommendation:
    """Return the recommendation.

    Args:
        counts_runs: Whether the replicas count requests and runs, as those of a language model do
            not; else threads and runs are not recommended.
    """
    if observed.seconds <= 0.0 or not observed.replicas or not observed.peak_rss_bytes:
        return ResourceRecommendation(message="no observations yet")
    memory = math.ceil(observed.peak_rss_bytes * _MEMORY_ROOM / _MEMORY_STEP) * _MEMORY_STEP
    cores = observed.cpu_s / observed.seconds / observed.replicas
    threads, runs, explanation = _threads(observed) if counts_runs else (None, None, "")
    peak, current = bytes_text(observed.peak_rss_bytes), bytes_text(observed.rss_bytes)
    parts = (
        f"memory {bytes_text(memory)} (peak {peak}, now {current})",
        explanation,
        f"{cores:.2f} cores used per replica",
    )
    return ResourceRecommendation(
        memory_bytes=memory,
        intra_op_threads=threads,
        max_concurrent_runs=runs,
        cores=cores,
        message="; ".join(filter(None, parts)),
    )


def _threads(observed: ReplicaUsage) -> tuple[int | None, int | None, str]:
    """Return threads of one run, concurrent runs, and the reason."""
    is_little = observed.answered < _ENOUGH_REQUESTS or observed.busy_s < _ENOUGH_BUSY_S
    if is_little or not observed.max_concurrent_runs:
        return None, None, f"threads: not enough data ({observed.answered} requests)"
    per_run = observed.cpu_s / observed.busy_s
    at_once = observed.busy_s / observed.seconds / observed.replicas
    used = f"{per_run:.1f} cores per run, {at_once:.1f} of {observed.max_concurrent_runs} at once"
    threads = min(max(round(per_run), 1), max(observed.intra_op_threads, 1))
    if per_run <= _ONE_THREAD:
        threads = 1
    # Half of the mean is headroom for bursts; never more than configured.
    runs = min(max(math.ceil(at_once * _BURST_ROOM), 1), observed.max_concurrent_runs)
    return threads, runs, f"intra_op_threads {threads}, max_concurrent_runs {runs} ({used})"
