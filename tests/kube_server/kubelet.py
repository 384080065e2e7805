"""Kubelet of several nodes on a real API server, whose pods are fake or processes.

A fake pod has a status only: ready after a moment, unless a test sets another state. Processes are
in `tests.kube_server.pods`. A silent node does what a dead one does: nothing.
"""

import asyncio
import contextlib
import datetime as dt
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol

import httpx2

from tests.kube_server.cluster import Cluster, LabError

Object = dict[str, Any]
_HEARTBEAT_S: Final = 2.0
_STATUS_EVERY: Final = 5
"""Heartbeats between two reports of a node's status; the others renew its Lease only."""
_NAMES_S: Final = 0.5
_SIZE: Final = {"cpu": "4000", "memory": "8000Gi", "pods": "8000", "ephemeral-storage": "1000Gi"}
_STRATEGIC: Final = "application/strategic-merge-patch+json"
_LEASES: Final = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_log = logging.getLogger(__name__)


class State(StrEnum):
    """State of a fake pod."""

    READY = "ready"
    UNREADY = "unready"
    PENDING = "pending"
    NO_IMAGE = "no-image"
    NO_MODEL = "no-model"
    CRASHING = "crashing"
    OUT_OF_MEMORY = "oom"


class RunningPod(Protocol):
    """Pod on a node."""

    is_ready: bool

    async def run(self) -> None:
        """Run until cancelled, and report each change."""

    async def report(self) -> None:
        """Write the pod's status."""

    async def stop(self, grace_s: float) -> None:
        """End, within `grace_s`."""


@dataclass(slots=True)
class Kubelet:
    """Nodes of a cluster; `run` until cancelled."""

    cluster: Cluster
    nodes: tuple[str, ...]
    folder: Path
    """Files of pods."""
    is_fake: bool = True
    delay_s: float = 0.1
    """Time in which a fake pod starts, and ends."""
    states: dict[str, State] = field(default_factory=dict)
    """States of fake pods, by name, by a label's value, or by a part of the image."""
    lingering: set[str] = field(default_factory=set)
    """Names of fake pods that do not end before their grace period is over."""
    silent: set[str] = field(default_factory=set)
    """Nodes of which nothing is heard."""
    shared: list[Path] = field(default_factory=list)
    """Folders of this machine that all containers have, as a disk on the network."""
    http: httpx2.AsyncClient = field(init=False)
    live: dict[str, Object] = field(default_factory=dict)
    """Pods of these nodes by uid, as the server has them."""
    pods: dict[str, RunningPod] = field(default_factory=dict)
    addresses_of_services: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """Addresses of ready pods by the Service's name and namespace."""
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _ends: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def run(self) -> None:
        """Be all nodes, until cancelled; all pods end then."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            async with (
                self.cluster.http(user_agent="kubelet", timeout_s=10.0) as self.http,
                asyncio.TaskGroup() as group,
            ):
                for number, node in enumerate(self.nodes):
                    group.create_task(self._run_node(number, node))
                group.create_task(self._watch())
                if not self.is_fake:
                    group.create_task(self._resolve_services())
        finally:
            tasks = [*self._tasks.values(), *self._ends.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(pod.stop(0.0) for pod in self.pods.values()))

    async def set_state(self, key: str, state: State) -> None:
        """Change the state of fake pods: see `states`."""
        self.states[key] = state
        await asyncio.gather(*(pod.report() for pod in list(self.pods.values())))

    async def lose(self, node: str) -> None:
        """End what runs on a node, and let nothing be heard of it until it is not `silent`."""
        self.silent.add(node)
        lost = [uid for uid, pod in self.live.items() if pod["spec"]["nodeName"] == node]
        await asyncio.gather(*(self._stop(uid, 0.0) for uid in lost))

    async def call(
        self, method: str, path: str, body: Object | None = None, content: str = "application/json"
    ) -> Object | None:
        """Return what the server answers, however long it is away; None if it refuses."""
        while True:
            with contextlib.suppress(httpx2.HTTPError):
                answer = await self.http.request(
                    method, path,
                    content=None if body is None else json.dumps(body),
                    headers={"content-type": content},
                )  # fmt: skip
                if answer.is_success:
                    document: Object = answer.json()
                    return document
                if answer.status_code not in {401, 403, 429, 500, 503, 504}:
                    return None
            await asyncio.sleep(0.3)

    async def write_status(self, pod: Object, status: Object) -> None:
        """Write a pod's status, with conditions that keep the time of their last change."""
        metadata = pod["metadata"]
        if pod["spec"]["nodeName"] in self.silent:
            return
        before = self.live.get(metadata["uid"], pod).get("status", {}).get("conditions", ())
        times = {(one["type"], one["status"]): one.get("lastTransitionTime") for one in before}
        for condition in status["conditions"]:
            key = condition["type"], condition["status"]
            condition["lastTransitionTime"] = times.get(key) or now()
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status"
        body = {"metadata": {"uid": metadata["uid"]}, "status": status}
        await self.call("PATCH", path, body, _STRATEGIC)

    async def _run_node(self, number: int, node: str) -> None:
        labels = {
            "kubernetes.io/hostname": node,
            "topology.kubernetes.io/zone": f"zone-{number % 3}",
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
        }
        new = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": labels}}
        await self.call("POST", "/api/v1/nodes", new)
        count, was_silent = 0, False
        while True:
            if node in self.silent:
                was_silent = True
            else:
                if count % _STATUS_EVERY == 0 or was_silent:
                    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
                    status = {
                        "capacity": _SIZE,
                        "allocatable": _SIZE,
                        "conditions": [ready | {"lastHeartbeatTime": now()}],
                        "addresses": [
                            {"type": "InternalIP", "address": self.cluster.network.server}
                        ],
                    }
                    await self.call(
                        "PATCH", f"/api/v1/nodes/{node}/status", {"status": status}, _STRATEGIC
                    )
                lease = {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": now("us")}
                patch = "application/merge-patch+json"
                if await self.call("PATCH", f"{_LEASES}/{node}", {"spec": lease}, patch) is None:
                    new = {
                        "apiVersion": "coordination.k8s.io/v1",
                        "kind": "Lease",
                        "metadata": {"name": node},
                        "spec": lease,
                    }
                    await self.call("POST", _LEASES, new)
                if was_silent:
                    was_silent = False
                    for pod in [p for p in self.live.values() if p["spec"]["nodeName"] == node]:
                        self._see(pod)
                count += 1
            await asyncio.sleep(_HEARTBEAT_S)

    async def _watch(self) -> None:
        path, of_nodes = "/api/v1/pods", "spec.nodeName!="
        while True:
            with contextlib.suppress(httpx2.HTTPError, ValueError):
                page = await self.call("GET", f"{path}?fieldSelector={of_nodes}")
                assert page is not None
                items = {pod["metadata"]["uid"]: pod for pod in page["items"]}
                for uid in self.live.keys() - items.keys():
                    self._forget(uid)
                for pod in items.values():
                    self._see(pod)
                params = {
                    "watch": "true",
                    "fieldSelector": of_nodes,
                    "resourceVersion": page["metadata"]["resourceVersion"],
                    "timeoutSeconds": "60",
                }
                timeout = httpx2.Timeout(10.0, read=65.0)
                async with self.http.stream("GET", path, params=params, timeout=timeout) as lines:
                    async for line in lines.aiter_lines():
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            break
                        if event["type"] == "DELETED":
                            self._forget(event["object"]["metadata"]["uid"])
                        else:
                            self._see(event["object"])
            await asyncio.sleep(0.3)

    def _see(self, pod: Object) -> None:
        uid, node = pod["metadata"]["uid"], pod["spec"]["nodeName"]
        if node not in self.nodes:
            return
        self.live[uid] = pod
        if node in self.silent:
            return
        if pod["metadata"].get("deletionTimestamp"):
            if uid not in self._ends:
                self._ends[uid] = asyncio.create_task(self._end(pod))
        elif uid not in self.pods:
            if pod.get("status", {}).get("phase", "Pending") in {"Pending", "Running"}:
                self.pods[uid] = self._make(pod)
                self._tasks[uid] = asyncio.create_task(self._run_pod(uid, pod))
        elif not is_ready(pod) and self.pods[uid].is_ready:
            # The controller of nodes wrote it, as nothing was heard of the node.
            self._tasks[f"{uid}-again"] = asyncio.create_task(self.pods[uid].report())

    def _make(self, pod: Object) -> RunningPod:
        if self.is_fake:
            return FakePod(self, pod, self.cluster.network.take_address())
        from tests.kube_server.pods import ProcessPod  # noqa: PLC0415  # it imports this module

        return ProcessPod(self, pod, self.cluster.network.take_address())

    async def _run_pod(self, uid: str, pod: Object) -> None:
        try:
            await self.pods[uid].run()
        except (LabError, OSError):
            _log.exception("pod %s", pod["metadata"]["name"])

    def _forget(self, uid: str) -> None:
        """Kill what still runs of a pod that the server has no longer."""
        self.live.pop(uid, None)
        if uid in self.pods and uid not in self._ends:
            self._ends[uid] = asyncio.create_task(self._stop(uid, 0.0))

    async def _end(self, pod: Object) -> None:
        metadata = pod["metadata"]
        await self._stop(metadata["uid"], metadata.get("deletionGracePeriodSeconds") or 0.0)
        if pod["spec"]["nodeName"] in self.silent:
            return
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
        await self.call("DELETE", path, {"apiVersion": "v1", "kind": "DeleteOptions"} | options)

    async def _stop(self, uid: str, grace_s: float) -> None:
        if uid in self.pods:
            await self.pods[uid].stop(grace_s)
            self.pods.pop(uid, None)
        if (task := self._tasks.pop(uid, None)) is not None:
            task.cancel()
        self._ends.pop(uid, None)

    async def _resolve_services(self) -> None:
        """Keep the addresses of Services, which pods have in /etc/hosts in place of DNS."""
        while True:
            page = await self.call("GET", "/apis/discovery.k8s.io/v1/endpointslices")
            ready: dict[tuple[str, str], list[str]] = {}
            for one in page["items"] if page else ():
                metadata = one["metadata"]
                service = metadata.get("labels", {}).get("kubernetes.io/service-name", "")
                for endpoint in one["endpoints"] or ():
                    if endpoint["conditions"].get("ready"):
                        key = service, metadata["namespace"]
                        ready.setdefault(key, []).append(endpoint["addresses"][0])
            self.addresses_of_services = ready
            await asyncio.sleep(_NAMES_S)


@dataclass(slots=True)
class FakePod:
    """Pod without processes, in the state that the kubelet has for it."""

    kubelet: Kubelet
    pod: Object
    address: str
    is_ready: bool = False
    started_at: str = ""

    async def run(self) -> None:
        """Start."""
        await asyncio.sleep(self.kubelet.delay_s)
        self.started_at = now()
        await self.report()

    async def report(self) -> None:
        """Write the status of its state."""
        if self.started_at:
            state = self._state()
            self.is_ready = state is State.READY
            restarts = 5 if state in {State.CRASHING, State.OUT_OF_MEMORY} else 0
            status = fake_status(
                self.pod["spec"], state, self.address, started_at=self.started_at, restarts=restarts
            )
            await self.kubelet.write_status(self.pod, status)

    async def stop(self, grace_s: float) -> None:
        """End after a moment, or as late as it may."""
        lingers = self.pod["metadata"]["name"] in self.kubelet.lingering
        await asyncio.sleep(grace_s if lingers else min(self.kubelet.delay_s, grace_s))
        self.kubelet.cluster.network.give_back(self.address)

    def _state(self) -> State:
        metadata, states = self.pod["metadata"], self.kubelet.states
        for key in (metadata["name"], *metadata.get("labels", {}).values()):
            if key in states:
                return states[key]
        image = self.pod["spec"]["containers"][0]["image"]
        return next((state for key, state in states.items() if key in image), State.READY)


def fake_status(
    spec: Object, state: State, address: str, *, started_at: str = "", restarts: int = 0
) -> Object:
    """Return the status of a pod in a state."""
    started = {"running": {"startedAt": started_at}}
    ended = {"terminated": {"exitCode": 0, "reason": "Completed"}}
    containers, inits = spec["containers"], spec.get("initContainers", ())
    shown = [
        container_status(c, started, is_ready=state is State.READY, restarts=restarts)
        for c in containers
    ]
    shown_inits = [container_status(c, ended, is_ready=True) for c in inits]
    match state:
        case State.PENDING | State.NO_IMAGE:
            wait = {"reason": "ContainerCreating"}
            if state is State.NO_IMAGE:
                message = f'Back-off pulling image "{containers[0]["image"]}"'
                wait = {"reason": "ImagePullBackOff", "message": message}
            shown = [container_status(c, {"waiting": wait}) for c in containers]
        case State.NO_MODEL:
            failed = {"exitCode": 1, "reason": "Error", "message": "no such artifact"}
            shown_inits[-1:] = [container_status(inits[-1], {"terminated": failed})]
            wait = {"reason": "PodInitializing"}
            shown = [container_status(c, {"waiting": wait}) for c in containers]
        case State.CRASHING | State.OUT_OF_MEMORY:
            failed = {"exitCode": 3, "reason": "Error", "message": "no such operator"}
            if state is State.OUT_OF_MEMORY:
                failed = {"exitCode": 137, "reason": "OOMKilled"}
            wait = {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}
            last: Object = {"terminated": failed}
            shown = [
                container_status(c, {"waiting": wait}, restarts=restarts, last=last)
                for c in containers
            ]
    is_pending = state in {State.PENDING, State.NO_IMAGE, State.NO_MODEL}
    phase = "Pending" if is_pending else "Running"
    return pod_status(address, started_at, shown, shown_inits, phase=phase)


def pod_status(
    address: str,
    started_at: str,
    containers: list[Object],
    inits: Sequence[Object] = (),
    *,
    phase: str = "Running",
) -> Object:
    """Return the status of a pod; it is ready if all of its containers are."""
    is_all_ready = phase == "Running" and all(one["ready"] for one in containers)
    conditions = {
        "PodReadyToStartContainers": True,
        "Initialized": all("terminated" in one["state"] for one in inits),
        "ContainersReady": is_all_ready,
        "Ready": is_all_ready,
    }
    return {
        "phase": phase,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": started_at,
        "conditions": [
            {"type": name, "status": "True" if holds else "False"}
            for name, holds in conditions.items()
        ],
        "containerStatuses": containers,
        **({"initContainerStatuses": inits} if inits else {}),
    }


def container_status(
    container: Object,
    state: Object,
    *,
    is_ready: bool = False,
    restarts: int = 0,
    last: Object | None = None,
) -> Object:
    """Return the status of a container."""
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": "",
        "ready": is_ready,
        "started": "running" in state,
        "restartCount": restarts,
        "state": state,
        "lastState": last or {},
    }


def is_ready(pod: Object) -> bool:
    """Return whether a pod is ready, as the server has it."""
    conditions = pod.get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def now(unit: str = "s") -> str:
    """Return the time as Kubernetes writes it, in seconds or microseconds (`us`)."""
    form = "%Y-%m-%dT%H:%M:%SZ" if unit == "s" else "%Y-%m-%dT%H:%M:%S.%fZ"
    return dt.datetime.now(dt.UTC).strftime(form)
