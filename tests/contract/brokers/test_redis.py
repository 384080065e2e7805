"""Redis and Valkey keep every broker's promises, and some of their own."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.brokers.rig import Rig
from tests.contract.brokers.suite import BrokerContract
from tests.contract.redis_servers import NoServerError, RedisServer, running_server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module", params=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[RedisServer, int]]:
    try:
        with running_server(request.param) as server:
            server.stop()
            port = free_port()
            server.start("--port", str(port), "--appendonly", "yes")
            yield server, port
    except NoServerError as error:
        pytest.skip(str(error))


@pytest.mark.e2e
class TestRedis(BrokerContract):
    @pytest.fixture
    def rig(self, server: tuple[RedisServer, int], tmp_path: Path) -> Rig:
        running, port = server
        return Rig(
            url=f"redis://127.0.0.1:{port}/0",
            home=tmp_path,
            session_timeout_s=1.0,
            counts_deliveries=True,
            stop=running.stop,
            start=lambda: running.start("--port", str(port), "--appendonly", "yes"),
        )
