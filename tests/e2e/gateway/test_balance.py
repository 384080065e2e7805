"""Choice of a replica by the beginning of the prompt: affinity, spread, bounded load."""

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.core.spec.rollout import StickySpec
from headrace.gateway import EndpointRoute, RevisionTarget
from tests.e2e.gateway.lab import Lab, client
from tests.e2e.gateway.test_openai import CHAT, Stub, endpoint, running_stub
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]
REPLICAS = ("a", "b", "c", "d")
PROMPTS = [f"You are assistant {i}." for i in range(40)]


@pytest.fixture(scope="module")
def replicas() -> Iterator[Path]:
    """The directory of the sockets of four stubs with one model."""
    with tempfile.TemporaryDirectory(prefix="hr-") as directory, contextlib.ExitStack() as stack:
        for name in REPLICAS:
            stack.enter_context(running_stub(f"{directory}/{name}.openai", "chat"))
        yield Path(directory)


def arm(replicas: Path, names: tuple[str, ...] = REPLICAS, **changes: Any) -> RevisionTarget:
    addresses = tuple(f"unix:{replicas / name}" for name in names)
    values: dict[str, Any] = {"version": "1", "weight": 100, **changes}
    return RevisionTarget(replicas=addresses, openai=True, **values)


def route(*arms: RevisionTarget, **changes: Any) -> EndpointRoute:
    return EndpointRoute(name="chat", arms=arms, timeout_s=10.0, **changes)


def chat(system: str, question: str = "Hello!", **more: Any) -> dict[str, Any]:
    roles = {"system": system, "user": question}
    messages = [{"role": role, "content": text} for role, text in roles.items()]
    return {"model": "chat", "messages": messages, **more}


class Received:
    """The requests that each replica has received since the last call."""

    def __init__(self, replicas: Path) -> None:
        self._replicas = replicas
        self._counts: Counter[str] = Counter()
        self.newest()

    def newest(self) -> dict[str, list[dict[str, Any]]]:
        new = {}
        for name in REPLICAS:
            transport = httpx.HTTPTransport(uds=str(self._replicas / f"{name}.openai"))
            with httpx.Client(transport=transport, base_url="http://replica") as http:
                requests = http.get("/seen").json()
            new[name] = requests[self._counts[name] :]
            self._counts[name] = len(requests)
        return new

    def counts(self) -> dict[str, int]:
        return {name: len(requests) for name, requests in self.newest().items() if requests}

    def prompts(self) -> Mapping[str, set[str]]:
        """Return the replicas of each system prompt."""
        names: dict[str, set[str]] = {}
        for name, requests in self.newest().items():
            for request in requests:
                system = request["body"]["messages"][0]["content"]
                names.setdefault(system, set()).add(name)
        return names


async def in_flight(
    http: httpx.AsyncClient, body: dict[str, Any], path: str = CHAT, count: int = 40
) -> None:
    """Have `count` requests in flight; Envoy counts one only once it is connected."""
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(post(http, {**body, "stub": {"pause_s": 3.0}}, path))
            await asyncio.sleep(0.02)


async def post(http: httpx.AsyncClient, body: dict[str, Any], path: str = CHAT) -> None:
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text


async def test_a_system_prompt_has_one_replica_and_a_leaving_replica_moves_only_its_own(
    lab: Lab, replicas: Path
) -> None:
    gateway = await lab.start(route(arm(replicas)))
    received = Received(replicas)
    async with client(gateway) as http:
        for i in range(3):
            for prompt in PROMPTS:
                await post(http, chat(prompt, f"question {i}", stream=i == 1))
        before = received.prompts()
        await lab.publish(gateway, route(arm(replicas, ("a", "b", "d"))))
        for prompt in PROMPTS:
            await post(http, chat(prompt, "after"))
        after = received.prompts()

    assert all(len(names) == 1 for names in before.values())
    assert {name for names in before.values() for name in names} == set(REPLICAS)
    assert all(after[prompt] == before[prompt] for prompt in PROMPTS if before[prompt] != {"c"})
    assert "c" not in {name for names in after.values() for name in names}


async def test_a_hot_prompt_overflows_to_the_other_replicas(lab: Lab, replicas: Path) -> None:
    gateway = await lab.start(route(arm(replicas)))
    received = Received(replicas)
    async with client(gateway) as http:
        await post(http, chat("hot"))
        (own,) = received.counts()
        await in_flight(http, chat("hot"))
        counts = received.counts()

    assert sum(counts.values()) == 40
    assert len(counts) >= 3
    # At most one beyond 1.25 times the mean of 10, rounded up.
    assert 12 <= counts[own] <= max(counts.values()) <= 14


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "Once upon a time"}),
        ("/v1/responses", {"instructions": "Be brief.", "input": "Hello!"}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}]}),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 4096 + "1"}]}),
    ],
)
async def test_other_beginnings_of_a_prompt_have_one_replica(
    lab: Lab, replicas: Path, path: str, body: dict[str, Any]
) -> None:
    gateway = await lab.start(route(arm(replicas)))
    received = Received(replicas)
    text = str(body.get("messages"))
    async with client(gateway) as http:
        for i in range(10):
            more: dict[str, Any] = {"user": str(i)}
            if text.endswith("1'}]"):
                more["messages"] = [{"role": "user", "content": "x" * 4096 + str(i)}]
            await post(http, {"model": "chat", **body, **more}, path)
    assert list(received.counts().values()) == [10]


async def test_requests_without_a_prompt_are_spread(lab: Lab, replicas: Path) -> None:
    gateway = await lab.start(route(arm(replicas)))
    received = Received(replicas)
    async with client(gateway) as http:
        for _ in range(60):
            await post(http, {"model": "chat", "input": "Hello!"}, "/v1/embeddings")
        assert set(received.counts()) == set(REPLICAS)
        rerank = {"model": "chat", "query": "q", "documents": ["d"]}
        await in_flight(http, rerank, "/v1/rerank")
    counts = received.counts()
    assert set(counts) == set(REPLICAS)
    assert max(counts.values()) <= 14


async def test_a_split_keeps_its_weights_and_each_arm_its_replica(lab: Lab, replicas: Path) -> None:
    arms = (
        arm(replicas, ("a", "b"), weight=50),
        arm(replicas, ("c", "d"), version="2", weight=50),
    )
    gateway = await lab.start(route(*arms))
    received = Received(replicas)
    async with client(gateway) as http:
        for _ in range(60):
            await post(http, chat("one"))
        counts = received.counts()
        assert {len(set(counts) & set(names)) for names in ("ab", "cd")} == {1}
        assert min(counts.values()) > 10
        await lab.publish(gateway, route(*arms, sticky=StickySpec(header="x-user")))
        for user in range(20):
            for prompt in ("one", "two"):
                answer = await http.post(CHAT, json=chat(prompt), headers={"x-user": f"u{user}"})
                assert answer.status_code == 200
    users: dict[str, set[str]] = {}
    for name, requests in received.newest().items():
        for request in requests:
            users.setdefault(request["headers"]["x-user"], set()).add(name)
    assert all(len(names) == 1 for names in users.values())
    assert {name for names in users.values() for name in names} == set(REPLICAS)


async def test_replicas_of_an_endpoint_with_a_fallback_are_chosen_by_prompt(
    lab: Lab, replicas: Path
) -> None:
    port = free_port()
    with running_stub(str(port), "other"):
        other = endpoint("other", Stub(port).upstream(model="other"))
        gateway = await lab.start(route(arm(replicas), fallback="other"), other)
        received = Received(replicas)
        async with client(gateway) as http:
            for _ in range(2):
                for prompt in PROMPTS:
                    await post(http, chat(prompt))
            prompts = received.prompts()
            failing = chat("one", stub={"at": {"chat": {"status": 503}}})
            answer = await http.post(CHAT, json=failing)

    assert all(len(names) == 1 for names in prompts.values())
    assert {name for names in prompts.values() for name in names} == set(REPLICAS)
    assert (answer.status_code, answer.headers["x-headrace-endpoint"]) == (200, "other")
    assert sum(received.counts().values()) == 1
