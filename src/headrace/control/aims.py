"""What do we aim at right now? The desired state, the rollouts under way and the scale, in one."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from headrace.control.desired import DesiredEndpoint, DesiredState
from headrace.control.effective import Scale, effective, in_force, is_current
from headrace.control.reconciling import Reconciling
from headrace.control.state.records import RolloutRecord
from headrace.rollout.state import Phase


@dataclass(slots=True, kw_only=True)
class Aims:
    """Everything that decides what should run; whoever changes a part tells the reconciler by it.

    `foresee`: the scale for what is aimed at now; None where nothing is scaled by load.
    `lock` is held over every change of the desired state or of a rollout, from the first look to
    the last write.
    """

    reconciler: Reconciling
    desired: DesiredState = field(default_factory=DesiredState)
    rollouts: dict[str, RolloutRecord] = field(default_factory=dict)
    scale: Scale = field(default_factory=Scale)
    foresee: Callable[[], Scale] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def aim(
        self, *, desired: DesiredState | None = None, rollouts: Iterable[RolloutRecord] = ()
    ) -> None:
        """Aim at a new desired state, or at what changed rollouts say, from now on."""
        if desired is not None:
            self.desired = desired
        for record in rollouts:
            self.rollouts[record.endpoint] = record
        known = {endpoint.name for endpoint in self.desired.endpoints}
        for name in self.rollouts.keys() - known:
            del self.rollouts[name]
        if self.foresee is not None:
            self.scale = self.foresee()
        self._tell()

    def rescale(self, scale: Scale) -> None:
        """Aim at other numbers of copies."""
        if scale != self.scale:
            self.scale = scale
            self._tell()

    def rollout(self, name: str) -> RolloutRecord | None:
        """The rollout that decides what endpoint `name` serves, if one does."""
        record, endpoint = self.rollouts.get(name), self.desired.endpoint(name)
        if record is None or endpoint is None or not is_current(record, endpoint):
            return None
        return None if record.state.phase is Phase.SUPERSEDED else record

    def active(self) -> list[RolloutRecord]:
        """Rollouts that are under way."""
        found = (self.rollout(name) for name in list(self.rollouts))
        return [record for record in found if record and not record.state.phase.is_over]

    def serving(self, name: str) -> DesiredEndpoint | None:
        """What endpoint `name` serves as a whole now: what a next rollout starts from."""
        endpoint, record = self.desired.endpoint(name), self.rollout(name)
        if endpoint is None or record is None:
            return endpoint
        is_switched = record.state.phase in {Phase.PROMOTED, Phase.KEEPING}
        return record.target if is_switched else record.source

    def effective_endpoint(self, name: str) -> DesiredEndpoint | None:
        """What should run for endpoint `name` now."""
        return self.reconciler.desired.endpoint(name)

    def unscaled(self, name: str) -> DesiredEndpoint | None:
        """The same before the autoscaler's say."""
        endpoint = self.desired.endpoint(name)
        return None if endpoint is None else in_force(endpoint, self.rollouts.get(name))

    def served(self) -> list[DesiredEndpoint]:
        """What is served, will be, or is what a rollout may go back to."""
        rolling = [end for r in self.rollouts.values() for end in (r.source, r.target)]
        return [*self.desired.endpoints, *self.reconciler.desired.endpoints, *rolling]

    def users_of(self, model: str) -> frozenset[str]:
        """The endpoints that use a version of `model`."""
        return frozenset(
            str(endpoint.name)
            for endpoint in self.served()
            if any(arm.revision.model.partition(":")[0] == model for arm in endpoint.arms)
        )

    def _tell(self) -> None:
        self.reconciler.want(effective(self.desired, self.rollouts, self.scale))


def same_endpoint(one: DesiredEndpoint | None, other: DesiredEndpoint | None) -> bool:
    """Whether two endpoints are the same but for their generation."""
    if one is None or other is None:
        return one is other
    return msgspec.structs.replace(one, generation=0) == msgspec.structs.replace(
        other, generation=0
    )
