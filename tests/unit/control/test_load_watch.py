"""Replicas are asked how busy they are, less often the more it costs, and over either's restart."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from headrace.control.model.desired import DesiredArm, DesiredEndpoint, Revision, make_revision
from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.reconcile.reports import ArmReports
from headrace.control.telemetry.pollers import LoadedArm, LoadWatch, loaded_arms
from headrace.core import EndpointName, ReplicaSettings
from headrace.core.spec.upstream import UpstreamSpec
from headrace.monitor import LoadWindow
from headrace.observe.row_checks import BatchingReport
from headrace.serving.telemetry.report import ModelLoad
from headrace.testing import LoopClock, VirtualTimeLoop
from tests.unit.control.played import TurnedClock

_NOON = 1_800_000_000.0
_UPSTREAM = UpstreamSpec(url="https://models.example")


def revision(
    version: str = "1",
    *,
    pool: str = "",
    upstream: UpstreamSpec | None = None,
    purpose: str = "",
) -> Revision:
    return make_revision(
        endpoint=EndpointName("fraud"),
        model=f"fraud:{version}",
        settings=ReplicaSettings(model_name="fraud", model_version=version, path="p"),
        pool=pool,
        upstream=upstream,
        purpose=purpose,
    )


def endpoint(*arms: DesiredArm) -> DesiredEndpoint:
    return DesiredEndpoint(name=EndpointName("fraud"), timeout_s=None, arms=arms)


def arm(of: Revision, role: str = "") -> DesiredArm:
    return DesiredArm(revision=of, weight=50, replicas=1, role=role)


def replica(name: str, of: str, phase: ReplicaPhase = ReplicaPhase.READY) -> Replica:
    return Replica(
        name=name,
        serial=1,
        endpoint="fraud",
        version="1",
        revision_id=of,
        address=f"unix:/{name}.sock",
        phase=phase,
        since=0.0,
        pid=7,
    )


@dataclass(slots=True)
class Replicas:
    """Two batches of four rows a second each; nobody is home at addresses that are `silent`."""

    since: float = 0.0
    silent: set[str] = field(default_factory=set)
    asked: list[float] = field(default_factory=list)

    async def ask(self, address: str) -> list[ModelLoad] | None:
        now = asyncio.get_running_loop().time()
        self.asked.append(now)
        await asyncio.sleep(0)
        if address in self.silent:
            return None
        seconds = int(now - self.since)
        load = ModelLoad(
            model="fraud",
            version="1",
            since=self.since,
            at=now,
            batches=2 * seconds,
            rows=8 * seconds,
            waited=8 * seconds,
            queue_s=0.08 * seconds,
            in_flight_s=0.5 * seconds,
            batching=BatchingReport(batched=True, reason=address),
        )
        return [msgspec.structs.replace(load, model="other", rows=0), load]


async def no_batching(_: list[ArmReports]) -> None:
    """Nobody takes what replicas say of batching."""


def watch(
    replicas: Replicas,
    *,
    path: Path | None = None,
    copies: int = 2,
    batching: Callable[[list[ArmReports]], Coroutine[None, None, None]] | None = None,
) -> LoadWatch:
    one = LoadedArm(
        endpoint="fraud",
        key="1",
        model="fraud",
        version="1",
        revision_id="r",
        copies=tuple(replica(f"r{number}", "x") for number in range(copies)),
        is_first=True,
    )
    return LoadWatch(
        arms=lambda: [one],
        running=lambda: {copy.name for copy in one.copies},
        clock=LoopClock(_NOON),
        path=path,
        batching=batching or no_batching,
        ask=replicas.ask,
        save_every_s=10_000.0,  # in a thread, which virtual time cannot see
        cpu_s=lambda: 0.0,
    )


def run(main: Callable[[], Coroutine[None, None, None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())


async def run_for(seconds: float, made: LoadWatch) -> None:
    task = asyncio.create_task(made.run())
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.wait({task})


def window(made: LoadWatch, begin_s: float, end_s: float) -> LoadWindow:
    [found] = made.history.series("fraud", [_NOON + begin_s, _NOON + end_s])
    return found


def test_what_replicas_say_of_batching_goes_to_who_watches_it() -> None:
    told: list[list[ArmReports]] = []

    async def take(arms: list[ArmReports]) -> None:
        told.append(arms)

    run(lambda: run_for(1.5, watch(Replicas(silent={"unix:/r1.sock"}), batching=take)))

    [found] = told[-1]
    assert found[:4] == ("fraud", "1", "1", "r")
    assert [report.reason for report in found.reports] == ["unix:/r0.sock"]


def test_every_process_is_asked_each_second() -> None:
    replicas = Replicas()
    made = watch(replicas)
    run(lambda: run_for(30.5, made))
    found = window(made, 0, 30)

    assert len(replicas.asked) == 2 * 31
    assert found.batch_rows == 4
    assert found.queue_s == pytest.approx(0.01)
    assert found.in_flight == pytest.approx(1.0)
    assert found.ready == pytest.approx(2)


def test_looks_that_compute_long_become_rarer_and_lose_nothing() -> None:
    replicas = Replicas()
    made = watch(replicas, copies=1)
    made.cpu_s = lambda: len(replicas.asked) * 0.25
    run(lambda: run_for(60.5, made))
    found = window(made, 0, 60)

    assert len(replicas.asked) == 7
    assert found.batch_rows == 4
    assert found.in_flight == pytest.approx(0.5)


def test_one_that_is_silent_for_a_while_is_counted_when_it_answers() -> None:
    replicas = Replicas(silent={"unix:/r0.sock", "unix:/r1.sock"})
    made = watch(replicas)

    async def main() -> None:
        task = asyncio.create_task(made.run())
        await asyncio.sleep(10.5)
        replicas.silent.clear()
        await asyncio.sleep(10)
        task.cancel()
        await asyncio.wait({task})

    run(main)

    assert window(made, 0, 10).batch_rows is window(made, 0, 10).in_flight is None
    assert window(made, 0, 10).ready == pytest.approx(2)
    assert window(made, 0, 21).batch_rows == 4


def test_another_control_plane_goes_on_with_the_file(tmp_path: Path) -> None:
    path, replicas = tmp_path / "load.bin", Replicas()
    first, second = watch(replicas, path=path), watch(replicas, path=path)

    async def main() -> None:
        for made in (first, second):
            made.load()
            await run_for(20.5, made)
            await asyncio.sleep(19.5)  # nobody looks, and requests go on

    run(main)

    assert second.history.began_at == _NOON
    assert window(second, 0, 60).batch_rows == 4
    assert window(second, 22, 38).ready == pytest.approx(2)


def test_a_clock_that_is_set_back_begins_anew() -> None:
    clock = TurnedClock(_NOON)
    made = watch(Replicas())
    made.clock = clock

    async def main() -> None:
        await made.poll()
        clock.time = _NOON - 3600
        await made.poll()

    run(main)

    assert made.history.began_at == _NOON - 3600


def test_ready_replicas_are_asked_by_arm_and_others_servers_are_not() -> None:
    own, other = revision("1"), revision("2")
    replicas = [
        replica("a", own.id),
        replica("b", own.id),
        replica("c", own.id, ReplicaPhase.STARTING),
        replica("d", other.id),
    ]
    arms = (arm(revision("3", upstream=_UPSTREAM)), arm(other, "candidate"), arm(own))

    found = list(loaded_arms([endpoint(*arms)], replicas, {}))

    assert [(one.key, [copy.name for copy in one.copies], one.is_first) for one in found] == [
        ("1", ["a", "b"], True),
        ("2~candidate", ["d"], False),
    ]
    assert list(loaded_arms([endpoint(arm(revision(upstream=_UPSTREAM)))], replicas, {})) == []


def test_a_pool_s_copies_count_for_what_they_host_and_once() -> None:
    own, baseline = revision(pool="small"), revision(pool="small", purpose="baseline")
    arms = (arm(baseline, "baseline"), arm(own))
    hosted = {"a": frozenset({own.id, baseline.id}), "b": frozenset({own.id})}

    found = list(
        loaded_arms([endpoint(*arms)], [replica("a", "pool"), replica("b", "pool")], hosted)
    )

    assert [(one.key, [copy.name for copy in one.copies]) for one in found] == [("1", ["a", "b"])]
