"""What callers lose at each event in the life of a cluster, on a real API server.

The chart is installed by Helm; control plane, gateways and replicas are processes. `make test
SUITE=kube-events` prints a table: a request is lost if it has no answer of status 200 in 5 seconds.
"""

import contextlib
import os
import ssl
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest

from tests.chaos.kubernetes.load import HEADER, Load, Row, running
from tests.e2e.chart.sample_values import Values
from tests.e2e.chart.test_install import SMALL, Release, endpoint, make_volume, store  # noqa: F401
from tests.kube import REGISTRY, needs, program
from tests.kube_server.fixtures import kube_lab_of_processes  # noqa: F401
from tests.kube_server.lab import Lab
from tests.kube_server.namespace import Object, TestNamespace, a_namespace, wait_until

pytestmark = [
    pytest.mark.e2e, pytest.mark.kube, pytest.mark.kube_server, needs("helm"),
    # Probes of a kubelet that ends leave sockets behind.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]  # fmt: skip

RATE: Final = float(os.environ.get("KUBE_EVENTS_RATE", "50"))
QUIET_S: Final = 3.0
SETTLED_S: Final = 5.0
PATIENCE_S: Final = 150.0
AWAY_S: Final = 60.0
WEBHOOK_S: Final = 30.0
OUTAGE_S: Final = 10.0
"""Longest outage after etcd is put back; 6 s were measured."""
CANARY: Final = {
    "strategy": "canary",
    "steps": [{"weight": 10, "pause_s": 4}, {"weight": 50, "pause_s": 4}],
    # Replicas that share two cores with the cluster have no latency to compare, and the versions
    # are random networks.
    "metrics": {"latency": None, "predictions": None},
}


@dataclass(slots=True)
class System:
    """An installed release under load, and a row for each event."""

    release: Release
    load: Load
    rows: list[Row] = field(default_factory=list)

    @property
    def namespace(self) -> TestNamespace:
        """The release's namespace."""
        return self.release.namespace

    @property
    def lab(self) -> Lab:
        """The cluster."""
        return self.namespace.lab

    @contextlib.contextmanager
    def event(self, name: str, *, allowed: int = 0) -> Iterator[None]:
        """Count what is lost while the block runs, and until some time after it."""
        time.sleep(QUIET_S)
        began = time.monotonic()
        yield
        took_s = time.monotonic() - began
        time.sleep(SETTLED_S)
        until = time.monotonic()
        wait_until(lambda: self.load.oldest_in_flight() > until, PATIENCE_S)
        outcomes = self.load.between(began - QUIET_S, until)
        row = Row(event=name, outcomes=outcomes, allowed=allowed, seconds=took_s)
        self.rows.append(row)
        _say(row.text())
        examples = "\n".join(
            f"{one.sent_at - began:+.2f} s {one.gateway} {one.error}" for one in row.lost[:20]
        )
        assert len(row.lost) <= allowed, f"{row.text()}\n{examples}"

    def spec(self, *endpoints: Values, **kubernetes: object) -> None:
        """Change the spec, as a user does: `helm upgrade`."""
        block = {"resources": {"cpu": "10m", "memory": "256Mi"}, **kubernetes}
        self.release.upgrade({"spec": {"endpoints": list(endpoints), "kubernetes": block}})

    def replicas(self, version: str = "") -> list[Object]:
        """The pods that are ready, of one version or of all."""
        more = [f"headrace.dev/version={version}"] if version else []
        pods = self.release.pods("replica", *more)
        return [pod for pod in pods if _is_ready(pod)]

    def wait_routed(self, version: str, count: int) -> None:
        """Wait until only `version` answers, from so many pods."""
        try:
            wait_until(
                lambda: (
                    len(self.replicas()) == len(self.replicas(version)) == count
                    and len(self.release.pods("replica")) == count
                    and self.last_versions() == {version}
                ),
                PATIENCE_S,
            )
        except AssertionError:
            pods = [
                (pod["metadata"]["name"], pod["status"].get("phase"), _is_ready(pod))
                for pod in self.release.pods("replica")
            ]
            control = "".join(
                text for name, text in self.release.logs().items() if "control" in name
            )
            pytest.fail(
                f"not {count} of version {version}: {pods}, {self.last_versions()} answer\n"
                + control[-6000:]
            )

    def last_versions(self) -> set[str]:
        """Return the versions that answered in the last two seconds."""
        now = time.monotonic()
        return {one.version for one in self.load.between(now - 2.0, now) if one.version}

    def failed_lately(self) -> bool:
        """Whether a request of the last three seconds is lost, or none was answered."""
        now = time.monotonic()
        outcomes = self.load.between(now - 3.0, now)
        return not outcomes or any(one.error for one in outcomes)

    def api(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  # JSON
        """Call the management API of the leader."""
        (leader,) = self.release.pods("control", "headrace.dev/role=leader")
        ca = self.namespace.get("Secret", "headrace-control-tls")["data"]["ca.crt"]
        home = self.lab.kubelet.folder / "claims" / f"{self.namespace.name}-headrace-control"
        token = (home / "admin-token").read_text().strip()
        name = f"headrace-control.{self.namespace.name}.svc"
        context = ssl.create_default_context(cadata=b64decode(ca).decode())
        with httpx2.Client(verify=context, trust_env=False, timeout=30.0) as http:
            answer = http.request(
                method, f"https://{leader['status']['podIP']}:8080{path}", json=body,
                headers={"authorization": f"Bearer {token}", "host": name},
                extensions={"sni_hostname": name},
            )  # fmt: skip
        assert answer.is_success, answer.text
        return answer.json()

    def kubectl(self, *words: str) -> None:
        """Run kubectl."""
        config = str(self.lab.cluster.kubeconfig)
        command = [str(program("kubectl")), "--kubeconfig", config, *words]
        subprocess.run(  # noqa: S603  # our own kubectl
            command, check=True, timeout=PATIENCE_S, capture_output=True
        )


def _say(text: str) -> None:
    sys.stdout.write(f"\n{text}\n")
    sys.stdout.flush()


def _is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


@contextlib.contextmanager
def a_system(
    lab: Lab,
    store: Path,  # noqa: F811
    table: Path,
    *,
    secret: Object | None = None,
    **control: object,
) -> Iterator[System]:
    """A release with one endpoint of two replicas, under load; `table` gets its rows.

    Args:
        secret: The URL of the database, if the state is not in a volume.
        control: More values of the control plane.
    """
    with a_namespace(lab, pod_security="restricted") as namespace:
        values: Values = {
            "image": {"registry": REGISTRY},
            "artifacts": {"url": f"file://{store}"},
            "spec": {"version": 1, "endpoints": [endpoint(replicas=2)]},
            "control": {**SMALL, **control},
            "gateway": {**SMALL, "drainTimeoutSeconds": 5},
        }
        release = Release(namespace, values)
        if secret is None:
            make_volume(namespace)
        else:
            namespace.create(secret)

        def gateways() -> list[str]:
            slices = namespace.list("EndpointSlice", "kubernetes.io/service-name=headrace-gateway")
            return [
                one["addresses"][0]
                for part in slices
                for one in part["endpoints"] or ()
                if one["conditions"]["ready"]
            ]

        load = Load(gateways, "/v2/models/digits/infer", RATE)
        system = System(release, load)
        system.spec(endpoint(replicas=2))
        wait_until(lambda: release.infer() == "1", PATIENCE_S)
        with running(load):
            yield system
        table.parent.mkdir(exist_ok=True)
        table.write_text("\n".join([HEADER, *(row.text() for row in system.rows)]) + "\n")
        _say(table.read_text())
        release.helm("uninstall", "headrace", "--wait", "--timeout", "120s")


@pytest.fixture(scope="module")
def system(kube_lab_of_processes: Lab, store: Path) -> Iterator[System]:  # noqa: F811
    with a_system(kube_lab_of_processes, store, Path("dist/kube-events.md")) as made:
        yield made


@pytest.fixture(autouse=True)
def settled(system: System) -> Iterator[None]:
    """Begin and end each event with two replicas of version 1."""
    system.spec(endpoint(replicas=2))
    system.wait_routed("1", 2)
    yield
    for node in list(system.lab.kubelet.silent):
        system.lab.kubelet.silent.discard(node)


def test_an_upgrade_of_the_release(system: System) -> None:
    with system.event("helm upgrade: new pods of control plane and gateways"):
        system.release.upgrade(
            {
                "control": {"podAnnotations": {"example.com/turn": "2"}},
                "gateway": {"podAnnotations": {"example.com/turn": "2"}},
            }
        )
    system.release.values["control"] = {**SMALL, "podAnnotations": {"example.com/turn": "2"}}
    system.release.values["gateway"] = {
        **SMALL, "drainTimeoutSeconds": 5, "podAnnotations": {"example.com/turn": "2"},
    }  # fmt: skip


def test_scaling(system: System) -> None:
    with system.event("scale 2 to 1"):
        system.spec(endpoint(replicas=1))
        system.wait_routed("1", 1)
    with system.event("scale 1 to 4"):
        system.spec(endpoint(replicas=4))
        system.wait_routed("1", 4)
    with system.event("scale 4 to 1"):
        system.spec(endpoint(replicas=1))
        system.wait_routed("1", 1)


def test_a_canary_that_is_promoted(system: System) -> None:
    with system.event("canary 10 %, 50 %, promoted"):
        system.spec(endpoint(model="digits:2", replicas=2, rollout=CANARY))
        system.wait_routed("2", 2)


def test_a_canary_that_is_rolled_back(system: System) -> None:
    with system.event("canary rolled back"):
        system.spec(endpoint(model="digits:2", replicas=2, rollout=CANARY))
        wait_until(lambda: "2" in system.last_versions(), PATIENCE_S)
        system.api("POST", "/api/v1/endpoints/digits/rollout/rollback", {"reason": "test"})
        system.wait_routed("1", 2)


def test_a_new_version_under_a_horizontal_pod_autoscaler(system: System) -> None:
    scale = {"target_in_flight": 4.0, "min_replicas": 2, "max_replicas": 12}
    system.spec(endpoint(autoscale=scale), autoscaler="hpa")
    system.wait_routed("1", 2)
    wait_until(lambda: system.namespace.names("HorizontalPodAutoscaler"), PATIENCE_S)
    (name,) = system.namespace.names("HorizontalPodAutoscaler")
    path = f"{system.namespace.path('Deployment', name)}/scale"
    merge = {"content-type": "application/merge-patch+json"}
    system.namespace.call("PATCH", path, json={"spec": {"replicas": 10}}, headers=merge)
    system.wait_routed("1", 10)
    with system.event("new version under an HPA at 10 pods"):
        system.spec(endpoint(model="digits:2", autoscale=scale), autoscaler="hpa")
        wait_until(
            lambda: system.last_versions() == {"2"} and not system.replicas("1"),
            PATIENCE_S,
        )
        assert len(system.replicas("2")) >= 10, "the capacity of the version before"


def test_a_node_that_is_drained(system: System) -> None:
    node = system.replicas()[0]["spec"]["nodeName"]
    with system.event("node drained"):
        system.kubectl(
            "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=170s"
        )
        wait_until(lambda: all(p["spec"]["nodeName"] != node for p in system.replicas()))
        system.wait_routed("1", 2)
    system.kubectl("uncordon", node)


def test_a_node_that_falls_silent(system: System) -> None:
    """Its pods are cut off: what is under way there, and until that is noticed, is lost."""
    system.spec(endpoint(replicas=3))
    system.wait_routed("1", 3)
    control = {p["spec"]["nodeName"] for p in system.release.pods("control")}
    nodes = [
        pod["spec"]["nodeName"]
        for pod in system.replicas()
        if pod["spec"]["nodeName"] not in control
    ]
    node = nodes[0]
    gateways = [p for p in system.release.pods("gateway") if p["spec"]["nodeName"] == node]
    allowed = 5 + (int(RATE) * 45 if gateways else 0)
    with system.event(f"node silent ({len(gateways)} gateway on it)", allowed=allowed):
        kubelet = system.lab.kubelet
        kubelet.silent.add(node)
        for pod in list(kubelet.pods.values()):
            if pod.pod["spec"]["nodeName"] == node:  # type: ignore[attr-defined]  # ProcessPod
                system.lab.run(pod.unplug())  # type: ignore[attr-defined]
        time.sleep(60.0)
    kubelet.silent.discard(node)
    for pod in list(kubelet.pods.values()):
        if pod.pod["spec"]["nodeName"] == node:  # type: ignore[attr-defined]
            pod.crash()  # type: ignore[attr-defined]
            system.namespace.http.delete(
                system.namespace.path("Pod", pod.name)  # type: ignore[attr-defined]
            )


def test_a_replica_that_is_killed(system: System) -> None:
    pod = system.replicas()[0]
    with system.event("replica killed (SIGKILL)", allowed=2):
        system.lab.kubelet.pods[pod["metadata"]["uid"]].crash()  # type: ignore[attr-defined]
        time.sleep(3.0)
        system.wait_routed("1", 2)


def test_a_control_plane_that_is_killed(system: System) -> None:
    (control,) = system.release.pods("control")
    with system.event("leader killed (SIGKILL)"):
        system.lab.kubelet.pods[control["metadata"]["uid"]].crash()  # type: ignore[attr-defined]
        time.sleep(3.0)
        wait_until(lambda: _leads(system), PATIENCE_S)


def _leads(system: System) -> bool:
    with contextlib.suppress(httpx2.HTTPError, ValueError, AssertionError, OSError):
        return bool(system.api("GET", "/api/v1/status"))
    return False


def test_an_api_server_that_is_away(system: System) -> None:
    cluster = system.lab.cluster
    with system.event(f"API server away for {AWAY_S:.0f} s"):
        system.lab.run(cluster.kill("kube-apiserver"))
        time.sleep(AWAY_S)
        system.lab.run(cluster.restart("kube-apiserver"))
        wait_until(lambda: _answers(lambda: _leads(system)), PATIENCE_S)
        system.wait_routed("1", 2)


def _answers(holds: Callable[[], bool]) -> bool:
    with contextlib.suppress(httpx2.HTTPError, AssertionError):
        return holds()
    return False


def test_an_etcd_of_an_earlier_time(system: System) -> None:
    copy = system.lab.run(system.lab.cluster.backup())
    system.spec(endpoint(model="digits:2", replicas=2))
    system.wait_routed("2", 2)
    # Kubernetes ends the pods of version 2, which the copy lacks; new ones start in seconds.
    allowed = int(RATE * OUTAGE_S)
    with system.event("etcd put back to before the last version", allowed=allowed):
        system.lab.run(system.lab.cluster.restore(copy))
        wait_until(lambda: _answers(lambda: _leads(system)), PATIENCE_S)
        time.sleep(10.0)
        wait_until(lambda: not system.failed_lately(), PATIENCE_S)


def test_a_webhook_that_hangs(system: System) -> None:
    from tests.e2e.kubernetes.test_acting import a_hanging_webhook  # noqa: PLC0415

    with system.event("webhook hangs for 15 s at each budget of disruptions"):
        with _in_another_loop(a_hanging_webhook(system.namespace, 15)):
            system.spec(endpoint(model="digits:2", replicas=2))
            time.sleep(WEBHOOK_S)
        system.wait_routed("2", 2)


def test_a_quota(system: System) -> None:
    pods = len(system.namespace.list("Pod"))
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full"}}
    with system.event("quota is full at a new version, then lifted"):
        system.namespace.create({**quota, "spec": {"hard": {"pods": str(pods)}}})
        system.spec(endpoint(model="digits:2", replicas=2))
        time.sleep(10.0)
        system.namespace.delete("ResourceQuota", "full")
        system.wait_routed("2", 2)


def test_a_config_map_that_is_deleted(system: System) -> None:
    with system.event("kubectl delete cm, then helm upgrade"):
        system.kubectl("delete", "cm", "headrace-spec", "-n", system.namespace.name)
        time.sleep(10.0)
        system.spec(endpoint(replicas=2))
        system.wait_routed("1", 2)


def test_an_autoscaler_of_others(system: System) -> None:
    """The last test: the count of such an autoscaler is accepted for five minutes."""
    (name,) = {p["metadata"]["labels"]["headrace.dev/revision"] for p in system.replicas()}
    deployments = system.namespace.list("Deployment", f"headrace.dev/revision={name}")
    target = deployments[0]["metadata"]["name"]
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "theirs"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target},
            "minReplicas": 4,
            "maxReplicas": 8,
        },
    }
    with system.event("HPA of others on our Deployment"):
        system.namespace.create(scaler)
        wait_until(lambda: len(system.replicas("1")) == 4, PATIENCE_S)
        time.sleep(10.0)
        system.namespace.delete("HorizontalPodAutoscaler", "theirs")


@contextlib.contextmanager
def _in_another_loop(context: contextlib.AbstractAsyncContextManager[None]) -> Iterator[None]:
    """Enter an async context in a loop of its own thread."""
    import asyncio  # noqa: PLC0415
    import threading  # noqa: PLC0415

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(30.0)
        yield
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(60.0)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
