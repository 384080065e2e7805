"""Objects at which the API server fails are tried again in time, and hold up no other."""

from typing import Any

import httpx2
import pytest

from headrace.control.kubernetes.api import ClusterApi
from headrace.control.kubernetes.executor import ActionExecutor, ApplyObject, MarkPod
from headrace.control.kubernetes.snapshot import ClusterSnapshot
from headrace.testing.virtual_time import TurnedClock
from tests.unit.control.kubernetes.states import PLACE

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def an_executor(clock: TurnedClock, *, status: int) -> ActionExecutor:
    answer = httpx2.MockTransport(lambda _request: httpx2.Response(status, json={"message": "no"}))
    http = httpx2.AsyncClient(base_url="http://api", transport=answer)
    return ActionExecutor(
        api=ClusterApi(http=http, namespace="models"),
        cluster=ClusterSnapshot(),
        installation=PLACE,
        clock=clock,
        may_act=lambda: True,
    )


async def test_object_whose_delay_ends_during_a_step_is_still_due() -> None:
    clock = TurnedClock()
    executor = an_executor(clock, status=500)
    mark = MarkPod(name="pod", uid="uid", cost=1)

    assert await executor.execute([mark]) is None, "the API server itself is well"

    stepped_at = clock.monotonic()
    due = executor.due_at(stepped_at)
    assert due is not None
    assert not executor.may_try(mark)
    clock.turn(60.0)
    assert executor.due_at(stepped_at) == due
    assert executor.may_try(mark)
    assert executor.due_at(clock.monotonic()) is None


async def test_object_that_fails_again_and_again_is_blocked_with_the_reason() -> None:
    clock = TurnedClock()
    executor = an_executor(clock, status=500)
    mark = MarkPod(name="pod", uid="uid", cost=1)
    for _ in range(5):
        assert executor.blocked() == {}
        await executor.execute([mark])

    assert executor.blocked() == {("Pod", "pod"): "patch Pod pod: no"}
    clock.turn(60.0)
    assert executor.blocked() == {}


def a_map(version: int) -> dict[str, Any]:
    metadata = {"name": "m", "namespace": "models", "uid": "u", "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


@pytest.mark.parametrize(("read", "is_restored"), [(8, False), (5, True)])
async def test_versions_went_back_only_if_a_read_is_older_than_what_was_known_before_it(
    read: int, *, is_restored: bool
) -> None:
    executor = an_executor(TurnedClock(), status=200)
    restored: list[bool] = []
    executor.on_restored = lambda: restored.append(True)
    executor.cluster.put(a_map(7))

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "PATCH":
            return httpx2.Response(200, json=a_map(5))
        executor.cluster.put(a_map(9))  # as a watch does while the answer is on its way
        return httpx2.Response(200, json=a_map(read))

    transport = httpx2.MockTransport(answer)
    executor.api.http = httpx2.AsyncClient(base_url="http://api", transport=transport)
    await executor.execute([ApplyObject(manifest=a_map(7), why="test")])

    assert bool(restored) is is_restored
    assert executor.cluster.find("ConfigMap", "m") == a_map(9)
