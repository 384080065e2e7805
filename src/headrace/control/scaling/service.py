"""Scaling service: autoscaler, requests held for the first replica, and resource advice.

The number of replicas follows load and budget. The advice is about a replica's threads and memory.
"""

import asyncio
from typing import Final

from headrace.control.base.context import ServiceContext
from headrace.control.desired.target import TargetState
from headrace.control.gateway.activator import Activator, HoldLimits
from headrace.control.model.observed import Replica
from headrace.control.reconcile.service import ReconcileService
from headrace.control.scaling.advice import Advisor, machine_budget
from headrace.control.scaling.scaler import Scaler, ScalerStates
from headrace.core.processes import resident_bytes
from headrace.core.spec.base import parsed
from headrace.core.spec.scale import BudgetSpec
from headrace.core.state_file import StateFile


class ScalingService:
    """Decides how many replicas run, and holds requests to endpoints without replicas."""

    def __init__(
        self, context: ServiceContext, *, target_state: TargetState, reconciling: ReconcileService
    ) -> None:
        """Create the parts, with the state that an earlier control plane stored. Blocking."""
        clock, faults, reports = context.clock, context.faults, reconciling.reports
        self.scaler: Final = Scaler(
            target_state=target_state,
            latest=reports.latest,
            clock=clock,
            budget=self._budget,
            emit=context.journal.write,
            other_bytes=self._fixed_bytes,
            active=reconciling.gateway_supervisor.in_flight,
            memory=StateFile(
                context.home.scaling_file, ScalerStates, "the state of the autoscaler"
            ),
            faults=faults,
        )
        self.scaler.load()
        target_state.use_predictor(self.scaler.predict_scale)
        self.advisor: Final = Advisor(
            target_state=target_state, reports=reports, clock=clock, faults=faults
        )
        self.activator: Final = Activator(limits_of=self._hold_limits, wake=self.scaler.wake)
        self._aims: Final = target_state
        self._reconciler: Final = reconciling.reconciler
        self._runs_here: Final = context.runs_here

    async def run(self) -> None:
        """Scale until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.scaler.run())
            group.create_task(self._release_held())

    def observed(self) -> list[Replica]:
        """Return the replicas whose reports are needed."""
        return [*self.scaler.observed_replicas(), *self.advisor.observed_replicas()]

    async def _release_held(self) -> None:
        """Release held requests once the gateway routes to a replica; until cancelled."""
        while True:
            change = self._reconciler.changes.next
            held = {route.name for route in self._reconciler.publication.routes if route.held}
            for name in self.activator.held.keys() - held:
                self.activator.release(name)
            await change.wait()

    def _hold_limits(self, name: str) -> HoldLimits | None:
        """Return the limits of held requests of an endpoint; None if requests need not wait."""
        for route in self._reconciler.publication.routes:
            if route.name == name and route.held:
                return HoldLimits(max_held=route.max_held, hold_s=route.hold_s)
        return None

    def _budget(self) -> BudgetSpec:
        """Return the budget of all replicas: the spec's, else this machine's resources."""
        budget = parsed(BudgetSpec, self._aims.desired.spec.get("budget", {}))
        return machine_budget(budget) if self._runs_here else budget

    def _fixed_bytes(self) -> int:
        """Return the memory in bytes of replicas with a fixed count."""
        scaled = {e.name for e in self._aims.desired.endpoints if e.autoscale is not None}
        return sum(
            resident_bytes(replica.pid)
            for replica in self._reconciler.replicas.values()
            if replica.pid is not None and replica.endpoint not in scaled
        )
