"""What an API server, or what stands before it, may answer without ending the driver."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest

from headrace.control.kubernetes.api import ApiUnavailableError
from headrace.control.kubernetes.snapshot import ClusterSnapshot, Watches
from tests.unit.control.kubernetes.states import an_api

pytestmark = pytest.mark.anyio
EMPTY = {"kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": None}
POD: dict[str, Any] = {"kind": "Pod", "metadata": {"name": "p", "uid": "u", "resourceVersion": "8"}}


@contextlib.asynccontextmanager
async def watching(answer: Callable[[httpx2.Request], Any]) -> AsyncIterator[Watches]:
    """Watches of pods that run."""
    watches = Watches(
        api=an_api(answer),
        cluster=ClusterSnapshot(),
        selector="a=b",
        on_change=lambda: None,
        kinds=("Pod",),
    )
    running = asyncio.create_task(watches.run())
    yield watches
    running.cancel()
    await asyncio.wait({running})


async def watched(line: str) -> list[str]:
    found = an_api(lambda _request: httpx2.Response(200, text=line + "\n"))
    return [event.type async for event in found.watch("Pod", "a=b", "1", for_s=1)]


@pytest.mark.parametrize("body", ["null", "[]", "{}", '"no"', '{"metadata":{}}', '{"metadata":3}'])
async def test_what_is_no_list_is_an_error_that_is_waited_out(body: str) -> None:
    found = an_api(lambda _request: httpx2.Response(200, text=body))

    with pytest.raises(ApiUnavailableError):
        await found.list("Pod", "a=b")


@pytest.mark.parametrize("item", [None, 1, {}, {"metadata": None}, {"metadata": {"name": "p"}}])
async def test_a_list_with_what_is_no_object_is_none(item: object) -> None:
    page = {**EMPTY, "items": [item]}
    found = an_api(lambda _request: httpx2.Response(200, text=json.dumps(page)))

    with pytest.raises(ApiUnavailableError):
        await found.list("Pod", "a=b")


@pytest.mark.parametrize(
    "line",
    [
        "null",
        "[]",
        "{}",
        '{"type":"ADDED"}',
        '{"type":"ADDED","object":null}',
        '{"type":"ADDED","object":{}}',
        '{"type":"ADDED","object":{"kind":"Pod","metadata":{"resourceVersion":"1"}}}',
        '{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{}}}',
        '{"type":"ERROR","object":{}}',
        '{"type":"ERROR","object":{"code":"x"}}',
        f'{{"type":"CHANGED","object":{json.dumps(POD)}}}',
        f'{{"type":null,"object":{json.dumps(POD)}}}',
        '{"type":"ADDED","object":{"kind":"Pod","metadata":{"name":"p","resourceVer',
        "{",
    ],
)
async def test_what_is_no_event_ends_a_watch_and_nothing_else(line: str) -> None:
    with pytest.raises(ApiUnavailableError):
        await watched(line)


GONE = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}
OLDER = {"type": "BOOKMARK", "object": {**POD, "metadata": {"resourceVersion": "3"}}}


@pytest.mark.parametrize("event", [GONE, OLDER])
async def test_a_watch_that_expired_or_goes_back_makes_everything_be_listed_anew(
    event: dict[str, Any],
) -> None:
    asked: list[bool] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        is_watch = request.url.params.get("watch") == "true"
        asked.append(is_watch)
        return httpx2.Response(200, text=json.dumps(event if is_watch else EMPTY))

    async with watching(answer):
        await asyncio.sleep(0.3)
    assert asked[:4] == [False, True, False, True]


async def test_all_is_listed_again_now_and_then_though_nothing_is_amiss() -> None:
    listed: list[float] = []

    async def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.params.get("watch") == "true":
            await asyncio.sleep(60.0)
            return httpx2.Response(200, text="")
        listed.append(asyncio.get_running_loop().time())
        return httpx2.Response(200, text=json.dumps(EMPTY))

    async with watching(answer):
        await asyncio.sleep(2000.0)
    assert len(listed) == 3
    assert listed[1] - listed[0] == pytest.approx(900.0, abs=61.0)


async def test_an_event_is_read_whatever_else_it_says() -> None:
    assert await watched(json.dumps({"type": "ADDED", "object": POD, "new": [1]})) == ["ADDED"]


async def test_watches_that_end_at_once_are_not_begun_in_a_circle() -> None:
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url))
        is_watch = request.url.params.get("watch") == "true"
        return httpx2.Response(200, text="" if is_watch else json.dumps(EMPTY))

    async with watching(answer) as watches:
        await asyncio.sleep(10.0)
        assert watches.is_synced
    assert 10 < len(asked) < 120
