"""Helm installs, upgrades and removes the chart on a real API server, whose pods are processes."""

import base64
import contextlib
import json
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx2
import pytest

from headrace.cli import main
from headrace.testing.models import mlp
from tests.contract.postgres import PASSWORD, NoPostgresError, running_postgres
from tests.e2e.chart.sample_values import Values, merged
from tests.e2e.control.system import ROW
from tests.kube import CHART, REGISTRY, needs, run_program
from tests.kube_server.fixtures import kube_lab_of_processes  # noqa: F401
from tests.kube_server.lab import Lab
from tests.kube_server.namespace import Object, TestNamespace, a_namespace, wait_until
from tests.kube_server.pods import ProcessPod

pytestmark = [
    pytest.mark.e2e, pytest.mark.kube, pytest.mark.kube_server, pytest.mark.long, needs("helm"),
    # A probe whose handshake takes too long is cancelled, which leaves its socket open.
    pytest.mark.filterwarnings(
        "ignore:.*(_SelectorTransport|socket fd):pytest.PytestUnraisableExceptionWarning"
    ),
]  # fmt: skip

WITHIN_S: Final = 300
SMALL: Final = {"resources": {"requests": {"cpu": "10m", "memory": "64Mi"}}}


def endpoint(name: str = "digits", model: str = "digits:1", **more: object) -> Values:
    return {"name": name, "model": model, "access": "public", **more}


@dataclass(slots=True)
class Release:
    """The release `headrace` in a namespace, with two models in its store."""

    namespace: TestNamespace
    values: Values
    said: list[str] = field(default_factory=list)

    def helm(self, *words: str, values: Values | None = None) -> int:
        """Run helm; return its exit status."""
        lab = self.namespace.lab
        told = [] if values is None else ["--values", "-"]
        status, output, said = run_program(
            "helm", *words, *told, "--kubeconfig", lab.cluster.kubeconfig,
            "--namespace", self.namespace.name,
            text=None if values is None else json.dumps(merged(self.values, values)),
            within_s=WITHIN_S + 60,
        )  # fmt: skip
        self.said += [output, said]
        return status

    def upgrade(self, values: Values) -> None:
        """`helm upgrade --install`, which waits, and would roll back."""
        status = self.helm(
            "upgrade", "--install", "headrace", str(CHART), "--wait", "--rollback-on-failure",
            "--timeout", f"{WITHIN_S}s", values=values,
        )  # fmt: skip
        assert status == 0, (self.said[-1], self.logs())

    def logs(self) -> dict[str, str]:
        """The last lines of each pod, by name."""
        pods = list(self.namespace.lab.kubelet.pods.values())
        return {
            pod.name: pod.log(container.spec["name"])[-1000:]
            for pod in pods
            if isinstance(pod, ProcessPod)
            for container in pod.containers
        }

    def pods(self, component: str, *more: str) -> list[Object]:
        labels = [f"app.kubernetes.io/component={component}", *more]
        pods = self.namespace.list("Pod", ",".join(labels))
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def leaders(self) -> list[str]:
        return [one["metadata"]["name"] for one in self.pods("control", "headrace.dev/role=leader")]

    def behind(self, service: str) -> list[str]:
        """The pods that a Service reaches."""
        slices = self.namespace.list("EndpointSlice", f"kubernetes.io/service-name={service}")
        return [
            one["targetRef"]["name"]
            for part in slices
            for one in part["endpoints"] or ()
            if one["conditions"]["ready"]
        ]

    def infer(self, name: str = "digits") -> str:
        """The version that answers each gateway; another text if they differ or none does."""
        answers = set()
        for pod in self.pods("gateway"):
            try:
                answer = httpx2.post(
                    f"http://{pod['status']['podIP']}:8000/v2/models/{name}/infer", json=ROW,
                    trust_env=False, timeout=10.0,
                )  # fmt: skip
            except httpx2.HTTPError as error:
                answers.add(type(error).__name__)
            else:
                told = answer.json()
                answers.add(str(told.get("model_version", answer.text)))
        return " ".join(sorted(answers))

    def wait_answer(self, version: str) -> None:
        """Return once this version answers every gateway; helm does not wait for models."""
        wait_until(lambda: self.infer() == version, 180.0)

    def wait_left(self, expected: set[str]) -> None:
        """Return once nothing but this is there."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: self.left() == expected, 120.0)
        assert self.left() == expected

    def left(self) -> set[str]:
        """What is there, but what each namespace has, and events."""
        kinds = (
            "Deployment", "Service", "ConfigMap", "Secret", "ServiceAccount", "Role", "RoleBinding",
            "PodDisruptionBudget", "Lease", "Pod", "PersistentVolumeClaim", "EndpointSlice",
            "ReplicaSet",
        )  # fmt: skip
        paths = {"PersistentVolumeClaim": "v1", "Lease": "coordination.k8s.io/v1"}
        found = set()
        for kind in kinds:
            version = paths.get(kind, "")
            path = (
                self.namespace.path(kind, version=version) if version else self.namespace.path(kind)
            )
            items = self.namespace.call("GET", path).json()["items"]
            found |= {f"{kind}/{one['metadata']['name']}" for one in items}
        return found - {"ConfigMap/kube-root-ca.crt", "ServiceAccount/default"}


@pytest.fixture(scope="module")
def store() -> Iterator[Path]:
    """An artifact store that pods can read, with two versions of a model."""
    folder = Path("/var/tmp") / f"hr-store-{secrets.token_hex(4)}"  # noqa: S108  # /tmp is a pod's own
    for seed in (1, 2):
        model = folder / f"digits-{seed}.onnx"
        model.parent.mkdir(exist_ok=True)
        model.write_bytes(mlp(seed=seed))
        url = f"file://{folder}/store"
        home = ["--home", str(folder / "home"), "--artifacts", url]
        assert main(["models", "push", "digits", str(model), *home]) == 0
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    yield folder / "store"
    shutil.rmtree(folder)


@pytest.fixture
def release(kube_lab_of_processes: Lab, store: Path) -> Iterator[Release]:  # noqa: F811
    with a_namespace(kube_lab_of_processes) as namespace:
        values: Values = {
            "image": {"registry": REGISTRY},
            "artifacts": {"url": f"file://{store}"},
            "spec": {
                "version": 1,
                "endpoints": [endpoint(replicas=2)],
                "kubernetes": {"resources": {"cpu": "10m", "memory": "256Mi"}},
            },
            "control": SMALL,
            "gateway": {**SMALL, "drainTimeoutSeconds": 2},
        }
        yield Release(namespace, values)


def make_volume(namespace: TestNamespace) -> None:
    """Make a volume for the claim of a control plane, as no storage class does."""
    name = f"home-of-{namespace.name}"
    spec = {
        "capacity": {"storage": "5Gi"},
        "accessModes": ["ReadWriteOnce"],
        "hostPath": {"path": "/nowhere"},
        "claimRef": {"namespace": namespace.name, "name": "headrace-control"},
    }
    new = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}
    namespace.call("POST", "/api/v1/persistentvolumes", json=new)


def test_one_control_plane_is_installed_tested_upgraded_with_a_mistake_and_removed(
    release: Release,
) -> None:
    make_volume(release.namespace)
    release.upgrade({})
    release.wait_answer("1")
    assert release.helm("test", "headrace", "--timeout", "120s") == 0, release.said[-2:]
    (control,) = release.pods("control")
    assert release.behind("headrace-control") == [control["metadata"]["name"]]

    wrong = endpoint("wrong", "nobody:7")
    release.upgrade({"spec": {"endpoints": [endpoint(model="digits:2", replicas=2), wrong]}})
    release.wait_answer("2")
    assert [pod["metadata"]["uid"] for pod in release.pods("control")] == [
        control["metadata"]["uid"]
    ]
    assert release.helm("test", "headrace", "--timeout", "20s") != 0, "an endpoint is not ready"

    assert release.helm("uninstall", "headrace", "--wait", "--timeout", "120s") == 0
    # Helm keeps the pod of a failed test, for its log.
    release.wait_left({"PersistentVolumeClaim/headrace-control", "Pod/headrace-test"})


def test_two_control_planes_are_installed_upgraded_and_removed(release: Release) -> None:
    host = release.namespace.lab.cluster.network.host
    try:
        with running_postgres(host) as postgres:
            with postgres.connect() as connection:
                connection.execute(b"CREATE DATABASE headrace")
            url = postgres.tcp_url(PASSWORD, "headrace")
            _two_control_planes(release, url)
    except NoPostgresError as error:
        pytest.skip(str(error))


def _two_control_planes(release: Release, url: str) -> None:
    namespace = release.namespace
    secret = {"url": base64.b64encode(url.encode()).decode()}
    head = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "state"}}
    namespace.create({**head, "data": secret})
    pair: Values = {"control": {"replicas": 2, "state": {"existingSecret": "state"}}}

    release.upgrade(pair)
    release.wait_answer("1")
    assert len(release.pods("control")) == 2
    (leader,) = release.leaders()
    assert release.behind("headrace-control") == [leader]

    before = {pod["metadata"]["name"] for pod in release.pods("control")}
    release.upgrade(merged(pair, {"control": {"logLevel": "debug"}}))
    assert before.isdisjoint(pod["metadata"]["name"] for pod in release.pods("control"))
    wait_until(lambda: len(release.leaders()) == 1)
    wait_until(lambda: release.behind("headrace-control") == release.leaders())
    assert release.infer() == "1"

    # A gateway that begins while no control plane answers.
    copied = "bundle.json.gz"
    wait_until(lambda: copied in namespace.get("Secret", "headrace-gateways").get("data", {}))
    namespace.patch("Deployment", "headrace-control", {"spec": {"replicas": 0}})
    wait_until(lambda: not namespace.list("Pod", "app.kubernetes.io/component=control"), 120.0)
    (gone, *_) = release.pods("gateway")
    namespace.delete("Pod", gone["metadata"]["name"])
    wait_until(lambda: len(release.behind("headrace-gateway")) == 2, 120.0)
    assert release.infer() == "1"

    assert release.helm("uninstall", "headrace", "--wait", "--timeout", "120s") == 0
    release.wait_left({"Secret/state"})
