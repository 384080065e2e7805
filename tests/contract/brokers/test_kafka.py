"""Apache Kafka keeps the contract of brokers, with each kind of group."""

from pathlib import Path
from typing import Final

import pytest

from headrace.streaming.broker import GroupProtocol
from tests.brokers.kafka import KafkaCluster
from tests.contract.brokers.rig import Rig
from tests.contract.brokers.suite import BrokerContract

DYNAMIC: Final = {
    "test_a_member_that_was_replaced_can_go_on_no_more": (
        "nobody is replaced by name where membership is dynamic"
    ),
}
_WAITS = "a successor is refused until the session of the process before it ends, and joins again"
STATIC: Final = dict.fromkeys(
    (
        "test_a_member_that_is_killed_is_replaced",
        "test_a_member_that_was_replaced_can_go_on_no_more",
    ),
    _WAITS,
)
CANNOT: Final[dict[str, dict[str, str]]] = {
    "membership=dynamic": DYNAMIC,
    "partition.assignment.strategy=range": {
        "test_members_share_what_comes_and_nothing_is_lost_when_one_goes": (
            "a rebalance takes all partitions away, not only those that move"
        ),
    },
}
"""By option of the URL."""


@pytest.mark.e2e
@pytest.mark.jvm
class TestKafka(BrokerContract):
    @pytest.fixture(
        params=[
            ("", GroupProtocol.CLASSIC),
            *(
                pytest.param(kind, marks=pytest.mark.long)
                for kind in (
                    ("membership=dynamic", GroupProtocol.CLASSIC),
                    ("partition.assignment.strategy=range", GroupProtocol.CLASSIC),
                    ("", GroupProtocol.CONSUMER),
                    ("membership=dynamic", GroupProtocol.CONSUMER),
                )
            ),
        ]
    )
    def rig(self, request: pytest.FixtureRequest, kafka: KafkaCluster, tmp_path: Path) -> Rig:
        option, protocol = request.param
        return Rig(
            url=f"kafka://{kafka.bootstrap}?fetch.wait.max.ms=20&{option}",
            protocol=protocol,
            home=tmp_path,
            session_timeout_s=6.0,
            cannot=CANNOT.get(option, STATIC if protocol is GroupProtocol.CONSUMER else {}),
            stop=kafka.stop,
            start=kafka.start,
        )
