"""Kafka: errors of its client, records to and from it, and the health of a cluster."""

import json
import math

import pytest
from confluent_kafka import KafkaError, KafkaException, Message
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import (
    ConflictError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from headrace.streaming.broker import ReplacedError
from headrace.streaming.brokers.kafka.client import (
    SHOULD_WAIT,
    ClientHealth,
    PartitionCache,
    check_new,
    error_of,
    failure,
    milliseconds,
    partitions_of,
    records_of,
)
from headrace.streaming.records import NewRecord, Record, TopicPartition


@given(
    key=st.none() | st.binary(),
    value=st.none() | st.binary(),
    headers=st.lists(st.tuples(st.text(min_size=1), st.binary())),
    offset=st.integers(0, 1 << 62),
    at_ms=st.integers(1, 1 << 40),
)
def test_a_message_becomes_a_record(
    key: bytes | None,
    value: bytes | None,
    headers: list[tuple[str, str | bytes | None]],
    offset: int,
    at_ms: int,
) -> None:
    message = Message(
        topic="t",
        partition=3,
        offset=offset,
        key=key,
        value=value,
        headers=headers,
        timestamp=(1, at_ms),
    )

    assert records_of([message], TopicPartition("t", 3))[0] == Record(
        topic_partition=TopicPartition("t", 3),
        offset=offset,
        key=key,
        value=value,
        headers=tuple(headers),  # type: ignore[arg-type]  # of bytes
        timestamp_s=at_ms / 1000,
    )


def test_a_header_without_a_value_and_a_time_that_is_not_known_are_empty() -> None:
    message = Message(topic="t", partition=0, offset=0, headers=[("a", None)], timestamp=(0, -1))
    (record,) = records_of([message], TopicPartition("t", 0))

    assert record.headers == (("a", b""),)
    assert record.timestamp_s == 0.0


def test_a_place_is_made_once() -> None:
    partitions = PartitionCache()

    assert partitions["t", 1] == TopicPartition("t", 1)
    assert partitions["t", 1] is partitions["t", 1]


@given(st.floats(0, 1e10))
def test_what_is_asked_for_by_time_is_not_before_it(at_s: float) -> None:
    assert 0 <= milliseconds(at_s) - at_s * 1000 <= 1


def test_times_outside_of_kafkas_are_its_first_and_last() -> None:
    assert milliseconds(-5.0) == 0
    assert milliseconds(1e300) == (1 << 63) - 1
    for strange in (math.nan, math.inf):
        with pytest.raises(InvalidArgumentError, match="Unix time"):
            milliseconds(strange)


def test_a_record_that_is_too_large_is_refused_with_both_sizes() -> None:
    record = NewRecord(topic="t", key=b"ab", value=bytes(999))

    check_new([record], limit_bytes=1001)
    with pytest.raises(InvalidArgumentError, match=r"1001 bytes for t exceeds.* 1000 bytes"):
        check_new([record], limit_bytes=1000)


@pytest.mark.parametrize("at_s", [-1.0, math.nan, math.inf])
def test_a_record_of_no_time_is_refused(at_s: float) -> None:
    with pytest.raises(InvalidArgumentError, match="invalid timestamp"):
        check_new([NewRecord(topic="t", key=None, value=b"", timestamp_s=at_s)], limit_bytes=9)


def test_offsets_keep_their_places() -> None:
    (one,) = partitions_of({TopicPartition("t", 4): 7})

    assert (one.topic, one.partition, one.offset) == ("t", 4, 7)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (KafkaError._TRANSPORT, UnavailableError),
        (KafkaError.NOT_ENOUGH_REPLICAS, UnavailableError),
        (KafkaError._AUTHENTICATION, UnauthenticatedError),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, PermissionDeniedError),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, NotFoundError),
        (KafkaError.FENCED_INSTANCE_ID, ReplacedError),
        (KafkaError._FENCED, ConflictError),
        (KafkaError.UNKNOWN_MEMBER_ID, UnavailableError),
        (KafkaError.INVALID_PRODUCER_ID_MAPPING, UnavailableError),
        (KafkaError.MSG_SIZE_TOO_LARGE, InvalidArgumentError),
        (KafkaError._FAIL, FailedPreconditionError),
    ],
)
def test_an_error_says_what_was_tried_where_and_who_has_to_act(
    code: int, kind: type[HeadraceError]
) -> None:
    error = failure(KafkaError(code), operation="read topic 't'", address="a:1", reason="because")

    assert type(error) is kind
    assert str(error).startswith("Kafka at a:1: cannot read topic 't': ")
    assert "because" in str(error)


def test_a_second_process_a_removed_member_and_an_unreleased_name_have_texts_of_their_own() -> None:
    texts = [
        str(failure(KafkaError(code), operation="go on", address="a:1"))
        for code in (
            KafkaError.FENCED_INSTANCE_ID,
            KafkaError.UNKNOWN_MEMBER_ID,
            KafkaError.UNRELEASED_INSTANCE_ID,
        )
    ]

    assert "another process joined with this member's name" in texts[0]
    assert "removed this member after session_timeout_s without a heartbeat" in texts[1]
    assert "waits for the end of the session of this member's previous process" in texts[2]
    assert not {KafkaError.UNKNOWN_MEMBER_ID, KafkaError.UNRELEASED_INSTANCE_ID} & SHOULD_WAIT


def test_the_cause_of_a_fatal_error_decides_its_kind() -> None:
    cause = KafkaError(KafkaError.FENCED_INSTANCE_ID).str()
    error = KafkaError(KafkaError._FATAL, f"Fatal error: {cause}: Fatal consumer error: {cause}")

    assert isinstance(failure(error, operation="read", address="a:1"), ReplacedError)


def test_an_error_that_passes_by_itself_is_one_of_being_away() -> None:
    error = KafkaError(KafkaError._FAIL, "busy", retriable=True)

    assert isinstance(failure(error, operation="x", address="a:1"), UnavailableError)


def test_the_error_of_an_exception_without_one_keeps_its_text() -> None:
    error = KafkaError(KafkaError._TRANSPORT)

    assert error_of(KafkaException(error)) == error
    assert error_of(RuntimeError("closed")).str() == "closed"


def states(*them: str) -> str:
    return json.dumps({"brokers": {f"b{n}": {"state": state} for n, state in enumerate(them)}})


def away() -> ClientHealth:
    health = ClientHealth("a:1")
    health.on_error(KafkaError(KafkaError._TRANSPORT, "Connection refused"))
    health.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    return health


def test_one_server_of_several_that_is_away_is_no_trouble() -> None:
    health = ClientHealth("a:1")
    health.on_error(KafkaError(KafkaError._TRANSPORT, "Connection refused"))

    assert health.problem == ""


def test_all_servers_away_are_told_with_the_last_reason() -> None:
    assert away().problem == "Kafka at a:1: Connection refused"


def test_a_reason_that_is_not_known_names_the_cluster() -> None:
    health = ClientHealth("a:1")
    health.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))

    assert health.problem == "Kafka at a:1 does not answer"


def test_a_login_that_is_refused_is_trouble_at_once() -> None:
    health = ClientHealth("a:1")
    health.on_error(KafkaError(KafkaError._AUTHENTICATION, "unknown user"))

    assert "unknown user" in health.problem


def test_it_is_over_when_a_server_is_up_or_something_comes() -> None:
    up, down, answered = away(), away(), away()
    up.on_statistics(states("INIT", "UP"))
    down.on_statistics(states("INIT", "CONNECT"))
    answered.on_response()

    assert up.problem == answered.problem == ""
    assert down.problem


def test_the_first_error_that_nobody_survives_is_the_reason() -> None:
    health = ClientHealth("a:1")
    health.on_error(KafkaError(KafkaError.FENCED_INSTANCE_ID, "replaced", fatal=True))
    health.fail(FailedPreconditionError("later"))

    assert isinstance(health.fatal_error, ReplacedError)
    assert "replaced" in str(health.fatal_error)
