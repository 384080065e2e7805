"""What holds whatever happens, in whatever order: no request lost, no orphan, no duplicate."""

import math
from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.control.kubernetes import name_of, objects_of
from headrace.control.model.desired import DesiredState
from headrace.control.model.observed import addresses_of
from headrace.core.spec.scale import AutoscaleSpec
from tests.unit.control.kubernetes.fake_cluster import RefusedError
from tests.unit.control.kubernetes.play import Play
from tests.unit.control.kubernetes.states import (
    POOLS_PLACE,
    a_hosted_arm,
    a_pool,
    a_revision,
    a_state,
    an_arm,
    an_endpoint,
    with_pools,
)

OURS: Final = ("ConfigMap", "Service", "PodDisruptionBudget", "Deployment")
STATES: Final = ("ready", "unready", "pending", "crashing")
HPA: Final = {"autoscaler": "hpa"}
Event = Callable[[Play], None]

THEIRS: Final = "theirs"
"""Somebody else's ConfigMap, which nobody here touches."""
counts = st.integers(min_value=0, max_value=3)
versions = st.sampled_from(["1", "2", "3"])


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


def want(state: DesiredState) -> Event:
    return lambda play: setattr(play, "desired", state)


def turn(number: int, state: str) -> Event:
    """Some pod becomes so."""

    def happen(play: Play) -> None:
        pods = [pod["metadata"]["name"] for pod in play.store.of_kind("Pod")]
        if pods:
            play.runtime.states[pods[number % len(pods)]] = state

    return happen


def meddle(number: int, kind: str, *, deletes: bool) -> Event:
    """Somebody edits or deletes an object of ours."""

    def happen(play: Play) -> None:
        found = [one for one in play.store.of_kind(kind) if one["metadata"]["name"] != THEIRS]
        if not found:
            return
        one = found[number % len(found)]
        name = one["metadata"]["name"]
        if deletes:
            play.store.delete(kind, name)
        elif kind == "Deployment":
            play.store.patch(kind, name, {"spec": {"replicas": number % 5}})
        else:
            play.store.patch(kind, name, {"metadata": {"labels": {"headrace.dev/version": "9"}}})

    return happen


moves: Final = st.builds(turn, st.integers(0, 30), st.sampled_from(STATES)) | st.sampled_from(
    [
        Play.look,
        Play.act,
        Play.act,
        Play.acknowledge,
        Play.lead_anew,
        lambda play: play.look("Pod"),
        lambda play: play.look("EndpointSlice"),
        lambda play: play.look("Deployment"),
        lambda play: play.controllers.step(),
        lambda play: play.controllers.settle(),
    ]
)
"""What happens with the same desired state."""
ordinary: Final = wishes().map(want) | moves | st.just(Play.tell)
meddling: Final = st.builds(meddle, st.integers(0, 9), st.sampled_from(OURS), deletes=st.booleans())


def check_nothing_routed_was_taken(play: Play, since: int) -> None:
    """Whoever was told to end while it was ready gets no requests."""
    for event in play.store.events:
        if event.version <= since or event.found["kind"] != "Pod" or event.before is None:
            continue
        is_new = "deletionTimestamp" not in event.before["metadata"]
        status = event.before.get("status", {})
        was_ready = any(
            one["type"] == "Ready" and one["status"] == "True"
            for one in status.get("conditions", ())
        )
        if is_new and was_ready and "deletionTimestamp" in event.found["metadata"]:
            assert f"{status['podIP']}:8000" not in play.addresses()


def ours(play: Play) -> set[tuple[str, str]]:
    return {key for key in play.store.objects if key[0] in OURS and key[1] != THEIRS}


def check_who_is_routed_to_hosts_it(play: Play) -> None:
    hosting = play.hosting()
    for route in play.routed:
        for arm in route.arms:
            for address in arm.replicas if arm.pooled else ():
                assert address not in hosting or (route.name, arm.version) in hosting[address]


def check_it_ends_with(wish: DesiredState, play: Play) -> None:
    """With all that is wanted, and nothing else."""
    play.runtime.states.clear()
    play.desired = wish
    play.settle()

    objects = objects_of(wish, installation=POOLS_PLACE)
    assert ours(play) == {(one["kind"], one["metadata"]["name"]) for one in objects}
    deployments = [one for one in objects if one["kind"] == "Deployment"]
    pods = play.store.of_kind("Pod")
    assert len(pods) == sum(one["spec"]["replicas"] for one in deployments)
    assert play.addresses() == {f"{pod['status']['podIP']}:8000" for pod in pods}
    size = wish.pools[0].replicas if wish.pools else 0
    assert play.counts() == {
        endpoint.name: {
            arm.revision.version: size if arm.revision.pool else arm.replicas
            for arm in endpoint.arms
        }
        for endpoint in wish.endpoints
    }


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(wish=wishes(), events=st.lists(ordinary, max_size=30))
def test_no_request_is_lost_and_it_ends_with_what_is_wanted(
    wish: DesiredState, events: list[Event]
) -> None:
    play = Play(installation=POOLS_PLACE)
    for event in events:
        version = play.store.version
        event(play)
        check_nothing_routed_was_taken(play, version)
        if event is Play.tell:
            check_who_is_routed_to_hosts_it(play)
    check_it_ends_with(wish, play)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(wish=wishes(), events=st.lists(ordinary | meddling, max_size=25))
def test_whatever_others_do_it_ends_with_what_is_wanted_and_theirs_is_untouched(
    wish: DesiredState, events: list[Event]
) -> None:
    play = Play(installation=POOLS_PLACE)
    head = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": THEIRS}}
    theirs = play.store.create({**head, "data": {"a": "b"}})
    for event in events:
        try:
            event(play)
        except RefusedError:
            play.look()
    check_it_ends_with(wish, play)

    assert play.store.get("ConfigMap", THEIRS) == theirs


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(
    scale=st.tuples(st.integers(1, 4), st.integers(4, 12)),
    share=st.integers(1, 100),
    count=st.integers(1, 12),
    events=st.lists(st.tuples(st.sampled_from(["1", "2"]), st.integers(0, 12)), max_size=12),
)
def test_a_version_gets_its_weight_only_with_the_pods_for_it_whatever_an_autoscaler_does(
    scale: tuple[int, int], share: int, count: int, events: list[tuple[str, int]]
) -> None:
    bounds = AutoscaleSpec(target_in_flight=1.0, min_replicas=scale[0], max_replicas=scale[1])

    def autoscale(version: str, pods: int) -> None:
        """An HPA sets the number of pods within its bounds."""
        name = name_of(a_revision("a", version))
        scaler = play.store.objects.get(("HorizontalPodAutoscaler", name))
        if scaler is not None and ("Deployment", name) in play.store.objects:
            spec = scaler["spec"]
            pods = min(max(pods, spec["minReplicas"]), spec["maxReplicas"])
            play.store.scale(name, pods, manager="hpa")

    def step() -> None:
        play.controllers.settle()
        play.look()
        before = addresses_of(play.routed)
        was_new = any(arm.version == "2" for arm in play.routed[0].arms)
        serving = [r for r in play.replicas.values() if r.is_running and r.address in before]
        play.act()
        arms = {arm.version: len(arm.replicas) for arm in play.routed[0].arms}
        if "2" in arms and not was_new:
            needed = min(math.ceil(len(serving) * share / 100), math.ceil(scale[1] * share / 100))
            assert arms["2"] >= needed
            assert arms.get("1", 0) + arms["2"] >= min(len(serving), scale[1])
        play.acknowledge()

    play = Play(desired=a_state(an_endpoint(an_arm("a"), name="a", autoscale=bounds), **HPA))
    play.settle()
    autoscale("1", count)
    play.settle()
    arms = [an_arm("a", "2", weight=share)]
    if share < 100:
        arms.append(an_arm("a", "1", weight=100 - share))
    play.desired = a_state(an_endpoint(*arms, name="a", autoscale=bounds), **HPA)
    play.runtime.default = "pending"
    for version, number in events:
        autoscale(version, number)
        turn(number, "ready")(play)
        step()
    play.runtime.states.clear()
    play.runtime.default = "ready"
    for _ in range(20):
        autoscale("1", 0)
        autoscale("2", 0)
        step()
    assert [arm.weight for arm in play.routed[0].arms] == [arm.weight for arm in arms]
