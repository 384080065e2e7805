"""Pods of the fake cluster as real processes of this machine, each at a port of its own."""

import asyncio
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from headrace.control.base.ports import pick_ports
from tests.kubernetes_server import FakeApiServer, Store
from tests.kubernetes_server.controllers import pod_status
from tests.kubernetes_server.fields import Object

_POLL_S = 0.2
_TIMEOUT_S = 0.5


@dataclass(slots=True)
class PodProcess:
    """The replica of one pod; `restarts` counts its processes before this one."""

    process: subprocess.Popen[bytes]
    port: int
    is_ending: bool = False
    restarts: int = 0


@dataclass(slots=True)
class ProcessRuntime:
    """What a kubelet does: fetches the model as the init container would, and runs the replica.

    Of a pool nothing is fetched: its process does that. `artifacts`: where models lie, by digest,
    as a home has them. `token_file`: what the Secret of the control plane's token is mounted as.
    """

    store: Store
    artifacts: Path
    folder: Path
    token_file: Path
    pods: dict[str, PodProcess] = field(default_factory=dict)
    was_ready: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)

    def lose(self, name: str) -> None:
        """The node of the pod of this name is gone, and the pod with it."""
        uid = self.store.get("Pod", name)["metadata"]["uid"]
        self.pods[uid].process.kill()
        self.lost.add(name)

    def start(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        spec = pod["spec"]
        place = self.folder / uid
        place.mkdir()
        for fetcher in spec.get("initContainers", ()):
            digest = fetcher["args"][0].removeprefix("sha256:")
            shutil.copytree(self.artifacts / "sha256" / digest, place / "models")
        (volume,) = [each for each in spec["volumes"] if each["name"] == "settings"]
        told = self.store.get("ConfigMap", volume["configMap"]["name"])["data"]["replica.json"]
        settings = json.loads(told)
        ports = pick_ports("127.0.0.1", {"http": 0, "metrics": 0})
        settings |= {
            "host": "127.0.0.1",
            "port": ports["http"],
            "metrics_port": ports["metrics"],
        }
        # In the pod it would be a volume of its own.
        of_volume = settings.get("artifacts", settings)
        key = "directory" if "artifacts" in settings else "path"
        of_volume[key] = of_volume[key].replace("/models", str(place / "models"), 1)
        (place / "replica.json").write_text(json.dumps(settings))
        self.pods[uid] = PodProcess(process=self._spawn(place), port=ports["http"])

    def _spawn(self, place: Path) -> subprocess.Popen[bytes]:
        with (place / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "headrace.serving", "--settings", place / "replica.json"],
                stdout=log,
                stderr=log,
                env={**os.environ, "HEADRACE_INTERNAL_TOKEN_FILE": str(self.token_file)},
            )

    def crash(self, name: str) -> None:
        """The process of the pod of this name ends, and its container is started again."""
        uid = self.store.get("Pod", name)["metadata"]["uid"]
        found = self.pods[uid]
        found.process.kill()
        found.process.wait()
        found.process = self._spawn(self.folder / uid)
        found.restarts += 1

    def status(self, pod: Object) -> Object:
        found = self.pods[pod["metadata"]["uid"]]
        if pod["metadata"]["name"] in self.lost:
            return {"phase": "Failed", "reason": "NodeLost"}
        if found.process.poll() is not None:
            return pod_status("crashing", ip="127.0.0.1")
        state = "ready" if _is_ready(found.port) else "pending"
        if state == "ready":
            self.was_ready.add(pod["metadata"]["uid"])
        elif pod["metadata"]["uid"] in self.was_ready:
            state = "unready"
        return pod_status(state, ip="127.0.0.1", restarts=found.restarts)

    def ports(self, pod: Object) -> dict[str, int]:
        found = self.pods.get(pod["metadata"]["uid"])
        return {} if found is None else {"http": found.port}

    def stop(self, pod: Object) -> bool:
        found = self.pods[pod["metadata"]["uid"]]
        if not found.is_ending:
            found.is_ending = True
            found.process.send_signal(signal.SIGTERM)
        return found.process.poll() is not None

    def end_all(self) -> None:
        for pod in self.pods.values():
            pod.process.kill()
            pod.process.wait()


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextmanager
def in_a_thread(server: FakeApiServer) -> Iterator[FakeApiServer]:
    """The server in a loop of its own, so that tests may use blocking clients."""
    loop = asyncio.new_event_loop()
    started = threading.Event()
    stopping = asyncio.Event()

    async def serve() -> None:
        async with server:
            started.set()
            while not stopping.is_set():
                server.poke()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_S):
                        await stopping.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(30.0)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(30.0)
        loop.close()
