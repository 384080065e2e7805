"""Snapshot of the cluster's objects, kept current by one list and one watch per kind."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from headrace.control.kubernetes.api import (
    RESOURCES,
    WATCHED,
    ClusterApi,
    ObjectMissingError,
    WatchExpiredError,
    delay_s,
)
from headrace.control.kubernetes.names import (
    FIELD_MANAGER,
    INSTANCE,
    MANAGED_BY,
    InstallationName,
    Object,
    OwnerObject,
)
from headrace.core import HeadraceError, PermissionDeniedError

_LOG: Final = logging.getLogger("headrace.control")
_MAX_MESSAGE: Final = 500
_WATCH_S: Final = 60
_OPTIONAL_RETRY_S: Final = 60.0
"""Seconds between lists of a kind that the cluster lacks."""
_SHORT_S: Final = 1.0
_RELIST_INTERVAL_S: Final = 900.0
"""Seconds between lists without errors: a watch from a version that the server has not reached yet,
as after a restore of etcd, stays silent."""

_OF_OTHERS: Final = frozenset({"Pod", "EndpointSlice"})
"""Kinds that Kubernetes' own controllers create and delete."""

Key = tuple[str, str]
"""Kind and name."""


def key_of(obj: Object) -> Key:
    """Return the kind and name of an object."""
    return obj["kind"], obj["metadata"]["name"]


@dataclass(slots=True)
class ClusterSnapshot:
    """Objects by kind and name, as last read.

    Watches and our own requests both write to it. A watch reports every change up to the resource
    version that it reached, so an answer with an earlier version has nothing new: it may be of an
    object that was deleted meanwhile.
    """

    objects: dict[Key, Object] = field(default_factory=dict)
    reached: dict[str, int] = field(default_factory=dict)
    """Resource version up to which the watch of a kind has reported all changes."""
    ending: set[str] = field(default_factory=set)
    """Uids of pods that a request of ours ends, which the cluster may not have reported yet."""

    def find(self, kind: str, name: str) -> Object | None:
        """Return the object; None if it does not exist."""
        return self.objects.get((kind, name))

    def of_kind(self, kind: str) -> Iterator[Object]:
        """Yield all objects of a kind, sorted by name."""
        for key in sorted(key for key in self.objects if key[0] == kind):
            yield self.objects[key]

    def reach(self, kind: str, version: str) -> None:
        """Record that all changes of a kind up to a resource version are known."""
        if version.isdigit():
            self.reached[kind] = int(version)

    def replace_all(self, kind: str, objects: Iterable[Object], version: str = "") -> bool:
        """Replace all objects of a kind by a list; return whether that is a change.

        Args:
            version: Resource version of the list.
        """
        self.reach(kind, version)
        fresh = {key_of(item): item for item in objects}
        before = {key: item for key, item in self.objects.items() if key[0] == kind}
        if fresh == before:
            return False
        for key in before.keys() - fresh.keys():
            del self.objects[key]
        self.objects.update(fresh)
        return True

    def put(self, obj: Object) -> bool:
        """Store an object unless its version is known already; return whether that is a change."""
        key = key_of(obj)
        before = self.objects.get(key)
        if before is not None and is_older(obj, before):
            return False
        if -1 < version_of(obj) <= self.reached.get(key[0], -1):
            return False
        self.objects[key] = obj
        return before != obj

    def drop(self, obj: Object) -> bool:
        """Remove an object; return whether it was present. A newer one of its name stays."""
        key = key_of(obj)
        cached = self.objects.get(key)
        if cached is None or uid_of(cached) != uid_of(obj):
            return False
        del self.objects[key]
        return True


def is_older(obj: Object, other: Object) -> bool:
    """Whether `obj` is an earlier version of the same object."""
    return uid_of(obj) == uid_of(other) and -1 < version_of(obj) < version_of(other)


def version_of(obj: Object) -> int:
    """Return the resource version; -1 for one that is not a whole number."""
    version = obj["metadata"].get("resourceVersion", "")
    return int(version) if version.isdigit() else -1


def is_ours(obj: Object, installation: InstallationName) -> bool:
    """Whether we created `obj`, by its labels and field manager, and no controller owns it."""
    metadata = obj["metadata"]
    labels = metadata.get("labels") or {}
    if labels.get(MANAGED_BY) != "headrace" or labels.get(INSTANCE) != installation.instance:
        return False
    if not any(
        entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply"
        for entry in metadata.get("managedFields") or ()
    ):
        return False
    return not any(owner.get("controller") for owner in metadata.get("ownerReferences") or ())


def is_leaving(obj: Object) -> bool:
    """Whether it was deleted, and waits for its dependents."""
    return obj["metadata"].get("deletionTimestamp") is not None


def owns_replicas(obj: Object) -> bool:
    """Whether we manage `replicas` of a Deployment."""
    return any(
        "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
        for entry in obj["metadata"].get("managedFields") or ()
        if entry.get("manager") == FIELD_MANAGER
    )


def is_contested(deployment: Object) -> bool:
    """Whether an autoscaler that is not ours set `replicas` against us.

    Autoscalers write through the subresource `scale`. `kubectl scale` does so too, and once.
    """
    return not owns_replicas(deployment) and any(
        entry.get("subresource") == "scale"
        and not entry.get("manager", "").startswith("kubectl")
        and "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
        for entry in deployment["metadata"].get("managedFields") or ()
    )


def condition_message(deployment: Object, type_: str, status: str) -> str:
    """Return the message of a Deployment's condition if it has this status; empty if not."""
    for condition in (deployment.get("status") or {}).get("conditions") or ():
        if condition.get("type") == type_ and condition.get("status") == status:
            message = condition.get("message") or condition.get("reason")
            return str(message or "no reason given")[:_MAX_MESSAGE]
    return ""


def _owner_uids(obj: Object | None) -> frozenset[str]:
    metadata = {} if obj is None else obj["metadata"]
    return frozenset(owner["uid"] for owner in metadata.get("ownerReferences") or ())


def uid_of(obj: Object) -> str:
    """Return the uid of an object; empty for none."""
    return str(obj["metadata"].get("uid", ""))


@dataclass(slots=True, kw_only=True)
class OwnerLookup:
    """Owners of our objects, by name: an owner that is created again has another uid."""

    references: tuple[str, ...] = ()
    """`KIND/NAME` of each, in our namespace."""
    current: tuple[OwnerObject, ...] = ()
    """Owners that exist; the last ones while none does, so that Kubernetes deletes what they own.
    """
    missing: tuple[str, ...] = ()

    @property
    def all_missing(self) -> bool:
        """Whether no owner exists, as during an uninstallation: then nothing may be created."""
        return bool(self.references) and len(self.missing) == len(self.references)

    async def refresh(self, api: ClusterApi) -> bool:
        """Read the owners; return whether `current` changed."""
        owners, missing = [], []
        for reference in self.references:
            kind, _, name = reference.partition("/")
            live = await api.get(kind, name)
            if live is None or is_leaving(live):
                missing.append(reference)
                continue
            version = RESOURCES[kind].api_version
            owners.append(OwnerObject(api_version=version, kind=kind, name=name, uid=uid_of(live)))
        self.missing, before = tuple(missing), self.current
        self.current = tuple(owners) or before
        return self.current != before


@dataclass(slots=True, kw_only=True)
class Watches:
    """Keeps `cluster` current. Calls `on_change` after each change of it or of `is_synced`."""

    api: ClusterApi
    cluster: ClusterSnapshot
    selector: str
    on_change: Callable[[], None]
    on_orphaned: Callable[[], None] = lambda: None
    """Called when others deleted an object of ours or removed an owner of it, as the garbage
    collector does."""
    kinds: tuple[str, ...] = WATCHED
    error: str = ""
    lacking: set[str] = field(default_factory=set)
    """Optional kinds that the cluster lacks, or to which it denies access."""
    _synced: set[str] = field(default_factory=set)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _group: asyncio.TaskGroup | None = None

    @property
    def is_synced(self) -> bool:
        """Whether all kinds were listed, and all their watches are running."""
        return self._synced >= set(self.kinds)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for kind in self.kinds:
                self._tasks[kind] = group.create_task(self._follow(kind))

    def restart(self) -> None:
        """List everything again, because the cluster's resource versions went back."""
        assert self._group is not None, "watches run"
        _LOG.warning("the cluster's resource versions went back; listing all objects again")
        self.cluster.ending.clear()  # they may be back
        for kind, task in self._tasks.items():
            task.cancel()
            self._lose(kind, "the cluster's resource versions went back")
            self._tasks[kind] = self._group.create_task(self._follow(kind))

    async def _follow(self, kind: str) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            try:
                listed = await self.api.list(kind, self.selector)
                self.cluster.replace_all(kind, listed.items, listed.version)
                self.lacking.discard(kind)
                self._synced.add(kind)
                self.error, failures, version = "", 0, listed.version
                self.on_change()
                listed_at = loop.time()
                while loop.time() < listed_at + _RELIST_INTERVAL_S:
                    started = loop.time()
                    version = await self._watch(kind, version)
                    if loop.time() - started < _SHORT_S:
                        await asyncio.sleep(delay_s(1))  # a proxy ends watches immediately
            except WatchExpiredError:
                # Later changes are unknown: only a list shows deleted objects.
                self._lose(kind, "")
                _LOG.info("watch expired; listing again", extra={"kind": kind})
                await asyncio.sleep(delay_s(1))
            except HeadraceError as error:
                is_refused = isinstance(error, ObjectMissingError | PermissionDeniedError)
                if is_refused and RESOURCES[kind].is_optional:
                    # The cluster lacks the kind or denies access: then none of its objects is ours.
                    self.cluster.replace_all(kind, ())
                    self.lacking.add(kind)
                    if kind not in self._synced:
                        self._synced.add(kind)
                        self.on_change()
                    await asyncio.sleep(_OPTIONAL_RETRY_S)
                    continue
                failures += 1
                self._lose(kind, str(error))
                level = logging.WARNING if failures == 1 else logging.DEBUG
                extra = {"kind": kind, "error": str(error)}
                _LOG.log(level, "cannot watch the cluster", extra=extra)
                await asyncio.sleep(delay_s(failures, asked_s=error.retry_after_s))

    async def _watch(self, kind: str, version: str) -> str:
        """Watch from `version` to the watch's end; return the version for the next watch."""
        for_s = _WATCH_S + random.randrange(_WATCH_S // 4)  # noqa: S311  # jitter
        async for event in self.api.watch(kind, self.selector, version, for_s=for_s):
            now = event.version
            if version.isdigit() and now.isdigit() and int(now) < int(version):
                raise WatchExpiredError(f"watch {kind}: resource versions went back")
            version = now
            if event.type != "BOOKMARK":
                before = self.cluster.objects.get(key_of(event.live))
                change = self.cluster.drop if event.type == "DELETED" else self.cluster.put
                if change(event.live):
                    if kind not in _OF_OTHERS and (
                        event.type == "DELETED" or _owner_uids(before) - _owner_uids(event.live)
                    ):
                        self.on_orphaned()
                    self.on_change()
            self.cluster.reach(kind, version)
        return version

    def _lose(self, kind: str, error: str) -> None:
        self._synced.discard(kind)
        self.error = error
        self.on_change()
