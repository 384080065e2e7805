"""Pools on a cluster: their objects, and what is told to whom."""

from dataclasses import replace
from typing import Any, Final

import kubernetes_validate
import msgspec
import pytest

from headrace.control.kubernetes import InstallationName, objects_of
from headrace.control.kubernetes.names import Object
from headrace.control.kubernetes.pods import hosted_settings, model_and_settings
from headrace.control.model.desired import DesiredState
from headrace.core import FailedPreconditionError, PoolReplicaSettings
from headrace.core.spec.kubernetes import PodsSpec
from tests.unit.control.kubernetes.play import Play
from tests.unit.control.kubernetes.states import (
    PLACE,
    POOLS_PLACE,
    a_hosted_arm,
    a_pool,
    a_revision,
    a_state,
    an_endpoint,
    with_pools,
)

KINDS: Final = ("ConfigMap", "Service", "PodDisruptionBudget", "Deployment")


def hosted(*names: str, replicas: int = 2) -> DesiredState:
    """Endpoints of these names in one pool."""
    endpoints = [an_endpoint(a_hosted_arm(name), name=name) for name in names]
    return with_pools(a_state(*endpoints), a_pool(replicas=replicas))


def pool_objects(
    state: DesiredState, installation: InstallationName = POOLS_PLACE
) -> dict[str, Object]:
    return {one["kind"]: one for one in objects_of(state, installation=installation)}


def container(objects: dict[str, Object]) -> Object:
    found: Object = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    return found


def running(state: DesiredState) -> Play:
    play = Play(desired=state, installation=POOLS_PLACE)
    play.settle()
    return play


# Objects


def test_a_pool_is_one_deployment_whatever_it_hosts() -> None:
    alone, both = pool_objects(hosted("a", replicas=3)), pool_objects(hosted("a", "b", replicas=3))

    assert tuple(both) == KINDS
    assert alone == both
    assert both["Deployment"]["spec"]["replicas"] == 3
    for one in both.values():
        kubernetes_validate.validate(one, "1.37", strict=True)


def test_its_pods_fetch_models_themselves_and_start_before_they_are_told_any() -> None:
    objects = pool_objects(hosted("a"))
    pod, replica = objects["Deployment"]["spec"]["template"]["spec"], container(objects)

    assert "initContainers" not in pod
    assert {"name": "models", "mountPath": "/models"} in replica["volumeMounts"]
    assert replica["startupProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert replica["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    told = msgspec.json.decode(
        objects["ConfigMap"]["data"]["replica.json"], type=PoolReplicaSettings
    )
    assert told.artifacts is not msgspec.UNSET
    assert (told.artifacts.url, told.artifacts.directory) == ("s3://artifacts", "/models")
    assert (told.name, told.port, told.metrics_port, told.uds) == ("small", 8000, 8002, "")
    assert told.drain_timeout_s == PLACE.drain_timeout_s


@pytest.mark.parametrize(
    ("memory_bytes", "kubernetes", "memory", "limit"),
    [
        (1 << 30, {}, "2097152Ki", "2097152Ki"),
        (1 << 20, {"resources": {"memory": "1G"}}, "977587Ki", "977587Ki"),
        (
            1 << 30,
            {"resources": {"memory": "1Gi", "memory_limit": "3Gi"}},
            "2097152Ki",
            "4194304Ki",
        ),
        (1 << 30, {"pools": {"small": {"resources": {"memory": "9Gi"}}}}, "9Gi", "9Gi"),
    ],
)
def test_its_pods_have_memory_for_what_they_load(
    memory_bytes: int, kubernetes: dict[str, Any], memory: str, limit: str
) -> None:
    pool = a_pool(memory_bytes=memory_bytes)
    state = DesiredState(spec={"kubernetes": kubernetes}, pools=(pool,))

    resources = container(pool_objects(state))["resources"]

    assert resources["requests"]["memory"] == memory
    assert resources["limits"]["memory"] == limit


@pytest.mark.parametrize(
    ("installation", "said"),
    [
        (PLACE, "--internal-secret"),
        (replace(POOLS_PLACE, artifacts_url=""), "--artifacts URL"),
    ],
)
def test_what_a_pool_needs_is_named(installation: InstallationName, said: str) -> None:
    with pytest.raises(FailedPreconditionError, match=f"pool 'small'.*{said}"):
        objects_of(hosted("a"), installation=installation)


def test_pods_with_less_memory_than_their_models_may_take_are_refused() -> None:
    kubernetes = {"pools": {"small": {"resources": {"memory": "1Gi"}}}}
    state = DesiredState(spec={"kubernetes": kubernetes}, pools=(a_pool(memory_bytes=1 << 30),))

    with pytest.raises(FailedPreconditionError, match="no more than 1Gi"):
        objects_of(state, installation=POOLS_PLACE)


def test_a_hosted_model_has_no_pods_of_its_own() -> None:
    with pytest.raises(FailedPreconditionError, match="pods of pool 'small' host it"):
        model_and_settings(a_revision(pool="small"), PodsSpec(), POOLS_PLACE)


def test_a_pod_is_told_of_a_model_by_what_it_has_to_fetch() -> None:
    revision = a_revision(pool="small")

    told = hosted_settings(revision)

    assert told.path == f"sha256/{revision.settings.sha256}/model.onnx"
    assert msgspec.structs.replace(told, path=revision.settings.path) == revision.settings


# Decisions


def test_no_request_goes_to_a_pod_for_what_it_was_not_told() -> None:
    play = Play(desired=hosted("a"), installation=POOLS_PLACE)
    for _ in range(9):
        play.controllers.settle()
        play.look()
        play.act()
        play.acknowledge()

    assert {one.phase for one in play.replicas.values()} == {"ready"}
    assert play.counts() == {"a": {"1": 0}}
    play.settle()
    assert play.counts() == {"a": {"1": 2}}


def test_a_model_that_comes_or_goes_changes_no_object() -> None:
    play = running(hosted("a"))
    version = play.store.version
    play.desired = hosted("a", "b")
    play.settle()
    play.desired = hosted("b")
    play.settle()

    assert play.counts() == {"b": {"1": 2}}
    assert play.store.version == version


def test_a_lost_pod_is_made_again_and_told() -> None:
    play = running(hosted("a", "b"))
    (first, _) = [pod["metadata"]["name"] for pod in play.store.of_kind("Pod")]
    play.store.delete("Pod", first)
    play.settle()

    assert first not in play.told
    assert play.counts() == {"a": {"1": 2}, "b": {"1": 2}}


def test_what_keeps_a_pool_from_being_made_is_told_at_each_of_its_endpoints() -> None:
    play = Play(desired=hosted("a", "b"))
    play.settle()

    told = play.decision.problems
    assert set(told) == {("pool:small", "0"), ("a", "1"), ("b", "1")}
    assert all("--internal-secret" in said for said in told.values())


def test_a_model_that_no_pod_can_read_is_told_at_its_endpoint_alone() -> None:
    arm = a_hosted_arm("b")
    lies = msgspec.structs.replace(arm.revision.settings, path="/repository/b/1/model.onnx")
    revision = msgspec.structs.replace(arm.revision, settings=lies)
    endpoints = (
        an_endpoint(a_hosted_arm("a"), name="a"),
        an_endpoint(msgspec.structs.replace(arm, revision=revision), name="b"),
    )
    play = Play(desired=with_pools(a_state(*endpoints), a_pool()), installation=POOLS_PLACE)
    play.settle()

    assert set(play.decision.problems) == {("b", "1")}
    assert "headrace models push" in play.decision.problems["b", "1"]
    assert play.counts()["a"] == {"1": 2}
