"""Interface of brokers for Kafka, NATS, Redis, Pulsar and the embedded log, and spans to replay.

A session is one member of a group that reads, together with what it writes. It is used by one
thread, but for `wake`. Times are Unix times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from headrace.streaming.records import NewRecord, PartitionLag, Record, TopicPartition


class Delivery(StrEnum):
    """What a crash may do to the answers."""

    AT_LEAST_ONCE = "at_least_once"
    """Some may be written twice."""
    EXACTLY_ONCE = "exactly_once"
    """Who reads committed records only sees each once."""


class StartPosition(StrEnum):
    """Where a group begins that has never read."""

    EARLIEST = "earliest"
    LATEST = "latest"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFeatures:
    """What a broker can do.

    `exactly_once`: how, for people; empty if it cannot. `partitions`: of a topic, each read by one
    member. `by_time`: replay from a time on. `rebalances`: places move between members while they
    run.
    """

    exactly_once: str = ""
    partitions: bool = False
    by_time: bool = True
    rebalances: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Who reads, and how.

    `member`: the same over restarts, so that a broker knows who is back. `start_s`: the Unix time
    from which a group begins that has never read, instead of `start`. `session_timeout_s`: after
    how long without a sign of life others take over.
    """

    group: str
    member: str
    topics: tuple[str, ...]
    delivery: Delivery = Delivery.AT_LEAST_ONCE
    start: StartPosition = StartPosition.LATEST
    start_s: float | None = None
    session_timeout_s: float = 10.0


class Rebalanced(Protocol):
    """Hears that places come and go, within `poll`."""

    def on_assigned(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, int] | None:
        """These are now this member's.

        Returns:
            Offsets to read from instead of the group's, for instance those of a local state.
        """

    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """These go to another member: deliver what is done now; what is not will be read there."""

    def on_lost(self, partitions: Sequence[TopicPartition]) -> None:
        """These have gone already: what is under way of them must not be delivered."""


class ConsumerSession(Protocol):
    """One member of a group.

    A broker that is away is waited for: `poll` then gives nothing, and `trouble` says why.
    """

    @property
    def problem(self) -> str:
        """Why nothing comes or goes at the moment, for people; empty if all is well."""

    def poll(self, most: int, timeout_s: float) -> list[Record]:
        """Records that are there, in order of each place; waits for the first one only.

        Has to be called again and again, also with `most` = 0 while nothing can be taken: it tells
        the broker that this member lives, and lets places come and go.

        Raises:
            HeadraceError: This member can go on no more, such as one that another has replaced.
        """

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Hand out nothing of these places until they are resumed."""

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """The contrary."""

    def produce(self, records: Sequence[NewRecord], offsets: Mapping[TopicPartition, int]) -> None:
        """Write records; the input up to these offsets (the next ones to read) is done with that.

        At least once: `done` is kept only after the records are safe, which may be later; `flush`
        waits for it. Exactly once: both at once, or neither, before this returns.

        Raises:
            HeadraceError: Neither happened, and this member can go on no more: what follows reads
                the same records again.
        """

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was delivered is safe, and its `done` kept; whether it is."""

    def lag(self) -> Mapping[TopicPartition, PartitionLag]:
        """How far this member is behind, by place; of the last known state, without waiting."""

    def wake(self) -> None:
        """Let a `poll` that waits return, or the next one if none does; for other threads too."""

    def close(self) -> None:
        """Leave the group; what was delivered and is not safe by then may be delivered again."""


class Broker(Protocol):
    """Connects to one broker. Safe to use from several threads."""

    abilities: BrokerFeatures

    def join(self, membership: Membership, listener: Rebalanced) -> ConsumerSession:
        """Become a member of a group.

        Raises:
            UnsupportedError: The broker cannot what is asked for; the message says what it can.
            UnavailableError: It cannot be reached.
            HeadraceError: It refuses.
        """

    def create_topic(self, topic: str, *, partitions: int = 1) -> None:
        """Make a topic if it is not there."""

    def send(self, records: Sequence[NewRecord]) -> None:
        """Write records by nobody's group, and wait until they are safe."""

    def read(self, topic: str, *, after: Mapping[TopicPartition, int], most: int) -> list[Record]:
        """Records from these offsets on, by nobody's group; for people who look, not for speed."""

    def ends(self, topic: str) -> Mapping[TopicPartition, tuple[int, int]]:
        """Of each place the first offset that is there, and the next that will be written."""

    def offsets_at(self, topic: str, at_s: float) -> Mapping[TopicPartition, int]:
        """Of each place the offset of the first record that was written at this time or later."""

    def committed(self, group: str, topic: str) -> Mapping[TopicPartition, int]:
        """Where a group is; places where it never was are left out."""

    def set_committed(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Put a group, of which no member runs, somewhere else.

        Raises:
            FailedPreconditionError: A member runs.
        """

    def close(self) -> None:
        """Let go of all connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetRange:
    """Records of each place from `first` on, before `end`."""

    first: Mapping[TopicPartition, int]
    end: Mapping[TopicPartition, int]

    @property
    def records(self) -> int:
        """How many; at most so many where offsets have gaps."""
        return sum(
            max(end - self.first.get(partition, end), 0) for partition, end in self.end.items()
        )

    @property
    def partitions(self) -> int:
        """How many places have any."""
        return sum(end > self.first.get(partition, end) for partition, end in self.end.items())

    def is_done(self, committed: Mapping[TopicPartition, int]) -> bool:
        """Whether a group that is there has passed all of it."""
        return all(
            committed.get(partition, self.first.get(partition, end)) >= end
            for partition, end in self.end.items()
        )


def span_from(broker: Broker, topics: Sequence[str], at_s: float) -> OffsetRange:
    """What was written at `at_s` or later, up to now.

    Raises:
        HeadraceError: There is no such topic, or the broker cannot find a time.
    """
    first: dict[TopicPartition, int] = {}
    end: dict[TopicPartition, int] = {}
    for topic in topics:
        first |= broker.offsets_at(topic, at_s)
        end |= {partition: following for partition, (_, following) in broker.ends(topic).items()}
    return OffsetRange(first=first, end=end)


def committed(broker: Broker, group: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
    """Where a group is at all of its topics."""
    offsets: dict[TopicPartition, int] = {}
    for topic in topics:
        offsets |= broker.committed(group, topic)
    return offsets
