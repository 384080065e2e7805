import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from headrace.control.asgi.guards import Message, Receive, Scope, Send
from headrace.control.gateway.activator import (
    MAX_HELD_BYTES,
    Activator,
    HeldRequests,
    HoldLimits,
)
from headrace.core import OverloadedError, UnavailableError
from headrace.testing import VirtualTimeLoop

pytestmark = pytest.mark.anyio
LIMITS = HoldLimits(max_held=2, hold_s=30.0)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return ("asyncio", {"loop_factory": VirtualTimeLoop})


def _activator(limits: HoldLimits | None = LIMITS) -> tuple[Activator, list[str]]:
    woken: list[str] = []
    return Activator(lambda _: limits, woken.append), woken


async def test_requests_wait_until_they_are_released_and_the_endpoint_is_woken_once() -> None:
    activator, woken = _activator()
    first = asyncio.create_task(activator.hold("m"))
    second = asyncio.create_task(activator.hold("m"))
    other = asyncio.create_task(activator.hold("n"))
    await asyncio.sleep(10)

    assert activator.held == {"m": 2, "n": 1}
    activator.release("m")
    assert (await first, await second) == (None, None)
    assert activator.held == {"n": 1}
    activator.release("n")
    assert await other is None
    assert woken == ["m", "n"]


async def test_an_endpoint_that_nobody_need_wait_for_is_not_woken() -> None:
    activator, woken = _activator(None)

    assert await activator.hold("m") is None
    assert woken == []


async def test_one_more_than_may_wait_is_refused_at_once() -> None:
    activator, woken = _activator()
    waiting = [asyncio.create_task(activator.hold("m")) for _ in range(2)]
    await asyncio.sleep(0)

    refused = await activator.hold("m")

    assert isinstance(refused, OverloadedError)
    assert refused.retry_after_s == 1.0
    activator.release("m")
    assert await asyncio.gather(*waiting) == [None, None]
    assert woken == ["m"]


async def test_where_none_may_wait_the_first_request_still_wakes() -> None:
    activator, woken = _activator(HoldLimits(max_held=0, hold_s=30.0))

    assert isinstance(await activator.hold("m"), OverloadedError)
    assert woken == ["m"]
    assert activator.held == {}


async def test_after_the_bound_a_request_is_told_to_come_again() -> None:
    activator, woken = _activator()
    began = asyncio.get_running_loop().time()

    refused = await activator.hold("m")

    assert asyncio.get_running_loop().time() - began == pytest.approx(30.0)
    assert isinstance(refused, UnavailableError)
    assert "not ready 30 s after" in str(refused)
    assert activator.held == {}
    activator.release("m")
    again = asyncio.create_task(activator.hold("m"))
    await asyncio.sleep(0)
    assert woken == ["m", "m"]
    activator.release("m")
    assert await again is None


@pytest.mark.parametrize("leaves", [0, 1, 2])
async def test_a_caller_who_leaves_frees_one_place_and_disturbs_nobody(leaves: int) -> None:
    activator, _ = _activator(HoldLimits(max_held=3, hold_s=30.0))
    waiting = [asyncio.create_task(activator.hold("m")) for _ in range(3)]
    await asyncio.sleep(1)

    waiting.pop(leaves).cancel()
    await asyncio.sleep(0)

    assert activator.held == {"m": 2}
    activator.release("m")
    assert await asyncio.gather(*waiting) == [None, None]


async def test_release_and_the_end_of_waiting_at_once_release() -> None:
    activator, _ = _activator()
    waiting = asyncio.create_task(activator.hold("m"))
    await asyncio.sleep(29.999)

    activator.release("m")
    activator.release("m")

    assert await waiting is None


async def test_a_request_too_large_to_wait_wakes_but_once() -> None:
    activator, woken = _activator()

    assert activator.refuse_large("m").retry_after_s == 1.0
    waiting = asyncio.create_task(activator.hold("n"))
    await asyncio.sleep(0)
    activator.refuse_large("n")
    activator.release("n")
    await waiting

    assert woken == ["m", "n"]


class Caller:
    """One request as a server hands it over, and what was answered."""

    def __init__(self, messages: Iterable[Message], *, leaves_after_s: float | None = None) -> None:
        self.messages = list(messages)
        self.leaves_after_s = leaves_after_s
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if self.messages:
            return self.messages.pop(0)
        await asyncio.sleep(3600 if self.leaves_after_s is None else self.leaves_after_s)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def head(self) -> tuple[int, dict[bytes, bytes]]:
        return self.sent[0]["status"], dict(self.sent[0]["headers"])


def _body(*parts: bytes) -> list[Message]:
    return [
        {"type": "http.request", "body": part, "more_body": i + 1 < len(parts)}
        for i, part in enumerate(parts)
    ]


def _scope(
    path: str = "/held/m/v2/models/m/infer",
    *,
    query: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Scope:
    named = {"host": "gw:8000", "x-forwarded-proto": "https", **(headers or {})}
    return {
        "type": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": [(k.encode(), v.encode()) for k, v in named.items()],
    }


async def _otherwise(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 418, "headers": []})


@pytest.mark.parametrize("query", [b"", b"a=%20b"])
async def test_the_answer_in_the_end_is_a_redirect_to_what_was_asked_for(query: bytes) -> None:
    activator, _ = _activator()
    caller = Caller(_body(b"one", b"two"))
    app = HeldRequests(activator, _otherwise)
    task = asyncio.create_task(app(_scope(query=query), caller.receive, caller.send))
    await asyncio.sleep(5)
    assert caller.sent == []

    activator.release("m")
    await task

    status, headers = caller.head
    place = b"https://gw:8000/v2/models/m/infer" + (b"?" + query if query else b"")
    assert (status, headers[b"location"]) == (307, place)


async def test_what_is_not_held_goes_on() -> None:
    activator, woken = _activator()
    for scope in (_scope("/v2/models/stats"), {"type": "lifespan"}):
        caller = Caller([])
        await HeldRequests(activator, _otherwise)(scope, caller.receive, caller.send)
        assert caller.sent[0]["status"] == 418
    assert woken == []


@pytest.mark.parametrize(
    ("headers", "status", "expected"),
    [
        ({}, 503, {b"retry-after": b"1", b"content-type": b"application/json"}),
        (
            {"content-type": "application/grpc+proto"},
            200,
            {b"grpc-status": b"14", b"content-type": b"application/grpc"},
        ),
    ],
    ids=["http", "grpc"],
)
async def test_who_waited_in_vain_is_told_in_his_own_protocol(
    headers: dict[str, str], status: int, expected: dict[bytes, bytes]
) -> None:
    activator, _ = _activator()
    caller = Caller(_body(b""))

    await HeldRequests(activator, _otherwise)(_scope(headers=headers), caller.receive, caller.send)

    assert caller.head[0] == status
    assert expected.items() <= caller.head[1].items()


async def test_a_body_past_the_bound_is_refused_without_reading_on() -> None:
    activator, woken = _activator()
    parts = _body(b"x" * MAX_HELD_BYTES, b"x", b"never read")
    caller = Caller(parts)

    await HeldRequests(activator, _otherwise)(_scope(), caller.receive, caller.send)

    assert caller.head[0] == 503
    assert len(caller.messages) == 1
    assert woken == ["m"]


@pytest.mark.parametrize("body", [[], _body(b"x")], ids=["before its body", "while it waits"])
async def test_a_caller_who_leaves_is_not_answered_and_waits_no_more(body: list[Message]) -> None:
    activator, _ = _activator()
    caller = Caller(body, leaves_after_s=2.0)

    await HeldRequests(activator, _otherwise)(_scope(), caller.receive, caller.send)

    assert caller.sent == []
    assert activator.held == {}
