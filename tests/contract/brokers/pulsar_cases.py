"""Apache Pulsar keeps the contract of brokers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.core import HeadraceError
from headrace.streaming.brokers import open_broker
from tests.brokers.pulsar import Pulsar, running_pulsar
from tests.contract.brokers.rig import Rig
from tests.contract.brokers.suite import BrokerContract


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulsar]:
    with running_pulsar(tmp_path_factory.mktemp("pulsar")) as running:
        yield running


@pytest.fixture
def rig(server: Pulsar, tmp_path: Path) -> Rig:
    return Rig(
        url=f"{server.url}?admin={server.admin}",
        home=tmp_path,
        session_timeout_s=1.0,
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


class TestPulsar(BrokerContract):
    """All that a broker promises."""


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("pulsar://", "cannot be read"),
        ("pulsar://who:secret@h:1", "cannot be read"),
        ("pulsar://h:1?keep=1&token=secret", "cannot be read"),
        ("pulsar://h:1?subscription=exclusive&token=secret", "shared, failover, key_shared"),
        ("pulsar://127.0.0.1:1", "127.0.0.1:1"),  # where no server is
        *(
            (f"pulsar+ssl://h:1?{option}=/nonexistent", "cannot be read")
            for option in ("token_file", "tls_ca_file", "tls_cert_file")
        ),
    ],
)
def test_a_url_that_says_something_wrong_is_refused(tmp_path: Path, url: str, reason: str) -> None:
    with pytest.raises(HeadraceError, match=reason) as told:
        open_broker(url, home=tmp_path).create_topic("t")

    assert "secret" not in str(told.value)
