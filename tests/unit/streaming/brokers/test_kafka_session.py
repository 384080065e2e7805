"""Kafka sessions that end although the client reports no error."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

import pytest
from confluent_kafka import TopicPartition as KafkaPartition

from headrace.core import UnavailableError
from headrace.streaming.broker import Membership
from headrace.streaming.brokers.kafka.client import ClientHealth
from headrace.streaming.brokers.kafka.offsets import Assigning
from headrace.streaming.brokers.kafka.session import STALLED_AFTER_S, KafkaSession
from headrace.streaming.records import TopicPartition
from headrace.testing.virtual_time import TurnedClock

PLACE = TopicPartition("t", 0)
SESSION_TIMEOUT_S = 10.0


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


class Listener:
    """A member without records."""

    def on_assigned(self, partitions: Sequence[TopicPartition]) -> None: ...
    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None: ...
    def on_lost(self, partitions: Sequence[TopicPartition]) -> None: ...


def session(join_state: str, *, end: int = 5) -> tuple[KafkaSession, Client]:
    clock = TurnedClock()
    client = Client(clock)
    membership = Membership(
        group="g", member="m", topics=("t",), session_timeout_s=SESSION_TIMEOUT_S
    )
    assigning = Assigning(
        membership=membership, is_cooperative=True, timeout_s=15.0, address="h:1", clock=clock
    )
    health = ClientHealth("h:1")
    health.on_statistics(json.dumps({"cgrp": {"join_state": join_state}}))
    made = KafkaSession(
        membership,
        Listener(),
        assigning,
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


@pytest.mark.parametrize(("state", "limit_s"), [("init", SESSION_TIMEOUT_S), ("wait-join", 30.0)])
def test_a_client_that_does_not_become_a_member_ends(state: str, limit_s: float) -> None:
    made, client = session(state)

    assert limit_s <= polled(made, client) < limit_s + 3.0
    assert not made.is_member
    assert f"has not been a member of group 'g' for {limit_s + 1:.0f} s" in made.problem


def test_a_member_goes_on_with_or_without_partitions() -> None:
    made, client = session("steady")

    assert polled(made, client) >= 60.0
    assert made.is_member
    assert not made.problem


def test_a_partition_that_returns_nothing_of_what_it_has_ends_the_session() -> None:
    made, client = session("steady", end=9)
    client.assign(0)

    assert STALLED_AFTER_S <= polled(made, client) < STALLED_AFTER_S + 3.0


def test_a_partition_at_its_end_stalls_nothing() -> None:
    made, client = session("steady", end=5)
    client.assign(0)

    assert polled(made, client) >= 60.0
