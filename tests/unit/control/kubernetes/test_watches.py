"""What an API server, or what stands before it, may answer without ending the driver."""

import asyncio
import json
from collections.abc import Callable

import httpx2
import pytest

from headrace.control.kubernetes.api import ClusterApi
from headrace.control.kubernetes.cluster import Cluster
from headrace.control.kubernetes.failures import ApiUnavailableError
from headrace.control.kubernetes.watches import Watches
from headrace.testing import VirtualTimeLoop

pytestmark = pytest.mark.anyio
EMPTY = {"kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": None}
POD = {"kind": "Pod", "metadata": {"name": "p", "uid": "u", "resourceVersion": "8"}}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def api(answer: Callable[[httpx2.Request], httpx2.Response]) -> ClusterApi:
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
        "{",
    ],
)
async def test_what_is_no_event_ends_a_watch_and_nothing_else(line: str) -> None:
    with pytest.raises(ApiUnavailableError):
        await watched(line)


async def test_an_event_is_read_whatever_else_it_says() -> None:
    assert await watched(json.dumps({"type": "ADDED", "object": POD, "new": [1]})) == ["ADDED"]


async def test_watches_that_end_at_once_are_not_begun_in_a_circle() -> None:
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url))
        is_watch = request.url.params.get("watch") == "true"
        return httpx2.Response(200, text="" if is_watch else json.dumps(EMPTY))

    watches = Watches(
        api=api(answer), cluster=Cluster(), selector="a=b", on_change=lambda: None, kinds=("Pod",)
    )
    running = asyncio.ensure_future(watches.run())
    await asyncio.sleep(10.0)

    assert watches.is_synced
    assert 10 < len(asked) < 120
    running.cancel()
    await asyncio.wait({running})
