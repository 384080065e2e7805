"""What clusters come to: pages of proxies, cut streams, quotas, webhooks, restored databases."""

import asyncio

import pytest

from headrace.control.kubernetes import name_of
from headrace.core import SystemClock
from tests.e2e.kubernetes.driving import PATIENT, SHORT, Driver, Gateway, a_cluster, until
from tests.kube_server.namespace import TestNamespace
from tests.kube_server.proxy import Fault
from tests.unit.control.kubernetes.states import a_revision, a_state, an_arm, an_endpoint

pytestmark = [pytest.mark.e2e, pytest.mark.kube_server, pytest.mark.anyio]
NAME = name_of(a_revision())
PAGE = b"<!doctype html><html><body>Sign in to go on</body></html>"
WRITES = frozenset({"patch", "create", "update", "delete"})


def routed(gateway: Gateway, count: int) -> bool:
    return len(gateway.addresses) == count


@pytest.mark.parametrize("status", [200, 403, 404, 409, 410])
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


async def test_a_stream_that_is_cut_within_a_line_is_begun_anew(namespace: TestNamespace) -> None:
    cut = b'{"type":"ADDED","object":{"kind":"Pod","metadata":{"name":"p","uid'
    async with (
        a_cluster(namespace, longest_watch_s=0.3) as (server, gateway),
        Driver(server, gateway) as one,
    ):
        server.faults.append(Fault(verbs=frozenset({"watch"}), page=cut, times=30))
        one.set_desired(a_state(an_endpoint(an_arm(replicas=2))))

        await until(lambda: routed(gateway, 2) and one.is_quiet())
        assert not [each for each in server.faults if each.times > 20]


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


async def test_a_webhook_that_fails_at_one_object_holds_up_no_other_and_is_told_of(
    namespace: TestNamespace,
) -> None:
    async with a_cluster(namespace) as (server, gateway), Driver(server, gateway) as one:
        said = "failed calling webhook policy.example.com: context deadline exceeded"
        fault = Fault(verbs=WRITES, kind="PodDisruptionBudget", status=500, times=10_000)
        fault.message = said
        server.faults.append(fault)
        one.set_desired(a_state(an_endpoint(an_arm(replicas=2))))
        await until(lambda: routed(gateway, 2))
        one.set_desired(a_state(an_endpoint(an_arm(replicas=3))))
        async with asyncio.timeout(5.0):
            await until(lambda: routed(gateway, 3))

        await until(lambda: said in one.reconciler.arm_problem("digits", an_arm()))
        assert fault.times > 9_900
        server.faults.clear()
        await until(lambda: namespace.names("PodDisruptionBudget") == [NAME])
        await until(lambda: not one.reconciler.arm_problem("digits", an_arm()))


@pytest.mark.parametrize(
    "said",
    [
        "exceeded quota: compute, requested: count/deployments.apps=1, used: 2, limited: 2",
        'admission webhook "policy.example.com" denied the request: no image of ours',
        "unable to create new content in namespace models because it is being terminated",
    ],
)
async def test_what_admission_refuses_is_told_and_stops_nobody_else(
    namespace: TestNamespace, said: str
) -> None:
    async with a_cluster(namespace) as (server, gateway), Driver(server, gateway) as one:
        one.set_desired(a_state())
        await until(lambda: routed(gateway, 1) and one.is_quiet())
        fault = Fault(verbs=WRITES, kind="Deployment", status=403, message=said, times=1)
        server.faults.append(fault)
        one.set_desired(a_state(an_endpoint(), an_endpoint(an_arm("other"), name="other")))
        await until(lambda: one.reconciler.arm_problem("other", an_arm("other")))

        told = one.reconciler.arm_problem("other", an_arm("other"))
        assert said in told
        assert "Role" not in told
        one.set_desired(
            a_state(an_endpoint(an_arm(replicas=3)), an_endpoint(an_arm("other"), name="other"))
        )
        await until(lambda: len(namespace.names("Pod")) >= 3)


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


async def test_a_wall_clock_that_jumps_ends_no_leader(namespace: TestNamespace) -> None:
    async with (
        a_cluster(namespace) as (server, gateway),
        Driver(server, gateway, times=SHORT) as one,
    ):
        await until(one.elector.is_leading)
        for wall in (0.0, 4_000_000_000.0, 1_700_000_000.0):
            one.elector.clock = Jumping(wall)
            await asyncio.sleep(0.7)
            assert one.elector.is_leading()
        assert one.ended == ""
        lease = namespace.list("Lease")[0]["spec"]
        assert lease["holderIdentity"] == "control-a"
        assert lease.get("leaseTransitions", 0) == 0


class Jumping(SystemClock):
    """The time of day is whatever it is set to."""

    def __init__(self, wall: float) -> None:
        self.wall = wall

    def now(self) -> float:
        return self.wall
