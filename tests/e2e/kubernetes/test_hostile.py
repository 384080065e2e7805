"""What clusters come to: pages of proxies, cut streams, quotas, webhooks, restored databases."""

import asyncio

import pytest

from headrace.control.kubernetes import name_of
from tests.e2e.kubernetes.driving import PATIENT, Driver, Gateway, a_cluster, until
from tests.kube_server.namespace import TestNamespace
from tests.kube_server.proxy import Fault
from tests.unit.control.kubernetes.states import a_revision, a_state, an_arm, an_endpoint

pytestmark = [pytest.mark.e2e, pytest.mark.kube_server, pytest.mark.anyio]
NAME = name_of(a_revision())
PAGE = b"<!doctype html><html><body>Sign in to go on</body></html>"
WRITES = frozenset({"patch", "create", "update", "delete"})


def routed(gateway: Gateway, count: int) -> bool:
    return len(gateway.addresses) == count


@pytest.mark.parametrize("status", [200, 404])
async def test_a_page_of_a_proxy_is_waited_out_and_nothing_is_taken_for_gone(
    namespace: TestNamespace, status: int
) -> None:
    async with (
        a_cluster(namespace, longest_watch_s=0.2) as (server, gateway),
        Driver(server, gateway) as one,
    ):
        one.set_desired(a_state(an_endpoint(an_arm(replicas=2))))
        await until(lambda: routed(gateway, 2) and one.is_quiet())
        pods = namespace.names("Pod")
        page = Fault(page=PAGE, status=status, times=10_000)
        leases = Fault(kind="Lease", times=10_000)  # those are answered
        server.faults += [leases, page]
        one.set_desired(a_state(an_endpoint(an_arm(replicas=1))))
        await until(lambda: not one.reconciler.watches.is_synced)
        await asyncio.sleep(0.5)

        assert namespace.names("Pod") == pods
        assert len(namespace.names("Deployment")) == 1
        assert gateway.addresses, "one may be routed no more, as was asked"
        server.faults.clear()
        await until(lambda: routed(gateway, 1) and len(namespace.names("Pod")) == 1)


async def test_a_server_that_fails_for_long_changes_nothing_and_is_asked_ever_less(
    namespace: TestNamespace,
) -> None:
    async with (
        a_cluster(namespace, longest_watch_s=0.2) as (server, gateway),
        Driver(server, gateway) as one,
    ):
        one.set_desired(a_state(an_endpoint(an_arm(replicas=2))))
        await until(lambda: routed(gateway, 2) and one.is_quiet())
        fault = Fault(status=500, times=10_000)
        server.faults += [Fault(kind="Lease", times=10_000), fault]
        one.set_desired(a_state(an_endpoint(an_arm(version="2", replicas=2))))
        await asyncio.sleep(3.0)

        assert routed(gateway, 2)
        assert 10_000 - fault.times < 150
        server.faults.clear()
        await until(lambda: namespace.names("Deployment") == [name_of(a_revision(version="2"))])


async def test_an_object_that_is_deleted_while_it_is_applied_is_made_again(
    namespace: TestNamespace,
) -> None:
    async with a_cluster(namespace) as (server, gateway), Driver(server, gateway) as one:
        one.set_desired(a_state())
        await until(lambda: routed(gateway, 1) and one.is_quiet())
        server.faults.append(Fault(verbs=WRITES, kind="Deployment", delay_s=0.3, times=1))
        one.set_desired(a_state(an_endpoint(an_arm(replicas=2))))
        await until(lambda: server.faults[0].times == 0)
        namespace.delete("Deployment", NAME)

        await until(lambda: routed(gateway, 2) and namespace.names("Deployment") == [NAME])
        assert len(namespace.names("Pod")) == 2


async def test_a_configmap_that_somebody_froze_is_made_anew(namespace: TestNamespace) -> None:
    async with a_cluster(namespace) as (server, gateway), Driver(server, gateway) as one:
        one.set_desired(a_state())
        await until(lambda: routed(gateway, 1) and one.is_quiet())
        wanted = namespace.get("ConfigMap", NAME)
        change = {"immutable": True, "data": {"replica.json": "{}"}}
        namespace.patch("ConfigMap", NAME, change)

        await until(lambda: namespace.get("ConfigMap", NAME).get("data") == wanted["data"])
        assert "immutable" not in namespace.get("ConfigMap", NAME)


async def test_a_restored_database_is_seen_though_its_versions_are_earlier(
    namespace: TestNamespace,
) -> None:
    lab = namespace.lab
    async with (
        a_cluster(namespace) as (server, gateway),
        Driver(server, gateway, times=PATIENT) as one,
    ):
        one.set_desired(a_state(an_endpoint(an_arm(replicas=1))))
        await until(lambda: routed(gateway, 1) and one.is_quiet())
        backup = await lab.call(lab.cluster.backup())
        for count in (4, 3, 2):
            one.set_desired(a_state(an_endpoint(an_arm(replicas=count))))
            await until(lambda count=count: routed(gateway, count) and one.is_quiet())  # type: ignore[misc]  # bound now
        await lab.call(lab.cluster.restore(backup))
        one.set_desired(a_state(an_endpoint(an_arm(replicas=3))))

        await until(lambda: len(namespace.names("Pod")) == 3)
        await until(lambda: routed(gateway, 3) and one.is_quiet())
        before = len(server.requests)
        await asyncio.sleep(0.5)
        writes = [each for each in server.requests[before:] if each[2] != "Lease"]
        assert writes == []
