"""NATS JetStream keeps every broker's promises, and some of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.brokers.nats_servers import NatsServer, running_nats
from tests.contract.brokers.rig import Rig
from tests.contract.brokers.suite import BrokerContract


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    with running_nats() as running:
        yield running


@pytest.mark.e2e
class TestNats(BrokerContract):
    @pytest.fixture
    def rig(self, server: NatsServer, tmp_path: Path) -> Rig:
        return Rig(
            url=server.url,
            home=tmp_path,
            session_timeout_s=1.0,
            counts_deliveries=True,
            stop=server.stop,
            start=server.start,
        )
