"""Capacity calculator: replicas, nodes, clusters and cost of a load, from a profile. Pure.

A replica gets at most the load at which its predicted p99 meets the SLO. The prediction is for one
replica behind random load balancing, so it is conservative where the gateway picks the less loaded
of two.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np

from headrace.autoscale.demand import MAX_UTILISATION
from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.core.text import duration_text, number_text
from headrace.optimize.profiling.document import Profile
from headrace.optimize.profiling.grid import cell_of
from headrace.optimize.profiling.messages import NO_LENGTH, Setting
from headrace.optimize.profiling.predict import MeasuredService, Prediction, Predictor
from headrace.optimize.profiling.predict import ReplicaModel as SimulatedReplica

HOURS_PER_MONTH: Final = 730.0
GATEWAY_RATE_PER_CORE: Final = 22_000.0
"""Requests per second, with JWT, limits and log; measured with a 26 kB MLP, one row of JSON and 32
connections (docs/explain/scale.md)."""
GATEWAY_CORES: Final = 4
_GATEWAY_BUSY_RATIO: Final = 0.7
REPLICAS_PER_CLUSTER: Final = 1_000
"""Replicas of one control plane; measured with `make bench ARGS=reports`."""
USABLE_RATIO: Final = 0.9
"""Of a node's cores and memory. GKE reserves 1 to 6 % of the cores and 6 to 25 % of the memory
(https://cloud.google.com/kubernetes-engine/docs/concepts/plan-node-sizes)."""
_RUN_SPREAD: Final = (0.86, 0.96, 1.04, 1.14)
"""Run times relative to their mean if only the mean is known: a standard deviation of 10 %."""
_REQUESTS: Final = 10_000


class SloUnreachableError(FailedPreconditionError):
    """No number of replicas meets the p99 of the SLO."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaProfile:
    """One replica: its capacity, its latency by load, and its resources."""

    capacity: float
    """Sustainable requests per second, of one row each."""
    loads: tuple[float, ...]
    """Shares of the capacity, ascending."""
    p99s: tuple[float, ...]
    """Predicted p99 in seconds at each of `loads`, never falling."""
    batch_rows: tuple[float, ...]
    """Mean rows of a batch at each of `loads`."""
    cores: float = 1.0
    memory_bytes: int = 0
    """0 ignores memory."""
    gpus: int = 0

    def faster(self, speed: float) -> "ReplicaProfile":
        """Return the same replica on a machine with `speed` times the measured speed."""
        p99s = tuple(p99 / speed for p99 in self.p99s)
        return replace(self, capacity=self.capacity * speed, p99s=p99s)

    def load_within(self, p99_s: float | None) -> float:
        """Return the largest share of the capacity, at most 80 %, at which p99 is within `p99_s`.

        Raises:
            SloUnreachableError: Even a nearly idle replica exceeds it.
        """
        if p99_s is None:
            return MAX_UTILISATION
        if p99_s < self.p99s[0]:
            msg = (
                f"even a nearly idle replica has a p99 of {duration_text(self.p99s[0])}: no "
                f"number of replicas meets {duration_text(p99_s)}. Optimize the model "
                f"(`headrace optimize`) or use --p99 {1.5e3 * self.p99s[0]:.3g}ms"
            )
            raise SloUnreachableError(msg)
        return min(float(np.interp(p99_s, self.p99s, self.loads)), MAX_UTILISATION)

    def p99_s(self, load: float) -> float:
        """Return the predicted p99 at a share of the capacity. Unit: seconds."""
        return float(np.interp(load, self.loads, self.p99s))


def replica_of(profile: Profile) -> ReplicaProfile:
    """Return the replica of a profile's recommended configuration.

    Uses the lower end of the capacity's 95 % interval, at least a third of the capacity: a plan
    must hold for the machine's slow hours, too.
    """
    prediction, memory = profile.prediction, profile.measured.memory
    slowdown = 1.0
    if prediction.capacity_ci is not None:
        slowdown = min(max(prediction.capacity / max(prediction.capacity_ci[0], 1e-9), 1.0), 3.0)
    return replace(
        _predicted(prediction).faster(1.0 / slowdown),
        cores=float(profile.cores),
        memory_bytes=0 if memory is None else max(memory.largest_bytes, memory.loaded_bytes),
    )


def replica_by_hand(run_s_by_rows: Mapping[int, float], *, runs: int = 1) -> ReplicaProfile:
    """Return a replica with these mean run times by batch rows, and `runs` concurrent runs.

    Raises:
        InvalidArgumentError: A value is not valid.
    """
    items = sorted(run_s_by_rows.items())
    if not items or items[0][0] < 1:
        raise InvalidArgumentError("service times need batches of at least 1 row")
    if any(after[1] < before[1] for before, after in pairwise(items)):
        msg = "a larger batch cannot take less time than a smaller one; check --service-time"
        raise InvalidArgumentError(msg)
    cells = tuple(
        cell_of(
            Setting(threads=1, runs=1, rows=rows, length=NO_LENGTH),
            [ratio * run_s for ratio in _RUN_SPREAD],
            elapsed_s=run_s * len(_RUN_SPREAD),
        )
        for rows, run_s in items
    )
    predictor = Predictor(
        replica=SimulatedReplica(max_batch_size=items[-1][0], max_runs=runs),
        service=lambda seed: MeasuredService(cells, seed=seed),
        requests=_REQUESTS,
    )
    return _predicted(predictor.predict())


def _predicted(prediction: Prediction) -> ReplicaProfile:
    curve = prediction.curve
    p99s = np.maximum.accumulate([point.p99_s for point in curve])
    return ReplicaProfile(
        capacity=prediction.capacity,
        loads=tuple(point.load_ratio for point in curve),
        p99s=tuple(float(p99) for p99 in p99s),
        batch_rows=tuple(point.batch_rows for point in curve),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Expected traffic."""

    rates: tuple[float, ...]
    """Requests per second over equal intervals."""
    growth_ratio: float = 0.0
    """Growth per month; 0.05 is 5 %."""
    months: int = 0
    """Forecast horizon in months."""
    peak_factor: float = 1.0
    """Ratio of the busiest second to the highest rate, which is an average."""

    def __post_init__(self) -> None:
        peak = max(self.peak_rate(month) for month in (0, self.months))
        if not 0.0 < peak <= 1e9:  # noqa: PLR2004  # NaN fails, too
            msg = f"a rate must be above 0 and at most 1,000,000,000 requests/s, but is {peak:g}"
            raise InvalidArgumentError(msg)

    def peak_rate(self, month: int | None = None) -> float:
        """Return the peak rate of a month; None for the last month."""
        return max(self.rates) * self.peak_factor * self.growth_factor(month)

    def mean_rate(self) -> float:
        """Return the mean rate of the last month."""
        return sum(self.rates) / len(self.rates) * self.growth_factor()

    def growth_factor(self, month: int | None = None) -> float:
        """Return the growth factor of rates after a number of months."""
        return (1.0 + self.growth_ratio) ** (self.months if month is None else month)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeType:
    """A machine type to choose from; the cost is in any currency."""

    name: str
    cores: float
    memory_bytes: int
    cost_per_hour: float
    gpus: int = 0
    speed: float = 1.0
    """Relative to the measured machine."""

    @property
    def usable_cores(self) -> float:
        """Return the cores without the share that Kubernetes reserves."""
        return self.cores * USABLE_RATIO

    def holds(self, replica: ReplicaProfile) -> tuple[int, str]:
        """Return the number of replicas that fit, and the limiting resource."""
        limits = {"cores": int(self.usable_cores / replica.cores + 1e-9)}
        if replica.memory_bytes:
            limits["memory"] = int(self.memory_bytes * USABLE_RATIO) // replica.memory_bytes
        if replica.gpus:
            limits["GPUs"] = self.gpus // replica.gpus
        name = min(limits, key=lambda name: limits[name])
        return limits[name], name


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLoad:
    """The load to plan for, and the failures in a cluster that must not break the SLO."""

    replica: ReplicaProfile
    forecast: Forecast
    p99_s: float | None = None
    """Latency objective; None loads replicas to 80 % of their capacity."""
    spare_nodes: int = 1
    zones: int = 1
    """Number of zones over which nodes are spread."""
    lose_zone: bool = False
    """A whole zone may fail."""
    gateway_rate_per_core: float = GATEWAY_RATE_PER_CORE
    gateway_cores: int = GATEWAY_CORES

    def __post_init__(self) -> None:
        if self.lose_zone and self.zones < 2:  # noqa: PLR2004  # one is lost, one is left
            raise InvalidArgumentError(
                "--lose-zone needs at least two zones, such as --zones 3 --lose-zone"
            )

    @property
    def zone_ratio(self) -> float:
        """Return the factor on the number of nodes so that a zone may fail."""
        return self.zones / (self.zones - 1) if self.lose_zone else 1.0

    def nodes_for(self, needed: int) -> int:
        """Return the number of nodes so that `needed` remain in the worst case."""
        total = max(needed + self.spare_nodes, math.ceil(needed * self.zone_ratio))
        while self.lose_zone and total - math.ceil(total / self.zones) < needed:
            total += 1
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The resources for a rate on one machine type, over all clusters."""

    rate: float
    clusters: int
    replicas_needed: int
    replicas: int
    """Number of replicas, with headroom."""
    gateways: int
    nodes_needed: int
    nodes: int
    """Number of nodes, with headroom."""
    cost_per_month: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOption:
    """The fleet at the end of the forecast on one machine type."""

    node: NodeType
    why: tuple[str, ...]
    """The arithmetic, or why it does not fit, as sentences."""
    fleet: Fleet | None = None
    """Resources; None if the machine type does not fit."""
    rate_per_replica: float = 0.0
    load_ratio: float = 0.0
    """Share of the capacity at the peak, with only the needed replicas."""
    p99_s: float = 0.0
    """Predicted at that load."""
    batch_rows: float = 1.0
    cost_per_million: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityPlan:
    """Machine types by cost, the cheapest that fits, and the growth of its fleet."""

    peak_rate: float
    mean_rate: float
    options: tuple[NodeOption, ...]
    recommended: str | None
    """Cheapest machine type that fits; None if none fits."""
    months: tuple[Fleet, ...]
    """Fleets of the recommended machine type, from now to the end of the forecast."""
    min_replicas: int
    """Autoscaler bounds for one cluster: from the lowest current rate to the last peak."""
    max_replicas: int
    assumptions: tuple[str, ...]


def plan_capacity(demand: PlannedLoad, nodes: Sequence[NodeType]) -> CapacityPlan:
    """Compare machine types.

    Raises:
        SloUnreachableError: None of them meets the p99.
    """
    options: list[NodeOption] = []
    unreachable: SloUnreachableError | None = None
    for node in nodes:
        try:
            options.append(_option(demand, node))
        except SloUnreachableError as error:
            unreachable = error
            options.append(NodeOption(node=node, why=(str(error),)))
    fitting = [option for option in options if option.fleet is not None]
    if unreachable is not None and not fitting:
        raise unreachable
    best = min(fitting, key=_cost, default=None)
    forecast, low, high = demand.forecast, 0, 0
    months: list[Fleet] = []
    if best is not None and best.fleet is not None:
        rates = [forecast.peak_rate(month) for month in range(forecast.months + 1)]
        months = [fleet_for(demand, best.node, rate) for rate in rates]
        high = math.ceil(best.fleet.replicas / best.fleet.clusters)
        quiet = min(forecast.rates) * forecast.growth_factor(0) / best.fleet.clusters
        low = min(max(math.ceil(quiet / best.rate_per_replica), 2), high)
    lines = ["requests are alike, and arrive at random (Poisson) around the forecast rate"]
    if demand.forecast.peak_factor == 1.0:
        lines.append(
            "the highest rate is that of the busiest second; for averages, add --peak-factor"
        )
    if len(demand.forecast.rates) > 1:
        lines.append("replicas are ready when load arrives: an autoscaler lags by the start time")
    if demand.p99_s is None:
        lines.append("no p99 objective: replicas are loaded to 80 % of their capacity")
    return CapacityPlan(
        peak_rate=forecast.peak_rate(),
        mean_rate=forecast.mean_rate(),
        options=tuple(sorted(options, key=_cost)),
        recommended=None if best is None else best.node.name,
        months=tuple(months),
        min_replicas=low,
        max_replicas=high,
        assumptions=tuple(lines),
    )


def _cost(option: NodeOption) -> tuple[bool, float, int]:
    if option.fleet is None:
        return True, 0.0, 0
    return False, round(option.fleet.cost_per_month, 2), option.fleet.nodes


def _option(demand: PlannedLoad, node: NodeType) -> NodeOption:
    replica, forecast = demand.replica.faster(node.speed), demand.forecast
    per_node, limited_by = node.holds(replica)
    if per_node < 1:
        reason = f"a replica does not fit: too few {limited_by}"
        return NodeOption(node=node, why=(reason,))
    peak = forecast.peak_rate()
    fleet = fleet_for(demand, node, peak)
    load = peak / fleet.replicas_needed / replica.capacity
    rate_per_replica = replica.capacity * replica.load_within(demand.p99_s)
    replicas = (
        f"a replica sustains {number_text(replica.capacity)} "
        f"requests/s, and is assigned at most {number_text(rate_per_replica)}: "
        f"{fleet.replicas_needed:,} for "
        f"{number_text(peak)} requests/s"
    )
    packing = (
        f"{per_node} per node, limited by {limited_by}; {fleet.nodes_needed:,} nodes with "
        f"{fleet.gateways} gateways, and {fleet.nodes - fleet.nodes_needed} more as headroom"
    )
    return NodeOption(
        node=node,
        why=(replicas, packing),
        fleet=fleet,
        rate_per_replica=rate_per_replica,
        load_ratio=load,
        p99_s=replica.p99_s(load),
        batch_rows=float(np.interp(load, replica.loads, replica.batch_rows)),
        cost_per_million=fleet.cost_per_month / forecast.mean_rate() / HOURS_PER_MONTH / 3.6e-3,
    )


def fleet_for(demand: PlannedLoad, node: NodeType, rate: float) -> Fleet:
    """Return the fleet for `rate` on nodes that hold at least one replica, in equal clusters.

    Raises:
        SloUnreachableError: No number of replicas meets the p99.
    """
    replica = demand.replica.faster(node.speed)
    per_node, _ = node.holds(replica)
    rate_per_replica = replica.capacity * replica.load_within(demand.p99_s)
    gateway_rate = demand.gateway_rate_per_core * _GATEWAY_BUSY_RATIO * demand.gateway_cores
    clusters = math.ceil(rate / rate_per_replica * demand.zone_ratio / REPLICAS_PER_CLUSTER) or 1
    replicas = math.ceil(rate / clusters / rate_per_replica - 1e-12) or 1
    gateways = max(math.ceil(rate / clusters / gateway_rate) + 1, 2)
    nodes = math.ceil(replicas / per_node)
    # Gateways use the cores that replicas leave free, then further nodes.
    free_cores = nodes * node.usable_cores - replicas * replica.cores
    nodes += max(
        0, math.ceil((gateways * demand.gateway_cores - free_cores) / node.usable_cores - 1e-9)
    )
    total = demand.nodes_for(nodes)
    running = min(math.ceil(replicas * total / nodes), total * per_node)
    return Fleet(
        rate=rate,
        clusters=clusters,
        replicas_needed=replicas * clusters,
        replicas=running * clusters,
        gateways=gateways * clusters,
        nodes_needed=nodes * clusters,
        nodes=total * clusters,
        cost_per_month=total * clusters * node.cost_per_hour * HOURS_PER_MONTH,
    )
