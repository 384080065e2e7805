"""Copies for a shadow of a language model: counted as the arm's requests, seen by no caller."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from headrace.core.spec.access import AliasSpec, EndpointAccess
from headrace.core.spec.upstream import UpstreamSpec
from headrace.gateway import (
    ArmStatistics,
    EndpointRoute,
    EnvoyGateway,
    GatewayPolicy,
    MirrorTarget,
    RevisionTarget,
    build_snapshot,
)
from headrace.gateway.tls import api_key_name, api_key_secret
from tests.e2e.gateway.issuing import api_key, known
from tests.e2e.gateway.lab import Lab, client
from tests.e2e.gateway.test_openai import CHAT, MESSAGES, Stub, running_stub, texts
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]
OLD, NEW = "old/model", "new/model"
KEY = api_key("llm")


@pytest.fixture(scope="module")
def stubs() -> Iterator[tuple[Stub, Stub]]:
    """The servers of the old and the new version."""
    old, new = free_port(), free_port()
    with running_stub(str(old), OLD), running_stub(str(new), NEW):
        yield Stub(old), Stub(new)


def shadowed(old: UpstreamSpec, new: UpstreamSpec, **changes: Any) -> EndpointRoute:
    arms = (
        RevisionTarget(version="1", replicas=(), weight=100, upstream=old),
        RevisionTarget(version="2", replicas=(), weight=0, upstream=new),
    )
    values = {"timeout_s": 10.0, "split_id": "r1", "mirror": MirrorTarget(key="2", percent=100)}
    return EndpointRoute(name="chat", arms=arms, **{**values, **changes})


async def counted(
    gateway: EnvoyGateway, copies: int, within_s: float = 30.0
) -> tuple[ArmStatistics, ArmStatistics]:
    """The counts of both arms, once the copies ended."""
    until = time.monotonic() + within_s
    while True:
        arms = (await gateway.arm_statistics(["chat"])).arms
        old, new = (arms.get(("chat", key), ArmStatistics()) for key in ("1", "2"))
        if new.requests >= copies:
            return old, new
        assert time.monotonic() < until, (old, new)
        await asyncio.sleep(0.1)


def lower_edges(buckets: Any) -> list[float]:
    return sorted(lower for (lower, _), count in buckets.items() for _ in range(count))


async def test_tokens_and_times_of_copies_count_for_their_arm_alone(
    lab: Lab, stubs: tuple[Stub, Stub]
) -> None:
    old, new = stubs
    keyed = new.upstream(model=NEW, api_key_file="/never/read")
    route = shadowed(
        old.upstream(model=OLD),
        keyed,
        access=EndpointAccess(),
        aliases=(AliasSpec(name="gpt"),),
    )
    gateway = EnvoyGateway(lab.settings())
    lab.gateways.append(gateway)
    gateway.settings.run_dir.mkdir(mode=0o700)
    gateway.secrets.write(api_key_secret(api_key_name(keyed), "sk-of-new"))
    policy = GatewayPolicy(keys=(known(KEY),))
    await gateway.start(build_snapshot(gateway.settings, [route], policy))
    told = {"tokens": 5, "pause_s": 0.01, "at": {NEW: {"tokens": 40, "pause_s": 0.04}}}
    forged = {"x-headrace-shadow": "1", "x-model": "chat~shadow", "x-headrace-split": "r1"}
    before = len(new.seen())
    async with client(gateway) as http:
        http.headers = httpx.Headers({"authorization": f"Bearer {KEY}", **forged})
        for model in ("chat", "gpt"):
            for stream in (True, False):
                body = {"model": model, "messages": MESSAGES, "stream": stream, "stub": told}
                answer = await http.post(CHAT, json=body)
                assert answer.status_code == 200, answer.text
                if stream:
                    assert len(texts(answer.text)) == 8  # a role, tokens, an end, `[DONE]`
        assert (await http.post(CHAT, json={"model": "chat:shadow"})).status_code == 404
        del http.headers["authorization"]
        assert (await http.post(CHAT, json={"model": "chat"})).status_code == 401
        of_old, of_new = await counted(gateway, 4)

    assert (of_old.requests, of_new.requests) == (4, 4)
    assert of_old.errors == of_new.errors == 0
    assert lower_edges(of_old.output_tokens) == [5.0] * 4
    assert lower_edges(of_new.output_tokens) == [40.0] * 4
    for arm, at_least_s in ((of_old, 0.009), (of_new, 0.037)):
        for times, count in ((arm.per_token, 2), (arm.latency, 4)):
            lower_s = lower_edges(times)
            assert len(lower_s) == count
            assert all(at_least_s < lower < 1.0 for lower in lower_s)
    seen = new.seen()[before:]
    assert [told["headers"]["authorization"] for told in seen] == ["Bearer sk-of-new"] * 4
    assert {told["body"]["model"] for told in seen} == {NEW}
    assert not any("x-model" in told["headers"] for told in seen)
    # Callers have not used these tokens, and sent no such requests.
    used = (await gateway.token_statistics()).counts
    assert {use.version: use.output for use in used} == {"1": 20}
    assert set((await gateway.token_statistics()).times["per_token_us"]) == {("chat", "1")}
    of_all = (await gateway.endpoint_statistics(["chat"])).arms
    assert of_all["chat", "1"].requests - of_all["chat", "1"].rejections == 4
    assert ("chat", "2") not in of_all
    await asyncio.sleep(1.2)  # the log is written once a second
    lines = gateway.access_log_path.read_text().splitlines()
    logged = [(told["endpoint"], told["code"]) for told in map(json.loads, lines)]
    assert sorted(logged, key=str)[:4] == [("chat", 200)] * 4
    assert [code for _, code in logged if code != 200] == [404, 401]


@pytest.mark.parametrize(
    ("told", "errors"),
    [
        ({"status": 500}, 4),
        ({"hangs": True}, 4),
        ({"tokens": 30, "breaks_at": 3}, 0),  # a stream that breaks has begun with 200
        ({"tokens": 3, "stalls_at": 0}, 0),
    ],
)
async def test_a_new_version_that_fails_is_seen_by_no_caller(
    lab: Lab, stubs: tuple[Stub, Stub], told: dict[str, Any], errors: int
) -> None:
    old, new = stubs
    route = shadowed(old.upstream(model=OLD), new.upstream(model=NEW), timeout_s=3.0)
    gateway = await lab.start(route)
    async with client(gateway) as http:
        for stream in (True, True, False, False):
            body = {"model": "chat", "stream": stream, "stub": {"tokens": 3, "at": {NEW: told}}}
            started = time.monotonic()
            answer = await http.post(CHAT, json=body)
            assert answer.status_code == 200
            assert time.monotonic() - started < 3.0
        of_old, of_new = await counted(gateway, 4)

    assert (of_old.requests, of_old.errors) == (4, 0)
    assert (of_new.requests, of_new.errors) == (4, errors)


async def test_a_new_version_that_nothing_serves_is_seen_by_no_caller(
    lab: Lab, stubs: tuple[Stub, Stub]
) -> None:
    old, new = stubs
    gone = new.upstream(model=NEW, url=f"http://127.0.0.1:{free_port()}")
    gateway = await lab.start(shadowed(old.upstream(model=OLD), gone))
    async with client(gateway) as http:
        for _ in range(5):
            assert (await http.post(CHAT, json={"model": "chat"})).status_code == 200
        of_old, of_new = await counted(gateway, 5)

    assert (of_old.requests, of_old.errors) == (5, 0)
    assert (of_new.requests, of_new.errors) == (5, 5)


@pytest.mark.parametrize("size", [1 << 10, 5 << 20])
async def test_a_replica_gets_copies_of_bodies_of_any_size(lab: Lab, size: int) -> None:
    replicas = [lab.replica(name) for name in ("old", "new")]
    arms = tuple(
        RevisionTarget(version=key, replicas=(one.address,), weight=weight, openai=True)
        for one, key, weight in zip(replicas, "12", (100, 0), strict=True)
    )
    mirror = MirrorTarget(key="2", percent=100)
    route = EndpointRoute(name="chat", arms=arms, timeout_s=30.0, split_id="r1", mirror=mirror)
    sockets = [f"{one.address.removeprefix('unix:')}.openai" for one in replicas]
    with running_stub(sockets[0], "chat"), running_stub(sockets[1], "chat"):
        gateway = await lab.start(route)
        async with client(gateway) as http:
            text = [{"role": "user", "content": "x" * size}]
            body = {"model": "chat", "stream": True, "messages": text, "stub": {"pause_s": 0.01}}
            for _ in range(2):
                assert (await http.post(CHAT, json=body)).status_code == 200
            assert (await http.get("/v2/models/chat")).json()["replica"] == "old"
            of_old, of_new = await counted(gateway, 2)
        transport = httpx.AsyncHTTPTransport(uds=sockets[1])
        async with httpx.AsyncClient(transport=transport, base_url="http://stub") as stub:
            seen = (await stub.get("/seen")).json()

    for arm in (of_old, of_new):  # the call that is not OpenAI's counts for neither
        assert (arm.requests, arm.errors, sum(arm.output_tokens.values())) == (2, 0, 2)
        assert sum(arm.per_token.values()) == 2
    assert [told["body"]["messages"] for told in seen] == [text] * 2
