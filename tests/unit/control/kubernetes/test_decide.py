import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.kubernetes import name_of
from headrace.control.kubernetes.decide import shortage
from headrace.control.kubernetes.executor import ApplyObject, DeleteObject, MarkPod, YieldReplicas
from headrace.control.kubernetes.replicas import (
    Metadata,
    Pod,
    PodCondition,
    PodStatus,
    pods_in,
)
from headrace.control.kubernetes.snapshot import is_ours, owns_replicas
from headrace.control.model.desired import DesiredArm
from headrace.control.reconcile.plan import PublishRoutes
from headrace.core.spec.scale import AutoscaleSpec
from tests.unit.control.kubernetes.play import Play
from tests.unit.control.kubernetes.states import (
    PLACE,
    a_revision,
    a_state,
    an_arm,
    an_endpoint,
)

NAME = name_of(a_revision())
SCALE = AutoscaleSpec(target_in_flight=4.0)


def running(*arms: DesiredArm, **kubernetes: object) -> Play:
    play = Play(desired=a_state(an_endpoint(*arms), **kubernetes))
    play.settle()
    return play


def weights(play: Play) -> dict[str, tuple[int, int]]:
    """Weight and number of addresses by version, as the gateway has it."""
    (route,) = play.routed
    return {arm.version: (arm.weight, len(arm.replicas)) for arm in route.arms}


def objects(play: Play, kind: str) -> list[str]:
    return [one["metadata"]["name"] for one in play.store.of_kind(kind)]


def test_a_new_version_takes_over_only_when_it_is_ready() -> None:
    play = running(an_arm(replicas=2))
    play.runtime.states[a_revision(version="2").id[:12]] = "pending"
    play.desired = a_state(an_endpoint(an_arm(version="2", replicas=2)))
    play.settle()

    assert weights(play) == {"1": (100, 2)}
    assert len(objects(play, "Deployment")) == 2
    play.runtime.states.clear()
    play.settle()
    assert weights(play) == {"2": (100, 2)}
    assert objects(play, "Deployment") == [name_of(a_revision(version="2"))]


def test_a_revision_that_left_is_deleted_only_after_the_acknowledgement() -> None:
    play = running(an_arm())
    play.desired = a_state(an_endpoint(an_arm(version="2")))
    play.controllers.settle()
    for _ in range(5):
        play.look()
        play.act()  # version 2 is made, is ready, and its routes are sent
        play.controllers.settle()

    assert weights(play) == {"2": (100, 1)}
    assert NAME in objects(play, "Deployment")
    play.acknowledge()
    play.act()
    assert NAME not in objects(play, "Deployment")


def test_settings_stay_for_as_long_as_pods_may_read_them() -> None:
    play = running(an_arm())
    play.runtime.lingering = set(objects(play, "Pod"))
    play.desired = a_state(an_endpoint(an_arm("other"), name="other"))
    play.settle()

    assert NAME in objects(play, "ConfigMap")
    play.runtime.lingering.clear()
    play.settle()
    assert NAME not in objects(play, "ConfigMap")


def test_scaling_down_marks_then_unroutes_then_lowers() -> None:
    play = running(an_arm(replicas=3))
    play.desired = a_state(an_endpoint(an_arm(replicas=1)))
    play.look()
    first = play.act()

    marked = [each for each in first.actions if isinstance(each, MarkPod)]
    assert [each.cost for each in marked] == [-1000, -1000]
    assert [
        len(a.routes[0].arms[0].replicas) for a in first.actions if isinstance(a, PublishRoutes)
    ] == [1]
    assert not [each for each in first.actions if isinstance(each, ApplyObject)]
    play.look()
    assert not [each for each in play.act().actions if isinstance(each, ApplyObject)]
    play.acknowledge()
    (lower,) = play.act().actions
    assert isinstance(lower, ApplyObject)
    assert lower.manifest["spec"]["replicas"] == 1
    play.settle()
    assert play.addresses() == {r.address for r in play.replicas.values()}


def test_our_field_is_put_back_and_anothers_is_left() -> None:
    play = running(an_arm())
    change = {
        "metadata": {"labels": {"team": "vision"}},
        "spec": {"replicas": 7, "progressDeadlineSeconds": 1},
    }
    play.store.patch("Deployment", NAME, change)
    play.look()
    decided = play.decide()

    (action,) = [each for each in decided.actions if isinstance(each, ApplyObject)]
    assert action.why == "it differs at spec.progressDeadlineSeconds, spec.replicas"
    play.settle()
    deployment = play.store.get("Deployment", NAME)
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["progressDeadlineSeconds"] == 600
    assert deployment["metadata"]["labels"]["team"] == "vision"


@pytest.mark.parametrize("kind", ["ConfigMap", "Service", "Deployment", "PodDisruptionBudget"])
def test_a_foreign_object_of_our_name_is_a_named_problem_and_untouched(kind: str) -> None:
    theirs = running(an_arm(replicas=2)).store.get(kind, NAME)
    for field in ("uid", "resourceVersion", "managedFields", "ownerReferences"):
        theirs["metadata"].pop(field, None)
    theirs["metadata"]["labels"] = {"app": "theirs"}
    play = Play(desired=a_state(an_endpoint(an_arm(replicas=2))))
    made = play.store.create(theirs)
    play.settle()

    assert (
        f"there is a {kind} {NAME} that Headrace did not make"
        in play.decision.problems["digits", "1"]
    )
    assert play.store.get(kind, NAME)["metadata"]["labels"] == {"app": "theirs"}
    assert play.store.get(kind, NAME).get("spec") == made.get("spec")


def test_an_object_with_our_labels_that_we_did_not_make_is_not_deleted() -> None:
    play = running(an_arm())
    copied = play.store.get("ConfigMap", NAME)
    labels = copied["metadata"]["labels"] | {"headrace.dev/revision": "0" * 12}
    play.store.create(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "copied", "labels": labels},
        }
    )
    play.settle()

    assert "copied" in objects(play, "ConfigMap")


def test_what_another_controller_owns_is_not_ours() -> None:
    found = running(an_arm()).store.get("Deployment", NAME)
    reference = {"apiVersion": "v1", "kind": "X", "name": "x", "uid": "u-2", "controller": True}

    assert is_ours(found, PLACE)
    found["metadata"]["ownerReferences"] = [reference]
    assert not is_ours(found, PLACE)
    found["metadata"]["ownerReferences"] = [{**reference, "controller": False}]
    assert is_ours(found, PLACE)


def test_a_model_that_pods_cannot_fetch_is_a_problem_and_stops_nobody_else() -> None:
    arm = an_arm()
    settings = msgspec.structs.replace(arm.revision.settings, path="/data/model.onnx")
    revision = msgspec.structs.replace(arm.revision, settings=settings)
    here = an_endpoint(msgspec.structs.replace(arm, revision=revision))
    play = Play(desired=a_state(here, an_endpoint(an_arm("other"), name="other")))
    play.settle()

    assert "push it" in play.decision.problems["digits", "1"]
    assert objects(play, "Deployment") == [name_of(a_revision("other"))]


def test_a_new_leader_takes_nothing_away_before_the_gateway_answered_it() -> None:
    play = running(an_arm(replicas=2))
    play.lead_anew()
    play.desired = a_state(an_endpoint(an_arm(replicas=1)))
    play.look()
    play.act()
    play.look()

    assert not [each for each in play.act().actions if isinstance(each, ApplyObject | DeleteObject)]
    play.settle()
    assert len(objects(play, "Pod")) == 1


def test_a_new_leader_goes_on_with_the_split_that_was_in_force() -> None:
    play = running(an_arm())
    play.runtime.states[a_revision(version="2").id[:12]] = "pending"
    play.desired = a_state(an_endpoint(an_arm(version="2")))
    play.settle()
    play.lead_anew()
    play.settle()

    assert weights(play) == {"1": (100, 1)}


def test_an_hpa_comes_only_after_we_let_go_of_the_count() -> None:
    play = running(an_arm(replicas=3))
    play.desired = a_state(an_endpoint(an_arm(replicas=3), autoscale=SCALE), autoscaler="hpa")
    play.look()
    first = play.act()

    assert [type(each) for each in first.actions] == [YieldReplicas]
    assert play.store.get("Deployment", NAME)["spec"]["replicas"] == 3
    assert not owns_replicas(play.store.get("Deployment", NAME))
    play.settle()
    assert objects(play, "HorizontalPodAutoscaler") == [NAME]


def test_we_count_again_only_after_the_hpa_is_gone() -> None:
    play = Play(desired=a_state(an_endpoint(an_arm(), autoscale=SCALE), autoscaler="hpa"))
    play.settle()
    play.store.patch("Deployment", NAME, {"spec": {"replicas": 3}})
    play.settle()
    assert len(play.addresses()) == 3
    play.desired = a_state(an_endpoint(an_arm(), autoscale=SCALE))
    play.look()
    first = play.act()

    deleted, budget, applied = (
        action for action in first.actions if not isinstance(action, PublishRoutes | MarkPod)
    )
    assert isinstance(deleted, DeleteObject)
    assert isinstance(budget, DeleteObject)
    assert isinstance(applied, ApplyObject)
    assert play.store.get("Deployment", NAME)["spec"]["replicas"] == 3
    assert owns_replicas(play.store.get("Deployment", NAME)), "the HPA's count is not contested"
    play.settle()
    assert play.store.get("Deployment", NAME)["spec"]["replicas"] == 1


def test_a_new_version_starts_with_the_pods_that_the_old_ones_autoscaler_has() -> None:
    scale = AutoscaleSpec(target_in_flight=4.0, min_replicas=2, max_replicas=20)
    play = Play(desired=a_state(an_endpoint(an_arm(), autoscale=scale), autoscaler="hpa"))
    play.settle()
    play.store.scale(NAME, 10, manager="hpa")
    play.settle()
    other = name_of(a_revision(version="2"))
    play.runtime.states[a_revision(version="2").id[:12]] = "pending"
    arms = an_arm(weight=50), an_arm(version="2", weight=50)
    play.desired = a_state(an_endpoint(*arms, autoscale=scale), autoscaler="hpa")
    play.settle()

    scalers = {name: play.store.get("HorizontalPodAutoscaler", name) for name in (NAME, other)}
    assert weights(play) == {"1": (100, 10)}
    assert play.store.get("Deployment", other)["spec"]["replicas"] == 5
    assert not owns_replicas(play.store.get("Deployment", other))
    assert scalers[NAME]["spec"]["minReplicas"] == 2
    assert scalers[NAME]["spec"]["maxReplicas"] == 20, "it still gets all requests"
    assert scalers[other]["spec"]["minReplicas"] == 5
    play.store.scale(NAME, 6, manager="hpa")
    play.settle()
    assert play.store.get("HorizontalPodAutoscaler", other)["spec"]["minReplicas"] == 3
    play.runtime.states.clear()
    play.settle()
    assert weights(play) == {"1": (50, 6), "2": (50, 5)}
    for name in scalers:
        spec = play.store.get("HorizontalPodAutoscaler", name)["spec"]
        assert (spec["minReplicas"], spec["maxReplicas"]) == (1, 10)


def set_by(play: Play, manager: str, replicas: int) -> None:
    """Another manager sets `replicas` through the subresource `scale`."""
    play.store.scale(NAME, replicas, manager=manager)
    play.controllers.settle()
    play.look()


def test_an_autoscaler_of_others_is_a_named_problem_and_its_count_is_routed() -> None:
    play = running(an_arm(replicas=2))
    set_by(play, "kube-controller-manager", 4)
    decision = play.act()

    assert decision.problems["digits", "1"] == (
        "another autoscaler sets its replicas to 4, and not to 2: remove that autoscaler, or set "
        "kubernetes.autoscaler"
    )
    assert [type(action) for action in decision.actions] == [PublishRoutes]
    assert weights(play) == {"1": (100, 4)}

    play.acknowledge()
    play.now += 300.0
    play.settle()
    assert play.store.get("Deployment", NAME)["spec"]["replicas"] == 2, "it may be gone by now"
    assert not play.decision.problems


def test_one_pod_has_no_disruption_budget() -> None:
    play = running(an_arm(replicas=1))
    assert objects(play, "PodDisruptionBudget") == []
    play.desired = a_state(an_endpoint(an_arm(replicas=2)))
    play.settle()
    assert objects(play, "PodDisruptionBudget") == [NAME]
    play.desired = a_state(an_endpoint(an_arm(replicas=1)))
    play.settle()

    assert objects(play, "PodDisruptionBudget") == []
    assert objects(play, "Deployment") == [NAME]


def test_kubectl_scale_is_put_back_at_once() -> None:
    play = running(an_arm(replicas=2))
    set_by(play, "kubectl", 4)

    assert not play.act().problems
    play.acknowledge()
    play.settle()
    assert play.store.get("Deployment", NAME)["spec"]["replicas"] == 2


def test_pods_that_the_cluster_refuses_do_not_block_a_drain() -> None:
    play = running(an_arm(replicas=5))
    names = objects(play, "Pod")
    for name in names[3:]:
        play.cluster.drop(play.store.get("Pod", name))
    deployment = play.cluster.find("Deployment", NAME)
    assert deployment is not None
    assert shortage(deployment, pods_in(play.cluster, PLACE)) == 0, "they are being made"
    failed = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    play.store.set_status("Deployment", NAME, {**deployment["status"], "conditions": [failed]})
    play.look("Deployment")

    (action,) = [a for a in play.decide().actions if isinstance(a, ApplyObject)]
    assert action.manifest["kind"] == "PodDisruptionBudget"
    assert action.manifest["spec"]["maxUnavailable"] == 3
    play.perform(action)
    play.store.set_status("Deployment", NAME, deployment["status"])
    play.settle()
    assert play.store.get("PodDisruptionBudget", NAME)["spec"]["maxUnavailable"] == 1


@given(
    replicas=st.integers(1, 9),
    states=st.lists(st.sampled_from(["ready", "leaving", "unschedulable"]), max_size=9),
)
def test_a_disruption_budget_allows_one_pod_to_go_and_never_a_second(
    replicas: int, states: list[str]
) -> None:
    """Law: with `shortage`, as many ready pods may be evicted as without it, if none were missing.

    The cluster allows healthy pods - (replicas - maxUnavailable) evictions.
    """
    conditions = [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]
    deployment = {"spec": {"replicas": replicas}, "status": {"conditions": conditions}}
    unschedulable = [PodCondition(type="PodScheduled", status="False", reason="Unschedulable")]
    states = states[:replicas]
    pods = [
        Pod(
            metadata=Metadata(name="p", deletion_timestamp="now" if state == "leaving" else None),
            status=PodStatus(conditions=unschedulable if state == "unschedulable" else None),
        )
        for state in states
    ]
    most = 1 + shortage(deployment, pods)

    assert states.count("ready") - (replicas - most) == 1 - states.count("leaving")


def test_scaled_to_zero_keeps_the_deployment_and_routes_nothing() -> None:
    play = running(an_arm(replicas=1))
    arm = an_arm(replicas=0)
    scale = AutoscaleSpec(min_replicas=0)
    endpoint = msgspec.structs.replace(an_endpoint(arm, autoscale=scale), scaled_to_zero=True)
    play.desired = a_state(endpoint)
    play.settle()

    assert play.store.get("Deployment", NAME)["spec"]["replicas"] == 0
    assert play.addresses() == frozenset()
    assert play.routed[0].held


def test_pods_that_the_cluster_refuses_are_a_named_problem_until_it_makes_them() -> None:
    play = running(an_arm())
    why = 'pods "x" is forbidden: exceeded quota: gpus'
    failed = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": why}
    status = play.store.get("Deployment", NAME)["status"]
    play.store.set_status("Deployment", NAME, {**status, "conditions": [failed]})
    play.look()

    assert play.decide().problems == {
        ("digits", "1"): f"the cluster refuses its pods: {why}",
    }

    play.store.set_status("Deployment", NAME, status)
    play.look()
    assert play.decide().problems == {}


def test_who_was_scaled_to_zero_is_handed_over_with_one_pod() -> None:
    play = running(an_arm(replicas=0))
    assert play.store.get("Deployment", NAME)["spec"]["replicas"] == 0

    play.desired = a_state(an_endpoint(an_arm(replicas=0), autoscale=SCALE), autoscaler="hpa")
    play.settle()

    assert play.store.get("Deployment", NAME)["spec"]["replicas"] == 1, "an HPA leaves 0 at 0"
    assert len(objects(play, "Pod")) == 1
