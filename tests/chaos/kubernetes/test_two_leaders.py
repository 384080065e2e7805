"""What callers lose when the leader of two control planes ends, on a real API server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.kubernetes.test_events import PATIENCE_S, System, a_system
from tests.contract.postgres import PASSWORD, NoPostgresError, running_postgres
from tests.e2e.chart.test_install import store  # noqa: F401
from tests.kube import needs
from tests.kube_server.fixtures import kube_lab_of_processes  # noqa: F401
from tests.kube_server.lab import Lab
from tests.kube_server.namespace import wait_until
from tests.kube_server.pods import ProcessPod

pytestmark = [
    pytest.mark.e2e, pytest.mark.kube, pytest.mark.kube_server, needs("helm"),
    # Probes of a kubelet that ends leave sockets behind.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]  # fmt: skip


@pytest.fixture(scope="module")
def system(kube_lab_of_processes: Lab, store: Path) -> Iterator[System]:  # noqa: F811
    """A release with two control planes, whose state is in PostgreSQL."""
    lab, table = kube_lab_of_processes, Path("dist/kube-events-two-leaders.md")
    try:
        with running_postgres(lab.cluster.network.host) as postgres:
            with postgres.connect() as connection:
                connection.execute(b"CREATE DATABASE headrace")
            secret = {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "state"},
                "stringData": {"url": postgres.tcp_url(PASSWORD, "headrace")},
            }
            pair = {"replicas": 2, "state": {"existingSecret": "state"}}
            with a_system(lab, store, table, secret=secret, **pair) as made:
                yield made
    except NoPostgresError as error:
        pytest.skip(str(error))


def holder(system: System) -> str:
    """Return the identity of the process that leads."""
    (lease,) = system.namespace.list("Lease")
    return str(lease["spec"].get("holderIdentity", ""))


@pytest.mark.parametrize("way", ["killed (SIGKILL)", "deleted", "cut off"])
def test_the_leader_of_two(system: System, way: str) -> None:
    wait_until(lambda: len(system.release.pods("control")) == 2, PATIENCE_S)
    wait_until(lambda: len(system.release.leaders()) == 1, PATIENCE_S)
    (before,), its_process = system.release.leaders(), holder(system)
    running = system.lab.kubelet.pods.values()
    pods = {pod.name: pod for pod in running if isinstance(pod, ProcessPod)}
    with system.event(f"leader of two control planes {way}"):
        if way == "deleted":
            system.namespace.delete("Pod", before)
        elif way == "cut off":
            system.lab.run(pods[before].unplug())
        else:
            pods[before].crash()
        wait_until(lambda: holder(system) not in {"", its_process}, PATIENCE_S)
        wait_until(lambda: len(system.release.leaders()) == 1, PATIENCE_S)
    if way == "cut off":
        pods[before].crash()
        system.namespace.delete("Pod", before)
