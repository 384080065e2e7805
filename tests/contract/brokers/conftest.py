"""The broker of a rig; one Apache Kafka for all tests of a worker of pytest."""

from collections.abc import Iterator

import pytest

from headrace.streaming.broker import Broker
from tests.brokers.kafka import SHORT_SESSIONS, KafkaCluster, running_kafka
from tests.contract.brokers.rig import Rig


@pytest.fixture
def broker(rig: Rig, request: pytest.FixtureRequest) -> Iterator[Broker]:
    """Skips the tests that `Rig.cannot` names."""
    if reason := rig.cannot.get(request.function.__name__):
        pytest.skip(reason)
    opened = rig.open()
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    folder = tmp_path_factory.mktemp("kafka")
    with running_kafka(folder, is_secure=True, options=SHORT_SESSIONS) as cluster:
        yield cluster
