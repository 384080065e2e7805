"""What is written of a record: an answer, a dead letter, or nothing."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.core import InvalidArgumentError
from headrace.core.spec.stream_parts import FailurePolicy, StreamOutputSpec, Timestamps
from headrace.streaming.codec import EncodedAnswer
from headrace.streaming.dead_letters import (
    HEADERS,
    dead_letter,
    parse_dead_letter,
    size_bytes,
)
from headrace.streaming.in_flight import FailedRecord
from headrace.streaming.records import NewRecord, Record, TopicPartition
from headrace.streaming.settings import WorkerSettings
from headrace.streaming.writer import ResultWriter, TooOldError
from tests.unit.streaming.parts import record
from tests.unit.streaming.world import DEAD, OUT, settings, writer

REASON = InvalidArgumentError("no\nsuch\tfield: " + "x" * 5000)
WITH_ALL = settings(output=StreamOutputSpec(headers="all"))


def test_an_answer_keeps_the_headers_that_were_asked_for_and_names_its_source() -> None:
    one = record(b"v", offset=7, headers=(("kept", b"1"), ("other", b"2")))
    (found,) = writer().outcomes([one], [EncodedAnswer(b"k", b"a")], attempts=1, now_s=5.0)

    assert found == NewRecord(
        topic=OUT,
        key=b"k",
        value=b"a",
        headers=(("kept", b"1"),),
        timestamp_s=one.timestamp_s,
        source=one,
    )


def test_an_answer_has_the_timestamp_of_its_record_or_the_time_of_writing() -> None:
    old = record(b"v", timestamp_s=3.25)
    of_now = settings(output=StreamOutputSpec(timestamps=Timestamps.NOW))

    assert answered(WITH_ALL, old).timestamp_s == 3.25
    assert answered(WITH_ALL, record(b"v", timestamp_s=0.0)).timestamp_s is None
    assert answered(of_now, old).timestamp_s is None


def test_all_headers_are_kept_but_the_attempts_of_the_input() -> None:
    headers = (("b", b"1"), ("a", b""), ("b", b"2"), ("headrace-topic", b"t"))
    one = record(b"v", headers=(*headers, ("headrace-attempts", b"2")))

    assert answered(WITH_ALL, one).headers == headers


def answered(told: WorkerSettings, one: Record) -> NewRecord:
    (found,) = ResultWriter(told).outcomes(
        [one], [EncodedAnswer(b"k", b"a")], attempts=1, now_s=5.0
    )
    assert isinstance(found, NewRecord)
    return found


def test_a_dead_letter_is_the_record_and_says_where_it_was_and_why_it_died() -> None:
    one = record(b"v", offset=7, key=b"k", headers=(("other", b"2"),), timestamp_s=3.25)
    (found,) = writer().outcomes([one], [REASON], attempts=4, now_s=5.5)

    assert isinstance(found, FailedRecord)
    letter = found.dead_letter
    assert letter is not None
    assert (letter.topic, letter.key, letter.value, letter.source) == (DEAD, b"k", b"v", one)
    headers = dict(letter.headers)
    text = headers.pop("headrace-error").decode()
    assert headers == {
        "other": b"2",
        "headrace-topic": b"in",
        "headrace-partition": b"0",
        "headrace-offset": b"7",
        "headrace-timestamp": b"3.250",
        "headrace-error-code": b"INVALID_ARGUMENT",
        "headrace-attempts": b"4",
        "headrace-stream": b"s",
        "headrace-time": b"5.500",
    }
    parsed = parse_dead_letter(record(b"v", headers=letter.headers))
    assert (parsed.topic, parsed.partition, parsed.offset, parsed.died_s) == ("in", 0, 7, 5.5)
    assert (parsed.code, parsed.error) == ("INVALID_ARGUMENT", text)
    assert (parsed.stream, parsed.attempts, parsed.is_cut) == ("s", 4, False)
    assert text.startswith("no such field: xxx")
    assert len(text) == 1000
    assert text.isprintable()


def test_who_dies_twice_has_the_headers_of_the_last_death_and_all_attempts() -> None:
    first = dead_letter(record(b"v"), REASON, topic=DEAD, stream="s", attempts=2, now_s=1.0)
    again = Record(
        topic_partition=TopicPartition("redriven", 3),
        offset=9,
        key=None,
        value=b"v",
        headers=first.headers,
    )
    second = dead_letter(again, REASON, topic=DEAD, stream="s", attempts=3, now_s=2.0)

    assert len(second.headers) == len(HEADERS)
    headers = dict(second.headers)
    assert headers["headrace-attempts"] == b"5"
    assert headers["headrace-topic"] == b"redriven"


def test_a_strange_count_of_attempts_is_not_believed() -> None:
    odd = record(b"v", headers=(("headrace-attempts", b"-1e9"),))
    found = dead_letter(odd, REASON, topic=DEAD, stream="s", attempts=1, now_s=1.0)

    assert dict(found.headers)["headrace-attempts"] == b"1"


def test_an_answer_that_the_topic_does_not_take_is_a_dead_letter() -> None:
    limited = ResultWriter(WITH_ALL, {OUT: 10})
    records = [record(b"v"), record(b"v", headers=(("name", b"value"),))]
    (fits, headers_too_many) = limited.outcomes(
        records, [EncodedAnswer(b"k", bytes(9))] * 2, attempts=1, now_s=5.0
    )
    (too_large,) = limited.outcomes(
        records[:1], [EncodedAnswer(b"k", bytes(10))], attempts=1, now_s=5.0
    )

    assert isinstance(fits, NewRecord)
    assert isinstance(headers_too_many, FailedRecord)
    assert isinstance(too_large, FailedRecord)
    assert str(too_large.error).startswith(f"the answer has 11 bytes, but topic '{OUT}' takes")


@given(
    st.integers(0, 1 << 18), st.integers(0, 1 << 18), st.integers(0, 1 << 12), st.integers(14, 18)
)
def test_a_dead_letter_fits_its_topic_and_one_that_was_cut_says_so(
    value: int, key: int, header: int, power: int
) -> None:
    limit_bytes = 1 << power
    whole = record(bytes(value), key=bytes(key), headers=(("other", bytes(header)),))
    letter = dead_letter(
        whole, REASON, topic=DEAD, stream="s", attempts=1, now_s=1.0, limit_bytes=limit_bytes
    )
    is_cut = parse_dead_letter(record(b"", headers=letter.headers)).is_cut

    assert size_bytes(letter) <= limit_bytes
    assert {*HEADERS} <= {name for name, _ in letter.headers}
    assert is_cut or (letter.value, letter.key) == (whole.value, whole.key)
    if is_cut:
        assert dict(letter.headers)["headrace-value-bytes"] == b"%d" % value
        assert size_bytes(letter) >= min(limit_bytes // 8, value)


def test_what_is_too_old_stops_no_stream_and_what_is_skipped_is_not_written() -> None:
    one, stops, skips = record(b"v"), writer(FailurePolicy.STOP), writer(FailurePolicy.SKIP)

    assert stops.failed(one, REASON, attempts=1, now_s=1.0).stops
    assert not stops.failed(one, TooOldError("old"), attempts=1, now_s=1.0).stops
    assert skips.failed(one, REASON, attempts=1, now_s=1.0) == FailedRecord(error=REASON)
