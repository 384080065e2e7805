"""Pools on a cluster: their objects, what is told to whom, and what holds whatever happens."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import kubernetes_validate
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    an_arm,
    an_endpoint,
    with_pools,
)
from tests.unit.control.kubernetes.test_decide_laws import (
    check_nothing_routed_was_taken,
    counts,
    ordinary,
    ours,
    versions,
    want,
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


def routed(play: Play) -> dict[str, dict[str, int]]:
    """How many addresses each version of an endpoint has, without the pool's own routes."""
    return {
        route.name: {arm.version: len(arm.replicas) for arm in route.arms}
        for route in play.routed
        if ":" not in route.name
    }


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


def test_every_endpoint_of_a_pool_is_routed_to_all_pods_that_host_it() -> None:
    play = running(hosted("a", "b"))

    assert routed(play) == {"a": {"1": 2}, "b": {"1": 2}}
    assert len(list(play.store.of_kind("Pod"))) == 2
    assert play.decide().actions == ()
    assert play.decision.problems == {}


def test_no_request_goes_to_a_pod_for_what_it_was_not_told() -> None:
    play = Play(desired=hosted("a"), installation=POOLS_PLACE)
    for _ in range(9):
        play.controllers.settle()
        play.look()
        play.act()
        play.acknowledge()

    assert {one.phase for one in play.replicas.values()} == {"ready"}
    assert routed(play) == {"a": {"1": 0}}
    play.settle()
    assert routed(play) == {"a": {"1": 2}}


def test_a_model_that_comes_or_goes_changes_no_object() -> None:
    play = running(hosted("a"))
    version = play.store.version
    play.desired = hosted("a", "b")
    play.settle()
    play.desired = hosted("b")
    play.settle()

    assert routed(play) == {"b": {"1": 2}}
    assert play.store.version == version


def test_a_lost_pod_is_made_again_and_told() -> None:
    play = running(hosted("a", "b"))
    (first, _) = [pod["metadata"]["name"] for pod in play.store.of_kind("Pod")]
    play.store.delete("Pod", first)
    play.settle()

    assert first not in play.told
    assert routed(play) == {"a": {"1": 2}, "b": {"1": 2}}


def test_a_smaller_pool_takes_pods_only_when_none_is_routed() -> None:
    play = running(hosted("a", replicas=3))
    play.desired = hosted("a", replicas=1)
    play.settle()

    assert routed(play) == {"a": {"1": 1}}
    assert len(list(play.store.of_kind("Pod"))) == 1


def test_a_pool_that_is_gone_leaves_nothing() -> None:
    play = running(hosted("a"))
    play.desired = a_state(an_endpoint(an_arm("a"), name="a"))
    play.settle()

    assert routed(play) == {"a": {"1": 1}}
    assert len(ours(play)) == len(KINDS)


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
    assert routed(play)["a"] == {"1": 2}


# Whatever happens


@st.composite
def wishes(draw: st.DrawFn) -> DesiredState:
    """Endpoints in a pool and with pods of their own, perhaps split; perhaps no pool any more."""
    endpoints = []
    for name in draw(st.sampled_from([["a"], ["b"], ["a", "b"]])):
        chosen = draw(st.lists(versions, min_size=1, max_size=2, unique=True))
        shares = [100] if len(chosen) == 1 else [30, 70]
        is_hosted = draw(st.booleans())
        arms = [
            a_hosted_arm(name, version, weight=weight)
            if is_hosted
            else an_arm(name, version, weight=weight, replicas=draw(counts))
            for version, weight in zip(chosen, shares, strict=True)
        ]
        endpoints.append(an_endpoint(*arms, name=name))
    is_used = any(arm.revision.pool for endpoint in endpoints for arm in endpoint.arms)
    size, most = draw(st.integers(1, 3)), draw(st.sampled_from([8, 9]))
    pools = (a_pool(replicas=size, max_loaded=most),) if is_used or draw(st.booleans()) else ()
    return with_pools(a_state(*endpoints), *pools)


EVENTS: Final = st.lists(wishes().map(want) | ordinary | st.just(Play.tell), max_size=30)


def check_who_is_routed_to_hosts_it(play: Play) -> None:
    hosting = play.hosting()
    for route in play.routed:
        for arm in route.arms:
            for address in arm.replicas if arm.pooled else ():
                assert address not in hosting or (route.name, arm.version) in hosting[address]


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(wish=wishes(), events=EVENTS)
def test_no_request_is_lost_and_it_ends_with_what_is_wanted(
    wish: DesiredState, events: list[Callable[[Play], None]]
) -> None:
    play = Play(installation=POOLS_PLACE)
    for event in events:
        version = play.store.version
        event(play)
        check_nothing_routed_was_taken(play, version)
        if event is Play.tell:
            check_who_is_routed_to_hosts_it(play)
    play.runtime.states.clear()
    play.desired = wish
    play.settle()

    objects = objects_of(wish, installation=POOLS_PLACE)
    assert ours(play) == {(one["kind"], one["metadata"]["name"]) for one in objects}
    deployments = [one for one in objects if one["kind"] == "Deployment"]
    pods = list(play.store.of_kind("Pod"))
    assert len(pods) == sum(one["spec"]["replicas"] for one in deployments)
    size = wish.pools[0].replicas if wish.pools else 0
    assert routed(play) == {
        endpoint.name: {
            arm.revision.version: size if arm.revision.pool else arm.replicas
            for arm in endpoint.arms
        }
        for endpoint in wish.endpoints
    }
