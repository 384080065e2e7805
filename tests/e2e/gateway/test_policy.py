"""Who may call changes while requests run, and nobody else notices."""

import asyncio

import pytest

from headrace.core.processes import Process, start_ticks
from headrace.core.spec.access import EndpointAccess
from headrace.gateway import ApiKey, EndpointRoute, EnvoyGateway, GatewayPolicy, build_snapshot
from tests.e2e.gateway.lab import Lab, client, endpoint

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]


def _policy(*names: str) -> GatewayPolicy:
    keys = (ApiKey(id=name, name=name, digest="0" * 64, scopes=("infer:*",)) for name in names)
    return GatewayPolicy(keys=tuple(keys))


async def test_a_new_policy_is_in_force_when_it_is_acknowledged_and_drains_nobody(
    lab: Lab,
) -> None:
    one = lab.replica("1")
    endpoints = [
        endpoint("open", one),
        EndpointRoute(name="shut", arms=(), access=EndpointAccess()),
    ]
    gateway = EnvoyGateway(lab.settings())
    lab.gateways.append(gateway)
    await gateway.start(build_snapshot(gateway.settings, endpoints, _policy("a")))

    async with client(gateway) as http:
        for i in range(20):
            await gateway.publish(build_snapshot(gateway.settings, endpoints, _policy(f"k{i}")))
            answer = await http.get("/v2/models/open")
            refused = await http.get("/v2/models/shut")
            assert "connection" not in answer.headers
            assert (answer.status_code, refused.status_code) == (200, 401)


async def test_another_control_plane_goes_on_with_the_policy_that_is_in_force(lab: Lab) -> None:
    gateway = EnvoyGateway(lab.settings())
    lab.gateways.append(gateway)
    await gateway.start(build_snapshot(gateway.settings, [], _policy("a")))
    other = EnvoyGateway(gateway.settings)
    assert gateway.pid is not None

    process = Process.adopt(gateway.pid, start_ticks(gateway.pid) or 0)
    assert process is not None
    await other.adopt(process)
    await asyncio.wait_for(
        other.publish(build_snapshot(gateway.settings, [], _policy("a", "b"))), 5
    )

    assert '"version_info"' in (gateway.settings.run_dir / "identify.json").read_text()
