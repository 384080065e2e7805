"""Async driver around `plan`: waits for events and executes the planned actions."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

from headrace.control.base.faults import LOOP, Faults, message_of
from headrace.control.base.journal import ChangeSignal, wait_for
from headrace.control.local.driver import LocalDriver, Running
from headrace.control.local.sandbox import Isolation
from headrace.control.model.desired import (
    POOL_PREFIX,
    DesiredArm,
    DesiredState,
    Revision,
    pool_endpoint,
)
from headrace.control.model.observed import (
    Observed,
    ProbeResult,
    Replica,
    ReplicaPhase,
    drained,
    exited,
    killed,
    probed,
    started,
)
from headrace.control.model.records import Event
from headrace.control.reconcile.plan import (
    Action,
    DrainReplica,
    ForgetReplica,
    KillReplica,
    Memo,
    PublishRoutes,
    RestartReplica,
    StartReplica,
    due_at,
    plan,
)
from headrace.control.reconcile.publication import RoutePublication
from headrace.core import (
    Clock,
    DeadlineExceededError,
    ReplicaSettings,
    UnavailableError,
)
from headrace.core.fetch import fetch
from headrace.core.processes import Process
from headrace.observe.metrics import Family

_LOG: Final = logging.getLogger("headrace.control")
_READY_PATH: Final = "/v2/health/ready"
_HTTP_OK: Final = 200
_PROBE_TIMEOUT_S: Final = 2.0
_FIRST_PROBE_S: Final = 0.02
_STARTING_PROBE_S: Final = 0.25
_READY_PROBE_S: Final = 2.0
_NEXT_STEP_S: Final = 1.0
"""Delay in seconds after a failed step."""
_UNWATCHED: Final = "ended while no control plane watched"


@dataclass(slots=True, kw_only=True)
class Reconciler:
    """Reconciles local processes with the desired state while `run` is awaited.

    Cancelling `run` only stops the watching: replicas keep running.
    """

    driver: LocalDriver
    publication: RoutePublication
    clock: Clock
    drain_timeout_s: float
    emit: Callable[[Sequence[Event]], Awaitable[None]] | None = None
    """Receives events about crashed replicas."""
    faults: Faults = field(default_factory=Faults)
    desired: DesiredState = field(default_factory=DesiredState)
    replicas: dict[str, Replica] = field(default_factory=dict)
    hosted: MutableMapping[str, frozenset[str]] = field(default_factory=dict)
    _next_serial: int = 1
    _memo: Memo = field(default_factory=Memo)
    _group: asyncio.TaskGroup | None = None
    _died_unwatched: list[Replica] = field(default_factory=list)

    def observed(self) -> Observed:
        """Return the current observed state."""
        return self.publication.observed(self.replicas, self.hosted, self._next_serial)

    def set_desired(self, desired: DesiredState) -> None:
        """Set the desired state."""
        self.desired = desired
        self.changes.notify()

    @property
    def changes(self) -> ChangeSignal:
        """Signal for changes of the observed or desired state."""
        return self.publication.changes

    def isolation_of(self, name: str) -> Isolation | None:
        """Return the isolation of the named replica's process; None if unknown."""
        return self.driver.isolation_of(name)

    def arm_problem(self, endpoint: str, arm: DesiredArm) -> str:  # noqa: ARG002  # protocol
        """Return why its route is not valid; a failed start is reported by its replica."""
        return self.publication.left_out.get(endpoint, "")

    def may_act(self) -> bool:
        """Return True: this process holds the home's lock."""
        return True

    def hosted_settings(self, revision: Revision) -> ReplicaSettings:
        """Return a model's settings for a pool's replica, which sees the same files."""
        return revision.settings

    def families(self) -> list[Family]:
        """Return no metrics: those of replicas and processes are the control plane's."""
        return []

    def adopt(self) -> list[Replica]:
        """Adopt the replicas of an earlier control plane; call it before `run`.

        A replica that gets requests counts as ready until a probe says otherwise, so that adoption
        never empties a route.
        """
        routed = self.observed().routed_addresses()
        now = self.clock.monotonic()
        for running in self.driver.adopt_all():
            replica = _adopted(running, is_routed=running.record.address in routed, now=now)
            self.replicas[replica.name] = replica
            self._next_serial = max(self._next_serial, replica.serial + 1)
            if running.died_unwatched:
                self._died_unwatched.append(replica)
            _LOG.info(
                "adopted replica"
                if replica.pid
                else "found the record of a replica that no longer runs",
                extra={"replica": replica.name, "pid": replica.pid},
            )
        return list(self.replicas.values())

    async def run(self) -> None:
        """Reconcile until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for replica in self._died_unwatched:
                group.create_task(self._report_exit(replica))
            for name in self.replicas:
                process = self.driver.process_of(name)
                if process is not None:
                    group.create_task(self._supervise(name, process))
            while True:
                change, is_done = self.changes.next, False
                with self.faults.contain(LOOP, "replicas"):
                    self.step()
                    is_done = True
                # Failed actions are still due.
                await (self._wait_due(change) if is_done else asyncio.sleep(_NEXT_STEP_S))

    def step(self) -> None:
        """Execute the actions that are planned now."""
        actions = plan(
            self.desired,
            self.observed(),
            self.clock.monotonic(),
            drain_timeout_s=self.drain_timeout_s,
            memo=self._memo,
        )
        for kind in ("replica action", "replica probe"):
            self.faults.keep_only(kind, self.replicas)
        for action in actions:
            name = "" if isinstance(action, PublishRoutes) else action.name
            with self.faults.contain("replica action", name):
                self._do(action)

    async def _wait_due(self, change: asyncio.Event) -> None:
        due = due_at(self.observed(), drain_timeout_s=self.drain_timeout_s)
        await wait_for(change, None if due is None else max(due - self.clock.monotonic(), 0.0))

    def _do(self, action: Action) -> None:
        match action:
            case StartReplica():
                self._start(action)
            case RestartReplica(name=name):
                self._restart(name)
            case PublishRoutes(routes=routes):
                assert self._group is not None, "actions are taken inside run"
                self.publication.begin(routes, self._group)
            case DrainReplica(name=name):
                _LOG.info("draining replica", extra={"replica": name})
                self._set(drained(self.replicas[name], now=self.clock.monotonic()))
                self.driver.drain(name)
            case KillReplica(name=name, reason=reason):
                _LOG.warning("killing replica", extra={"replica": name, "reason": reason})
                self._set(killed(self.replicas[name], reason=reason))
                self.driver.kill(name)
            case ForgetReplica(name=name):
                del self.replicas[name]
                self.driver.forget(name)
                _LOG.info("replica is gone", extra={"replica": name})
                self.changes.notify()
            case _:
                assert_never(action)

    def _start(self, action: StartReplica) -> None:
        revision = action.revision
        now = self.clock.monotonic()
        self._next_serial = max(self._next_serial, action.serial + 1)
        replica = Replica(
            name=action.name,
            serial=action.serial,
            endpoint=revision.endpoint,
            version=revision.version,
            revision_id=revision.id,
            address=self.driver.address_of(action.serial),
            phase=ReplicaPhase.STARTING,
            since=now,
        )
        try:
            process = self.driver.start(name=action.name, serial=action.serial, revision=revision)
        except Exception as error:  # noqa: BLE001  # contained: other replicas are started
            self._cannot_start(replica, error)
        else:
            self._begin(replica, process)

    def _restart(self, name: str) -> None:
        replica = self.replicas[name]
        try:
            process = self.driver.restart(name, self._revision_of(replica))
        except Exception as error:  # noqa: BLE001  # as above
            self._cannot_start(replica, error)
        else:
            self._begin(replace(replica, restarts=replica.restarts + 1), process)

    def _revision_of(self, replica: Replica) -> Revision | None:
        """Return the desired revision of a replica; None if it is not desired."""
        endpoints = (*self.desired.endpoints, *map(pool_endpoint, self.desired.pools))
        arms = (
            arm
            for endpoint in endpoints
            if endpoint.name == replica.endpoint
            for arm in endpoint.arms
        )
        revisions = (arm.revision for arm in arms)
        return next(
            (revision for revision in revisions if revision.id == replica.revision_id), None
        )

    def _cannot_start(self, replica: Replica, error: Exception) -> None:
        now = self.clock.monotonic()
        is_usual = isinstance(error, OSError)
        reason = f"cannot start its process: {error if is_usual else message_of(error)}"
        extra = {"replica": replica.name, "error": str(error)}
        _LOG.error("cannot start replica", extra=extra, exc_info=None if is_usual else error)
        self._set(exited(replica, exit_code=1, last_line=reason, now=now))

    def _begin(self, replica: Replica, process: Process) -> None:
        _LOG.info(
            "started replica",
            extra={"replica": replica.name, "pid": process.pid, "restarts": replica.restarts},
        )
        self._set(started(replica, pid=process.pid, now=self.clock.monotonic()))
        assert self._group is not None, "actions are taken inside run"
        self._group.create_task(self._supervise(replica.name, process))

    async def _supervise(self, name: str, process: Process) -> None:
        """Supervise one process until it ends."""
        assert self._group is not None
        probing = self._group.create_task(self._probe(name))
        try:
            exit_code = await process.wait()
        finally:
            probing.cancel()
        last_line, before = self.driver.note_exit(name), self.replicas[name]
        after = exited(before, exit_code=exit_code, last_line=last_line, now=self.clock.monotonic())
        if after.deaths > before.deaths:
            self.driver.note_death(name, after.deaths)
            await self._report_exit(after)
        if after.phase is ReplicaPhase.EXITED:
            extra = {"replica": name, "reason": after.reason, "failures": after.failures}
            _LOG.warning("replica ended", extra=extra)
        self._set(after)

    async def _report_exit(self, replica: Replica) -> None:
        event = Event(
            at=self.clock.now(),
            endpoint="" if replica.endpoint.startswith(POOL_PREFIX) else replica.endpoint,
            kind="replica",
            reason="Died",
            message=f"replica {replica.name} of version {replica.version} died: {replica.reason}",
            data={
                "replica": replica.name,
                "version": replica.version,
                "exit_code": replica.exit_code,
                "deaths": replica.deaths,
            },
        )
        with self.faults.contain("replica", replica.name):
            if self.emit is not None:
                await self.emit([event])

    async def _probe(self, name: str) -> None:
        """Probe one replica's readiness while its process runs."""
        pause_s = _FIRST_PROBE_S
        address = self.replicas[name].address
        while True:
            pause_s = min(pause_s * 1.2, _STARTING_PROBE_S)
            with self.faults.contain("replica probe", name):
                health = await probe(address)
                before = self.replicas[name]
                after = probed(before, health, now=self.clock.monotonic())
                if after.phase is ReplicaPhase.READY:
                    self.driver.note_ready(name)
                if after.phase is not before.phase:
                    extra = {"replica": name, "phase": after.phase.value}
                    _LOG.info("replica changed", extra=extra)
                self._set(after, quiet=after.phase is before.phase)
            is_ready = self.replicas[name].phase is ReplicaPhase.READY
            await asyncio.sleep(_READY_PROBE_S if is_ready else pause_s)

    def _set(self, replica: Replica, *, quiet: bool = False) -> None:
        self.replicas[replica.name] = replica
        if not quiet:
            self.changes.notify()


async def probe(address: str) -> ProbeResult:
    """Return a replica's answer to a readiness probe."""
    try:
        answer = await fetch(address, _READY_PATH, timeout_s=_PROBE_TIMEOUT_S)
    except DeadlineExceededError:
        return ProbeResult.SILENT
    except UnavailableError:
        return ProbeResult.REFUSED
    return ProbeResult.READY if answer.status == _HTTP_OK else ProbeResult.NOT_READY


def _adopted(running: Running, *, is_routed: bool, now: float) -> Replica:
    record, process = running.record, running.process
    if process is None:
        phase = ReplicaPhase.EXITED
    elif is_routed:
        phase = ReplicaPhase.READY
    else:
        phase = ReplicaPhase.STARTING
    return Replica(
        name=record.name,
        serial=record.serial,
        endpoint=record.endpoint,
        version=record.version,
        revision_id=record.revision_id,
        address=record.address,
        phase=phase,
        since=now,
        pid=None if process is None else process.pid,
        was_ready=record.was_ready,
        restarts=record.restarts,
        answered_at=now,
        reason="" if process else _UNWATCHED,
        deaths=record.deaths,
        death_reason=_UNWATCHED if record.deaths else "",
    )
