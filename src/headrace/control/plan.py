"""What is the next step from what runs to what should run? One pure function.

The order that loses no request: start, wait until ready, publish routes, and only when the gateway
acknowledged routes without a replica tell that replica to drain.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headrace.control.desired import (
    POOL_PREFIX,
    DesiredArm,
    DesiredState,
    Revision,
    pool_endpoint,
)
from headrace.control.observed import Observed, Phase, Replica, Route, addresses_of
from headrace.control.routes import EndpointView, PoolAddresses, route_of

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

    routes: tuple[Route, ...]


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


def plan(
    desired: DesiredState, observed: Observed, now: float, *, drain_timeout_s: float
) -> list[Action]:
    """The actions to take now; empty if there is nothing to do before the next event.

    Args:
        now: Monotonic seconds, as in `observed`.
        drain_timeout_s: How long a replica may drain before it is killed.
    """
    views = _views(desired, observed)
    keep = {replica.name for view in views for replica in view.kept()}
    routes = tuple(route_of(view) for view in views)
    actions: list[Action] = _starts(views, observed)
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
            case Phase.EXITED if replica.retry_at is not None:
                times.append(replica.retry_at)
            case Phase.DRAINING if not replica.kill_sent:
                times.append(replica.since + drain_timeout_s)
            case Phase.STARTING if not replica.kill_sent:
                times.append(replica.since + LOAD_TIMEOUT_S)
            case Phase.READY | Phase.UNREADY if not replica.kill_sent:
                times.append(replica.answered_at + SILENT_TIMEOUT_S)
            case _:
                pass
    return min(times, default=None)


def _views(desired: DesiredState, observed: Observed) -> list[EndpointView]:
    """Each desired endpoint beside what exists of it."""
    by_endpoint: dict[str, list[Replica]] = defaultdict(list)
    for replica in observed.replicas.values():
        if not replica.is_leaving:
            by_endpoint[replica.endpoint].append(replica)
    current = {route.name: route for route in observed.published or ()}
    pools = [
        EndpointView.of(endpoint, by_endpoint[endpoint.name], current.get(endpoint.name))
        for endpoint in map(pool_endpoint, desired.pools)
    ]
    addresses = _pool_addresses(pools, observed)
    return pools + [
        EndpointView.of(endpoint, by_endpoint[endpoint.name], current.get(endpoint.name), addresses)
        for endpoint in desired.endpoints
    ]


def _pool_addresses(pools: Sequence[EndpointView], observed: Observed) -> PoolAddresses:
    """Where pools answer now."""
    by_pool = {
        view.endpoint.name.removeprefix(POOL_PREFIX): tuple(
            address for arm in route_of(view).arms for address in arm.replicas
        )
        for view in pools
    }
    ready = {address for addresses in by_pool.values() for address in addresses}
    told = {
        replica.address: observed.hosted.get(replica.name, frozenset())
        for replica in observed.replicas.values()
        if replica.address in ready
    }
    return PoolAddresses(by_pool=by_pool, told=told)


def _starts(views: Sequence[EndpointView], observed: Observed) -> list[Action]:
    starts: list[Action] = []
    serial = observed.next_serial
    for view in views:
        for arm in view.endpoint.arms:
            for _ in range(arm.replicas - len(view.wanted[arm.revision.id])):
                starts.append(_start(arm, serial))
                serial += 1
    return starts


def _start(arm: DesiredArm, serial: int) -> StartReplica:
    revision = arm.revision
    if revision.hosts is not None:
        name = f"pool-{revision.hosts.name}-{serial}"
    else:
        name = f"{revision.endpoint}-{revision.version}-{serial}"
    return StartReplica(name=name, serial=serial, revision=revision)


def _next_for(
    replica: Replica, *, is_kept: bool, is_routed: bool, now: float, drain_timeout_s: float
) -> Action | None:
    name = replica.name
    if replica.phase is Phase.ENDED:
        return ForgetReplica(name=name)
    if replica.phase is Phase.EXITED:
        if not is_kept:
            return ForgetReplica(name=name)
        is_due = replica.retry_at is None or replica.retry_at <= now
        return RestartReplica(name=name) if is_due else None
    if replica.phase is not Phase.DRAINING and not is_kept and not is_routed:
        return DrainReplica(name=name)
    reason = "" if replica.kill_sent else _overdue(replica, now, drain_timeout_s)
    return KillReplica(name=name, reason=reason) if reason else None


def _overdue(replica: Replica, now: float, drain_timeout_s: float) -> str:
    """Why `replica` has to be killed; empty if it need not."""
    if replica.phase is Phase.DRAINING and now - replica.since >= drain_timeout_s:
        return f"still running {drain_timeout_s:g} s after it was told to drain"
    if replica.phase is Phase.STARTING and now - replica.since >= LOAD_TIMEOUT_S:
        return f"not ready {LOAD_TIMEOUT_S:g} s after its start"
    is_serving = replica.phase in {Phase.READY, Phase.UNREADY}
    if is_serving and now - replica.answered_at >= SILENT_TIMEOUT_S:
        return f"answered nobody for {SILENT_TIMEOUT_S:g} s"
    return ""
