"""Streams in a world that is turned: two members, one broker, whatever goes wrong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.core import HeadraceError, InvalidArgumentError, UnavailableError
from headrace.core.spec.stream_parts import FailurePolicy, StreamErrorsSpec, StreamOutputSpec
from headrace.streaming.broker import Delivery, Membership, StartPosition
from headrace.streaming.in_flight import Outcome, ScoringBatch
from headrace.streaming.metrics import Counters
from headrace.streaming.poll_loop import PollLoop
from headrace.streaming.records import NewRecord, Record, TopicPartition
from headrace.streaming.settings import WorkerSettings
from headrace.streaming.windows.session import Windows
from headrace.streaming.writer import ResultWriter
from headrace.testing.streams import MemoryBroker, MemorySession, TurnedClock, TurnedRunner

IN, OUT, DEAD, GROUP = "in", "out", "dead", "readers"
SETTLE_TURNS = 3000


def settings(**changes: Any) -> WorkerSettings:  # noqa: ANN401  # any setting
    told: dict[str, Any] = {
        "name": "s",
        "broker": "memory:",
        "topics": [IN],
        "sink": OUT,
        "dead_letters": DEAD,
        "group": GROUP,
        "member": "one",
        "start": StartPosition.EARLIEST,
        "output": StreamOutputSpec(headers=("kept",)),
        **changes,
    }
    return WorkerSettings(**told)


def writer(policy: FailurePolicy = FailurePolicy.DEAD_LETTER) -> ResultWriter:
    return ResultWriter(settings(errors=StreamErrorsSpec(policy=policy)))


class Reader:
    """A member of the group that is no stream."""

    def on_assigned(self, partitions: Sequence[TopicPartition]) -> None: ...
    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None: ...
    def on_lost(self, partitions: Sequence[TopicPartition]) -> None: ...


def is_poison(record: Record) -> bool:
    return record.value == b"poison"


def where(record: Record | NewRecord) -> tuple[str, int]:
    """Which input an answer or a dead letter is of: its place and offset."""
    headers = dict(record.headers)
    if "headrace-offset" in headers:
        partition = f"{headers['headrace-topic'].decode()}/{headers['headrace-partition'].decode()}"
        return partition, int(headers["headrace-offset"])
    partition, _, offset = (record.value or b"").decode().rpartition("@")
    return partition, int(offset)


@dataclass
class Member:
    """A pump, the session it has, the threads it has, and how it fares."""

    name: str
    broker: MemoryBroker
    delivery: Delivery
    clock: TurnedClock
    seconds: Callable[[ScoringBatch], float]
    policy: FailurePolicy = FailurePolicy.DEAD_LETTER
    away: bool = False
    threads: int = 1
    max_batch_size: int = 4
    max_delay_s: float = 0.0
    handover_s: float = 0.5
    retry_for_s: float | None = 60.0
    waits: bool = False
    is_out: bool = False
    make_windows: Callable[[Counters], Windows | None] = lambda _: None
    errors: list[HeadraceError] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    poll_loop: PollLoop = field(init=False)
    session: MemorySession = field(init=False)
    runner: TurnedRunner = field(init=False)

    def __post_init__(self) -> None:
        self.runner = TurnedRunner(
            self.clock,
            self._answer,
            seconds=lambda batch: self.seconds(batch),  # noqa: PLW0108  # tests change it
            threads=self.threads,
            wake=lambda: self.session.wake(),  # noqa: PLW0108  # sessions come and go
        )
        self.join()

    def join(self) -> None:
        self.is_out = False
        self.poll_loop = PollLoop(
            settings(
                member=self.name,
                errors=StreamErrorsSpec(
                    policy=self.policy, max_delay_s=1.0, retry_for_s=self.retry_for_s
                ),
                delivery=self.delivery,
                max_batch_size=self.max_batch_size,
                max_delay_s=self.max_delay_s,
                handover_s=self.handover_s,
            ),
            self.runner,
            self.counters,
            writer(self.policy),
            clock=self.clock,
            chance=lambda: 0.5,
            windows=self.make_windows(self.counters),
        )
        membership = Membership(
            group=GROUP,
            member=self.name,
            topics=(IN,),
            delivery=self.delivery,
            start=StartPosition.EARLIEST,
        )
        self.session = self.broker.join(membership, self.poll_loop)
        self.session.waits = self.waits
        self.poll_loop.session = self.session

    def run_once(self) -> None:
        """One turn; a session that is over is followed by another, as the worker does."""
        if self.is_out and self.broker.is_away:
            return
        if self.is_out:
            self.join()
        try:
            self.poll_loop.run_once()
        except HeadraceError as error:
            self.errors.append(error)
            self.session.close()
            self._close_windows()
            self.is_out = True

    def crash(self, written: int) -> None:
        """The process is killed, and another is started; what ran is gone."""
        self.session.crash(written=written)
        self._close_windows()
        self.runner = TurnedRunner(
            self.clock, self._answer, seconds=self.seconds, threads=self.threads
        )
        self.join()

    def _close_windows(self) -> None:
        """As the end of a process would: nothing more is written."""
        if self.poll_loop.windows is not None:
            self.poll_loop.windows.close()

    def _answer(self, batch: ScoringBatch) -> list[Outcome] | HeadraceError:
        if self.away:
            return UnavailableError("the store is away", retry_after_s=None)
        return [
            writer(self.policy).failed(
                record,
                InvalidArgumentError("poison"),
                attempts=batch.attempts,
                now_s=self.clock.now(),
            )
            if is_poison(record)
            else answer(record)
            for record in batch.records
        ]


def answer(record: Record) -> NewRecord:
    partition = f"{record.topic_partition.topic}/{record.topic_partition.partition}"
    return NewRecord(
        topic=OUT,
        partition=record.topic_partition.partition,
        key=record.key,
        value=f"{partition}@{record.offset}".encode(),
    )


def inputs(
    count: int, *, partitions: int = 1, poison: frozenset[int] = frozenset()
) -> list[NewRecord]:
    return [
        NewRecord(
            topic=IN,
            key=b"k",
            partition=number % partitions,
            value=b"poison" if number in poison else b"%d" % number,
        )
        for number in range(count)
    ]


def broker_with(
    clock: TurnedClock, *, partitions: int = 1, safe_after_s: float = 0.0, spreads: bool = True
) -> MemoryBroker:
    broker = MemoryBroker(clock, safe_after_s=safe_after_s, spreads=spreads)
    for topic in (IN, OUT, DEAD):
        broker.create_topic(topic, partitions=partitions)
    return broker


@dataclass
class World:
    """Two members that share the partitions of a topic, and what happens to them, then calm."""

    broker: MemoryBroker
    members: Sequence[Member]
    left: list[NewRecord]
    """Records that are not written yet."""

    def do(self, what: str, which: int, amount: float) -> None:
        member = self.members[which % 2]
        match what:
            case "turn":
                member.run_once()
            case "send":
                some, self.left = self.left[:which], self.left[which:]
                self.broker.send(some)
            case "give" | "seize" if not member.is_out:
                partition = TopicPartition(IN, which // 2)
                self.broker.give(GROUP, partition, member.session, is_seized=what == "seize")
            case "crash" if not self.broker.is_away and not member.is_out:
                member.crash(written=int(amount))
            case "refuse":
                member.session.fails = UnavailableError("a broken transaction")
            case "away" | "back":
                member.away = what == "away"
            case "broker away" | "broker back":
                self.broker.is_away = what == "broker away"

    def settle(self) -> None:
        """All is well again: everything has to come to its end."""
        self.broker.is_away = False
        self.do("send", len(self.left), 0)
        for member in self.members:
            member.away = False
            member.session.fails = None
        for turn in range(SETTLE_TURNS):
            for partition in self.broker.ends(IN):
                if self.broker.owner(GROUP, partition) not in [one.session for one in self.members]:
                    self.broker.give(GROUP, partition, self.members[0].session, is_seized=True)
            for member in self.members:
                member.run_once()
            self.broker.clock.turn(0.05)
            if turn > 5 and self.is_done():
                break
        for member in self.members:
            member.run_once()
            member.session.flush(1.0)

    def is_done(self) -> bool:
        reached = self.broker.committed(GROUP, IN)
        ends = self.broker.ends(IN).items()
        return all(reached.get(partition, 0) == end for partition, (_, end) in ends)
