"""Create, update, drift, conflict, expiry, throttling, partition, loss of the leader."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import msgspec
import pytest

from headrace.control.kubernetes import name_of, role_rules
from headrace.control.kubernetes.election import lease_name
from headrace.control.kubernetes.reconciler import record_name, routes_in
from headrace.control.model.desired import DesiredState
from headrace.control.model.observed import ReplicaPhase
from headrace.core.spec.kubernetes import Autoscaler
from headrace.core.spec.scale import AutoscaleSpec
from tests.e2e.kubernetes.driving import PATIENT, SHORT, Driver, Gateway, a_cluster, until
from tests.kube_server.kubelet import State
from tests.kube_server.namespace import TestNamespace, wait_until
from tests.kube_server.proxy import Fault, Proxy
from tests.unit.control.kubernetes.states import (
    PLACE,
    a_revision,
    a_state,
    an_arm,
    an_endpoint,
)

pytestmark = [pytest.mark.e2e, pytest.mark.kube_server, pytest.mark.anyio]
NAME = name_of(a_revision())


def weights(gateway: Gateway) -> dict[str, int]:
    return {
        arm.version: arm.weight for route in gateway.routes for arm in route.arms if arm.replicas
    }


def routed(gateway: Gateway, count: int, version: str = "1") -> bool:
    arms = [arm for route in gateway.routes for arm in route.arms]
    return [(arm.version, len(arm.replicas)) for arm in arms] == [(version, count)]


async def test_an_endpoint_is_made_served_scaled_and_removed(namespace: TestNamespace) -> None:
    async with a_cluster(namespace) as (server, gateway), Driver(server, gateway) as driver:
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=2))))
        await until(lambda: routed(gateway, 2))
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=4))))
        await until(lambda: routed(gateway, 4))
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=1))))
        await until(lambda: routed(gateway, 1) and len(namespace.names("Pod")) == 1)
        driver.set_desired(a_state(an_endpoint(an_arm(version="2"))))
        await until(lambda: routed(gateway, 1, "2") and NAME not in namespace.names("ConfigMap"))

        assert namespace.names("Deployment") == [name_of(a_revision(version="2"))]
        replica = next(iter(driver.reconciler.replicas.values()))
        assert (replica.phase, replica.version) == (ReplicaPhase.READY, "2")
        assert replica.address in gateway.addresses


async def test_a_foreign_object_is_left_alone_and_told_of(namespace: TestNamespace) -> None:
    async with a_cluster(namespace) as (server, gateway):
        theirs = namespace.create(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": NAME, "labels": {"app": "theirs"}},
                "data": {"replica.json": "mine"},
            }
        )
        async with Driver(server, gateway) as driver:
            driver.set_desired(a_state())
            await until(lambda: driver.reconciler.arm_problem("digits", an_arm()))

            said = driver.reconciler.arm_problem("digits", an_arm())
            assert f"there is a ConfigMap {NAME} that Headrace did not make" in said
            assert namespace.get("ConfigMap", NAME) == theirs


async def test_an_object_that_changes_under_our_hands_is_looked_at_again(
    namespace: TestNamespace,
) -> None:
    async with a_cluster(namespace) as (server, gateway), Driver(server, gateway) as driver:
        server.faults += [Fault(verbs=frozenset({"patch"}), kind="Deployment", status=409, times=2)]
        driver.set_desired(a_state())

        await until(lambda: routed(gateway, 1))
        assert namespace.names("Deployment") == [NAME]


async def test_a_watch_that_expired_is_begun_anew_with_what_was_missed(
    namespace: TestNamespace,
) -> None:
    lab = namespace.lab
    async with (
        a_cluster(namespace, longest_watch_s=0.3) as (server, gateway),
        Driver(server, gateway, times=PATIENT) as driver,
    ):
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=2))))
        await until(lambda: routed(gateway, 2))
        # Cut, so that it misses what happens; a server that started anew has no earlier events.
        fault = Fault(verbs=frozenset({"watch"}), hang_up=True, times=1000)
        server.faults.append(fault)
        await until(lambda: not driver.reconciler.watches.is_synced)
        pod = namespace.names("Pod")[0]
        namespace.delete("Pod", pod)
        await lab.call(lab.cluster.restart("kube-apiserver"))
        server.faults.clear()

        await until(lambda: pod not in driver.reconciler.replicas)
        await until(lambda: routed(gateway, 2) and driver.is_quiet())


async def test_an_answer_that_was_lost_repeats_nothing(namespace: TestNamespace) -> None:
    async with a_cluster(namespace) as (server, gateway), Driver(server, gateway) as driver:
        server.faults += [
            Fault(verbs=frozenset({"patch"}), kind="Deployment", hang_up=True, after=True, times=3)
        ]
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=2))))

        await until(lambda: routed(gateway, 2) and driver.is_quiet())
        assert namespace.names("Deployment") == [NAME]
        assert len(namespace.names("Pod")) == 2


async def test_two_control_planes_one_dies_the_other_goes_on_from_there(
    namespace: TestNamespace,
) -> None:
    async with (
        a_cluster(namespace) as (server, gateway),
        Driver(server, gateway, times=SHORT) as first,
    ):
        await until(first.elector.is_leading)
        async with Driver(server, gateway, name="control-b", times=SHORT) as second:
            state = a_state(an_endpoint(an_arm(replicas=2)))
            first.set_desired(state)
            second.set_desired(state)
            await until(lambda: routed(gateway, 2) and first.is_quiet())
            assert {who for who, _ in gateway.history} == {"control-a"}
            # Half way through a change, and without a word.
            second.set_desired(a_state(an_endpoint(an_arm(version="2", replicas=2))))
            first.set_desired(a_state(an_endpoint(an_arm(version="2", replicas=2))))
            await until(lambda: len(namespace.names("Deployment")) == 2)
            await first.kill()

            await until(lambda: routed(gateway, 2, "2"))
            await until(lambda: namespace.names("Deployment") == [name_of(a_revision(version="2"))])
            await until(lambda: len(namespace.names("ConfigMap")) == 2)  # and the record of routes
            assert len(namespace.names("Pod")) == 2
            assert second.elector.is_leading()
            lease = namespace.get("Lease", lease_name(PLACE))["spec"]
            assert (lease["holderIdentity"], lease["leaseTransitions"]) == ("control-b", 1)


async def test_a_new_leader_of_a_settled_cluster_changes_no_object(
    namespace: TestNamespace,
) -> None:
    state = a_state(an_endpoint(an_arm(replicas=2)), an_endpoint(an_arm("other"), name="other"))
    kinds = ("ConfigMap", "Service", "PodDisruptionBudget", "Deployment", "Pod")

    def versions() -> list[str]:
        found = [one["metadata"] for kind in kinds for one in namespace.list(kind)]
        return [one["resourceVersion"] for one in found if one["name"] != record_name(PLACE)]

    async with a_cluster(namespace) as (server, gateway):
        async with Driver(server, gateway) as first:
            first.set_desired(state)
            await until(lambda: len(gateway.addresses) == 3 and first.is_quiet())
            await first.elector.resign()
        before = versions()
        async with Driver(server, gateway, name="control-b") as second:
            second.set_desired(state)
            await until(lambda: gateway.history[-1][0] == "control-b" and second.is_quiet())

        assert len(gateway.addresses) == 3
        assert versions() == before
        writes = [one[1:] for one in server.requests if "control-b" in one[0] and one[2] != "Lease"]
        record = ("patch", "ConfigMap", record_name(PLACE))
        assert writes == [record] * 2, "it was taken, and routes were published"


async def until_quiet(server: Proxy) -> None:
    """Wait until nothing is written: what is under way in a partition may arrive after it."""
    count = -1
    while count != (count := sum(kind != "Lease" for _, _, kind, _ in server.requests)):  # noqa: ASYNC110  # it looks at many things
        await asyncio.sleep(1.0)


async def test_a_leader_that_was_cut_off_and_the_next_never_act_at_once(
    namespace: TestNamespace,
) -> None:
    async with (
        a_cluster(namespace) as (server, gateway),
        Driver(server, gateway, times=SHORT) as first,
    ):
        await until(first.elector.is_leading)
        async with Driver(server, gateway, name="control-b", times=SHORT) as second:
            state = a_state(an_endpoint(an_arm(replicas=3)))
            first.set_desired(state)
            second.set_desired(state)
            await until(lambda: routed(gateway, 3))
            await until_quiet(server)
            server.cut_off("control-a")
            await until(second.elector.is_leading)
            assert not first.elector.is_leading()
            first.set_desired(a_state(an_endpoint(an_arm(version="2"))))
            await until(lambda: "leads no more" in first.ended)
            server.heal()
            second.set_desired(a_state(an_endpoint(an_arm(replicas=1))))
            await until(lambda: routed(gateway, 1) and len(namespace.names("Pod")) == 1)

            writers = [c for c, _, kind, _ in server.requests if kind != "Lease"]
            changes = [one != other for one, other in itertools.pairwise(writers)]
            assert sum(changes) == 1
            publishers = [who for who, _ in gateway.history]
            assert publishers == sorted(publishers)


async def test_a_late_write_of_an_ended_leader_does_not_change_the_record_of_routes(
    namespace: TestNamespace,
) -> None:
    def state(timeout_s: float) -> DesiredState:
        return a_state(msgspec.structs.replace(an_endpoint(), timeout_s=timeout_s))

    def late() -> list[tuple[str, str, str, str]]:
        return [one for one in server.requests if "control-a" in one[0] and one[2] == "ConfigMap"]

    async with a_cluster(namespace) as (server, gateway):
        async with Driver(server, gateway, times=SHORT) as first:
            first.set_desired(state(1.0))
            await until(lambda: routed(gateway, 1) and first.is_quiet())
            before = len(late())
            server.cut_off("control-a")
            first.set_desired(state(2.0))
            await until(lambda: gateway.routes[0].timeout_s == 2.0)
            await asyncio.sleep(1.5)  # longer than records wait for each other
        async with Driver(server, gateway, name="control-b", times=SHORT) as second:
            second.set_desired(state(3.0))
            await until(lambda: gateway.routes[0].timeout_s == 3.0 and second.is_quiet())
            assert len(late()) == before
            server.heal()
            await until(lambda: len(late()) > before)
            await asyncio.sleep(1.0)

            record = routes_in(namespace.get("ConfigMap", record_name(PLACE)))
            assert record == second.reconciler.publication.published
            second.set_desired(state(4.0))
            await until(lambda: gateway.routes[0].timeout_s == 4.0 and second.is_quiet())
            namespace.patch("ConfigMap", record_name(PLACE), {"metadata": {"labels": {"a": "b"}}})
            second.set_desired(state(5.0))
            await until(lambda: gateway.routes[0].timeout_s == 5.0 and second.is_quiet())
            record = routes_in(namespace.get("ConfigMap", record_name(PLACE)))
            assert record == second.reconciler.publication.published


async def test_pods_that_do_not_come_up_say_why(namespace: TestNamespace) -> None:
    kubelet = namespace.lab.kubelet
    states = {
        "2": State.CRASHING,
        "3": State.OUT_OF_MEMORY,
        "4": State.NO_IMAGE,
        "5": State.NO_MODEL,
    }
    for version, state in states.items():
        kubelet.states[a_revision(version=version).id[:12]] = state
    async with a_cluster(namespace) as (server, gateway), Driver(server, gateway) as driver:
        arms = [an_arm(version=version, weight=25) for version in states]
        nowhere = an_endpoint(an_arm("large"), name="large")
        large = {"large": {"resources": {"memory": "1Ei"}}}
        driver.set_desired(a_state(an_endpoint(*arms), nowhere, endpoints=large))
        await until(lambda: len(driver.reconciler.replicas) == 5)
        await until(lambda: all(r.reason for r in driver.reconciler.replicas.values()))

        told = {(r.endpoint, r.version): r for r in driver.reconciler.replicas.values()}
        assert told["digits", "2"].cannot_load
        assert told["digits", "2"].reason == "cannot load the model: no such operator"
        assert "memory" in told["digits", "3"].reason
        assert told["digits", "4"].reason.startswith("ImagePullBackOff")
        assert told["digits", "5"].reason == "cannot fetch its model: no such artifact"
        assert "Insufficient memory" in told["large", "1"].reason


async def test_an_empty_database_removes_nothing(namespace: TestNamespace) -> None:
    async with a_cluster(namespace) as (server, gateway):
        async with Driver(server, gateway, times=SHORT) as first:
            first.set_desired(a_state())
            await until(lambda: routed(gateway, 1))
        async with Driver(server, gateway, name="control-b", times=SHORT) as second:
            await until(second.elector.is_leading)
            await asyncio.sleep(0.3)
            assert namespace.names("Deployment") == [NAME]
            assert second.reconciler.observed().published is None


async def test_the_role_has_no_verb_too_many_and_none_too_few(namespace: TestNamespace) -> None:
    async with (
        scaled_objects(namespace),
        a_cluster(namespace) as (server, gateway),
        Driver(server, gateway, times=SHORT) as driver,
    ):
        url = {"prometheus_url": "http://prometheus:9090"}
        scale = AutoscaleSpec(target_in_flight=4.0)
        for autoscaler in ("headrace", "hpa", "keda", "headrace"):
            state = a_state(
                an_endpoint(an_arm(replicas=2), autoscale=scale), autoscaler=autoscaler, **url
            )
            driver.set_desired(state)
            scaler = {"hpa": "HorizontalPodAutoscaler", "keda": "ScaledObject"}.get(autoscaler, "")
            await until(lambda: namespace.names("Deployment") == [NAME])
            await until(lambda kind=scaler: not kind or namespace.names(kind) == [NAME])  # type: ignore[misc]  # bound now
            namespace.patch("Deployment", NAME, {"spec": {"revisionHistoryLimit": 9}})
            await until(
                lambda: namespace.get("Deployment", NAME)["spec"]["revisionHistoryLimit"] == 2
            )
        await until(lambda: not namespace.names("ScaledObject"))
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=1))))
        await until(lambda: routed(gateway, 1) and len(namespace.names("Pod")) == 1)
        driver.set_desired(a_state(an_endpoint(an_arm("other"), name="other")))
        await until(lambda: NAME not in namespace.names("ConfigMap"))
        await until(lambda: ("coordination.k8s.io", "leases", "update") in server.seen)

        allowed = {
            (rule["apiGroups"][0], resource, verb)
            for rule in role_rules()
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        assert server.seen <= allowed
        # What is read one by one only after a conflict; the first test of conflicts does. Tests of
        # the resource `Endpoint` on a real server run with these rules.
        of_resources = {one for one in allowed if one[0] == "headrace.dev" or one[1] == "events"}
        gets = {one for one in allowed if one[2] == "get"}
        assert allowed - server.seen <= gets | of_resources
        assert role_rules(Autoscaler.HEADRACE) != role_rules()


@contextlib.asynccontextmanager
async def scaled_objects(namespace: TestNamespace) -> AsyncIterator[None]:
    """Let the cluster have KEDA's kind, of any content."""
    group, plural = "keda.sh", "scaledobjects"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1alpha1", "served": True, "storage": True}
    spec = {
        "group": group,
        "scope": "Namespaced",
        "names": {"plural": plural, "kind": "ScaledObject"},
        "versions": [version | {"schema": {"openAPIV3Schema": schema}}],
    }
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    head = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
    metadata = {"name": f"{plural}.{group}"}
    namespace.call("POST", path, json=head | {"metadata": metadata, "spec": spec})
    wait_until(lambda: namespace.http.get(namespace.path("ScaledObject")).is_success)
    yield
    namespace.call("DELETE", f"{path}/{plural}.{group}")
