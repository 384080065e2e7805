"""How many Deployments have their pods replaced at once, and what a broken image comes to."""

from collections.abc import Mapping
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.control.kubernetes import name_of
from headrace.control.kubernetes.executor import ApplyObject, ScaleDeployment
from headrace.control.kubernetes.rolling import (
    PodChange,
    changes_pods,
    deadline_exceeded,
    is_rolling,
    most_at_once,
    next_roll,
)
from tests.unit.control.kubernetes.play import Play
from tests.unit.control.kubernetes.states import a_revision, a_state, an_arm, an_endpoint
from tests.unit.control.kubernetes.test_decide_laws import Event, moves

NEW: Final = "registry/replica:2"


def wish(count: int, *, replicas: int = 1, **kubernetes: Any) -> Any:  # noqa: ANN401  # as a state has it
    names = [f"e{number}" for number in range(count)]
    endpoints = [an_endpoint(an_arm(name, replicas=replicas), name=name) for name in names]
    return a_state(*endpoints, **kubernetes)


def running(count: int, **more: Any) -> Play:  # noqa: ANN401  # as `wish` has them
    play = Play(desired=wish(count, **more))
    play.settle()
    return play


def images(play: Play) -> list[str]:
    """What Deployments say, by their names."""
    return [
        one["spec"]["template"]["spec"]["containers"][0]["image"]
        for one in play.store.of_kind("Deployment")
    ]


def mixed(play: Play) -> set[str]:
    """Deployments that have pods of more than one template, or that have none of theirs yet."""
    hashes: dict[str, set[str]] = {}
    for pod in play.store.of_kind("Pod"):
        image = pod["spec"]["containers"][0]["image"]
        name = pod["metadata"]["ownerReferences"][0]["name"].rpartition("-")[0]
        hashes.setdefault(name, set()).add(image)
    told = zip(play.store.of_kind("Deployment"), images(play), strict=True)
    return {
        one["metadata"]["name"]
        for one, image in told
        if hashes.get(one["metadata"]["name"], {image}) != {image}
    }


def test_a_broken_image_stops_after_the_bound_and_says_so() -> None:
    play = running(4, replicas=2, max_rolling_ratio=0.5)
    before = play.addresses()
    play.runtime.states[NEW] = "no-image"
    play.desired = wish(4, replicas=2, image=NEW, max_rolling_ratio=0.5)
    play.settle()

    assert images(play).count(NEW) == 2
    assert play.addresses() == before
    assert len(play.decision.problems) == 2
    assert all(
        "do not get ready, and others wait" in one for one in play.decision.problems.values()
    )
    assert all("ImagePullBackOff" in said for said in play.decision.problems.values())
    assert len(play.decision.roll.later) == 2
    assert len(play.decision.roll.rolling) == 2


def test_another_image_gets_those_out_that_are_stuck_and_then_all_the_others() -> None:
    play = running(4)
    play.runtime.states[NEW] = "crashing"
    play.desired = wish(4, image=NEW)
    play.settle()
    assert images(play).count(NEW) == 1
    play.desired = wish(4, image="registry/replica:3")
    play.look()

    play.act()
    assert images(play).count("registry/replica:3") == 1
    assert images(play).count(NEW) == 0
    play.settle()
    assert images(play) == ["registry/replica:3"] * 4
    assert play.decision.problems == {}


def test_new_deployments_and_counts_are_not_held_back() -> None:
    play = running(4)
    play.runtime.states[NEW] = "no-image"
    play.desired = wish(4, image=NEW)
    play.settle()
    play.desired = wish(5, replicas=3, image=NEW)
    play.settle()

    counts = [one["spec"]["replicas"] for one in play.store.of_kind("Deployment")]
    assert counts == [3] * 5
    assert images(play).count(NEW) == 2, "one that is stuck, and the new one"
    play.desired = wish(5, replicas=1, image=NEW)
    play.settle()
    counts = [one["spec"]["replicas"] for one in play.store.of_kind("Deployment")]
    assert counts == [1] * 5
    play.runtime.states.clear()
    play.settle()
    assert images(play) == [NEW] * 5


def test_settings_change_with_the_pods_that_read_them_and_not_before() -> None:
    play = running(4)
    told = [one["data"] for one in play.store.of_kind("ConfigMap")]
    name = name_of(a_revision("e0"))
    play.store.patch("ConfigMap", name, {"data": {"replica.json": "{}"}})
    play.settle()
    assert [one["data"] for one in play.store.of_kind("ConfigMap")] == told, "drift is put back"

    play.runtime.states[NEW] = "no-image"
    play.desired = wish(4, image=NEW)
    play.settle()
    (waiting,) = play.decision.roll.later[:1]
    name = waiting.deployment["metadata"]["name"]
    play.store.patch("ConfigMap", name, {"data": {"replica.json": "{}"}})
    play.settle()

    assert play.store.get("ConfigMap", name)["data"] == {"replica.json": "{}"}
    play.runtime.states.clear()
    play.settle()
    assert [one["data"] for one in play.store.of_kind("ConfigMap")] == told


def test_what_was_broken_before_goes_last_and_holds_up_nobody() -> None:
    play = Play(desired=wish(4))
    broken = a_revision("e0").id[:12]
    play.runtime.states[broken] = "crashing"
    play.settle()
    play.desired = wish(4, image=NEW)
    play.settle()

    assert images(play) == [NEW] * 4


def test_a_fixed_selector_is_a_problem_with_a_way_out_and_scaling_goes_on() -> None:
    play = running(1)
    name = name_of(a_revision("e0"))
    key = "Deployment", name
    play.store.objects[key]["spec"]["selector"]["matchLabels"]["headrace.dev/older"] = "1"
    play.desired = wish(1, replicas=2, image=NEW)
    play.look()
    done = play.act()

    said = play.decision.problems["e0", "1"]
    assert f"kubectl delete deployment {name}" in said
    assert "--cascade=orphan" in said
    assert [type(one) for one in done.actions] == [ApplyObject, ScaleDeployment]
    assert play.store.get(*key)["spec"]["replicas"] == 2
    assert images(play) != [NEW]


def rescale(replicas: int) -> Event:
    def happen(play: Play) -> None:
        image = play.desired.spec.get("kubernetes", {})
        play.desired = wish(len(play.desired.endpoints), replicas=replicas, **image)

    return happen


events: Final = moves | st.builds(rescale, st.integers(1, 3))
ratios: Final = st.sampled_from([0.01, 0.25, 0.5, 1.0])


@pytest.mark.slow
@settings(deadline=None, max_examples=6)
@given(ratio=ratios, script=st.lists(events, max_size=20))
def test_whatever_happens_no_more_roll_than_may_and_all_have_it_in_the_end(
    ratio: float, script: list[Event]
) -> None:
    play = running(4, max_rolling_ratio=ratio)
    play.desired = wish(4, max_rolling_ratio=ratio, image=NEW)
    most = most_at_once(4, ratio)
    for event in script:
        event(play)
        assert len(mixed(play)) <= most
    play.runtime.states.clear()
    for _ in range(15):
        play.controllers.settle()
        play.look()
        play.act()
        play.acknowledge()
        assert len(mixed(play)) <= most
    play.settle()

    assert images(play) == [NEW] * 4
    assert mixed(play) == set()


def deployment(
    name: str = "d",
    *,
    wanted: int = 2,
    told: int = 1,
    template: str = "1",
    status: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    annotations = {"deployment.kubernetes.io/revision": template}
    metadata = {"name": name, "generation": told, "annotations": annotations}
    return {"metadata": metadata, "spec": {"replicas": wanted}, "status": dict(status or {})}


WELL: Final = {
    "observedGeneration": 1,
    "replicas": 2,
    "updatedReplicas": 2,
    "availableReplicas": 2,
}


STATES: Final = {
    "well": deployment(status=WELL),
    "told": deployment(told=2, status=WELL),
    "half": deployment(status=WELL | {"replicas": 3, "updatedReplicas": 1}),
    "gone": deployment(template="2", status=WELL | {"availableReplicas": 0}),
    "never well": deployment(status=WELL | {"availableReplicas": 0}),
}


@given(
    fleet=st.lists(st.tuples(st.sampled_from(sorted(STATES)), st.booleans()), max_size=50),
    ratio=ratios,
)
def test_never_more_than_the_bound_roll_and_as_many_as_may(
    fleet: list[tuple[str, bool]], ratio: float
) -> None:
    found = {
        f"d{i}": STATES[state] | {"metadata": STATES[state]["metadata"] | {"name": f"d{i}"}}
        for i, (state, _) in enumerate(fleet)
    }
    changed = {f"d{i}" for i, (_, is_changed) in enumerate(fleet) if is_changed}
    changes = [PodChange(deployment=found[name], actions=()) for name in sorted(changed)]
    rolling = {name for name in found if is_rolling(found[name], is_current=name not in changed)}
    most = most_at_once(len(found), ratio)

    roll = next_roll(changes, found.values(), max_rolling_ratio=ratio)

    now = {change.deployment["metadata"]["name"] for change in roll.now}
    later = {change.deployment["metadata"]["name"] for change in roll.later}
    assert set(roll.rolling) == rolling
    assert (now | later, now & later) == (changed, set())
    assert len(rolling | now) <= max(most, len(rolling))
    assert later <= rolling or len(rolling | now) >= most


@pytest.mark.parametrize(
    ("found", "is_current", "rolls"),
    [
        (deployment(status=WELL), True, False),
        (deployment(told=2, status=WELL), True, True),
        (deployment(), True, True),
        (deployment(status=WELL | {"replicas": 3, "updatedReplicas": 1}), True, True),
        (deployment(status=WELL | {"replicas": 3, "updatedReplicas": 1}), False, True),
        (deployment(status=WELL | {"availableReplicas": 1}), True, False),
        (deployment(template="2", status=WELL | {"availableReplicas": 0}), True, True),
        (deployment(template="2", status=WELL | {"availableReplicas": 0}), False, False),
        (deployment(template="1", status=WELL | {"availableReplicas": 0}), True, False),
        (deployment(template="2", wanted=0, status={"observedGeneration": 1}), True, False),
    ],
    ids=[
        "well",
        "told and not begun",
        "just made",
        "former pods are there",
        "another change comes meanwhile",
        "one pod is away",
        "replaced and gone",
        "gone and not yet replaced",
        "new and never well",
        "none wanted",
    ],
)
def test_a_deployment_rolls_until_its_pods_are_replaced_and_well(
    found: dict[str, Any], *, is_current: bool, rolls: bool
) -> None:
    assert is_rolling(found, is_current=is_current) is rolls


def test_one_that_was_told_its_count_a_moment_ago_is_not_changed_beyond_the_bound() -> None:
    told = [deployment(f"d{number}", told=2, status=WELL) for number in range(8)]
    changes = [PodChange(deployment=one, actions=()) for one in told]

    assert next_roll(changes, told, max_rolling_ratio=0.25).now == ()


def test_what_says_less_than_before_may_say_less_of_pods() -> None:
    assert changes_pods(["metadata.annotations.headrace.dev/applied"])
    assert changes_pods(["spec.template.spec.containers.replica.image"])
    assert not changes_pods(["spec.progressDeadlineSeconds", "metadata.labels.team"])


def test_what_a_cluster_says_when_it_gives_up_is_told() -> None:
    progress = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    found = deployment(status=WELL)
    assert deadline_exceeded(found) == ""
    found["status"]["conditions"] = [progress]
    assert deadline_exceeded(found) == "ProgressDeadlineExceeded"
    found["status"]["conditions"] = [progress | {"message": "ReplicaSet has timed out"}]
    assert deadline_exceeded(found) == "ReplicaSet has timed out"
