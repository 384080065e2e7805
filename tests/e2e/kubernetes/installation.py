"""Control plane as a process, on a real API server whose pods are processes."""

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.control.base.settings import ClusterSettings
from headrace.testing.models import mlp
from tests.e2e.control.system import System
from tests.kube_server.kubelet import Kubelet
from tests.kube_server.namespace import Object, TestNamespace
from tests.kube_server.pods import ProcessPod

_SECRET = "headrace-internal"  # noqa: S105  # its name


@dataclass(slots=True)
class Installation:
    """A control plane, and the namespace in which it runs replicas."""

    system: System
    namespace: TestNamespace
    folder: Path

    def make_secret(self) -> Path:
        """Make the Secret of the control plane's token; return the file that has it here."""
        token = self.folder / "token"
        token.write_text(secrets.token_urlsafe())
        metadata = {"name": _SECRET}
        data = {"stringData": {"token": token.read_text()}}
        self.namespace.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata} | data)
        return token

    def model(self, seed: int) -> str:
        path = self.folder / f"model-{seed}.onnx"
        path.write_bytes(mlp(seed=seed))
        return str(path)

    def endpoint(self, seed: int = 1, **more: Any) -> dict[str, Any]:
        return {"name": "digits", "model": self.model(seed), **more}

    def cluster(self, identity: str = "control-a", *, has_token: bool = True) -> ClusterSettings:
        return ClusterSettings(
            namespace=self.namespace.name,
            identity=identity,
            internal_secret=_SECRET if has_token else "",
            image_registry="registry.test",
        )

    def start(self, *endpoints: dict[str, Any], has_token: bool = True, **settings: Any) -> None:
        cluster = self.cluster(has_token=has_token)
        self.system.start(
            *endpoints, driver="kubernetes", cluster=cluster, artifacts=self.store_url, **settings
        )

    def apply(self, spec: dict[str, Any]) -> None:
        code, answer = self.system.post("/api/v1/apply", spec)
        assert code == 200, answer

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def store_url(self) -> str:
        return f"file://{self.store}"

    @property
    def kubelet(self) -> Kubelet:
        return self.namespace.lab.kubelet

    def generations(self) -> dict[str, int]:
        """How often each Deployment was changed."""
        found = [one["metadata"] for one in self.namespace.list("Deployment")]
        return {one["name"]: one["generation"] for one in found}

    def live_pods(self) -> list[Object]:
        """The pods that were not told to end."""
        pods = self.namespace.list("Pod")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def pods(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.live_pods()]

    def process(self, name: str) -> ProcessPod:
        """What the kubelet runs of a pod."""
        pod = self.kubelet.pods[self.namespace.get("Pod", name)["metadata"]["uid"]]
        assert isinstance(pod, ProcessPod)
        return pod

    def lose_node_of(self, name: str) -> None:
        """Lose the node of a pod, and all that runs on it."""
        node = self.namespace.get("Pod", name)["spec"]["nodeName"]
        self.namespace.lab.run(self.kubelet.lose(node))


def until(holds: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(OSError):
            if holds():
                return
        time.sleep(0.1)
    raise AssertionError("it never came to that")
