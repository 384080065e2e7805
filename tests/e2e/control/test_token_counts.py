"""Tokens in the ledger, the metric and the request log are those that the server counted.

`TOKEN_REQUESTS` sets the number of requests to a stub (300 by default).
"""

import asyncio
import contextlib
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.control.system import System
from tests.e2e.gateway.test_openai import MODEL, Stub, running_stub
from tests.gguf_models import smollm2
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

REQUESTS: Final = int(os.environ.get("TOKEN_REQUESTS", "300"))
OF_MODEL: Final = 300
AMOUNTS: Final = ("input", "cached", "output", "reasoning", "unknown")
LOGGED_WITHIN_S: Final = 10.0
Counts = Mapping[str, int]


def start(system: System, endpoint: dict[str, Any]) -> None:
    log = {"request_log": {"mode": "all"}}
    system.start(spec={"version": 1, "gateway": log, "endpoints": [endpoint]})
    system.wait_ready(120)


def send_all(
    system: System, count: int, ask: Callable[[httpx.AsyncClient, int], Awaitable[None]], *, at: int
) -> None:
    """Send the requests 0 to `count`, `at` at once."""

    async def run() -> None:
        gate = asyncio.Semaphore(at)
        limits = httpx.Limits(max_connections=at)
        async with httpx.AsyncClient(
            base_url=system.where().http_url, timeout=120, limits=limits
        ) as http:

            async def limited(number: int) -> None:
                async with gate:
                    await ask(http, number)

            await asyncio.gather(*map(limited, range(count)))

    asyncio.run(run())


def ledger(system: System) -> Counts:
    rows = system.get("/api/v1/usage")["usage"]
    return {name: sum(row[name] for row in rows) for name in AMOUNTS}


def csv_of(system: System) -> Counts:
    """The sums of `headrace usage --csv`."""
    command = [sys.executable, "-m", "headrace.cli", "usage", "--csv", "--home", str(system.home)]
    text = subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout
    rows = list(csv.DictReader(text.splitlines()))
    return {name: sum(int(row[name]) for row in rows) for name in AMOUNTS}


def metric(system: System) -> Counts:
    """The counters of the metric; `input` and `output` include `cached` and `reasoning`."""
    text = httpx.get(system.where().metrics_url).text
    counts = dict.fromkeys(AMOUNTS, 0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "headrace_tokens_total":
                counts[sample.labels["type"]] += int(sample.value)
            if sample.name == "headrace_responses_without_usage_total":
                counts["unknown"] += int(sample.value)
    return counts


def logged(system: System) -> Sequence[Mapping[str, str]]:
    """The member `usage` of each line of the request log."""
    lines: list[str] = []
    for path in sorted(Path(system.home).rglob("access.log*"), reverse=True):
        lines += path.read_text().splitlines()
    return [usage for line in lines if (usage := json.loads(line).get("usage")) is not None]


def sum_of(usages: Sequence[Mapping[str, str]]) -> Counts:
    return {name: sum(int(usage.get(name) or 0) for usage in usages) for name in AMOUNTS}


def wait_for_log(system: System, count: int) -> None:
    """Wait until the log has a line for each request: Envoy writes it within a second."""
    until = time.monotonic() + LOGGED_WITHIN_S
    while (lines := len(logged(system))) < count:
        assert time.monotonic() < until, f"the log has {lines} lines"
        time.sleep(0.2)


KINDS: Final[Sequence[dict[str, Any]]] = (
    {},
    {},
    {},
    {"n": 3},
    {"stream": True},
    {"stream": True},
    {"stream": True, "n": 2},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"stream": True, "stub": {"breaks_at": 0}},
    {"stream": True, "stub": {"stalls_at": 0}},
)
"""Whole and streamed, with several answers, cut by the server, and left by the caller."""


def body_of(number: int) -> dict[str, Any]:
    """A chat of one of the kinds; those that are cut are so after up to eight events."""
    kind = KINDS[number % len(KINDS)]
    cut = dict.fromkeys(kind.get("stub", ()), 1 + number % 8)
    told = {"tokens": 20 if cut else number % 17, **cut}
    return {"model": "chat", "messages": "x" * (number % 300), **kind, "stub": told}


async def ask_stub(http: httpx.AsyncClient, number: int) -> None:
    """Send a chat, and leave a stream that stands still after its last event."""
    body = body_of(number)
    leaves_after = body["stub"].get("stalls_at")
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        events = 0
        try:
            async for line in answer.aiter_lines():
                events += line.startswith("data:")
                if events == leaves_after:
                    break
        except httpx.RemoteProtocolError:
            assert "breaks_at" in body["stub"]


def test_tokens_of_ten_kinds_of_requests_are_those_of_the_stub(system: System) -> None:
    port = free_port()
    upstream = {"url": f"http://127.0.0.1:{port}", "protocol": "openai", "model": MODEL}
    with running_stub(str(port), MODEL):
        start(system, {"name": "chat", "upstream": {**upstream, "health_path": None}})
        send_all(system, REQUESTS, ask_stub, at=32)
        seen = Stub(port).seen()
        wait_for_log(system, REQUESTS)

    whole = [told["usage"] for told in seen if "usage" in told]
    # Of an answer that is not whole, the tokens that came: its first event has no text.
    parts = [told["sent"] - 1 for told in seen if "usage" not in told]
    assert (len(seen), len(parts)) == (REQUESTS, sum(n % 10 > 7 for n in range(REQUESTS)))
    expected = {
        "input": sum(usage["prompt_tokens"] for usage in whole),
        "cached": sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in whole),
        "output": sum(usage["completion_tokens"] for usage in whole) + sum(parts),
        "reasoning": sum(usage["completion_tokens_details"]["reasoning_tokens"] for usage in whole),
        "unknown": len(parts),
    }
    assert ledger(system) == expected
    assert csv_of(system) == expected
    assert metric(system) == expected
    assert sum_of(logged(system)) == expected


def test_of_a_long_stream_that_is_cut_at_most_seven_tokens_are_missing(system: System) -> None:
    cuts = range(9, 41)
    port = free_port()
    upstream = {"url": f"http://127.0.0.1:{port}", "protocol": "openai", "model": MODEL}

    async def ask(http: httpx.AsyncClient, number: int) -> None:
        told = {"tokens": 100, "breaks_at": cuts[number]}
        body = {"model": "chat", "messages": [], "stream": True, "stub": told}
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            with contextlib.suppress(httpx.RemoteProtocolError):
                await answer.aread()

    with running_stub(str(port), MODEL):
        start(system, {"name": "chat", "upstream": {**upstream, "health_path": None}})
        send_all(system, len(cuts), ask, at=8)
        wait_for_log(system, len(cuts))

    sent = [cut - 1 for cut in cuts]  # the first event has no text
    told = sorted(int(usage["output"]) for usage in logged(system))
    assert all(0 <= more - less <= 7 for more, less in zip(sent, told, strict=True)), told
    assert ledger(system) == metric(system) == sum_of(logged(system))
    assert ledger(system)["unknown"] == len(cuts)


@pytest.mark.long
def test_tokens_of_smollm2_are_those_of_its_answers(
    system: System, request: pytest.FixtureRequest
) -> None:
    usages: dict[int, Mapping[str, Any]] = {}
    left: list[int] = []

    async def ask(http: httpx.AsyncClient, number: int) -> None:
        # Each third request repeats the one before, but does not ask for its usage.
        repeated = number - (number % 3 == 2)
        text = f"Tell me about the number {repeated}."
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "model": "chat"}
        body |= {"max_tokens": 2 + repeated % 5, "n": 1 + (number % 6 == 0), "temperature": 0}
        if number % 3 == 0:
            answer = await http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            usages[number] = answer.json()["usage"]
            return
        asks = number == repeated
        body |= {"stream": True} | ({"stream_options": {"include_usage": True}} if asks else {})
        is_left = number % 12 == 11
        body |= {"max_tokens": 200} if is_left else {}
        chunks = []
        async with http.stream("POST", "/v1/chat/completions", json=body) as streamed:
            assert streamed.status_code == 200, await streamed.aread()
            async for line in streamed.aiter_lines():
                if line.startswith("data: {"):
                    chunks.append(json.loads(line.removeprefix("data: ")))
                if is_left and len(chunks) == 4:
                    left.append(3)  # tokens, after the role
                    return
        assert ("usage" in chunks[-1]) is asks
        if asks:
            usages[number] = chunks[-1]["usage"]

    llm = {"slots": 2, "context_tokens": 1024}
    batching = {"intra_op_threads": 1}
    model = str(smollm2(request))
    start(system, {"name": "chat", "model": model, "llm": llm, "batching": batching})
    send_all(system, OF_MODEL, ask, at=4)
    wait_for_log(system, OF_MODEL)

    counted = ledger(system)
    assert metric(system) == counted
    assert sum_of(logged(system)) == counted
    assert counted["unknown"] == len(left) == OF_MODEL // 12
    whole = [usages[n - (n % 3 == 2)] for n in range(OF_MODEL) if n % 12 != 11]
    assert counted["input"] == sum(usage["prompt_tokens"] for usage in whole)
    output = sum(usage["completion_tokens"] for usage in whole)
    # A caller who leaves has read three tokens; the engine may have sent some more.
    assert 0 <= counted["output"] - output - sum(left) <= 8 * len(left)
