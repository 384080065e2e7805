"""Actions on the cluster, and their execution.

Applies force ownership of our fields; an object that we did not create is never forced or deleted.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, assert_never

from headrace.control.kubernetes.api import (
    ApiUnavailableError,
    ClusterApi,
    ObjectChangedError,
    ObjectFailedError,
    ObjectFixedError,
    ObjectMissingError,
    delay_s,
)
from headrace.control.kubernetes.manifest_cache import differences
from headrace.control.kubernetes.names import InstallationName, Object
from headrace.control.kubernetes.snapshot import ClusterSnapshot, Key, is_older, is_ours, key_of
from headrace.control.reconcile.plan import PublishRoutes
from headrace.core import Clock, HeadraceError

_LOG: Final = logging.getLogger("headrace.control")
_CONCURRENCY: Final = 8
_BLOCKED_S: Final = 20.0
_MANY: Final = 5
"""Failures in a row after which a problem is reported."""
_HANDOVER: Final = "headrace-handover"
_REPLACEABLE: Final = frozenset(
    {"ConfigMap", "PodDisruptionBudget", "HorizontalPodAutoscaler", "ScaledObject"}
)
"""Kinds whose objects may be missing briefly without ending a pod or losing a request."""
DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyObject:
    """Apply a manifest; `is_new` if the snapshot has no such object."""

    manifest: Object
    why: str
    is_new: bool = False


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


@dataclass(slots=True, kw_only=True)
class ActionExecutor:
    """Executes actions concurrently, and updates `cluster` with the results."""

    api: ClusterApi
    cluster: ClusterSnapshot
    installation: InstallationName
    clock: Clock
    may_act: Callable[[], bool]
    """Returns whether this control plane may act; checked before each request."""
    mutated: dict[Key, frozenset[str]] = field(default_factory=dict)
    """Fields that the cluster itself changes whenever we apply an object."""
    failures: int = 0
    error: str = ""
    on_restored: Callable[[], None] = lambda: None
    """Called when resource versions went back, as after a restore of etcd."""
    _blocked: dict[Key, tuple[str, float]] = field(default_factory=dict)
    """Objects that cannot be created, with the reason and the end time of the block."""
    _failing: dict[Key, tuple[int, float]] = field(default_factory=dict)
    """Failures in a row and retry time, by object."""
    _retry_after_s: float | None = None

    async def execute(self, actions: Iterable[Action]) -> float | None:
        """Execute actions; return the seconds until a retry if the API server failed."""
        self._retry_after_s = None
        limit = asyncio.Semaphore(_CONCURRENCY)
        if all(await asyncio.gather(*(self._contained(action, limit) for action in actions))):
            self.failures = 0
            self.error = ""
            return None
        self.failures += 1
        return delay_s(self.failures, asked_s=self._retry_after_s)

    def blocked(self) -> dict[Key, str]:
        """Return the objects that cannot be created now, with the reason."""
        now = self.clock.monotonic()
        self._blocked = {key: entry for key, entry in self._blocked.items() if entry[1] > now}
        return {key: reason for key, (reason, _) in self._blocked.items()}

    def may_try(self, action: Action) -> bool:
        """Whether an action is due: an object that failed has to wait."""
        _, until = self._failing.get(_key(action), (0, 0.0))
        return until <= self.clock.monotonic()

    def due_at(self, after: float) -> float | None:
        """Return the next monotonic retry time after `after`; None without waiting objects."""
        times = [until for _, until in (*self._blocked.values(), *self._failing.values())]
        return min((until for until in times if until > after), default=None)

    async def _contained(self, action: Action, limit: asyncio.Semaphore) -> bool:
        """Execute an action; return whether it succeeded or only its object failed."""
        key = _key(action)
        async with limit:
            if not self.may_act():
                return False
            try:
                await self._act(action)
            except ObjectChangedError as error:
                _LOG.info("cluster changed concurrently", extra={"error": str(error)})
                await self._reread(key)
                return False
            except ObjectFixedError as error:
                self._note(error)
                await self._replace(key, error)
                return True
            except ObjectFailedError as error:
                self._note(error)
                self._postpone(key, str(error))
                return True  # and delays nothing else
            except ApiUnavailableError as error:
                self._note(error)
                asked_s = max(self._retry_after_s or 0.0, error.retry_after_s or 0.0)
                self._retry_after_s = asked_s or None
                return False
            except HeadraceError as error:
                self._note(error)
                self._block(key, str(error))
            self._failing.pop(key, None)
        return True

    async def _act(self, action: Action) -> None:
        match action:
            case ApplyObject(manifest=manifest, why=why, is_new=is_new):
                if not is_new or await self._is_free(key_of(manifest)):
                    await self._apply(manifest, why)
            case YieldReplicas(manifest=manifest, replicas=replicas):
                await self.api.apply(_count(manifest, replicas), force=True, manager=_HANDOVER)
                await self._apply(manifest, "another autoscaler manages the replicas")
            case ScaleDeployment(deployment=live, replicas=replicas):
                # With another field manager: our own partial apply would remove all other fields.
                count = _count(live, replicas)
                self._log("scaling", live, f"to {replicas}; its pods are replaced later")
                await self._put(await self.api.apply(count, force=True, manager=_HANDOVER))
            case MarkPod(name=name, uid=uid, cost=cost):
                change = {"metadata": {"uid": uid, "annotations": {DELETION_COST: str(cost)}}}
                try:
                    self.cluster.put(await self.api.merge("Pod", name, change))
                except ObjectMissingError:
                    return  # it is gone already
            case DeleteObject(live=live, why=why):
                await self._delete(live, why)
            case PublishRoutes():
                raise AssertionError("routes are the gateway's")
            case _:
                assert_never(action)

    async def _is_free(self, key: Key) -> bool:
        """Whether no object has this name; a foreign object is recorded."""
        live = await self.api.get(*key)
        if live is None:
            return True
        if is_ours(live, self.installation):
            self.cluster.put(live)  # before the watch reports it
        else:
            self._block(key, foreign(key))
        return False

    async def _apply(self, manifest: Object, reason: str) -> None:
        """Apply to the object with the known uid, or create one."""
        key = key_of(manifest)
        cached = self.cluster.find(*key)
        self._log("applying", manifest, reason)
        config = manifest
        if cached is not None:
            # Another object with this name is a conflict, and is not adopted.
            metadata = {**manifest["metadata"], "uid": cached["metadata"]["uid"]}
            config = {**manifest, "metadata": metadata}
        result = await self.api.apply(config, force=cached is not None)
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
        except HeadraceError as error:
            self._note(error)
            return
        if live is None or live["metadata"]["uid"] != cached["metadata"]["uid"]:
            self.cluster.drop(cached)
        else:
            self.cluster.put(live)

    async def _replace(self, key: Key, error: ObjectFixedError) -> None:
        """Delete an immutable object if that is harmless; the next step creates it again."""
        cached = self.cluster.find(*key)
        if cached is None or key[0] not in _REPLACEABLE or not is_ours(cached, self.installation):
            self._block(key, f"{error}; {fixed(key)}")
            return
        try:
            await self._delete(cached, "it is immutable and is created again")
        except HeadraceError as refused:
            self._note(refused)
            self._block(key, str(refused))

    def _postpone(self, key: Key, error: str) -> None:
        """Retry an object later with backoff; report a problem after `_MANY` failures."""
        failures, _ = self._failing.get(key, (0, 0.0))
        until = self.clock.monotonic() + delay_s(failures + 1)
        self._failing[key] = failures + 1, until
        if failures + 1 >= _MANY:
            self._blocked[key] = error, until

    def _block(self, key: Key, reason: str) -> None:
        self._blocked[key] = (reason, self.clock.monotonic() + _BLOCKED_S)

    def _note(self, error: HeadraceError) -> None:
        if str(error) != self.error:
            _LOG.error("cannot act on the cluster", extra={"error": str(error)})
        self.error = str(error)

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


def _count(deployment: Object, replicas: int) -> Object:
    metadata = deployment["metadata"]
    return {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "metadata": {key: metadata[key] for key in ("name", "namespace", "uid") if key in metadata},
        "spec": {"replicas": replicas},
    }
