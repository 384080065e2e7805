"""Partitions that no member of a group has are assigned by a rebalance."""

from concurrent.futures import Future
from typing import Any, cast

from confluent_kafka import ConsumerGroupState
from confluent_kafka import TopicPartition as KafkaPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # not all are listed
    ConsumerGroupDescription,
    MemberAssignment,
    MemberDescription,
)

from headrace.streaming.brokers.kafka.assignment import UNASSIGNED_S, UnassignedPartitions
from headrace.testing.virtual_time import TurnedClock

Members = dict[str, list[int]]


class Group:
    """A group of topic `t` with four partitions, seen by its member `a`."""

    def __init__(self, members: Members) -> None:
        self.members = members
        self.state = ConsumerGroupState.STABLE
        self.error: Exception | None = None
        self.rebalances = 0
        self.clock = TurnedClock()
        self.search = UnassignedPartitions(self.answer, self.rebalance, {"t": 4}, self.clock)

    def answer(self) -> "Future[Any]":
        future: Future[Any] = Future()
        if self.error is not None:
            future.set_exception(self.error)
            return future
        members = [
            MemberDescription(
                id_, "c", "h", MemberAssignment([KafkaPartition("t", n) for n in has])
            )
            for id_, has in self.members.items()
        ]
        group = ConsumerGroupDescription(
            group_id="g",
            is_simple_consumer_group=False,
            members=members,
            partition_assignor="cooperative-sticky",
            state=self.state,
            coordinator=cast("Any", None),
        )
        future.set_result(group)
        return future

    def rebalance(self) -> None:
        self.rebalances += 1

    def run(self, seconds: float) -> int:
        """Return how many rebalances it asked for within this time."""
        before, until = self.rebalances, self.clock.monotonic() + seconds
        while self.clock.monotonic() < until:
            self.search.check("a")
            self.clock.turn(1.0)
        return self.rebalances - before


def test_a_partition_without_a_member_is_assigned_once_it_is_so_for_long() -> None:
    group = Group({"a": [0, 1], "b": [2]})

    assert group.run(UNASSIGNED_S) == 0
    assert group.run(UNASSIGNED_S) == 1
    group.members = {"a": [0, 1], "b": [2, 3]}
    assert group.run(60.0) == 0


def test_one_member_acts_and_only_in_a_stable_group() -> None:
    full, others = {"a": [0, 1], "b": [2, 3]}, {"a": [1], "b": [2], "Z": [3]}

    assert Group(full).run(60.0) == 0
    assert Group(others).run(60.0) == 0, "Z is the first member"
    rebalancing = Group({"a": [0]})
    rebalancing.state = ConsumerGroupState.PREPARING_REBALANCING
    assert rebalancing.run(60.0) == 0


def test_an_error_or_a_change_begins_the_time_anew() -> None:
    group = Group({"a": [0, 1], "b": [2]})
    for _ in range(4):
        group.error = None
        assert group.run(UNASSIGNED_S) == 0
        group.error = RuntimeError("away")
        assert group.run(6.0) == 0
    group.error = None
    for has in ([2], [3], [2], [3]):
        group.members = {"a": [0, 1], "b": has}
        assert group.run(UNASSIGNED_S) == 0
