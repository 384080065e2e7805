"""Planner of the next actions from a cluster's observed to its desired objects, a pure function.

The rules are those of `headrace.control.reconcile.plan`: a revision gets requests only when its
pods are ready, and pods that a gateway may still send requests to are not removed. Deployments get
the number of pods, and the deletion cost of pods.
"""

import math
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from headrace.control.kubernetes.executor import (
    DELETION_COST,
    OPTIONAL_KINDS,
    SCALERS,
    VICTIM_COST,
    Action,
    ApplyObject,
    DeleteObject,
    MarkPod,
    ScaleDeployment,
    YieldReplicas,
    fixed,
    foreign,
)
from headrace.control.kubernetes.manifest_cache import ManifestCache, Manifests, with_spec
from headrace.control.kubernetes.manifests import bounds_of, is_scaled_elsewhere, scaler_bounds
from headrace.control.kubernetes.names import REVISION, InstallationName, Object
from headrace.control.kubernetes.pods import hosted_settings
from headrace.control.kubernetes.replicas import Pod, pods_in
from headrace.control.kubernetes.rolling import (
    PodChange,
    Roll,
    changes_pods,
    deadline_exceeded,
    has_old_pods,
    is_hopeless,
    next_roll,
)
from headrace.control.kubernetes.snapshot import (
    ClusterSnapshot,
    Key,
    condition_message,
    is_leaving,
    is_ours,
    key_of,
    owns_replicas,
)
from headrace.control.model.desired import (
    POOL_PREFIX,
    DesiredArm,
    DesiredEndpoint,
    DesiredState,
    pool_endpoint,
)
from headrace.control.model.observed import Observed, Replica, ReplicaPhase, addresses_of
from headrace.control.reconcile.plan import PublishRoutes, prospects_of
from headrace.core import HeadraceError
from headrace.core.spec.kubernetes import KubernetesSpec
from headrace.gateway import EndpointRoute

KINDS: Final = ("ConfigMap", "Service", "PodDisruptionBudget", "Deployment", *SCALERS)
"""Kinds that we create; scalers are created and deleted independently."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileDecision:
    """Actions to take now; `problems` are the impossible ones, by endpoint and arm key."""

    actions: tuple[Action, ...] = ()
    problems: Mapping[tuple[str, str], str] = field(default_factory=dict)
    roll: Roll = field(default_factory=Roll)
    """Deployments whose pods are replaced now, and those that wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionInputs:
    """All inputs of a decision."""

    desired: DesiredState
    cluster: ClusterSnapshot
    observed: Observed
    installation: InstallationName
    settings: KubernetesSpec
    is_confirmed: bool = True
    """Whether the gateway acknowledged routes of this leader; before that nothing is removed.
    """
    failing: Mapping[Key, str] = field(default_factory=dict)
    """Objects that the cluster does not accept, with the reason; they are tried again."""
    mutated: Mapping[Key, frozenset[str]] = field(default_factory=dict)
    """Fields that the cluster itself changes whenever we apply an object."""
    now: float = 0.0
    """Monotonic seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """Capacity that an arm needs before its weight takes effect, under an external autoscaler."""

    required: int
    """Number of pods that must have been ready."""
    minimum: int
    """Minimum of its autoscaler until then, and the number of pods that it starts with."""
    maximum: int
    """Maximum of its autoscaler until then."""


def deciding(
    inputs: DecisionInputs, cache: ManifestCache
) -> Generator[None, None, ReconcileDecision]:
    """Return the actions to take now; none if there is nothing to do before the next event.

    It yields after each endpoint, so that the caller can do other work in between.
    """
    aimed, handovers = sized(inputs, cache)
    yield
    candidates = prospects_of(aimed, inputs.observed, cache.memo)
    yield
    routes = tuple(prospect.route for prospect in candidates)
    retained = frozenset(name for prospect in candidates for name in prospect.retained)
    step = _Step(inputs=inputs, cache=cache, routes=routes, retained=retained, handovers=handovers)
    pools = {POOL_PREFIX + pool.name: pool_endpoint(pool) for pool in inputs.desired.pools}
    for endpoint in (*pools.values(), *inputs.desired.endpoints):
        for arm in endpoint.arms:
            if arm.revision.pool:
                step.note_hosted(endpoint, arm, pools.get(POOL_PREFIX + arm.revision.pool))
            elif arm.revision.upstream is None:
                step.keep(endpoint, arm)
        yield
    roll = step.roll()
    step.remove_others()
    is_due = routes != inputs.observed.published or not inputs.is_confirmed
    if is_due and inputs.observed.can_publish:
        step.actions.append(PublishRoutes(routes=routes))
    return ReconcileDecision(actions=tuple(step.actions), problems=step.problems, roll=roll)


Handovers = Mapping[tuple[str, str], Handover]
"""Handovers by endpoint and arm key."""


def sized(inputs: DecisionInputs, cache: ManifestCache) -> tuple[DesiredState, Handovers]:
    """Return the desired state with the replica counts of external autoscalers, and handovers."""
    deployments = {
        (deployment["metadata"].get("labels") or {}).get(REVISION, ""): deployment
        for deployment in inputs.cluster.of_kind("Deployment")
    }
    ready: dict[str, list[Replica]] = defaultdict(list)
    for replica in inputs.observed.replicas.values():
        if replica.phase is ReplicaPhase.READY:
            ready[replica.endpoint].append(replica)
    routes = {route.name: route for route in inputs.observed.published or ()}
    handovers: dict[tuple[str, str], Handover] = {}

    def size_of(endpoint: DesiredEndpoint, arm: DesiredArm) -> tuple[int, int | None]:
        deployment = deployments.get(arm.revision.id[:12])
        current = 1 if deployment is None else _replicas(deployment)
        if not is_scaled_elsewhere(endpoint, inputs.settings):
            is_theirs = deployment is not None and cache.accepts(deployment, now=inputs.now)
            return current if is_theirs else arm.replicas, arm.required
        name = endpoint.name
        handover = handover_of(endpoint, arm, ready.get(name, ()), routes.get(name))
        if handover is None:
            return current, 1
        handovers[name, arm.key] = handover
        required = handover.required if arm.required is None else arm.required
        return max(current, required), required

    endpoints = tuple(
        cache.resized(endpoint, tuple(size_of(endpoint, arm) for arm in endpoint.arms))
        for endpoint in inputs.desired.endpoints
    )
    return msgspec.structs.replace(inputs.desired, endpoints=endpoints), handovers


def handover_of(
    endpoint: DesiredEndpoint,
    arm: DesiredArm,
    ready: Iterable[Replica],
    route: EndpointRoute | None,
) -> Handover | None:
    """Return what `arm` needs before its weight takes effect; None if it is in effect.

    It needs as many pods per percent of the requests as the endpoint's other revisions have now.
    A revision whose share rounds up to its minimum counts as the unrounded minimum.

    Args:
        ready: The ready replicas of the endpoint.
        route: The acknowledged route of the endpoint.
    """
    assert endpoint.autoscale is not None, "an external autoscaler has bounds"
    current = 0
    others, their_weight = 0.0, 0
    by_address = {replica.address: replica.revision_id for replica in ready}
    for target in route.arms if route is not None else ():
        revisions = [by_address[a] for a in target.replicas if a in by_address]
        other = sum(revision != arm.revision.id for revision in revisions)
        if other and target.weight:
            minimum = endpoint.autoscale.min_replicas * target.weight / 100
            others += other if other > max(math.ceil(minimum), 1) else minimum
            their_weight += target.weight
        elif revisions:
            current = target.weight
            if target.key == arm.key and target.weight == arm.weight:
                return None
    minimum, maximum = bounds_of(endpoint.autoscale, arm.weight)
    needed = math.ceil(others * arm.weight / their_weight - 1e-9) if their_weight else 0
    required = min(max(needed, minimum), maximum) if arm.weight > current else 1
    # Until routes change, the arm may have more requests than its weight says.
    minimum, maximum = bounds_of(endpoint.autoscale, max(arm.weight, current))
    return Handover(required=required, minimum=max(minimum, required), maximum=maximum)


def shortage(deployment: Object | None, pods: Sequence[Pod]) -> int:
    """Return how many pods the cluster refuses, as by a quota, or cannot schedule.

    A PodDisruptionBudget counts them as disrupted, so that no node with a ready pod could ever be
    drained. A pod that terminates still counts as present: one eviction does not allow another.
    """
    if deployment is None:
        return 0
    present = [pod for pod in pods if not pod.is_over]
    is_refused = bool(condition_message(deployment, "ReplicaFailure", "True"))
    absent = max(_replicas(deployment) - len(present), 0) if is_refused else 0
    scheduled = (pod.status.condition("PodScheduled") for pod in present if not pod.is_leaving)
    return absent + sum(each is not None and each.reason == "Unschedulable" for each in scheduled)


@dataclass(slots=True, kw_only=True)
class _Step:
    """State of one decision while it is computed."""

    inputs: DecisionInputs
    cache: ManifestCache
    routes: tuple[EndpointRoute, ...]
    retained: frozenset[str]
    """Pods that must keep running."""
    handovers: Handovers
    actions: list[Action] = field(default_factory=list)
    problems: dict[tuple[str, str], str] = field(default_factory=dict)
    _wanted: set[str] = field(default_factory=set)
    _arms: set[tuple[str, str]] = field(default_factory=set)
    _names: dict[str, str] = field(default_factory=dict)
    """Revision ids by the name of their objects."""
    _changes: list[PodChange] = field(default_factory=list)
    _busy: frozenset[str] = frozenset()
    _pods: dict[str, list[Pod]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._busy = self.inputs.observed.routed_addresses() | addresses_of(self.routes)
        for pod in pods_in(self.inputs.cluster, self.inputs.installation, self.cache.decoded):
            self._pods.setdefault(pod.metadata.label(REVISION), []).append(pod)

    def keep(self, endpoint: DesiredEndpoint, arm: DesiredArm) -> None:
        """Create and correct the objects of an arm that runs on our replicas."""
        self._wanted.add(arm.revision.id[:12])
        self._arms.add((endpoint.name, arm.key))
        installation, settings = self.inputs.installation, self.inputs.settings
        try:
            manifests = self.cache.manifests(
                endpoint, arm, installation=installation, settings=settings
            )
        except HeadraceError as error:
            self.problems[endpoint.name, arm.key] = str(error)
            return
        key, name = (endpoint.name, arm.key), manifests.objects[0]["metadata"]["name"]
        handover = self.handovers.get(key)
        pods = self._pods.get(arm.revision.id[:12], [])
        facts = (
            manifests,
            handover,
            self.inputs.is_confirmed,
            [self.inputs.cluster.find(kind, name) for kind in KINDS],
            pods,
            [pod.metadata.name in self.retained for pod in pods],
            [self._is_busy(pod) for pod in pods],
        )
        if self._names.setdefault(name, arm.revision.id) != arm.revision.id:
            self.problems[key] = (
                f"another revision's objects are called {name} too: rename the endpoint"
            )
            return
        if self.cache.settled.get(key) == facts:
            return
        before = len(self.actions), len(self._changes)
        problems = self._bring_about(manifests, arm, handover)
        if problems:
            self.problems[key] = "; ".join(dict.fromkeys(problems))
        elif before == (len(self.actions), len(self._changes)):
            self.cache.settled[key] = facts

    def note_hosted(
        self, endpoint: DesiredEndpoint, arm: DesiredArm, pool: DesiredEndpoint | None
    ) -> None:
        """Record why a pool, whose objects were handled before, cannot host an arm."""
        try:
            hosted_settings(arm.revision)
        except HeadraceError as error:
            self.problems[endpoint.name, arm.key] = str(error)
            return
        of_pool = () if pool is None else ((pool.name, other.key) for other in pool.arms)
        problems = [self.problems[key] for key in of_pool if key in self.problems]
        if problems:
            self.problems[endpoint.name, arm.key] = "; ".join(problems)

    def _bring_about(
        self, manifests: Manifests, arm: DesiredArm, handover: Handover | None
    ) -> list[str]:
        """Create and correct an arm's objects; return the problems."""
        name = manifests.objects[0]["metadata"]["name"]
        orphans = self._orphans(manifests)
        self.actions += orphans
        problems = []
        config_actions: list[Action] = []  # pods read it at start: change both together
        deployment = self.inputs.cluster.find("Deployment", name)
        missing = shortage(deployment, self._pods.get(arm.revision.id[:12], ()))
        for manifest in adjusted(manifests.objects, handover, missing):
            key = key_of(manifest)
            live = self.inputs.cluster.find(*key)
            if key in self.inputs.failing:
                problems.append(self.inputs.failing[key])
            if live is not None and not is_ours(live, self.inputs.installation):
                problems.append(foreign(key))
            elif live is None:
                if key[0] in SCALERS and self._is_counted_by_us(name):
                    continue  # never two scalers: wait for the Deployment
                count = manifests.replicas if handover is None else handover.minimum
                created = with_spec(manifest, replicas=count if key[0] == "Deployment" else None)
                self.actions.append(
                    ApplyObject(manifest=created, why="it does not exist", is_new=True)
                )
            elif is_leaving(live):
                continue  # created again when it is gone
            elif key[0] == "Deployment":
                problems += self._correct_deployment(
                    manifest,
                    live,
                    arm,
                    manifests,
                    config_actions=config_actions,
                    is_scaled=any(one.live["kind"] in SCALERS for one in orphans),
                )
                config_actions = []
            elif key[0] == "ConfigMap":
                config_actions = self._corrected(manifest, live)
            elif key[0] not in SCALERS or not self._is_counted_by_us(name):
                self.actions += self._corrected(manifest, live)
        self.actions += config_actions
        return problems

    def _orphans(self, manifests: Manifests) -> list[DeleteObject]:
        """Return deletions of objects that the arm has no more.

        Scalers go before we set `replicas`; a disruption budget when one pod remains.
        """
        name = manifests.objects[0]["metadata"]["name"]
        kinds = {manifest["kind"] for manifest in manifests.objects}
        found = (self.inputs.cluster.find(k, name) for k in OPTIONAL_KINDS if k not in kinds)
        return [
            DeleteObject(live=live, why="its version has none now")
            for live in found
            if live is not None and is_ours(live, self.inputs.installation) and not is_leaving(live)
        ]

    def _corrected(self, manifest: Object, live: Object) -> list[Action]:
        paths = self._differences(manifest, live)
        return [ApplyObject(manifest=manifest, why=_differs(paths))] if paths else []

    def _differences(self, manifest: Object, live: Object) -> list[str]:
        mutated = self.inputs.mutated.get(key_of(manifest), frozenset())
        return [path for path in self.cache.differences(manifest, live) if path not in mutated]

    def _is_counted_by_us(self, name: str) -> bool:
        """Whether we still manage a Deployment's `replicas`: never two managers at once."""
        deployment = self.inputs.cluster.find("Deployment", name)
        return deployment is not None and owns_replicas(deployment)

    def _correct_deployment(
        self,
        manifest: Object,
        live: Object,
        arm: DesiredArm,
        manifests: Manifests,
        *,
        config_actions: list[Action],
        is_scaled: bool,
    ) -> list[str]:
        """Correct a Deployment together with its `config_actions`; return the problems."""
        current = _replicas(live)
        paths = self._differences(manifest, live)
        count: int | None = None
        scale_actions: list[Action] = []
        actions: list[Action] = [*config_actions]
        if manifests.replicas is None and owns_replicas(live):
            # At 0 replicas an HPA is disabled, and no pod would ever start.
            actions.append(YieldReplicas(manifest=manifest, replicas=max(current, 1)))
        else:
            is_theirs = self.cache.accepts(live, now=self.inputs.now) and not is_scaled
            if is_scaled:
                count = current
            elif manifests.replicas is not None and not is_theirs:
                count = self._count(arm, current)
            differs = [*paths]
            if is_scaled and not owns_replicas(live):
                differs.append("the manager of spec.replicas")
            if count is not None and count != current:
                differs.append("spec.replicas")
                scale_actions.append(ScaleDeployment(deployment=live, replicas=count))
            if differs:
                applied = with_spec(manifest, replicas=count)
                actions.append(ApplyObject(manifest=applied, why=_differs(differs)))
        failing, pods = self.inputs.failing, self._pods.get(arm.revision.id[:12], ())
        pod_problems = [failing.get(("Pod", pod.metadata.name), "") for pod in pods]
        refused = condition_message(live, "ReplicaFailure", "True")  # such as a quota
        problems = [f"the cluster refuses its pods: {refused}"] if refused else []
        problems += filter(None, [self._stuck(live, arm), *pod_problems])
        if manifests.replicas is not None and self.cache.accepts(live, now=self.inputs.now):
            problems.append(
                f"another autoscaler sets its replicas to {current}, and not to {arm.replicas}: "
                "remove that autoscaler, or set kubernetes.autoscaler"
            )
        if "spec.selector" in paths:
            self.actions += scale_actions
            return [*problems, fixed(key_of(live))]
        if changes_pods(paths):
            change = PodChange(
                deployment=live, actions=tuple(actions), meanwhile=tuple(scale_actions)
            )
            self._changes.append(change)
        else:
            self.actions += actions
        return problems

    def _stuck(self, deployment: Object, arm: DesiredArm) -> str:
        """Return why new pods do not become ready; empty if they still may."""
        if not has_old_pods(deployment):
            return ""
        reasons = [deadline_exceeded(deployment)]
        reasons += [
            replica.reason
            for replica in self.inputs.observed.replicas.values()
            if replica.revision_id == arm.revision.id and is_hopeless(replica)
        ]
        reason = "; ".join(dict.fromkeys(filter(None, reasons)))
        return (
            f"its new pods do not get ready, and others wait for them: {reason}" if reason else ""
        )

    def roll(self) -> Roll:
        """Replace the pods of as many Deployments as allowed at once; only scale the others."""
        if not self._changes:
            return Roll()
        own = [
            deployment
            for deployment in self.inputs.cluster.of_kind("Deployment")
            if is_ours(deployment, self.inputs.installation) and not is_leaving(deployment)
        ]
        ratio = self.inputs.settings.max_rolling_ratio
        roll = next_roll(self._changes, own, max_rolling_ratio=ratio)
        for change in roll.now:
            self.actions += change.actions
        for change in roll.later:
            self.actions += change.meanwhile
        return roll

    def _count(self, arm: DesiredArm, current: int) -> int:
        """Return a revision's number of pods: fewer only when the surplus ones get no requests."""
        active = [pod for pod in self._pods.get(arm.revision.id[:12], ()) if _counts(pod)]
        victims = [pod for pod in active if pod.metadata.name not in self.retained]
        names = {pod.metadata.name for pod in victims}
        for pod in active:
            cost = VICTIM_COST if pod.metadata.name in names else 0
            if cost_of(pod) != cost:
                name, uid = pod.metadata.name, pod.metadata.uid
                self.actions.append(MarkPod(name=name, uid=uid, cost=cost))
        if arm.replicas >= current:
            return arm.replicas
        if not self.inputs.is_confirmed:
            return current
        # No gateway routes to it, and its deletion cost makes it go first.
        leaving = [pod for pod in victims if not self._is_busy(pod) and cost_of(pod) == VICTIM_COST]
        return max(arm.replicas, min(current, len(active) - len(leaving)))

    def _is_busy(self, pod: Pod) -> bool:
        replica = self.inputs.observed.replicas.get(pod.metadata.name)
        return replica is not None and replica.address in self._busy

    def remove_others(self) -> None:
        """Delete our objects that are no longer desired, once no request can reach them."""
        self.cache.keep_only(self._arms, set(self._names))
        for live in self._unwanted():
            pods = self._pods.get(live["metadata"]["labels"].get(REVISION, ""), [])
            if live["kind"] in {"Deployment", *SCALERS}:
                is_free = self.inputs.is_confirmed and not any(map(self._is_needed, pods))
            else:
                # A pod that restarts or terminates may still read its settings.
                name = live["metadata"]["name"]
                is_free = not pods and self.inputs.cluster.find("Deployment", name) is None
            if is_free:
                self.actions.append(DeleteObject(live=live, why="it is no longer desired"))

    def _unwanted(self) -> list[Object]:
        unwanted = [
            live
            for (kind, _), live in self.inputs.cluster.objects.items()
            if kind in KINDS
            and (label := (live["metadata"].get("labels") or {}).get(REVISION, ""))
            and label not in self._wanted
            and not is_leaving(live)
            and is_ours(live, self.inputs.installation)
        ]
        return sorted(unwanted, key=lambda live: (KINDS.index(live["kind"]), key_of(live)))

    def _is_needed(self, pod: Pod) -> bool:
        return _counts(pod) and (pod.metadata.name in self.retained or self._is_busy(pod))


def adjusted(
    manifests: Iterable[Object], handover: Handover | None, missing: int
) -> Iterator[Object]:
    """Yield manifests with the bounds of a handover, and a disruption budget without `missing`."""
    for manifest in manifests:
        kind = manifest["kind"]
        if kind == "PodDisruptionBudget" and missing:
            yield with_spec(manifest, maxUnavailable=1 + missing)
        elif kind in SCALERS and handover is not None:
            bounds = scaler_bounds(kind, handover.minimum, handover.maximum)
            yield with_spec(manifest, **bounds)
        else:
            yield manifest


def cost_of(pod: Pod) -> int:
    """Return a pod's deletion cost."""
    annotation = pod.metadata.annotation(DELETION_COST)
    try:
        return int(annotation) if annotation else 0
    except ValueError:
        return 1  # not our value: correct it


def _counts(pod: Pod) -> bool:
    """Whether its Deployment counts it among its replicas."""
    return not pod.is_leaving and not pod.is_over


def _replicas(deployment: Object) -> int:
    return int(deployment["spec"].get("replicas", 1))


def _differs(paths: Iterable[str]) -> str:
    return f"it differs at {', '.join(paths)}"
