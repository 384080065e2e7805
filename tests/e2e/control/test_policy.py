"""A gateway that gets a policy or a route that is not valid."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.control.base.ownership import ProcessOwner
from headrace.control.gateway.routes import RoutesLeftOutError
from headrace.control.gateway.supervisor import EnvoySupervisor
from headrace.core import SystemClock
from headrace.core.spec.access import AccessSettings, JwtSpec
from headrace.gateway import (
    ApiKey,
    EndpointRoute,
    EnvoyGateway,
    EnvoySettings,
    GatewayPolicy,
    RevisionTarget,
    SnapshotRejectedError,
)
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]

KEY = ApiKey(id="k", name="robot", digest="0" * 64, scopes=("infer:*",))
CORP = JwtSpec(name="corp", issuer="https://id.example", audiences=("gw",), jwks_file="-")
BROKEN = GatewayPolicy(access=AccessSettings(jwt=(CORP,)), key_sets={"corp": "{}"})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        yield Path(directory)


def a_keeper(directory: Path, policy: GatewayPolicy) -> EnvoySupervisor:
    return EnvoySupervisor(
        envoy=EnvoyGateway(
            EnvoySettings(
                run_dir=directory / "gw",
                http_port=free_port(),
                grpc_port=free_port(),
                concurrency=1,
            )
        ),
        owner=ProcessOwner.of(directory),
        record_path=directory / "gateway.json",
        routes_path=directory / "routes.json",
        clock=SystemClock(),
        policy=policy,
    )


def a_route(name: str, *, version: str = "1", timeout_s: float | None = None) -> EndpointRoute:
    arm = RevisionTarget(version=version, weight=100, replicas=("127.0.0.1:1",))
    return EndpointRoute(name=name, timeout_s=timeout_s, arms=(arm,))


async def test_route_that_is_not_valid_keeps_its_former_one_and_holds_up_no_other(
    directory: Path,
) -> None:
    keeper = a_keeper(directory, GatewayPolicy())
    await keeper.open(())
    running = asyncio.create_task(keeper.run())
    await keeper.publish((a_route("good"), a_route("bad")))

    wrong = a_route("bad", timeout_s=-1.0), a_route("new", timeout_s=-1.0)
    with pytest.raises(RoutesLeftOutError, match=r"'bad': timeout_s .*'new': timeout_s ") as caught:
        await keeper.publish((a_route("good", version="2"), *wrong))

    versions = {route.name: route.arms[0].version for route in caught.value.in_force}
    table = (keeper.settings.run_dir / "rds.json").read_text()
    await keeper.publish((a_route("good"), a_route("bad", version="3")))
    mended = (keeper.settings.run_dir / "rds.json").read_text()
    running.cancel()
    await keeper.stop(drain_s=0.1)
    assert versions == {"good": "2", "bad": "1"}
    assert "/v2/models/bad/" in table
    assert "/v2/models/new/" not in table
    assert table != mended


async def test_a_revoked_key_is_refused_whatever_else_is_wrong(directory: Path) -> None:
    keeper = a_keeper(directory, GatewayPolicy(keys=(KEY,)))
    await keeper.open(())
    running = asyncio.create_task(keeper.run())
    identify = keeper.settings.run_dir / "identify.json"
    before = identify.read_text()

    with pytest.raises(SnapshotRejectedError, match="corp"):
        await keeper.set_policy(BROKEN)

    after = identify.read_text()
    running.cancel()
    await keeper.stop(drain_s=0.1)
    assert before != after
    assert keeper.policy == GatewayPolicy()
