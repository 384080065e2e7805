"""Kafka: errors of its client, records to and from it, and the health of a cluster."""

import json
import math
from contextlib import nullcontext

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
    check_new,
    error_of,
    failure,
    milliseconds,
    records_of,
)
from headrace.streaming.records import NewRecord, Record, TopicPartition


@given(
    key=st.none() | st.binary(),
    value=st.none() | st.binary(),
    headers=st.lists(st.tuples(st.text(min_size=1), st.none() | st.binary())),
    offset=st.integers(0, 1 << 62),
    at_ms=st.integers(-1, 1 << 40),
)
def test_a_message_becomes_a_record_where_what_is_not_known_is_empty(
    key: bytes | None,
    value: bytes | None,
    headers: list[tuple[str, bytes | None]],
    offset: int,
    at_ms: int,
) -> None:
    message = Message(
        topic="t",
        partition=3,
        offset=offset,
        key=key,
        value=value,
        headers=headers,  # type: ignore[arg-type]  # of bytes, or without a value
        timestamp=(1, at_ms),
    )

    assert records_of([message], TopicPartition("t", 3))[0] == Record(
        topic_partition=TopicPartition("t", 3),
        offset=offset,
        key=key,
        value=value,
        headers=tuple((name, content or b"") for name, content in headers),
        timestamp_s=max(at_ms, 0) / 1000,
    )


@given(st.floats(0, 1e10))
def test_what_is_asked_for_by_time_is_not_before_it(at_s: float) -> None:
    assert 0 <= milliseconds(at_s) - at_s * 1000 <= 1


def test_times_outside_of_kafkas_are_its_first_and_last() -> None:
    assert milliseconds(-5.0) == 0
    assert milliseconds(1e300) == (1 << 63) - 1
    for strange in (math.nan, math.inf):
        with pytest.raises(InvalidArgumentError, match="Unix time"):
            milliseconds(strange)


@pytest.mark.parametrize(
    ("size", "at_s", "told"),
    [
        (998, None, ""),
        (999, None, r"1001 bytes for t exceeds.* 1000 bytes"),
        *((0, at_s, "invalid timestamp") for at_s in (-1.0, math.nan, math.inf)),
    ],
)
def test_a_record_that_is_too_large_or_of_no_time_is_refused(
    size: int, at_s: float | None, told: str
) -> None:
    record = NewRecord(topic="t", key=b"ab", value=bytes(size), timestamp_s=at_s)
    with pytest.raises(InvalidArgumentError, match=told) if told else nullcontext():
        check_new([record], limit_bytes=1000)


REPLACED = KafkaError(KafkaError.FENCED_INSTANCE_ID).str()


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (KafkaError(KafkaError._TRANSPORT), UnavailableError, ""),
        (KafkaError(KafkaError.NOT_ENOUGH_REPLICAS), UnavailableError, ""),
        (KafkaError(KafkaError._AUTHENTICATION), UnauthenticatedError, "check sasl.username"),
        (KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), PermissionDeniedError, "add an ACL"),
        (KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART), NotFoundError, ""),
        (
            KafkaError(KafkaError.FENCED_INSTANCE_ID),
            ReplacedError,
            "another process joined with this member's name",
        ),
        (KafkaError(KafkaError._FATAL, f"Fatal error: {REPLACED}: {REPLACED}"), ReplacedError, ""),
        (KafkaError(KafkaError._FENCED), ConflictError, ""),
        (
            KafkaError(KafkaError.UNKNOWN_MEMBER_ID),
            UnavailableError,
            "removed this member after session_timeout_s without a heartbeat",
        ),
        (
            KafkaError(KafkaError.UNRELEASED_INSTANCE_ID),
            UnavailableError,
            "waits for the end of the session of this member's previous process",
        ),
        (KafkaError(KafkaError.INVALID_PRODUCER_ID_MAPPING), UnavailableError, ""),
        (KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), InvalidArgumentError, ""),
        (KafkaError(KafkaError._FAIL), FailedPreconditionError, ""),
        (KafkaError(KafkaError._FAIL, "busy", retriable=True), UnavailableError, "busy"),
    ],
)
def test_an_error_says_what_was_tried_where_and_who_has_to_act(
    error: KafkaError, kind: type[HeadraceError], told: str
) -> None:
    raised = failure(error, operation="read topic 't'", address="a:1", reason="because")

    assert type(raised) is kind
    assert str(raised).startswith("Kafka at a:1: cannot read topic 't': ")
    assert "because" in str(raised)
    assert told in str(raised)


def test_a_member_that_was_removed_needs_another_session() -> None:
    assert not {KafkaError.UNKNOWN_MEMBER_ID, KafkaError.UNRELEASED_INSTANCE_ID} & SHOULD_WAIT


def test_the_error_of_an_exception_without_one_keeps_its_text() -> None:
    error = KafkaError(KafkaError._TRANSPORT)

    assert error_of(KafkaException(error)) == error
    assert error_of(RuntimeError("closed")).str() == "closed"


def states(*them: str) -> str:
    return json.dumps({"brokers": {f"b{n}": {"state": state} for n, state in enumerate(them)}})


ONE_AWAY = KafkaError(KafkaError._TRANSPORT, "Connection refused")
ALL_AWAY = KafkaError(KafkaError._ALL_BROKERS_DOWN)


@pytest.mark.parametrize(
    ("heard", "problem"),
    [
        ([ONE_AWAY], ""),
        ([ONE_AWAY, ALL_AWAY], "Kafka at a:1: Connection refused"),
        ([ALL_AWAY], "Kafka at a:1 does not answer"),
        ([KafkaError(KafkaError._AUTHENTICATION, "unknown user")], "Kafka at a:1: unknown user"),
        ([ALL_AWAY, states("INIT", "CONNECT")], "Kafka at a:1 does not answer"),
        ([ALL_AWAY, states("INIT", "UP")], ""),
        ([ALL_AWAY, None], ""),
    ],
)
def test_a_cluster_is_away_until_a_server_is_up_or_something_comes(
    heard: list[KafkaError | str | None], problem: str
) -> None:
    health = ClientHealth("a:1")
    for event in heard:
        match event:
            case None:
                health.on_response()
            case str():
                health.on_statistics(event)
            case error:
                health.on_error(error)

    assert health.problem == problem


def test_the_first_error_that_nobody_survives_is_the_reason() -> None:
    health = ClientHealth("a:1")
    health.on_error(KafkaError(KafkaError.FENCED_INSTANCE_ID, "replaced", fatal=True))
    health.fail(FailedPreconditionError("later"))

    assert isinstance(health.fatal_error, ReplacedError)
    assert "replaced" in str(health.fatal_error)
