"""Partitions that no member of a group has, and the rebalance that assigns them.

With cooperative assignment a partition moves in two rebalances: its member gives it up in the first
one and asks for the second. If another process takes that member's `group.instance.id` meanwhile,
the coordinator keeps the assignment as it is (KIP-345), so the partition has no member until the
next rebalance, which may never come.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Final

from confluent_kafka import Consumer, ConsumerGroupState, KafkaException

from headrace.core import HeadraceError
from headrace.core.clock import Clock
from headrace.streaming.brokers.kafka.client import client_log
from headrace.streaming.brokers.kafka.reader import create_client
from headrace.streaming.brokers.kafka.url import Settings
from headrace.streaming.records import TopicPartition

if TYPE_CHECKING:
    from concurrent.futures import Future

    from confluent_kafka.admin import (  # type: ignore[attr-defined]  # not all are listed
        ConsumerGroupDescription,
    )

_log = logging.getLogger(__name__)
_CHECK_EVERY_S: Final = 3.0
UNASSIGNED_S: Final = 6.0
"""Seconds without a member after which a partition is assigned by a rebalance."""
_ANSWER_S: Final = 15.0
"""Seconds without an answer after which the group is requested again, by a new client."""
_NEXT_S: Final = 3.0
"""By how much later each next member of the group acts: usually one does."""
WATCHED_S: Final = 45.0
"""How long after a change of its own assignment a member looks for such partitions."""
_VISIT_S: Final = 10.0
"""Longest stay of the member whose visit causes the rebalance."""


class UnassignedPartitions:
    """Search for partitions without a member. It never waits for the cluster.

    Args:
        request: Requests the description of the group.
        rebalance: Makes the group assign its partitions again.
        counts: Number of partitions of each topic of the group.
    """

    def __init__(
        self,
        request: "Callable[[], Future[ConsumerGroupDescription]]",
        rebalance: Callable[[], None],
        counts: Mapping[str, int],
        clock: Clock,
    ) -> None:
        self._request = request
        self._rebalance = rebalance
        self._all = {
            TopicPartition(topic, number)
            for topic, count in counts.items()
            for number in range(count)
        }
        self._clock = clock
        self._pending: Future[ConsumerGroupDescription] | None = None
        self._request_at = 0.0
        self._watched_until = 0.0
        self._unassigned: set[TopicPartition] = set()
        self._since = 0.0
        self.watch()

    def watch(self) -> None:
        """Look for such partitions from now on: this member joined, or its partitions changed."""
        now = self._clock.monotonic()
        self._request_at, self._watched_until = now + _CHECK_EVERY_S, now + WATCHED_S

    def check(self, member_id: str) -> None:
        """Look for partitions without a member, as this member; call it every second."""
        now = self._clock.monotonic()
        if self._pending is None:
            if self._request_at <= now < self._watched_until:
                self._request_at = now + _CHECK_EVERY_S
                self._pending = self._request()
            return
        if not self._pending.done():
            if now >= self._request_at + _ANSWER_S:
                self._pending = None
            return
        future, self._pending = self._pending, None
        if future.exception() is not None:
            self._unassigned = set()
            return
        group = future.result()
        ids = sorted(member.member_id for member in group.members)
        unassigned: set[TopicPartition] = set()
        if group.state is ConsumerGroupState.STABLE and member_id in ids:
            unassigned = self._all - {
                TopicPartition(partition.topic, partition.partition)
                for member in group.members
                for partition in member.assignment.topic_partitions
            }
        if not unassigned or unassigned != self._unassigned:
            self._unassigned, self._since = unassigned, now
        elif now - self._since >= UNASSIGNED_S + _NEXT_S * ids.index(member_id):
            self._since = now
            names = ", ".join(f"{topic}/{number}" for topic, number in sorted(unassigned))
            _log.warning("no member of the group reads %s; the group assigns them again", names)
            self._rebalance()


def visit(settings: Settings, topics: Sequence[str], address: str) -> None:
    """Join a group as one more member and leave it again, in a thread: it rebalances twice.

    Args:
        settings: Settings of the group's members.
    """
    own = {name: value for name, value in settings.items() if name != "group.instance.id"}

    def stay() -> None:
        try:
            consumer = create_client(lambda: Consumer({**own, "logger": client_log}), address)
            with closing(consumer):
                consumer.subscribe(list(topics))
                until = time.monotonic() + _VISIT_S
                while not consumer.assignment() and time.monotonic() < until:
                    consumer.poll(0.1)
        except (HeadraceError, KafkaException) as error:
            _log.warning("cannot rebalance the group", extra={"error": str(error)})

    threading.Thread(target=stay, name="rebalance", daemon=True).start()
