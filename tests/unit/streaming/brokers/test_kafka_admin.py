"""Requests of Kafka's admin client while the cluster has no controller."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from headrace.core import UnavailableError
from headrace.streaming.brokers.kafka import reader
from headrace.streaming.brokers.kafka.url import kafka_options
from headrace.testing.virtual_time import TurnedClock


def test_one_request_for_a_configuration_times_out_not_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests: list[Any] = []

    class Client:
        def __init__(self, *_: object, **__: object) -> None: ...

        def describe_configs(
            self, resources: Sequence[Any], *, request_timeout: float
        ) -> dict[Any, Future[Any]]:
            requests.append(request_timeout)
            future: Future[Any] = Future()
            future.set_exception(KafkaException(KafkaError(KafkaError._TIMED_OUT)))
            return {resources[0]: future}

    monkeypatch.setattr(reader, "AdminClient", Client)
    clock = TurnedClock()
    admin = reader.KafkaAdmin(kafka_options("kafka://h:1"), clock)

    assert [admin.topic_limit(topic) for topic in ("out", "dead")] == [None, None]
    with pytest.raises(UnavailableError, match="read the configuration of 'g'"):
        admin.session_timeout_ms("g")
    assert len(requests) == 1
    clock.turn(6.0)
    assert admin.topic_limit("out") is None
    assert len(requests) == 2
