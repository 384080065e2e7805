"""An autoscaler over replicas that are played: they start when told, and report what they did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from headrace.control.base.home import Home
from headrace.control.base.ownership import ProcessOwner
from headrace.control.desired.target import TargetState
from headrace.control.gateway.supervisor import EnvoySupervisor
from headrace.control.local.driver import LocalDriver
from headrace.control.model.desired import DesiredArm, DesiredEndpoint, DesiredState, make_revision
from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.model.records import Event
from headrace.control.reconcile.publication import RoutePublication
from headrace.control.reconcile.reconciler import Reconciler
from headrace.control.scaling.scaler import Scaler, ScalerStates
from headrace.core import EndpointName, ReplicaSettings
from headrace.core.spec.scale import AutoscaleSpec, BudgetSpec
from headrace.core.state_file import StateFile
from headrace.gateway import EnvoyGateway, EnvoySettings
from headrace.serving.telemetry.report import ReplicaReport
from tests.unit.control.played import TurnedClock

SETTINGS = AutoscaleSpec(max_replicas=10, stable_window_s=20.0, scale_down_delay_s=30.0)
BOUNDS = [0.1, 0.2, 1.0]
SERVICE_S = 0.1
T0 = 1_790_000_000.0


def arm(name: str, version: str, *, weight: int = 100, replicas: int = 1) -> DesiredArm:
    settings = ReplicaSettings(model_name=name, model_version=version, path=f"/m/{version}")
    revision = make_revision(
        endpoint=EndpointName(name), model=f"{name}:{version}", settings=settings
    )
    return DesiredArm(revision=revision, weight=weight, replicas=replicas)


def endpoint(
    name: str, *arms: DesiredArm, autoscale: AutoscaleSpec | None = SETTINGS
) -> DesiredEndpoint:
    return DesiredEndpoint(
        name=EndpointName(name), timeout_s=None, arms=arms, generation=1, autoscale=autoscale
    )


@dataclass(slots=True)
class Lab:
    """`rates`: requests per second by version. Replicas share them evenly."""

    home: Home
    clock: TurnedClock = field(default_factory=lambda: TurnedClock(T0))
    rates: dict[str, float] = field(default_factory=dict)
    reports: dict[str, ReplicaReport] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    budget: BudgetSpec = field(default_factory=BudgetSpec)
    start_s: float = 0.0
    cpu_per_request_s: float = 0.0
    rss_bytes: int = 1_000_000
    silent: bool = False
    serial: int = 0
    target_state: TargetState = field(init=False)
    scaler: Scaler = field(init=False)

    def __post_init__(self) -> None:
        keeper = EnvoySupervisor(
            envoy=EnvoyGateway(EnvoySettings(run_dir=self.home.run / "envoy")),
            owner=ProcessOwner.of(self.home.root),
            record_path=self.home.gateway_file,
            routes_path=self.home.routes_file,
            clock=self.clock,
        )
        reconciler = Reconciler(
            driver=LocalDriver(home=self.home, socket_dir=self.home.socket_dir()),
            publication=RoutePublication(publisher=keeper),
            clock=self.clock,
            drain_timeout_s=1.0,
        )
        self.target_state = TargetState(reconciler=reconciler)
        self.restart()

    def restart(self) -> None:
        """A new control plane with what is on disk; replicas go on."""
        self.scaler = Scaler(
            target_state=self.target_state,
            latest=self.reports.get,
            clock=self.clock,
            budget=lambda: self.budget,
            emit=self.note,
            memory=StateFile(self.home.scaling_file, ScalerStates, "states"),
        )
        self.scaler.load()
        self.target_state.use_predictor(self.scaler.predict_scale)

    async def note(self, events: Sequence[Event]) -> None:
        self.events += events

    def set_desired(self, *endpoints: DesiredEndpoint) -> None:
        self.target_state.set_target(desired=DesiredState(generation=1, endpoints=endpoints))
        self.settle()

    @property
    def replicas(self) -> dict[str, Replica]:
        return self.target_state.reconciler.replicas

    def run(self, seconds: int, rates: Mapping[str, float] | None = None) -> list[int]:
        """Seconds pass; the count of all copies in each."""
        if rates is not None:
            self.rates = dict(rates)
        return [self.second() for _ in range(seconds)]

    def second(self) -> int:
        self.clock.time += 1.0
        self.settle()
        if not self.silent:
            for replica in self.ready():
                self.report(replica)
        self.events += self.scaler.step()
        self.target_state.rescale(self.scaler.scale)
        self.settle()
        return len(self.replicas)

    def ready(self) -> list[Replica]:
        return [r for r in self.replicas.values() if r.phase is ReplicaPhase.READY]

    def settle(self) -> None:
        """What the reconciler would bring about: copies start, become ready, end."""
        wanted = {
            arm.revision.id: (endpoint.name, arm)
            for endpoint in self.target_state.reconciler.desired.endpoints
            for arm in endpoint.arms
        }
        for replica in list(self.replicas.values()):
            is_due = self.clock.time - replica.since >= self.start_s
            if replica.phase is ReplicaPhase.STARTING and is_due:
                ready = replace(replica, phase=ReplicaPhase.READY, was_ready=True)
                self.replicas[replica.name] = ready
            if replica.revision_id not in wanted:
                del self.replicas[replica.name]
        for revision_id, (name, one) in wanted.items():
            mine = [r for r in self.replicas.values() if r.revision_id == revision_id]
            for replica in mine[one.replicas :]:
                del self.replicas[replica.name]
            for _ in range(one.replicas - len(mine)):
                self.start(name, one)

    def start(self, name: str, one: DesiredArm) -> None:
        self.serial += 1
        replica = Replica(
            name=f"{name}-{self.serial}",
            serial=self.serial,
            endpoint=name,
            version=one.revision.version,
            revision_id=one.revision.id,
            address="",
            phase=ReplicaPhase.STARTING if self.start_s else ReplicaPhase.READY,
            since=self.clock.time,
            pid=self.serial,
        )
        self.replicas[replica.name] = replica

    def report(self, replica: Replica) -> None:
        """A second's work more than the last report."""
        before = self.reports.get(replica.name)
        peers = sum(r.revision_id == replica.revision_id for r in self.ready())
        done = self.rates.get(replica.version, 0.0) / peers
        answered = (before.received if before else 0) + round(done)
        self.reports[replica.name] = ReplicaReport(
            replica=replica.name,
            model="",
            version=replica.version,
            at=self.clock.time,
            ready=True,
            in_flight=round(done * SERVICE_S),
            received=answered,
            answered=answered,
            bounds_s=BOUNDS,
            request=[answered, 0, 0, 0],
            queue_wait=[answered, 0, 0, 0],
            run_s=answered * SERVICE_S,
            busy_s=answered * SERVICE_S,
            cpu_s=answered * self.cpu_per_request_s,
            rss_bytes=self.rss_bytes,
            peak_rss_bytes=self.rss_bytes,
            max_concurrent_runs=1,
            intra_op_threads=1,
        )
