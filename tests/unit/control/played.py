"""A home whose gateway and replicas are played, and control planes that come and go on it.

Store, orders, plan, machine and statistics are real.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from headrace.control.base.home import Home
from headrace.control.base.journal import EventJournal
from headrace.control.base.ownership import ProcessOwner
from headrace.control.desired.models import ModelWork
from headrace.control.desired.service import DesiredStateService
from headrace.control.desired.target import TargetState
from headrace.control.gateway.routes import live_weights
from headrace.control.gateway.supervisor import EnvoySupervisor
from headrace.control.local.driver import LocalDriver
from headrace.control.model.observed import Observed, Replica, ReplicaPhase
from headrace.control.model.records import RolloutRecord
from headrace.control.reconcile.plan import Action, Memo, PublishRoutes, StartReplica, plan
from headrace.control.reconcile.publication import RoutePublication
from headrace.control.reconcile.reconciler import Reconciler
from headrace.control.reconcile.reports import Reports
from headrace.control.rollouts.driver import RolloutDriver
from headrace.control.state import home_url, open_store
from headrace.control.state.store import Store
from headrace.gateway import (
    ArmStatistics,
    EndpointRoute,
    EnvoyGateway,
    EnvoySettings,
    GatewayStatistics,
)
from headrace.registry import Registry
from tests.unit.control.conftest import inspect


@dataclass(slots=True)
class TurnedClock:
    """Both clocks, moved by hand; `jumped_s` is how far somebody set the wall clock."""

    time: float = 1000.0
    jumped_s: float = 0.0

    def monotonic(self) -> float:
        return self.time

    def now(self) -> float:
        return self.time + self.jumped_s


@dataclass(slots=True)
class World:
    """One home that outlives control planes: replicas, the gateway's routes and its counts."""

    home: Home
    registry: Registry
    clock: TurnedClock = field(default_factory=TurnedClock)
    replicas: dict[str, Replica] = field(default_factory=dict)
    published: tuple[EndpointRoute, ...] = ()
    totals: dict[tuple[str, str], ArmStatistics] = field(default_factory=dict)
    error_ratio: dict[str, float] = field(default_factory=dict)
    slow: dict[str, float] = field(default_factory=dict)
    cannot_load: set[str] = field(default_factory=set)
    serial: int = 1
    was_live: bool = False

    def boot(self) -> "Plane":
        """A new control plane on this home."""
        keeper = EnvoySupervisor(
            envoy=EnvoyGateway(EnvoySettings(run_dir=self.home.run / "envoy")),
            owner=ProcessOwner.of(self.home.root),
            record_path=self.home.gateway_file,
            routes_path=self.home.routes_file,
            clock=self.clock,
        )
        reconciler = Reconciler(
            driver=LocalDriver(home=self.home, socket_dir=self.home.socket_dir()),
            publication=RoutePublication(publisher=keeper, published=self.published),
            clock=self.clock,
            drain_timeout_s=1.0,
            replicas=self.replicas,
        )
        store = open_store(home_url(self.home.root))
        target_state = TargetState(reconciler=reconciler, desired=store.load.blocking())
        journal = EventJournal(store=store)
        driver = RolloutDriver(
            store=store,
            journal=journal,
            target_state=target_state,
            gateway=self,
            clock=self.clock,
            reports=Reports(replicas=self.replicas),
        )
        driver.load()
        desired_state = DesiredStateService(
            store=store,
            registry=self.registry,
            target_state=target_state,
            journal=journal,
            clock=self.clock,
            work=ModelWork(inspect),
            max_body_bytes=1 << 20,
        )
        return Plane(self, target_state, desired_state, driver, store)

    async def read_arms(self, endpoints: Collection[str]) -> GatewayStatistics:
        totals = {key: total for key, total in self.totals.items() if key[0] in endpoints}
        return GatewayStatistics(epoch="1", arms=totals)

    def serve(self, requests: int) -> None:
        """Answer `requests` as the published routes say."""
        for route in self.published:
            for key, weight in live_weights(route).items():
                self._answer((route.name, key), requests * weight // 100)

    def _answer(self, arm: tuple[str, str], count: int) -> None:
        before = self.totals.get(arm, ArmStatistics())
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
        self.totals[arm] = ArmStatistics(
            requests=before.requests + count, errors=before.errors + failed, latency=latency
        )


@dataclass(slots=True)
class Plane:
    world: World
    target_state: TargetState
    desired_state: DesiredStateService
    driver: RolloutDriver
    store: Store
    memo: Memo = field(default_factory=Memo)

    def settle(self) -> None:
        """Let replicas start and routes be published until nothing is left to do."""
        reconciler, world = self.target_state.reconciler, self.world
        actions: list[Action] = []
        for _ in range(20):
            observed = Observed(
                replicas=dict(world.replicas),
                published=reconciler.publication.published,
                next_serial=world.serial,
            )
            now = world.clock.monotonic()
            actions = plan(reconciler.desired, observed, now, drain_timeout_s=1.0, memo=self.memo)
            assert actions == plan(reconciler.desired, observed, now, drain_timeout_s=1.0)
            if not actions:
                return
            for action in actions:
                if isinstance(action, StartReplica):
                    world.serial = action.serial + 1
                    world.replicas[action.name] = self._replica(action)
                elif isinstance(action, PublishRoutes):
                    reconciler.publication.published = world.published = action.routes
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
            phase=ReplicaPhase.EXITED if fails else ReplicaPhase.READY,
            since=self.world.clock.monotonic(),
            was_ready=not fails,
            exit_code=3 if fails else None,
            retry_at=1e12 if fails else None,
            answered_at=1e12,
            reason="cannot load the model: no" if fails else "",
        )

    def check_weights(self) -> None:
        for route in self.target_state.reconciler.publication.published or ():
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
        await self.driver.poll()
        for _ in range(4):
            await self.driver.step()
            self.settle()

    @property
    def record(self) -> RolloutRecord:
        record = self.target_state.rollouts["digits"]
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
