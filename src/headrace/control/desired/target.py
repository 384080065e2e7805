"""Target state: the desired state as modified by rollouts and the autoscaler."""

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from headrace.control.gateway.routes import scaled
from headrace.control.model.desired import (
    DesiredArm,
    DesiredEndpoint,
    DesiredState,
    with_id,
)
from headrace.control.model.records import RolloutRecord
from headrace.control.reconcile.publication import Reconciling
from headrace.core.spec.rollout import needs_assignments
from headrace.gateway import MirrorTarget
from headrace.rollout.state import RolloutPhase, TrafficShares

BASELINE: Final = "baseline"
_FULL: Final = 100
Counts = Mapping[tuple[str, str], int]
"""Replica counts by endpoint and arm, as the autoscaler decided them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaTargets:
    """The autoscaler's decision: replicas by endpoint and arm, endpoints scaled to zero."""

    counts: Counts = field(default_factory=dict)
    zeroed: frozenset[str] = frozenset()


def effective(
    desired: DesiredState, rollouts: Mapping[str, RolloutRecord], scale: ReplicaTargets
) -> DesiredState:
    """Return the state that reconcilers bring about.

    Args:
        rollouts: The current rollout of each endpoint, if any.
    """
    endpoints = tuple(
        with_scale(
            # Access rules, limits and a pause apply immediately, at every step of a rollout.
            msgspec.structs.replace(
                in_force(endpoint, rollouts.get(endpoint.name)),
                access=endpoint.access,
                limits=endpoint.limits,
                paused=endpoint.paused,
            ),
            scale,
        )
        for endpoint in desired.endpoints
    )
    return msgspec.structs.replace(desired, endpoints=endpoints)


def in_force(endpoint: DesiredEndpoint, rollout: RolloutRecord | None) -> DesiredEndpoint:
    """Return `endpoint` at the current step of its rollout; unchanged without a rollout."""
    if rollout is None or not is_current(rollout, endpoint):
        return endpoint
    match rollout.state.phase:
        case RolloutPhase.SUPERSEDED:
            return endpoint
        case RolloutPhase.PROMOTED:
            return rollout.target
        case RolloutPhase.ROLLED_BACK | RolloutPhase.ABORTED | RolloutPhase.REPORTED:
            # Only the old version. If its replicas were removed, all start before it takes over.
            if rollout.state.dropped_stable:
                return rollout.source
            arms = tuple(_carrying(arm, arm.weight) for arm in rollout.source.arms)
            return msgspec.structs.replace(rollout.source, arms=arms)
        case (
            RolloutPhase.PREPARING
            | RolloutPhase.PROGRESSING
            | RolloutPhase.PAUSED
            | RolloutPhase.KEEPING
        ):
            return mixed(rollout)


def is_current(rollout: RolloutRecord, endpoint: DesiredEndpoint) -> bool:
    """Whether `rollout` leads to the desired state of `endpoint`, and not to an earlier one."""
    return rollout.generations[-1] == endpoint.generation


def mixed(rollout: RolloutRecord) -> DesiredEndpoint:
    """Return the endpoint with old and new version, weighted by the rollout's traffic.

    The candidate comes first, so a sticky caller whose key falls below its weight stays with it
    while the weight grows.
    """
    traffic = rollout.state.traffic
    arms: list[DesiredArm] = []
    if traffic.candidate_scale > 0:
        arm = rollout.target.arms[0]
        copies = _part(arm, traffic.candidate_scale)
        arms.append(msgspec.structs.replace(arm, weight=traffic.candidate, replicas=copies))
    if traffic.has_baseline:
        arms.append(_baseline(rollout, traffic))
    if traffic.has_stable:
        old = rollout.source.arms
        weights = scaled({arm.key: arm.weight for arm in old}, traffic.stable)
        arms += [_carrying(arm, weights[arm.key]) for arm in old]
    mirror = sticky = None
    if traffic.mirror_percent:
        key = rollout.target.arms[0].key
        mirror = MirrorTarget(key=key, percent=traffic.mirror_percent)
    if rollout.target.sticky is not None:
        # A salt per experiment makes experiments on the same key independent.
        salt = rollout.target.sticky.salt or rollout.id
        sticky = msgspec.structs.replace(rollout.target.sticky, salt=salt)
    return msgspec.structs.replace(
        rollout.target,
        arms=tuple(arms),
        split_id=rollout.id,
        needs_assignments=needs_assignments(rollout.state.settings),
        sticky=sticky,
        mirror=mirror,
    )


def with_scale(endpoint: DesiredEndpoint, scale: ReplicaTargets) -> DesiredEndpoint:
    """Return `endpoint` with the autoscaler's replica count of each arm."""
    if endpoint.autoscale is None:
        return endpoint
    if endpoint.name in scale.zeroed:
        arms = tuple(msgspec.structs.replace(arm, replicas=0) for arm in endpoint.arms)
        return msgspec.structs.replace(endpoint, arms=arms, scaled_to_zero=True)
    arms = tuple(
        arm
        if arm.revision.upstream is not None or (endpoint.name, arm.key) not in scale.counts
        else msgspec.structs.replace(arm, replicas=max(scale.counts[endpoint.name, arm.key], 1))
        for arm in endpoint.arms
    )
    return msgspec.structs.replace(endpoint, arms=arms)


def baseline_of(source: DesiredEndpoint) -> DesiredArm:
    """Return the arm of the old version that a baseline copies: the one with the largest weight."""
    return max(source.arms, key=lambda arm: arm.weight)


def _baseline(rollout: RolloutRecord, traffic: TrafficShares) -> DesiredArm:
    """Return fresh replicas of the old version, as a separate revision to distinguish them."""
    old = msgspec.structs.replace(
        baseline_of(rollout.source).revision, upstream=None, pool="", unloadable=""
    )
    revision = with_id(old, purpose=f"{BASELINE} of {rollout.id}")
    return DesiredArm(
        revision=revision,
        weight=traffic.baseline,
        replicas=_part(rollout.target.arms[0], traffic.candidate_scale),
        role=BASELINE,
    )


def _carrying(arm: DesiredArm, weight: int) -> DesiredArm:
    """Return an arm that already serves: a missing replica must not delay a rollback."""
    return msgspec.structs.replace(arm, weight=weight, required=min(arm.replicas, 1))


def _part(arm: DesiredArm, share: float) -> int:
    """Return how many of an arm's replicas a share of its traffic needs."""
    return max(math.ceil(arm.replicas * share), 1) if arm.replicas else 0


@dataclass(slots=True, kw_only=True)
class TargetState:
    """The desired state, rollouts and replica counts; each change updates the reconciler."""

    reconciler: Reconciling
    desired: DesiredState = field(default_factory=DesiredState)
    rollouts: dict[str, RolloutRecord] = field(default_factory=dict)
    scale: ReplicaTargets = field(default_factory=ReplicaTargets)
    withhold: Callable[[Mapping[str, Any]], None] = lambda _spec: None
    """Called with every desired spec: processes must not inherit the variables that it names.
    `lock` is held during every change of the desired state or of a rollout, from the first read to
    the last write.
    """
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _predict_scale: Callable[[], ReplicaTargets] | None = None

    @property
    def effective(self) -> DesiredState:
        """Return what should run now, with current rollout steps and replica counts."""
        return self.reconciler.desired

    def use_predictor(self, predict: Callable[[], ReplicaTargets]) -> None:
        """Take replica counts of each new target from `predict`, until the autoscaler decides."""
        self._predict_scale = predict

    def set_target(
        self, *, desired: DesiredState | None = None, rollouts: Iterable[RolloutRecord] = ()
    ) -> None:
        """Set the desired state, changed rollouts, or both, as the new target."""
        if desired is not None:
            self.desired = desired
        for record in rollouts:
            self.rollouts[record.endpoint] = record
        names = {endpoint.name for endpoint in self.desired.endpoints}
        for name in self.rollouts.keys() - names:
            del self.rollouts[name]
        self.withhold(self.desired.spec)
        if self._predict_scale is not None:
            self.scale = self._predict_scale()
        self._notify()

    def rescale(self, scale: ReplicaTargets) -> None:
        """Set the replica counts."""
        if scale != self.scale:
            self.scale = scale
            self._notify()

    def rollout(self, name: str) -> RolloutRecord | None:
        """Return the rollout that decides what endpoint `name` serves, or None."""
        record, endpoint = self.rollouts.get(name), self.desired.endpoint(name)
        if record is None or endpoint is None or not is_current(record, endpoint):
            return None
        return None if record.state.phase is RolloutPhase.SUPERSEDED else record

    def active(self) -> list[RolloutRecord]:
        """Return the rollouts in progress."""
        records = (self.rollout(name) for name in list(self.rollouts))
        return [record for record in records if record and not record.state.phase.is_over]

    def serving(self, name: str) -> DesiredEndpoint | None:
        """Return what endpoint `name` fully serves now, from which the next rollout starts."""
        endpoint, record = self.desired.endpoint(name), self.rollout(name)
        if endpoint is None or record is None:
            return endpoint
        is_switched = record.state.phase in {RolloutPhase.PROMOTED, RolloutPhase.KEEPING}
        return record.target if is_switched else record.source

    def generation(self, name: str) -> int:
        """Return the generation of endpoint `name`; 0 if it does not exist."""
        endpoint = self.desired.endpoint(name)
        return 0 if endpoint is None else endpoint.generation

    def effective_endpoint(self, name: str) -> DesiredEndpoint | None:
        """Return what should run for endpoint `name` now."""
        return self.effective.endpoint(name)

    def served(self) -> list[DesiredEndpoint]:
        """Return everything that is served, will be served, or may be rolled back to."""
        records = list(self.rollouts.values())  # threads read it while the loop changes it
        rolling = [end for record in records for end in (record.source, record.target)]
        return [*self.desired.endpoints, *self.effective.endpoints, *rolling]

    def users_of(self, model: str) -> frozenset[str]:
        """Return the endpoints that use a version of `model`."""
        return frozenset(
            str(endpoint.name)
            for endpoint in self.served()
            if any(arm.revision.model.partition(":")[0] == model for arm in endpoint.arms)
        )

    def _notify(self) -> None:
        self.reconciler.set_desired(effective(self.desired, self.rollouts, self.scale))
