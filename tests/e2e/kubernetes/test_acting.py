"""What the driver does about owners, webhooks and leaders, on a real API server."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.control.base.settings import ClusterSettings, ControlSettings
from headrace.control.kubernetes import name_of, role_rules
from headrace.control.kubernetes.election import lease_name
from headrace.control.kubernetes.names import COMPONENT, INSTANCE, ROLE
from headrace.control.kubernetes.reconciler import record_name
from headrace.control.kubernetes.standby import ClusterMembership, stand_by
from tests.e2e.kubernetes.driving import Driver, a_cluster, until
from tests.kube_server.namespace import TestNamespace
from tests.unit.control.kubernetes.states import PLACE, a_revision, a_state, an_arm, an_endpoint

pytestmark = [pytest.mark.e2e, pytest.mark.kube_server, pytest.mark.anyio]
NAME, OTHER = name_of(a_revision()), name_of(a_revision("other"))
TWO = a_state(
    an_endpoint(an_arm(replicas=2)), an_endpoint(an_arm("other", replicas=2), name="other")
)


async def seen(holds: Callable[[], object]) -> None:
    """Wait until `holds`, which blocks."""
    async with asyncio.timeout(60.0):
        while not await asyncio.to_thread(holds):  # noqa: ASYNC110  # it asks the server
            await asyncio.sleep(0.1)


def a_map(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}


def an_account(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}


def owner_names(at: TestNamespace, kind: str, name: str) -> list[str]:
    metadata = at.get(kind, name).get("metadata", {})
    return sorted(owner["name"] for owner in metadata.get("ownerReferences", ()))


async def test_an_owner_that_is_deleted_and_created_again_harms_nothing(
    namespace: TestNamespace,
) -> None:
    namespace.create(a_map("spec"))
    namespace.create(an_account("control"))
    owners = ("ConfigMap/spec", "ServiceAccount/control")
    async with (
        a_cluster(namespace) as (server, gateway),
        Driver(server, gateway, owners=owners) as driver,
    ):
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=2))))
        await until(lambda: len(gateway.addresses) == 2)
        assert owner_names(namespace, "Deployment", NAME) == ["control", "spec"]
        record = "ConfigMap", record_name(PLACE)
        await seen(lambda: owner_names(namespace, *record) == ["control", "spec"])
        pods = namespace.names("Pod")
        namespace.delete("ConfigMap", "spec")
        await seen(lambda: owner_names(namespace, "Deployment", NAME) == ["control"])
        await until(lambda: "spec" in str(driver.reconciler.faults.current()))
        spec = namespace.create(a_map("spec"))["metadata"]["uid"]
        await seen(lambda: spec in str(namespace.get("Deployment", NAME)))
        await seen(lambda: spec in str(namespace.get("ConfigMap", record_name(PLACE))))

        assert namespace.names("Pod") == pods
        assert len(gateway.addresses) == 2
        assert driver.reconciler.faults.current() == ()


async def test_nothing_is_created_without_an_owner_and_all_is_once_there_is_one(
    namespace: TestNamespace,
) -> None:
    namespace.create(a_map("spec"))
    async with (
        a_cluster(namespace) as (server, gateway),
        Driver(server, gateway, owners=("ConfigMap/spec",)) as driver,
    ):
        driver.set_desired(a_state())
        await until(lambda: len(gateway.addresses) == 1)
        namespace.delete("ConfigMap", "spec")
        await seen(lambda: not namespace.names("Deployment") + namespace.names("ConfigMap"))
        await until(lambda: not gateway.addresses)
        await asyncio.sleep(3.0)
        assert namespace.names("Deployment") + namespace.names("ConfigMap") == []
        assert "nothing is created" in str(driver.reconciler.faults.current())
        namespace.create(a_map("spec"))

        await until(lambda: len(gateway.addresses) == 1)
        uid = namespace.get("Deployment", NAME)["metadata"]["uid"]
        await asyncio.sleep(3.0)
        assert namespace.get("Deployment", NAME)["metadata"]["uid"] == uid


@contextlib.asynccontextmanager
async def a_hanging_webhook(at: TestNamespace, timeout_s: int) -> AsyncIterator[None]:
    """A webhook for the PodDisruptionBudgets of the first endpoint that never answers."""
    held: list[asyncio.StreamWriter] = []
    host = at.lab.cluster.network.host
    server = await asyncio.start_server(lambda _, writer: held.append(writer), host, 0)
    port = server.sockets[0].getsockname()[1]
    group = "admissionregistration.k8s.io/v1"
    rule = {"apiGroups": ["policy"], "apiVersions": ["v1"], "operations": ["*"]}
    hook = {
        "name": "slow.example.com",
        "clientConfig": {"url": f"https://{host}:{port}/"},
        "rules": [{**rule, "resources": ["poddisruptionbudgets"]}],
        "objectSelector": {"matchLabels": {"headrace.dev/endpoint": "digits"}},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": at.name}},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": timeout_s,
    }
    path = f"/apis/{group}/validatingwebhookconfigurations"
    new = {"apiVersion": group, "kind": "ValidatingWebhookConfiguration", "webhooks": [hook]}
    at.call("POST", path, json={**new, "metadata": {"name": at.name}})
    try:
        yield
    finally:
        at.call("DELETE", f"{path}/{at.name}")
        for writer in held:
            writer.close()
        server.close()


async def test_a_webhook_that_hangs_delays_its_endpoint_only_and_is_reported(
    namespace: TestNamespace,
) -> None:
    async with a_cluster(namespace) as (server, gateway), Driver(server, gateway) as driver:
        async with a_hanging_webhook(namespace, 15):
            await asyncio.sleep(2.0)  # until the API server knows of it
            driver.set_desired(TWO)
            await until(lambda: len(gateway.addresses) == 4)
            await until(lambda: driver.reconciler.arm_problem("digits", an_arm()))
            assert "webhook hangs" in driver.reconciler.arm_problem("digits", an_arm())
            scaled = an_endpoint(an_arm("other", replicas=3), name="other")
            driver.set_desired(a_state(an_endpoint(an_arm(replicas=2)), scaled))
            await until(lambda: len(gateway.addresses) == 5)
            assert namespace.names("PodDisruptionBudget") == [OTHER]
            assert not driver.reconciler.arm_problem("other", an_arm("other"))
            # The server's own answer, which names the webhook, comes in the end.
            await until(
                lambda: "slow.example.com" in driver.reconciler.arm_problem("digits", an_arm())
            )
        await seen(lambda: len(namespace.names("PodDisruptionBudget")) == 2)
        await until(lambda: not driver.reconciler.arm_problem("digits", an_arm()))


def a_control_pod(name: str, **labels: str) -> dict[str, Any]:
    labels = {INSTANCE: PLACE.instance, COMPONENT: "control", **labels}
    context = {
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "control", "image": "control", "securityContext": context}
    metadata = {"name": name, "labels": labels}
    spec = {"containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.fixture
def settings(
    namespace: TestNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> ControlSettings:
    """Settings of control planes that have the Role of the chart."""
    kubeconfig = tmp_path / "kubeconfig"
    token = namespace.token("control", role_rules())
    namespace.lab.cluster.write_kubeconfig(kubeconfig, token, namespace.name)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    return ControlSettings(home=str(tmp_path), admin_host="127.0.0.1", admin_port=0)


async def test_a_control_plane_that_starts_waits_for_the_api_server(
    namespace: TestNamespace,
    settings: ControlSettings,
) -> None:
    lab, cluster = namespace.lab, ClusterSettings(namespace=namespace.name, owners=("ConfigMap/x",))
    await lab.call(lab.cluster.kill("kube-apiserver"))
    starting = asyncio.create_task(stand_by(settings, cluster, asyncio.Event()))
    await asyncio.sleep(3.0)
    assert not starting.done()
    await lab.call(lab.cluster.start("kube-apiserver"))

    membership = await starting
    assert membership is not None
    await membership.close()
    await asyncio.sleep(0.5)
    assert not namespace.get("Lease", lease_name(PLACE))["spec"]["holderIdentity"]


async def test_one_of_several_leads_and_its_pod_has_the_label(
    namespace: TestNamespace,
    settings: ControlSettings,
) -> None:
    first = ClusterSettings(namespace=namespace.name, identity="control-a", lease_s=6.0)
    second = msgspec.structs.replace(first, identity="control-b")
    namespace.create(a_control_pod("control-a"))
    namespace.create(a_control_pod("control-b", **{ROLE: "leader"}))  # it led, and was killed

    def labelled() -> list[str]:
        return namespace.names("Pod", f"{ROLE}=leader")

    async def lead(cluster: ClusterSettings) -> ClusterMembership:
        membership = await stand_by(settings, cluster, asyncio.Event())
        assert membership is not None
        return membership

    one = await lead(first)
    await seen(lambda: labelled() == ["control-a"])
    same, other = asyncio.create_task(lead(first)), asyncio.create_task(lead(second))
    await asyncio.sleep(3.0)  # all have seen the Lease, which is the leader's again if deleted
    namespace.delete("Lease", lease_name(PLACE))
    await seen(lambda: namespace.get("Lease", lease_name(PLACE)))
    time.sleep(8.0)  # noqa: ASYNC251  # a long step, which delays no renewal
    assert one.elector.is_leading()
    assert not same.done()
    assert not other.done()
    await one.close()
    await asyncio.wait({same, other}, return_when=asyncio.FIRST_COMPLETED)
    elected, standby = (same, other) if same.done() else (other, same)
    leader = await elected
    await seen(lambda: labelled() == [leader.pod])
    await leader.close()
    last = await standby
    await seen(lambda: labelled() == [last.pod])
    await last.close()
    await seen(lambda: not labelled())
