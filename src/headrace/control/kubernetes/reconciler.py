"""The async driver around `decide`: waits for events, does what was decided.

Only a leader acts, and only on knowledge that is whole: while a kind cannot be watched, what is
routed stays routed and nothing is changed.
"""

import asyncio
import logging
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from headrace.control.desired import DesiredArm, DesiredState, Revision
from headrace.control.faults import LOOP, Faults
from headrace.control.kubernetes.actions import Action
from headrace.control.kubernetes.api import ClusterApi
from headrace.control.kubernetes.cluster import Cluster
from headrace.control.kubernetes.decide import Decision, Scene, decide
from headrace.control.kubernetes.drafts import Drafts
from headrace.control.kubernetes.names import Place, instance_selector
from headrace.control.kubernetes.objects import settings_in
from headrace.control.kubernetes.performing import Performer
from headrace.control.kubernetes.pooled import hosted_settings
from headrace.control.kubernetes.record import record_name, record_of, routes_in
from headrace.control.kubernetes.replicas import replicas_of
from headrace.control.kubernetes.rolling import Roll
from headrace.control.kubernetes.telling import problem_events, roll_events
from headrace.control.kubernetes.watches import Watches
from headrace.control.membership import Emit, nobody
from headrace.control.news import News
from headrace.control.observed import Observed, Replica, Route
from headrace.control.plan import PublishRoutes
from headrace.control.publication import RoutePublication, RoutePublisher
from headrace.control.sandbox import Isolation
from headrace.control.store import Event
from headrace.core import Clock, HeadraceError, ReplicaSettings
from headrace.core.spec_kubernetes import KubernetesSpec

_LOG: Final = logging.getLogger("headrace.control")
_READ_AGAIN_S: Final = 1.0
_LOOK_AGAIN_S: Final = 30.0
_LONGEST_PAUSE_S: Final = 0.5


@dataclass(slots=True, kw_only=True)
class KubernetesReconciler:
    """Brings a cluster to what should run, for as long as `run` is awaited.

    Cancelling `run` stops the watching and nothing else: pods go on. `leads`: whether this control
    plane may act now. `emit`: keeps events.
    """

    api: ClusterApi
    publisher: RoutePublisher
    clock: Clock
    place: Place
    leads: Callable[[], bool]
    emit: Emit = nobody
    faults: Faults = field(default_factory=Faults)
    desired: DesiredState = field(default_factory=DesiredState)
    replicas: dict[str, Replica] = field(default_factory=dict)
    hosted: MutableMapping[str, frozenset[str]] = field(default_factory=dict)
    cluster: Cluster = field(default_factory=Cluster)
    news: News = field(init=False)
    """Changes of anything observed or desired."""
    publication: RoutePublication = field(init=False)
    watches: Watches = field(init=False)
    performer: Performer = field(init=False)
    _settings: KubernetesSpec = field(default_factory=KubernetesSpec)
    _problems: dict[tuple[str, str], str] = field(default_factory=dict)
    _roll: Roll = field(default_factory=Roll)
    _drafts: Drafts = field(default_factory=Drafts)
    _knows_routes: bool = False
    _is_acting: bool = False
    _retry_at: float = 0.0
    _next_serial: int = 1
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _group: asyncio.TaskGroup | None = None

    def __post_init__(self) -> None:
        self.news = News(on_change=self.wake)
        self.publication = RoutePublication(
            publisher=self.publisher, news=self.news, record=self._record
        )
        self.watches = Watches(
            api=self.api,
            cluster=self.cluster,
            selector=instance_selector(self.place.instance),
            on_change=self.wake,
        )
        self.performer = Performer(
            api=self.api,
            cluster=self.cluster,
            place=self.place,
            clock=self.clock,
            may_act=self.leads,
            on_restored=self.watches.begin_anew,
        )

    def observed(self) -> Observed:
        """Everything known now."""
        return Observed(
            replicas=dict(self.replicas),
            published=self.publication.published,
            attempted=self.publication.attempted,
            can_publish=self.publication.can_publish,
            hosted=dict(self.hosted),
            next_serial=self._next_serial,
        )

    def want(self, desired: DesiredState) -> None:
        """Aim at `desired` from now on."""
        if desired.spec is not self.desired.spec:
            self._settings = settings_in(desired)
        self.desired = desired
        self.news.note()

    def wake(self) -> None:
        """Look again soon; whether others are told depends on what is found."""
        self._wake.set()

    def isolation_of(self, name: str) -> Isolation | None:  # noqa: ARG002  # as others say
        """None: what keeps pods apart is the cluster's to say."""
        return None

    def trouble(self, endpoint: str, arm: DesiredArm) -> str:
        """Why nothing can be made for an arm; empty if all can."""
        problem = self._problems.get((endpoint, arm.key), "")
        return problem or self.publication.left_out.get(endpoint, "")

    def may_act(self) -> bool:
        """Whether this control plane leads, and knows what the one before it routed."""
        return self._knows_routes and self.leads()

    def told_of(self, revision: Revision) -> ReplicaSettings | None:
        """How a pod of a pool is told of a model; None for one that no pod can read."""
        try:
            return hosted_settings(revision)
        except HeadraceError:
            return None  # its endpoint's status says why

    async def run(self) -> None:
        """Reconcile until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self.watches.run())
            while True:
                self._wake.clear()
                began = self.clock.monotonic()
                with self.faults.contain(LOOP, "pods"):
                    await self.step()
                # Of thousands of endpoints a step takes long, and pods' news come in bursts: others
                # have as much time as it took, and the next step sees all that came.
                await asyncio.sleep(min(self.clock.monotonic() - began, _LONGEST_PAUSE_S))
                await self._wait_due()

    async def step(self) -> None:
        """Decide, and begin what was decided."""
        self._observe()
        # Nothing was ever ordered: an empty database is no order to remove everything.
        is_asked = self.desired.generation > 0
        if not (is_asked and self.leads() and self.watches.is_synced):
            return
        if not self._knows_routes and not await self._read_routes():
            return
        decision = decide(self._scene(), self._drafts)
        self._note(decision)
        for action in decision.actions:
            if isinstance(action, PublishRoutes):
                assert self._group is not None, "actions are taken inside run"
                self.publication.begin(action.routes, self._group)
        others = [
            one
            for one in decision.actions
            if not isinstance(one, PublishRoutes) and self.performer.may_try(one)
        ]
        # A slow API server holds up objects, but no routes.
        if others and not self._is_acting and self.clock.monotonic() >= self._retry_at:
            self._begin_act(others)

    def _scene(self) -> Scene:
        return Scene(
            desired=self.desired,
            cluster=self.cluster,
            observed=self.observed(),
            place=self.place,
            settings=self._settings,
            is_confirmed=self.publication.is_confirmed,
            blocked=self.performer.believed(),
            mutated=self.performer.mutated,
        )

    def _observe(self) -> None:
        """Take in what the cluster says of pods."""
        now = self.clock.monotonic()
        found = replicas_of(
            self.cluster.pods(self.place),
            self.cluster.slices(),
            self.replicas,
            routed=self.observed().routed_addresses(),
            next_serial=self._next_serial,
            now=now,
        )
        if found == self.replicas:
            return
        for replica in found.values():
            self._next_serial = max(self._next_serial, replica.serial + 1)
            before = self.replicas.get(replica.name)
            if before is None or before.phase is not replica.phase:
                extra = {"replica": replica.name, "phase": replica.phase, "reason": replica.reason}
                _LOG.info("replica changed", extra=extra)
        # The same dictionary: others hold on to it.
        self.replicas.clear()
        self.replicas.update(found)
        self.news.note()

    def _note(self, decision: Decision) -> None:
        """Tell of what is wrong otherwise than before, and of who waits."""
        at, problems = self.clock.now(), dict(decision.problems)
        events = [
            *problem_events(self._problems, problems, at=at),
            *roll_events(self._roll, decision.roll, at=at),
        ]
        self._roll = decision.roll
        if events:
            assert self._group is not None, "decisions are made inside run"
            self._group.create_task(self._emit(events))
        if problems == self._problems:
            return
        for (endpoint, arm), problem in problems.items():
            if self._problems.get((endpoint, arm)) != problem:
                extra = {"endpoint": endpoint, "arm": arm, "error": problem}
                _LOG.error("cannot bring about an arm", extra=extra)
        self._problems = problems
        self.news.note()

    async def _emit(self, events: Sequence[Event]) -> None:
        try:
            await self.emit(events)
        except HeadraceError as error:
            _LOG.error("cannot write an event", extra={"error": str(error)})

    async def _read_routes(self) -> bool:
        """Go on from the routes of an earlier leader; whether they are known now."""
        try:
            found = await self.api.get("ConfigMap", record_name(self.place))
        except HeadraceError as error:
            _LOG.warning("cannot read the record of routes", extra={"error": str(error)})
            self._retry_at = self.clock.monotonic() + _READ_AGAIN_S
            return False
        self.publication.published = routes_in(found)
        self._knows_routes = True
        self._observe()  # what is routed was ready
        return True

    def _begin_act(self, actions: Sequence[Action]) -> None:
        assert self._group is not None, "actions are taken inside run"
        self._is_acting = True
        self._group.create_task(self._act(actions))

    async def _act(self, actions: Sequence[Action]) -> None:
        delay = await self.performer.perform(actions)
        self._retry_at = self.clock.monotonic() + (delay or 0.0)
        self._is_acting = False
        self._wake.set()  # one step leads to the next

    async def _record(self, routes: tuple[Route, ...]) -> None:
        """Write down what is in force: nothing is taken away before the next leader knows."""
        if self.leads():
            await self.api.apply(record_of(routes, place=self.place), force=True)

    async def _wait_due(self) -> None:
        """Until something changes, or it is time to try again what was refused."""
        now = self.clock.monotonic()
        times = [self.performer.due_at(), self._retry_at if self._retry_at > now else None]
        due = min((one for one in times if one is not None), default=now + _LOOK_AGAIN_S)
        try:
            async with asyncio.timeout(min(max(due - now, 0.0), _LOOK_AGAIN_S)):
                await self._wake.wait()
        except TimeoutError:
            return
