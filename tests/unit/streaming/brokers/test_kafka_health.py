"""A cluster that is away is in trouble until something says that it is back."""

import json

from confluent_kafka import KafkaError

from headrace.core import ConflictError, FailedPreconditionError
from headrace.streaming.brokers.kafka_client import Health


def states(*them: str) -> str:
    return json.dumps({"brokers": {f"b{n}": {"state": state} for n, state in enumerate(them)}})


def away() -> Health:
    health = Health("a:1")
    health.failed(KafkaError(KafkaError._TRANSPORT, "Connection refused"))
    health.failed(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    return health


def test_one_server_of_several_that_is_away_is_no_trouble() -> None:
    health = Health("a:1")
    health.failed(KafkaError(KafkaError._TRANSPORT, "Connection refused"))

    assert health.trouble == ""


def test_all_servers_away_are_told_with_the_last_reason() -> None:
    assert away().trouble == "Kafka at a:1: Connection refused"


def test_a_reason_that_is_not_known_names_the_cluster() -> None:
    health = Health("a:1")
    health.failed(KafkaError(KafkaError._ALL_BROKERS_DOWN))

    assert health.trouble == "Kafka at a:1 does not answer"


def test_a_login_that_is_refused_is_trouble_at_once() -> None:
    health = Health("a:1")
    health.failed(KafkaError(KafkaError._AUTHENTICATION, "unknown user"))

    assert "unknown user" in health.trouble


def test_it_is_over_when_a_server_is_up_or_something_comes() -> None:
    up, down, answered = away(), away(), away()
    up.counted(states("INIT", "UP"))
    down.counted(states("INIT", "CONNECT"))
    answered.answered()

    assert up.trouble == answered.trouble == ""
    assert down.trouble


def test_the_first_error_that_nobody_survives_is_the_reason() -> None:
    health = Health("a:1")
    health.failed(KafkaError(KafkaError.FENCED_INSTANCE_ID, "replaced", fatal=True))
    health.ends(FailedPreconditionError("later"))

    assert isinstance(health.over, ConflictError)
    assert "replaced" in str(health.over)
