"""Observed state: facts about replicas and the gateway, and how one event changes them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, assert_never

from headrace.core.backoff import Backoff
from headrace.gateway import EndpointRoute

EXIT_CANNOT_LOAD: Final = 3
"""A replica's exit status that says: this model cannot be loaded here."""
STABLE_AFTER_S: Final = 60.0
"""A replica that was ready for this long starts again with a clean record."""
MANY_FAILURES: Final = 3
"""Ends in a row, without having been ready, after which something is called failed."""
CRASHED: Final = Backoff(first_s=0.1, limit_s=30.0)
CANNOT_LOAD: Final = Backoff(first_s=5.0, limit_s=300.0)


def restart_delay_s(*, failures: int, exit_code: int | None) -> float:
    """Seconds until the next start after `failures` in a row, the last with `exit_code`.

    A model that cannot be loaded is tried again because its cause may pass (memory, a missing
    library), but seldom, for loading is costly. `exit_code` is None where nobody could read it.
    """
    policy = CANNOT_LOAD if exit_code == EXIT_CANNOT_LOAD else CRASHED
    return policy.delay_s(failures)


class ReplicaPhase(StrEnum):
    """Where a replica is in its life."""

    STARTING = "starting"
    READY = "ready"
    UNREADY = "unready"
    """It was ready and says now that it is not."""
    DRAINING = "draining"
    """It was told to finish what it has and to end."""
    EXITED = "exited"
    """Its process ended; `retry_at` says when it is started again."""
    ENDED = "ended"
    """Its process ended as it was told to."""


class ProbeResult(StrEnum):
    """What one look at a replica's ready route showed."""

    READY = "ready"
    NOT_READY = "not_ready"
    SILENT = "silent"
    """No answer in time: busy or hung. Says nothing about readiness."""
    REFUSED = "refused"
    """Nobody listens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One copy of a revision: `serial` is unique in this home, `since` is when `phase` began."""

    name: str
    serial: int
    endpoint: str
    version: str
    revision_id: str
    address: str
    phase: ReplicaPhase
    since: float
    pid: int | None = None
    was_ready: bool = False
    """Has been ready at least once. `failures` counts ends in a row; `answered_at` is the last sign
    of life.
    """
    restarts: int = 0
    failures: int = 0
    retry_at: float | None = None
    answered_at: float = 0.0
    exit_code: int | None = None
    reason: str = ""
    kill_sent: bool = False
    query: str = ""
    """Which of a process's models is meant, where it hosts several."""
    deaths: int = 0
    """How often its process ended by itself after it had been ready; not one told to end."""
    death_reason: str = ""
    """How that was the last time."""

    @property
    def process(self) -> int:
        """Tells its process from those before it: by its pid here, by their number elsewhere."""
        return self.restarts if self.pid is None else self.pid

    @property
    def is_running(self) -> bool:
        """Whether there is a process that nobody asked to end."""
        return self.phase in {ReplicaPhase.STARTING, ReplicaPhase.READY, ReplicaPhase.UNREADY}

    @property
    def is_leaving(self) -> bool:
        """Whether it was told to end: nothing brings it back."""
        return self.phase in {ReplicaPhase.DRAINING, ReplicaPhase.ENDED}

    @property
    def cannot_load(self) -> bool:
        """Whether the last process said that the model cannot be loaded."""
        return self.phase is ReplicaPhase.EXITED and self.exit_code == EXIT_CANNOT_LOAD


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Everything known: replicas by name, and the routes that the gateway acknowledged.

    `attempted` are routes that were sent to the gateway and not acknowledged: they may be in force.
    `can_publish` is False while a publication is under way, or after one failed until it is tried
    again.
    """

    replicas: Mapping[str, Replica] = field(default_factory=dict)
    published: tuple[EndpointRoute, ...] | None = None
    attempted: tuple[EndpointRoute, ...] | None = None
    can_publish: bool = True
    hosted: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Which revisions a pool's replica was told to host, by the replica's name."""
    next_serial: int = 1

    def routed_addresses(self) -> frozenset[str]:
        """Replicas that may get requests right now."""
        return addresses_of(self.published or ()) | addresses_of(self.attempted or ())


def perhaps_in_force(
    routes: tuple[EndpointRoute, ...], before: Sequence[EndpointRoute] | None
) -> tuple[EndpointRoute, ...]:
    """`routes` that are sent now, and those sent before them that lead elsewhere.

    None was acknowledged, but of several gateways one may have taken what another refused.
    """
    addresses = _places(routes)
    possible = [*routes]
    for route in before or ():
        places = _places((route,))
        if not places <= addresses:
            addresses |= places
            possible.append(route)
    return tuple(possible)


def _places(routes: Iterable[EndpointRoute]) -> set[tuple[str, str, str]]:
    return {
        (r.name, arm.version, address) for r in routes for arm in r.arms for address in arm.replicas
    }


def addresses_of(routes: Iterable[EndpointRoute]) -> frozenset[str]:
    """Every replica's address that `routes` name."""
    return frozenset(a for route in routes for arm in route.arms for a in arm.replicas)


def started(replica: Replica, *, pid: int, now: float) -> Replica:
    """`replica` after its process was started."""
    return replace(
        replica,
        phase=ReplicaPhase.STARTING,
        pid=pid,
        since=now,
        answered_at=now,
        retry_at=None,
        kill_sent=False,
    )


def probed(replica: Replica, health: ProbeResult, *, now: float) -> Replica:
    """`replica` after a look at its ready route."""
    if not replica.is_running:
        return replica
    match health:
        case ProbeResult.READY:
            alive = replace(replica, answered_at=now)
            if replica.phase is not ReplicaPhase.READY:
                return replace(
                    alive, phase=ReplicaPhase.READY, since=now, was_ready=True, reason=""
                )
            is_stable = now - replica.since >= STABLE_AFTER_S
            return replace(alive, failures=0) if is_stable and replica.failures else alive
        case ProbeResult.NOT_READY:
            alive = replace(replica, answered_at=now)
            return _unready(alive, now) if replica.phase is ReplicaPhase.READY else alive
        case ProbeResult.REFUSED:
            return _unready(replica, now) if replica.phase is ReplicaPhase.READY else replica
        case ProbeResult.SILENT:
            # A busy machine answers late; taking its replicas out would make an outage of it.
            return replica
        case _:
            assert_never(health)


def _unready(replica: Replica, now: float) -> Replica:
    return replace(replica, phase=ReplicaPhase.UNREADY, since=now, reason="reports not ready")


def drained(replica: Replica, *, now: float) -> Replica:
    """`replica` after it was told to drain."""
    return replace(replica, phase=ReplicaPhase.DRAINING, since=now)


def killed(replica: Replica, *, reason: str) -> Replica:
    """`replica` after SIGKILL was sent; its end is yet to be seen."""
    return replace(replica, kill_sent=True, reason=reason)


def exited(replica: Replica, *, exit_code: int | None, last_line: str, now: float) -> Replica:
    """`replica` after its process ended.

    Args:
        exit_code: Negative for a signal; None if nobody could read it (an adopted process).
        last_line: The last line of its log, which says why.
    """
    if replica.phase is ReplicaPhase.DRAINING:
        return replace(replica, phase=ReplicaPhase.ENDED, pid=None, since=now, exit_code=exit_code)
    was_stable = replica.phase is ReplicaPhase.READY and now - replica.since >= STABLE_AFTER_S
    failures = 1 if was_stable else replica.failures + 1
    is_death = replica.was_ready and replica.pid is not None and not replica.kill_sent
    return replace(
        replica,
        deaths=replica.deaths + is_death,
        death_reason=exit_reason(exit_code, "") if is_death else replica.death_reason,
        phase=ReplicaPhase.EXITED,
        pid=None,
        since=now,
        failures=failures,
        exit_code=exit_code,
        retry_at=now + restart_delay_s(failures=failures, exit_code=exit_code),
        reason=replica.reason if replica.kill_sent else exit_reason(exit_code, last_line),
    )


def exit_reason(exit_code: int | None, last_line: str) -> str:
    """Why a process ended, for people."""
    detail = f": {last_line}" if last_line else ""
    if exit_code == EXIT_CANNOT_LOAD:
        return f"cannot load the model{detail}"
    if exit_code is None:
        return f"ended{detail}"
    if exit_code < 0:
        return f"ended by signal {-exit_code}{detail}"
    return f"ended with exit status {exit_code}{detail}"
