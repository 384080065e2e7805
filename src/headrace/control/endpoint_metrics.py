"""Metrics of endpoints (requests, latency, rollouts, replicas) and of processes.

Every label is a name from the spec, a version of a model or one of few words: callers add none.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from headrace.control.desired import DesiredState
from headrace.control.observed import Phase, Replica
from headrace.control.state.records import RolloutRecord
from headrace.core.processes import cpu_s, resident_bytes
from headrace.gateway import ArmStatistics
from headrace.observe import BRIEF_TWO_DIGITS_S
from headrace.observe.metrics import (
    Family,
    HistogramSample,
    Labels,
    counter,
    gauge,
    histogram,
)
from headrace.rollout.state import Phase as RolloutPhase

_NO_VERSION: Final = ""
_NOTHING: Final = ArmStatistics()


def request_families(
    desired: DesiredState,
    arms: Mapping[tuple[str, str], ArmStatistics],
    bounds: Sequence[float] = BRIEF_TWO_DIGITS_S,
) -> list[Family]:
    """Requests by endpoint, version and how they ended, and their latencies.

    Args:
        arms: What the gateway has counted, by endpoint and arm. Arms that `desired` does not know
            are left out. An empty key: nobody was there to answer.
        bounds: Of the latencies' buckets: bounds of Envoy's as well, so that none is cut.
    """
    counted = _by_version(desired, arms)
    requests: list[tuple[Labels, float]] = []
    latencies = []
    for (endpoint, version), found in counted.items():
        labels = (("endpoint", endpoint), ("version", version))
        requests += [
            ((*labels, ("outcome", outcome)), count) for outcome, count in _outcomes(found).items()
        ]
        if any(each.requests for each in found):
            latencies.append(_latency(labels, found, bounds))
    return [
        counter(
            "headrace_endpoint_requests_total",
            "Requests by how they ended, as the gateway counts: ok, error (no fault of the "
            "caller's), rejected (the caller's mistake), abandoned (the caller left).",
            requests,
        ),
        histogram(
            "headrace_endpoint_latency_seconds",
            "Seconds from a request's first byte to its answer's, as the gateway measures.",
            latencies,
        ),
    ]


def rollout_families(rollouts: Mapping[str, RolloutRecord]) -> list[Family]:
    """Where the newest rollout of each endpoint is, and the new version's share."""
    phases: list[tuple[Labels, float]] = []
    weights: list[tuple[Labels, float]] = []
    for endpoint, record in rollouts.items():
        labels = (("endpoint", endpoint), ("rollout", record.id))
        phases += [
            ((*labels, ("phase", phase.value)), float(phase is record.state.phase))
            for phase in RolloutPhase
        ]
        if not record.state.phase.is_over:
            weights.append(((("endpoint", endpoint),), record.state.traffic.candidate))
    return [
        gauge("headrace_rollout_phase", "1 for the phase that the newest rollout is in.", phases),
        gauge(
            "headrace_rollout_weight",
            "Requests of 100 that a rollout under way sends to the new version.",
            weights,
        ),
    ]


def replica_families(effective: DesiredState, replicas: Iterable[Replica]) -> list[Family]:
    """How many replicas each version should have, and how many are ready."""
    wanted: Counter[tuple[str, str]] = Counter()
    for endpoint in effective.endpoints:
        for arm in endpoint.arms:
            if arm.revision.upstream is None and not arm.revision.pool:
                count = 0 if endpoint.scaled_to_zero else arm.replicas
                wanted[endpoint.name, arm.revision.version] += count
    ready: Counter[tuple[str, str]] = Counter()
    for replica in replicas:
        ready[replica.endpoint, replica.version] += replica.phase is Phase.READY
    samples: list[tuple[Labels, float]] = []
    for endpoint_name, version in sorted({*wanted, *ready}):
        labels = (("endpoint", endpoint_name), ("version", version))
        for state, counts in (("desired", wanted), ("ready", ready)):
            samples.append(((*labels, ("state", state)), counts[endpoint_name, version]))
    meaning = "Replicas that should run, and that are ready."
    return [gauge("headrace_replicas", meaning, samples)]


def process_families(pids: Mapping[str, int]) -> list[Family]:
    """Processor time and memory of processes by name; those that ended meanwhile are left out."""
    times: list[tuple[Labels, float]] = []
    memory: list[tuple[Labels, float]] = []
    for name, pid in pids.items():
        labels = (("process", name),)
        used_s, resident = cpu_s(pid), resident_bytes(pid)
        if used_s is not None and resident:
            times.append((labels, used_s))
            memory.append((labels, resident))
    return [
        counter("headrace_process_cpu_seconds_total", "Processor time used, in seconds.", times),
        gauge("headrace_process_memory_bytes", "Resident memory.", memory),
    ]


def _by_version(
    desired: DesiredState, arms: Mapping[tuple[str, str], ArmStatistics]
) -> Mapping[tuple[str, str], list[ArmStatistics]]:
    """Of each endpoint all versions that it has, also those without a request."""
    found: defaultdict[tuple[str, str], list[ArmStatistics]] = defaultdict(list)
    for endpoint in desired.endpoints:
        for key in (*(arm.key for arm in endpoint.arms), _NO_VERSION):
            counted = arms.get((endpoint.name, key))
            if key or counted is not None:
                version = key.partition("~")[0]
                found[endpoint.name, version].append(counted or _NOTHING)
    return found


def _outcomes(found: Iterable[ArmStatistics]) -> dict[str, int]:
    outcomes = {"ok": 0, "error": 0, "rejected": 0, "abandoned": 0}
    for arm in found:
        outcomes["error"] += arm.errors
        outcomes["rejected"] += arm.rejections
        outcomes["abandoned"] += arm.abandoned
        outcomes["ok"] += arm.requests - arm.errors - arm.rejections - arm.abandoned
    return outcomes


def _latency(
    labels: Labels, found: Iterable[ArmStatistics], bounds: Sequence[float]
) -> HistogramSample:
    """Envoy tells no sum: each request counts as the middle of its bucket, 5 % off at most."""
    below = [0] * (len(bounds) + 1)
    total_s = 0.0
    for arm in found:
        place = 0
        for (lower, width), count in sorted(arm.latency.items()):
            while place < len(bounds) and bounds[place] <= lower:
                place += 1
            below[place] += count
            total_s += (lower + width / 2) * count
    for place in range(1, len(below)):
        below[place] += below[place - 1]
    return HistogramSample(labels=labels, bounds=bounds, below=below, sum=total_s)
