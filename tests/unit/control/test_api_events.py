"""Events, their stream, and feedback over the management API."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path

import httpx
import msgspec
import pytest

from headrace.cli.base.management import read_events
from headrace.control.api.events import (
    HEARTBEAT_S,
    MAX_WATCHERS,
    Watchers,
    encode_event,
    stream_events,
)
from headrace.control.model.records import Event
from headrace.control.plane.control_plane import ControlPlane
from headrace.core import OverloadedError
from headrace.testing import VirtualTimeLoop
from tests.unit.control.api_client import client_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(plane: ControlPlane) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(plane) as client:
        yield client


def event(number: int = 0, *, endpoint: str = "a", message: str = "changed") -> Event:
    return Event(
        at=1.0, endpoint=endpoint, kind="spec", reason="Changed", message=message, id=number
    )


async def test_the_newest_events_come_in_order(api: httpx.AsyncClient, plane: ControlPlane) -> None:
    await plane.journal.write([event(endpoint=name) for name in ("a", "b", "a", "b")])
    everything = (await api.get("/events")).json()["events"]
    two = (await api.get("/events?limit=2")).json()["events"]
    later = (await api.get(f"/events?after={everything[1]['id']}&endpoint=a")).json()["events"]

    assert [e["endpoint"] for e in everything] == ["a", "b", "a", "b"]
    assert two == everything[2:]
    assert [e["id"] for e in later] == [everything[2]["id"]]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "after=-1", "endpoint=-", "after=x"])
async def test_bounds_of_the_list_are_kept(api: httpx.AsyncClient, query: str) -> None:
    assert (await api.get(f"/events?{query}")).status_code == 400


async def numbers(api: httpx.AsyncClient, plane: ControlPlane, **given: str) -> list[str]:
    """The ids that a watcher is told until the control plane stops."""
    lines: list[str] = []

    async def watch() -> None:
        query = {key: value for key, value in given.items() if key != "last"}
        headers = {"last-event-id": given["last"]} if "last" in given else {}
        async with api.stream("GET", "/watch", params=query, headers=headers) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines.extend([line async for line in response.aiter_lines()])

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(watch())
        for _ in range(20):
            await asyncio.sleep(0.005)
        await plane.journal.write([event(message="new")])
        for _ in range(20):
            await asyncio.sleep(0.005)
        plane.request_stop()
    return [found.id for found in read_events(lines)]


async def test_a_watcher_is_told_what_is_new_until_the_server_stops(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    await plane.journal.write([event(), event()])

    assert await numbers(api, plane) == ["3"]


async def test_a_watcher_that_was_cut_off_goes_on_where_it_was(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    await plane.journal.write([event(), event(), event()])

    assert await numbers(api, plane, last="1", after="0") == ["2", "3", "4"]


async def test_a_watcher_may_begin_in_the_past_and_ask_for_one_endpoint(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    await plane.journal.write([event(), event(endpoint="b"), event()])

    assert await numbers(api, plane, after="0", endpoint="a") == ["1", "3", "4"]


@pytest.mark.parametrize("last", ["x", "-1", "1" * 19])
async def test_an_odd_last_event_is_refused(api: httpx.AsyncClient, last: str) -> None:
    assert (await api.get("/watch", headers={"last-event-id": last})).status_code == 400


def test_an_event_is_one_line_of_data_whatever_it_says() -> None:
    given = event(7, message="one\ntwo: \u2028 \x00")
    found = list(read_events(encode_event(given).decode().split("\n")))

    assert [(e.id, e.kind) for e in found] == [("7", "spec")]
    assert msgspec.convert(json.loads(found[0].data), Event) == given


async def scripted(*pauses_s: float) -> AsyncIterator[Event]:
    """An event after each pause, then nothing for ever."""
    for number, pause_s in enumerate(pauses_s, start=1):
        await asyncio.sleep(pause_s)
        yield event(number)
    await asyncio.sleep(1e9)


def on_virtual_time(main: Coroutine[object, object, list[bytes]]) -> list[bytes]:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def test_silence_is_broken_by_heartbeats_and_ended_by_the_stop() -> None:
    async def main() -> list[bytes]:
        stopping = asyncio.Event()
        asyncio.get_running_loop().call_later(3.5 * HEARTBEAT_S, stopping.set)
        return [part async for part in stream_events(scripted(20.0), stopping=stopping)]

    kinds = [part[:2] for part in on_virtual_time(main())]

    # One heartbeat before the event at 20 s, then two after it, counted from it.
    assert kinds == [b"re", b": ", b"id", b": ", b": "]


def test_a_slow_reader_holds_one_event_and_not_a_queue() -> None:
    taken: list[int] = []

    async def many() -> AsyncIterator[Event]:
        for number in range(1, 1000):
            taken.append(number)
            yield event(number)

    async def main() -> list[bytes]:
        stream = stream_events(many(), stopping=asyncio.Event())
        seen = [await anext(stream) for _ in range(3)]
        await asyncio.sleep(100.0)
        assert isinstance(stream, AsyncIterator)
        await stream.aclose()  # type: ignore[attr-defined]  # a generator has it
        return seen

    assert len(on_virtual_time(main())) == 3
    assert len(taken) <= 3


def test_a_stream_that_ends_ends_and_a_broken_one_is_told() -> None:
    async def few() -> AsyncIterator[Event]:
        yield event(1)

    async def broken() -> AsyncIterator[Event]:
        yield event(1)
        raise OSError("disk")

    async def read(events: AsyncIterator[Event]) -> list[bytes]:
        return [part async for part in stream_events(events, stopping=asyncio.Event())]

    assert len(on_virtual_time(read(few()))) == 2
    with pytest.raises(OSError, match="disk"):
        on_virtual_time(read(broken()))


async def test_there_are_never_too_many_watchers() -> None:
    watchers = Watchers(count=MAX_WATCHERS - 1)

    async def parts() -> AsyncIterator[bytes]:
        yield b"x"

    async for _ in watchers.counted(parts()):
        with pytest.raises(OverloadedError):
            watchers.check_room()
    watchers.check_room()


async def test_feedback_is_answered_item_by_item(api: httpx.AsyncClient) -> None:
    one = await api.post("/feedback", json={"request_id": "a", "reward": 1})
    many = await api.post(
        "/feedback",
        json=[{"request_id": "a", "reward": 0, "at": 5.0}, {"request_id": "b", "reward": 2.5}],
    )

    assert one.json() == {"results": [{"request_id": "a", "outcome": "waiting"}]}
    assert [r["request_id"] for r in many.json()["results"]] == ["a", "b"]
    assert many.json()["results"][0]["outcome"] == "duplicate"


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{}",
        b'{"request_id": "", "reward": 1}',
        b'{"request_id": "a", "reward": 1e999}',
        b'{"request_id": "a", "reward": NaN}',
        b'{"request_id": "a", "reward": 1, "at": -1}',
        b'{"request_id": "a", "reward": 1, "x": 1}',
        b'{"request_id": "' + b"a" * 300 + b'", "reward": 1}',
        b"[" + b",".join([b'{"request_id": "a", "reward": 1}'] * 1001) + b"]",
    ],
)
async def test_feedback_that_is_none_is_refused(api: httpx.AsyncClient, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = await api.post("/feedback", content=body, headers=headers)

    assert answer.status_code == 400


async def test_changes_and_rollouts_leave_events(api: httpx.AsyncClient, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    await asyncio.to_thread(model.write_bytes, b"model")
    await api.put("/endpoints/a", json={"model": str(model)})
    events = (await api.get("/events?endpoint=a")).json()["events"]

    assert [(e["kind"], e["reason"], e["actor"]) for e in events] == [
        ("spec", "Added", "ann@laptop")
    ]
