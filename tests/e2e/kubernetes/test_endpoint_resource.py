"""The resource `Endpoint` on a real API server, by kubectl and a whole control plane."""

import builtins
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headrace.cli import main
from headrace.control.base.settings import ClusterSettings
from headrace.control.kubernetes import role_rules
from headrace.core import SystemClock
from headrace.deploy.endpoint_resource import endpoint_definition
from headrace.registry import Registry, open_shared
from headrace.runtimes import inspect_model
from headrace.testing.models import mlp
from tests.e2e.control.system import System
from tests.kube_server.namespace import TestNamespace, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.kube_server, pytest.mark.slow]
_PATIENCE = "--timeout=60s"


@dataclass(slots=True)
class Cluster:
    """A namespace with a control plane, and kubectl with its administrator's rights."""

    namespace: TestNamespace
    system: System

    def kubectl(self, *words: str, text: str = "", code: int = 0) -> str:
        """Return what kubectl prints, errors included."""
        cluster = self.namespace.lab.cluster
        command = [str(cluster.programs / "kubectl"), "--kubeconfig", str(cluster.kubeconfig)]
        done = subprocess.run(
            [*command, "-n", self.namespace.name, *words],
            input=text, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, (words, done.stdout, done.stderr, self.system.log_text())
        return done.stdout + done.stderr

    def apply(self, name: str = "digits", *, code: int = 0, **spec: Any) -> str:
        head = {"apiVersion": "headrace.dev/v1alpha1", "kind": "Endpoint"}
        text = json.dumps({**head, "metadata": {"name": name}, "spec": spec})
        return self.kubectl("apply", "-f", "-", text=text, code=code)

    def get(self, name: str = "digits") -> Any:
        return json.loads(self.kubectl("get", "hrep", name, "-o", "json"))

    def list(self) -> builtins.list[Any]:
        items: builtins.list[Any] = json.loads(self.kubectl("get", "hrep", "-o", "json"))["items"]
        return items

    def condition(self, kind: str, name: str = "digits") -> Any:
        rows = self.get(name).get("status", {}).get("conditions", ())
        return next((row for row in rows if row["type"] == kind), {})

    def models(self, name: str = "digits") -> builtins.list[str]:
        versions = self.get(name).get("status", {}).get("versions", ())
        return [row["model"] for row in versions if row["weight"]]

    def wait(self, condition: str, name: str = "digits") -> None:
        self.kubectl("wait", f"--for={condition}", f"hrep/{name}", _PATIENCE)

    def start(self, **settings: Any) -> None:
        cluster = ClusterSettings(
            namespace=self.namespace.name,
            identity="control-a",
            image_registry="registry.test",
            lease_s=5.0,
        )
        self.system.start(
            driver="kubernetes",
            cluster=cluster,
            artifacts=f"file://{self.system.home.parent / 'store'}",
            first_request=False,
            **settings,
        )


@pytest.fixture
def cluster(namespace: TestNamespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    definition = endpoint_definition()
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    namespace.http.post(path, json=definition)  # it may be there
    wait_until(lambda: namespace.http.get(_LIST.format(namespace.name)).is_success)
    with tempfile.TemporaryDirectory(prefix="hr-resource-") as directory:
        folder = Path(directory)
        token = namespace.token("control", role_rules())
        kubeconfig = folder / "kubeconfig"
        namespace.lab.cluster.write_kubeconfig(kubeconfig, token, namespace.name)
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        shared = open_shared(f"file://{folder / 'store'}", clock=SystemClock())
        registry = Registry(folder / "models", inspect_model, shared=shared)
        for seed in (1, 2):
            model = folder / f"{seed}.onnx"
            model.write_bytes(mlp(seed=seed))
            registry.push("digits", model)
        system = System(folder / "home")
        try:
            yield Cluster(namespace, system)
        finally:
            system.close()
            for item in namespace.http.get(_LIST.format(namespace.name)).json()["items"]:
                url = f"{_LIST.format(namespace.name)}/{item['metadata']['name']}"
                namespace.http.patch(
                    url,
                    json={"metadata": {"finalizers": None}},
                    headers={"content-type": "application/merge-patch+json"},
                )


_LIST = "/apis/headrace.dev/v1alpha1/namespaces/{}/endpoints"


def test_a_resource_lives_from_its_creation_to_its_deletion(cluster: Cluster) -> None:
    cluster.start()
    cluster.apply(model="digits:1", replicas=2)
    cluster.wait("condition=Ready")
    cluster.wait("jsonpath={.status.readyReplicas}=2")
    columns = cluster.kubectl("get", "hrep").split()
    assert columns[:6] == ["NAME", "READY", "VERSIONS", "REPLICAS", "AVAILABLE", "URL"]
    assert columns[7:13] == ["digits", "True", "1", "(100%)", "2", "2"]

    cluster.kubectl("scale", "hrep/digits", "--replicas=3")
    cluster.wait("jsonpath={.status.readyReplicas}=3")
    status = cluster.get()["status"]
    pods = cluster.namespace.list("Pod", status["selector"])
    assert len(pods) == status["replicas"] == 3
    events = cluster.kubectl("get", "events", "--field-selector=involvedObject.kind=Endpoint")
    assert "Changed" in events

    cluster.kubectl("delete", "hrep/digits", _PATIENCE)
    assert cluster.namespace.names("Deployment") == []
    assert cluster.system.status()["endpoints"] == []
    assert cluster.system.end_control() == 0


def test_a_wrong_resource_is_a_condition_on_itself(cluster: Cluster) -> None:
    endpoints = [{"name": "a", "model": "digits:1"}, {"name": "z", "model": "fraud"}]
    cluster.start(spec={"version": 1, "endpoints": endpoints})
    cluster.apply("digits", model="digits:1")
    cluster.wait("condition=Ready")

    cluster.apply("digits", model="fraud")
    cluster.apply("b", model="digits:2")
    cluster.apply("a", model="digits:2")
    cluster.apply("secret", model="/etc/passwd")
    cluster.wait("condition=Degraded")
    cluster.wait("condition=Ready", "b")
    cluster.wait("condition=Degraded", "a")
    cluster.wait("condition=Degraded", "secret")

    ready = cluster.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "InvalidSpec")
    assert "the registry holds no model 'fraud'" in ready["message"]
    assert cluster.get()["status"]["observedGeneration"] == 2
    assert cluster.models() == ["digits:1"]
    assert cluster.condition("Ready", "a")["reason"] == "Conflict"
    assert cluster.condition("Ready", "secret")["reason"] == "NotAllowed"
    events = cluster.kubectl("get", "events", "--field-selector=involvedObject.name=digits")
    assert "Warning" in events
    status = cluster.system.status()
    assert status["endpoints"][0]["name"] == "a"
    assert "fraud" in next(one["message"] for one in status["faults"] if one["name"] == "z")
    cluster.apply("digits", model="digits:2")
    cluster.wait("condition=Ready")
    assert cluster.models() == ["digits:2"]
    cluster.kubectl("delete", "hrep/a", _PATIENCE)
    assert [row["name"] for row in cluster.system.status()["endpoints"]] == ["a", "digits", "b"]


def test_undo_outlasts_restarts_and_a_deletion_meanwhile_is_seen(cluster: Cluster) -> None:
    cluster.start()
    cluster.apply("digits", model="digits:1")
    cluster.apply("other", model="digits:1")
    cluster.wait("condition=Ready")
    cluster.wait("condition=Ready", "other")
    cluster.apply("digits", model="digits:2")
    wait_until(lambda: cluster.models() == ["digits:2"])
    assert cluster.system.post("/api/v1/endpoints/digits/undo", {})[0] == 200
    cluster.wait("condition=RolledBack")
    assert "digits:1 runs, and the resource names digits:2" in str(cluster.condition("RolledBack"))
    assert cluster.system.end_control() == 0

    cluster.kubectl("delete", "hrep/other", "--wait=false")
    cluster.start()
    wait_until(lambda: [item["metadata"]["name"] for item in cluster.list()] == ["digits"])
    cluster.wait("condition=Ready")
    assert cluster.models() == ["digits:1"]
    assert cluster.condition("RolledBack")["reason"] == "Undone"
    assert len(cluster.system.status()["endpoints"]) == 1

    assert cluster.system.end_control() == 0
    release = ["control", "--driver", "kubernetes", "--namespace", cluster.namespace.name]
    assert main([*release, "--release"]) == 0
    cluster.kubectl("delete", "hrep/digits", _PATIENCE)
    assert cluster.list() == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"replicas": 2}, "needs one of model, versions and upstream"),
        ({"model": "a", "versions": []}, "spec.versions"),
        (
            {"versions": [{"model": "a", "weight": 1}, {"model": "b", "weight": 2}]},
            "weights must sum to 100",
        ),
        ({"versions": [{"model": "a", "weight": 100}], "replicas": 2}, "replicas is only allowed"),
        (
            {"model": "a", "kubernetes": {"replica_env": [{"name": "A", "secret": "s"}]}},
            "secret and key must be set together",
        ),
        ({"model": "a", "replcas": 2}, 'unknown field "spec.replcas"'),
        ({"model": "a", "replicas": 0}, "greater than or equal to 1"),
    ],
)
def test_the_server_refuses_what_contradicts_itself(
    cluster: Cluster, spec: dict[str, Any], message: str
) -> None:
    assert message in cluster.apply("digits", code=1, **spec)


def test_kubectl_explains_every_field(cluster: Cluster) -> None:
    text = cluster.kubectl("explain", "hrep.spec", "--recursive")
    assert "replica_env" in text
    assert "strategy" in text
