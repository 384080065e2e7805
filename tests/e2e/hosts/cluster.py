"""A cluster whose nodes are hosts of `network`: pods are real replicas, each with its own address.

Run as a program on a host of its own: `python cluster.py SETTINGS.json`. The API server is the
strict stand-in of `tests.kubernetes_server`; what a node's kubelet does is done from here, over
the network, so that a node that is cut off is one of which nothing is heard.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from asyncio import subprocess as aio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.control.kubernetes.pods import AS_FIRST
from tests.e2e.hosts.network import IP, pod_address
from tests.kubernetes_server import FakeApiServer, Store
from tests.kubernetes_server.controllers import container_ports, pod_status

Object = dict[str, Any]
KUBELET_PORT: Final = 10250
_PROBE_S: Final = 0.5
_PROBE_TIMEOUT_S: Final = 1.0
_FAILURES_TO_UNREADY: Final = 2


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A host that takes pods."""

    name: str
    namespace: str
    address: str


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the program is told.

    `evict_after_s`: how long a node may be away until its pods count as lost (300 in a real
    cluster, where the node counts as not ready after 40).
    """

    port: int
    folder: str
    nodes: tuple[Node, ...]
    token: str
    evict_after_s: float = 6.0


@dataclass(slots=True)
class Running:
    """One pod: where it is, and how it was when it was last seen."""

    node: Node
    address: str
    folder: Path
    task: "asyncio.Task[None] | None" = None
    process: aio.Process | None = None
    state: str = "pending"
    failures: int = 0
    restarts: int = 0
    message: str = ""
    stop_at: float | None = None
    is_over: bool = False


@dataclass(slots=True)
class Kubelets:
    """Runs pods on nodes, and looks at them."""

    settings: ClusterSettings
    store: Store
    pods: dict[str, Running] = field(default_factory=dict)
    seen_at: dict[str, float] = field(default_factory=dict)
    _made: int = 0

    def start(self, pod: Object) -> None:
        """A pod was made: the node with the fewest takes it, of those that are there."""
        self._made += 1
        there = [node for node in self.settings.nodes if self._is_there(node)]
        nodes = there or list(self.settings.nodes)

        def load(node: Node) -> int:
            return sum(one.node is node and not one.is_over for one in self.pods.values())

        uid = pod["metadata"]["uid"]
        folder = Path(self.settings.folder) / pod["metadata"]["name"]
        running = Running(min(nodes, key=load), pod_address(self._made), folder)
        self.pods[uid] = running
        running.task = asyncio.create_task(self._run(pod, running))

    def status(self, pod: Object) -> Object:
        """As it was last seen; lost with its node once that was away for long."""
        running = self.pods[pod["metadata"]["uid"]]
        if running.is_over:
            return {"phase": "Failed", "reason": "NodeLost", "message": "its node is gone"}
        state = running.state if self._is_there(running.node) else _unready(running.state)
        return pod_status(
            state, ip=running.address, restarts=running.restarts, message=running.message
        )

    def ports(self, pod: Object) -> dict[str, int]:
        """As its containers say: each pod has its address alone."""
        return container_ports(pod)

    def stop(self, pod: Object) -> bool:
        """Its process is told to end once its `preStop` is over; whether it has ended."""
        running = self.pods[pod["metadata"]["uid"]]
        now = time.monotonic()
        if running.is_over:
            return True
        if running.stop_at is None:
            running.stop_at = now + _pre_stop_s(pod)
        if running.process is not None and now >= running.stop_at:
            with contextlib.suppress(ProcessLookupError):
                running.process.send_signal(signal.SIGTERM)
        is_ended = running.process is None or running.process.returncode is not None
        return is_ended and now >= running.stop_at

    async def watch(self, server: FakeApiServer) -> None:
        """Look at nodes and pods for ever."""
        for node in self.settings.nodes:
            self.seen_at[node.name] = time.monotonic()
        while True:
            await asyncio.gather(*map(self._look_at_node, self.settings.nodes))
            await asyncio.gather(*map(self._look_at_pod, list(self.pods.values())))
            server.poke()
            await asyncio.sleep(_PROBE_S)

    def _is_there(self, node: Node) -> bool:
        return time.monotonic() - self.seen_at[node.name] < 3 * _PROBE_TIMEOUT_S

    async def _look_at_node(self, node: Node) -> None:
        if await _reaches(node.address, KUBELET_PORT):
            self.seen_at[node.name] = time.monotonic()
        elif time.monotonic() - self.seen_at[node.name] > self.settings.evict_after_s:
            for running in self.pods.values():
                running.is_over = running.is_over or running.node is node

    async def _look_at_pod(self, running: Running) -> None:
        if running.process is None or running.is_over or not self._is_there(running.node):
            return
        if running.process.returncode is not None:
            running.state = "crashing"
        elif await _is_ready(running.address):
            running.state, running.failures = "ready", 0
        else:
            running.failures += 1
            if running.failures >= _FAILURES_TO_UNREADY:
                running.state = _unready(running.state)

    async def _run(self, pod: Object, running: Running) -> None:
        spec = pod["spec"]
        running.folder.mkdir(parents=True)
        for volume in spec["volumes"]:
            self._mount(volume, running.folder)
        places = _places(spec, running.folder)
        await _ip(
            "-n", running.node.namespace, "addr", "add", f"{running.address}/16", "dev", "eth0"
        )
        _tell_settings(places, running)
        for container in (*spec["initContainers"], *spec["containers"]):
            while not self._is_there(running.node):  # noqa: ASYNC110  # as a kubelet looks
                await asyncio.sleep(_PROBE_S)
            process = await self._spawn(container, places, running)
            if container in spec["containers"]:
                running.process = process
                running.state = "unready"
            elif await process.wait():
                running.state = "no-model"
                return

    async def _spawn(
        self, container: Object, places: dict[str, Path], running: Running
    ) -> aio.Process:
        command = [*container["command"], *container["args"]]
        command = [_translated(word, places) for word in command if word not in AS_FIRST]
        program = (
            [sys.executable, "-m", "headrace.cli"] if command[0] == "headrace" else [sys.executable]
        )
        environment = os.environ | {
            one["name"]: _translated(one["value"], places) for one in container["env"]
        }
        with (running.folder / "log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(IP, "netns", "exec", running.node.namespace, *program, *command[1:]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )

    def _mount(self, volume: Object, folder: Path) -> None:
        target = folder / volume["name"]
        target.mkdir()
        if "configMap" in volume:
            told = self.store.objects["ConfigMap", volume["configMap"]["name"]]
            for name, text in told["data"].items():
                (target / name).write_text(text)
        if "secret" in volume:
            (target / "token").write_text(self.settings.token)


def _places(spec: Object, folder: Path) -> dict[str, Path]:
    """Where the paths of the pod's containers are here."""
    mounts = [m for c in (*spec["initContainers"], *spec["containers"]) for m in c["volumeMounts"]]
    return {mount["mountPath"]: folder / mount["name"] for mount in mounts}


def _tell_settings(places: dict[str, Path], running: Running) -> None:
    """The replica's settings, with paths as they are here and the pod's own address."""
    for folder in places.values():
        for path in folder.glob("replica.json"):
            told = json.loads(path.read_bytes())
            told |= {"path": _translated(told["path"], places), "host": running.address}
            path.write_text(json.dumps(told))


def _translated(word: str, places: dict[str, Path]) -> str:
    for mounted, here in places.items():
        if word == mounted or word.startswith(f"{mounted}/"):
            return f"{here}{word.removeprefix(mounted)}"
    return word


def _pre_stop_s(pod: Object) -> float:
    (container,) = pod["spec"]["containers"]
    seconds: int = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    return seconds


def _unready(state: str) -> str:
    return "unready" if state == "ready" else state


async def _is_ready(address: str) -> bool:
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(address, 8000)
            writer.write(b"GET /v2/health/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            status = await reader.readline()
            writer.transport.abort()
    except OSError:
        return False
    return b" 200 " in status


async def _reaches(address: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            _, writer = await asyncio.open_connection(address, port)
    except OSError:
        return False
    writer.transport.abort()
    return True


async def _ip(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(IP, *arguments)
    if await process.wait():
        raise RuntimeError(f"ip {' '.join(arguments)} failed")


async def main(settings: ClusterSettings) -> None:
    """Be the cluster until ended."""
    store = Store()
    kubelets = Kubelets(settings, store)
    server = FakeApiServer(store=store, runtime=kubelets, host="0.0.0.0", port=settings.port)  # noqa: S104  # of a namespace
    async with server:
        await kubelets.watch(server)


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=ClusterSettings)))
