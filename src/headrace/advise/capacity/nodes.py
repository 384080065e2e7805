"""What machines are there to choose from, how many does a fleet fill, and what may be lost?"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.advise.capacity.chances import binomial
from headrace.core import InvalidArgumentError

GIB: Final = 1 << 30
NODE_AVAILABILITY: Final = 0.995
"""What Amazon's Compute SLA promises of a single instance: 99.5 % of a month
(https://aws.amazon.com/compute/sla/); Google's Compute Engine and Azure promise more for most."""
_MOST_NODES: Final = 10_000_000
_CORE_STEPS: Final = ((1.0, 0.06), (1.0, 0.01), (2.0, 0.005), (math.inf, 0.0025))
"""Reserved of the first core, the next, the next two, and the others, as GKE does
(https://cloud.google.com/kubernetes-engine/docs/concepts/plan-node-sizes)."""
_MEMORY_STEPS: Final = ((4, 0.25), (4, 0.2), (8, 0.1), (112, 0.06), (math.inf, 0.02))
"""The same of memory, in GiB; and 100 MiB as the threshold of eviction."""
_EVICTION_BYTES: Final = 100 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeType:
    """A machine that can be had. `speed`: over the machine that was measured.

    `cost_per_hour`: in any currency. `network_bits_per_s`: None if it is not known.
    """

    name: str
    cores: float
    memory_bytes: int
    cost_per_hour: float
    gpus: int = 0
    speed: float = 1.0
    network_bits_per_s: float | None = None

    @property
    def usable_cores(self) -> float:
        """Without what a managed Kubernetes keeps for itself."""
        return self.cores - _reserved(self.cores, _CORE_STEPS)

    @property
    def usable_memory_bytes(self) -> int:
        """Without what a managed Kubernetes keeps for itself."""
        reserved = _reserved(self.memory_bytes / GIB, _MEMORY_STEPS) * GIB + _EVICTION_BYTES
        return max(0, int(self.memory_bytes - reserved))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What one replica takes."""

    cores: float
    memory_bytes: int = 0
    gpus: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Headroom:
    """What may fail without an SLO being broken.

    `nodes`: at once, in each cluster. `zones`: over which nodes are spread; `lose_zone`: a whole
    one may fail. `availability`: the share of time in which enough nodes are to be up, with each
    up for `node_availability` of it; None does not ask for it.
    """

    nodes: int = 1
    zones: int = 1
    lose_zone: bool = False
    availability: float | None = None
    node_availability: float = NODE_AVAILABILITY


def per_node(node: NodeType, shape: Shape, *, most_pods: int) -> tuple[int, str]:
    """How many replicas a node holds, and what limits it."""
    limits = {
        "cores": math.floor(node.usable_cores / shape.cores + 1e-9),
        "pods": most_pods,
    }
    if shape.memory_bytes:
        limits["memory"] = node.usable_memory_bytes // shape.memory_bytes
    if shape.gpus:
        limits["GPUs"] = node.gpus // shape.gpus
    least = min(limits, key=lambda name: limits[name])
    return limits[least], least


def with_headroom(needed: int, headroom: Headroom) -> tuple[int, int, str]:
    """Nodes in all, how many of them may be lost, and what asks for so many.

    The least `n` of which enough are left when `nodes` of them fail, or a zone, ceil(n / zones);
    and of which `needed` are up for the share of time that is asked for: k out of n, independent.
    """
    spare, why = headroom.nodes, "nodes that may fail"
    if headroom.availability is not None:
        by_chance = _spares(needed, headroom.availability, headroom.node_availability)
        if by_chance > spare:
            spare, why = by_chance, "availability"
    total = needed + spare
    if headroom.lose_zone:
        zones = headroom.zones
        by_zone = math.ceil(needed * zones / (zones - 1))
        while by_zone - math.ceil(by_zone / zones) < needed:
            by_zone += 1
        if by_zone > total:
            total, why = by_zone, "a zone that may fail"
            spare = math.ceil(by_zone / zones)
    return total, max(spare, total - needed), why


def checked(headroom: Headroom) -> Headroom:
    """The same.

    Raises:
        InvalidArgumentError: A figure of it makes no sense.
    """
    if headroom.lose_zone and headroom.zones < 2:  # noqa: PLR2004  # one is lost, one is left
        raise InvalidArgumentError("to lose a zone there have to be two: --zones 3 --lose-zone")
    if not (0 <= headroom.nodes <= 1000 and 1 <= headroom.zones <= 100):  # noqa: PLR2004  # plenty
        raise InvalidArgumentError("spare nodes are from 0 to 1000, zones from 1 to 100")
    for what, ratio in (
        ("availability", headroom.availability),
        ("a node's availability", headroom.node_availability),
    ):
        if ratio is not None and not 0.5 <= ratio < 1.0:  # noqa: PLR2004  # of a coin
            raise InvalidArgumentError(f"{what} is from 50 % to below 100 %, not {ratio * 100:g} %")
    return headroom


def _spares(needed: int, availability: float, node_availability: float) -> int:
    """How many more have to be there, so that `needed` are up often enough; by bisection."""

    def enough(spare: int) -> bool:
        down = binomial(np.array([needed + spare]), np.arange(spare + 1), 1.0 - node_availability)
        return float(down.sum()) >= availability

    high = 1
    while not enough(high):
        high *= 2
    low = 0
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def _reserved(amount: float, steps: tuple[tuple[float, float], ...]) -> float:
    reserved = 0.0
    for width, ratio in steps:
        part = min(amount, width)
        reserved += part * ratio
        amount -= part
    return reserved
