"""Observed state: facts about replicas and the gateway, and how one event changes them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, assert_never

from headrace.core.backoff import Backoff
from headrace.gateway import EndpointRoute

EXIT_CANNOT_LOAD: Final = 3
"""Exit status of a replica whose model cannot be loaded here."""
STABLE_AFTER_S: Final = 60.0
"""Ready time after which a replica's failure count is reset."""
MANY_FAILURES: Final = 3
"""Consecutive exits, without readiness, after which a replica counts as failed."""
CRASHED: Final = Backoff(first_s=0.1, limit_s=30.0)
CANNOT_LOAD: Final = Backoff(first_s=5.0, limit_s=300.0)


def restart_delay_s(*, failures: int, exit_code: int | None) -> float:
    """Return seconds until the next start after `failures` in a row, the last with `exit_code`.

    A model that cannot be loaded is retried because the cause may be temporary (memory, a missing
    library), but rarely, because loading is costly. `exit_code` is None if it is unknown.
    """
    policy = CANNOT_LOAD if exit_code == EXIT_CANNOT_LOAD else CRASHED
    return policy.delay_s(failures)


class ReplicaPhase(StrEnum):
    """Phase in the life of a replica."""

    STARTING = "starting"
    READY = "ready"
    UNREADY = "unready"
    """It was ready, and now reports that it is not."""
    DRAINING = "draining"
    """It received the request to finish its work and exit."""
    EXITED = "exited"
    """Its process exited; `retry_at` is the time of the next start."""
    ENDED = "ended"
    """Its process exited as requested."""


class ProbeResult(StrEnum):
    """Result of one probe of a replica's ready route."""

    READY = "ready"
    NOT_READY = "not_ready"
    SILENT = "silent"
    """No response in time: busy or hung. Readiness is unknown."""
    REFUSED = "refused"
    """Nothing listens on the port."""


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
    """Whether it has been ready at least once. `failures` counts ends in a row; `answered_at` is
    the last sign of life.
    """
    restarts: int = 0
    failures: int = 0
    retry_at: float | None = None
    answered_at: float = 0.0
    exit_code: int | None = None
    reason: str = ""
    kill_sent: bool = False
    query: str = ""
    """Query that selects a model in a process that hosts several."""
    deaths: int = 0
    """Unexpected exits after the process had been ready; requested exits do not count."""
    death_reason: str = ""
    """Reason of the last such exit."""

    @property
    def process(self) -> int:
        """Return a number that identifies the process: the pid here, a restart count elsewhere."""
        return self.restarts if self.pid is None else self.pid

    @property
    def is_running(self) -> bool:
        """Whether a process runs that was not requested to exit."""
        return self.phase in {ReplicaPhase.STARTING, ReplicaPhase.READY, ReplicaPhase.UNREADY}

    @property
    def is_leaving(self) -> bool:
        """Whether it was requested to exit: it is not restarted."""
        return self.phase in {ReplicaPhase.DRAINING, ReplicaPhase.ENDED}

    @property
    def cannot_load(self) -> bool:
        """Whether the last process reported that the model cannot be loaded."""
        return self.phase is ReplicaPhase.EXITED and self.exit_code == EXIT_CANNOT_LOAD


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Observed state: replicas by name, and the routes that the gateway acknowledged.

    `attempted` are routes that were sent to the gateway and not acknowledged: they may be in force.
    `can_publish` is False during a publication, and after a failed one until the retry.
    """

    replicas: Mapping[str, Replica] = field(default_factory=dict)
    published: tuple[EndpointRoute, ...] | None = None
    attempted: tuple[EndpointRoute, ...] | None = None
    can_publish: bool = True
    hosted: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Revisions that each pool replica was instructed to host, by replica name."""
    next_serial: int = 1

    def routed_addresses(self) -> frozenset[str]:
        """Return the addresses of replicas that may get requests now."""
        return addresses_of(self.published or ()) | addresses_of(self.attempted or ())


def perhaps_in_force(
    routes: tuple[EndpointRoute, ...], before: Sequence[EndpointRoute] | None
) -> tuple[EndpointRoute, ...]:
    """Return `routes`, which are sent now, and the differing routes sent before them.

    None was acknowledged, but one gateway may have applied routes that another refused.
    """
    addresses = _places(routes)
    possible = [*routes]
    for route in before or ():
        route_addresses = _places((route,))
        if not route_addresses <= addresses:
            addresses |= route_addresses
            possible.append(route)
    return tuple(possible)


def _places(routes: Iterable[EndpointRoute]) -> set[tuple[str, str, str]]:
    return {
        (r.name, arm.version, address) for r in routes for arm in r.arms for address in arm.replicas
    }


def addresses_of(routes: Iterable[EndpointRoute]) -> frozenset[str]:
    """Return the address of every replica in `routes`."""
    return frozenset(a for route in routes for arm in route.arms for a in arm.replicas)


def started(replica: Replica, *, pid: int, now: float) -> Replica:
    """Return `replica` after the start of its process."""
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
    """Return `replica` after a probe of its ready route."""
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
            # A busy machine responds late; removing its replicas would turn that into an outage.
            return replica
        case _:
            assert_never(health)


def _unready(replica: Replica, now: float) -> Replica:
    return replace(replica, phase=ReplicaPhase.UNREADY, since=now, reason="reports not ready")


def drained(replica: Replica, *, now: float) -> Replica:
    """Return `replica` after it was requested to drain."""
    return replace(replica, phase=ReplicaPhase.DRAINING, since=now)


def killed(replica: Replica, *, reason: str) -> Replica:
    """Return `replica` after SIGKILL was sent; its exit is not yet observed."""
    return replace(replica, kill_sent=True, reason=reason)


def exited(replica: Replica, *, exit_code: int | None, last_line: str, now: float) -> Replica:
    """Return `replica` after its process exited.

    Args:
        exit_code: Negative for a signal; None if unknown (an adopted process).
        last_line: The last line of its log, which contains the reason.
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
    """Return why a process exited, for display."""
    detail = f": {last_line}" if last_line else ""
    if exit_code == EXIT_CANNOT_LOAD:
        return f"cannot load the model{detail}"
    if exit_code is None:
        return f"ended{detail}"
    if exit_code < 0:
        return f"ended by signal {-exit_code}{detail}"
    return f"ended with exit status {exit_code}{detail}"
