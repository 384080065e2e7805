"""Which dead letters are put back, and that none is twice."""

import pytest

from headrace.core import Code, HeadraceError, InvalidArgumentError
from headrace.streaming.dead_letters import (
    ATTEMPTS,
    HEADERS,
    Choice,
    check_code,
    count,
    dead_letter,
    parse_dead_letter,
    plan_redrive,
)
from headrace.streaming.records import Record, TopicPartition

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


def test_a_letter_says_where_it_was_and_why_it_died() -> None:
    found = parse_dead_letter(letter(3))

    assert (found.topic, found.partition, found.offset) == ("in", 1, 103)
    assert (found.code, found.error, found.died_s) == (
        "INVALID_ARGUMENT",
        "is INVALID_ARGUMENT",
        12.5,
    )
    assert (found.stream, found.attempts) == ("pay", 2)


def test_what_another_wrote_there_is_a_letter_without_a_word() -> None:
    headers = (("headrace-partition", b"x"), ("headrace-time", b"\xff"))
    found = parse_dead_letter(
        Record(topic_partition=DEAD, offset=0, key=None, value=b"v", headers=headers)
    )

    assert (found.topic, found.partition, found.died_s, found.code) == ("", None, None, "")


def test_a_letter_goes_back_as_the_record_it_was_to_its_partition() -> None:
    [back] = plan_redrive([letter(3)], ALL, ends={DEAD: 9}, redriven=0).records

    assert (back.topic, back.partition, back.key, back.value) == ("in", 1, b"k", b"v3")
    assert [name for name, _ in back.headers if name in HEADERS] == [ATTEMPTS]
    assert ("traceparent", b"t") in back.headers


def test_a_partition_that_is_gone_leaves_it_to_the_key() -> None:
    [back] = plan_redrive([letter(3, partition=7)], ALL, ends={DEAD: 9}, redriven=0).records

    assert back.partition is None


def test_letters_of_other_errors_move_to_the_end_as_they_are() -> None:
    choice = Choice(code="UNAVAILABLE", limit=None, partitions={"in": 2})
    letters = [letter(0), letter(1, code=Code.UNAVAILABLE)]
    step = plan_redrive(letters, choice, ends={DEAD: 2}, redriven=0)
    kept, back = step.records

    assert (kept.topic, kept.headers) == (DEAD.topic, letters[0].headers)
    assert back.topic == "in"
    assert (step.redriven, step.deferred, step.offsets) == (1, 1, {DEAD: 2})


def test_a_letter_of_a_topic_that_the_stream_does_not_read_goes_nowhere() -> None:
    step = plan_redrive([letter(0, topic="payroll")], ALL, ends={DEAD: 1}, redriven=0)

    assert [record.topic for record in step.records] == [DEAD.topic]
    assert step.redriven == 0


def test_what_came_after_the_start_is_left_for_another_time() -> None:
    step = plan_redrive([letter(0), letter(1), letter(2)], ALL, ends={DEAD: 2}, redriven=0)

    assert (step.redriven, step.offsets) == (2, {DEAD: 2})


def test_a_limit_counts_those_that_were_put_back_before() -> None:
    choice = Choice(code="", limit=3, partitions={"in": 2})
    step = plan_redrive([letter(i) for i in range(5)], choice, ends={DEAD: 5}, redriven=2)

    assert (step.redriven, step.offsets) == (1, {DEAD: 1})


def test_a_count_knows_filter_and_limit() -> None:
    letters = [parse_dead_letter(letter(i)) for i in range(5)]

    assert count(letters, ALL) == 5
    assert count(letters, Choice(code="", limit=2, partitions={"in": 2})) == 2
    assert count(letters, Choice(code="UNAVAILABLE", limit=None, partitions={"in": 2})) == 0


def test_a_code_is_found_in_any_case_and_a_strange_one_is_told() -> None:
    known = [str(code) for code in Code]

    assert check_code(" invalid_argument", known) == "INVALID_ARGUMENT"
    with pytest.raises(InvalidArgumentError, match="UNAVAILABLE"):
        check_code("teapot", known)
