"""Objects at which the API server fails are tried again in time, and hold up no other."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import httpx2
import pytest

from headrace.control.kubernetes.executor import (
    VICTIM_COST,
    Action,
    ActionExecutor,
    ApplyObject,
    DeleteObject,
    MarkPod,
    ScaleDeployment,
    is_current,
)
from headrace.control.kubernetes.names import REVISION
from headrace.control.kubernetes.replicas import pods_in
from headrace.control.kubernetes.snapshot import ClusterSnapshot
from headrace.control.model.desired import DesiredState
from headrace.control.model.observed import Observed, Replica, ReplicaPhase
from headrace.gateway import EndpointRoute, RevisionTarget
from headrace.testing import LoopClock
from tests.unit.control.kubernetes.states import PLACE, a_revision, a_state, an_api

pytestmark = pytest.mark.anyio
MARK = MarkPod(name="pod", uid="uid", cost=1)
LABEL = a_revision().id[:12]


@pytest.fixture
async def group() -> AsyncIterator[asyncio.TaskGroup]:
    async with asyncio.TaskGroup() as group:
        yield group


Answer = Callable[[httpx2.Request], Coroutine[None, None, httpx2.Response]]


def an_executor(answer: Answer) -> ActionExecutor:
    return ActionExecutor(
        api=an_api(answer),
        cluster=ClusterSnapshot(),
        installation=PLACE,
        clock=LoopClock(),
        may_act=lambda: True,
    )


def failing(status: int, **headers: str) -> tuple[ActionExecutor, list[float]]:
    asked: list[float] = []

    async def answer(_: httpx2.Request) -> httpx2.Response:
        asked.append(asyncio.get_running_loop().time())
        return httpx2.Response(status, json={"message": "no"}, headers=headers)

    return an_executor(answer), asked


async def play(
    executor: ActionExecutor, group: asyncio.TaskGroup, actions: list[Action], *, for_s: float
) -> None:
    """Submit whenever something is due, as the reconciler does."""
    clock = LoopClock()
    until = clock.monotonic() + for_s
    while (now := clock.monotonic()) < until:
        executor.submit(actions, group)
        await asyncio.sleep(0.01)
        due = executor.due_at(now)
        await asyncio.sleep(max(min(until if due is None else due, until) - clock.monotonic(), 0.0))


def a_map(version: int, name: str = "m") -> dict[str, Any]:
    metadata = {"name": name, "namespace": "models", "uid": "u", "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


def a_deployment(replicas: int, **metadata: str) -> dict[str, Any]:
    labels = {REVISION: LABEL}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "uid": "u", "resourceVersion": "7", "labels": labels, **metadata},
        "spec": {"replicas": replicas},
    }


async def test_an_object_that_fails_is_retried_with_backoff_and_reported(
    group: asyncio.TaskGroup,
) -> None:
    executor, asked = failing(500)

    await play(executor, group, [MARK], for_s=1.0)
    assert 2 <= len(asked) <= 6
    assert executor.problems() == {}
    await play(executor, group, [MARK], for_s=100.0)
    assert executor.problems() == {("Pod", "pod"): "patch Pod pod: no"}
    assert len(asked) < 25
    executor.submit([], group)
    await asyncio.sleep(60.0)
    executor.submit([], group)
    assert executor.problems() == {}, "the action is not necessary any more"


async def test_a_refused_object_is_reported_at_once_and_until_it_is_accepted(
    group: asyncio.TaskGroup, caplog: pytest.LogCaptureFixture
) -> None:
    status = 403

    async def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            return httpx2.Response(404, json={})
        body = json.loads(request.content) if status == 200 else {"message": "denied the request"}
        return httpx2.Response(status, json=body)

    executor = an_executor(answer)
    problems: list[bool] = []
    executor.on_done = lambda: problems.append(bool(executor.problems()))
    apply = ApplyObject(manifest=a_map(1), why="test")
    await play(executor, group, [apply], for_s=300.0)

    assert 4 <= len(problems) <= 20
    assert all(problems)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    status = 200
    await play(executor, group, [ApplyObject(manifest=a_map(2), why="it changed")], for_s=0.1)
    assert executor.problems() == {}, "another manifest is tried at once"


async def test_an_object_is_created_without_a_read_and_a_foreign_one_is_never_changed(
    group: asyncio.TaskGroup,
) -> None:
    asked: list[str] = []
    foreign = a_map(7)

    async def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.method)
        if request.method == "GET":
            return httpx2.Response(200, json=foreign)
        name, metadata = (
            request.url.path.rpartition("/")[2],
            json.loads(request.content)["metadata"],
        )
        assert metadata["resourceVersion"] == "1", "an object that exists is a conflict"
        assert request.url.params["force"] == "false"
        is_free = name == "free"
        status, result = (201, a_map(9, name)) if is_free else (409, {"message": "modified"})
        return httpx2.Response(status, json=result)

    executor = an_executor(answer)
    executor.submit([ApplyObject(manifest=a_map(0, "free"), why="test")], group)
    await asyncio.sleep(0.1)
    assert asked == ["PATCH"]
    assert executor.cluster.find("ConfigMap", "free") == a_map(9, "free")
    executor.submit([ApplyObject(manifest=a_map(0), why="test")], group)
    await asyncio.sleep(0.1)
    assert asked == ["PATCH", "PATCH", "GET"]
    assert "that Headrace did not make" in executor.problems()["ConfigMap", "m"]
    assert executor.cluster.find("ConfigMap", "m") is None


async def test_an_object_that_hangs_delays_no_other_and_is_reported(
    group: asyncio.TaskGroup,
) -> None:
    done: list[str] = []

    async def answer(request: httpx2.Request) -> httpx2.Response:
        name = request.url.path.rpartition("/")[2]
        if name.startswith("hangs"):
            await asyncio.sleep(30.0)
            return httpx2.Response(500, json={"message": "context deadline exceeded"})
        done.append(name)
        return httpx2.Response(200, json=a_map(1, name))

    executor = an_executor(answer)
    executor.cluster.put(a_map(1))
    hanging: list[Action] = [MarkPod(name=f"hangs-{n}", uid="u", cost=1) for n in range(20)]
    well: list[Action] = [MarkPod(name=f"well-{n}", uid="u", cost=1) for n in range(20)]
    executor.submit([*hanging, *well], group)
    await asyncio.sleep(5.0)

    assert len(done) == 20
    assert executor.problems() == {}
    await asyncio.sleep(6.0)
    assert "an admission webhook" in executor.problems()["Pod", "hangs-0"]
    await play(executor, group, [*hanging, *well], for_s=60.0)
    assert "context deadline" in executor.problems()["Pod", "hangs-0"]
    done.clear()
    executor.submit([*hanging, *well], group)
    await asyncio.sleep(0.1)
    assert len(done) >= 8, "slots are left for objects that did not fail"


async def test_a_server_that_asks_for_fewer_requests_gets_none_meanwhile(
    group: asyncio.TaskGroup,
) -> None:
    executor, asked = failing(429, **{"retry-after": "7"})
    others: list[Action] = [MarkPod(name=f"pod-{n}", uid="u", cost=1) for n in range(50)]
    await play(executor, group, others, for_s=6.5)

    assert len(asked) == 8
    assert executor.problems() == {}, "no object is to blame"
    await play(executor, group, others, for_s=2.0)
    assert len(asked) == 16


async def test_one_object_has_one_action_in_progress(group: asyncio.TaskGroup) -> None:
    running: list[str] = []

    async def answer(request: httpx2.Request) -> httpx2.Response:
        assert request.url.path not in running
        running.append(request.url.path)
        await asyncio.sleep(1.0)
        running.remove(request.url.path)
        return httpx2.Response(200, json=a_map(9))

    executor = an_executor(answer)
    for _ in range(30):
        executor.submit([MARK, MarkPod(name="pod", uid="uid", cost=2)], group)
        await asyncio.sleep(0.3)


@pytest.mark.parametrize(("read", "is_restored"), [(8, False), (5, True)])
async def test_versions_went_back_only_if_a_read_is_older_than_what_was_known_before_it(
    group: asyncio.TaskGroup, read: int, *, is_restored: bool
) -> None:
    async def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "PATCH":
            return httpx2.Response(200, json=a_map(5))
        executor.cluster.put(a_map(9))  # as a watch does while the answer is on its way
        return httpx2.Response(200, json=a_map(read))

    executor = an_executor(answer)
    restored: list[bool] = []
    executor.on_restored = lambda: restored.append(True)
    executor.cluster.put(a_map(7))
    executor.submit([ApplyObject(manifest=a_map(7), why="test")], group)
    await asyncio.sleep(0.1)

    assert bool(restored) is is_restored
    assert executor.cluster.find("ConfigMap", "m") == a_map(9)


def a_pod(name: str, cost: int = 0) -> dict[str, Any]:
    owner = {"kind": "ReplicaSet", "name": "headrace-x", "controller": True}
    costs = {"controller.kubernetes.io/pod-deletion-cost": str(cost)}
    metadata = {"name": name, "uid": name, "labels": {REVISION: LABEL}, "annotations": costs}
    return {"kind": "Pod", "metadata": {**metadata, "ownerReferences": [owner]}}


DELETE = DeleteObject(live=a_deployment(2), why="test")
SCALE = ScaleDeployment(deployment=a_deployment(2), replicas=1)


@pytest.mark.parametrize(
    ("action", "status", "meanwhile", "after"),
    [(DELETE, 200, "ab", "ab"), (DELETE, 500, "ab", ""), (SCALE, 200, "b", "")],
)
async def test_pods_that_a_request_ends_count_as_leaving_at_once(
    group: asyncio.TaskGroup, action: Action, status: int, meanwhile: str, after: str
) -> None:
    sent: list[dict[str, Any]] = []

    async def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(json.loads(request.content))
        await asyncio.sleep(1.0)
        return httpx2.Response(status, json=a_deployment(1, resourceVersion="8"))

    def leaving() -> str:
        pods = pods_in(executor.cluster, PLACE)
        return "".join(pod.metadata.name for pod in pods if pod.is_leaving)

    executor = an_executor(answer)
    executor.cluster.replace_all("Deployment", [a_deployment(2)])
    executor.cluster.replace_all("Pod", [a_pod("a"), a_pod("b", VICTIM_COST)])
    executor.submit([action], group)
    await asyncio.sleep(0.5)
    assert leaving() == meanwhile
    await asyncio.sleep(1.0)
    assert leaving() == after
    assert (sent[0].get("preconditions") or sent[0]["metadata"])["resourceVersion"] == "7"


def observed(*routed: str) -> Observed:
    replicas = {
        name: Replica(
            name=name,
            endpoint="digits",
            version="1",
            revision_id=a_revision().id,
            address=name,
            phase=ReplicaPhase.READY,
            serial=1,
            since=0.0,
        )
        for name in ("a", "b")
    }
    arm = RevisionTarget(version="1", weight=100, replicas=routed)
    return Observed(replicas=replicas, published=(EndpointRoute(name="digits", arms=(arm,)),))


@pytest.mark.parametrize(
    ("action", "desired", "routed", "is_right"),
    [
        (DELETE, DesiredState(), "", True),
        (DELETE, DesiredState(), "a", False),
        (DELETE, a_state(), "", False),
        (SCALE, a_state(), "a", True),
        (SCALE, a_state(), "ab", False),
        (ScaleDeployment(deployment=a_deployment(2), replicas=3), a_state(), "ab", True),
        (ApplyObject(manifest=a_deployment(1), why=""), a_state(), "ab", False),
        (ApplyObject(manifest=a_map(1), why=""), a_state(), "ab", True),
        (ApplyObject(manifest=a_map(1), why="", is_new=True), a_state(), "", True),
        (ApplyObject(manifest=a_deployment(3), why="", is_new=True), a_state(), "", False),
    ],
)
def test_what_was_decided_from_an_earlier_state_is_sent_only_if_it_is_still_right(
    action: Action, desired: DesiredState, routed: str, *, is_right: bool
) -> None:
    cluster = ClusterSnapshot()
    cluster.put(a_deployment(2))

    assert (
        is_current(action, desired=desired, observed=observed(*routed), cluster=cluster) is is_right
    )
