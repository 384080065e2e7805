"""The log of the arms that splits of language models chose, which rollouts read."""

import asyncio
from dataclasses import replace

import pytest

from headrace.core.spec.rollout import StickySpec
from headrace.gateway import EndpointRoute, RoutedRequest, read_arms
from tests.e2e.gateway.lab import Lab, client
from tests.e2e.gateway.lab import endpoint as tensors
from tests.e2e.gateway.test_fallback import FIRST, SECOND, stubs
from tests.e2e.gateway.test_openai import CHAT, MESSAGES, Stub, endpoint

__all__ = ["stubs"]
pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]


def split(stubs: tuple[Stub, Stub]) -> EndpointRoute:
    """Endpoint `chat` of two servers, whose callers stay on one by a header."""
    old = endpoint("chat", stubs[0].upstream(model=FIRST)).arms[0]
    new = endpoint("chat", stubs[1].upstream(model=SECOND)).arms[0]
    return replace(
        endpoint("chat", stubs[0].upstream(model=FIRST), fallback="other"),
        arms=(replace(new, version="2", weight=30), replace(old, version="1", weight=70)),
        split_id="r1",
        sticky=StickySpec(header="x-user-id"),
    )


async def test_each_request_of_a_split_is_read_once_while_files_are_renamed(
    lab: Lab, stubs: tuple[Stub, Stub]
) -> None:
    path = lab.directory / "gw" / "arms.log"
    other = endpoint("other", stubs[1].upstream(model=SECOND))
    tensor = replace(tensors("m", lab.replica("1")), split_id="r2")
    gateway = await lab.start(split(stubs), other, tensor, arms_log=path, access_log=False)
    requests, position = list[RoutedRequest](), (0, 0)
    sent = 0
    async with client(gateway) as http:
        for _ in range(4):
            for _ in range(25):
                sent += 1
                # Every other one fails, and the fallback answers it.
                stub = {"status": 503} if sent % 2 else {}
                body = {"model": "chat", "messages": MESSAGES, "stub": {"at": {FIRST: stub}}}
                headers = {"x-user-id": f"user-{sent % 10}", "x-request-id": f"call-{sent}"}
                answer = await http.post(CHAT, json=body, headers=headers)
                assert answer.status_code == 200
            named = {"model": "chat:1", "messages": MESSAGES}
            assert (await http.post(CHAT, json=named)).status_code == 200
            assert (await http.get("/v2/models/m")).status_code == 200
            await gateway.rotate_logs()
            for _ in range(8):  # while Envoy opens the new file
                await asyncio.sleep(0.25)
                read, position = read_arms(path, position)
                requests += read
    before = [file.read_text() for file in path.parent.glob("arms.log*")]
    for _ in range(2):
        await gateway.rotate_logs()
        await asyncio.sleep(1.5)
    after = [file.read_text() for file in path.parent.glob("arms.log*")]

    assert [request.answer_id for request in requests] == [f"call-{i + 1}" for i in range(sent)]
    assert {(request.split_id, request.weights) for request in requests} == {("r1", "2=30 1=70")}
    arms = {(request.unit, request.cluster) for request in requests}
    assert len(arms) == 10  # each caller has one arm, whether it or the fallback answered
    assert {cluster for _, cluster in arms} == {"chat~1~fallback", "chat~2~fallback"}
    assert any("user-1" in text for text in before)
    assert after == ["", ""]


async def test_nothing_is_logged_without_a_reader_a_use_or_a_server_of_each_version(
    lab: Lab, stubs: tuple[Stub, Stub]
) -> None:
    whole = split(stubs)
    dead = replace(whole.arms[0], upstream=None, openai=True)  # its replicas have ended
    path = lab.directory / "second" / "arms.log"
    unread = await lab.start(whole)
    partial = await lab.start(
        replace(whole, arms=(dead, whole.arms[1])), name="second", arms_log=path
    )
    uncompared = lab.directory / "third" / "arms.log"
    by_chance = await lab.start(replace(whole, sticky=None), name="third", arms_log=uncompared)
    for gateway in (unread, partial, by_chance):
        async with client(gateway) as http:
            body = {"model": "chat", "messages": MESSAGES}
            assert (await http.post(CHAT, json=body)).status_code == 200
        await gateway.stop(5)

    assert read_arms(path, (0, 0)) == read_arms(uncompared, (0, 0)) == ([], (0, 0))
    assert sorted(lab.directory.glob("*/arms.log*")) == [path, uncompared]
