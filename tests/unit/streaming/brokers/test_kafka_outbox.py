"""At least once over Kafka: what is done is kept after its records are written, and not before."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka import TopicPartition as KafkaPartition
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import HeadraceError
from headrace.streaming.brokers.kafka import producers
from headrace.streaming.brokers.kafka.client import Writing
from headrace.streaming.brokers.kafka.producers import (
    COMMIT_EVERY_S,
    IN_FLIGHT,
    MAX_QUEUED_S,
    AtLeastOnceProducer,
    ExactlyOnceProducer,
)
from headrace.streaming.records import NewRecord, TopicPartition
from headrace.testing.virtual_time import TurnedClock

HERE = TopicPartition("in", 0)
NOT_WRITTEN = Message(topic="out")


class Client:
    """A producer and a consumer that keep what they are given, as Kafka's client does.

    It holds the report of a record until that is written or has failed, and calls it for errors
    only, as `delivery.report.only.error` says.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[int, Callable[[KafkaError | None, Any], None]]] = []
        """Numbers of records that are under way, and their reports."""
        self.taken = 0
        self.flushes = 0
        self.commits: list[int] = []

    def __len__(self) -> int:
        return len(self.waiting)

    def produce(self, *arguments: Any) -> None:  # noqa: ANN401  # as the client takes them
        self.waiting.append((self.taken, arguments[4]))
        self.taken += 1

    def poll(self, timeout_s: float) -> int:
        del timeout_s
        return 0

    def flush(self, timeout_s: float) -> int:
        del timeout_s
        self.flushes += 1
        return len(self.waiting)

    def commit(self, *, offsets: Sequence[KafkaPartition], asynchronous: bool) -> None:
        assert asynchronous
        self.commits.append(offsets[0].offset)

    def write(self, at: int, *, fails: bool = False) -> None:
        """One of the records that wait is over with."""
        _, report = self.waiting.pop(at % len(self.waiting))
        if fails:
            report(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), NOT_WRITTEN)


def writing_of(client: Client, clock: TurnedClock, *, lingers: bool = False) -> Writing:
    return Writing(
        cast("Producer", client),
        limit_bytes=1_000_000,
        address="h:1",
        clock=clock,
        limits={},
        lingers=lingers,
    )


def outbox(client: Client, clock: TurnedClock, *, lingers: bool = False) -> AtLeastOnceProducer:
    writing = writing_of(client, clock, lingers=lingers)
    return AtLeastOnceProducer(writing, cast("Consumer", client), {})


def answers(count: int) -> list[NewRecord]:
    return [NewRecord(topic="out", key=None, value=b"v", timestamp_s=7.0) for _ in range(count)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=20))
def test_nothing_is_kept_as_done_before_all_records_up_to_it_are_written(
    steps: list[tuple[int, int]],
) -> None:
    """Records are written in any order, as those of several partitions are."""
    clock, client = TurnedClock(), Client()
    mine = outbox(client, clock)
    under_way: list[tuple[int, int]] = []
    total = 0
    for offset, (count, at) in enumerate(steps, start=1):
        mine.produce(answers(count), {HERE: offset})
        total += count
        under_way.append((offset, total))
        if client.waiting:
            client.write(at)
        clock.turn(COMMIT_EVERY_S)
        mine.serve()
        first = min((number for number, _ in client.waiting), default=client.taken)
        safe = max((done for done, taken in under_way if taken <= first), default=0)
        assert max(client.commits, default=0) <= safe
        for commit in client.commits[-1:]:
            mine.on_commit(None, [KafkaPartition("in", 0, commit)])
    for _ in range(2):  # what is under way, then what waits for it
        while client.waiting:
            client.write(0)
        clock.turn(COMMIT_EVERY_S)
        mine.serve()
        for commit in client.commits[-1:]:
            mine.on_commit(None, [KafkaPartition("in", 0, commit)])
    clock.turn(COMMIT_EVERY_S)
    mine.serve()

    assert client.taken == total
    assert client.commits[-1:] == [len(steps)]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), min_size=1, max_size=20))
def test_records_wait_for_those_before_them_as_the_client_would_spin_on_them(
    steps: list[tuple[int, int]],
) -> None:
    clock, client = TurnedClock(), Client()
    mine = outbox(client, clock)
    total = 0
    for offset, (count, written) in enumerate(steps, start=1):
        before, waiting = client.taken, len(client)
        mine.produce(answers(count), {HERE: offset})
        total += count
        assert client.taken == (total if waiting < IN_FLIGHT else before)
        for _ in range(min(written, len(client))):
            client.write(0)

    clock.turn(MAX_QUEUED_S)  # a partition that is slow does not stop the others
    mine.serve()

    assert client.taken == total


@pytest.mark.parametrize(
    ("count", "lingers", "flushes"), [(3, False, 1), (999, False, 0), (3, True, 0)]
)
def test_few_records_are_sent_at_once_unless_the_user_chose_how_long_they_wait(
    count: int, *, lingers: bool, flushes: int
) -> None:
    client = Client()
    mine = outbox(client, TurnedClock(), lingers=lingers)
    mine.produce(answers(count), {HERE: 1})

    assert client.taken == count
    assert client.flushes == flushes


def test_a_flush_queues_what_waits_and_what_is_lost_meanwhile_is_not_committed() -> None:
    clock, client = TurnedClock(), Client()
    mine = outbox(client, clock)
    for offset in (1, 2):
        mine.produce(answers(IN_FLIGHT), {HERE: offset})
    mine.forget([HERE])
    is_safe = mine.flush(0.0, lambda: None)
    while client.waiting:
        client.write(0)
    clock.turn(COMMIT_EVERY_S)
    mine.serve()

    assert not is_safe
    assert client.taken == 2 * IN_FLIGHT
    assert not client.commits


@pytest.mark.parametrize("code", [KafkaError.STALE_MEMBER_EPOCH, KafkaError.NOT_COORDINATOR])
def test_a_commit_that_is_refused_while_the_group_changes_is_repeated(code: int) -> None:
    clock, client = TurnedClock(), Client()
    mine = outbox(client, clock)
    mine.produce(answers(1), {HERE: 1})
    client.write(0)
    mine.serve()
    mine.on_commit(KafkaError(code), [KafkaPartition("in", 0, 1)])
    clock.turn(1.0)
    mine.serve()

    assert client.commits == [1, 1]


def test_a_record_that_was_not_written_ends_the_session_and_keeps_nothing() -> None:
    clock, client = TurnedClock(), Client()
    mine = outbox(client, clock)
    mine.produce(answers(2), {HERE: 2})
    client.write(0, fails=True)
    mine.serve()
    client.write(0)
    clock.turn(COMMIT_EVERY_S)

    with pytest.raises(HeadraceError, match="write to topic 'out'"):
        mine.serve()
    assert not client.commits


class Transactional(Client):
    """A client whose transaction fails as one of its records does."""

    def __init__(self, record: int) -> None:
        super().__init__()
        self.record = record

    def init_transactions(self, timeout_s: float) -> None: ...
    def begin_transaction(self) -> None: ...
    def abort_transaction(self, timeout_s: float) -> None: ...

    def memberid(self) -> str:
        return "m"

    def commit_transaction(self, timeout_s: float) -> None:
        del timeout_s
        self.waiting[0][1](KafkaError(self.record), NOT_WRITTEN)
        code = KafkaError.INVALID_PRODUCER_ID_MAPPING
        raise KafkaException(KafkaError(code, "not assigned to its transactional id"))


def transactional(client: Transactional, clock: TurnedClock) -> ExactlyOnceProducer:
    writing = writing_of(client, clock)
    return ExactlyOnceProducer(writing, cast("Consumer", client), {}, lambda: writing.producer)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (KafkaError._PURGE_QUEUE, "cannot commit a transaction: not assigned to its transactional"),
        (KafkaError._MSG_TIMED_OUT, "the cluster has forgotten this member's transactional id"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "write to topic 'out'"),
    ],
)
def test_the_cause_is_told_of_a_transaction_and_a_record_that_fail(record: int, told: str) -> None:
    client = Transactional(record)
    mine = transactional(client, TurnedClock())

    with pytest.raises(HeadraceError, match=told):
        mine.produce(answers(1), {})


class Refusing(Transactional):
    """A client whose offsets are refused with these codes, one after the other."""

    def __init__(self, codes: Sequence[int], clock: TurnedClock, *, leaves: bool) -> None:
        super().__init__(record=0)
        self.codes = list(codes)
        self.clock = clock
        self.leaves = leaves
        self.committed: list[int] = []
        """Numbers of the records of each transaction that was committed."""
        self.member = "m"

    def memberid(self) -> str:
        return self.member

    def consumer_group_metadata(self) -> None: ...

    def poll(self, timeout_s: float) -> int:
        self.clock.turn(timeout_s)
        return 0

    def send_offsets_to_transaction(self, *_: object) -> None:
        self.clock.turn(0.1)
        if self.codes:
            self.member = "" if self.leaves else "m"
            raise KafkaException(KafkaError(self.codes.pop(0)))

    def abort_transaction(self, timeout_s: float) -> None:
        super().abort_transaction(timeout_s)
        for _, report in self.waiting:
            report(KafkaError(KafkaError._PURGE_QUEUE), NOT_WRITTEN)
        self.waiting.clear()

    def commit_transaction(self, timeout_s: float) -> None:
        del timeout_s
        self.committed += [number for number, _ in self.waiting]
        self.waiting.clear()


TRANSIENT = st.sampled_from(
    [
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError._STATE,
    ]
)


@given(codes=st.lists(TRANSIENT, max_size=80), leaves=st.booleans())
def test_a_transaction_is_repeated_whole_while_its_member_stays_and_the_time_is_not_over(
    *, codes: list[int], leaves: bool
) -> None:
    clock = TurnedClock()
    client = Refusing(codes, clock, leaves=leaves)
    mine = transactional(client, clock)
    try:
        mine.produce(answers(2), {HERE: 2})
    except HeadraceError:
        assert client.committed == []
        assert codes
        is_over = clock.monotonic() >= (3.0 if KafkaError.ILLEGAL_GENERATION in codes else 15.0)
        assert leaves or is_over
    else:
        assert client.committed == [client.taken - 2, client.taken - 1]
        assert client.codes == []
        assert not (leaves and codes)
        assert clock.monotonic() <= 15.5


def test_a_client_whose_call_does_not_return_is_replaced_within_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(producers, "_SEND_OFFSETS_S", 0.05)
    clock, never = TurnedClock(), threading.Event()
    first, second = (Refusing([], clock, leaves=False) for _ in range(2))
    monkeypatch.setattr(first, "send_offsets_to_transaction", lambda *_: never.wait(5.0))
    mine = ExactlyOnceProducer(
        writing_of(first, clock), cast("Consumer", first), {}, lambda: cast("Producer", second)
    )
    mine.produce(answers(2), {HERE: 2})
    mine.produce(answers(1), {HERE: 3})
    never.set()

    assert first.committed == []
    assert second.committed == [0, 1, 2]
