"""In-memory broker on a virtual clock, for tests of streams without waits.

It has partitions, groups whose partitions a test can move, delayed acknowledgements, and sessions
that crash. It is not for production.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from headrace.core import (
    ConflictError,
    FailedPreconditionError,
    HeadraceError,
    NotFoundError,
    UnavailableError,
)
from headrace.streaming.broker import (
    BrokerFeatures,
    Delivery,
    Membership,
    Rebalanced,
    StartPosition,
)
from headrace.streaming.records import NewRecord, PartitionLag, Record, TopicPartition
from headrace.testing.virtual_time import TurnedClock, TurnedRunner

__all__ = ["MemoryBroker", "MemorySession", "TurnedClock", "TurnedRunner"]


@dataclass
class _Group:
    """A consumer group; `claims` has the owner of each partition and the number of its claim."""

    committed: dict[TopicPartition, int] = field(default_factory=dict)
    claims: dict[TopicPartition, tuple["MemorySession", int]] = field(default_factory=dict)
    members: dict[str, "MemorySession"] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)

    def hand(self, partition: TopicPartition, to: "MemorySession") -> None:
        self.claims[partition] = to, next(self.numbers)

    def partitions_of(self, session: "MemorySession | None") -> dict[TopicPartition, int]:
        """Return the partitions of a member, with the numbers of their claims."""
        return {p: number for p, (owner, number) in self.claims.items() if owner is session}


class MemoryBroker:
    """In-memory broker; see `Broker`. For one thread only.

    Args:
        safe_after_s: Seconds after which at-least-once deliveries are acknowledged.
        spreads: Whether a joining member is assigned free partitions; otherwise a test assigns
            them with `give`.
    """

    abilities = BrokerFeatures(exactly_once="in one step", partitions=True, rebalances=True)

    def __init__(
        self, clock: TurnedClock, *, safe_after_s: float = 0.0, spreads: bool = True
    ) -> None:
        self.clock = clock
        self.safe_after_s = safe_after_s
        self.is_away = False
        """Whether it is unavailable: sessions report a problem, and joining fails."""
        self.limits: dict[str, int] = {}
        """Largest record in bytes of topics; they are not enforced."""
        self.lag_error: HeadraceError | None = None
        """Why lag is unknown; None if it is known."""
        self.sessions: list[MemorySession] = []
        """All sessions since the broker was created."""
        self._spreads = spreads
        self._partitions: dict[TopicPartition, list[Record]] = {}
        self._groups: dict[str, _Group] = {}

    def join(self, membership: Membership, listener: Rebalanced) -> "MemorySession":
        """Join a group; a member of the same name is replaced, and its partitions are kept."""
        if self.is_away:
            raise UnavailableError("the broker in memory is away")
        for topic in membership.topics:
            self._of(topic)
        group = self._groups.setdefault(membership.group, _Group())
        session = MemorySession(self, group, membership, listener)
        before = group.members.get(membership.member)
        group.members[membership.member] = session
        if before is not None:
            for partition in group.partitions_of(before):
                group.hand(partition, session)
            before.end(ConflictError(f"member '{membership.member}' was replaced"))
        if self._spreads:
            for topic in membership.topics:
                for partition in self._of(topic):
                    if partition not in group.claims:
                        group.hand(partition, session)
        self.sessions.append(session)
        return session

    def owner(self, group: str, partition: TopicPartition) -> "MemorySession | None":
        """Return the session that a partition is assigned to."""
        claim = self._groups[group].claims.get(partition)
        return None if claim is None else claim[0]

    def give(
        self, group: str, partition: TopicPartition, to: "MemorySession", *, is_seized: bool
    ) -> None:
        """Move a partition to another member: by a rebalance, or without notifying its owner."""
        group_state = self._groups[group]
        owner = self.owner(group, partition)
        if owner is to:
            return
        if owner is not None and not is_seized:
            owner.requested_owner[partition] = to
            return
        group_state.hand(partition, to)

    def create_topic(self, topic: str, *, partitions: int = 1, like: str = "") -> int | None:
        """Create a topic unless it exists; return its entry in `limits`."""
        partitions = len(self._of(like)) if like else partitions
        if not any(partition.topic == topic for partition in self._partitions):
            self._partitions.update(
                (TopicPartition(topic, number), []) for number in range(partitions)
            )
        return self.limits.get(topic)

    def delete_topic(self, topic: str) -> None:
        """Delete a topic."""
        for partition in self._of(topic):
            del self._partitions[partition]

    def send(self, records: Sequence[NewRecord]) -> None:
        """Write records; without a partition, the key decides."""
        for new in records:
            partitions = self._of(new.topic)
            number = new.partition
            if number is None:
                number = sum(new.key or b"") % len(partitions)
            log = self._partitions[partitions[number]]
            log.append(
                Record(
                    topic_partition=partitions[number],
                    offset=len(log),
                    key=new.key,
                    value=new.value,
                    headers=new.headers,
                    timestamp_s=self.clock.now() if new.timestamp_s is None else new.timestamp_s,
                )
            )

    def read(
        self, topic: str, *, after: Mapping[TopicPartition, int], max_records: int
    ) -> list[Record]:
        """Return records from these offsets on."""
        partitions = [partition for partition in self._of(topic) if partition in after]
        return [
            record
            for partition in partitions
            for record in self._partitions[partition][after[partition] :]
        ][:max_records]

    def ends(self, topic: str) -> Mapping[TopicPartition, tuple[int, int]]:
        """Return first and next offsets."""
        return {partition: (0, len(self._partitions[partition])) for partition in self._of(topic)}

    def offsets_at(self, topic: str, at_s: float) -> Mapping[TopicPartition, int]:
        """Return offsets by time."""
        return {
            partition: next(
                (
                    record.offset
                    for record in self._partitions[partition]
                    if record.timestamp_s >= at_s
                ),
                len(self._partitions[partition]),
            )
            for partition in self._of(topic)
        }

    def committed(self, group: str, topic: str) -> Mapping[TopicPartition, int]:
        """Return committed offsets."""
        committed = self._groups.get(group, _Group()).committed
        return {
            partition: offset for partition, offset in committed.items() if partition.topic == topic
        }

    def set_committed(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Set committed offsets."""
        group_state = self._groups.setdefault(group, _Group())
        if group_state.members:
            msg = f"a member of group '{group}' runs"
            raise FailedPreconditionError(msg)
        group_state.committed.update(offsets)

    def close(self) -> None:
        """Do nothing."""

    def all(self, topic: str) -> list[Record]:
        """Return all records of a topic, partition by partition."""
        return [record for partition in self._of(topic) for record in self._partitions[partition]]

    def _of(self, topic: str) -> list[TopicPartition]:
        partitions = sorted(partition for partition in self._partitions if partition.topic == topic)
        if not partitions:
            msg = f"there is no topic '{topic}'"
            raise NotFoundError(msg)
        return partitions

    def position(self, group: _Group, membership: Membership, partition: TopicPartition) -> int:
        """Return the offset at which a member starts to read."""
        offset = group.committed.get(partition)
        if offset is not None:
            return offset
        if membership.start_s is not None:
            return self.offsets_at(partition.topic, membership.start_s)[partition]
        return 0 if membership.start is StartPosition.EARLIEST else len(self._partitions[partition])


class MemorySession:
    """Session on a `MemoryBroker`; see `ConsumerSession`.

    `waits`: whether `poll` advances the clock; otherwise the test does. `fails`: the next `produce`
    raises this error and ends the session. For assertions: `polled_at`, `paused`, `delivered`,
    `began` (where it began to read) and `unassigned_writes`: partitions whose offsets it produced
    while they were not assigned to it.
    """

    expired = 0
    is_member = True

    def __init__(
        self, broker: MemoryBroker, group: _Group, membership: Membership, listener: Rebalanced
    ) -> None:
        self.membership = membership
        self.requested_owner: dict[TopicPartition, MemorySession] = {}
        self.waits = True
        self.fails: HeadraceError | None = None
        self.paused: set[TopicPartition] = set()
        self.polled_at: list[float] = []
        self.delivered: list[tuple[list[NewRecord], dict[TopicPartition, int]]] = []
        self._broker = broker
        self._group = group
        self._listener = listener
        self.unassigned_writes: list[TopicPartition] = []
        self.began: set[tuple[TopicPartition, int]] = set()
        self._positions: dict[TopicPartition, int] = {}
        self._numbers: dict[TopicPartition, int] = {}
        self._unsafe: list[tuple[list[NewRecord], dict[TopicPartition, int]]] = []
        self._is_woken = False
        self._ended: HeadraceError | None = None

    @property
    def problem(self) -> str:
        """The problem while the broker is unavailable; else empty."""
        return "the broker in memory is away" if self._broker.is_away else ""

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        """Return available records; let virtual time pass until there are some."""
        self._check()
        clock = self._broker.clock
        self.polled_at.append(clock.monotonic())
        self._rebalance()
        records = self._take(max_records)
        if not records and self.waits and not self._is_woken:
            until = clock.monotonic() + timeout_s

            def is_over() -> bool:
                nonlocal records
                records = self._take(max_records)
                return bool(records) or self._is_woken

            clock.turn_until(is_over, most_s=max(until - clock.monotonic(), 0.0))
        self._is_woken = False
        return records

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Pause partitions."""
        self.paused.update(partitions)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Resume partitions."""
        self.paused.difference_update(partitions)

    def produce(self, records: Sequence[NewRecord], offsets: Mapping[TopicPartition, int]) -> None:
        """Write records: at once with exactly-once delivery, else after a delay or in `flush`."""
        self._check()
        if self.fails is not None:
            error, self.fails = self.fails, None
            self.end(error)
            raise error
        self.unassigned_writes += [
            partition for partition in offsets if partition not in self._positions
        ]
        batch = list(records), dict(offsets)
        if self.membership.delivery is Delivery.EXACTLY_ONCE:
            foreign = [partition for partition in offsets if not self._has(partition)]
            if foreign:
                error = UnavailableError(f"{foreign[0]} is another member's")
                self.end(error)
                raise error
            self._write(*batch)
        else:
            self._unsafe.append(batch)
            self._broker.clock.later(self._broker.safe_after_s, self._settle_one)
        self.delivered.append(batch)

    def flush(self, timeout_s: float) -> bool:
        """Return whether everything was acknowledged in that time."""
        self._check()
        if timeout_s < self._broker.safe_after_s and self._unsafe:
            return False
        while self._unsafe:
            self._settle_one()
        return True

    def lag(self) -> Mapping[TopicPartition, PartitionLag]:
        """Return the lag of assigned partitions."""
        if self._broker.lag_error is not None:
            raise self._broker.lag_error
        now_s = self._broker.clock.now()
        lags = {}
        for partition in self._positions:
            offset = self._broker.position(self._group, self.membership, partition)
            waiting = self._broker.read(
                partition.topic, after={partition: offset}, max_records=1 << 30
            )
            oldest_s = waiting[0].timestamp_s if waiting else now_s
            lags[partition] = PartitionLag(records=len(waiting), seconds=now_s - oldest_s)
        return lags

    def wake(self) -> None:
        """Make this poll, or the next one, return."""
        self._is_woken = True

    def close(self) -> None:
        """Leave the group: drop unacknowledged records, and release partitions."""
        self._leave()
        self._ended = FailedPreconditionError("this session is closed")

    def crash(self, *, written: int = 0) -> None:
        """Crash after writing `written` unacknowledged records, without committing offsets."""
        self._broker.send([new for news, _ in self._unsafe for new in news][:written])
        self._leave()
        self._ended = FailedPreconditionError("this process is dead")

    def end(self, error: HeadraceError) -> None:
        """Make the next call raise this error."""
        self._unsafe.clear()
        self._ended = error

    def _leave(self) -> None:
        self._unsafe.clear()
        group = self._group
        if group.members.get(self.membership.member) is self:
            del group.members[self.membership.member]
        for partition in group.partitions_of(self):
            del group.claims[partition]
            next_owner = self.requested_owner.get(partition)
            if next_owner is not None:
                group.hand(partition, next_owner)

    def _check(self) -> None:
        if self._ended is not None:
            raise self._ended

    def _rebalance(self) -> None:
        lost = sorted(partition for partition in self._positions if not self._has(partition))
        if lost:
            self._forget(lost)
            self._listener.on_lost(lost)
        moving = sorted(
            partition for partition in self.requested_owner if partition in self._positions
        )
        if moving:
            self._listener.on_revoked(moving)
            next_owners = {partition: self.requested_owner[partition] for partition in moving}
            self._forget(moving)
            for partition, next_owner in next_owners.items():
                self._group.hand(partition, next_owner)
        assigned = self._group.partitions_of(self)
        new = sorted(assigned.keys() - self._positions.keys())
        if new:
            own = self._listener.on_assigned(new) or {}
            for partition in new:
                offset = own.get(partition)
                if offset is None:
                    offset = self._broker.position(self._group, self.membership, partition)
                self._positions[partition] = offset
                self._numbers[partition] = assigned[partition]
                self.began.add((partition, offset))

    def _has(self, partition: TopicPartition) -> bool:
        """Return whether a partition is assigned to this member without interruption."""
        return self._group.claims.get(partition) == (self, self._numbers.get(partition))

    def _forget(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            del self._positions[partition]
            del self._numbers[partition]
            self.requested_owner.pop(partition, None)

    def _take(self, max_records: int) -> list[Record]:
        if self._broker.is_away:
            return []
        records: list[Record] = []
        for partition in sorted(self._positions):
            if partition not in self.paused and len(records) < max_records:
                offset = self._positions[partition]
                some = self._broker.read(
                    partition.topic,
                    after={partition: offset},
                    max_records=max_records - len(records),
                )
                self._positions[partition] = offset + len(some)
                records += some
        return records

    def _settle_one(self) -> None:
        if self._unsafe:
            self._write(*self._unsafe.pop(0))

    def _write(self, records: Sequence[NewRecord], offsets: Mapping[TopicPartition, int]) -> None:
        self._broker.send(records)
        for partition, offset in offsets.items():
            if self._has(partition):
                self._group.committed[partition] = offset
