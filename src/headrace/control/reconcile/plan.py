"""Planner of the next actions from the observed to the desired state, a pure function.

The order loses no request: start a replica, wait until it is ready, publish routes; drain a replica
only after the gateway acknowledged routes without it.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from headrace.control.model.desired import (
    POOL_PREFIX,
    DesiredArm,
    DesiredEndpoint,
    DesiredState,
    Revision,
    pool_endpoint,
)
from headrace.control.model.observed import Observed, Replica, ReplicaPhase, addresses_of
from headrace.control.reconcile.routes import PoolAddresses, RoutedEndpoint, route_of
from headrace.gateway import EndpointRoute

LOAD_TIMEOUT_S: Final = 600.0
SILENT_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReplica:
    """Start the first process of a new replica."""

    name: str
    serial: int
    revision: Revision


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartReplica:
    """Restart a replica whose process ended."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishRoutes:
    """Send routes to the gateway and wait for its acknowledgement."""

    routes: tuple[EndpointRoute, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReplica:
    """Ask a replica that gets no new requests to finish its requests and exit."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KillReplica:
    """Kill a process that did not drain in time, or that does not answer."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetReplica:
    """Remove the files of a replica that ended and is not desired."""

    name: str


Action = StartReplica | RestartReplica | PublishRoutes | DrainReplica | KillReplica | ForgetReplica


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """Result for one endpoint: its route, replicas to keep, and missing replicas of each arm."""

    route: EndpointRoute
    retained: frozenset[str]
    starts: tuple[tuple[DesiredArm, int], ...]

    @classmethod
    def of(cls, view: RoutedEndpoint) -> "Prospect":
        """Return the prospect of `view`."""
        missing = [
            (arm, arm.replicas - len(view.desired[arm.revision.id]))
            for arm in view.endpoint.arms
            if not arm.revision.unloadable
        ]
        route = route_of(view)
        return cls(
            route=route,
            retained=frozenset(replica.name for replica in view.retained(route)),
            starts=tuple((arm, count) for arm, count in missing if count > 0),
        )


@dataclass(frozen=True, slots=True)
class _PlanInputs:
    """All inputs of a prospect; a mere health report of a replica does not change them."""

    endpoint: DesiredEndpoint
    current: EndpointRoute | None
    pools: PoolAddresses
    replicas: tuple[tuple[str, ReplicaPhase, bool, str], ...]

    def is_same(self, other: "_PlanInputs") -> bool:
        """Whether the inputs are the same; large parts are compared by identity, for speed."""
        return (
            self.endpoint is other.endpoint
            and self.current is other.current
            and self.replicas == other.replicas
            and self.pools == other.pools
        )


@dataclass(slots=True)
class Memo:
    """Prospects of the last plan by endpoint: few of many endpoints change between plans."""

    _known: dict[str, tuple[_PlanInputs, Prospect]] = field(default_factory=dict)

    def prospect(
        self,
        endpoint: DesiredEndpoint,
        replicas: Sequence[Replica],
        current: EndpointRoute | None,
        pools: PoolAddresses,
    ) -> Prospect:
        """Return the prospect of `endpoint`; the last one if its inputs are the same."""
        facts = tuple((r.name, r.phase, r.was_ready, r.revision_id) for r in replicas)
        grounds = _PlanInputs(endpoint, current, pools, facts)
        cached = self._known.get(endpoint.name)
        if cached is not None and cached[0].is_same(grounds):
            return cached[1]
        prospect = Prospect.of(RoutedEndpoint.of(endpoint, replicas, current, pools))
        if current is not None and prospect.route == current:
            # Return the same object, so that comparing and translating it is fast.
            prospect = replace(prospect, route=current)
        self._known[endpoint.name] = grounds, prospect
        return prospect

    def forget_all_but(self, names: Collection[str]) -> None:
        """Drop the entries of removed endpoints."""
        for name in self._known.keys() - set(names):
            del self._known[name]


def plan(
    desired: DesiredState,
    observed: Observed,
    now: float,
    *,
    drain_timeout_s: float,
    memo: Memo | None = None,
) -> list[Action]:
    """Return the actions to take now; empty if there is nothing to do before the next event.

    Args:
        now: Monotonic seconds, as in `observed`.
        drain_timeout_s: How long a replica may drain before it is killed.
        memo: Cache of earlier plans; it does not change the result.
    """
    prospects = prospects_of(desired, observed, Memo() if memo is None else memo)
    keep = {name for prospect in prospects for name in prospect.retained}
    routes = tuple(prospect.route for prospect in prospects)
    actions: list[Action] = _starts(prospects, observed)
    if routes != observed.published and observed.can_publish:
        actions.append(PublishRoutes(routes=routes))
    busy = observed.routed_addresses() | addresses_of(routes)
    for replica in observed.replicas.values():
        action = _next_for(
            replica,
            is_kept=replica.name in keep,
            is_routed=replica.address in busy,
            now=now,
            drain_timeout_s=drain_timeout_s,
        )
        if action is not None:
            actions.append(action)
    return actions


def due_at(observed: Observed, *, drain_timeout_s: float) -> float | None:
    """Return the monotonic time at which `plan` acts next without an event; None for never."""
    times: list[float] = []
    for replica in observed.replicas.values():
        match replica.phase:
            case ReplicaPhase.EXITED if replica.retry_at is not None:
                times.append(replica.retry_at)
            case ReplicaPhase.DRAINING if not replica.kill_sent:
                times.append(replica.since + drain_timeout_s)
            case ReplicaPhase.STARTING if not replica.kill_sent:
                times.append(replica.since + LOAD_TIMEOUT_S)
            case ReplicaPhase.READY | ReplicaPhase.UNREADY if not replica.kill_sent:
                times.append(replica.answered_at + SILENT_TIMEOUT_S)
            case _:
                pass
    return min(times, default=None)


def prospects_of(desired: DesiredState, observed: Observed, memo: Memo) -> list[Prospect]:
    """Return the prospects of all pools and desired endpoints."""
    by_endpoint: dict[str, list[Replica]] = defaultdict(list)
    for replica in observed.replicas.values():
        if not replica.is_leaving:
            by_endpoint[replica.endpoint].append(replica)
    current = {route.name: route for route in observed.published or ()}
    no_addresses = PoolAddresses()
    pools = [
        Prospect.of(
            RoutedEndpoint.of(pool, by_endpoint[pool.name], current.get(pool.name), no_addresses)
        )
        for pool in map(pool_endpoint, desired.pools)
    ]
    addresses = _pool_addresses(pools, observed) if pools else no_addresses
    endpoints = desired.endpoints
    memo.forget_all_but([endpoint.name for endpoint in endpoints])
    return pools + [
        memo.prospect(e, by_endpoint.get(e.name, ()), current.get(e.name), addresses)
        for e in endpoints
    ]


def _pool_addresses(pools: Sequence[Prospect], observed: Observed) -> PoolAddresses:
    """Return the current addresses of the pools."""
    by_pool = {
        pool.route.name.removeprefix(POOL_PREFIX): tuple(
            address for arm in pool.route.arms for address in arm.replicas
        )
        for pool in pools
    }
    ready = {address for addresses in by_pool.values() for address in addresses}
    hosted = {
        replica.address: observed.hosted.get(replica.name, frozenset())
        for replica in observed.replicas.values()
        if replica.address in ready
    }
    return PoolAddresses(by_pool=by_pool, hosted=hosted)


def _starts(prospects: Sequence[Prospect], observed: Observed) -> list[Action]:
    starts: list[Action] = []
    serial = observed.next_serial
    for prospect in prospects:
        for arm, count in prospect.starts:
            for _ in range(count):
                revision = arm.revision
                if revision.hosts is not None:
                    name = f"pool-{revision.hosts.name}-{serial}"
                else:
                    name = f"{revision.endpoint}-{revision.version}-{serial}"
                starts.append(StartReplica(name=name, serial=serial, revision=revision))
                serial += 1
    return starts


def _next_for(
    replica: Replica, *, is_kept: bool, is_routed: bool, now: float, drain_timeout_s: float
) -> Action | None:
    name = replica.name
    if replica.phase is ReplicaPhase.ENDED:
        return ForgetReplica(name=name)
    if replica.phase is ReplicaPhase.EXITED:
        if not is_kept:
            return ForgetReplica(name=name)
        is_due = replica.retry_at is None or replica.retry_at <= now
        return RestartReplica(name=name) if is_due else None
    if replica.phase is not ReplicaPhase.DRAINING and not is_kept and not is_routed:
        return DrainReplica(name=name)
    reason = "" if replica.kill_sent else _overdue(replica, now, drain_timeout_s)
    return KillReplica(name=name, reason=reason) if reason else None


def _overdue(replica: Replica, now: float, drain_timeout_s: float) -> str:
    """Return why `replica` must be killed; empty if it need not."""
    if replica.phase is ReplicaPhase.DRAINING and now - replica.since >= drain_timeout_s:
        return f"still running {drain_timeout_s:g} s after the drain started"
    if replica.phase is ReplicaPhase.STARTING and now - replica.since >= LOAD_TIMEOUT_S:
        return f"not ready {LOAD_TIMEOUT_S:g} s after its start"
    is_serving = replica.phase in {ReplicaPhase.READY, ReplicaPhase.UNREADY}
    if is_serving and now - replica.answered_at >= SILENT_TIMEOUT_S:
        return f"gave no response for {SILENT_TIMEOUT_S:g} s"
    return ""
