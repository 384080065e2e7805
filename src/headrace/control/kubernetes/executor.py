"""Actions on the cluster, and their execution.

Applies force ownership of our fields; an object that we did not create is never forced or deleted.
"""

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, assert_never

from headrace.control.base.faults import message_of
from headrace.control.kubernetes.api import (
    BACKOFF,
    ApiUnavailableError,
    ClusterApi,
    ObjectChangedError,
    ObjectFailedError,
    ObjectFixedError,
    ObjectMissingError,
    delay_s,
)
from headrace.control.kubernetes.manifest_cache import differences
from headrace.control.kubernetes.names import REVISION, InstallationName, Object
from headrace.control.kubernetes.snapshot import (
    ClusterSnapshot,
    Key,
    is_older,
    is_ours,
    key_of,
    uid_of,
)
from headrace.control.model.desired import DesiredState, pool_endpoint
from headrace.control.model.observed import Observed
from headrace.control.reconcile.plan import PublishRoutes
from headrace.core import Clock, ConflictError, HeadraceError
from headrace.core.backoff import Backoff

_LOG: Final = logging.getLogger("headrace.control")
_CONCURRENCY: Final = 8
"""Most requests that are younger than `_SLOW_S`."""
_SLOW_S: Final = 2.0
_MAX_RUNNING: Final = 32
_MAX_RETRIES: Final = 16
"""Most requests for objects that failed before: the others of `_MAX_RUNNING` are for new ones."""
_HANGING_S: Final = 8.0
"""Duration of a request after which a problem is reported: before the API server gives up a
webhook, after 10 s by default and for the handshake of TLS."""
_MANY: Final = 5
"""Failures in a row after which a problem is reported."""
_REFUSED: Final = Backoff(first_s=2.0, limit_s=60.0)
"""Backoff of an object that the API server refuses, for example by a policy."""
_HANDOVER: Final = "headrace-handover"
_OF_NO_OBJECT: Final = "1"
"""Resource version that no object has: applied with it, an object is created or is a conflict."""
_REPLACEABLE: Final = frozenset(
    {"ConfigMap", "PodDisruptionBudget", "HorizontalPodAutoscaler", "ScaledObject"}
)
"""Kinds whose objects may be missing briefly without ending a pod or losing a request."""
SCALERS: Final = ("HorizontalPodAutoscaler", "ScaledObject")
OPTIONAL_KINDS: Final = (*SCALERS, "PodDisruptionBudget")
"""Kinds that a version may lose while it runs."""
DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
VICTIM_COST: Final = -1000
"""Deletion cost of pods that go first when a Deployment gets fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyObject:
    """Apply a manifest to our object, or create it."""

    manifest: Object
    why: str
    is_new: bool = False
    """Whether the object did not exist when this was decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class YieldReplicas:
    """Stop managing a Deployment's `replicas`, which another autoscaler manages from now on."""

    manifest: Object
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleDeployment:
    """Set only `replicas` of a Deployment; its other changes have to wait."""

    deployment: Object
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkPod:
    """Set the deletion cost of a pod; 0 is the default."""

    name: str
    uid: str
    cost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteObject:
    """Delete the object with this uid, and its dependents."""

    live: Object
    why: str


Action = ApplyObject | YieldReplicas | ScaleDeployment | MarkPod | DeleteObject | PublishRoutes


def foreign(key: Key) -> str:
    """Return the message for an object whose name a foreign object has."""
    kind, name = key
    return (
        f"there is a {kind} {name} that Headrace did not make, and it is left alone: delete or "
        "rename it, or give this installation another instance name"
    )


def fixed(key: Key) -> str:
    """Return the message for our object with a wrong immutable field."""
    kind, name = key
    remedy = f"delete it (kubectl delete {kind.lower()} {name}), and it is created again"
    if kind == "Deployment":
        remedy += (
            "; with --cascade=orphan its pods go on until the new ones are ready, then delete "
            "their ReplicaSet"
        )
    elif kind == "Service":
        remedy += "; requests to this version may fail while it does not exist"
    return f"a cluster never changes this part of a {kind}: {remedy}"


def is_current(
    action: Action, *, desired: DesiredState, observed: Observed, cluster: ClusterSnapshot
) -> bool:
    """Whether an action follows from the newest state: it was decided from an earlier one.

    What it takes away is neither desired nor routed, as after a rollback that was requested since;
    what it creates does not exist, as after an action that ended while this one was decided.
    """
    if isinstance(action, ApplyObject) and action.is_new:
        return cluster.find(*key_of(action.manifest)) is None
    reduction = _reduction(action, cluster)
    if reduction is None:
        return True
    live, remaining = reduction
    label = live["metadata"]["labels"][REVISION]
    if isinstance(action, DeleteObject):
        endpoints = (*map(pool_endpoint, desired.pools), *desired.endpoints)
        arms = (arm for endpoint in endpoints for arm in endpoint.arms)
        if any(arm.revision.id.startswith(label) for arm in arms):
            return False
    routed = observed.routed_addresses()
    of_revision = (r for r in observed.replicas.values() if r.revision_id.startswith(label))
    return sum(replica.address in routed for replica in of_revision) <= remaining


def _reduction(action: Action, cluster: ClusterSnapshot) -> tuple[Object, int] | None:
    """Return the object that an action takes away or lowers, and its remaining replicas."""
    match action:
        case DeleteObject(live=live) if live["kind"] not in OPTIONAL_KINDS:
            return live, 0
        case ScaleDeployment(deployment=live, replicas=remaining):
            pass
        case ApplyObject(manifest=live) if live["kind"] == "Deployment":
            remaining = _replicas(live)
        case _:
            return None
    now = cluster.find(*key_of(live))
    return (live, remaining) if now is not None and _replicas(now) > remaining else None


@dataclass(slots=True, kw_only=True)
class _Failures:
    """Failures in a row of one object."""

    count: int
    until: float
    """Monotonic time of the next attempt."""
    reason: str
    is_reported: bool
    manifest: Object | None
    """Manifest that failed; another one is tried at once."""


@dataclass(slots=True, kw_only=True)
class ActionExecutor:
    """Executes actions concurrently, and updates `cluster` with the results.

    Each object has at most one action in progress and its own backoff, so that a webhook that does
    not answer delays its own objects only. A failure of the whole API server pauses everything.
    """

    api: ClusterApi
    cluster: ClusterSnapshot
    installation: InstallationName
    clock: Clock
    may_act: Callable[[], bool]
    """Returns whether this control plane may act; checked before each request."""
    is_current: Callable[[Action], bool] = lambda _: True
    """Returns whether an action still follows from the newest state; checked before it starts."""
    on_done: Callable[[], None] = lambda: None
    """Called after each action."""
    on_restored: Callable[[], None] = lambda: None
    """Called when resource versions went back, as after a restore of etcd."""
    mutated: dict[Key, frozenset[str]] = field(default_factory=dict)
    """Fields that the cluster itself changes whenever we apply an object."""
    errors: int = 0
    """Failed requests since the start."""
    _waiting: deque[Action] = field(default_factory=deque)
    _running: dict[Key, float] = field(default_factory=dict)
    """Start times of the actions in progress."""
    _failures: dict[Key, _Failures] = field(default_factory=dict)
    _pauses: int = 0
    """Failures in a row of the API server as a whole."""
    _paused_until: float = 0.0
    _pause_reason: str = ""
    _group: asyncio.TaskGroup | None = None

    def submit(self, actions: Iterable[Action], group: asyncio.TaskGroup) -> None:
        """Replace the actions that wait by `actions`, and start as many as possible in `group`."""
        self._group = group
        now = self.clock.monotonic()
        first: dict[Key, Action] = {}
        for action in actions:
            first.setdefault(_key(action), action)
        retries: list[Action] = []
        self._waiting.clear()
        for key, action in first.items():
            failures = self._failures.get(key)
            if failures is not None and failures.manifest != _manifest(action):
                failures.until = now
            if key in self._running or (failures is not None and failures.until > now):
                continue  # its end wakes the next step
            (self._waiting if failures is None else retries).append(action)
        self._waiting += retries
        for key in self._failures.keys() - first.keys() - self._running.keys():
            if self._failures[key].until <= now:
                del self._failures[key]  # no action is necessary any more
        if self.cluster.ending:
            self.cluster.ending &= {uid_of(live) for live in self.cluster.objects.values()}
        self._start()

    def problems(self) -> dict[Key, str]:
        """Return the objects that cannot be brought about now, with the reason."""
        now = self.clock.monotonic()
        hanging = {
            key: f"the API server does not answer to a change of {' '.join(key)} in "
            f"{_HANGING_S:g} s; perhaps an admission webhook hangs"
            for key, started in self._running.items()
            if now >= started + _HANGING_S
        }
        reported = {
            key: failures.reason for key, failures in self._failures.items() if failures.is_reported
        }
        return hanging | reported

    def due_at(self, after: float) -> float | None:
        """Return the next monotonic time after `after` at which something is due; None if never."""
        times = [failures.until for failures in self._failures.values()]
        times += [started + _HANGING_S for started in self._running.values()]
        return min((at for at in (*times, self._paused_until) if at > after), default=None)

    @property
    def is_idle(self) -> bool:
        """Whether no action waits or is in progress."""
        return not self._running and not self._waiting

    def _start(self) -> None:
        """Start waiting actions while there are slots."""
        assert self._group is not None, "actions were submitted"
        now = self.clock.monotonic()
        while self._waiting and now >= self._paused_until and self._has_slot(now):
            action = self._waiting.popleft()
            if not self.may_act() or not self.is_current(action):
                continue  # what changed wakes the next step
            self._running[_key(action)] = now
            self._group.create_task(self._execute(action))

    def _has_slot(self, now: float) -> bool:
        """Whether the next action may start: slow requests leave their slots, within bounds."""
        retries = sum(key in self._failures for key in self._running)
        if _key(self._waiting[0]) in self._failures and retries >= _MAX_RETRIES:
            return False
        quick = sum(started + _SLOW_S > now for started in self._running.values())
        return quick < _CONCURRENCY and len(self._running) < _MAX_RUNNING

    async def _execute(self, action: Action) -> None:
        key = _key(action)
        timer = asyncio.get_running_loop().call_later(_SLOW_S, self._start)
        ending = self._ending(action)
        self.cluster.ending |= ending
        try:
            if not await self._contained(key, action) or not isinstance(action, DeleteObject):
                self.cluster.ending -= ending
        finally:
            timer.cancel()
            del self._running[key]
        self.on_done()
        self._start()

    def _ending(self, action: Action) -> set[str]:
        """Return the uids of the pods that an action ends: no request may be routed to them."""
        live, remaining = _reduction(action, self.cluster) or ({}, 0)
        if live.get("kind") != "Deployment":
            return set()
        label = live["metadata"]["labels"][REVISION]
        return {
            uid_of(pod)
            for (kind, _), pod in self.cluster.objects.items()
            if kind == "Pod"
            and (pod["metadata"].get("labels") or {}).get(REVISION) == label
            and (remaining == 0 or _cost(pod) == str(VICTIM_COST))
        }

    async def _contained(self, key: Key, action: Action) -> bool:
        """Execute an action; return whether it succeeded. A failure delays only its object."""
        started = self.clock.monotonic()
        try:
            await self._act(action)
        except ObjectChangedError as error:
            await self._reread(key)
            self._postpone(key, action, str(error), backoff=BACKOFF, report_after=_MANY)
        except ObjectFixedError as error:
            if reason := await self._replace(key, error):
                self._postpone(key, action, reason, backoff=_REFUSED, report_after=1)
        except ObjectFailedError as error:
            is_hanging = self.clock.monotonic() >= started + _HANGING_S
            after = 1 if is_hanging else _MANY
            self._postpone(key, action, str(error), backoff=BACKOFF, report_after=after)
        except ApiUnavailableError as error:
            self._pause(error, started)
        except HeadraceError as error:
            self._postpone(key, action, str(error), backoff=_REFUSED, report_after=1)
        except Exception as error:  # noqa: BLE001  # a fault at one object stops no other
            _LOG.exception("cannot change an object", extra={"object": " ".join(key)})
            self._postpone(key, action, message_of(error), backoff=_REFUSED, report_after=1)
        else:
            self._failures.pop(key, None)
            self._pauses, self._pause_reason = 0, ""
            return True
        self.errors += 1
        return False

    def _postpone(
        self, key: Key, action: Action, reason: str, *, backoff: Backoff, report_after: int
    ) -> None:
        """Retry an object later; report its problem after this many failures in a row."""
        before = self._failures.get(key)
        count = 1 if before is None else before.count + 1
        if before is None or before.reason != reason:
            extra = {"object": " ".join(key), "error": reason}
            _LOG.warning("cannot change an object", extra=extra)
        self._failures[key] = _Failures(
            count=count,
            until=self.clock.monotonic() + delay_s(count, backoff=backoff),
            reason=reason,
            is_reported=count >= report_after or (before is not None and before.is_reported),
            manifest=_manifest(action),
        )

    def _pause(self, error: ApiUnavailableError, started: float) -> None:
        """Pause all actions: the API server as a whole fails or asks for fewer requests."""
        if str(error) != self._pause_reason:
            _LOG.warning("the API server cannot answer now", extra={"error": str(error)})
        self._pause_reason = str(error)
        if started >= self._paused_until:  # others of the same time fail for the same reason
            self._pauses += 1
        until = self.clock.monotonic() + delay_s(self._pauses, asked_s=error.retry_after_s)
        self._paused_until = max(self._paused_until, until)

    async def _act(self, action: Action) -> None:
        match action:
            case ApplyObject(manifest=manifest, why=why):
                await self._apply(manifest, why)
            case YieldReplicas(manifest=manifest, replicas=replicas):
                await self.api.apply(_count(manifest, replicas), force=True, manager=_HANDOVER)
                await self._apply(manifest, "another autoscaler manages the replicas")
            case ScaleDeployment(deployment=live, replicas=replicas):
                # With another field manager: our own partial apply would remove all other fields.
                count = _count(live, replicas)
                if replicas < _replicas(live):
                    count["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
                self._log("scaling", live, f"to {replicas}; its pods are replaced later")
                await self._put(await self.api.apply(count, force=True, manager=_HANDOVER))
            case MarkPod(name=name, uid=uid, cost=cost):
                change = {"metadata": {"uid": uid, "annotations": {DELETION_COST: str(cost)}}}
                try:
                    self.cluster.put(await self.api.merge("Pod", name, change))
                except ObjectMissingError:
                    self.cluster.drop({"kind": "Pod", "metadata": {"name": name, "uid": uid}})
            case DeleteObject(live=live, why=why):
                await self._delete(live, why)
            case PublishRoutes():
                raise AssertionError("routes are the gateway's")
            case _:
                assert_never(action)

    async def _apply(self, manifest: Object, reason: str) -> None:
        """Apply to the object with the known uid, or create one.

        Another object with this name is a conflict, and is neither changed nor adopted.
        """
        key = key_of(manifest)
        cached = self.cluster.find(*key)
        self._log("applying", manifest, reason)
        if cached is None:
            metadata = {**manifest["metadata"], "resourceVersion": _OF_NO_OBJECT}
        else:
            metadata = {**manifest["metadata"], "uid": uid_of(cached)}
            if _replicas(manifest) < _replicas(cached):
                metadata["resourceVersion"] = cached["metadata"]["resourceVersion"]
        try:
            result = await self.api.apply(
                {**manifest, "metadata": metadata}, force=cached is not None
            )
        except ObjectChangedError:
            live = await self.api.get(*key) if cached is None else None
            if live is None:
                raise
            if not is_ours(live, self.installation):
                raise ConflictError(foreign(key)) from None
            self.cluster.put(live)  # before the watch reports it
            return
        await self._put(result)
        mutated = frozenset(differences(manifest, result))
        if not mutated:
            self.mutated.pop(key, None)
            return
        if self.mutated.get(key) != mutated:
            extra = {"object": " ".join(key), "places": ", ".join(sorted(mutated))}
            _LOG.warning("the cluster changes what we apply; that is left so", extra=extra)
        self.mutated[key] = mutated

    async def _put(self, result: Object) -> None:
        """Store an object in the snapshot after our write."""
        cached = self.cluster.find(*key_of(result))
        if cached is not None and is_older(result, cached):
            # Others may have written since. If it still has an earlier version than before this
            # read, resource versions went back, as after a restore of etcd, and the whole
            # snapshot may be wrong.
            live = await self.api.get(*key_of(result))
            if live is not None and is_older(live, cached):
                self.on_restored()
                return
            result = live or result
        self.cluster.put(result)

    async def _delete(self, live: Object, reason: str) -> None:
        self._log("deleting", live, reason)
        await self.api.delete(live)
        self.cluster.drop(live)

    async def _reread(self, key: Key) -> None:
        """Read an object that differs from the snapshot."""
        cached = self.cluster.find(*key)
        if cached is None or key[0] == "Pod":
            return  # a watch reports it
        try:
            live = await self.api.get(*key)
        except HeadraceError:
            return  # the watch reports it
        if live is None or uid_of(live) != uid_of(cached):
            self.cluster.drop(cached)
        else:
            self.cluster.put(live)

    async def _replace(self, key: Key, error: ObjectFixedError) -> str:
        """Delete an immutable object if that is harmless; return the problem, or nothing."""
        cached = self.cluster.find(*key)
        if cached is None or key[0] not in _REPLACEABLE or not is_ours(cached, self.installation):
            return f"{error}; {fixed(key)}"
        try:
            await self._delete(cached, "it is immutable and is created again")
        except HeadraceError as refused:
            return str(refused)
        return ""

    def _log(self, operation: str, target: Object, reason: str) -> None:
        extra = {"kind": target["kind"], "object": target["metadata"]["name"], "why": reason}
        _LOG.info("%s object", operation, extra=extra)


def _key(action: Action) -> Key:
    match action:
        case ApplyObject(manifest=live) | YieldReplicas(manifest=live):
            return key_of(live)
        case ScaleDeployment(deployment=live) | DeleteObject(live=live):
            return key_of(live)
        case MarkPod(name=name):
            return "Pod", name
        case PublishRoutes():
            raise AssertionError("routes are the gateway's")
        case _:
            assert_never(action)


def _manifest(action: Action) -> Object | None:
    """Return the manifest that an action applies; None for other actions."""
    return action.manifest if isinstance(action, ApplyObject | YieldReplicas) else None


def _replicas(obj: Object) -> int:
    """Return the number of pods that a Deployment sets; the largest number if it sets none."""
    return int((obj.get("spec") or {}).get("replicas", sys.maxsize))


def _cost(pod: Object) -> str:
    return str((pod["metadata"].get("annotations") or {}).get(DELETION_COST, ""))


def _count(deployment: Object, replicas: int) -> Object:
    metadata = deployment["metadata"]
    return {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "metadata": {key: metadata[key] for key in ("name", "namespace", "uid") if key in metadata},
        "spec": {"replicas": replicas},
    }
