"""What the tests of every broker share: the broker under test, and ways to drive sessions."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import msgspec

from headrace.core import HeadraceError
from headrace.streaming.broker import (
    Broker,
    ConsumerSession,
    GroupProtocol,
    Membership,
    StartPosition,
)
from headrace.streaming.brokers import open_broker
from headrace.streaming.records import NewRecord, Record, TopicPartition

READ_AT_ONCE = 30_000
SETTLES_S = 45.0
"""By when a group has surely handed its places over, those of a killed member too."""


@dataclass(frozen=True, kw_only=True)
class Rig:
    """A broker, and what may be asked of it.

    Args:
        session_timeout_s: After how long a member that died is replaced.
        protocol: Kafka's protocol of the groups.
        counts_deliveries: Whether records say how often they were handed out.
        cannot: Names of tests ▸ why this server cannot do that.
        copied: Records that are copied while the copier is killed so often (`kills`).
        stop: Stops the server; None if there is none, or several tests share it.
        start: Starts it again, with all that it had.
    """

    url: str
    home: Path
    session_timeout_s: float = 2.0
    protocol: GroupProtocol = GroupProtocol.AUTO
    counts_deliveries: bool = False
    cannot: Mapping[str, str] = field(default_factory=dict)
    copied: int = 4000
    kills: int = 8
    stop: Callable[[], None] | None = None
    start: Callable[[], None] | None = None

    def open(self) -> Broker:
        """A broker, for the caller to close."""
        return open_broker(self.url, home=self.home)

    def membership(self, topic: str, **changes: object) -> Membership:
        """Of a group of its own from the beginning on, unless `changes` say otherwise."""
        said: dict[str, object] = {
            "group": new_name("group"),
            "member": "one",
            "start": StartPosition.EARLIEST,
            "session_timeout_s": self.session_timeout_s,
            "protocol": self.protocol,
            **changes,
        }
        return Membership(topics=(topic,), **said)  # type: ignore[arg-type]  # as the caller says

    def finish(self, session: ConsumerSession, records: Iterable[Record]) -> None:
        """Be done with these records, and wait until the server knows it."""
        session.produce([], after(records))
        assert session.flush(SETTLES_S)


@dataclass
class Listener:
    """Remembers what it heard. `offsets` are its own state.

    `on_gain` and `before` are called while partitions are assigned, or revoked.
    """

    offsets: Mapping[TopicPartition, int] = field(default_factory=dict)
    on_gain: Callable[[], object] | None = None
    before: Callable[[Sequence[TopicPartition]], None] | None = None
    held: set[TopicPartition] = field(default_factory=set)
    lost_partitions: list[TopicPartition] = field(default_factory=list)
    given_away: list[TopicPartition] = field(default_factory=list)
    told: int = 0

    def on_assigned(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, int] | None:
        if self.on_gain is not None:
            self.on_gain()
        self.told += 1
        assert not self.held & set(partitions), "a place is gained once"
        self.held |= set(partitions)
        return self.offsets

    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        assert set(partitions) <= self.held
        if self.before is not None:
            self.before(partitions)
        self.given_away += partitions
        self.held -= set(partitions)

    def on_lost(self, partitions: Sequence[TopicPartition]) -> None:
        assert set(partitions) <= self.held
        self.lost_partitions += partitions
        self.held -= set(partitions)


def new_name(what: str) -> str:
    """A name that nobody else has."""
    return f"{what}-{uuid4().hex[:12]}"


def new_topic(broker: Broker, *, partitions: int = 1, records: int = 0, keys: int = 0) -> str:
    """A topic of this test's own, with so many records.

    It has one partition where the broker has no others.
    """
    topic = new_name("topic")
    broker.create_topic(topic, partitions=partitions if broker.abilities.partitions else 1)
    broker.send(numbered(topic, range(records), keys=keys))
    return topic


def numbered(topic: str, numbers: Iterable[int], *, keys: int = 0) -> list[NewRecord]:
    """Records that say their number; over so many keys, or without."""
    return [
        NewRecord(topic=topic, key=b"%d" % (n % keys) if keys else None, value=b"%d" % n)
        for n in numbers
    ]


def numbers(records: Iterable[Record]) -> list[int]:
    """What those say."""
    return [int(record.value or b"") for record in records]


def after(records: Iterable[Record]) -> dict[TopicPartition, int]:
    """The offsets that are next when these are done."""
    done: dict[TopicPartition, int] = {}
    for record in records:
        done[record.topic_partition] = max(done.get(record.topic_partition, 0), record.offset + 1)
    return done


def take(
    session: ConsumerSession, count: int, *, within_s: float = SETTLES_S, max_records: int = 1000
) -> list[Record]:
    """At least `count` records, or as many as came in that time."""
    found: list[Record] = []
    deadline = time.monotonic() + within_s
    while len(found) < count and time.monotonic() < deadline:
        found += session.poll(max_records, 0.2)
    return found


def settle(session: ConsumerSession, holds: Callable[[], bool]) -> None:
    """Poll for nothing until that holds."""
    deadline = time.monotonic() + SETTLES_S
    while not holds():
        assert time.monotonic() < deadline, session.problem
        assert session.poll(0, 0.05) == []


def retried(act: Callable[[], object], error: type[HeadraceError]) -> None:
    """Act again after such an error: a server may take a while to know what became of it."""
    deadline = time.monotonic() + SETTLES_S
    while True:
        try:
            act()
        except error:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def everything(broker: Broker, topic: str) -> list[Record]:
    """All records that `read` shows of a topic."""
    position = {partition: first for partition, (first, _) in broker.ends(topic).items()}
    found: list[Record] = []
    while some := broker.read(topic, after=position, max_records=READ_AT_ONCE):
        found += some
        position |= after(some)
    return found


@contextmanager
def joined(
    broker: Broker, membership: Membership, listener: Listener | None = None
) -> Iterator[ConsumerSession]:
    """A session that is closed at the end."""
    session = broker.join(membership, listener or Listener())
    try:
        yield session
    finally:
        session.close()


def taken(
    broker: Broker, membership: Membership, count: int, listener: Listener | None = None
) -> list[Record]:
    """What `take` returns to a member that joins for it."""
    with joined(broker, membership, listener) as session:
        return take(session, count)


@contextmanager
def member_process(
    rig: Rig, mode: str, membership: Membership, sink: str
) -> Iterator[subprocess.Popen[str]]:
    """A member in a process of its own, which is ended by force at the end; see `member.py`."""
    command = [sys.executable, "-m", "tests.contract.brokers.member"]
    command += [msgspec.json.encode(membership).decode(), mode, sink, rig.url, str(rig.home)]
    with subprocess.Popen(  # noqa: S603  # ours
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    """What it says next; empty if it ended."""
    assert process.stdout is not None
    return process.stdout.readline().strip()
