"""What does a load take on one type of node? Replicas, gateways, nodes, clusters, cost. Pure."""

import math
from dataclasses import replace
from typing import Final

from headrace.advise.capacity.documents import Asked, Autoscaling, Month, Need, Option
from headrace.advise.capacity.fleet import QUANTILE, Fleet
from headrace.advise.capacity.limits import grouped
from headrace.advise.capacity.nodes import NodeType, per_node, with_headroom

HOURS_A_MONTH: Final = 730.0
_LEAST_GATEWAYS: Final = 2
_MOST_CLUSTERS: Final = 100_000
_PODS_OF_A_NODE: Final = 10
"""Of the pods that a node may have, those that the system and agents take."""
_MILLION: Final = 1e6


class Sizer:
    """Sizes on one type of node."""

    def __init__(self, asked: Asked, node: NodeType) -> None:
        self.node = node
        self._asked = asked
        self._curve = asked.curve.slower(1.0 / node.speed)
        pods = int(asked.limits.pods_per_node.value) - _PODS_OF_A_NODE
        self._per_node, self._limited_by = per_node(node, asked.shape, most_pods=pods)
        self._fleets: dict[int, Fleet] = {}

    def option(self) -> Option:
        """All that the forecast's end takes."""
        asked, node = self._asked, self.node
        if self._per_node < 1:
            why = f"a replica does not fit: too few {self._limited_by} ({_usable(node)})"
            return Option(node=node, fits=False, why=(why,), limited_by=self._limited_by)
        peak = asked.forecast.peak_rate()
        clusters = self.clusters(peak)
        if clusters is None:
            why = "no number of clusters is enough: fewer, larger nodes or a faster model"
            return Option(node=node, fits=False, why=(why,))
        need = self.need(peak, clusters)
        fleet = self._fleet(need.gateways)
        answered = fleet.at(need.rate, need.replicas)
        cost = need.nodes * clusters * node.cost_per_hour * HOURS_A_MONTH
        month_requests = asked.forecast.mean_rate() * HOURS_A_MONTH * 3600.0
        bits, network_why = self._network(peak, need.nodes * clusters)
        size = int(asked.limits.gateway_cores.value)
        assert answered is not None, "as many as keep up"
        return Option(
            node=node,
            fits=not network_why,
            why=(*network_why, *self._why(need, clusters)),
            clusters=clusters,
            need=need,
            replicas_per_node=self._per_node,
            limited_by=self._limited_by,
            p99_s=answered.quantile_s(QUANTILE),
            load_ratio=need.rate / need.replicas / self._curve.capacity,
            busy_ratio=answered.busy_ratio,
            batch_rows=answered.batch_rows,
            rate_per_replica=need.rate / need.replicas,
            replicas=need.running * clusters,
            nodes=need.nodes * clusters,
            gateway_cores=need.gateways * size * clusters,
            cores=need.nodes * clusters * node.cores,
            memory_bytes=need.nodes * clusters * node.memory_bytes,
            gpus=need.nodes * clusters * node.gpus,
            network_bits_per_s=bits,
            connections_per_gateway=need.running * size,
            cost_per_month=cost,
            cost_per_million=cost / month_requests * _MILLION,
            autoscaled_cost_per_month=self._autoscaled(clusters),
        )

    def need(self, rate: float, clusters: int) -> Need:
        """What `rate` requests a second over all clusters take in each of them."""
        asked = self._asked
        each = rate / max(clusters - asked.spare_clusters, 1)
        gateways = self._gateways(each)
        replicas = self._fleet(gateways).copies_for(each)
        needed = self._nodes(replicas, gateways)
        total, spare, why = with_headroom(needed, asked.headroom)
        running = min(math.ceil(replicas * total / (total - spare)), total * self._per_node)
        return Need(
            rate=each,
            replicas=replicas,
            running=running,
            gateways=gateways,
            nodes_needed=needed,
            nodes=total,
            spare_nodes=spare,
            headroom_why=why,
        )

    def clusters(self, rate: float) -> int | None:
        """The fewest clusters, none of which is larger than one may be; None if none are enough."""
        low = high = self._fewest_clusters(rate)
        while high <= _MOST_CLUSTERS and not self._is_small(self.need(rate, high)):
            low, high = high + 1, high * 2
        if high > _MOST_CLUSTERS:
            return None
        while low < high:
            middle = (low + high) // 2
            if self._is_small(self.need(rate, middle)):
                high = middle
            else:
                low = middle + 1
        return low

    def _fewest_clusters(self, rate: float) -> int:
        """Fewer are too small even if replicas were as busy as they may be, and nothing failed."""
        asked, limits = self._asked, self._asked.limits
        replicas = rate / (self._curve.capacity * asked.promise.most_busy_ratio)
        most = min(
            limits.replicas_per_control_plane.value,
            limits.nodes_per_cluster.value * self._per_node,
        )
        return max(
            asked.clusters,
            asked.spare_clusters + 1,
            math.ceil(min(replicas / most, _MOST_CLUSTERS)) + asked.spare_clusters,
        )

    def months(self) -> list[Month]:
        """From now to the forecast's end."""
        forecast = self._asked.forecast
        found = []
        for month in range(forecast.months + 1):
            peak = forecast.peak_rate(month)
            clusters = self.clusters(peak)
            if clusters is None:
                break
            need = self.need(peak, clusters)
            found.append(
                Month(
                    month=month,
                    peak_rate=peak,
                    mean_rate=forecast.mean_rate(month),
                    replicas=need.running * clusters,
                    nodes=need.nodes * clusters,
                    clusters=clusters,
                    cost_per_month=need.nodes * clusters * self.node.cost_per_hour * HOURS_A_MONTH,
                )
            )
        return found

    def autoscaling(self) -> Autoscaling | None:
        """Bounds for one cluster: from the quietest point of the curve now to the last peak."""
        forecast = self._asked.forecast
        clusters = self.clusters(forecast.peak_rate())
        if clusters is None:
            return None
        most = self.need(forecast.peak_rate(), clusters)
        quiet = min(forecast.curve.rates) * forecast.grown(0) / clusters
        fewest = self._fleet(most.gateways).copies_for(quiet)
        return Autoscaling(
            min_replicas=min(max(fewest, 2), most.running), max_replicas=most.running
        )

    def _is_small(self, need: Need) -> bool:
        limits = self._asked.limits
        return (
            need.running <= limits.replicas_per_control_plane.value
            and need.nodes <= limits.nodes_per_cluster.value
            and need.running + need.gateways <= limits.pods_per_cluster.value
        )

    def _gateways(self, rate: float) -> int:
        """Of one cluster: what is needed, no fewer than two, and one more that may fail."""
        limits = self._asked.limits
        each = (
            limits.gateway_rate_per_core.value
            * limits.gateway_busy_ratio.value
            * limits.gateway_cores.value
        )
        return max(math.ceil(rate / each) + 1, _LEAST_GATEWAYS)

    def _fleet(self, gateways: int) -> Fleet:
        """Counts of replicas behind so many gateways; sixteen of them know as little as more."""
        seen = min(1 << math.ceil(math.log2(gateways)), 16)
        if seen not in self._fleets:
            promise = replace(self._asked.promise, gateways=seen)
            self._fleets[seen] = Fleet(curve=self._curve, promise=promise)
        return self._fleets[seen]

    def _nodes(self, replicas: int, gateways: int) -> int:
        """Nodes that hold both: gateways take the cores that replicas leave, then further nodes."""
        shape, node = self._asked.shape, self.node
        of_replicas = math.ceil(replicas / self._per_node)
        left = of_replicas * node.usable_cores - replicas * shape.cores
        wanted = gateways * self._asked.limits.gateway_cores.value
        return of_replicas + max(0, math.ceil((wanted - left) / node.usable_cores - 1e-9))

    def _network(self, rate: float, nodes: int) -> tuple[float | None, tuple[str, ...]]:
        """Bits a second between callers and gateways, and whether nodes carry it."""
        asked = self._asked
        if asked.request_bytes is None or asked.response_bytes is None:
            return None, ()
        bits = 8.0 * rate * (asked.request_bytes + asked.response_bytes)
        has = self.node.network_bits_per_s
        if has is not None and bits * 2.0 > has * nodes:  # in by the gateway, and on to a replica
            why = (
                f"{bits * 2.0 / 1e9:,.3g} Gbit/s pass {nodes:,} nodes, which have "
                f"{has * nodes / 1e9:,.3g} together: more of smaller ones, or smaller requests"
            )
            return bits, (why,)
        return bits, ()

    def _autoscaled(self, clusters: int) -> float:
        """The cost of a month in which nodes follow the curve."""
        forecast = self._asked.forecast
        growth = forecast.grown(forecast.months)
        hours = 0.0
        known: dict[float, int] = {}
        for rate in forecast.curve.rates:
            rounded = float(f"{rate * growth * forecast.peak_factor:.2g}")
            if rounded not in known:
                known[rounded] = self.need(rounded, clusters).nodes * clusters
            hours += known[rounded]
        return hours / len(forecast.curve.rates) * HOURS_A_MONTH * self.node.cost_per_hour

    def _why(self, need: Need, clusters: int) -> tuple[str, ...]:
        cores = self._asked.shape.cores
        queues = (
            f"a replica ({cores:g} core{'' if cores == 1.0 else 's'}) keeps up with "
            f"{grouped(self._curve.capacity)} requests/s, and may get "
            f"{grouped(need.rate / need.replicas)}: {need.replicas:,} for {grouped(need.rate)} "
            "requests/s"
            f"{' in each cluster' if clusters > 1 else ''}"
        )
        packing = (
            f"{self._per_node} a node, limited by {self._limited_by} ({_usable(self.node)}); "
            f"{need.nodes_needed:,} nodes with {need.gateways} gateways, and "
            f"{need.spare_nodes} more for {need.headroom_why}"
        )
        return queues, packing


def _usable(node: NodeType) -> str:
    text = f"{node.usable_cores:.3g} of {node.cores:g} cores usable"
    if node.memory_bytes:
        text += f", {node.usable_memory_bytes / 1e9:.3g} GB"
    return text + (f", {node.gpus} GPUs" if node.gpus else "")
