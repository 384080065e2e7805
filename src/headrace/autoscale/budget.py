"""Fair division of a machine that is too small for all desired replicas, each with a reason.

Minimums come first: an endpoint without any replica is an outage. The rest is granted one replica
at a time to the arm with the smallest granted part of its desired count, so that a burst of one
endpoint cannot starve the others. Running replicas may exceed the budget by a tenth; otherwise
small errors in the measured usage would start and stop replicas. The order of requests does not
matter.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from headrace.core.spec.scale import BudgetSpec
from headrace.core.text import bytes_text

_OVERDRAFT: Final = 0.1
_EPSILON: Final = 1e-9


class ReplicaRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The desired replicas of one arm of an endpoint."""

    endpoint: str
    arm: str
    desired: int
    minimum: int = 0
    """Granted even beyond the budget."""

    running: int = 0
    """Number of existing replicas."""

    cpus: float = 0.0
    """Cores of one replica; 0 if unknown."""

    memory_bytes: float = 0.0
    """Memory of one replica; 0 if unknown."""

    @property
    def key(self) -> tuple[str, str]:
        """Return the request's identity."""
        return self.endpoint, self.arm


class ReplicaGrant(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas granted to one arm; `reason` names the missing resource, empty if all."""

    replicas: int
    reason: str = ""


def share_out(
    requests: Sequence[ReplicaRequest], budget: BudgetSpec
) -> dict[tuple[str, str], ReplicaGrant]:
    """Return granted replicas by endpoint and arm.

    Never more than desired, and never less than the smaller of desired and minimum, even if that
    exceeds the machine: the reason then says so.

    Args:
        budget: None in a field means unlimited.
    """
    available = _Room.of(budget)
    grants: dict[tuple[str, str], ReplicaGrant] = {}
    counts: dict[tuple[str, str], int] = {}
    for request in requests:
        counts[request.key] = min(request.minimum, request.desired)
        available.take(request, counts[request.key])
    waiting = [
        (_part(request, counts[request.key]), request.key, request)
        for request in requests
        if request.desired
    ]
    waiting = [item for item in waiting if counts[item[1]] < item[2].desired]
    heapq.heapify(waiting)
    while waiting:
        _, key, request = heapq.heappop(waiting)
        shortage_text = available.shortage(
            request, overdraft=_OVERDRAFT if counts[key] < request.running else 0.0
        )
        if shortage_text:
            reason = f"{counts[key]} of {request.desired} copies: {shortage_text}"
            grants[key] = ReplicaGrant(replicas=counts[key], reason=reason)
            continue
        available.take(request, 1)
        counts[key] += 1
        if counts[key] < request.desired:
            heapq.heappush(waiting, (_part(request, counts[key]), key, request))
    return {
        request.key: grants.get(request.key, ReplicaGrant(replicas=counts[request.key]))
        for request in requests
    }


def _part(request: ReplicaRequest, count: int) -> float:
    return count / request.desired


@dataclass(slots=True)
class _Room:
    """Remaining resources."""

    cpus: float | None
    memory_bytes: float | None
    budget: BudgetSpec

    @classmethod
    def of(cls, budget: BudgetSpec) -> "_Room":
        return cls(budget.cpus, budget.memory_bytes, budget)

    def take(self, request: ReplicaRequest, count: int) -> None:
        if self.cpus is not None:
            self.cpus -= request.cpus * count
        if self.memory_bytes is not None:
            self.memory_bytes -= request.memory_bytes * count

    def shortage(self, request: ReplicaRequest, *, overdraft: float) -> str:
        """Return the missing resource for one more replica; empty if it fits.

        Args:
            overdraft: Part of the budget that may be used in addition.
        """
        cpus, memory = self.budget.cpus, self.budget.memory_bytes
        if self.cpus is not None and cpus is not None:
            free = self.cpus + overdraft * cpus
            if request.cpus > max(free, 0.0) + _EPSILON:
                free = max(self.cpus, 0.0)
                return f"one more needs {request.cpus:.2f} cores, {free:.2f} of {cpus:g} are left"
        if self.memory_bytes is not None and memory is not None:
            free = self.memory_bytes + overdraft * memory
            if request.memory_bytes > max(free, 0.0):
                free = max(self.memory_bytes, 0.0)
                return (
                    f"one more needs {bytes_text(request.memory_bytes)}, {bytes_text(free)} of "
                    f"{bytes_text(memory)} are left"
                )
        return ""
