"""A control plane as a process, on a fake cluster whose pods are processes of this machine."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.control.base.settings import ClusterSettings
from headrace.testing.models import mlp
from tests.e2e.control.system import System
from tests.e2e.kubernetes.pods_here import ProcessRuntime
from tests.kubernetes_server import FakeApiServer


@dataclass(slots=True)
class Lab:
    """A control plane, and the cluster that it runs replicas on."""

    system: System
    server: FakeApiServer
    runtime: ProcessRuntime
    folder: Path

    def model(self, seed: int) -> str:
        path = self.folder / f"model-{seed}.onnx"
        path.write_bytes(mlp(seed=seed))
        return str(path)

    def endpoint(self, seed: int = 1, **more: Any) -> dict[str, Any]:
        return {"name": "digits", "model": self.model(seed), **more}

    def cluster(self, identity: str = "control-a", *, has_token: bool = True) -> ClusterSettings:
        return ClusterSettings(
            namespace="models",
            url=self.server.url,
            identity=identity,
            internal_secret="headrace-internal" if has_token else "",
            image_registry="registry.test",
        )

    def start(self, *endpoints: dict[str, Any], has_token: bool = True, **settings: Any) -> None:
        cluster = self.cluster(has_token=has_token)
        self.system.start(
            *endpoints, driver="kubernetes", cluster=cluster, artifacts=self.store_url, **settings
        )

    @property
    def store_url(self) -> str:
        return f"file://{self.folder / 'store'}"

    def generations(self) -> dict[str, int]:
        """How often each Deployment was changed."""
        found = [one["metadata"] for one in self.server.store.of_kind("Deployment")]
        return {one["name"]: one["generation"] for one in found}

    def pods(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.server.store.of_kind("Pod")]


def until(holds: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(OSError):
            if holds():
                return
        time.sleep(0.1)
    raise AssertionError("it never came to that")
