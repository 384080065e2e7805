"""Metrics and statistics of all processes as one answer, asked of the gateway and each replica."""

import asyncio
import os
from typing import TYPE_CHECKING, Final

import msgspec

from headrace.control.desired import POOL_PREFIX
from headrace.control.endpoint_metrics import (
    process_families,
    replica_families,
    request_families,
    rollout_families,
)
from headrace.control.observed import Phase, Replica
from headrace.control.statistics import Json, merge_model_stats
from headrace.core import HeadraceError, ModelNotFoundError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.fetch import fetch
from headrace.observe import BRIEF_TWO_DIGITS_S, TWO_DIGITS_S
from headrace.observe.metrics import Families, Family, Labels, Source, counter, gauge, merge

if TYPE_CHECKING:
    from headrace.control.plane import ControlPlane

_SCRAPE_TIMEOUT_S: Final = 1.0
_COUNTS_TIMEOUT_S: Final = 5.0  # of thousands of endpoints they are megabytes
_ENVOYS: Final = (
    "Envoy's own: https://www.envoyproxy.io/docs/envoy/latest/operations/stats_overview"
)


async def all_metrics(plane: "ControlPlane", *, full: bool) -> Families:
    """All processes' metrics as one; each sample of a replica says which.

    Args:
        full: With every bucket and every metric of Envoy's, and with KServe's: five times as much.
    """
    plane.metrics_read_at = plane.clock.now()
    replicas = _ready_replicas(plane)
    requests, gpus, gateway_text, replica_texts = await asyncio.gather(
        _request_families(plane, full=full),
        asyncio.to_thread(plane.gpus.families),
        _gateway_stats(plane, full=full),
        asyncio.gather(*(_scrape(replica.address, full=full) for replica in replicas)),
    )
    sources = [
        Source(text=text, labels={"replica": replica.name})
        for replica, text in zip(replicas, replica_texts, strict=True)
    ]
    sources += await plane.streams.metrics()
    sources.append(Source(text=gateway_text, help=_ENVOYS))
    own = [*own_families(plane), *requests, *gpus]
    # Thousands of replicas tell a million lines, and the loop has others to serve.
    return await asyncio.to_thread(merge, own, sources)


async def all_model_statistics(
    plane: "ControlPlane", name: str = "", version: str = "", *, only: frozenset[str] | None = None
) -> dict[str, Json]:
    """Triton's statistics, summed over the replicas of each model version.

    Args:
        only: Of these endpoints; None for all.

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
    replicas = plane.reconciler.replicas.values()
    return [replica for replica in replicas if replica.phase is Phase.READY]


async def _gateway_stats(plane: "ControlPlane", *, full: bool) -> str:
    try:
        async with asyncio.timeout(_SCRAPE_TIMEOUT_S):
            return await plane.keeper.stats(full=full)
    except (HeadraceError, TimeoutError):
        return ""


async def _request_families(plane: "ControlPlane", *, full: bool) -> list[Family]:
    try:
        async with asyncio.timeout(_COUNTS_TIMEOUT_S):
            statistics = await plane.keeper.endpoint_statistics()
    except (HeadraceError, TimeoutError):
        return []  # a gap: zeros would read as if everything began anew
    bounds = TWO_DIGITS_S if full else BRIEF_TWO_DIGITS_S
    return await asyncio.to_thread(request_families, plane.effective, statistics.arms, bounds)


def _processes(plane: "ControlPlane") -> dict[str, int]:
    """Process ids by name."""
    replicas = plane.reconciler.replicas.values()
    running = {replica.name: replica.pid for replica in replicas}
    running |= {"control": os.getpid(), "gateway": plane.keeper.pid}
    running |= plane.streams.pids()
    return {name: pid for name, pid in running.items() if pid is not None}


def own_families(plane: "ControlPlane") -> list[Family]:
    """What the control plane itself counts."""
    replicas = plane.reconciler.replicas.values()
    tls = plane.keeper.tls
    return [
        counter(
            "headrace_limit_refusals_total",
            "Requests that the service refused.",
            () if plane.limits is None else plane.limits.refusals(),
        ),
        gauge(
            "headrace_control_generation",
            "Of the desired state.",
            [((), plane.desired.generation)],
        ),
        gauge(
            "headrace_control_gateway_ready",
            "1 while the gateway serves.",
            [((), plane.keeper.is_ready)],
        ),
        gauge(
            "headrace_control_replica_ready",
            "1 while the replica is ready.",
            [(_labels(replica), replica.phase is Phase.READY) for replica in replicas],
        ),
        gauge(
            "headrace_control_replica_restarts",
            "Starts after the first.",
            [(_labels(replica), replica.restarts) for replica in replicas],
        ),
        *plane.keeper.families(),
        *plane.drift.families(),
        *plane.rows.families(),
        *([] if tls is None else tls.certificates.families()),
        *rollout_families(plane.aims.rollouts),
        *replica_families(plane.effective, replicas),
        *process_families(_processes(plane)),
        *plane.alerting.families(),
        *plane.recordings.families(),
        *plane.payloads.families(),
        *plane.materializer.families(),
        *plane.jobs.families(),
        *plane.skew.families(),
        *plane.streams.families(),
    ]


def _labels(replica: Replica) -> Labels:
    return (
        ("endpoint", replica.endpoint),
        ("version", replica.version),
        ("replica", replica.name),
    )


async def _scrape(address: str, *, full: bool) -> str:
    path = "/metrics?exemplars" if full else "/metrics?exemplars&brief"
    try:
        answer = await fetch(address, path, timeout_s=_SCRAPE_TIMEOUT_S)
    except HeadraceError:
        return ""
    return answer.body.decode("utf-8", "replace") if answer.status == 200 else ""  # noqa: PLR2004  # HTTP's OK


async def _statistics(replica: Replica) -> Json:
    """Of every model that the process serves: a pool's serves many."""
    try:
        answer = await fetch(replica.address, "/v2/models/stats", timeout_s=_SCRAPE_TIMEOUT_S)
        return msgspec.json.decode(answer.body) if answer.status == 200 else None  # noqa: PLR2004  # HTTP's OK
    except (HeadraceError, *UNDECODABLE):
        return None
