"""Autoscalers, quotas and disruption budgets of a real cluster."""

import pytest

from headrace.control.kubernetes import name_of
from headrace.control.model.desired import DesiredState
from headrace.core.spec.scale import AutoscaleSpec
from tests.e2e.kubernetes.driving import Driver, a_cluster, until
from tests.kube_server.namespace import Object, TestNamespace
from tests.unit.control.kubernetes.states import a_revision, a_state, an_arm, an_endpoint

pytestmark = [pytest.mark.e2e, pytest.mark.kube_server, pytest.mark.anyio]
OLD, NEW = (name_of(a_revision(version=version)) for version in ("1", "2"))
SCALE = AutoscaleSpec(target_in_flight=4.0, min_replicas=2, max_replicas=12)


def under_an_hpa(version: str) -> DesiredState:
    endpoint = an_endpoint(an_arm(version=version), autoscale=SCALE)
    return a_state(endpoint, autoscaler="hpa")


async def test_a_version_under_an_hpa_takes_over_with_the_pods_of_the_one_before(
    namespace: TestNamespace,
) -> None:
    async with a_cluster(namespace) as (server, gateway), Driver(server, gateway) as driver:
        driver.set_desired(under_an_hpa("1"))
        await until(lambda: len(gateway.addresses) == 2, "the HPA lifts 1 to its minimum")
        scale = f"{namespace.path('Deployment', OLD)}/scale"
        headers = {"content-type": "application/merge-patch+json"}
        namespace.call("PATCH", scale, json={"spec": {"replicas": 10}}, headers=headers)
        await until(lambda: len(gateway.addresses) == 10)
        since = len(gateway.history)
        driver.set_desired(under_an_hpa("2"))
        await until(lambda: namespace.names("Deployment") == [NEW])
        await until(
            lambda: namespace.get("HorizontalPodAutoscaler", NEW)["spec"]["minReplicas"] == 2
        )

    routed = [
        (arm.version, len(arm.replicas))
        for _, (route,) in gateway.history[since:]
        for arm in route.arms
    ]
    assert min(count for _, count in routed) == 10, routed


async def test_the_count_of_a_foreign_hpa_is_routed_told_and_not_fought(
    namespace: TestNamespace,
) -> None:
    def replicas() -> int:
        count: int = namespace.get("Deployment", OLD)["spec"]["replicas"]
        return count

    async with a_cluster(namespace) as (server, gateway), Driver(server, gateway) as driver:
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=2))))
        await until(lambda: len(gateway.addresses) == 2)
        namespace.create(a_foreign_hpa(minimum=4))
        await until(lambda: len(gateway.addresses) == 4)
        arm = driver.reconciler.desired.endpoints[0].arms[0]
        await until(lambda: "another autoscaler" in driver.reconciler.arm_problem("digits", arm))
        generation = namespace.get("Deployment", OLD)["metadata"]["generation"]
        driver.reconciler.wake()
        await until(driver.is_quiet)

        assert replicas() == 4
        assert namespace.get("Deployment", OLD)["metadata"]["generation"] == generation
        namespace.delete("HorizontalPodAutoscaler", "theirs")


def a_foreign_hpa(*, minimum: int) -> Object:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "theirs"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": OLD},
            "minReplicas": minimum,
            "maxReplicas": 8,
        },
    }


async def test_a_quota_does_not_block_a_drain_and_one_pod_goes_at_a_time(
    namespace: TestNamespace,
) -> None:
    quota = {"metadata": {"name": "pods"}, "spec": {"hard": {"pods": "3"}}}
    namespace.create({"apiVersion": "v1", "kind": "ResourceQuota", **quota})
    async with a_cluster(namespace) as (server, gateway), Driver(server, gateway) as driver:
        driver.set_desired(a_state(an_endpoint(an_arm(replicas=5))))
        await until(lambda: len(gateway.addresses) == 3)
        await until(
            lambda: (
                namespace.get("PodDisruptionBudget", OLD)
                .get("status", {})
                .get("disruptionsAllowed")
                == 1
            )
        )
        pods = namespace.names("Pod")
        evicted = [namespace.evict(pod) for pod in pods]

        assert evicted == [True, False, False]
        await until(lambda: len(set(namespace.names("Pod")) - set(pods)) == 1)
        await until(lambda: len(gateway.addresses) == 3)
