"""Metrics and statistics of endpoints, and of all processes in one response."""

import asyncio
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from headrace.control.model.desired import POOL_PREFIX, DesiredState
from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.model.records import RolloutRecord
from headrace.core import HeadraceError, ModelNotFoundError
from headrace.core.fetch import ask, text_of
from headrace.core.processes import cpu_s, resident_bytes
from headrace.gateway import ArmStatistics, TokenStatistics
from headrace.gateway.statistics import sum_tokens
from headrace.observe import BRIEF_TWO_DIGITS_S, TWO_DIGITS_S
from headrace.observe.metrics import (
    Families,
    Family,
    HistogramSample,
    Labels,
    MetricSource,
    counter,
    gauge,
    histogram,
    merge,
)
from headrace.rollout.state import RolloutPhase

if TYPE_CHECKING:
    from headrace.control.plane.control_plane import ControlPlane

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
_NEWEST: Final = frozenset({"last_inference"})
_KEYS: Final = frozenset({"name", "version", "batch_size", "type", "id"})
"""Fields that identify rows; never summed."""


def merge_model_stats(answers: Iterable[Json]) -> list[dict[str, Json]]:
    """Merge many `{"model_stats": [...]}`: return one row per model and version, counters summed.

    Rows that are not objects are dropped.
    """
    rows: dict[tuple[str, str], dict[str, Json]] = {}
    for answer in answers:
        stats = answer.get("model_stats") if isinstance(answer, dict) else None
        for row in stats if isinstance(stats, list) else []:
            if isinstance(row, dict):
                key = (str(row.get("name", "")), str(row.get("version", "")))
                rows[key] = _add_fields(rows[key], row) if key in rows else row
    return [rows[key] for key in sorted(rows)]


def _add_fields(first: dict[str, Json], other: dict[str, Json]) -> dict[str, Json]:
    fields: dict[str, Json] = {}
    for key in {**first, **other}:
        a, b = first.get(key), other.get(key)
        if key in _NEWEST and isinstance(a, int) and isinstance(b, int):
            fields[key] = max(a, b)
        else:
            fields[key] = a if key in _KEYS and a is not None else _add(a, b)
    return fields


def _add(first: Json, other: Json) -> Json:
    match first, other:
        case dict(), dict():
            return _add_fields(first, other)
        case list(), list():
            # Lists of rows, such as `batch_stats`: rows with equal keys are summed.
            rows: dict[tuple[str, ...], Json] = {}
            for row in [*first, *other]:
                fields = row if isinstance(row, dict) else {"": row}
                key = tuple(f"{name}={fields[name]}" for name in sorted(fields) if name in _KEYS)
                rows[key] = _add(rows[key], row) if key in rows else row
            return list(rows.values())
        case None, _:
            return other
        case ((int() | float()), (int() | float())):
            return first + other
        case _:
            return first


_NO_VERSION: Final = ""
_NOTHING: Final = ArmStatistics()


def request_families(
    desired: DesiredState,
    arms: Mapping[tuple[str, str], ArmStatistics],
    bounds: Sequence[float] = BRIEF_TWO_DIGITS_S,
) -> list[Family]:
    """Return metrics of requests by endpoint, version and result, and of their latencies.

    Args:
        arms: The gateway's counts by endpoint and arm. Arms that are not in `desired` are left out.
            An empty key: no replica was available.
        bounds: Bounds of latency buckets, which are also bounds of Envoy's buckets, so that none is
            split.
    """
    counted = _by_version(desired, arms)
    requests: list[tuple[Labels, float]] = []
    latencies = []
    for (endpoint, version), of_version in counted.items():
        labels = (("endpoint", endpoint), ("version", version))
        outcomes = {"ok": 0, "error": 0, "rejected": 0, "abandoned": 0}
        for arm in of_version:
            outcomes["error"] += arm.errors
            outcomes["rejected"] += arm.rejections
            outcomes["abandoned"] += arm.abandoned
            outcomes["ok"] += arm.requests - arm.errors - arm.rejections - arm.abandoned
        requests += [((*labels, ("outcome", name)), count) for name, count in outcomes.items()]
        if any(arm.requests for arm in of_version):
            latencies.append(_latency(labels, of_version, bounds))
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


_FIRST_TOKEN_BOUNDS_S: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
_PER_TOKEN_BOUNDS_S: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
)  # fmt: skip
_TIMES: Final = (
    ("first_token_us", "time_to_first_token", _FIRST_TOKEN_BOUNDS_S, "the first token"),
    ("per_token_us", "time_per_output_token", _PER_TOKEN_BOUNDS_S, "each further token"),
)


def token_families(statistics: TokenStatistics) -> list[Family]:
    """Return metrics of tokens and of streams; names and buckets of times are OpenTelemetry's.

    https://github.com/open-telemetry/semantic-conventions-genai
    """
    counts: list[tuple[Labels, float]] = []
    unknown: list[tuple[Labels, float]] = []
    for use in statistics.counts:
        labels = tuple((name, getattr(use, name)) for name in ("endpoint", "version", "credential"))
        counts += [
            ((*labels, ("type", name)), getattr(use, name))
            for name in ("input", "cached", "output", "reasoning")
        ]
        unknown.append((labels, use.unknown))
    times = []
    for name, metric, bounds, what in _TIMES:
        samples = [
            _latency(
                (("gen_ai_request_model", endpoint), ("version", version)),
                [ArmStatistics(latency=buckets)],
                bounds,
            )
            for (endpoint, version), buckets in sorted(statistics.times.get(name, {}).items())
        ]
        text = f"Seconds to {what} of streams, as the gateway measures."
        times.append(histogram(f"gen_ai_server_{metric}_seconds", text, samples))
    return [
        counter(
            "headrace_tokens_total",
            "Tokens that servers of OpenAI's API counted: input, of which cached; output, of which "
            "reasoning.",
            counts,
        ),
        counter(
            "headrace_responses_without_usage_total",
            "Responses with status 200 whose tokens are not known.",
            unknown,
        ),
        *times,
    ]


def rollout_families(rollouts: Mapping[str, RolloutRecord]) -> list[Family]:
    """Return metrics of each endpoint's newest rollout: its phase and the new version's share."""
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
    """Return metrics of desired and ready replicas by version."""
    desired: Counter[tuple[str, str]] = Counter()
    for endpoint in effective.endpoints:
        for arm in endpoint.arms:
            if arm.revision.upstream is None and not arm.revision.pool:
                count = 0 if endpoint.scaled_to_zero else arm.replicas
                desired[endpoint.name, arm.revision.version] += count
    ready: Counter[tuple[str, str]] = Counter()
    for replica in replicas:
        ready[replica.endpoint, replica.version] += replica.phase is ReplicaPhase.READY
    samples: list[tuple[Labels, float]] = []
    for endpoint_name, version in sorted({*desired, *ready}):
        labels = (("endpoint", endpoint_name), ("version", version))
        for state, counts in (("desired", desired), ("ready", ready)):
            samples.append(((*labels, ("state", state)), counts[endpoint_name, version]))
    meaning = "Replicas that should run, and that are ready."
    return [gauge("headrace_replicas", meaning, samples)]


def process_families(pids: Mapping[str, int]) -> list[Family]:
    """Return CPU time and memory of processes by name; processes that exited are left out."""
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
    """Return all versions of each endpoint with their arms, including versions without requests."""
    by_version: defaultdict[tuple[str, str], list[ArmStatistics]] = defaultdict(list)
    for endpoint in desired.endpoints:
        for key in (*(arm.key for arm in endpoint.arms), _NO_VERSION):
            counted = arms.get((endpoint.name, key))
            if key or counted is not None:
                version = key.partition("~")[0]
                by_version[endpoint.name, version].append(counted or _NOTHING)
    return by_version


def _latency(
    labels: Labels, arms: Iterable[ArmStatistics], bounds: Sequence[float]
) -> HistogramSample:
    """Return the latency histogram; its sum uses the buckets' middles, 5 % off at most."""
    below = [0] * (len(bounds) + 1)
    total_s = 0.0
    for arm in arms:
        index = 0
        for (lower, width), count in sorted(arm.latency.items()):
            while index < len(bounds) and bounds[index] <= lower:
                index += 1
            below[index] += count
            total_s += (lower + width / 2) * count
    for index in range(1, len(below)):
        below[index] += below[index - 1]
    return HistogramSample(labels=labels, bounds=bounds, below=below, sum=total_s)


_SCRAPE_TIMEOUT_S: Final = 1.0
_COUNTS_TIMEOUT_S: Final = 5.0  # of thousands of endpoints they are megabytes
_ENVOYS: Final = (
    "Envoy's own: https://www.envoyproxy.io/docs/envoy/latest/operations/stats_overview"
)


async def all_metrics(plane: "ControlPlane", *, full: bool) -> Families:
    """Return the metrics of all processes; samples of replicas are labelled by replica.

    Args:
        full: Whether to include all of Envoy's buckets and metrics, and KServe's: five times as
            much.
    """
    plane.telemetry.note_metrics_read()
    replicas = _ready_replicas(plane)
    requests, gpus, gateway_text, replica_texts = await asyncio.gather(
        _request_families(plane, full=full),
        asyncio.to_thread(plane.telemetry.gpus.families),
        _gateway_stats(plane, full=full),
        asyncio.gather(*(_scrape(replica.address, full=full) for replica in replicas)),
    )
    sources = [
        MetricSource(text=text, labels={"replica": replica.name})
        for replica, text in zip(replicas, replica_texts, strict=True)
    ]
    sources += await plane.workloads.streams.metrics()
    sources.append(MetricSource(text=gateway_text, help=_ENVOYS))
    own = [*own_families(plane), *requests, *gpus]
    # Thousands of replicas report a million lines, and the event loop must stay responsive.
    return await asyncio.to_thread(merge, own, sources)


async def all_model_statistics(
    plane: "ControlPlane", name: str = "", version: str = "", *, only: frozenset[str] | None = None
) -> dict[str, Json]:
    """Return Triton's statistics, summed over the replicas of each model version.

    Args:
        only: Limits the result to these endpoints; None for all.

    Raises:
        ModelNotFoundError: No replica serves `name`.
    """
    replicas = [
        replica
        for replica in _ready_replicas(plane)
        if name in {"", replica.endpoint} or replica.endpoint.startswith(POOL_PREFIX)
    ]
    merged = merge_model_stats(await asyncio.gather(*map(_statistics, replicas)))
    rows = [
        row
        for row in merged
        if name in {"", row.get("name")}
        and version in {"", row.get("version")}
        and (only is None or row.get("name") in only)
    ]
    served = {(replica.endpoint, replica.version) for replica in replicas}
    if name and not rows and not any(name == n and version in {"", v} for n, v in served):
        raise ModelNotFoundError(name, version)
    return {"model_stats": [*rows]}


def _ready_replicas(plane: "ControlPlane") -> list[Replica]:
    replicas = plane.reconciling.reconciler.replicas.values()
    return [replica for replica in replicas if replica.phase is ReplicaPhase.READY]


async def _gateway_stats(plane: "ControlPlane", *, full: bool) -> str:
    try:
        async with asyncio.timeout(_SCRAPE_TIMEOUT_S):
            return await plane.reconciling.gateway_supervisor.stats(full=full)
    except (HeadraceError, TimeoutError):
        return ""


async def _request_families(plane: "ControlPlane", *, full: bool) -> list[Family]:
    try:
        async with asyncio.timeout(_COUNTS_TIMEOUT_S):
            statistics = await plane.reconciling.gateway_supervisor.endpoint_statistics()
            tokens = await plane.reconciling.gateway_supervisor.token_statistics()
    except (HeadraceError, TimeoutError):
        return []  # a gap: zeros would look like a counter reset
    counts = sum_tokens([*tokens.counts, *plane.telemetry.tokens.of_agents])
    tokens = replace(tokens, counts=counts)
    bounds = TWO_DIGITS_S if full else BRIEF_TWO_DIGITS_S
    requests = await asyncio.to_thread(
        request_families, plane.target_state.effective, statistics.arms, bounds
    )
    return [*requests, *(token_families(tokens) if tokens.counts else ())]


def _processes(plane: "ControlPlane") -> dict[str, int]:
    """Return process ids by name."""
    replicas = plane.reconciling.reconciler.replicas.values()
    running = {replica.name: replica.pid for replica in replicas}
    running |= {"control": os.getpid(), "gateway": plane.reconciling.gateway_supervisor.pid}
    running |= plane.workloads.streams.pids()
    return {name: pid for name, pid in running.items() if pid is not None}


def own_families(plane: "ControlPlane") -> list[Family]:
    """Return metrics of the control plane itself."""
    replicas = plane.reconciling.reconciler.replicas.values()
    tls = plane.reconciling.gateway_supervisor.tls
    return [
        counter(
            "headrace_limit_refusals_total",
            "Requests that the service refused.",
            () if plane.reconciling.limits is None else plane.reconciling.limits.refusals(),
        ),
        gauge(
            "headrace_control_generation",
            "Of the desired state.",
            [((), plane.target_state.desired.generation)],
        ),
        gauge(
            "headrace_control_gateway_ready",
            "1 while the gateway serves.",
            [((), plane.reconciling.gateway_supervisor.is_ready)],
        ),
        gauge(
            "headrace_control_replica_ready",
            "1 while the replica is ready.",
            [(_labels(replica), replica.phase is ReplicaPhase.READY) for replica in replicas],
        ),
        gauge(
            "headrace_control_replica_restarts",
            "Starts after the first.",
            [(_labels(replica), replica.restarts) for replica in replicas],
        ),
        *plane.reconciling.gateway_supervisor.families(),
        *plane.reconciling.reconciler.families(),
        *plane.telemetry.drift.families(),
        *plane.telemetry.rows.families(),
        *([] if tls is None else tls.certificates.families()),
        *rollout_families(plane.target_state.rollouts),
        *replica_families(plane.target_state.effective, replicas),
        *process_families(_processes(plane)),
        *plane.telemetry.alerting.families(),
        *plane.telemetry.recordings.families(),
        *plane.telemetry.payloads.families(),
        *plane.workloads.materializer.families(),
        *plane.workloads.jobs.families(),
        *plane.workloads.skew.families(),
        *plane.workloads.streams.families(),
    ]


def _labels(replica: Replica) -> Labels:
    return (
        ("endpoint", replica.endpoint),
        ("version", replica.version),
        ("replica", replica.name),
    )


async def _scrape(address: str, *, full: bool) -> str:
    path = "/metrics?exemplars" if full else "/metrics?exemplars&brief"
    return await ask(address, path, text_of, timeout_s=_SCRAPE_TIMEOUT_S) or ""


async def _statistics(replica: Replica) -> Json:
    """Return statistics of every model in the process: a pool's process serves several."""
    path, decode = "/v2/models/stats", msgspec.json.decode
    return await ask(replica.address, path, decode, timeout_s=_SCRAPE_TIMEOUT_S)
