"""Create, update, drift, conflict, expiry, throttling, partition, loss of the leader."""

import asyncio
import itertools

import pytest

from headrace.control.kubernetes import name_of, role_rules
from headrace.control.kubernetes.election import lease_name
from headrace.control.kubernetes.reconciler import record_name
from headrace.control.model.observed import ReplicaPhase
from headrace.core.spec.kubernetes import Autoscaler
from headrace.core.spec.scale import AutoscaleSpec
from tests.e2e.kubernetes.driving import SHORT, Driver, Gateway, a_cluster, until
from tests.kubernetes_server import FakeApiServer, Fault
from tests.unit.control.kubernetes.states import (
    PLACE,
    a_revision,
    a_state,
    an_arm,
    an_endpoint,
)

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]
NAME = name_of(a_revision())


def names(server: FakeApiServer, kind: str) -> list[str]:
    return [one["metadata"]["name"] for one in server.store.of_kind(kind)]


def weights(gateway: Gateway) -> dict[str, int]:
    return {
        arm.version: arm.weight for route in gateway.routes for arm in route.arms if arm.replicas
    }


def routed(gateway: Gateway, count: int, version: str = "1") -> bool:
    arms = [arm for route in gateway.routes for arm in route.arms]
    return [(arm.version, len(arm.replicas)) for arm in arms] == [(version, count)]


async def test_an_endpoint_is_made_served_scaled_and_removed() -> None:
    async with a_cluster() as (server, gateway), Driver(server, gateway) as driver:
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=2))))
        await until(lambda: routed(gateway, 2))
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=4))))
        await until(lambda: routed(gateway, 4))
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=1))))
        await until(lambda: routed(gateway, 1) and len(names(server, "Pod")) == 1)
        driver.set_desired(a_state(an_endpoint(an_arm(version="2"))))
        await until(lambda: routed(gateway, 1, "2") and names(server, "ConfigMap")[0] != NAME)

        assert names(server, "Deployment") == [name_of(a_revision(version="2"))]
        replica = next(iter(driver.reconciler.replicas.values()))
        assert (replica.phase, replica.version) == (ReplicaPhase.READY, "2")
        assert replica.address in gateway.addresses


async def test_a_drifted_object_is_put_back() -> None:
    async with a_cluster() as (server, gateway), Driver(server, gateway) as driver:
        driver.set_desired(a_state())
        await until(lambda: routed(gateway, 1))
        server.store.patch("Service", NAME, {"spec": {"selector": {"app": "else"}}})
        server.store.delete("PodDisruptionBudget", NAME)

        selector = {"headrace.dev/revision": a_revision().id[:12]}
        await until(
            lambda: (
                selector.items() <= server.store.get("Service", NAME)["spec"]["selector"].items()
            )
        )
        await until(lambda: NAME in names(server, "PodDisruptionBudget"))
        await until(lambda: routed(gateway, 1))


async def test_a_foreign_object_is_left_alone_and_told_of() -> None:
    async with a_cluster() as (server, gateway):
        theirs = server.store.create(
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
            assert server.store.get("ConfigMap", NAME) == theirs


async def test_an_object_that_changes_under_our_hands_is_looked_at_again() -> None:
    async with a_cluster() as (server, gateway), Driver(server, gateway) as driver:
        server.faults += [Fault(verbs=frozenset({"patch"}), kind="Deployment", status=409, times=2)]
        driver.set_desired(a_state())

        await until(lambda: routed(gateway, 1))
        assert names(server, "Deployment") == [NAME]


async def test_a_watch_that_expired_is_begun_anew_with_what_was_missed() -> None:
    async with (
        a_cluster(longest_watch_s=0.3) as (server, gateway),
        Driver(server, gateway) as driver,
    ):
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=2))))
        await until(lambda: routed(gateway, 2))
        # Cut, so that it misses what happens; what happened is forgotten before it comes back.
        server.faults.append(Fault(verbs=frozenset({"watch"}), hang_up=True, times=20))
        await until(lambda: not driver.reconciler.watches.is_synced)
        pod = names(server, "Pod")[0]
        server.store.delete("Pod", pod)
        server.store.compact()
        server.faults.clear()

        await until(lambda: pod not in driver.reconciler.replicas)
        await until(lambda: routed(gateway, 2) and driver.is_quiet())


async def test_a_stream_that_is_told_410_lists_again() -> None:
    async with (
        a_cluster(longest_watch_s=0.2, bookmark_s=60.0) as (server, gateway),
        Driver(server, gateway) as driver,
    ):
        driver.set_desired(a_state())
        await until(lambda: routed(gateway, 1))
        # No bookmark comes, so that the version from which watches go on is soon too old.
        server.store.patch("Service", NAME, {"metadata": {"annotations": {"a": "b"}}})
        server.store.compact()
        await asyncio.sleep(0.5)
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=3))))

        await until(lambda: routed(gateway, 3))


async def test_throttling_and_failures_are_waited_out() -> None:
    async with a_cluster() as (server, gateway), Driver(server, gateway) as driver:
        server.faults += [
            Fault(verbs=frozenset({"list"}), status=503, times=5),
            Fault(verbs=frozenset({"patch"}), status=429, retry_after="1", times=3),
            Fault(verbs=frozenset({"patch"}), status=500, times=2),
        ]
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=2))))

        await until(lambda: routed(gateway, 2))
        assert len(names(server, "Pod")) == 2
        assert [fault.times for fault in server.faults] == [0, 0, 0]


async def test_an_answer_that_was_lost_repeats_nothing() -> None:
    async with a_cluster() as (server, gateway), Driver(server, gateway) as driver:
        server.faults += [
            Fault(verbs=frozenset({"patch"}), kind="Deployment", hang_up=True, after=True, times=3)
        ]
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=2))))

        await until(lambda: routed(gateway, 2) and driver.is_quiet())
        assert names(server, "Deployment") == [NAME]
        assert len(names(server, "Pod")) == 2


async def test_slow_answers_hold_up_no_routes() -> None:
    async with a_cluster() as (server, gateway), Driver(server, gateway) as driver:
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=2))))
        await until(lambda: routed(gateway, 2))
        server.faults.append(
            Fault(verbs=frozenset({"patch"}), kind="Deployment", delay_s=0.9, times=100)
        )
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=3))))
        await asyncio.sleep(0.1)
        server.runtime.states[names(server, "Pod")[0]] = "unready"  # type: ignore[attr-defined]  # the instant one
        server.poke()

        async with asyncio.timeout(0.5):
            await until(lambda: routed(gateway, 1))


async def test_who_is_cut_off_changes_nothing_and_ends() -> None:
    async with a_cluster() as (server, gateway), Driver(server, gateway, times=SHORT) as driver:
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=2))))
        await until(lambda: routed(gateway, 2) and driver.is_quiet())
        server.cut_off("control-a")
        before = len(gateway.history), len(server.requests)
        driver.set_desired(a_state(an_endpoint(an_arm(version="2"))))

        await until(lambda: driver.ended)
        assert "leads no more" in driver.ended
        server.heal()
        await asyncio.sleep(0.2)
        writes = [one for one in server.requests[before[1] :] if one[2] != "Lease"]
        assert (len(gateway.history), writes) == (before[0], [])
        assert routed(gateway, 2)


async def test_two_control_planes_one_dies_the_other_goes_on_from_there() -> None:
    async with (
        a_cluster() as (server, gateway),
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
            await until(lambda: len(names(server, "Deployment")) == 2)
            await first.kill()

            await until(lambda: routed(gateway, 2, "2"))
            await until(lambda: names(server, "Deployment") == [name_of(a_revision(version="2"))])
            await until(lambda: len(names(server, "ConfigMap")) == 2)  # and the record of routes
            assert len(names(server, "Pod")) == 2
            assert second.elector.is_leading()
            lease = server.store.get("Lease", lease_name(PLACE))["spec"]
            assert (lease["holderIdentity"], lease["leaseTransitions"]) == ("control-b", 1)


async def test_a_leader_that_was_cut_off_and_the_next_never_act_at_once() -> None:
    async with (
        a_cluster() as (server, gateway),
        Driver(server, gateway, times=SHORT) as first,
    ):
        await until(first.elector.is_leading)
        async with Driver(server, gateway, name="control-b", times=SHORT) as second:
            state = a_state(an_endpoint(an_arm(replicas=3)))
            first.set_desired(state)
            second.set_desired(state)
            await until(lambda: routed(gateway, 3))
            server.cut_off("control-a")
            await until(second.elector.is_leading)
            assert not first.elector.is_leading()
            server.heal()
            second.set_desired(a_state(an_endpoint(an_arm(replicas=1))))
            await until(lambda: routed(gateway, 1) and len(names(server, "Pod")) == 1)

            writers = [c for c, _, kind, _ in server.requests if kind != "Lease"]
            changes = [one != other for one, other in itertools.pairwise(writers)]
            assert sum(changes) == 1
            publishers = [who for who, _ in gateway.history]
            assert publishers == sorted(publishers)


async def test_who_resigns_is_followed_at_once() -> None:
    async with a_cluster() as (server, gateway):
        async with Driver(server, gateway) as first:
            await until(first.elector.is_leading)
            await first.elector.resign()
        async with Driver(server, gateway, name="control-b") as second:
            async with asyncio.timeout(0.5):
                await until(second.elector.is_leading)


async def test_pods_that_do_not_come_up_say_why() -> None:
    async with a_cluster() as (server, gateway), Driver(server, gateway) as driver:
        states = {"2": "crashing", "3": "oom", "4": "no-image", "5": "no-node", "6": "no-model"}
        for version, state in states.items():
            server.runtime.states[a_revision(version=version).id[:12]] = state  # type: ignore[attr-defined]  # the instant one
        arms = [an_arm(version=version, weight=20) for version in states]
        driver.set_desired(a_state(an_endpoint(*arms)))
        await until(lambda: len(driver.reconciler.replicas) == 5)
        await until(lambda: all(r.reason for r in driver.reconciler.replicas.values()))

        told = {r.version: r for r in driver.reconciler.replicas.values()}
        assert told["2"].cannot_load
        assert told["2"].reason == "cannot load the model: no such operator"
        assert "memory" in told["3"].reason
        assert told["4"].reason.startswith("ImagePullBackOff")
        assert "Insufficient memory" in told["5"].reason
        assert told["6"].reason == "cannot fetch its model: no such artifact"


async def test_a_gateway_that_refuses_keeps_everything_as_it_is() -> None:
    async with a_cluster() as (server, gateway), Driver(server, gateway) as driver:
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=2))))
        await until(lambda: routed(gateway, 2))
        gateway.refuses = True
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=1))))
        await until(lambda: driver.reconciler.publication.error)
        await asyncio.sleep(0.2)
        assert len(names(server, "Pod")) == 2
        gateway.refuses = False

        await until(lambda: routed(gateway, 1) and len(names(server, "Pod")) == 1)


async def test_an_empty_database_removes_nothing() -> None:
    async with a_cluster() as (server, gateway):
        async with Driver(server, gateway) as first:
            first.set_desired(a_state())
            await until(lambda: routed(gateway, 1))
        async with Driver(server, gateway, name="control-b") as second:
            await until(second.elector.is_leading)
            await asyncio.sleep(0.3)
            assert names(server, "Deployment") == [NAME]
            assert second.reconciler.observed().published is None


async def test_the_record_of_routes_is_what_the_gateway_acknowledged() -> None:
    async with a_cluster() as (server, gateway), Driver(server, gateway) as driver:
        driver.set_desired(a_state())
        await until(lambda: routed(gateway, 1) and driver.is_quiet())

        assert record_name(PLACE) in names(server, "ConfigMap")


async def until_made(server: FakeApiServer, kind: str) -> None:
    await until(lambda: not kind or names(server, kind) == [NAME])


async def test_the_role_has_no_verb_too_many_and_none_too_few() -> None:
    async with (
        a_cluster(custom=True) as (server, gateway),
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
            await until(lambda: names(server, "Deployment") == [NAME])
            await until_made(server, scaler)
            server.store.patch("Deployment", NAME, {"spec": {"revisionHistoryLimit": 9}})
            await until(
                lambda: server.store.get("Deployment", NAME)["spec"]["revisionHistoryLimit"] == 2
            )
        await until(lambda: not names(server, "ScaledObject"))
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=1))))
        await until(lambda: routed(gateway, 1) and len(names(server, "Pod")) == 1)
        driver.set_desired(a_state(an_endpoint(an_arm("other"), name="other")))
        await until(lambda: NAME not in names(server, "ConfigMap"))
        await until(lambda: ("coordination.k8s.io", "leases", "update") in server.seen)

        allowed = {
            (rule["apiGroups"][0], resource, verb)
            for rule in role_rules()
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        assert server.seen <= allowed
        # What is read one by one only after a conflict; the first test of conflicts does.
        assert allowed - server.seen <= {one for one in allowed if one[2] == "get"}
        assert role_rules(Autoscaler.HEADRACE) != role_rules()
