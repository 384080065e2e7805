"""What an API server, or what stands before it, may answer without ending the driver."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import httpx2
import pytest

from headrace.control.kubernetes.api import ApiUnavailableError, ClusterApi
from headrace.control.kubernetes.snapshot import ClusterSnapshot, Watches
from headrace.testing import VirtualTimeLoop

pytestmark = pytest.mark.anyio
EMPTY = {"kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": None}
POD: dict[str, Any] = {"kind": "Pod", "metadata": {"name": "p", "uid": "u", "resourceVersion": "8"}}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


Answer = (
    Callable[[httpx2.Request], httpx2.Response]
    | Callable[[httpx2.Request], Coroutine[None, None, httpx2.Response]]
)


def api(answer: Answer) -> ClusterApi:
    http = httpx2.AsyncClient(base_url="http://api", transport=httpx2.MockTransport(answer))
    return ClusterApi(http=http, namespace="models")


async def watched(line: str) -> list[str]:
    found = api(lambda _request: httpx2.Response(200, text=line + "\n"))
    return [event.type async for event in found.watch("Pod", "a=b", "1", for_s=1)]


@pytest.mark.parametrize("body", ["null", "[]", "{}", '"no"', '{"metadata":{}}', '{"metadata":3}'])
async def test_what_is_no_list_is_an_error_that_is_waited_out(body: str) -> None:
    found = api(lambda _request: httpx2.Response(200, text=body))

    with pytest.raises(ApiUnavailableError):
        await found.list("Pod", "a=b")


@pytest.mark.parametrize("item", [None, 1, {}, {"metadata": None}, {"metadata": {"name": "p"}}])
async def test_a_list_with_what_is_no_object_is_none(item: object) -> None:
    page = {**EMPTY, "items": [item]}
    found = api(lambda _request: httpx2.Response(200, text=json.dumps(page)))

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


async def test_versions_that_go_back_make_everything_be_listed_anew() -> None:
    asked: list[bool] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        is_watch = request.url.params.get("watch") == "true"
        asked.append(is_watch)
        older = {**POD, "metadata": {**POD["metadata"], "resourceVersion": "3"}}
        event = {"type": "BOOKMARK", "object": older}
        return httpx2.Response(200, text=json.dumps(event if is_watch else EMPTY))

    watches = Watches(
        api=api(answer),
        cluster=ClusterSnapshot(),
        selector="a=b",
        on_change=lambda: None,
        kinds=("Pod",),
    )
    running = asyncio.ensure_future(watches.run())
    await asyncio.sleep(0.3)

    assert asked[:4] == [False, True, False, True]
    running.cancel()
    await asyncio.wait({running})


async def test_all_is_listed_again_now_and_then_though_nothing_is_amiss() -> None:
    listed: list[float] = []
    loop = asyncio.get_running_loop()

    async def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.params.get("watch") == "true":
            await asyncio.sleep(60.0)
            return httpx2.Response(200, text="")
        listed.append(loop.time())
        return httpx2.Response(200, text=json.dumps(EMPTY))

    cluster = ClusterSnapshot()
    watches = Watches(
        api=api(answer), cluster=cluster, selector="a=b", on_change=lambda: None, kinds=("Pod",)
    )
    running = asyncio.ensure_future(watches.run())
    await asyncio.sleep(2000.0)

    assert len(listed) == 3
    assert listed[1] - listed[0] == pytest.approx(900.0, abs=61.0)
    running.cancel()
    await asyncio.wait({running})


async def test_an_event_is_read_whatever_else_it_says() -> None:
    assert await watched(json.dumps({"type": "ADDED", "object": POD, "new": [1]})) == ["ADDED"]


async def test_watches_that_end_at_once_are_not_begun_in_a_circle() -> None:
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url))
        is_watch = request.url.params.get("watch") == "true"
        return httpx2.Response(200, text="" if is_watch else json.dumps(EMPTY))

    watches = Watches(
        api=api(answer),
        cluster=ClusterSnapshot(),
        selector="a=b",
        on_change=lambda: None,
        kinds=("Pod",),
    )
    running = asyncio.ensure_future(watches.run())
    await asyncio.sleep(10.0)

    assert watches.is_synced
    assert 10 < len(asked) < 120
    running.cancel()
    await asyncio.wait({running})
