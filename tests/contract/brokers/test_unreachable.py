"""A server that is not there is named, by each client that needs one."""

from pathlib import Path

import pytest

from headrace.core import UnavailableError
from headrace.streaming.brokers import open_broker
from tests.ports import free_port


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        pytest.param("kafka", ".*Connection refused", marks=pytest.mark.long),
        ("nats", ""),
        ("valkey", ""),
    ],
)
def test_a_server_that_is_not_there_is_named(scheme: str, reason: str, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    broker = open_broker(f"{scheme}://{address}", home=tmp_path)
    try:
        with pytest.raises(UnavailableError, match=address + reason):
            broker.create_topic("t")
    finally:
        broker.close()
