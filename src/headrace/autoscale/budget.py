"""Fair shares of a machine that has no room for all copies, each with a reason.

Everybody's minimum comes first: an endpoint without any copy is an outage. What is left goes, one
copy at a time, to whoever has the smallest part of what it wants, so that nobody's burst starves
the others. A copy that runs already may overdraw the budget by a tenth, else every small error in
what a copy is said to use would start and stop copies. The order of the wishes does not matter.
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
    """What one arm of an endpoint wants.

    `minimum`: what it gets whatever the machine has. `running`: copies that there are. `cpus`
    (cores) and `memory_bytes`: what one copy uses; 0 while it is not known.
    """

    endpoint: str
    arm: str
    desired: int
    minimum: int = 0
    running: int = 0
    cpus: float = 0.0
    memory_bytes: float = 0.0

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from all others."""
        return self.endpoint, self.arm


class ReplicaGrant(msgspec.Struct, frozen=True, kw_only=True):
    """What one arm gets; `reason` says what there was too little of, empty if it got all."""

    replicas: int
    reason: str = ""


def share_out(
    requests: Sequence[ReplicaRequest], budget: BudgetSpec
) -> dict[tuple[str, str], ReplicaGrant]:
    """What everybody gets, by endpoint and arm.

    Never more than wanted, and never less than the smaller of wanted and minimum, even where that
    is more than the machine has: the reason then says so.

    Args:
        budget: None in a field for no bound.
    """
    room = _Room.of(budget)
    grants: dict[tuple[str, str], ReplicaGrant] = {}
    counts: dict[tuple[str, str], int] = {}
    for request in requests:
        counts[request.key] = min(request.minimum, request.desired)
        room.take(request, counts[request.key])
    waiting = [
        (_part(request, counts[request.key]), request.key, request)
        for request in requests
        if request.desired
    ]
    waiting = [item for item in waiting if counts[item[1]] < item[2].desired]
    heapq.heapify(waiting)
    while waiting:
        _, key, request = heapq.heappop(waiting)
        shortage_text = room.shortage(
            request, overdraft=_OVERDRAFT if counts[key] < request.running else 0.0
        )
        if shortage_text:
            reason = f"{counts[key]} of {request.desired} copies: {shortage_text}"
            grants[key] = ReplicaGrant(replicas=counts[key], reason=reason)
            continue
        room.take(request, 1)
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
    """What is left."""

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
        """What there is too little of for one more copy; empty if it fits.

        Args:
            overdraft: Which part of the budget may be used besides.
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
