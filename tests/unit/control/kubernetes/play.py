"""A cluster, a gateway and the driver's decisions, all without a socket: a test plays time."""

from dataclasses import dataclass, field

from headrace.control.kubernetes.api import WATCHED
from headrace.control.kubernetes.decide import DecisionInputs, ReconcileDecision, deciding
from headrace.control.kubernetes.executor import (
    DELETION_COST,
    Action,
    ApplyObject,
    DeleteObject,
    MarkPod,
    ScaleDeployment,
    YieldReplicas,
    foreign,
)
from headrace.control.kubernetes.manifest_cache import ManifestCache, with_spec
from headrace.control.kubernetes.manifests import settings_in
from headrace.control.kubernetes.names import InstallationName
from headrace.control.kubernetes.replicas import EndpointSlice, pods_in, replicas_of
from headrace.control.kubernetes.snapshot import ClusterSnapshot, Key, is_ours, key_of
from headrace.control.model.desired import DesiredState
from headrace.control.model.observed import Observed, Replica, addresses_of
from headrace.control.reconcile.plan import PublishRoutes
from headrace.control.reconcile.pools import AcknowledgedModels, plan_pools, routed_now
from headrace.gateway import EndpointRoute
from tests.unit.control.kubernetes.fake_cluster import (
    FakeControllers,
    FakePods,
    FakeStore,
    RefusedError,
)
from tests.unit.control.kubernetes.states import PLACE


@dataclass(slots=True)
class Play:
    """`routed` is what the gateway has; it acknowledges when `acknowledge` is called."""

    desired: DesiredState = field(default_factory=DesiredState)
    store: FakeStore = field(default_factory=FakeStore)
    runtime: FakePods = field(default_factory=FakePods)
    cluster: ClusterSnapshot = field(default_factory=ClusterSnapshot)
    replicas: dict[str, Replica] = field(default_factory=dict)
    routed: tuple[EndpointRoute, ...] = ()
    published: tuple[EndpointRoute, ...] | None = None
    sent: tuple[EndpointRoute, ...] | None = None
    is_confirmed: bool = False
    blocked: dict[Key, str] = field(default_factory=dict)
    drafts: ManifestCache = field(default_factory=ManifestCache)
    decision: ReconcileDecision = field(default_factory=ReconcileDecision)
    now: float = 0.0
    serial: int = 1
    controllers: FakeControllers = field(init=False)
    installation: InstallationName = PLACE
    told: dict[str, AcknowledgedModels] = field(default_factory=dict)
    pods_host: dict[tuple[str, int], set[tuple[str, str]]] = field(default_factory=dict)
    """Names and versions of models, by pod's name and process: what pods know of themselves."""

    def __post_init__(self) -> None:
        self.controllers = FakeControllers(self.store, self.runtime)

    def look(self, *kinds: str) -> None:
        """See what the cluster holds now; what is not looked at stays as it was known."""
        for kind in kinds or WATCHED:
            self.cluster.replace_all(kind, self.store.of_kind(kind))
        self.replicas = replicas_of(
            pods_in(self.cluster, self.installation, self.drafts.decoded),
            self.drafts.decoded.of_kind(self.cluster, EndpointSlice),
            self.replicas,
            routed=self.observed().routed_addresses(),
            next_serial=self.serial,
            now=self.now,
        )
        self.serial = max([self.serial, *(r.serial + 1 for r in self.replicas.values())])

    def observed(self) -> Observed:
        return Observed(
            replicas=self.replicas,
            published=self.published,
            attempted=self.sent,
            can_publish=self.sent is None,
            hosted={name: told.hosting.revision_ids for name, told in self.told.items()},
        )

    def tell(self) -> None:
        """Tell pods of pools what to host, as far as they are known."""
        self.told = {
            name: told
            for name, told in self.told.items()
            if name in self.replicas and self.replicas[name].process == told.process
        }
        observed = self.observed()
        routed = routed_now(observed)
        for one in plan_pools(self.desired, self.replicas.values(), self.told, routed):
            self.told[one.replica] = AcknowledgedModels(process=one.process, hosting=one.hosting)
            before = self.pods_host.get((one.replica, one.process), set())
            said = {(model.model_name, model.model_version) for model in one.hosting.models}
            self.pods_host[one.replica, one.process] = said | (before & {*one.hosting.keeps})

    def hosting(self) -> dict[str, set[tuple[str, str]]]:
        """What pods of pools host that were told, by their addresses."""
        return {
            replica.address: self.pods_host[name, replica.process]
            for name, replica in self.replicas.items()
            if (name, replica.process) in self.pods_host
        }

    def decide(self) -> ReconcileDecision:
        scene = DecisionInputs(
            desired=self.desired,
            cluster=self.cluster,
            observed=self.observed(),
            installation=self.installation,
            settings=settings_in(self.desired),
            is_confirmed=self.is_confirmed,
            failing=self.blocked,
            now=self.now,
        )
        steps = deciding(scene, self.drafts)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                self.decision = end.value
                return self.decision

    def act(self) -> ReconcileDecision:
        """Decide, and do it all."""
        self.now += 1.0
        for action in self.decide().actions:
            if isinstance(action, PublishRoutes):
                self.sent = action.routes
                self.routed = action.routes  # in force from any moment on
            else:
                self.perform(action)
        return self.decision

    def perform(self, action: Action) -> None:
        try:
            self._perform(action)
        except RefusedError:
            self.look()  # the cluster is another than we thought

    def _perform(self, action: Action) -> None:
        match action:
            case ApplyObject(manifest=wanted):
                self._apply(wanted)
            case YieldReplicas(manifest=wanted, replicas=replicas):
                bare = {k: wanted[k] for k in ("apiVersion", "kind")}
                name = {"metadata": {"name": wanted["metadata"]["name"]}}
                handed = with_spec({**bare, **name, "spec": {}}, replicas=replicas)
                self.store.apply(handed, manager="headrace-handover")
                self._apply(wanted)
            case ScaleDeployment(deployment=found, replicas=replicas):
                told = {key: found[key] for key in ("apiVersion", "kind")}
                told["metadata"] = {key: found["metadata"][key] for key in ("name", "uid")}
                told["spec"] = {"replicas": replicas}
                self.store.apply(told, manager="headrace-handover")
            case MarkPod(name=name, cost=cost):
                change = {"metadata": {"annotations": {DELETION_COST: str(cost)}}}
                self.store.patch("Pod", name, change)
            case DeleteObject(live=found):
                uid = found["metadata"]["uid"]
                self.store.delete(*key_of(found), uid=uid)
                self.cluster.drop(found)
            case PublishRoutes():
                raise AssertionError

    def _apply(self, wanted: dict[str, object]) -> None:
        key = key_of(wanted)
        known = self.cluster.find(*key)
        there = self.store.objects.get(key)
        if known is None and there is not None and not is_ours(there, self.installation):
            self.blocked[key] = foreign(key)
            return
        result = self.store.apply(wanted, manager="headrace")
        self.cluster.put(result)

    def acknowledge(self) -> None:
        """The gateway says that what was sent is in force, and nothing else."""
        if self.sent is not None:
            self.published, self.sent, self.is_confirmed = self.sent, None, True

    def lead_anew(self) -> None:
        """Another control plane leads: it knows what was acknowledged, and nothing else."""
        self.replicas = {}
        self.sent = None
        self.is_confirmed = False
        self.drafts = ManifestCache()
        self.told = {}

    def settle(self) -> None:
        """Until nothing happens any more."""
        for _ in range(60):
            self.controllers.settle()
            self.look()
            self.tell()
            done = self.act()
            is_waiting = self.sent is not None
            self.acknowledge()
            if not done.actions and not is_waiting:
                return
        raise AssertionError(f"it never comes to rest: {self.decision.actions}")

    def counts(self) -> dict[str, dict[str, int]]:
        """How many addresses each version of an endpoint has, without the routes of pools."""
        return {
            route.name: {arm.version: len(arm.replicas) for arm in route.arms}
            for route in self.routed
            if ":" not in route.name
        }

    def addresses(self) -> frozenset[str]:
        """Where the gateway may send requests."""
        return addresses_of(self.routed)
