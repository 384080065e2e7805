"""Async driver around `deciding`: waits for events and executes the decisions.

Only a leader acts, and only on a complete snapshot: while a kind cannot be watched, routes stay and
nothing is changed.
"""

import asyncio
import base64
import gzip
import logging
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from headrace.control.base.faults import LOOP, Faults, write_events
from headrace.control.base.journal import ChangeSignal, Emit, discard_events, wait_for
from headrace.control.gateway.routes import RoutePublisher
from headrace.control.kubernetes.api import DURATION_BOUNDS_S, ClusterApi, ObjectMissingError
from headrace.control.kubernetes.decide import DecisionInputs, ReconcileDecision, deciding
from headrace.control.kubernetes.executor import Action, ActionExecutor, is_current
from headrace.control.kubernetes.manifest_cache import ManifestCache
from headrace.control.kubernetes.manifests import settings_in
from headrace.control.kubernetes.names import (
    InstallationName,
    Object,
    control_metadata,
    instance_selector,
)
from headrace.control.kubernetes.pods import hosted_settings
from headrace.control.kubernetes.replicas import EndpointSlice, Pod, pods_in, replicas_of
from headrace.control.kubernetes.rolling import Roll, roll_events
from headrace.control.kubernetes.snapshot import ClusterSnapshot, OwnerLookup, Watches
from headrace.control.local.sandbox import Isolation
from headrace.control.model.desired import DesiredArm, DesiredState, Revision
from headrace.control.model.observed import Observed, Replica
from headrace.control.model.records import Event
from headrace.control.reconcile.plan import PublishRoutes
from headrace.control.reconcile.publication import RoutePublication
from headrace.core import Clock, FailedPreconditionError, HeadraceError, ReplicaSettings
from headrace.core.error_kind import UNDECODABLE
from headrace.core.spec.access import EndpointLimitsSpec
from headrace.core.spec.kubernetes import KubernetesSpec
from headrace.gateway import EndpointRoute
from headrace.observe.histogram import Histogram
from headrace.observe.metrics import Family, counter, gauge, histogram, histogram_sample

_LOG: Final = logging.getLogger("headrace.control")
_SHORT_INTERVAL_S: Final = 1.0
_RECHECK_INTERVAL_S: Final = 30.0
_LONGEST_PAUSE_S: Final = 2.0
_PAUSES_PER_STEP: Final = 3.0
_SLICE_S: Final = 0.02
_RECORD_INTERVAL_S: Final = 1.0
_ROUTES_KEY: Final = "routes.json.gz"
_TAKEN: Final = "headrace.dev/taken"
"""Annotation that each leader sets to another value."""
_MAX_RECORD_BYTES: Final = 1_000_000


Problems = Mapping[tuple[str, str], str]
"""Problems by endpoint and arm key."""


@dataclass(slots=True, kw_only=True)
class KubernetesReconciler:
    """Reconciles a cluster with the desired state while `run` is awaited.

    Cancelling `run` only stops the watching: pods keep running. `is_leader` returns whether this
    control plane may act now.
    """

    api: ClusterApi
    publisher: RoutePublisher
    clock: Clock
    installation: InstallationName
    is_leader: Callable[[], bool]
    emit: Emit = discard_events
    """Records events."""
    faults: Faults = field(default_factory=Faults)
    desired: DesiredState = field(default_factory=DesiredState)
    replicas: dict[str, Replica] = field(default_factory=dict)
    hosted: MutableMapping[str, frozenset[str]] = field(default_factory=dict)
    cluster: ClusterSnapshot = field(default_factory=ClusterSnapshot)
    owners: OwnerLookup = field(default_factory=OwnerLookup)
    changes: ChangeSignal = field(init=False)
    """Signal for changes of the observed or desired state."""
    publication: RoutePublication = field(init=False)
    watches: Watches = field(init=False)
    executor: ActionExecutor = field(init=False)
    _settings: KubernetesSpec = field(default_factory=KubernetesSpec)
    _problems: dict[tuple[str, str], str] = field(default_factory=dict)
    _roll: Roll = field(default_factory=Roll)
    _cache: ManifestCache = field(default_factory=ManifestCache)
    _read: tuple[list[Pod], list[EndpointSlice], frozenset[str]] | None = None
    """What `replicas` was computed from."""
    _knows_routes: bool = False
    _doubts: int = 0
    """Number of reasons to read the owners: Kubernetes deletes objects of owners of the past."""
    _settled: int = -1
    """`_doubts` at the start of the last successful read."""
    _owners_at: float = 0.0
    _owners_task: asyncio.Task[None] | None = None
    _retry_at: float = 0.0
    _step_s: Histogram = field(default_factory=lambda: Histogram(DURATION_BOUNDS_S))
    _recorded_at: float = -_RECORD_INTERVAL_S
    _record_version: str = ""
    """Resource version of the record of routes, as this leader wrote it last; empty if unknown."""
    _record_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _next_serial: int = 1
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the desired state changes: the next step does not wait for more events."""
    _group: asyncio.TaskGroup | None = None

    def __post_init__(self) -> None:
        self.changes = ChangeSignal(on_change=self.wake)
        self.publication = RoutePublication(
            publisher=self.publisher, changes=self.changes, record=self._record
        )
        self.watches = Watches(
            api=self.api,
            cluster=self.cluster,
            selector=instance_selector(self.installation.instance),
            on_change=self.wake,
            on_orphaned=self._doubt_owners,
        )
        self.executor = ActionExecutor(
            api=self.api,
            cluster=self.cluster,
            installation=self.installation,
            clock=self.clock,
            may_act=lambda: self.is_leader() and self.watches.is_synced,
            is_current=self._is_current,
            on_done=self.wake,
            on_restored=self.watches.restart,
        )

    def observed(self) -> Observed:
        """Return the current observed state."""
        return self.publication.observed(self.replicas, self.hosted, self._next_serial)

    def set_desired(self, desired: DesiredState) -> None:
        """Set the desired state."""
        if desired.spec is not self.desired.spec:
            self._settings = settings_in(desired)
        self.desired = desired
        self._asked.set()
        self.changes.notify()

    def wake(self) -> None:
        """Schedule a step; observers are notified only if it finds changes."""
        self._wake.set()

    def isolation_of(self, name: str) -> Isolation | None:  # noqa: ARG002  # protocol
        """Return None: the cluster isolates pods."""
        return None

    def arm_problem(self, endpoint: str, arm: DesiredArm) -> str:
        """Return why an arm's objects cannot be created; empty if they can."""
        problem = self._problems.get((endpoint, arm.key), "")
        return problem or self.publication.left_out.get(endpoint, "")

    def may_act(self) -> bool:
        """Whether this control plane leads, and has read the routes of the previous leader."""
        return self._knows_routes and self.is_leader()

    def hosted_settings(self, revision: Revision) -> ReplicaSettings | None:
        """Return a model's settings for a pool's pod; None if pods cannot read the model."""
        try:
            return hosted_settings(revision)
        except HeadraceError:
            return None  # its endpoint's status has the reason

    def families(self) -> list[Family]:
        """Return the metrics of this driver."""
        requests = [
            histogram_sample(duration, (("verb", verb), ("kind", kind), ("result", result)))
            for (verb, kind, result), duration in sorted(self.api.durations.items())
        ]
        return [
            gauge(
                "headrace_kubernetes_leader",
                "1 while this control plane leads.",
                [((), self.is_leader())],
            ),
            histogram(
                "headrace_kubernetes_reconcile_seconds",
                "Duration of a step of the driver.",
                [histogram_sample(self._step_s, ())],
            ),
            counter(
                "headrace_kubernetes_reconcile_errors_total",
                "Changes of objects that failed.",
                [((), self.executor.errors)],
            ),
            histogram(
                "headrace_kubernetes_api_request_seconds",
                "Duration of requests to the API server, without watches.",
                requests,
            ),
            gauge(
                "headrace_kubernetes_blocked_objects",
                "Objects that the cluster does not accept now.",
                [((), len(self.executor.problems()))],
            ),
        ]

    async def run(self) -> None:
        """Reconcile until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self.watches.run())
            while True:
                self._wake.clear()
                self._asked.clear()
                started = self.clock.monotonic()
                with self.faults.contain(LOOP, "pods"):
                    await self.step()
                self._step_s.observe(self.clock.monotonic() - started)
                # With thousands of endpoints a step takes long, and pod events come in bursts:
                # other tasks get several times what the step took, then one step sees all events.
                pause_s = _PAUSES_PER_STEP * (self.clock.monotonic() - started)
                await wait_for(self._asked, min(pause_s, _LONGEST_PAUSE_S))
                await self._wait_due(started)

    async def step(self) -> None:
        """Decide, and start the decided actions."""
        self._observe()
        # No spec was ever applied: an empty database must not remove everything.
        is_asked = self.desired.generation > 0
        if not (is_asked and self.is_leader() and self.watches.is_synced):
            return
        if not self._knows_routes and not await self._read_routes():
            return
        assert self._group is not None, "actions are taken inside run"
        is_read = self._owners_task is None or self._owners_task.done()
        if is_read and self.clock.monotonic() >= self._owners_at:
            self._owners_task = self._group.create_task(self._read_owners())
        decision = await self._decide()
        if not self.is_leader():
            return  # another control plane may lead by now
        self._note(decision)
        for action in decision.actions:
            if isinstance(action, PublishRoutes):
                self.publication.begin(action.routes, self._group)
        others = (action for action in decision.actions if not isinstance(action, PublishRoutes))
        may_own = self._settled == self._doubts and not self.owners.all_missing
        self.executor.submit(others if may_own else (), self._group)

    async def _decide(self) -> ReconcileDecision:
        """Decide in slices: the first step of a leader over thousands of endpoints takes seconds.

        Other tasks run in between, such as the renewal of the lease.
        """
        steps, started = deciding(self._inputs(), self._cache), self.clock.monotonic()
        while True:
            try:
                next(steps)
            except StopIteration as end:
                decision: ReconcileDecision = end.value
                return decision
            if self.clock.monotonic() - started > _SLICE_S:
                await asyncio.sleep(0)
                started = self.clock.monotonic()

    def _inputs(self) -> DecisionInputs:
        return DecisionInputs(
            desired=self.desired,
            cluster=replace(self.cluster, objects=dict(self.cluster.objects)),
            observed=self.observed(),
            installation=self.installation,
            settings=self._settings,
            is_confirmed=self.publication.is_confirmed,
            failing=self.executor.problems(),
            mutated=self.executor.mutated,
            now=self.clock.monotonic(),
        )

    def _observe(self) -> None:
        """Read the replicas from the snapshot's pods."""
        pods = pods_in(self.cluster, self.installation, self._cache.decoded)
        slices = self._cache.decoded.of_kind(self.cluster, EndpointSlice)
        routed = self.observed().routed_addresses()
        if (pods, slices, routed) == self._read:
            return
        self._read = pods, slices, routed
        replicas = replicas_of(
            pods,
            slices,
            self.replicas,
            routed=routed,
            next_serial=self._next_serial,
            now=self.clock.monotonic(),
        )
        if replicas == self.replicas:
            return
        for replica in replicas.values():
            self._next_serial = max(self._next_serial, replica.serial + 1)
            before = self.replicas.get(replica.name)
            if before is None or before.phase is not replica.phase:
                extra = {"replica": replica.name, "phase": replica.phase, "reason": replica.reason}
                _LOG.info("replica changed", extra=extra)
        # Update the same dictionary, because others refer to it.
        self.replicas.clear()
        self.replicas.update(replicas)
        self.changes.notify()

    def _note(self, decision: ReconcileDecision) -> None:
        """Emit events of changed problems, and of waiting Deployments."""
        timestamp, problems = self.clock.now(), dict(decision.problems)
        events = [
            *problem_events(self._problems, problems, timestamp=timestamp),
            *roll_events(self._roll, decision.roll, timestamp=timestamp),
        ]
        self._roll = decision.roll
        if events:
            assert self._group is not None, "step() needs run()"
            self._group.create_task(write_events(self.emit, events))
        if problems == self._problems:
            return
        for (endpoint, arm), problem in problems.items():
            if self._problems.get((endpoint, arm)) != problem:
                extra = {"endpoint": endpoint, "arm": arm, "error": problem}
                _LOG.error("cannot apply the objects of an arm", extra=extra)
        self._problems = problems
        self.changes.notify()

    async def _read_routes(self) -> bool:
        """Read the routes of an earlier leader; return whether they are known now.

        Without them, a half-finished rollout would count as not begun.
        """
        try:
            async with self._record_lock:
                record = await self._taken_record()
        except HeadraceError as error:
            _LOG.warning("cannot read the record of routes", extra={"error": str(error)})
            self._retry_at = self.clock.monotonic() + _SHORT_INTERVAL_S
            return False
        self.publication.published = routes_in(record)
        self._knows_routes = True
        self._observe()  # routed pods were ready
        return True

    async def _taken_record(self) -> Object:
        """Return the record of routes at a new version, which `_record` then replaces.

        A write of an earlier leader that is still on its way names an older version and fails.
        """
        name = record_name(self.installation)
        change = {"metadata": {"annotations": {_TAKEN: uuid.uuid4().hex}}}
        try:
            record = await self.api.merge("ConfigMap", name, change)
        except ObjectMissingError:
            # Not its owners: fields of a creation stay when a later `apply` lacks them.
            metadata = {"name": name, "labels": control_metadata(name, self.installation)["labels"]}
            empty = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
            record = await self.api.create(empty)
        self._record_version = record["metadata"]["resourceVersion"]
        return record

    def _is_current(self, action: Action) -> bool:
        return is_current(
            action, desired=self.desired, observed=self.observed(), cluster=self.cluster
        )

    def _doubt_owners(self) -> None:
        """Hold all actions until the owners are read again: one may have been created again."""
        self._doubts, self._owners_at = self._doubts + 1, 0.0

    async def _read_owners(self) -> None:
        """Read the owners, and give our objects those that exist now."""
        doubts, now = self._doubts, self.clock.monotonic()
        self._owners_at = now + _SHORT_INTERVAL_S
        with self.faults.contain(LOOP, "owners"):
            is_changed = await self.owners.refresh(self.api)
            self._settled = doubts
            if self._doubts == doubts and not self.owners.all_missing:
                self._owners_at = now + _RECHECK_INTERVAL_S
            if is_changed:
                self.installation = replace(self.installation, owners=self.owners.current)
            if is_changed and self.publication.published is not None:
                try:
                    await self._record(self.publication.published)
                except HeadraceError as error:  # the next publication records them
                    _LOG.warning("cannot record the routes", extra={"error": str(error)})
            if self.owners.missing:
                missing = ", ".join(self.owners.missing)
                held = "; nothing is created or changed" if self.owners.all_missing else ""
                raise FailedPreconditionError(f"--owner: not found: {missing}{held}")
        self._wake.set()

    async def _record(self, routes: tuple[EndpointRoute, ...]) -> None:
        """Store the routes in force: nothing is removed before the next leader can read them.

        Routes that change meanwhile wait, so that hundreds of new pods make few records.
        """
        async with self._record_lock:
            now = self.clock.monotonic()
            await asyncio.sleep(max(self._recorded_at + _RECORD_INTERVAL_S - now, 0.0))
            self._recorded_at = self.clock.monotonic()
            if not self._record_version:
                await self._taken_record()
            if not self.is_leader():
                return
            record = record_of(routes, installation=self.installation)
            record["metadata"]["resourceVersion"] = self._record_version
            self._record_version = ""  # not known, or somebody else's change, if this fails
            live = await self.api.apply(record, force=True)
            self._record_version = live["metadata"]["resourceVersion"]

    async def _wait_due(self, stepped_at: float) -> None:
        """Wait until something changes, or a postponed action of the last step is due.

        It may be due already, because the step takes time.
        """
        times = [self.executor.due_at(stepped_at), self._retry_at, self._owners_at]
        due = min(
            (time for time in times if time is not None and time > stepped_at),
            default=stepped_at + _RECHECK_INTERVAL_S,
        )
        delay_s = due - self.clock.monotonic()
        await wait_for(self._wake, min(max(delay_s, 0.0), _RECHECK_INTERVAL_S))


def record_name(installation: InstallationName) -> str:
    """Return the name of the ConfigMap with the acknowledged routes."""
    return f"{installation.instance}-routes"


def record_of(routes: Sequence[EndpointRoute], *, installation: InstallationName) -> Object:
    """Return the ConfigMap with `routes`, without access rules and limits.

    Raises:
        FailedPreconditionError: The routes exceed the size of a ConfigMap.
    """
    stored = [
        replace(route, access=None, limits=EndpointLimitsSpec(), request_log=None)
        for route in routes
    ]
    packed = base64.b64encode(
        gzip.compress(msgspec.json.encode(stored), compresslevel=6, mtime=0)
    ).decode()
    if len(packed) > _MAX_RECORD_BYTES:
        raise FailedPreconditionError(
            f"the routes of {len(routes)} endpoints take {len(packed)} bytes, more than a "
            f"ConfigMap holds ({_MAX_RECORD_BYTES}): spread them over several installations"
        )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": control_metadata(record_name(installation), installation),
        "binaryData": {_ROUTES_KEY: packed},
    }


def routes_in(config_map: Object | None) -> tuple[EndpointRoute, ...] | None:
    """Return the routes in a ConfigMap; None if it is missing or unreadable."""
    packed = ((config_map or {}).get("binaryData") or {}).get(_ROUTES_KEY)
    if packed is None:
        return None
    try:
        document = gzip.decompress(base64.b64decode(packed))
        return msgspec.json.decode(document, type=tuple[EndpointRoute, ...])
    except (ValueError, OSError, EOFError, zlib.error, *UNDECODABLE):
        return None


def problem_events(before: Problems, now: Problems, *, timestamp: float) -> Iterator[Event]:
    """Yield events of arms whose objects cannot be created, or can again."""
    for endpoint, arm in sorted(now.keys() | before.keys()):
        problem = now.get((endpoint, arm), "")
        if problem != before.get((endpoint, arm), ""):
            message = problem or "the cluster accepts the objects again"
            yield Event(
                at=timestamp,
                endpoint=endpoint,
                kind="cluster",
                reason="ClusterTrouble" if problem else "ClusterTroubleEnded",
                message=f"version {arm}: {message}",
                data={"arm": arm},
            )
