"""Dead letters of an embedded log, put back for real."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.streaming.broker import OffsetRange, committed, span_from
from headrace.streaming.brokers.log.broker import LogBroker
from headrace.streaming.dead_letters import Choice, Redriven, read_dead_letters, redrive
from headrace.streaming.records import NewRecord

DEAD = "pay-dead-letters"
ALL = Choice(code="", limit=None, partitions={"in": 2})

pytestmark = pytest.mark.slow  # a file system's transactions


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[LogBroker]:
    made = LogBroker(tmp_path)
    made.create_topic("in", partitions=2)
    made.create_topic(DEAD, partitions=2)
    yield made
    made.close()


def bury(broker: LogBroker, *values: bytes, code: bytes = b"INVALID_ARGUMENT") -> None:
    broker.send(
        [
            NewRecord(
                topic=DEAD,
                key=None,
                value=value,
                headers=(
                    ("headrace-topic", b"in"),
                    ("headrace-partition", b"1"),
                    ("headrace-error-code", code),
                ),
                partition=at % 2,
            )
            for at, value in enumerate(values)
        ]
    )


def values(broker: LogBroker, topic: str) -> list[bytes | None]:
    after = {partition: first for partition, (first, _) in broker.ends(topic).items()}
    return sorted((one.value for one in broker.read(topic, after=after, max_records=999)), key=repr)


def left(broker: LogBroker) -> list[bytes | None]:
    letters = read_dead_letters(broker, stream="pay", topic=DEAD, max_records=999)
    return sorted((letter.record.value for letter in letters), key=repr)


def put_back(broker: LogBroker, choice: Choice = ALL) -> Redriven:
    return redrive(broker, stream="pay", topic=DEAD, choice=choice)


def test_letters_go_back_once(broker: LogBroker) -> None:
    bury(broker, b"a", b"b", b"c")

    assert put_back(broker) == (3, 0)
    assert put_back(broker) == (0, 0)
    assert values(broker, "in") == [b"a", b"b", b"c"]
    assert left(broker) == []


def test_letters_of_another_error_are_there_afterwards(broker: LogBroker) -> None:
    bury(broker, b"a", b"b")
    bury(broker, b"c", code=b"UNAVAILABLE")
    choice = Choice(code="UNAVAILABLE", limit=None, partitions={"in": 2})

    assert put_back(broker, choice).redriven == 1
    assert values(broker, "in") == [b"c"]
    assert left(broker) == [b"a", b"b"]


def test_a_limit_leaves_the_rest_for_the_next_time(broker: LogBroker) -> None:
    bury(broker, *(b"%d" % i for i in range(10)))
    choice = Choice(code="", limit=4, partitions={"in": 2})

    assert [put_back(broker, choice)[0] for _ in range(4)] == [4, 4, 2, 0]
    assert values(broker, "in") == [b"%d" % i for i in range(10)]


def test_a_span_ends_where_the_topic_does_now(broker: LogBroker) -> None:
    bury(broker, b"a", b"b", b"c")
    span = span_from(broker, [DEAD], 0.0)
    bury(broker, b"d")

    assert (span.records, span.partitions) == (3, 2)
    assert not span.is_done(committed(broker, "g", [DEAD]))
    broker.set_committed("g", dict(span.end))
    assert span.is_done(committed(broker, "g", [DEAD]))


def test_a_span_of_nothing_is_done() -> None:
    assert OffsetRange(first={}, end={}).is_done({})
