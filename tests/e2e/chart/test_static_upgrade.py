"""Static mode on a real API server: a new version replaces the old one without an outage."""

import json
import subprocess
from typing import Any

import pytest

from tests.e2e.chart.sample_values import OTHER_DIGEST, a_version
from tests.kube import CHART, needs, program
from tests.kube_server.fixtures import kube_lab, namespace  # noqa: F401  # fixtures
from tests.kube_server.namespace import TestNamespace

pytestmark = [pytest.mark.e2e, pytest.mark.kube, pytest.mark.kube_server, needs("helm")]
_READY_AFTER_S = 2.0
"""As if a model took this long to load."""


def ready(namespace: TestNamespace) -> int:  # noqa: F811  # the fixture
    slices = namespace.list("EndpointSlice")
    endpoints = [e for one in slices for e in one.get("endpoints") or ()]
    return sum(bool(endpoint["conditions"].get("ready")) for endpoint in endpoints)


def upgrade(namespace: TestNamespace, *versions: dict[str, Any]) -> list[int]:  # noqa: F811  # the fixture
    """Run `helm upgrade`; return the numbers of ready pods while it ran."""
    values = {
        "artifacts": {"url": "s3://models"},
        "image": {"registry": "registry.test"},
        "workloads": {"mode": "static", "versions": versions},
        "tests": {"enabled": False},
    }
    kubeconfig = namespace.lab.cluster.kubeconfig
    command = [
        *(program("helm"), "upgrade", "--install", "headrace", CHART, "--kubeconfig", kubeconfig),
        *("--namespace", namespace.name, "--wait", "--timeout", "120s", "--values", "-"),
    ]
    counts = []
    with subprocess.Popen(
        [*map(str, command)], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as helm:  # ours
        assert helm.stdin is not None
        assert helm.stderr is not None
        helm.stdin.write(json.dumps(values).encode())
        helm.stdin.close()
        while helm.poll() is None:
            counts.append(ready(namespace))
        assert helm.returncode == 0, helm.stderr.read().decode()
    return counts


def test_one_upgrade_to_a_new_version_never_has_fewer_ready_pods(
    namespace: TestNamespace,  # noqa: F811  # the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(namespace.lab.kubelet, "delay_s", _READY_AFTER_S)
    upgrade(namespace, a_version())
    deployments = namespace.names("Deployment")
    newer = a_version(version="2", arm=1, digest=OTHER_DIGEST)

    counts = upgrade(namespace, newer)

    assert min(counts) >= 2
    assert namespace.names("Deployment") == deployments
    (deployment,) = namespace.list("Deployment")
    assert deployment["status"]["updatedReplicas"] == deployment["status"]["readyReplicas"] == 2
    labels = {pod["metadata"]["labels"]["headrace.dev/version"] for pod in pods(namespace)}
    assert labels == {"2"}
    assert len(namespace.names("ConfigMap")) == 1


def pods(namespace: TestNamespace) -> list[dict[str, Any]]:  # noqa: F811  # the fixture
    """The pods that are not terminating."""
    return [p for p in namespace.list("Pod") if "deletionTimestamp" not in p["metadata"]]
