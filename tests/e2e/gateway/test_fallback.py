"""Fallbacks: another endpoint answers what the first fails to answer."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import msgspec
import pytest

from headrace.core.spec.access import EndpointAccess
from headrace.gateway import EndpointRoute, EnvoyGateway, RevisionTarget, build_snapshot
from headrace.gateway.statistics import TokenUse
from headrace.gateway.tls import api_key_name, api_key_secret
from tests.e2e.gateway.issuing import Issuer, api_key, known
from tests.e2e.gateway.lab import Lab, client
from tests.e2e.gateway.openai_stub import events_of, usage_of
from tests.e2e.gateway.test_openai import (
    CHAT,
    MESSAGES,
    Stub,
    endpoint,
    running_stub,
    texts,
    tokens,
)
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]
FIRST, SECOND = "first/model", "second/model"
ANSWERED_BY = "x-headrace-endpoint"


@pytest.fixture(scope="module")
def stubs() -> Iterator[tuple[Stub, Stub]]:
    ports = free_port(), free_port()
    with running_stub(str(ports[0]), FIRST), running_stub(str(ports[1]), SECOND):
        yield Stub(ports[0]), Stub(ports[1])


def chain(stubs: tuple[Stub, Stub], **changes: Any) -> list[EndpointRoute]:
    """Endpoint `chat` with the fallback `other`."""
    chat = endpoint("chat", stubs[0].upstream(model=FIRST), fallback="other", **changes)
    prefixed = f"http://127.0.0.1:{stubs[1].port}/api"
    return [chat, endpoint("other", stubs[1].upstream(model=SECOND, url=prefixed))]


def body(first: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A request that the first server answers as told, and the second well."""
    return {"model": "chat", "messages": MESSAGES, "stub": {"at": {FIRST: first}}, **more}


async def logged(gateway: EnvoyGateway) -> list[Any]:
    await asyncio.sleep(1.5)  # lines of the log are written within a second
    lines = (gateway.settings.run_dir / "access.log").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("stream", [False, True])
async def test_failures_before_the_first_byte_are_answered_by_the_fallback(
    lab: Lab, stubs: tuple[Stub, Stub], stream: bool
) -> None:
    gateway = await lab.start(*chain(stubs, timeout_s=0.5, split_id="r1"))
    before = [len(stub.seen()) for stub in stubs]
    failures: list[dict[str, Any]] = [
        *({"status": status} for status in (429, 500, 502, 503, 504)),
        {"hangs": True},
    ]
    total = TokenUse()
    async with client(gateway) as http:
        for failure in failures:
            asked = body(failure, stream=stream)
            answer = await http.post(CHAT, json=asked, headers={"authorization": "Bearer theirs"})

            assert (answer.status_code, answer.headers[ANSWERED_BY]) == (200, "other")
            seen = [stub.seen()[-1] for stub in stubs]
            assert [one["body"]["model"] for one in seen] == [FIRST, SECOND]
            assert [one["path"] for one in seen] == [CHAT, f"/api{CHAT}"]
            assert [one["headers"]["host"] for one in seen] == [
                f"127.0.0.1:{stub.port}" for stub in stubs
            ]
            assert "authorization" not in seen[1]["headers"]
            assert not any("target" in name for one in seen for name in one["headers"])
            wanted = {**asked, "model": SECOND, "stub": {}}
            if stream:
                assert texts(answer.text) == texts(b"".join(events_of(wanted)).decode())
            usage = usage_of(wanted)
            total = plus(total, usage)
        answer = await http.post(CHAT, json=body({}, stream=stream))
        assert (answer.status_code, answer.headers[ANSWERED_BY]) == (200, "chat")
        answer = await http.post(CHAT, json=body({"status": 404}, stream=stream))
        assert (answer.status_code, answer.headers[ANSWERED_BY]) == (404, "chat")

    assert [len(stub.seen()) - n for stub, n in zip(stubs, before, strict=True)] == [8, 6]
    counted = await tokens(gateway)
    assert counted["other", "2", ""] == total
    assert counted["chat", "2", ""].output == 5
    lines = await logged(gateway)
    assert [line["cluster"] for line in lines] == ["other~2"] * 6 + ["chat~2"] * 2
    assert {line["endpoint"] for line in lines} == {"chat"}


def plus(total: TokenUse, usage: dict[str, Any]) -> TokenUse:
    return TokenUse(
        input=total.input + usage["prompt_tokens"],
        cached=total.cached + usage["prompt_tokens_details"]["cached_tokens"],
        output=total.output + usage["completion_tokens"],
        reasoning=total.reasoning + usage["completion_tokens_details"]["reasoning_tokens"],
    )


async def test_a_server_that_cannot_be_reached_is_answered_for(
    lab: Lab, stubs: tuple[Stub, Stub]
) -> None:
    _, other = chain(stubs)
    refused = stubs[0].upstream(url=f"http://127.0.0.1:{free_port()}")
    checked = msgspec.structs.replace(refused, health_path="/v1/models", health_interval_s=0.2)
    unknown = msgspec.structs.replace(refused, url="http://no-such-host.invalid:8000")
    no_servers = RevisionTarget(version="2", replicas=(), weight=100, openai=True)
    gateway = await lab.start(
        endpoint("refused", refused, fallback="other"),
        endpoint("checked", checked, fallback="other"),
        endpoint("unknown", unknown, fallback="other"),
        EndpointRoute(name="empty", arms=(no_servers,), fallback="other"),
        EndpointRoute(name="held", arms=(no_servers,), fallback="other", held=True),
        EndpointRoute(name="paused", arms=(no_servers,), fallback="other", paused=True),
        other,
    )
    async with client(gateway) as http:
        await asyncio.sleep(1.0)  # until the health check has failed
        for model in ("refused", "checked", "unknown", "empty"):
            for stream in (False, True):
                answer = await http.post(CHAT, json={"model": model, "stream": stream})
                assert (answer.status_code, answer.headers[ANSWERED_BY]) == (200, "other"), model
        for model in ("held", "paused"):
            assert (await http.post(CHAT, json={"model": model})).status_code == 503
    assert set(await tokens(gateway)) == {("other", "2", "")}


async def test_nothing_is_answered_again_once_a_byte_was_passed(
    lab: Lab, stubs: tuple[Stub, Stub]
) -> None:
    gateway = await lab.start(*chain(stubs, timeout_s=0.5))
    before = len(stubs[1].seen())
    async with client(gateway) as http:
        for failure, count in (({"breaks_at": 1}, 1), ({"stalls_at": 2}, 2)):
            received = ""
            asked = body(failure, stream=True)
            async with http.stream("POST", CHAT, json=asked) as answer:
                with contextlib.suppress(httpx.RemoteProtocolError):
                    async for text in answer.aiter_text():
                        received += text
            assert (answer.status_code, answer.headers[ANSWERED_BY]) == (200, "chat")
            assert len(texts(received)) == count
    assert len(stubs[1].seen()) == before
    assert set(await tokens(gateway)) == {("chat", "2", "")}


async def test_an_outage_sends_all_requests_to_the_fallback_at_once(
    lab: Lab, stubs: tuple[Stub, Stub]
) -> None:
    refused = stubs[0].upstream(url=f"http://127.0.0.1:{free_port()}")
    _, other = chain(stubs)
    gateway = await lab.start(endpoint("chat", refused, fallback="other"), other)
    told = {"tokens": 5, "pause_s": 0.2}
    asked = {"model": "chat", "messages": [], "stream": True, "stub": told}
    async with client(gateway) as http:
        answers = await asyncio.gather(*(http.post(CHAT, json=asked) for _ in range(60)))
    assert {(one.status_code, one.headers[ANSWERED_BY]) for one in answers} == {(200, "other")}
    assert (await tokens(gateway))["other", "2", ""].output == 300


async def test_a_caller_who_leaves_before_the_fallback_is_asked_ends_the_request(
    lab: Lab, stubs: tuple[Stub, Stub]
) -> None:
    gateway = await lab.start(*chain(stubs, timeout_s=0.5))
    before = len(stubs[1].seen())
    async with client(gateway) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.post(CHAT, json=body({"hangs": True}), timeout=0.2)
        await asyncio.sleep(1.5)
    assert len(stubs[1].seen()) == before


async def test_bodies_up_to_the_limit_are_sent_again(lab: Lab, stubs: tuple[Stub, Stub]) -> None:
    limit = 5 << 20
    gateway = await lab.start(*chain(stubs), max_body_bytes=limit)
    async with client(gateway) as http:
        for size in (1 << 10, 1 << 20, 3 << 20, limit - 200):
            asked = {**body({"status": 429}), "messages": "x" * size}
            answer = await http.post(CHAT, json=asked)
            assert (answer.status_code, answer.headers[ANSWERED_BY]) == (200, "other"), size
            assert [len(stub.seen()[-1]["body"]["messages"]) for stub in stubs] == [size, size]
        before = [len(stub.seen()) for stub in stubs]
        # The gateway may close the connection while the client still sends.
        with contextlib.suppress(httpx.ReadError):
            answer = await http.post(CHAT, json={**body({}), "messages": "x" * limit})
            assert answer.status_code == 413
        assert [len(stub.seen()) for stub in stubs] == before


async def test_a_fallback_has_its_own_fallback(lab: Lab, stubs: tuple[Stub, Stub]) -> None:
    _, last = chain(stubs)
    busy = endpoint("busy", stubs[0].upstream(model=FIRST), fallback="other")
    gateway = await lab.start(replace(busy, name="chat", fallback="busy"), busy, last)
    async with client(gateway) as http:
        answer = await http.post(CHAT, json=body({"status": 503}))
        assert (answer.status_code, answer.headers[ANSWERED_BY]) == (200, "other")
        assert [seen["body"]["model"] for seen in stubs[0].seen()[-2:]] == [FIRST, FIRST]
        both = {"stub": {"status": 503}}
        answer = await http.post(CHAT, json={**body({}), **both})
        assert (answer.status_code, answer.headers[ANSWERED_BY]) == (503, "other")
        assert answer.json()["error"]["message"] == SECOND


async def test_replicas_and_upstreams_answer_for_each_other(
    lab: Lab, stubs: tuple[Stub, Stub]
) -> None:
    replica = lab.replica("llm")
    path = f"{replica.address.removeprefix('unix:')}.openai"
    arm = RevisionTarget(version="1", replicas=(replica.address,), weight=100, openai=True)
    local = EndpointRoute(name="local", arms=(arm,), timeout_s=10.0, fallback="far")
    far = endpoint("far", stubs[1].upstream(model=SECOND), fallback="local")
    with running_stub(path, "local"):
        gateway = await lab.start(local, far)
        async with client(gateway) as http:
            for model, other, theirs in (("local", "far", "local"), ("far", "local", SECOND)):
                for at, by in (({}, model), ({theirs: {"status": 500}}, other)):
                    asked = {"model": model, "messages": [], "stub": {"at": at}}
                    answer = await http.post(CHAT, json=asked)
                    assert (answer.status_code, answer.headers[ANSWERED_BY]) == (200, by)
        counted = await tokens(gateway)
        assert {who[:2]: one.output for who, one in counted.items()} == {
            ("local", "1"): 10,
            ("far", "2"): 10,
        }
        assert set(await gateway.in_flight()) == {("local", "1"), ("far", "2")}


async def test_an_answer_of_the_fallback_is_an_error_of_the_version_that_failed(
    lab: Lab, stubs: tuple[Stub, Stub]
) -> None:
    (arm,) = endpoint("chat", stubs[0].upstream(model=FIRST)).arms
    arms = (replace(arm, weight=60), replace(arm, version="3", weight=40))
    chat = EndpointRoute(name="chat", arms=arms, timeout_s=10.0, split_id="r1", fallback="other")
    _, other = chain(stubs)
    gateway = await lab.start(chat, replace(other, split_id="r2"))
    async with client(gateway) as http:
        for _ in range(20):
            assert (await http.post(CHAT, json=body({}))).headers[ANSWERED_BY] == "chat"
            answer = await http.post(CHAT, json=body({"status": 500}, stream=True))
            assert answer.headers[ANSWERED_BY] == "other"
        # Who names a version gets its answer, whatever it is.
        pinned = await http.post(CHAT, json=body({"status": 500}) | {"model": "chat:3"})
        assert (pinned.status_code, ANSWERED_BY in pinned.headers) == (500, False)

    counted = (await gateway.arm_statistics(["chat", "other"])).arms
    assert set(counted) == {("chat", "2"), ("chat", "3")}
    assert sum(one.requests for one in counted.values()) == 40
    assert sum(one.errors for one in counted.values()) == 20
    of_all = (await gateway.endpoint_statistics(["chat", "other"])).arms
    assert sum(one.requests for one in of_all.values()) == 41
    assert (of_all["chat", ""].requests, of_all["chat", ""].errors) == (20, 0)


async def test_only_the_first_endpoint_checks_its_callers(
    lab: Lab, stubs: tuple[Stub, Stub]
) -> None:
    gateway = EnvoyGateway(lab.settings())
    lab.gateways.append(gateway)
    key = api_key("fallback")
    routes = [replace(route, access=EndpointAccess()) for route in chain(stubs)]
    policy = Issuer().policy(known(key, "infer:chat", name="alice"))
    await gateway.start(build_snapshot(gateway.settings, routes, policy))
    headers = {"authorization": f"Bearer {key}", ANSWERED_BY: "x", "x-headrace-target": "chat~2"}
    async with client(gateway) as http:
        answer = await http.post(CHAT, json=body({"status": 429}), headers=headers)
        assert (answer.status_code, answer.headers[ANSWERED_BY]) == (200, "other")
        assert "authorization" not in stubs[1].seen()[-1]["headers"]
        directly = await http.post(CHAT, json={**body({}), "model": "other"}, headers=headers)
        assert directly.status_code == 403
    assert ("other", "2", "key:alice") in await tokens(gateway)


async def test_a_fallback_changes_without_a_restart(lab: Lab, stubs: tuple[Stub, Stub]) -> None:
    chat, other = chain(stubs)
    gateway = await lab.start(chat, endpoint("other", stubs[1].upstream(url="http://127.0.0.1:9")))
    asked = body({"status": 429})

    async def ask() -> tuple[int, str]:
        answer = await http.post(CHAT, json=asked)
        return answer.status_code, answer.headers.get(ANSWERED_BY, "")

    async with client(gateway) as http:
        assert (await ask())[0] == 503
        await lab.publish(gateway, chat, other)
        assert await ask() == (200, "other")
        await lab.publish(gateway, chat, replace(other, paused=True))
        assert await ask() == (429, "")
        await lab.publish(gateway, chat, replace(other, name="third"))
        assert await ask() == (429, "")
        await lab.publish(gateway, replace(chat, fallback="third"), replace(other, name="third"))
        assert await ask() == (200, "third")
        await lab.publish(gateway, replace(chat, fallback=None), other)
        assert await ask() == (429, "")


async def test_each_server_gets_its_own_key(lab: Lab, stubs: tuple[Stub, Stub]) -> None:
    specs = [
        stub.upstream(model=model, api_key_file=f"/never/read/{model}")
        for stub, model in zip(stubs, (FIRST, SECOND), strict=True)
    ]
    routes = [
        endpoint("chat", specs[0], fallback="other"),
        endpoint("plain", msgspec.structs.replace(specs[0], api_key_file=""), fallback="other"),
        endpoint("other", specs[1]),
    ]
    gateway = EnvoyGateway(lab.settings())
    lab.gateways.append(gateway)
    gateway.settings.run_dir.mkdir(mode=0o700)
    for spec, key in zip(specs, ("sk-first", "hr_second"), strict=True):
        gateway.secrets.write(api_key_secret(api_key_name(spec), key))
    await gateway.start(build_snapshot(gateway.settings, routes))
    asked, theirs = body({"status": 429}), {"authorization": "Bearer callers"}
    async with client(gateway) as http:
        for model, first in (("chat", "Bearer sk-first"), ("plain", "Bearer callers")):
            answer = await http.post(CHAT, json={**asked, "model": model}, headers=theirs)
            assert answer.headers[ANSWERED_BY] == "other"
            seen = [stub.seen()[-1]["headers"] for stub in stubs]
            assert [one["authorization"] for one in seen] == [first, "Bearer hr_second"]
            assert not any("x-headrace-key" in name for one in seen for name in one)
