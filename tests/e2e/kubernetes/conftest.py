"""A control plane on a real API server, with an empty home of its own."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.control.kubernetes import role_rules
from tests.e2e.control.system import System
from tests.e2e.kubernetes.installation import Installation
from tests.kube_server.fixtures import (  # noqa: F401  # for all tests here
    kube_lab,
    kube_lab_of_processes,
    namespace,
)
from tests.kube_server.lab import Lab
from tests.kube_server.namespace import a_namespace


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def lab(
    kube_lab_of_processes: Lab,  # noqa: F811  # the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Installation]:
    kubelet, cluster = kube_lab_of_processes.kubelet, kube_lab_of_processes.cluster
    with (
        tempfile.TemporaryDirectory(prefix="hr-kube-") as directory,
        a_namespace(kube_lab_of_processes) as its_namespace,
    ):
        folder = Path(directory)
        made = Installation(System(folder / "home"), its_namespace, folder)
        made.store.mkdir()
        kubelet.shared.append(made.store)
        cluster.write_kubeconfig(folder / "config", its_namespace.token("control", role_rules()))
        monkeypatch.setenv("KUBECONFIG", str(folder / "config"))
        monkeypatch.setenv("HEADRACE_INTERNAL_TOKEN_FILE", str(made.make_secret()))
        try:
            yield made
        finally:
            made.system.close()
            kubelet.shared.clear()
            kubelet.silent.clear()
