"""Apache Pulsar keeps the contract of brokers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.core import FailedPreconditionError, InvalidArgumentError, UnavailableError
from headrace.streaming.brokers import open_broker
from tests.brokers.pulsar import Pulsar, running_pulsar
from tests.contract.brokers.rig import Rig
from tests.contract.brokers.suite import BrokerContract
from tests.ports import free_port


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulsar]:
    with running_pulsar(tmp_path_factory.mktemp("pulsar")) as running:
        yield running


@pytest.mark.e2e
class TestPulsar(BrokerContract):
    @pytest.fixture
    def rig(self, server: Pulsar, tmp_path: Path) -> Rig:
        return Rig(
            url=f"{server.url}?admin={server.admin}",
            home=tmp_path,
            session_timeout_s=1.0,
            settles_s=30.0,
            counts_deliveries=False,  # Pulsar forgets them when the last member leaves
            stop=server.stop,
            start=server.start,
            cannot={
                "test_a_topic_that_is_not_there_is_named": "a Pulsar makes what is named",
                "test_several_partitions_are_refused_by_who_has_none": "a Pulsar has them",
                "test_a_member_with_a_state_of_its_own_says_where_it_reads": (
                    "windows, which have such a state, need partitions that one member reads"
                ),
            },
        )


def test_a_broker_that_is_not_there_is_named(tmp_path: Path) -> None:
    port = free_port()
    broker = open_broker(f"pulsar://127.0.0.1:{port}", home=tmp_path)

    with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}"):
        broker.create_topic("t")
    broker.close()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("pulsar://", "cannot be read"),
        ("pulsar://who:secret@h:1", "cannot be read"),
        ("pulsar://h:1?keep=1&token=secret", "cannot be read"),
        ("pulsar://h:1?subscription=exclusive&token=secret", "shared, failover, key_shared"),
    ],
)
def test_a_url_that_says_something_wrong_is_refused(tmp_path: Path, url: str, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason) as told:
        open_broker(url, home=tmp_path)

    assert "secret" not in str(told.value)


@pytest.mark.parametrize("option", ["token_file", "tls_ca_file", "tls_cert_file"])
def test_a_file_that_is_not_there_is_told_without_a_connection(tmp_path: Path, option: str) -> None:
    with pytest.raises(FailedPreconditionError, match="cannot be read"):
        open_broker(f"pulsar+ssl://h:1?{option}={tmp_path}/none", home=tmp_path)
