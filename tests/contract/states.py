"""States, rollouts and events as stores get them, small and different from each other."""

from typing import Any

import msgspec

from headrace.control.model.desired import (
    DesiredArm,
    DesiredEndpoint,
    DesiredState,
    make_revision,
)
from headrace.control.model.records import Event, RolloutRecord
from headrace.core import EndpointName, ReplicaSettings
from headrace.core.spec.rollout import AbSpec, CanarySpec, StickySpec
from headrace.core.spec.scale import AutoscaleSpec, PoolSpec
from headrace.gateway import MirrorTarget
from headrace.rollout.outcomes import MetricVerdict, Outcome, RolloutVerdict
from headrace.rollout.state import RolloutPhase, RolloutState, TrafficShares

POOL = PoolSpec(name="p", replicas=2, memory_bytes=1 << 30, max_loaded=8, load_timeout_s=60.0)


def arm(name: str, version: str, weight: int, replicas: int = 1) -> DesiredArm:
    settings = ReplicaSettings(model_name=name, model_version=version, path=f"/models/{name}")
    revision = make_revision(
        endpoint=EndpointName(name), model=f"{name}:{version}", settings=settings
    )
    return DesiredArm(revision=revision, weight=weight, replicas=replicas)


def endpoint(name: str, generation: int = 1, *, version: str = "1") -> DesiredEndpoint:
    return DesiredEndpoint(
        name=EndpointName(name),
        timeout_s=None,
        arms=(arm(name, version, 90), arm(name, f"{version}0", 10)),
        generation=generation,
    )


def full_endpoint(name: str, generation: int = 1) -> DesiredEndpoint:
    """One that has everything an endpoint can have."""
    return msgspec.structs.replace(
        endpoint(name, generation),
        timeout_s=2.5,
        sticky=StickySpec(header="x-user", salt="ü"),
        mirror=MirrorTarget(key="10", percent=5),
        split_id="r1",
        rollout=CanarySpec(baseline=True),
        autoscale=AutoscaleSpec(min_replicas=0),
        slo_latency_s=0.15,
        scaled_to_zero=True,
    )


def state(generation: int, *endpoints: DesiredEndpoint) -> DesiredState:
    entries = [{"name": str(e.name), "model": e.arms[0].revision.model} for e in endpoints]
    return DesiredState(
        generation=generation, spec={"version": 1, "endpoints": entries}, endpoints=endpoints
    )


def verdict() -> RolloutVerdict:
    errors = MetricVerdict(
        metric="errors", outcome=Outcome.WAIT, reason="few", effect=0.01, samples=(3, 4)
    )
    return RolloutVerdict(
        outcome=Outcome.WAIT, at=12.5, metrics=(errors,), explanation="errors: few"
    )


def rollout(
    id_: str = "r1",
    of: str = "m",
    *,
    phase: RolloutPhase = RolloutPhase.PROGRESSING,
    evidence: bytes = b"\x00\xff",
) -> RolloutRecord:
    return RolloutRecord(
        id=id_,
        endpoint=of,
        created=10.0,
        source=endpoint(of),
        target=endpoint(of, 2, version="2"),
        state=RolloutState(
            settings=AbSpec(weight=30),
            phase=phase,
            began=10.0,
            since=11.0,
            traffic=TrafficShares(candidate=30),
            verdict=verdict(),
        ),
        actor="ann",
        evidence=evidence,
    )


def event(of: str = "m", message: str = "one", **changes: Any) -> Event:  # noqa: ANN401  # any field
    plain = Event(
        at=1.5,
        endpoint=of,
        kind="scale",
        reason="ScaledUp",
        message=message,
        generation=3,
        rollout="r1",
        actor="ann",
        data={"p99_s": 0.2, "in": [1, None]},
    )
    return msgspec.structs.replace(plain, **changes)
