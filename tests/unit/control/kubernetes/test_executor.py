"""Objects at which the API server fails are tried again in time, and hold up no other."""

import httpx2
import pytest

from headrace.control.kubernetes.api import ClusterApi
from headrace.control.kubernetes.executor import ActionExecutor, MarkPod
from headrace.control.kubernetes.snapshot import ClusterSnapshot
from headrace.testing.turned import TurnedClock
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
        place=PLACE,
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
