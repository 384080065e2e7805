"""A fault while one object is looked after is that object's: every loop over many goes on."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.control.auth.roles import SYSTEM
from headrace.control.base.faults import Faults, message_of
from headrace.control.base.home import Home
from headrace.control.base.ownership import ProcessOwner
from headrace.control.features.materialize_plan import ViewPast
from headrace.control.features.materializer import Materializer, OnProgress
from headrace.control.features.skew_watch import SkewWatch
from headrace.control.gateway.supervisor import EnvoySupervisor
from headrace.control.jobs.process import JobProcess
from headrace.control.local.driver import LocalDriver
from headrace.control.model.desired import DesiredStream
from headrace.control.model.job_runs import JobRun
from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.model.records import Event
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.reconcile.publication import RoutePublication
from headrace.control.reconcile.reconciler import Reconciler
from headrace.control.streams.driver import StreamDriver
from headrace.control.streams.supervisor import StreamSupervisor
from headrace.control.telemetry.alerts import AlertFacts, Alerting
from headrace.control.telemetry.pollers import GatewayPoller
from headrace.core import ConflictError, FeatureWatch, UnavailableError
from headrace.core.state_file import StateFile
from headrace.features import DataSource, Definitions, FeatureView, MaterializeSchedule
from headrace.features.materialize_process import MaterializeFinished
from headrace.features.skew_process import SkewSummary
from headrace.gateway import ArmStatistics, EnvoyGateway, EnvoySettings, GatewayStatistics
from headrace.monitor.slo import CountWindow
from headrace.registry import Registry
from headrace.rollout.state import RolloutPhase, Verb
from headrace.serving.telemetry.report import ReplicaReport
from headrace.streaming.settings import WorkerSettings
from tests.unit.control.played import TurnedClock, World
from tests.unit.control.scaling_lab import Lab as ScalingLab
from tests.unit.control.scaling_lab import arm, endpoint
from tests.unit.monitor.told import Counted

pytestmark = pytest.mark.anyio
NAMES = ("a", "poisoned", "z")


async def _nobody(_: object) -> None:
    """Nobody reads events here."""


async def _run_for_a_moment(loop: Coroutine[Any, Any, None]) -> None:
    running = asyncio.ensure_future(loop)
    for _ in range(50):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running})


@dataclass(slots=True)
class Poison:
    """What fails for one of several objects, until it is healed; `reached`: the others' turns."""

    is_healed: bool = False
    reached: list[str] = field(default_factory=list)
    others_had_turns: asyncio.Event = field(default_factory=asyncio.Event)

    def touch(self, name: str) -> None:
        if name == "poisoned" and not self.is_healed:
            raise OverflowError(34, "Numerical result out of range")
        self.reached.append(name)
        if {"a", "z"} <= set(self.reached):
            self.others_had_turns.set()


@dataclass(slots=True, kw_only=True)
class Loop:
    """One loop of the control plane: `turn` looks after all objects once."""

    kind: str
    poison: Poison
    faults: Faults
    turn: Callable[[], Awaitable[object]]


def alerts(poison: Poison, faults: Faults, _: Path) -> Loop:
    class History:
        def window(self, endpoint: str, **_: object) -> CountWindow:
            poison.touch(endpoint)
            return Counted(1000, 0, 0.1)

    async def facts() -> AlertFacts:
        return AlertFacts()

    async def save(*_: object) -> None:
        pass

    clock = TurnedClock()
    spec = {"endpoints": [{"name": n, "model": n, "slo": {"latency_s": 0.2}} for n in NAMES]}
    alerting = Alerting(
        history=History(),
        spec=lambda: spec,
        facts=facts,
        emit=_nobody,
        notify=lambda _: None,
        clock=clock,
        save=save,
        faults=faults,
    )

    async def turn() -> None:
        clock.time += 3600.0
        await alerting.poll()

    return Loop(kind="alerts", poison=poison, faults=faults, turn=turn)


def streams(poison: Poison, faults: Faults, folder: Path) -> Loop:
    class Full(StreamDriver):
        def start(self, *_: object, **__: object) -> None:  # type: ignore[override]  # never returns
            raise OSError(28, "No space left on device")

    def prepare(settings: WorkerSettings) -> WorkerSettings:
        poison.touch(settings.name)
        return settings

    wanted = [
        DesiredStream(
            name=name,
            model="m:1",
            settings=WorkerSettings(name=name, broker="log:x", topics=["in"], group="g", member=""),
        )
        for name in NAMES
    ]
    clock = TurnedClock()
    supervisor = StreamSupervisor(
        driver=Full(run=folder / "run", sockets=folder, home=folder, log_of=lambda n: folder / n),
        desired_streams=lambda: wanted,
        prepare=prepare,
        emit=_nobody,
        clock=clock,
        faults=faults,
    )

    async def turn() -> None:
        clock.time += 2.0
        await supervisor.step()

    return Loop(kind="stream", poison=poison, faults=faults, turn=turn)


def feature_services(poison: Poison, faults: Faults, _: Path) -> Loop:
    clock = TurnedClock()

    async def compare(service: str) -> SkewSummary:
        poison.touch(service)
        return SkewSummary(service=service, rows=0)

    watch = SkewWatch(
        watches=lambda: {n: FeatureWatch(service=n, skew_every_s=1.0) for n in NAMES},
        compare=compare,
        emit=_nobody,
        clock=clock,
        faults=faults,
    )

    async def turn() -> None:
        watch.due()
        clock.time += 2.0
        await _run_for_a_moment(watch.run())

    return Loop(kind="feature service", poison=poison, faults=faults, turn=turn)


def feature_views(poison: Poison, faults: Faults, folder: Path) -> Loop:
    clock = TurnedClock()
    views = {
        name: FeatureView(
            name=name,
            entities=(),
            features=(),
            source=DataSource(path=Path("/a")),
            schedule=MaterializeSchedule(every_s=60.0),
        )
        for name in NAMES
    }

    async def read() -> Definitions:
        return Definitions(entities={}, views=views, services={})

    async def work(view: FeatureView, _: OnProgress) -> MaterializeFinished:
        poison.touch(view.name)
        return MaterializeFinished(entities=0, written=0, newest_us=0)

    path = folder / "definitions.json"
    path.touch()
    materializer = Materializer(
        path=path,
        read=read,
        work=work,
        emit=_nobody,
        clock=clock,
        memory=StateFile(folder / "materialized.json", list[ViewPast], "past runs"),
        faults=faults,
    )

    async def turn() -> None:
        clock.time += 3600.0
        await _run_for_a_moment(materializer.run())

    return Loop(kind="feature view", poison=poison, faults=faults, turn=turn)


def history(poison: Poison, faults: Faults, _: Path) -> Loop:
    class Gateway:
        async def read_endpoints(self, _: Collection[str]) -> GatewayStatistics:
            return GatewayStatistics(
                epoch="1",
                arms={(n, "1"): _poisonous_totals(poison, n) for n in NAMES},
                healthy={},
            )

    recorder = GatewayPoller(
        gateway=Gateway(), names=lambda: NAMES, clock=TurnedClock(), faults=faults
    )
    return Loop(kind="history", poison=poison, faults=faults, turn=recorder.poll)


def _poisonous_totals(poison: Poison, name: str) -> ArmStatistics:
    if name == "poisoned" and not poison.is_healed:
        return ArmStatistics(requests="many")  # type: ignore[arg-type]  # the poison
    poison.reached.append(name)
    return ArmStatistics(requests=1)


@pytest.mark.parametrize(
    "make", [alerts, streams, feature_services, feature_views, history], ids=lambda f: f.__name__
)
async def test_poisoned_object_waits_with_its_reason_and_the_others_go_on(
    make: Callable[[Poison, Faults, Path], Loop], tmp_path: Path
) -> None:
    loop = make(Poison(), Faults(clock=TurnedClock()), tmp_path)

    await loop.turn()

    assert {"a", "z"} <= set(loop.poison.reached)
    assert "poisoned" not in loop.poison.reached
    assert {fault.name for fault in loop.faults.current()} == {"poisoned"}
    assert loop.faults.problem(loop.kind, "poisoned").startswith("waits: ")

    loop.poison.is_healed = True
    await loop.turn()

    assert "poisoned" in loop.poison.reached
    assert loop.faults.current() == ()


async def test_poisoned_endpoint_keeps_its_replicas_and_the_others_are_scaled(home: Home) -> None:
    lab = ScalingLab(home)
    faults = lab.scaler.faults
    lab.set_desired(*(endpoint(name, arm(name, "1")) for name in NAMES))
    lab.run(5, {"1": 5.0})
    of_poisoned = next(r for r in lab.ready() if r.endpoint == "poisoned").name
    real = lab.scaler.latest

    def latest(replica: str) -> ReplicaReport | None:
        if replica == of_poisoned:
            raise ValueError("poison")
        return real(replica)

    lab.scaler.latest = latest
    before = dict(lab.scaler.counts)
    lab.run(40, {"1": 60.0})

    assert lab.scaler.counts["a", "1"] > before["a", "1"]
    assert lab.scaler.counts["z", "1"] > before["z", "1"]
    assert lab.scaler.counts["poisoned", "1"] == before["poisoned", "1"]
    assert [(f.kind, f.name) for f in faults.current()] == [("autoscaling", "poisoned")]

    lab.scaler.latest = real
    lab.run(40)
    assert faults.current() == ()
    assert lab.scaler.counts["poisoned", "1"] > before["poisoned", "1"]


async def test_poisoned_drift_and_reports_leave_other_endpoints_alone(
    plane: ControlPlane, tmp_path: Path
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"good")
    entries = [{"name": name, "model": str(model), "drift": {}} for name in NAMES]
    await plane.desired_state.apply({"endpoints": entries}, caller=SYSTEM)
    for serial, one in enumerate(plane.target_state.effective.endpoints):
        plane.reconciling.reconciler.replicas[one.name] = Replica(
            name=one.name,
            serial=serial,
            endpoint=one.name,
            version="1",
            revision_id=one.arms[0].revision.id,
            address="unix:/nowhere",
            phase=ReplicaPhase.READY,
            since=0.0,
        )
    poison = Poison()

    async def call(replica: Replica, *_: object) -> bytes:
        poison.touch(replica.endpoint)
        raise UnavailableError("does not count", retry_after_s=None)

    plane.telemetry.drift.call = call
    await plane.telemetry.drift.poll()
    assert poison.reached == ["a", "z"]
    assert plane.faults.problem("drift", "poisoned")
    (fault,) = plane.status().faults
    assert (fault.kind, fault.name, fault.endpoint) == ("drift", "poisoned", "poisoned")

    poison.is_healed = True
    await plane.telemetry.drift.poll()
    assert plane.status().faults == ()


async def test_run_of_a_poisoned_job_is_given_up_and_other_jobs_run(plane: ControlPlane) -> None:
    poison = Poison()

    async def start(run: JobRun, _: float) -> JobProcess:
        poison.touch(run.job)
        raise UnavailableError("no process here", retry_after_s=None)

    jobs = [
        {"name": name, "model": "m", "input": "/in", "output": "/out/{run_id}"} for name in NAMES
    ]
    await plane.desired_state.apply({"version": 1, "endpoints": [], "jobs": jobs}, caller=SYSTEM)
    plane.workloads.jobs.start = start
    running = asyncio.ensure_future(plane.workloads.jobs.run())
    for name in ("poisoned", "a", "z"):
        await plane.workloads.jobs.begin(name, by="ann")
    async with asyncio.timeout(20.0):
        await poison.others_had_turns.wait()
    assert not running.done()
    running.cancel()
    await asyncio.wait({running})

    assert plane.faults.problem("job", "poisoned")
    assert not plane.faults.problem("job", "a")


class PoisonedWorld(World):
    """A gateway that counts nonsense for one endpoint."""

    is_healed: bool = False

    async def read_arms(self, endpoints: Collection[str]) -> GatewayStatistics:
        reading = await super().read_arms(endpoints)
        if self.is_healed:
            return reading
        totals = {
            key: msgspec.structs.replace(total, errors="many") if key[0] == "poisoned" else total
            for key, total in reading.arms.items()
        }
        return msgspec.structs.replace(reading, arms=totals)


ROLLOUT: dict[str, Any] = {
    "strategy": "canary",
    "steps": [{"weight": 10, "until": "verdict"}],
    "warmup_s": 0.0,
    "metrics": {"predictions": None, "rejections": None},
}


async def test_poisoned_rollout_waits_while_another_is_promoted_and_can_be_aborted(
    home: Home, registry: Registry, tmp_path: Path
) -> None:
    for number in (1, 2):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(b"model %d" % number)
        registry.push("digits", path)
    world = PoisonedWorld(home, registry)
    plane = world.boot()
    entries = [{"name": name, "model": "digits:1"} for name in ("digits", "poisoned")]
    await plane.desired_state.apply({"endpoints": entries}, caller=SYSTEM)
    plane.settle()
    for name in ("digits", "poisoned"):
        await plane.desired_state.start_rollout(name, version="2", rollout=ROLLOUT, caller=SYSTEM)

    record = await plane.until_over()

    poisoned = plane.target_state.rollouts["poisoned"]
    assert record.state.phase is RolloutPhase.PROMOTED
    assert poisoned.state.phase is RolloutPhase.PROGRESSING
    assert "waits: TypeError in" in plane.driver.problem(poisoned)

    world.is_healed = True
    await plane.second()
    await plane.second()
    assert plane.driver.problem(plane.target_state.rollouts["poisoned"]) == ""

    world.is_healed = False
    await plane.second()
    aborted = await plane.driver.command("poisoned", Verb.ABORT)
    assert aborted.state.phase is RolloutPhase.ABORTED


async def test_fault_is_written_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    clock, events = TurnedClock(), list[Event]()
    faults = Faults(clock=clock)

    async def emit(new: Sequence[Event]) -> None:
        events.extend(new)

    def turn(*, fails: bool) -> None:
        clock.time += 1.0
        with faults.contain("rollout", "fraud"):
            if fails:
                raise ValueError("secret of a caller")

    with caplog.at_level(logging.INFO, "headrace.control"):
        for fails in (True, True, True, False, True, False, True):  # and it comes again at once
            turn(fails=fails)
    writing = asyncio.ensure_future(faults.run(emit))
    await asyncio.sleep(0.6)
    writing.cancel()

    assert [(e.kind, e.reason, e.endpoint) for e in events] == [
        ("fault", "Waits", "fraud"),
        ("fault", "GoesOn", "fraud"),
    ]
    assert "secret" not in events[0].message
    assert "ValueError" in events[0].message
    traced = [record for record in caplog.records if record.exc_info]
    assert len(traced) == 1


async def test_cancellation_and_a_change_by_another_control_plane_are_no_faults() -> None:
    faults = Faults()
    for error in (asyncio.CancelledError(), ConflictError("changed by somebody else")):
        with pytest.raises(type(error)), faults.contain("rollout", "fraud"):
            raise error
    assert faults.current() == ()


async def test_object_that_is_gone_leaves_no_fault() -> None:
    faults = Faults()
    for name in NAMES:
        with faults.contain("drift", name):
            raise KeyError(name)
    faults.keep_only("drift", ["a", "z"])
    faults.keep_only("alerts", [])

    assert [fault.name for fault in faults.current()] == ["a", "z"]
    assert message_of(UnavailableError("no disk", retry_after_s=None)) == "no disk"


class BrokenDriver(LocalDriver):
    """Cannot remove what one replica left behind."""

    def forget(self, name: str) -> None:
        if name == "poisoned":
            raise ValueError("odd folder")
        super().forget(name)


async def test_poisoned_replica_s_remains_hold_up_no_other_replica(home: Home) -> None:
    clock = TurnedClock()
    reconciler = Reconciler(
        driver=BrokenDriver(home=home, socket_dir=home.socket_dir()),
        publication=RoutePublication(
            publisher=EnvoySupervisor(
                envoy=EnvoyGateway(EnvoySettings(run_dir=home.run / "envoy")),
                record_path=home.gateway_file,
                routes_path=home.routes_file,
                clock=clock,
                owner=ProcessOwner.of(home.root),
            ),
            published=(),
        ),
        clock=clock,
        drain_timeout_s=1.0,
    )
    for serial, name in enumerate(("poisoned", "a")):
        reconciler.replicas[name] = Replica(
            name=name,
            serial=serial,
            endpoint="e",
            version="1",
            revision_id="e:1",
            address=f"unix:/{name}",
            phase=ReplicaPhase.ENDED,
            since=0.0,
        )
    running = asyncio.ensure_future(reconciler.run())
    for _ in range(10):
        await asyncio.sleep(0)
    is_running = not running.done()
    running.cancel()
    await asyncio.wait({running})

    assert is_running
    assert "a" not in reconciler.replicas
