"""What does the fake cluster hold? One namespace of objects, with versions, and what was watched.

Synchronous: a test may drive it alone, or by HTTP through `tests.kubernetes_server.server`.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from tests.kubernetes_server.defaults import with_defaults
from tests.kubernetes_server.fields import Managers, Object, applied, updated
from tests.kubernetes_server.schemas import check, check_fixed

Key = tuple[str, str]
"""Kind and name."""
_KEPT_EVENTS: Final = 10_000


class RefusedError(Exception):
    """What the API server answers instead: `code` and `reason` as in a Status."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Event:
    """One change; `before` is what the object was."""

    version: int
    type: str
    found: Object
    before: Object | None


@dataclass(slots=True)
class Store:
    """Objects of one namespace. Every write is validated, versioned and remembered for watches.

    `on_change` is called after each. `time` gives the timestamps that objects get.
    """

    namespace: str = "models"
    objects: dict[Key, Object] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    compacted: int = 0
    on_change: Callable[[], None] = lambda: None
    time: Callable[[], str] = lambda: "2030-01-01T00:00:00Z"
    version: int = 100
    _managers: dict[Key, Managers] = field(default_factory=dict)
    _uids: int = 0

    def get(self, kind: str, name: str) -> Object:
        """A copy of an object; RefusedError 404 if there is none."""
        found = self.objects.get((kind, name))
        if found is None:
            raise RefusedError(404, "NotFound", f"{kind} {name!r} not found")
        return copied(found)

    def of_kind(self, kind: str, selector: Mapping[str, str] | None = None) -> list[Object]:
        """Copies of all of a kind that have these labels, by name."""
        keys = sorted(key for key in self.objects if key[0] == kind)
        return [
            copied(self.objects[key]) for key in keys if matches(self.objects[key], selector or {})
        ]

    def create(self, new: Object, *, manager: str = "kubectl") -> Object:
        """Make an object; RefusedError 409 if there is one."""
        key = new["kind"], new["metadata"]["name"]
        if key in self.objects:
            raise RefusedError(409, "AlreadyExists", f"{key[0]} {key[1]!r} already exists")
        managers = Managers()
        updated(None, new, managers, manager=manager)
        return self._write(key, copied(new), managers)

    def apply(self, config: Object, *, manager: str, force: bool) -> Object:
        """Server-side apply; FieldConflictError where others say something else."""
        key = config["kind"], config["metadata"]["name"]
        live = self.objects.get(key)
        given = config["metadata"]
        if live is None and given.get("uid"):
            raise RefusedError(409, "Conflict", "uid mismatch: no existing object was found")
        self._check_identity(key, given)
        managers = copy.deepcopy(self._managers.get(key, Managers()))
        base = None if live is None else _without_managers(live)
        result = applied(base, config, managers, manager=manager, force=force)
        return self._write(key, result, managers)

    def update(self, new: Object, *, manager: str = "kubectl") -> Object:
        """Write an object as a whole; 409 if it says a version, and that is not the newest."""
        key = new["kind"], new["metadata"]["name"]
        live = self.get(*key)
        self._check_identity(key, new["metadata"])
        managers = copy.deepcopy(self._managers[key])
        result = copied(new)
        for name in ("uid", "creationTimestamp", "generation", "deletionTimestamp"):
            if name in live["metadata"]:
                result["metadata"][name] = live["metadata"][name]
        updated(live, result, managers, manager=manager)
        return self._write(key, result, managers)

    def patch(self, kind: str, name: str, change: Object, *, manager: str = "kubectl") -> Object:
        """Merge `change` into an object (RFC 7396)."""
        live = self.get(kind, name)
        self._check_identity((kind, name), change.get("metadata", {}))
        return self.update(_merged(live, change), manager=manager)

    def set_status(self, kind: str, name: str, status: Object) -> None:
        """What a controller says of an object."""
        found = self.objects.get((kind, name))
        if found is not None and found.get("status") != status:
            new = {**copied(found), "status": status}
            self._write((kind, name), new, self._managers[kind, name], is_status=True)

    def delete(
        self, kind: str, name: str, *, uid: str = "", version: str = "", grace: bool = False
    ) -> Object:
        """Remove an object; with `grace` it stays, marked, until somebody removes it for good."""
        live = self.get(kind, name)
        self._check_identity((kind, name), {"uid": uid, "resourceVersion": version})
        if grace and "deletionTimestamp" in live["metadata"]:
            return live
        if grace:
            new = copied(live)
            new["metadata"]["deletionTimestamp"] = self.time()
            return self._write((kind, name), new, self._managers[kind, name])
        del self.objects[kind, name]
        del self._managers[kind, name]
        self._note("DELETED", live, live)
        return live

    def since(self, version: int, kind: str) -> Iterator[Event]:
        """What happened to a kind after `version`; RefusedError 410 if that is forgotten."""
        if version < self.compacted:
            raise RefusedError(410, "Expired", f"too old resource version: {version}")
        for event in self.events:
            if event.version > version and event.found["kind"] == kind:
                yield event

    def compact(self) -> None:
        """Forget all events: whoever watches from before gets 410."""
        self.events.clear()
        self.compacted = self.version

    def snapshot(self) -> bytes:
        """What a backup of its database holds."""
        return msgspec.json.encode([self.version, [*self.objects.values()]])

    def restore(self, taken: bytes) -> None:
        """Be as at a snapshot, versions included; who watches from later hears nothing."""
        self.version, objects = msgspec.json.decode(taken)
        self.objects = {(one["kind"], one["metadata"]["name"]): one for one in objects}
        self._managers = {key: self._managers.get(key, Managers()) for key in self.objects}
        self.events.clear()
        self.compacted = self.version
        self.on_change()

    def _check_identity(self, key: Key, given: Mapping[str, str]) -> None:
        live = self.objects.get(key)
        for name, reason in (("uid", "uid"), ("resourceVersion", "the object has been modified")):
            wanted = given.get(name)
            if live is not None and wanted and wanted != live["metadata"][name]:
                raise RefusedError(409, "Conflict", f"{key[0]} {key[1]!r}: {reason}")

    def _write(
        self, key: Key, new: Object, managers: Managers, *, is_status: bool = False
    ) -> Object:
        live = self.objects.get(key)
        new = with_defaults(new)
        metadata = new["metadata"]
        metadata["namespace"] = self.namespace
        if live is None:
            self._uids += 1
            metadata.update(uid=f"uid-{self._uids}", creationTimestamp=self.time(), generation=1)
        elif not is_status and live.get("spec") != new.get("spec"):
            metadata["generation"] = live["metadata"].get("generation", 1) + 1
        metadata["managedFields"] = managers.entries(new["apiVersion"], self.time())
        metadata["resourceVersion"] = live["metadata"]["resourceVersion"] if live else "0"
        check(new)
        if live is not None:
            check_fixed(live, new)
        self._managers[key] = managers
        if live is not None and _same(live, new):
            return copied(live)
        metadata["resourceVersion"] = str(self.version + 1)
        self.objects[key] = new
        self._note("MODIFIED" if live else "ADDED", new, live)
        return copied(new)

    def _note(self, kind: str, found: Object, before: Object | None) -> None:
        self.version += 1
        shown = copied(found)
        shown["metadata"]["resourceVersion"] = str(self.version)
        self.events.append(Event(self.version, kind, shown, before))
        if len(self.events) > _KEPT_EVENTS:
            self.compacted = self.events.pop(0).version
        self.on_change()


def copied(one: Object) -> Object:
    """A copy of an object, as it would come over the wire: several times as fast as `deepcopy`."""
    found: Object = msgspec.json.decode(msgspec.json.encode(one))
    return found


def matches(one: Object, selector: Mapping[str, str]) -> bool:
    """Whether an object has all these labels."""
    labels: dict[str, str] = one["metadata"].get("labels", {})
    return selector.items() <= labels.items()


def _without_managers(live: Object) -> Object:
    metadata = {key: each for key, each in live["metadata"].items() if key != "managedFields"}
    return {**live, "metadata": metadata}


def _same(one: Object, other: Object) -> bool:
    """Whether two are the same but for when their managers wrote."""

    def plain(each: Object) -> Object:
        entries = [
            {key: value for key, value in entry.items() if key != "time"}
            for entry in each["metadata"]["managedFields"]
        ]
        return {**each, "metadata": {**each["metadata"], "managedFields": entries}}

    return plain(one) == plain(other)


def _merged(live: Object, change: Mapping[str, object]) -> Object:
    result = dict(live)
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result
