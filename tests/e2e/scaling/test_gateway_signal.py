"""What the gateway waits for is told by arm: a signal that replicas cannot give."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.gateway import EndpointRoute, GatewayUnavailableError, RevisionTarget
from tests.e2e.gateway.lab import Lab, client

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        lab = Lab(Path(directory))
        try:
            yield lab
        finally:
            lab.close()


async def test_requests_on_their_way_are_told_by_arm(lab: Lab) -> None:
    one = lab.replica("one")
    route = EndpointRoute(
        name="m.2",
        arms=(
            RevisionTarget(version="1", replicas=(one.address,), weight=100, role="baseline"),
            RevisionTarget(version="2", replicas=(one.address,), weight=0),
        ),
        split_id="r1",
    )
    gateway = await lab.start(route)
    assert await gateway.in_flight() == {}

    async with client(gateway) as http, asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(http.get("/v2/models/m.2/infer?sleep_s=2"))
        async with asyncio.timeout(10.0):
            while (await gateway.in_flight()).get(("m.2", "1~baseline")) != 5:  # noqa: ASYNC110  # Envoy tells nobody
                await asyncio.sleep(0.02)

    assert await gateway.in_flight() == {("m.2", "1~baseline"): 0}


async def test_a_gateway_that_ended_does_not_say(lab: Lab) -> None:
    one = lab.replica("one")
    target = RevisionTarget(version="1", replicas=(one.address,), weight=100)
    gateway = await lab.start(EndpointRoute(name="m", arms=(target,)))
    await gateway.stop(0.0)

    with pytest.raises(GatewayUnavailableError):
        await gateway.in_flight()
