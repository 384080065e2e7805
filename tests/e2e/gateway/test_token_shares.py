"""Callers at twice their budget of tokens, over minutes and two gateways: each gets its budget.

`LIMIT_SECONDS=600` is ten minutes.
"""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

import httpx
import pytest

from headrace.core.spec.access import EndpointAccess, EndpointLimitsSpec, LimitSpec
from headrace.gateway import EnvoyGateway, GatewayPolicy, build_snapshot
from tests.e2e.gateway.issuing import api_key, known
from tests.e2e.gateway.lab import Lab, client
from tests.e2e.gateway.openai_stub import usage_of
from tests.e2e.gateway.test_openai import CHAT, MODEL, Stub, endpoint, running_stub
from tests.e2e.gateway.test_rate_limits import service
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.long]
SECONDS: Final = float(os.environ.get("LIMIT_SECONDS", "60"))
CALLERS: Final = 20
PER_MINUTE: Final = 3000.0
BURST_S: Final = 10.0
LARGEST: Final = 90
MEAN: Final = 50


@pytest.fixture
def stub() -> Iterator[Stub]:
    port = free_port()
    with running_stub(str(port), MODEL):
        yield Stub(port)


async def test_each_caller_gets_its_tokens_and_no_more(lab: Lab, stub: Stub) -> None:
    limits = EndpointLimitsSpec(per_caller=LimitSpec(tokens_per_minute=PER_MINUTE))
    chat = endpoint("chat", stub.upstream(), limits=limits, access=EndpointAccess())
    keys = [api_key(f"c{number}") for number in range(CALLERS)]
    policy = GatewayPolicy(keys=tuple(known(key, name=key) for key in keys))
    used, refused = Counter[str](), Counter[str]()

    async def call(http: httpx.AsyncClient, key: str, chance: random.Random) -> None:
        told = {"tokens": chance.randint(2 * MEAN - LARGEST, LARGEST)}
        body = {"model": "chat", "messages": "", "stub": told, "stream": chance.random() < 0.5}
        answer = await http.post(CHAT, json=body, headers={"authorization": f"Bearer {key}"})
        if answer.status_code == 200:
            used[key] += usage_of(body)["total_tokens"]
        else:
            assert answer.status_code == 429, answer.text
            assert int(answer.headers["retry-after"]) >= 1
            refused[key] += 1

    async with service(lab.directory, policy, chat):
        gateways = []
        for name in ("one", "two"):
            address = f"unix:{lab.directory}/limits.sock"
            gateway = EnvoyGateway(lab.settings(name, limits_address=address))
            lab.gateways.append(gateway)
            await gateway.start(build_snapshot(gateway.settings, [chat], policy))
            gateways.append(gateway)
        async with client(gateways[0]) as one, client(gateways[1]) as two:

            async def overload(key: str) -> None:
                """Send twice the budget, whatever is answered."""
                chance = random.Random(key)  # noqa: S311  # sizes, no secrets
                pause_s = MEAN * 60 / (2 * PER_MINUTE)
                async with asyncio.TaskGroup() as calls:
                    number, began = 0, time.monotonic()
                    while (due := number * pause_s) < SECONDS:
                        await asyncio.sleep(max(began + due - time.monotonic(), 0.0))
                        calls.create_task(call((one, two)[number % 2], key, chance))
                        number += 1

            async with asyncio.TaskGroup() as callers:
                for key in keys:
                    callers.create_task(overload(key))
        late = 0
        for gateway in gateways:
            counters = await gateway.admin.get("/stats?filter=ratelimit.*failure_mode_allowed")
            late += sum(int(line.rpartition(": ")[2]) for line in counters.splitlines())

    budget = PER_MINUTE / 60 * SECONDS
    ratios = sorted(used[key] / budget for key in keys)
    shown = f"{SECONDS:g} s: {ratios[0]:.4f} to {ratios[-1]:.4f} of the budget"
    print(f"{shown}, {sum(refused.values())} refused")  # noqa: T201  # the figure
    assert ratios[0] >= 0.98, shown
    if late:
        pytest.skip(f"too busy: the limits answered {late} requests too late; {shown}")
    burst = BURST_S / SECONDS
    assert ratios[-1] <= 1.002 + burst + LARGEST / budget, shown
    assert min(refused[key] for key in keys) > 0
