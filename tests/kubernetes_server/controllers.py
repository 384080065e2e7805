"""What do a cluster's own controllers do? Deployments become pods, pods become addresses.

And what belongs to something that is gone goes too. A stand-in for kubelets asks a `Runtime` how a
pod's process is.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from tests.kubernetes_server.fields import Object
from tests.kubernetes_server.store import Store, matches

_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
_HASH: Final = "pod-template-hash"
_REVISION: Final = "deployment.kubernetes.io/revision"
_SERVICE: Final = "kubernetes.io/service-name"


class Runtime(Protocol):
    """What runs pods."""

    def start(self, pod: Object) -> None:
        """A pod was placed on a node."""

    def status(self, pod: Object) -> Object:
        """How it is now: the pod's `status`."""

    def ports(self, pod: Object) -> dict[str, int]:
        """Where its named ports are reached."""

    def stop(self, pod: Object) -> bool:
        """It was told to end; whether it has."""


@dataclass(slots=True)
class InstantRuntime:
    """Pods are ready at once, and end at once, unless a test says otherwise.

    `states` by the pod's name, its revision or its image: `pending`, `ready`, `unready`,
    `crashing`, `oom`, `no-image`, `no-node`, `no-model`. `lingering`: pods that were told to end
    and do not.
    """

    states: dict[str, str] = field(default_factory=dict)
    default: str = "ready"
    lingering: set[str] = field(default_factory=set)
    restarts: dict[str, int] = field(default_factory=dict)
    _addresses: dict[str, str] = field(default_factory=dict)

    def start(self, pod: Object) -> None:
        """It gets an address that no other pod ever has."""
        number = len(self._addresses) + 1
        self._addresses[pod["metadata"]["uid"]] = (
            f"10.{number // 65536}.{number // 256 % 256}.{number % 256}"
        )

    def status(self, pod: Object) -> Object:
        """As the test said."""
        labels = pod["metadata"]["labels"]
        name = pod["metadata"]["name"]
        image = pod["spec"]["containers"][0].get("image", "")
        keys = (name, labels.get("headrace.dev/revision", ""), image)
        state = next((self.states[key] for key in keys if key in self.states), self.default)
        return pod_status(
            state, ip=self._addresses[pod["metadata"]["uid"]], restarts=self.restarts.get(name, 0)
        )

    def ports(self, pod: Object) -> dict[str, int]:
        """As its containers say."""
        return container_ports(pod)

    def stop(self, pod: Object) -> bool:
        """At once, but for those that linger."""
        return pod["metadata"]["name"] not in self.lingering


def container_ports(pod: Object) -> dict[str, int]:
    """A pod's named ports."""
    return {
        port["name"]: port["containerPort"]
        for container in pod["spec"]["containers"]
        for port in container.get("ports", ())
    }


def pod_status(state: str, *, ip: str, restarts: int = 0, message: str = "") -> Object:
    """The `status` of a pod of ours in a state that has a name."""
    waits: dict[str, tuple[str, str]] = {
        "no-image": ("ImagePullBackOff", 'Back-off pulling image "headrace/replica"'),
        "pending": ("ContainerCreating", ""),
    }
    ended = {
        "crashing": {"exitCode": 3, "reason": "Error", "message": message or "no such operator"},
        "oom": {"exitCode": 137, "reason": "OOMKilled"},
    }
    is_ready = state == "ready"
    status: Object = {
        "phase": "Pending"
        if state in {"pending", "no-image", "no-node", "no-model"}
        else "Running",
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "True" if is_ready else "False"},
        ],
    }
    if state == "no-node":
        status["conditions"][0] |= {
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient memory.",
        }
        return status
    status["podIP"] = ip
    replica: Object = {
        "name": "replica",
        "image": "",
        "imageID": "",
        "ready": is_ready,
        "started": state in {"ready", "unready"},
        "restartCount": restarts,
        "state": {"running": {}},
    }
    if state in waits:
        reason, said = waits[state]
        replica["state"] = {"waiting": {"reason": reason, "message": said}}
    if state in ended:
        replica["state"] = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
        replica["lastState"] = {"terminated": ended[state]}
    if state == "no-model":
        replica["state"] = {"waiting": {"reason": "PodInitializing"}}
        fetcher = {**replica, "name": "fetch-model"}
        fetcher["state"] = {
            "terminated": {"exitCode": 1, "reason": "Error", "message": "no such artifact"}
        }
        status["initContainerStatuses"] = [fetcher]
    status["containerStatuses"] = [replica]
    return status


@dataclass(slots=True)
class Controllers:
    """All controllers of one store; `settle` runs them until nothing is left to do."""

    store: Store
    runtime: Runtime = field(default_factory=InstantRuntime)
    _made: int = 0
    _templates: dict[str, str] = field(default_factory=dict)

    def settle(self) -> None:
        """Run until nothing changes."""
        for _ in range(1000):
            before = self.store.version
            self.step()
            if self.store.version == before:
                return
        raise AssertionError("the controllers never come to rest")

    def step(self) -> None:
        """Each controller once."""
        for deployment in self.store.of_kind("Deployment"):
            self._scale(deployment)
        for pod in self.store.of_kind("Pod"):
            self._run(pod)
        self._collect()
        for service in self.store.of_kind("Service"):
            self._publish(service)

    def _scale(self, deployment: Object) -> None:
        wanted = deployment["spec"]["replicas"]
        digest = _template_hash(deployment)
        active = [pod for pod in self._pods_of(deployment) if _is_active(pod)]
        new = [pod for pod in active if pod["metadata"]["labels"][_HASH] == digest]
        old = [pod for pod in active if pod not in new]
        if old and len(new) < wanted and len(active) <= wanted:
            self._make(deployment, digest)  # one more, as maxSurge allows
        elif old and _may_lose_one(active, new, wanted):
            self._end(_first_to_go(old))
        elif not old and len(new) < wanted:
            self._make(deployment, digest)
        elif not old and len(new) > wanted:
            self._end(_first_to_go(new))
        self._count_templates(deployment)
        name = deployment["metadata"]["name"]
        self.store.set_status("Deployment", name, _told(deployment, active, new))

    def _count_templates(self, deployment: Object) -> None:
        """As the annotation that a rollback goes by says it."""
        metadata, digest = deployment["metadata"], _template_hash(deployment)
        if self._templates.get(metadata["uid"]) == digest:
            return
        self._templates[metadata["uid"]] = digest
        number = int(metadata.get("annotations", {}).get(_REVISION, "0")) + 1
        change = {"metadata": {"annotations": {_REVISION: str(number)}}}
        manager = "kube-controller-manager"
        self.store.patch("Deployment", metadata["name"], change, manager=manager)

    def _pods_of(self, deployment: Object) -> Iterator[Object]:
        uid = deployment["metadata"]["uid"]
        for pod in self.store.of_kind("Pod"):
            if any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences", ())):
                yield pod

    def _make(self, deployment: Object, digest: str) -> None:
        self._made += 1
        template = deployment["spec"]["template"]
        name = deployment["metadata"]["name"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{name}-{digest}-{self._made:05}",
                "labels": {**template["metadata"]["labels"], _HASH: digest},
                "annotations": template["metadata"].get("annotations", {}),
                "ownerReferences": [
                    {
                        "apiVersion": "apps/v1",
                        "kind": "ReplicaSet",
                        "name": f"{name}-{digest}",
                        "uid": deployment["metadata"]["uid"],
                        "controller": True,
                    }
                ],
            },
            "spec": template["spec"],
        }
        made = self.store.create(pod, manager="kube-controller-manager")
        self.runtime.start(made)

    def _end(self, pod: Object) -> None:
        self.store.delete("Pod", pod["metadata"]["name"], grace=True)

    def _run(self, pod: Object) -> None:
        name = pod["metadata"]["name"]
        if "deletionTimestamp" in pod["metadata"]:
            if self.runtime.stop(pod):
                self.store.delete("Pod", name)
            return
        self.store.set_status("Pod", name, self.runtime.status(pod))

    def _collect(self) -> None:
        """Delete what belongs only to what is gone."""
        uids = {one["metadata"]["uid"] for one in self.store.objects.values()}
        for (kind, name), one in list(self.store.objects.items()):
            owners = one["metadata"].get("ownerReferences", ())
            is_orphan = owners and not any(owner["uid"] in uids for owner in owners)
            if is_orphan and "deletionTimestamp" not in one["metadata"]:
                self.store.delete(kind, name, grace=kind == "Pod")

    def _publish(self, service: Object) -> None:
        """One slice for each set of ports, as pods of one Service may differ in them."""
        selector = service["spec"].get("selector")
        by_ports: dict[str, list[Object]] = {}
        for pod in self.store.of_kind("Pod"):
            if selector and matches(pod, selector) and pod.get("status", {}).get("podIP"):
                ports = json.dumps(self.runtime.ports(pod), sort_keys=True)
                by_ports.setdefault(ports, []).append(pod)
        wanted = {}
        for ports, pods in by_ports.items():
            digest = hashlib.sha256(ports.encode()).hexdigest()[:5]
            name = f"{service['metadata']['name']}-{digest}"
            wanted[name] = _slice(service, json.loads(ports), pods)
        for name, told in wanted.items():
            self._write_slice(name, told)
        for one in self.store.of_kind("EndpointSlice", {_SERVICE: service["metadata"]["name"]}):
            if one["metadata"]["name"] not in wanted:
                self.store.delete("EndpointSlice", one["metadata"]["name"])

    def _write_slice(self, name: str, told: Object) -> None:
        manager = "kube-controller-manager"
        told["metadata"]["name"] = name
        found = self.store.objects.get(("EndpointSlice", name))
        if found is None:
            self.store.create(told, manager=manager)
        elif found["endpoints"] != told["endpoints"] or found["ports"] != told["ports"]:
            self.store.update(told, manager=manager)


def _slice(service: Object, ports: dict[str, int], pods: list[Object]) -> Object:
    metadata = service["metadata"]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "labels": {**metadata.get("labels", {}), _SERVICE: metadata["name"]},
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                    "controller": True,
                }
            ],
        },
        "addressType": "IPv4",
        "endpoints": [_endpoint(pod) for pod in pods],
        "ports": [{"name": name, "port": port} for name, port in sorted(ports.items())],
    }


def _endpoint(pod: Object) -> Object:
    is_ready, is_leaving = _is_ready(pod), "deletionTimestamp" in pod["metadata"]
    return {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {
            "ready": is_ready and not is_leaving,
            "serving": is_ready,
            "terminating": is_leaving,
        },
        "targetRef": {
            "kind": "Pod",
            "name": pod["metadata"]["name"],
            "uid": pod["metadata"]["uid"],
        },
    }


def _told(deployment: Object, active: list[Object], new: list[Object]) -> Object:
    """As the server tells it, which leaves out what is 0."""
    ready = sum(map(_is_ready, active))
    told = {
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": len(active),
        "updatedReplicas": len(new),
        "readyReplicas": ready,
        "availableReplicas": ready,
    }
    return {name: count for name, count in told.items() if count}


def _may_lose_one(active: list[Object], new: list[Object], wanted: int) -> bool:
    """Whether one of an earlier template may go, with `maxUnavailable` 0."""
    are_enough = sum(map(_is_ready, active)) > wanted
    waiting = sum(not _is_ready(pod) for pod in new)
    has_spoiled = any(not _is_ready(pod) for pod in active if pod not in new)
    return wanted == 0 or are_enough or (has_spoiled and len(active) - wanted - waiting > 0)


def _is_active(pod: Object) -> bool:
    is_over = pod.get("status", {}).get("phase") in {"Failed", "Succeeded"}
    return "deletionTimestamp" not in pod["metadata"] and not is_over


def _is_ready(pod: Object) -> bool:
    return any(
        one["type"] == "Ready" and one["status"] == "True"
        for one in pod.get("status", {}).get("conditions", ())
    )


def _first_to_go(pods: list[Object]) -> Object:
    """As a ReplicaSet chooses: not running, not ready, the cheaper, the newer."""

    def order(pod: Object) -> tuple[Any, ...]:
        is_running = pod.get("status", {}).get("phase") == "Running"
        cost = int(pod["metadata"].get("annotations", {}).get(_COST, "0"))
        age = pod["metadata"]["creationTimestamp"], pod["metadata"]["name"][-5:]
        return is_running, _is_ready(pod), cost, *(-int(age[1]),)

    return min(pods, key=order)


def _template_hash(deployment: Object) -> str:
    told = json.dumps(deployment["spec"]["template"], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:9]
