"""The driver with the real store, machine and statistics; gateway and replicas are played."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from headrace.control.aims import Aims
from headrace.control.counting import ArmTotals, GatewayReading
from headrace.control.home import Home
from headrace.control.journal import Journal
from headrace.control.keeper import GatewayKeeper
from headrace.control.local import LocalDriver
from headrace.control.observed import Observed, Phase, Replica, Route
from headrace.control.orders import Orders
from headrace.control.plan import PublishRoutes, StartReplica, plan
from headrace.control.reconciler import Reconciler
from headrace.control.reports import Reports
from headrace.control.rollouts import RolloutDriver
from headrace.control.routes import live_weights
from headrace.control.state import home_url, open_store
from headrace.control.store import RolloutRecord
from headrace.control.store_thread import StoreThread
from headrace.control.wishes import Fulfiller
from headrace.core import FailedPreconditionError, ModelNotFoundError, NotFoundError
from headrace.gateway import GatewaySettings
from headrace.registry import Registry
from headrace.rollout.evidence import Evidence
from headrace.rollout.state import Phase as RolloutPhase
from headrace.rollout.state import Verb
from headrace.serving.report import Observe
from tests.unit.control.conftest import inspect

pytestmark = pytest.mark.anyio

STEPS = [
    {"weight": 10, "until": "verdict"},
    {"weight": 50, "until": "verdict"},
]
CANARY = {
    "strategy": "canary",
    "steps": STEPS,
    "warmup_s": 0.0,
    "metrics": {"predictions": None, "rejections": None},
}


@dataclass(slots=True)
class TurnedClock:
    """Both clocks, moved by hand."""

    time: float = 1000.0

    def monotonic(self) -> float:
        return self.time

    def now(self) -> float:
        return self.time


@dataclass(slots=True)
class World:
    """One home that outlives control planes: replicas, the gateway's routes and its counts."""

    home: Home
    registry: Registry
    clock: TurnedClock = field(default_factory=TurnedClock)
    replicas: dict[str, Replica] = field(default_factory=dict)
    published: tuple[Route, ...] = ()
    totals: dict[tuple[str, str], ArmTotals] = field(default_factory=dict)
    error_ratio: dict[str, float] = field(default_factory=dict)
    slow: dict[str, float] = field(default_factory=dict)
    cannot_load: set[str] = field(default_factory=set)
    serial: int = 1
    was_live: bool = False

    def boot(self) -> "Plane":
        """A new control plane on this home."""
        keeper = GatewayKeeper(
            settings=GatewaySettings(run_dir=self.home.run / "envoy"),
            record_path=self.home.gateway_file,
            routes_path=self.home.routes_file,
            clock=self.clock,
        )
        reconciler = Reconciler(
            driver=LocalDriver(home=self.home, socket_dir=self.home.socket_dir()),
            publisher=keeper,
            clock=self.clock,
            drain_timeout_s=1.0,
            replicas=self.replicas,
        )
        reconciler.published = self.published
        store = StoreThread(open_store(home_url(self.home.root)))
        aims = Aims(reconciler=reconciler, desired=store.store.load())
        journal = Journal(store=store)
        driver = RolloutDriver(
            store=store, journal=journal, aims=aims, gateway=self, clock=self.clock
        )
        driver.reports = Reports(wanted=driver.wanted, observe=driver.observe)
        driver.load()
        orders = Orders(
            store=store,
            registry=self.registry,
            inspect=inspect,
            aims=aims,
            fulfiller=Fulfiller(store=store, aims=aims, clock=self.clock),
            max_body_bytes=1 << 20,
        )
        return Plane(self, aims, orders, driver, store)

    async def read_arms(self, endpoints: Collection[str]) -> GatewayReading:
        totals = {key: total for key, total in self.totals.items() if key[0] in endpoints}
        return GatewayReading(epoch="1", totals=totals, healthy={})

    def serve(self, requests: int) -> None:
        """Answer `requests` as the published routes say."""
        for route in self.published:
            for key, weight in live_weights(route).items():
                self._answer((route.name, key), requests * weight // 100)

    def _answer(self, arm: tuple[str, str], count: int) -> None:
        before = self.totals.get(arm, ArmTotals())
        failed = round(count * self.error_ratio.get(arm[1], 0.0))
        slow = round(count * self.slow.get(arm[1], 0.0))
        latency = dict(before.latency)
        left = count - slow
        for millisecond in range(1, 12):  # each half of what is left
            bucket = (millisecond / 1000, 0.0001)
            here = left if millisecond == 11 else (left + 1) // 2
            latency[bucket] = latency.get(bucket, 0) + here
            left -= here
        latency[0.1, 0.01] = latency.get((0.1, 0.01), 0) + slow
        self.totals[arm] = ArmTotals(
            requests=before.requests + count, errors=before.errors + failed, latency=latency
        )


@dataclass(slots=True)
class Plane:
    world: World
    aims: Aims
    orders: Orders
    driver: RolloutDriver
    store: StoreThread

    def settle(self) -> None:
        """Let replicas start and routes be published until nothing is left to do."""
        reconciler, world = self.aims.reconciler, self.world
        for _ in range(20):
            observed = Observed(
                replicas=dict(world.replicas),
                published=reconciler.published,
                next_serial=world.serial,
            )
            now = world.clock.monotonic()
            actions = plan(reconciler.desired, observed, now, drain_timeout_s=1.0)
            if not actions:
                return
            for action in actions:
                if isinstance(action, StartReplica):
                    world.serial = action.serial + 1
                    world.replicas[action.name] = self._replica(action)
                elif isinstance(action, PublishRoutes):
                    reconciler.published = world.published = action.routes
                    self.check_weights()
                else:
                    world.replicas.pop(action.name)
        raise AssertionError(f"still {actions}")

    def _replica(self, action: StartReplica) -> Replica:
        revision = action.revision
        fails = revision.version in self.world.cannot_load
        return Replica(
            name=action.name,
            serial=action.serial,
            endpoint=revision.endpoint,
            version=revision.version,
            revision_id=revision.id,
            address=f"unix:/r{action.serial}",
            phase=Phase.EXITED if fails else Phase.READY,
            since=self.world.clock.monotonic(),
            was_ready=not fails,
            exit_code=3 if fails else None,
            retry_at=1e12 if fails else None,
            answered_at=1e12,
            reason="cannot load the model: no" if fails else "",
        )

    def check_weights(self) -> None:
        for route in self.aims.reconciler.published or ():
            assert sum(arm.weight for arm in route.arms) == 100
            assert sum(live_weights(route).values()) == 100
            is_live = any(arm.is_live for arm in route.arms if arm.weight)
            assert is_live or not self.world.was_live
            self.world.was_live |= is_live

    async def second(self, requests: int = 1000) -> None:
        """One second of traffic, one look, and all that follows from it."""
        self.settle()
        self.world.clock.time += 1.0
        self.world.serve(requests)
        await self.driver.look()
        for _ in range(4):
            await self.driver.step()
            self.settle()

    @property
    def record(self) -> RolloutRecord:
        record = self.aims.rollouts["digits"]
        assert record is not None
        return record

    async def until_over(self, seconds: int = 600) -> RolloutRecord:
        for _ in range(seconds):
            if self.record.state.phase.is_over:
                return self.record
            await self.second()
        raise AssertionError(f"still {self.record.state}")

    def kill(self) -> "Plane":
        """Another control plane in place of this one, which is gone without a word."""
        self.store.close()
        return self.world.boot()


@pytest.fixture
def world(home: Home, registry: Registry, tmp_path: Path) -> World:
    for number in (1, 2):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(b"model %d" % number)
        registry.push("digits", path)
    return World(home, registry)


async def started(world: World, plan_: dict[str, object] | None = None) -> Plane:
    plane = world.boot()
    entry = {"name": "digits", "model": "digits:1"}
    await plane.orders.apply({"endpoints": [entry]})
    plane.settle()
    await plane.orders.start_rollout("digits", version="2", rollout=plan_ or CANARY)
    return plane


def arms(plane: Plane) -> dict[str, int]:
    (route,) = plane.aims.reconciler.published or ()
    return {arm.key: arm.weight for arm in route.arms}


async def test_a_good_version_is_promoted_step_by_step(world: World) -> None:
    plane = await started(world)

    record = await plane.until_over()

    assert record.state.phase is RolloutPhase.PROMOTED, record.state.reason
    assert arms(plane) == {"2": 100}
    weights = [e.data["weights"]["candidate"] for e in plane.store.store.events() if e.data]
    assert sorted(set(weights)) == [10, 50, 100]
    assert weights == sorted(weights)


async def test_a_version_that_fails_more_is_rolled_back_with_its_numbers(world: World) -> None:
    world.error_ratio["2"] = 0.05
    plane = await started(world)

    record = await plane.until_over()

    assert record.state.phase is RolloutPhase.ROLLED_BACK
    assert arms(plane) == {"1": 100}
    assert "errors" in record.state.reason
    event = plane.store.store.events()[-1]
    assert event.reason == "RolledBack"
    errors = next(m for m in event.data["verdict"]["metrics"] if m["metric"] == "errors")
    assert errors["outcome"] == "roll_back"
    assert errors["low"] > 0
    assert errors["candidate"] == pytest.approx(0.05, abs=0.01)


async def test_a_version_with_a_slow_tail_is_rolled_back(world: World) -> None:
    world.slow = {"1": 0.005, "2": 0.05}
    plane = await started(world)

    record = await plane.until_over()

    assert record.state.phase is RolloutPhase.ROLLED_BACK
    assert "latency" in record.state.reason


async def test_a_version_that_cannot_load_is_rolled_back_and_never_gets_a_request(
    world: World,
) -> None:
    world.cannot_load.add("2")
    plane = await started(world)

    record = await plane.until_over(20)

    assert record.state.phase is RolloutPhase.ROLLED_BACK
    assert "cannot load the model" in record.state.reason
    assert world.totals["digits", "2"].requests == 0


@pytest.mark.parametrize("fails", [False, True])
async def test_a_control_plane_killed_at_every_step_goes_on(world: World, *, fails: bool) -> None:
    world.error_ratio["2"] = 0.03 if fails else 0.0
    plane = await started(world)
    seen: list[int] = []

    while not plane.record.state.phase.is_over:
        before = plane.record.state.phase, plane.record.state.step
        for _ in range(7):
            await plane.second(4000)
            seen.append(arms(plane).get("2", 0))
            if (plane.record.state.phase, plane.record.state.step) != before:
                break
        plane = plane.kill()

    expected = RolloutPhase.ROLLED_BACK if fails else RolloutPhase.PROMOTED
    assert plane.record.state.phase is expected
    assert fails or seen == sorted(seen)
    assert [e.reason for e in plane.store.store.events()].count("Started") == 1


async def test_words_of_people_hold_at_once_and_are_remembered(world: World) -> None:
    plane = await started(world)
    await plane.second()

    paused = await plane.driver.command("digits", Verb.PAUSE, actor="ada", reason="lunch")
    for _ in range(30):
        await plane.second()
    still = plane.record.state.traffic.candidate
    await plane.driver.command("digits", Verb.RESUME)
    await plane.driver.command("digits", Verb.ABORT, reason="no need")
    plane.settle()

    assert "lunch" in paused.state.reason
    assert still == 10
    assert plane.record.state.phase is RolloutPhase.ABORTED
    assert arms(plane) == {"1": 100}
    assert plane.store.store.events()[-1].reason == "Aborted"


async def test_a_rollback_after_the_promotion_brings_the_old_version_back(world: World) -> None:
    plane = await started(world)
    await plane.until_over()

    await plane.driver.command("digits", Verb.ROLLBACK)
    plane.settle()

    assert arms(plane) == {"1": 100}
    assert plane.kill().aims.rollout("digits") is not None


async def test_words_that_mean_nothing_are_refused(world: World) -> None:
    plane = world.boot()
    await plane.orders.apply({"endpoints": [{"name": "digits", "model": "digits:1"}]})

    with pytest.raises(NotFoundError, match="has no rollout"):
        await plane.driver.command("digits", Verb.PROMOTE)
    with pytest.raises(ModelNotFoundError):
        await plane.driver.command("letters", Verb.PROMOTE)
    await plane.orders.start_rollout("digits", version="2")
    await plane.driver.command("digits", Verb.ABORT)
    with pytest.raises(FailedPreconditionError, match="cannot pause"):
        await plane.driver.command("digits", Verb.PAUSE)


async def test_blue_green_switches_at_once_and_back_at_once(world: World) -> None:
    plane = await started(world, {"strategy": "blue-green", "keep_s": 60.0})
    for _ in range(4):
        await plane.second()
    switched = arms(plane)
    held = {replica.version for replica in world.replicas.values()}

    await plane.driver.command("digits", Verb.ROLLBACK)
    plane.settle()

    assert switched == {"2": 100, "1": 0}
    assert held == {"1", "2"}
    assert arms(plane) == {"1": 100}


async def test_a_concurrent_baseline_is_compared_with_and_goes_away(world: World) -> None:
    plane = await started(world, {**CANARY, "baseline": True})
    await plane.second()
    during = arms(plane)

    record = await plane.until_over()

    assert during == {"2": 10, "1~baseline": 10, "1": 80}
    assert record.state.phase is RolloutPhase.PROMOTED
    assert arms(plane) == {"2": 100}
    assert len(world.replicas) == 1


async def test_replicas_of_a_rollout_are_told_what_to_look_at(world: World) -> None:
    plane = await started(world, {"strategy": "canary", "metrics": {"predictions": {}}})
    await plane.second()
    record = plane.record

    replicas = plane.driver.wanted()
    wishes = [plane.driver.observe(replica) for replica in replicas]
    await plane.driver.command("digits", Verb.ABORT)

    assert {replica.version for replica in replicas} == {"1", "2"}
    assert wishes == [Observe(key=record.id, predictions=True)] * 2
    assert plane.driver.wanted() == []
    assert plane.driver.observe(replicas[0]) == Observe()


async def test_a_candidate_that_keeps_crashing_is_rolled_back(world: World) -> None:
    plane = await started(world)
    await plane.second()
    crashed = next(r for r in world.replicas.values() if r.version == "2")
    world.replicas[crashed.name] = replace(
        crashed, phase=Phase.EXITED, failures=3, retry_at=1e12, reason="ended by signal 11"
    )

    record = await plane.until_over(5)

    assert record.state.phase is RolloutPhase.ROLLED_BACK
    assert "ended by signal 11" in record.state.reason


async def test_evidence_survives_a_restart_exactly(world: World) -> None:
    plane = await started(world)
    for _ in range(12):
        await plane.second(50)
    before = Evidence.decode(plane.record.state.settings, plane.record.evidence)

    after = plane.kill().record

    assert after.evidence == plane.record.evidence
    assert before.summary()["intervals"] > 0
