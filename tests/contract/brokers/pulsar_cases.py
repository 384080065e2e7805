"""Apache Pulsar keeps the contract of brokers, less what needs its admin API, which is refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.core import InvalidArgumentError, UnavailableError, UnsupportedError
from headrace.streaming.broker import Broker
from headrace.streaming.brokers import open_broker
from tests.brokers.pulsar import Pulsar, running_pulsar
from tests.contract.brokers.rig import Listener, Rig, everything, joined, new_topic, numbered
from tests.contract.brokers.suite import BrokerContract
from tests.ports import free_port

ADMIN = "only the admin API of Pulsar knows; that it is refused is a test of its own"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulsar]:
    with running_pulsar(tmp_path_factory.mktemp("pulsar")) as running:
        yield running


@pytest.mark.e2e
class TestPulsar(BrokerContract):
    @pytest.fixture
    def rig(self, server: Pulsar, tmp_path: Path) -> Rig:
        return Rig(
            url=server.url,
            home=tmp_path,
            session_timeout_s=1.0,
            settles_s=30.0,
            counts_deliveries=False,  # Pulsar forgets them when the last member leaves
            stop=server.stop,
            start=server.start,
            cannot={
                "test_a_topic_that_is_not_there_is_named": "a Pulsar makes what is named",
                "test_a_group_says_where_it_is": ADMIN,
                "test_a_group_is_put_elsewhere_while_no_member_runs": ADMIN,
                "test_a_group_that_never_was_is_put_somewhere": ADMIN,
                "test_a_member_with_a_state_of_its_own_says_where_it_reads": ADMIN,
            },
        )

    def test_what_only_the_admin_api_knows_is_refused(self, rig: Rig, broker: Broker) -> None:
        topic = new_topic(broker)
        broker.send(numbered(topic, range(3)))
        record = everything(broker, topic)[1]
        own = Listener(offsets={record.topic_partition: record.offset})

        with pytest.raises(UnsupportedError, match="pulsar-admin topics stats"):
            broker.committed("group", topic)
        with pytest.raises(UnsupportedError, match="reset-cursor"):
            broker.set_committed("group", {record.topic_partition: record.offset})
        with (
            joined(broker, rig.membership(topic), own) as session,
            pytest.raises(UnsupportedError, match="its own offset"),
        ):
            session.poll(1, 0.1)
        with pytest.raises(UnsupportedError, match="earliest or latest"):
            broker.join(rig.membership(topic, start_s=1.0), Listener())


def test_a_broker_that_is_not_there_is_named(tmp_path: Path) -> None:
    port = free_port()
    broker = open_broker(f"pulsar://127.0.0.1:{port}", home=tmp_path)

    with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}"):
        broker.create_topic("t")
    broker.close()


@pytest.mark.parametrize("url", ["pulsar://", "pulsar://who:secret@h:1", "pulsar://h:1?keep=1"])
def test_a_url_that_says_something_wrong_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be read") as told:
        open_broker(url, home=tmp_path)

    assert "secret" not in str(told.value)
