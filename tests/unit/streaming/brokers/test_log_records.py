"""Records come out of a log as they went in, and are found by their time, whatever that is."""

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import InvalidArgumentError, NotFoundError
from headrace.streaming.brokers.log.records import (
    Catalogue,
    append,
    delete_expired,
    ends,
    offset_at,
    read,
)
from headrace.streaming.records import NewRecord, TopicPartition
from tests.unit.streaming.brokers.test_log_group import RETENTION_S, new_db

PLACE = TopicPartition("t", 0)
TIMES = st.integers(-5, 30).map(float)


def written(db: sqlite3.Connection, *times: float, size: int = 0) -> None:
    records = [
        NewRecord(topic="t", key=None, value=bytes(size), timestamp_s=at_s) for at_s in times
    ]
    append(db, Catalogue(), records, 0.0)


@given(batches=st.lists(st.lists(TIMES, min_size=1, max_size=5), max_size=8), at_s=TIMES)
def test_a_time_is_found_as_by_looking_at_every_record(
    batches: list[list[float]], at_s: float
) -> None:
    db = new_db(t=1)
    for times in batches:
        written(db, *times)
        db.execute("UPDATE segments SET bytes = 1 << 40")  # each batch begins a segment
    everything = [one for times in batches for one in times]
    slow = next((offset for offset, one in enumerate(everything) if one >= at_s), len(everything))

    found = offset_at(db, 1, at_s)
    db.close()

    assert found == slow


@given(
    st.lists(
        st.builds(
            NewRecord,
            topic=st.just("t"),
            key=st.none() | st.binary(max_size=8),
            value=st.none() | st.binary(max_size=8),
            headers=st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=5)), max_size=3).map(
                tuple
            ),
            partition=st.none() | st.integers(0, 2),
        ),
        max_size=20,
    )
)
def test_what_is_written_is_read(records: list[NewRecord]) -> None:
    db = new_db(t=3)
    topics = Catalogue()
    append(db, topics, records, 7.0)

    found = {
        number: read(db, TopicPartition("t", number), partition_id, offset=0, max_records=100)
        for number, partition_id in enumerate(topics.topic(db, "t").partitions)
    }
    db.close()

    out = [(one.key, one.value, one.headers) for some in found.values() for one in some]
    assert sorted(out, key=repr) == sorted(
        ((one.key, one.value, one.headers) for one in records), key=repr
    )
    for number, some in found.items():
        assert [one.offset for one in some] == list(range(len(some)))
        assert {one.timestamp_s for one in some} <= {7.0}
        said = [one.key for one in records if one.partition == number]
        assert len(said) <= len(some)


def test_a_read_holds_no_more_than_some_megabytes() -> None:
    db = new_db(t=1)
    written(db, *[1.0] * 50, size=1_000_000)

    found = read(db, PLACE, 1, offset=0, max_records=1000)
    db.close()

    assert 30 <= len(found) <= 40


def test_only_a_few_segments_are_forgotten_at_once() -> None:
    db = new_db(t=1)
    for _ in range(5):
        written(db, 1.0)
        db.execute("UPDATE segments SET bytes = 1 << 40")
    topic = Catalogue().topic(db, "t")
    kept = []
    for _ in range(4):
        delete_expired(db, topic, RETENTION_S + 1)
        first, following = ends(db, 1)
        kept.append(following - first)
    db.close()

    assert kept == [3, 1, 0, 0]


def test_a_partition_that_is_not_there_and_a_topic_that_is_not_there_are_named() -> None:
    db = new_db(t=2)
    with pytest.raises(InvalidArgumentError, match="topic t has no partition 2; it has 2"):
        append(db, Catalogue(), [NewRecord(topic="t", key=None, value=b"", partition=2)], 0.0)
    with pytest.raises(
        NotFoundError, match="topic 'u' does not exist in this log; existing topics: 't'"
    ):
        Catalogue().topic(db, "u")
    db.close()
