"""Broker interface (Kafka, NATS, Redis, Pulsar, embedded log), and offset ranges for replay.

A session is one consumer group member together with its producer. One thread uses it; only `wake`
may be called from others. Times are Unix times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Protocol

from headrace.core import ConflictError
from headrace.streaming.records import NewRecord, PartitionLag, Record, TopicPartition


class ReplacedError(ConflictError):
    """Another process joined the group with this member's name."""


class Delivery(StrEnum):
    """Delivery guarantee of a stream's answers."""

    AT_LEAST_ONCE = "at_least_once"
    """Some answers may be written twice after a crash."""
    EXACTLY_ONCE = "exactly_once"
    """Consumers that read committed records see each answer once."""


class StartPosition(StrEnum):
    """Where a new group starts to read."""

    EARLIEST = "earliest"
    LATEST = "latest"


class GroupProtocol(StrEnum):
    """Kafka's protocol of consumer groups."""

    AUTO = "auto"
    """`consumer` if the group has a session timeout of at most the member's, else `classic`."""
    CLASSIC = "classic"
    CONSUMER = "consumer"
    """The protocol of KIP-848, whose session timeout belongs to the group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFeatures:
    """Capabilities of a broker."""

    exactly_once: str = ""
    """How exactly-once delivery works, as text for users; empty if it is not supported."""
    partitions: bool = False
    """Whether topics have partitions, each of which one member reads."""
    rebalances: bool = False
    """Whether partitions move between running members."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Settings of one group member."""

    group: str
    member: str
    """Name of the member. It stays the same over restarts, so that the broker recognises it."""
    topics: tuple[str, ...]
    delivery: Delivery = Delivery.AT_LEAST_ONCE
    start: StartPosition = StartPosition.LATEST
    """Where a new group starts."""
    start_s: float | None = None
    """Unix time at which a new group starts, instead of `start`."""
    session_timeout_s: float = 10.0
    """Seconds without a heartbeat after which other members take over."""
    protocol: GroupProtocol = GroupProtocol.AUTO
    """For Kafka only."""


class Rebalanced(Protocol):
    """Rebalance listener of a session, called within `poll`."""

    def on_assigned(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, int] | None:
        """Handle the assignment of partitions to this member.

        Returns:
            Offsets to read from instead of the group's, for instance those of a local state.
        """

    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Produce finished answers of partitions that move to another member; it reads the rest."""

    def on_lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Handle the loss of partitions: their records in flight must not be produced."""


class ConsumerSession(Protocol):
    """One member of a group.

    It waits for an unavailable broker: `poll` returns no records, and `problem` has the reason.
    """

    expired: int
    """Records that the broker's retention deleted before this session read them."""

    @property
    def is_member(self) -> bool:
        """Whether the group's coordinator has accepted this member."""

    @property
    def problem(self) -> str:
        """Why no records are read or written at the moment; empty if there is no problem."""

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        """Return available records, in order within each partition; wait only for the first one.

        Call it regularly, with `max_records` = 0 while no record can be taken: it sends heartbeats
        and handles rebalances.

        Raises:
            HeadraceError: This member cannot continue, for instance because another one replaced
                it.
        """

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Return no records of these partitions until they are resumed."""

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Return records of these partitions again."""

    def produce(self, records: Sequence[NewRecord], offsets: Mapping[TopicPartition, int]) -> None:
        """Write records, and commit the offsets (the next ones to read) of their input.

        At least once: offsets are committed after the records are acknowledged, which may be later;
        `flush` waits for it. Exactly once: both happen, or neither, before this returns.

        Raises:
            HeadraceError: Neither happened, and this member cannot continue: the next one reads the
                same records again.
        """

    def flush(self, timeout_s: float) -> bool:
        """Wait until all records are acknowledged and committed; return whether they are."""

    def lag(self) -> Mapping[TopicPartition, PartitionLag]:
        """Return the lag of each partition as last measured, without waiting.

        Raises:
            HeadraceError: It is unknown; the message contains the reason.
        """

    def wake(self) -> None:
        """Make a waiting `poll`, or else the next one, return; safe to call from other threads."""

    def close(self) -> None:
        """Leave the group; answers that are not acknowledged by then may be written again."""


class Broker(Protocol):
    """Connection to one broker. Safe to use from several threads."""

    abilities: BrokerFeatures

    def join(self, membership: Membership, listener: Rebalanced) -> ConsumerSession:
        """Join a group.

        Raises:
            UnsupportedError: The broker does not support the membership; the message names what it
                supports.
            UnavailableError: The broker cannot be reached.
            HeadraceError: The broker refuses the member.
        """

    def create_topic(self, topic: str, *, partitions: int = 1, like: str = "") -> int | None:
        """Create a topic unless it exists.

        Args:
            like: Topic with the number of partitions to create, and whose largest records fit into
                the created topic; empty for none.

        Returns:
            The size in bytes of the largest record that the topic takes; None if it is unknown.
        """

    def send(self, records: Sequence[NewRecord]) -> None:
        """Write records outside a group, and wait until they are acknowledged."""

    def read(
        self, topic: str, *, after: Mapping[TopicPartition, int], max_records: int
    ) -> list[Record]:
        """Return records from these offsets on, outside a group; for inspection only."""

    def ends(self, topic: str) -> Mapping[TopicPartition, tuple[int, int]]:
        """Return the first available and the next offset of each partition."""

    def offsets_at(self, topic: str, at_s: float) -> Mapping[TopicPartition, int]:
        """Return the first offset written at `at_s` or later, by partition."""

    def committed(self, group: str, topic: str) -> Mapping[TopicPartition, int]:
        """Return the committed offsets of a group; partitions without one are left out."""

    def set_committed(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Set the committed offsets of a group without running members.

        Raises:
            FailedPreconditionError: A member runs.
        """

    def close(self) -> None:
        """Close all connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetRange:
    """Records of each partition from `first` on, before `end`."""

    first: Mapping[TopicPartition, int]
    end: Mapping[TopicPartition, int]

    @property
    def records(self) -> int:
        """Number of records; an upper bound where offsets have gaps."""
        return sum(
            max(end - self.first.get(partition, end), 0) for partition, end in self.end.items()
        )

    @property
    def partitions(self) -> int:
        """Number of partitions that have records."""
        return sum(end > self.first.get(partition, end) for partition, end in self.end.items())

    def is_done(self, committed: Mapping[TopicPartition, int]) -> bool:
        """Return whether a group has committed the whole range."""
        return all(
            committed.get(partition, self.first.get(partition, end)) >= end
            for partition, end in self.end.items()
        )


def span_from(broker: Broker, topics: Sequence[str], at_s: float) -> OffsetRange:
    """Return the range of records that were written at `at_s` or later, up to now.

    Raises:
        HeadraceError: A topic does not exist, or the broker cannot be reached.
    """
    first: dict[TopicPartition, int] = {}
    end: dict[TopicPartition, int] = {}
    for topic in topics:
        first |= broker.offsets_at(topic, at_s)
        end |= {partition: following for partition, (_, following) in broker.ends(topic).items()}
    return OffsetRange(first=first, end=end)


def committed(broker: Broker, group: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
    """Return the committed offsets of a group for all of its topics."""
    return dict(chain.from_iterable(broker.committed(group, topic).items() for topic in topics))
