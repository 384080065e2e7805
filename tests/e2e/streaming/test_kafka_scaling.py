"""The workers of a stream over Apache Kafka follow its lag."""

import time
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer

from headrace.streaming.brokers import open_broker
from tests.brokers.kafka import running_kafka
from tests.contract.brokers.rig import everything
from tests.e2e.streaming import workers
from tests.e2e.streaming.conftest import Streams, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.jvm, pytest.mark.long]
SPEC = """
version: 1
streams:
  - name: s
    model: ./double.py
    allow_code: true
    source: {{broker: "kafka://{broker}", topics: [in]}}
    sink: {{topic: out}}
    delivery: exactly_once
    max_batch_size: 4
    workers: {{min: 1, max: 5, target_lag_s: 2}}
"""
PER_S = 40
"""One worker answers 20 records a second."""
FED_S = 50


def test_workers_follow_the_lag_up_to_the_partitions_and_answer_each_record_once(
    streams: Streams, tmp_path: Path
) -> None:
    workers.double(streams.shell.folder, delay_s=0.2)
    with running_kafka(tmp_path / "kafka") as kafka:
        broker = open_broker(f"kafka://{kafka.bootstrap}", home=Path("/"))
        broker.create_topic("in", partitions=3)
        streams.spec(SPEC.format(broker=kafka.bootstrap))
        streams.up()

        def members() -> int:
            return len(streams.view("s")["members"])

        wait_for(lambda: streams.is_running("s"))
        assert members() == 1
        producer = Producer({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
        most = 1
        for number in range(FED_S * PER_S):
            value = msgspec.json.encode({"x": [float(number), workers.MARK]})
            producer.produce("in", value, partition=number % 3)
            if number % PER_S == 0:
                producer.poll(0)
                most = max(most, members())
                time.sleep(0.8)
        assert producer.flush(30.0) == 0

        def answers() -> list[float]:
            records = everything(broker, "out")
            return sorted(msgspec.json.decode(one.value or b"")["y"][0] for one in records)

        wait_for(lambda: len(answers()) >= FED_S * PER_S, timeout_s=120.0)
        wait_for(lambda: streams.view("s")["lag_records"] == 0)
        assert most == 3, "more than the partitions would be idle"
        assert answers() == [2.0 * number for number in range(FED_S * PER_S)]
        broker.close()
        assert streams.shell.run("down").returncode == 0
