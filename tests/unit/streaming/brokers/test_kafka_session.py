"""Kafka sessions read what is theirs, and end although the client reports no error."""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, Message
from confluent_kafka import TopicPartition as KafkaPartition
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import UnavailableError
from headrace.streaming.broker import Membership
from headrace.streaming.brokers.kafka import session as kafka_session
from headrace.streaming.brokers.kafka.client import ClientHealth
from headrace.streaming.brokers.kafka.offsets import Assigning, PartitionOffsets
from headrace.streaming.brokers.kafka.session import STALLED_AFTER_S, KafkaSession, KafkaSource
from headrace.streaming.records import TopicPartition
from headrace.testing.virtual_time import TurnedClock
from tests.unit.streaming.world import Reader

SESSION_TIMEOUT_S = 10.0
MEMBERSHIP = Membership(group="g", member="m", topics=("t",), session_timeout_s=SESSION_TIMEOUT_S)
HELD = [TopicPartition("a", 0), TopicPartition("a", 1), TopicPartition("b", 0)]
GONE = TopicPartition("b", 1)


def assigning(clock: TurnedClock) -> Assigning:
    return Assigning(
        membership=MEMBERSHIP, is_cooperative=True, timeout_s=15.0, address="h:1", clock=clock
    )


class Filled:
    """A consumer with these messages."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages

    def poll(self, timeout_s: float) -> Message | None:
        del timeout_s
        return self.messages.pop(0) if self.messages else None

    def consume(self, max_records: int, timeout_s: float) -> list[Message]:
        del timeout_s
        taken, self.messages = self.messages[:max_records], self.messages[max_records:]
        return taken


@given(
    st.lists(st.tuples(st.sampled_from([*HELD, GONE]), st.booleans()), max_size=12),
    st.integers(1, 12),
)
def test_records_of_held_partitions_come_in_order_whatever_stands_between_them(
    steps: list[tuple[TopicPartition, bool]], max_records: int
) -> None:
    messages = [
        Message(
            topic=partition.topic,
            partition=partition.partition,
            offset=offset,
            value=b"v",
            timestamp=(1, 7000),
            error=KafkaError(KafkaError._PARTITION_EOF) if is_end else None,
        )
        for offset, (partition, is_end) in enumerate(steps)
    ]
    positions = PartitionOffsets()
    positions.hold(dict.fromkeys(HELD, 0))
    client = Filled(messages)
    source = KafkaSource(
        cast("Consumer", client), positions, assigning(TurnedClock()), ClientHealth("h:1")
    )
    records = []
    while client.messages:
        records += source.take(max_records, 0)

    assert [(record.topic_partition, record.offset) for record in records] == [
        (partition, offset)
        for offset, (partition, is_end) in enumerate(steps)
        if partition in HELD and not is_end
    ]


class Client:
    """A consumer and a writer: it is assigned partitions when a test says so, and reads nothing."""

    problem = ""
    assign: Callable[..., None]

    def __init__(self, clock: TurnedClock) -> None:
        self.clock = clock

    def subscribe(self, topics: list[str], *, on_assign: Callable[..., None], **_: object) -> None:
        del topics
        self.assign = lambda *numbers: on_assign(self, [KafkaPartition("t", n) for n in numbers])

    def poll(self, timeout_s: float) -> None:
        self.clock.turn(timeout_s)

    def committed(self, partitions: list[KafkaPartition], timeout: float) -> list[KafkaPartition]:
        del timeout
        return [KafkaPartition(p.topic, p.partition, 5) for p in partitions]

    def incremental_assign(self, partitions: object) -> None: ...
    def serve(self) -> None: ...


def session(join_state: str, *, end: int = 5) -> tuple[KafkaSession, Client]:
    clock = TurnedClock()
    client = Client(clock)
    health = ClientHealth("h:1")
    health.on_statistics(json.dumps({"cgrp": {"join_state": join_state}}))
    made = KafkaSession(
        MEMBERSHIP,
        Reader(),
        assigning(clock),
        end_offsets=lambda partitions: dict.fromkeys(partitions, end),
        check_topic=lambda _: None,
        health=health,
        clock=clock,
    )
    made.start(cast("Any", client), cast("Any", client))
    return made, client


def polled(made: KafkaSession, client: Client, seconds: float = 60.0) -> float:
    """Return how long it lived while it was polled for so long."""
    began = client.clock.monotonic()
    with suppress(UnavailableError):
        while client.clock.monotonic() < began + seconds:
            made.poll(10, 0.25)
    return client.clock.monotonic() - began


@pytest.mark.parametrize(("state", "limit_s"), [("init", 15.0), ("wait-join", 30.0)])
def test_a_client_that_does_not_become_a_member_ends(state: str, limit_s: float) -> None:
    made, client = session(state)

    assert limit_s <= polled(made, client) < limit_s + 3.0
    assert not made.is_member
    assert f"has not been a member of group 'g' for {limit_s + 1:.0f} s" in made.problem


@pytest.mark.parametrize(
    ("assigned", "end", "limit_s"), [([], 5, 60), ([0], 5, 60), ([0], 9, STALLED_AFTER_S)]
)
def test_a_member_goes_on_unless_a_partition_returns_nothing_of_what_it_has(
    assigned: list[int], end: int, limit_s: float
) -> None:
    made, client = session("steady", end=end)
    client.assign(*assigned)

    assert limit_s <= polled(made, client) < limit_s + 3.0
    assert made.is_member
    assert not made.problem


def test_a_member_that_was_stopped_or_wrote_for_long_is_one_until_it_is_seen_to_be_none() -> None:
    made, client = session("steady")
    client.assign(0)
    polled(made, client, 3.0)
    client.clock.turn(20.0)
    seen = [(made.is_member, made.problem)]
    made.poll(10, 0.25)
    seen.append((made.is_member, made.problem))

    assert seen == [(True, "")] * 2


def test_a_session_ends_whose_client_waits_for_a_coordinator_without_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kafka_session, "_CLOSE_S", 0.05)
    made, client = session("steady")
    comes = threading.Event()
    closes = iter([None, lambda: comes.wait(5.0)])  # of the writer, then of the consumer
    monkeypatch.setattr(client, "close", lambda: (call := next(closes)) and call(), raising=False)
    made.close()
    made.close()
    comes.set()

    assert "the group was not left" in caplog.text
