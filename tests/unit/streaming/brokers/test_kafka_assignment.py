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

from headrace.streaming.brokers.kafka.assignment import (
    UNASSIGNED_S,
    WATCHED_S,
    UnassignedPartitions,
)
from headrace.testing.virtual_time import TurnedClock

Members = dict[str, list[int]]


class Group:
    """A group of topic `t` with four partitions, seen by its member `a`."""

    def __init__(self, members: Members) -> None:
        self.members = members
        self.state = ConsumerGroupState.STABLE
        self.error: Exception | None = None
        self.answers = True
        self.rebalances = self.requests = 0
        self.clock = TurnedClock()
        self.search = UnassignedPartitions(self.answer, self.rebalance, {"t": 4}, self.clock)

    def answer(self) -> "Future[Any]":
        self.requests += 1
        future: Future[Any] = Future()
        if self.error is not None:
            future.set_exception(self.error)
        if self.error is not None or not self.answers:
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

    def run(self, seconds: float, member: str = "a") -> int:
        """Return how many rebalances the member asks for within this time."""
        before, until = self.rebalances, self.clock.monotonic() + seconds
        while self.clock.monotonic() < until:
            self.search.check(member)
            self.clock.turn(1.0)
        return self.rebalances - before


def test_a_partition_without_a_member_is_assigned_once_it_is_so_for_long() -> None:
    group = Group({"a": [0, 1], "b": [2]})

    assert group.run(UNASSIGNED_S) == 0
    assert group.run(UNASSIGNED_S) == 1
    group.members = {"a": [0, 1], "b": [2, 3]}
    assert group.run(60.0) == 0


def test_members_act_one_after_the_other_and_only_in_a_stable_group_of_theirs() -> None:
    members = {"a": [0], "b": [2], "c": [1]}
    began = {}
    for member in members:
        group = Group(members)
        while not group.run(1.0, member):
            pass
        began[member] = group.clock.monotonic()
    assert began["a"] < began["b"] < began["c"]

    assert Group(members).run(60.0, "removed") == 0
    assert Group({"a": [0, 1], "b": [2, 3]}).run(60.0) == 0
    rebalancing = Group({"a": [0]})
    rebalancing.state = ConsumerGroupState.PREPARING_REBALANCING
    assert rebalancing.run(60.0) == 0


def test_nothing_is_requested_long_after_the_last_change() -> None:
    group = Group({"a": [0, 1], "b": [2, 3]})
    group.run(WATCHED_S + 5.0)
    requests = group.requests
    assert requests > 5

    group.run(600.0)
    assert group.requests == requests
    group.members = {"a": [0, 1], "b": [2]}
    group.search.watch()
    assert group.run(2 * UNASSIGNED_S) == 1


def test_an_error_or_a_change_begins_the_time_anew() -> None:
    group = Group({"a": [0, 1], "b": [2]})
    for _ in range(3):
        group.error = None
        assert group.run(UNASSIGNED_S) == 0
        group.error = RuntimeError("away")
        assert group.run(6.0) == 0
    group = Group({"a": [0, 1]})
    for has in ([2], [3], [2], [3]):
        group.members = {"a": [0, 1], "b": has}
        assert group.run(UNASSIGNED_S) == 0


def test_a_request_that_has_no_answer_is_repeated() -> None:
    group = Group({"a": [0, 1], "b": [2]})
    group.answers = False
    assert group.run(WATCHED_S - 2 * UNASSIGNED_S - 5.0) == 0
    assert 1 < group.requests < 5

    group.answers = True
    group.search.watch()
    assert group.run(60.0) > 0
