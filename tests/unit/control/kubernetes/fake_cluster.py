"""Objects in a dictionary, and controllers that make pods and addresses of them; nothing waits.

A small part of a cluster for tests of decisions: nothing is validated or defaulted, and no managers
are in conflict. What a real server does is tested in `tests/e2e/kubernetes`.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from tests.kube_server.kubelet import State, fake_status, is_ready

Object = dict[str, Any]
Key = tuple[str, str]
_HASH: Final = "pod-template-hash"
_REVISION: Final = "deployment.kubernetes.io/revision"
_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
_SERVICE: Final = "kubernetes.io/service-name"


class RefusedError(Exception):
    """The object does not exist, is another one, or a field has another manager."""


def _copy(value: Any) -> Any:  # noqa: ANN401  # JSON; several times as fast as `deepcopy`
    return msgspec.json.decode(msgspec.json.encode(value))


@dataclass(frozen=True, slots=True)
class Event:
    """One write; `before` is None for a new object."""

    version: int
    found: Object
    before: Object | None


@dataclass(slots=True)
class FakeStore:
    """Objects by kind and name, and all writes."""

    objects: dict[Key, Object] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    version: int = 100
    _configs: dict[Key, dict[str, Object]] = field(default_factory=dict)
    """What each manager applied last."""
    _scaled: dict[Key, str] = field(default_factory=dict)
    """Managers that set `replicas` last through the subresource `scale`."""

    def get(self, kind: str, name: str) -> Object:
        """Return a copy of an object."""
        if (kind, name) not in self.objects:
            raise RefusedError(f"{kind} {name} not found")
        live: Object = _copy(self.objects[kind, name])
        return live

    def of_kind(self, kind: str) -> list[Object]:
        """Return copies of all of a kind, by name."""
        return [self.get(*key) for key in sorted(self.objects) if key[0] == kind]

    def create(self, new: Object) -> Object:
        """Make an object."""
        key = new["kind"], new["metadata"]["name"]
        if key in self.objects:
            raise RefusedError(f"{key} already exists")
        self._configs[key] = {}
        return self._write(key, _copy(new))

    def apply(self, config: Object, *, manager: str) -> Object:
        """Server-side apply: fields that `manager` applied before and does not now are removed."""
        key = config["kind"], config["metadata"]["name"]
        live, uid = self.objects.get(key), config["metadata"].get("uid")
        if uid and (live is None or live["metadata"]["uid"] != uid):
            raise RefusedError(f"{key} is another object")
        configs = self._configs.setdefault(key, {})
        kept = [other for who, other in configs.items() if who != manager]
        result = _without(_copy(live or {}), configs.get(manager, {}), [config, *kept])
        configs[manager] = config
        if "replicas" in config.get("spec", {}):
            self._scaled.pop(key, None)
        return self._write(key, _merged(result, config))

    def patch(self, kind: str, name: str, change: Object) -> Object:
        """Merge a change into an object."""
        return self._write((kind, name), _merged(self.get(kind, name), change))

    def scale(self, name: str, replicas: int, *, manager: str) -> None:
        """Set `replicas` through the subresource `scale`, which takes the field from others."""
        key = "Deployment", name
        for who, config in self._configs[key].items():
            spec = {k: v for k, v in config.get("spec", {}).items() if k != "replicas"}
            self._configs[key][who] = {**config, "spec": spec}
        self._scaled[key] = manager
        self.patch(*key, {"spec": {"replicas": replicas}})

    def set_status(self, kind: str, name: str, status: Object) -> None:
        """Write what a controller says of an object."""
        self._write((kind, name), {**self.get(kind, name), "status": status})

    def delete(self, kind: str, name: str, *, uid: str = "", grace: bool = False) -> None:
        """Remove an object; with `grace` it stays, marked, until it is removed for good."""
        live = self.get(kind, name)
        if uid and live["metadata"]["uid"] != uid:
            raise RefusedError(f"{kind} {name} is another object")
        if grace:
            live["metadata"].setdefault("deletionTimestamp", "2030-01-01T00:00:00Z")
            self._write((kind, name), live)
            return
        del self.objects[kind, name], self._configs[kind, name]
        self.version += 1
        self.events.append(Event(self.version, live, live))

    def _write(self, key: Key, new: Object) -> Object:
        live = self.objects.get(key)
        metadata = new["metadata"]
        if new["kind"] == "Deployment":
            new["spec"].setdefault("replicas", 1)
        if live is None:
            metadata |= {"uid": f"uid-{self.version}", "generation": 1}
        elif live.get("spec") != new.get("spec"):
            metadata["generation"] = live["metadata"]["generation"] + 1
        metadata["managedFields"] = [
            {"manager": manager, "operation": "Apply", "fieldsV1": _fields(config)}
            for manager, config in self._configs[key].items()
        ]
        if key in self._scaled:
            fields: Object = {"f:spec": {"f:replicas": {}}}
            entry = {"manager": self._scaled[key], "operation": "Update", "subresource": "scale"}
            metadata["managedFields"].append({**entry, "fieldsV1": fields})
        if live != new:
            self.version += 1
            metadata["resourceVersion"] = str(self.version)
            self.objects[key] = new
            self.events.append(Event(self.version, _copy(new), live))
        return self.get(*key)


@dataclass(slots=True)
class FakePods:
    """States of pods by name, revision or image; `lingering` ones do not end."""

    states: dict[str, str] = field(default_factory=dict)
    default: str = "ready"
    lingering: set[str] = field(default_factory=set)

    def status(self, pod: Object) -> Object:
        """Return the status of a pod; its address is no other pod's."""
        metadata, (container, *_) = pod["metadata"], pod["spec"]["containers"]
        keys = metadata["name"], metadata["labels"].get("headrace.dev/revision"), container["image"]
        state = next((self.states[key] for key in keys if key in self.states), self.default)
        number = int(metadata["name"].rpartition("-")[2])
        address = f"10.{number // 65536}.{number // 256 % 256}.{number % 256}"
        return fake_status(pod["spec"], State(state), address)


@dataclass(slots=True)
class FakeControllers:
    """Deployments become pods, and pods become addresses of Services."""

    store: FakeStore
    runtime: FakePods
    _made: int = 0

    def settle(self) -> None:
        """Run until nothing changes."""
        for _ in range(1000):
            before = self.store.version
            self.step()
            if self.store.version == before:
                return
        raise AssertionError("the controllers never come to rest")

    def step(self) -> None:
        """Run each controller once."""
        for deployment in self.store.of_kind("Deployment"):
            self._scale(deployment)
        for pod in self.store.of_kind("Pod"):
            name = pod["metadata"]["name"]
            if "deletionTimestamp" not in pod["metadata"]:
                self.store.set_status("Pod", name, self.runtime.status(pod))
            elif name not in self.runtime.lingering:
                self.store.delete("Pod", name)
        uids = {one["metadata"]["uid"] for one in self.store.objects.values()}
        for (kind, name), one in list(self.store.objects.items()):
            owners = [owner["uid"] for owner in one["metadata"].get("ownerReferences", ())]
            if owners and not uids & {*owners}:
                self.store.delete(kind, name, grace=kind == "Pod")
        for service in self.store.of_kind("Service"):
            self._publish(service)

    def _scale(self, deployment: Object) -> None:
        """Replace pods one by one, with `maxSurge` 1 and `maxUnavailable` 0."""
        spec, metadata = deployment["spec"], deployment["metadata"]
        wanted = spec["replicas"]
        text = json.dumps(spec["template"], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:9]
        active = list(self._pods_of(metadata["uid"]))
        new = [pod for pod in active if pod["metadata"]["labels"][_HASH] == digest]
        old = [pod for pod in active if pod not in new]
        if len(new) < wanted and (not old or len(active) <= wanted):
            self._make(deployment, digest)
        elif old and _may_lose_one(active, new, wanted):
            self._end(old)
        elif not old and len(new) > wanted:
            self._end(new)
        seen = metadata.get("annotations", {}).get(_REVISION, "0-").split("-")
        if seen[1] != digest:
            change = {"metadata": {"annotations": {_REVISION: f"{int(seen[0]) + 1}-{digest}"}}}
            self.store.patch("Deployment", metadata["name"], change)
        ready = sum(map(is_ready, active))
        counts = {
            "observedGeneration": metadata["generation"],
            "replicas": len(active),
            "updatedReplicas": len(new),
            "readyReplicas": ready,
            "availableReplicas": ready,
        }
        status = {name: count for name, count in counts.items() if count}
        self.store.set_status("Deployment", metadata["name"], status)

    def _pods_of(self, uid: str) -> Iterator[Object]:
        for pod in self.store.of_kind("Pod"):
            metadata = pod["metadata"]
            if metadata["ownerReferences"][0]["uid"] == uid and "deletionTimestamp" not in metadata:
                yield pod

    def _make(self, deployment: Object, digest: str) -> None:
        self._made += 1
        template, name = deployment["spec"]["template"], deployment["metadata"]["name"]
        owner = {
            "kind": "ReplicaSet",
            "name": f"{name}-{digest}",
            "uid": deployment["metadata"]["uid"],
            "controller": True,
        }
        metadata = {
            "name": f"{name}-{digest}-{self._made:05}",
            "labels": {**template["metadata"]["labels"], _HASH: digest},
            "annotations": template["metadata"].get("annotations", {}),
            "ownerReferences": [owner],
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        self.store.create(pod)

    def _end(self, pods: list[Object]) -> None:
        """End a pod as a ReplicaSet chooses it: not running, not ready, the cheaper, the newer."""

        def order(pod: Object) -> tuple[bool, bool, int, int]:
            metadata = pod["metadata"]
            cost = int(metadata.get("annotations", {}).get(_COST, "0"))
            is_running = pod.get("status", {}).get("phase") == "Running"
            return is_running, is_ready(pod), cost, -int(metadata["name"][-5:])

        self.store.delete("Pod", min(pods, key=order)["metadata"]["name"], grace=True)

    def _publish(self, service: Object) -> None:
        name, selector = service["metadata"]["name"], service["spec"]["selector"].items()
        pods = [p for p in self.store.of_kind("Pod") if selector <= p["metadata"]["labels"].items()]
        pods = [pod for pod in pods if "status" in pod]
        metadata = {
            "name": f"{name}-1",
            "labels": {**service["metadata"].get("labels", {}), _SERVICE: name},
            "ownerReferences": [{"kind": "Service", "uid": service["metadata"]["uid"]}],
        }
        told = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata,
            "endpoints": [_endpoint(pod) for pod in pods],
            "ports": [{"name": "http", "port": 8000}],
        }
        self.store.apply(told, manager="controller")


def _endpoint(pod: Object) -> Object:
    metadata, is_leaving = pod["metadata"], "deletionTimestamp" in pod["metadata"]
    conditions = {"ready": is_ready(pod) and not is_leaving, "serving": is_ready(pod)}
    return {
        "addresses": [pod["status"]["podIP"]],
        "conditions": conditions | {"terminating": is_leaving},
        "targetRef": {"kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]},
    }


def _may_lose_one(active: list[Object], new: list[Object], wanted: int) -> bool:
    """Return whether a pod of an earlier template may go, with `maxUnavailable` 0."""
    are_enough = sum(map(is_ready, active)) > wanted
    waiting = sum(not is_ready(pod) for pod in new)
    has_spoiled = any(not is_ready(pod) for pod in active if pod not in new)
    return wanted == 0 or are_enough or (has_spoiled and len(active) - wanted - waiting > 0)


def _fields(config: Object) -> Object:
    return {f"f:{k}": _fields(v) if isinstance(v, dict) else {} for k, v in config.items()}


def _without(live: Object, old: Object, kept: list[Object]) -> Object:
    """Return `live` without the fields of `old` that none of `kept` has."""
    for key, value in old.items():
        holders = [config[key] for config in kept if key in config]
        if not holders:
            live.pop(key, None)
        elif isinstance(value, dict) and isinstance(live.get(key), dict):
            live[key] = _without(live[key], value, [one for one in holders if one])
    return live


def _merged(live: Object, change: Object) -> Object:
    result = dict(live)
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        else:
            result[key] = _copy(value)
    return result
