"""Which part of an endpoint's load must each of its arms be able to carry? Pure."""

import math
from dataclasses import dataclass
from typing import Final

import msgspec

from headrace.control.aims import Aims
from headrace.control.desired import DesiredArm, DesiredEndpoint
from headrace.control.effective import BASELINE, in_force, is_current
from headrace.control.state.records import RolloutRecord
from headrace.core.spec_scale import AutoscaleSpec

_FULL: Final = 100
_EPSILON: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledArm:
    """An arm that is ours to scale. `is_moving`: a rollout of its endpoint is under way."""

    endpoint: DesiredEndpoint
    arm: DesiredArm
    share: float
    is_moving: bool
    settings: AutoscaleSpec

    @property
    def key(self) -> tuple[str, str]:
        """Endpoint and arm."""
        return self.endpoint.name, self.arm.key

    @property
    def minimum(self) -> int:
        """What it must have while its endpoint is awake."""
        return max(part_of(self.settings.min_replicas, self.share), 1)

    def settings_for(self, floor: int) -> AutoscaleSpec:
        """The endpoint's settings for this arm, which needs `floor` copies in any case."""
        settings = self.settings
        least = max(part_of(settings.min_replicas, self.share), floor)
        if settings.min_replicas or self.is_moving:
            least = max(least, 1)
        schedule = tuple(
            msgspec.structs.replace(
                hint, min_replicas=max(part_of(hint.min_replicas, self.share), 1)
            )
            for hint in settings.schedule
        )
        return msgspec.structs.replace(
            settings, min_replicas=min(least, settings.max_replicas), schedule=schedule
        )


def scaled_arms(aims: Aims) -> list[list[ScaledArm]]:
    """Every arm that is ours to scale, endpoint by endpoint."""
    found = []
    for desired in aims.desired.endpoints:
        rollout = aims.rollouts.get(desired.name)
        if rollout is not None and not is_current(rollout, desired):
            rollout = None
        endpoint = in_force(desired, rollout)
        if endpoint.autoscale is None:
            continue
        shares = shares_of(endpoint, rollout)
        arms = [
            ScaledArm(
                endpoint=endpoint,
                arm=arm,
                share=shares[arm.key],
                is_moving=_is_moving(rollout),
                settings=endpoint.autoscale,
            )
            for arm in endpoint.arms
            if arm.revision.upstream is None and not arm.revision.pool
        ]
        if arms:
            found.append(arms)
    return found


def shares_of(endpoint: DesiredEndpoint, rollout: RolloutRecord | None) -> dict[str, float]:
    """The part (0 to 1) by the arm's key.

    It is its weight. While a rollout is under way, the new version's is what its step needs, before
    it gets it; and the old one's is all that it had, so that the way back is there at once.
    """
    shares = {arm.key: arm.weight / _FULL for arm in endpoint.arms}
    if rollout is None or not _is_moving(rollout):
        return shares
    candidate = rollout.target.arms[0].key
    before = {arm.key: arm.weight / _FULL for arm in rollout.source.arms}
    for arm in endpoint.arms:
        is_new = arm.key == candidate or arm.role == BASELINE
        scale = rollout.state.traffic.candidate_scale
        shares[arm.key] = max(shares[arm.key], scale if is_new else before.get(arm.key, 0.0))
    return shares


def part_of(count: float, share: float) -> int:
    """So many whole copies that they carry `share` of what `count` copies carry."""
    return math.ceil(count * share - _EPSILON)


def _is_moving(rollout: RolloutRecord | None) -> bool:
    return rollout is not None and not rollout.state.phase.is_over
