"""How many threads and how much memory should a replica have? Asked of every arm, scaled or not."""

import math
from dataclasses import dataclass, field
from typing import Final

from headrace.autoscale import Recommendation, recommend
from headrace.control.aims import Aims
from headrace.control.faults import Faults
from headrace.control.observed import Phase, Replica
from headrace.control.reports import Reports
from headrace.control.scaling_signals import ArmMeter
from headrace.core import Clock
from headrace.core.spec_scale import AutoscaleSpec

_EVERY_S: Final = 4.0
_MOST: Final = 256
"""Replicas that are asked at all: advice is no reason to keep a control plane busy."""
_SETTINGS: Final = AutoscaleSpec()


@dataclass(slots=True, kw_only=True)
class Advisor:
    """Watches what replicas use, now and then, and says what they should have."""

    aims: Aims
    reports: Reports
    clock: Clock
    faults: Faults = field(default_factory=Faults)
    _meters: dict[tuple[str, str], ArmMeter] = field(default_factory=dict)
    _asked_at: float = -math.inf

    def wanted(self) -> list[Replica]:
        """Replicas whose reports are needed now; most of the time none."""
        now = self.clock.monotonic()
        if now - self._asked_at < _EVERY_S:
            return []
        self._asked_at = now
        self._look()
        ready = [r for r in self.aims.reconciler.replicas.values() if r.phase is Phase.READY]
        return ready[:_MOST]

    def recommendation(self, endpoint: str, arm: str) -> Recommendation | None:
        """What one copy of an arm should have; None if there is no such arm yet."""
        meter = self._meters.get((endpoint, arm))
        return None if meter is None else recommend(meter.observed())

    def _look(self) -> None:
        """Take in what was reported since the last time."""
        effective = self.aims.reconciler.desired
        arms = {(e.name, arm.key): arm.revision.id for e in effective.endpoints for arm in e.arms}
        self._meters = {key: self._meters.get(key, ArmMeter()) for key in arms}
        ready: dict[str, list[str]] = {}
        for replica in self.aims.reconciler.replicas.values():
            if replica.phase is Phase.READY:
                ready.setdefault(replica.revision_id, []).append(replica.name)
        for key, revision_id in arms.items():
            names = ready.get(revision_id, [])
            with self.faults.contain("advice", key[0]):
                self._meters[key].signals(
                    names,
                    {name: self.reports.latest(name) for name in names},
                    _SETTINGS,
                    now=self.clock.now(),
                    monotonic=self.clock.monotonic(),
                    starting=0,
                    held=0,
                )
        self.faults.keep_only("advice", [endpoint for endpoint, _ in arms])
