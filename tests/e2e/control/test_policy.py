"""A gateway that is told something wrong about callers."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.control.keeper import GatewayKeeper
from headrace.control.ownership import ProcessOwner
from headrace.core import SystemClock
from headrace.core.access_settings import AccessSettings, JwtSettings
from headrace.gateway import ApiKey, GatewayPolicy, GatewaySettings, SnapshotRejectedError
from tests.e2e.replicas import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]

KEY = ApiKey(id="k", name="robot", digest="0" * 64, scopes=("infer:*",))
CORP = JwtSettings(name="corp", issuer="https://id.example", audiences=("gw",), jwks_file="-")
BROKEN = GatewayPolicy(access=AccessSettings(jwt=(CORP,)), key_sets={"corp": "{}"})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        yield Path(directory)


async def test_a_revoked_key_is_refused_whatever_else_is_wrong(directory: Path) -> None:
    settings = GatewaySettings(
        run_dir=directory / "gw", http_port=free_port(), grpc_port=free_port(), concurrency=1
    )
    keeper = GatewayKeeper(
        settings=settings,
        owner=ProcessOwner.of(directory),
        record_path=directory / "gateway.json",
        routes_path=directory / "routes.json",
        clock=SystemClock(),
        policy=GatewayPolicy(keys=(KEY,)),
    )
    await keeper.open(())
    running = asyncio.create_task(keeper.run())
    identify = settings.run_dir / "identify.json"
    before = identify.read_text()

    with pytest.raises(SnapshotRejectedError, match="corp"):
        await keeper.set_policy(BROKEN)

    after = identify.read_text()
    running.cancel()
    await keeper.stop(drain_s=0.1)
    assert before != after
    assert keeper.policy == GatewayPolicy()
