"""Apache Kafka keeps the contract of brokers, with each kind of group."""

from pathlib import Path

import pytest

from tests.brokers.kafka import KafkaCluster
from tests.contract.brokers.rig import Rig
from tests.contract.brokers.suite import BrokerContract


@pytest.mark.e2e
@pytest.mark.jvm
class TestKafka(BrokerContract):
    @pytest.fixture(
        params=[
            "",
            *(
                pytest.param(option, marks=pytest.mark.long)
                for option in (
                    "membership=dynamic",
                    "partition.assignment.strategy=range",
                    "group.protocol=consumer",
                    "group.protocol=consumer&membership=dynamic",
                )
            ),
        ]
    )
    def rig(self, request: pytest.FixtureRequest, kafka: KafkaCluster, tmp_path: Path) -> Rig:
        return Rig(
            url=f"kafka://{kafka.bootstrap}?fetch.wait.max.ms=20&{request.param}",
            home=tmp_path,
            session_timeout_s=6.0,
            settles_s=30.0,
            cannot={
                "test_a_member_that_was_replaced_can_go_on_no_more": (
                    "nobody is replaced by name where membership is dynamic"
                )
            }
            if "dynamic" in request.param
            else {},
            stop=kafka.stop,
            start=kafka.start,
        )
