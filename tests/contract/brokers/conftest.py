"""The broker of a rig; one Apache Kafka for all tests of a worker of pytest."""

from collections.abc import Iterator

import pytest

from headrace.streaming.broker import Broker
from tests.brokers.kafka import KafkaCluster, running_kafka
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
    # As short as the sessions of classic groups may be.
    seconds = {"min.session.timeout.ms": 6000, "session.timeout.ms": 6000}
    options = {f"group.consumer.{name}": value for name, value in seconds.items()}
    options["group.consumer.heartbeat.interval.ms"] = options[
        "group.consumer.min.heartbeat.interval.ms"
    ] = 1000
    with running_kafka(
        tmp_path_factory.mktemp("kafka"), is_secure=True, options=options
    ) as cluster:
        yield cluster
