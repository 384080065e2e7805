"""Advice on threads and memory of replicas, from this machine's resources."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.autoscale import ResourceRecommendation, recommend
from headrace.control.base.faults import Faults
from headrace.control.desired.target import TargetState
from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.reconcile.reports import Reports
from headrace.control.scaling.signals import ArmMeter
from headrace.core import Clock
from headrace.core.spec.scale import AutoscaleSpec, BudgetSpec
from headrace.engine import usable_cores

_INTERVAL_S: Final = 4.0
_MOST: Final = 256
"""Most replicas that are polled for advice, to limit the control plane's work."""
_SETTINGS: Final = AutoscaleSpec()


@dataclass(slots=True, kw_only=True)
class Advisor:
    """Samples the resource use of replicas, and recommends threads and memory."""

    target_state: TargetState
    reports: Reports
    clock: Clock
    faults: Faults = field(default_factory=Faults)
    _meters: dict[tuple[str, str], ArmMeter] = field(default_factory=dict)
    _language_models: frozenset[tuple[str, str]] = frozenset()
    _asked_at: float = -math.inf

    def observed_replicas(self) -> list[Replica]:
        """Return the replicas whose reports are needed now; usually none."""
        now = self.clock.monotonic()
        if now - self._asked_at < _INTERVAL_S:
            return []
        self._asked_at = now
        self._refresh()
        ready = [
            r
            for r in self.target_state.reconciler.replicas.values()
            if r.phase is ReplicaPhase.READY
        ]
        return ready[:_MOST]

    def message(self, endpoint: str, arm: str) -> str:
        """Return the recommendation for a replica of an arm as text; empty if unknown."""
        advice = self.recommendation(endpoint, arm)
        return advice.message if advice is not None and advice.memory_bytes is not None else ""

    def recommendation(self, endpoint: str, arm: str) -> ResourceRecommendation | None:
        """Return the recommendation for a replica of an arm; None if the arm is unknown."""
        meter = self._meters.get((endpoint, arm))
        if meter is None:
            return None
        return recommend(meter.observed(), counts_runs=(endpoint, arm) not in self._language_models)

    def _refresh(self) -> None:
        """Take the reports since the last call."""
        effective = self.target_state.reconciler.desired
        revisions = {(e.name, arm.key): arm.revision for e in effective.endpoints for arm in e.arms}
        arms = {key: revision.id for key, revision in revisions.items()}
        self._language_models = frozenset(
            key for key, revision in revisions.items() if revision.serves_openai
        )
        self._meters = {key: self._meters.get(key, ArmMeter()) for key in arms}
        ready: dict[str, list[str]] = {}
        for replica in self.target_state.reconciler.replicas.values():
            if replica.phase is ReplicaPhase.READY:
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


_MEMORY_SHARE: Final = 0.9
"""Share of memory for replicas; the rest is for the system, gateway and control plane."""
_CGROUP: Final = Path("/sys/fs/cgroup")
_MEMINFO: Final = Path("/proc/meminfo")


def machine_budget(
    budget: BudgetSpec | None = None, *, cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO
) -> BudgetSpec:
    """Return the budget of all replicas: the spec's values, else this machine's resources.

    Args:
        budget: Budget of the spec, whose None fields are filled in.
        cgroup: Directory of this container's limits (cgroup v2).
    """
    budget = budget or BudgetSpec()
    cpus, memory = budget.cpus, budget.memory_bytes
    if cpus is None:
        cpus = float(usable_cores())
        match _words(cgroup / "cpu.max"):  # microseconds per period, or `max`
            case [quota, period] if quota.isdigit() and period.isdigit() and int(period):
                cpus = min(cpus, int(quota) / int(period) or cpus)
    if memory is None:
        # Bytes by `memory.max`, which may say `max`, and `MemTotal`, which is in kB.
        limits = [int(word) for word in _words(cgroup / "memory.max")[:1] if word.isdigit()]
        words = _words(meminfo)
        if "MemTotal:" in words:
            limits.append(int(words[words.index("MemTotal:") + 1]) * 1024)
        memory = int(min(limits) * _MEMORY_SHARE) if limits else None
    return BudgetSpec(cpus=cpus, memory_bytes=memory)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text("ascii").split()
    except (OSError, UnicodeDecodeError):
        return []
