"""Next actions from the observed to the desired state. One pure function.

The order that loses no request: start, wait until ready, publish routes, and only when the gateway
acknowledged routes without a replica tell that replica to drain.
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
    """Start a replica again whose process ended."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishRoutes:
    """Make the gateway route so, and learn when it does."""

    routes: tuple[EndpointRoute, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReplica:
    """Tell a replica that gets no new requests to finish and end."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KillReplica:
    """End a process that did not end by itself, or that answers nobody."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetReplica:
    """Remove what is left of a replica that ended and is not wanted."""

    name: str


Action = StartReplica | RestartReplica | PublishRoutes | DrainReplica | KillReplica | ForgetReplica


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """What follows for one endpoint: its route, who goes on, and how many more each arm needs."""

    route: EndpointRoute
    retained: frozenset[str]
    starts: tuple[tuple[DesiredArm, int], ...]

    @classmethod
    def of(cls, view: RoutedEndpoint) -> "Prospect":
        """What follows from `view`."""
        missing = [
            (arm, arm.replicas - len(view.desired[arm.revision.id]))
            for arm in view.endpoint.arms
            if not arm.revision.unloadable
        ]
        return cls(
            route=route_of(view),
            retained=frozenset(replica.name for replica in view.retained()),
            starts=tuple((arm, count) for arm, count in missing if count > 0),
        )


@dataclass(frozen=True, slots=True)
class _PlanInputs:
    """Everything that a prospect follows from; a sign of life changes nothing of it."""

    endpoint: DesiredEndpoint
    current: EndpointRoute | None
    pools: PoolAddresses
    replicas: tuple[tuple[str, ReplicaPhase, bool, str], ...]

    def is_same(self, other: "_PlanInputs") -> bool:
        """Whether they are the same: large parts the same objects, which is quick to see."""
        return (
            self.endpoint is other.endpoint
            and self.current is other.current
            and self.replicas == other.replicas
            and self.pools == other.pools
        )


@dataclass(slots=True)
class Memo:
    """What followed last time, by endpoint: among many, few change from one plan to the next."""

    _known: dict[str, tuple[_PlanInputs, Prospect]] = field(default_factory=dict)

    def prospect(
        self,
        endpoint: DesiredEndpoint,
        replicas: Sequence[Replica],
        current: EndpointRoute | None,
        pools: PoolAddresses,
    ) -> Prospect:
        """What follows for `endpoint`; as last time if what it follows from is the same."""
        facts = tuple((r.name, r.phase, r.was_ready, r.revision_id) for r in replicas)
        grounds = _PlanInputs(endpoint, current, pools, facts)
        cached = self._known.get(endpoint.name)
        if cached is not None and cached[0].is_same(grounds):
            return cached[1]
        prospect = Prospect.of(RoutedEndpoint.of(endpoint, replicas, current, pools))
        if current is not None and prospect.route == current:
            # The same object: whoever compares or translates it is done at once.
            prospect = replace(prospect, route=current)
        self._known[endpoint.name] = grounds, prospect
        return prospect

    def forget_all_but(self, names: Collection[str]) -> None:
        """Let go of endpoints that are gone."""
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
    """The actions to take now; empty if there is nothing to do before the next event.

    Args:
        now: Monotonic seconds, as in `observed`.
        drain_timeout_s: How long a replica may drain before it is killed.
        memo: Of earlier plans, for speed; changes nothing else.
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
    """When time alone makes `plan` act next; None if only events can."""
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
    """What follows for each pool and each desired endpoint, whatever its replicas are."""
    by_endpoint: dict[str, list[Replica]] = defaultdict(list)
    for replica in observed.replicas.values():
        if not replica.is_leaving:
            by_endpoint[replica.endpoint].append(replica)
    current = {route.name: route for route in observed.published or ()}
    nowhere = PoolAddresses()
    pools = [
        Prospect.of(
            RoutedEndpoint.of(pool, by_endpoint[pool.name], current.get(pool.name), nowhere)
        )
        for pool in map(pool_endpoint, desired.pools)
    ]
    addresses = _pool_addresses(pools, observed) if pools else nowhere
    endpoints = desired.endpoints
    memo.forget_all_but([endpoint.name for endpoint in endpoints])
    return pools + [
        memo.prospect(e, by_endpoint.get(e.name, ()), current.get(e.name), addresses)
        for e in endpoints
    ]


def _pool_addresses(pools: Sequence[Prospect], observed: Observed) -> PoolAddresses:
    """Where pools answer now."""
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
    """Why `replica` has to be killed; empty if it need not."""
    if replica.phase is ReplicaPhase.DRAINING and now - replica.since >= drain_timeout_s:
        return f"still running {drain_timeout_s:g} s after the drain started"
    if replica.phase is ReplicaPhase.STARTING and now - replica.since >= LOAD_TIMEOUT_S:
        return f"not ready {LOAD_TIMEOUT_S:g} s after its start"
    is_serving = replica.phase in {ReplicaPhase.READY, ReplicaPhase.UNREADY}
    if is_serving and now - replica.answered_at >= SILENT_TIMEOUT_S:
        return f"gave no response for {SILENT_TIMEOUT_S:g} s"
    return ""
