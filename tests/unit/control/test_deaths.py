"""Deaths of replicas: what is one, what survives a restart of the control plane, and the event."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from headrace.control.base.home import Home
from headrace.control.base.ownership import ProcessOwner
from headrace.control.gateway.supervisor import EnvoySupervisor
from headrace.control.local.driver import LocalDriver, ReplicaRecord, replica_records
from headrace.control.model.observed import (
    Replica,
    ReplicaPhase,
    drained,
    exited,
    killed,
    started,
)
from headrace.control.model.records import Event
from headrace.control.reconcile.publication import RoutePublication
from headrace.control.reconcile.reconciler import Reconciler
from headrace.gateway import EnvoyGateway, EnvoySettings
from tests.unit.control.played import TurnedClock

NO_PROCESS = 2**22 + 1
"""More than any pid."""


def a_replica(**changes: object) -> Replica:
    ready = Replica(
        name="m-1-1",
        serial=1,
        endpoint="m",
        version="1",
        revision_id="m:1",
        address="unix:/r1",
        phase=ReplicaPhase.READY,
        since=0.0,
        pid=7,
        was_ready=True,
    )
    return replace(ready, **changes)  # type: ignore[arg-type]  # each by its name


def ended(replica: Replica, exit_code: int | None = -9) -> Replica:
    return exited(replica, exit_code=exit_code, last_line="", now=1.0)


def test_end_of_a_process_that_had_been_ready_is_a_death() -> None:
    once = ended(a_replica())
    again = ended(replace(started(once, pid=8, now=2.0), phase=ReplicaPhase.READY), exit_code=1)

    assert (once.deaths, once.death_reason) == (1, "ended by signal 9")
    assert (again.deaths, again.death_reason) == (2, "ended with exit status 1")


@pytest.mark.parametrize(
    "replica",
    [
        drained(a_replica(), now=0.5),
        killed(a_replica(), reason="gave no response for 60 s"),
        a_replica(was_ready=False, phase=ReplicaPhase.STARTING),
        a_replica(pid=None, phase=ReplicaPhase.EXITED),
    ],
    ids=["told to end", "killed by us", "never ready", "no process"],
)
def test_other_ends_are_no_deaths(replica: Replica) -> None:
    assert ended(replica).deaths == 0


def driver_of(home: Home) -> LocalDriver:
    return LocalDriver(home=home, socket_dir=home.socket_dir())


def record(**changes: object) -> ReplicaRecord:
    fields: dict[str, object] = {
        "name": "m-1-1",
        "serial": 1,
        "endpoint": "m",
        "version": "1",
        "revision_id": "m:1",
        "address": "unix:/r1",
        "settings_sha256": "",
        "pid": NO_PROCESS,
        "start_ticks": 1,
        "was_ready": True,
        "deaths": 2,
    }
    return ReplicaRecord(**{**fields, **changes})  # type: ignore[arg-type]  # each by its name


def test_death_while_no_control_plane_watched_is_counted_once(home: Home) -> None:
    replica_records(home, ProcessOwner.of(home.root)).write(record())

    counts = []
    for _ in range(3):
        (running,) = driver_of(home).adopt_all()
        counts.append((running.record.deaths, running.died_unwatched))

    assert counts == [(3, True), (3, False), (3, False)]


@pytest.mark.parametrize(
    "changes", [{"is_ending": True}, {"was_ready": False}, {"pid": 0, "start_ticks": 0}]
)
def test_end_that_was_asked_for_or_is_counted_is_no_death(
    home: Home, changes: dict[str, object]
) -> None:
    replica_records(home, ProcessOwner.of(home.root)).write(record(**changes))
    (running,) = driver_of(home).adopt_all()
    assert (running.record.deaths, running.died_unwatched) == (2, False)


@pytest.mark.anyio
async def test_death_while_no_control_plane_watched_is_an_event(home: Home) -> None:
    replica_records(home, ProcessOwner.of(home.root)).write(record())
    clock, events = TurnedClock(), list[Event]()

    async def emit(new: Sequence[Event]) -> None:
        events.extend(new)

    reconciler = Reconciler(
        driver=driver_of(home),
        publication=RoutePublication(
            publisher=EnvoySupervisor(
                envoy=EnvoyGateway(EnvoySettings(run_dir=home.run / "envoy")),
                record_path=home.gateway_file,
                routes_path=home.routes_file,
                clock=clock,
                owner=ProcessOwner.of(home.root),
            )
        ),
        clock=clock,
        drain_timeout_s=1.0,
        emit=emit,
    )
    (replica,) = reconciler.adopt()
    running = asyncio.ensure_future(reconciler.run())
    for _ in range(10):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running})

    assert replica.deaths == 3
    (event,) = events
    assert (event.kind, event.reason, event.endpoint) == ("replica", "Died", "m")
    assert event.message == "replica m-1-1 of version 1 died: ended while no control plane watched"
    assert event.data["deaths"] == 3
