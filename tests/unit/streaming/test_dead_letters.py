"""Which dead letters are put back, and that none is twice."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from headrace.core import Code, HeadraceError, InvalidArgumentError
from headrace.streaming.broker import OffsetRange, committed, span_from
from headrace.streaming.brokers.log.broker import LogBroker
from headrace.streaming.dead_letters import (
    ATTEMPTS,
    HEADERS,
    Choice,
    Redriven,
    check_code,
    count,
    dead_letter,
    parse_dead_letter,
    plan_redrive,
    read_dead_letters,
    redrive,
)
from headrace.streaming.records import NewRecord, Record, TopicPartition

DEAD = TopicPartition("pay-dead-letters", 0)
ALL = Choice(code="", limit=None, partitions={"in": 2})


class _Error(HeadraceError):
    def __init__(self, code: Code) -> None:
        super().__init__(f"is {code}")
        self.code = code


def letter(
    offset: int,
    *,
    code: Code = Code.INVALID_ARGUMENT,
    topic: str = "in",
    partition: int = 1,
    attempts: int = 2,
) -> Record:
    died = Record(
        topic_partition=TopicPartition(topic, partition),
        offset=100 + offset,
        key=b"k",
        value=b"v%d" % offset,
        headers=(("traceparent", b"t"),),
    )
    new = dead_letter(
        died, _Error(code), topic=DEAD.topic, stream="pay", attempts=attempts, now_s=12.5
    )
    return Record(
        topic_partition=DEAD, offset=offset, key=new.key, value=new.value, headers=new.headers
    )


def test_what_another_wrote_there_is_a_letter_without_a_word() -> None:
    headers = (("headrace-partition", b"x"), ("headrace-time", b"\xff"))
    found = parse_dead_letter(
        Record(topic_partition=DEAD, offset=0, key=None, value=b"v", headers=headers)
    )

    assert (found.topic, found.partition, found.died_s, found.code) == ("", None, None, "")


@pytest.mark.parametrize(("died_in", "goes_to"), [(1, 1), (7, None)])
def test_a_letter_goes_back_as_the_record_it_was_to_its_partition_if_that_is_there(
    died_in: int, goes_to: int | None
) -> None:
    one = letter(3, partition=died_in)
    [back] = plan_redrive([one], ALL, ends={DEAD: 9}, redriven=0).records

    assert (back.topic, back.partition, back.key, back.value) == ("in", goes_to, b"k", b"v3")
    assert [name for name, _ in back.headers if name in HEADERS] == [ATTEMPTS]
    assert ("traceparent", b"t") in back.headers


def test_a_letter_of_a_topic_that_the_stream_does_not_read_goes_nowhere() -> None:
    step = plan_redrive([letter(0, topic="payroll")], ALL, ends={DEAD: 1}, redriven=0)

    assert [record.topic for record in step.records] == [DEAD.topic]
    assert step.redriven == 0


def test_what_came_after_the_start_is_left_for_another_time() -> None:
    step = plan_redrive([letter(0), letter(1), letter(2)], ALL, ends={DEAD: 2}, redriven=0)

    assert (step.redriven, step.offsets) == (2, {DEAD: 2})


def test_a_letter_that_was_cut_is_not_redriven() -> None:
    headers = (*letter(0).headers, ("headrace-value-bytes", b"9"))

    assert ALL.takes(parse_dead_letter(letter(0)))
    assert not ALL.takes(parse_dead_letter(msgspec.structs.replace(letter(0), headers=headers)))


def test_a_count_knows_filter_and_limit() -> None:
    letters = [parse_dead_letter(letter(i)) for i in range(5)]

    assert count(letters, ALL) == 5
    assert count(letters, replace(ALL, limit=2)) == 2
    assert count(letters, replace(ALL, code="UNAVAILABLE")) == 0


def test_a_code_is_found_in_any_case_and_a_strange_one_is_told() -> None:
    assert check_code(" invalid_argument") == "INVALID_ARGUMENT"
    with pytest.raises(InvalidArgumentError, match="UNAVAILABLE"):
        check_code("teapot")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[LogBroker]:
    made = LogBroker(tmp_path)
    made.create_topic("in", partitions=2)
    made.create_topic(DEAD.topic, partitions=2)
    yield made
    made.close()


def bury(
    broker: LogBroker, *values: bytes, code: bytes = b"INVALID_ARGUMENT", first: int = 0
) -> None:
    broker.send(
        [
            NewRecord(
                topic=DEAD.topic,
                key=None,
                value=value,
                headers=(
                    ("headrace-topic", b"in"),
                    ("headrace-partition", b"1"),
                    ("headrace-error-code", code),
                ),
                partition=at % 2,
            )
            for at, value in enumerate(values, start=first)
        ]
    )


def values(broker: LogBroker, topic: str) -> list[bytes | None]:
    after = {partition: first for partition, (first, _) in broker.ends(topic).items()}
    return sorted((one.value for one in broker.read(topic, after=after, max_records=999)), key=repr)


def left(broker: LogBroker) -> list[bytes | None]:
    letters = read_dead_letters(broker, stream="pay", topic=DEAD.topic, max_records=999)
    return sorted((letter.record.value for letter in letters), key=repr)


def put_back(broker: LogBroker, choice: Choice = ALL) -> Redriven:
    return redrive(broker, stream="pay", topic=DEAD.topic, choice=choice)


@pytest.mark.slow
def test_letters_go_back_once(broker: LogBroker) -> None:
    bury(broker, b"a", b"b", b"c")

    assert put_back(broker) == (3, 0)
    assert put_back(broker) == (0, 0)
    assert values(broker, "in") == [b"a", b"b", b"c"]
    assert left(broker) == []


@pytest.mark.slow
def test_letters_that_come_meanwhile_are_left_also_of_another_partition(broker: LogBroker) -> None:
    bury(broker, b"a", first=1)
    bury(broker, b"b")
    put_back(broker)
    bury(broker, b"c", first=1)
    late = iter([b"d"])

    def monotonic() -> float:
        for value in late:
            bury(broker, value)
        return 0.0

    again = redrive(broker, stream="pay", topic=DEAD.topic, choice=ALL, monotonic=monotonic)

    assert again == (1, 0)
    assert left(broker) == [b"d"]


@pytest.mark.slow
def test_letters_of_another_error_are_there_afterwards(broker: LogBroker) -> None:
    bury(broker, b"a", b"b")
    bury(broker, b"c", code=b"UNAVAILABLE")
    choice = replace(ALL, code="UNAVAILABLE")

    assert put_back(broker, choice).redriven == 1
    assert values(broker, "in") == [b"c"]
    assert left(broker) == [b"a", b"b"]


@pytest.mark.slow
def test_a_limit_leaves_the_rest_for_the_next_time(broker: LogBroker) -> None:
    bury(broker, *(b"%d" % i for i in range(10)))
    choice = replace(ALL, limit=4)

    assert [put_back(broker, choice)[0] for _ in range(4)] == [4, 4, 2, 0]
    assert values(broker, "in") == [b"%d" % i for i in range(10)]


def test_a_span_ends_where_the_topic_does_now(broker: LogBroker) -> None:
    bury(broker, b"a", b"b", b"c")
    span = span_from(broker, [DEAD.topic], 0.0)
    bury(broker, b"d")

    assert (span.records, span.partitions) == (3, 2)
    assert not span.is_done(committed(broker, "g", [DEAD.topic]))
    broker.set_committed("g", dict(span.end))
    assert span.is_done(committed(broker, "g", [DEAD.topic]))


def test_a_span_of_nothing_is_done() -> None:
    assert OffsetRange(first={}, end={}).is_done({})
