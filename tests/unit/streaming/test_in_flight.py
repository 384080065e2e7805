"""Records under way: intake, batches in order, and tries again."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.core import (
    InvalidArgumentError,
    OverloadedError,
    PayloadTooLargeError,
    RuntimeFailedError,
    UnavailableError,
)
from headrace.core.spec.stream_parts import StreamErrorsSpec
from headrace.streaming.in_flight import MAX_BYTES, PrefetchBuffer, is_retryable, retry_at
from headrace.streaming.records import Record, TopicPartition


def some(count: int, *, first: int = 0, partition: int = 0) -> list[Record]:
    topic_partition = TopicPartition("in", partition)
    return [
        Record(topic_partition=topic_partition, offset=first + at, key=None, value=b"")
        for at in range(count)
    ]


def test_what_is_left_behind_waits_from_when_it_came() -> None:
    prefetch = PrefetchBuffer(max_batch_size=2, max_delay_s=1.0)
    prefetch.put(some(1), 10.0)
    prefetch.put(some(2, first=1), 10.5)
    prefetch.take()

    assert prefetch.due_at(is_free=True) == 11.5


def test_places_that_went_are_dropped_and_others_keep_their_order() -> None:
    prefetch = PrefetchBuffer(max_batch_size=9, max_delay_s=1.0)
    prefetch.put([*some(2), *some(1, partition=1)], 10.0)
    prefetch.put(some(2, first=2), 11.0)
    prefetch.put(some(1, first=1, partition=1), 12.0)
    prefetch.drop({TopicPartition("in", 0)})

    assert prefetch.due_at(is_free=True) == 11.0
    assert [record.offset for record in prefetch.take()] == [0, 1]


def test_few_large_records_leave_no_room_for_more() -> None:
    prefetch = PrefetchBuffer(max_batch_size=256, max_delay_s=0.0)
    large = Record(
        topic_partition=TopicPartition("in", 0), offset=0, key=None, value=bytes(MAX_BYTES)
    )
    none = Record(topic_partition=TopicPartition("in", 1), offset=0, key=None, value=None)
    prefetch.put([large, none], 0.0)
    full = prefetch.room
    prefetch.drop({TopicPartition("in", 0)})
    dropped = prefetch.room
    prefetch.put([large], 0.0)
    prefetch.take()

    assert (full, dropped, prefetch.room) == (0, 511, 512)


@given(
    steps=st.lists(st.integers(-1, 9), max_size=40),
    max_records=st.integers(1, 5),
)
def test_it_loses_repeats_and_reorders_nothing_and_keeps_its_size(
    steps: list[int], max_records: int
) -> None:
    prefetch = PrefetchBuffer(max_batch_size=max_records, max_delay_s=0.0)
    put = taken = 0
    for now, step in enumerate(steps):
        if step < 0:
            batch = prefetch.take()
            assert [record.offset for record in batch] == list(range(taken, taken + len(batch)))
            assert len(batch) == min(max_records, put - taken)
            taken += len(batch)
        else:
            count = min(step, prefetch.room)
            prefetch.put(some(count, first=put), float(now))
            put += count
        assert len(prefetch) == put - taken <= 2 * max_records
        assert (prefetch.due_at(is_free=True) is None) == (len(prefetch) == 0)


PATIENT = StreamErrorsSpec(first_delay_s=0.1, max_delay_s=2.0, retry_for_s=None)


@given(
    attempts=st.integers(1, 10_000),
    chance=st.floats(0, 1, exclude_max=True),
    retry_after_s=st.none() | st.floats(0, 100),
)
def test_pauses_stay_within_their_bounds(
    attempts: int, chance: float, retry_after_s: float | None
) -> None:
    again = retry_at(
        PATIENT, attempts=attempts, since=0.0, now=50.0, chance=chance, retry_after_s=retry_after_s
    )

    assert again is not None
    assert 50.05 <= again <= 52.0


def test_who_fails_may_ask_for_a_longer_pause() -> None:
    assert retry_at(PATIENT, attempts=1, since=0.0, now=0.0, chance=0.0, retry_after_s=1.5) == 1.5


def test_the_last_try_is_at_the_end_of_the_time() -> None:
    bounded = StreamErrorsSpec(first_delay_s=1.0, max_delay_s=8.0, retry_for_s=10.0)

    assert retry_at(bounded, attempts=4, since=0.0, now=7.0, chance=1.0) == 10.0
    assert retry_at(bounded, attempts=5, since=0.0, now=10.0, chance=1.0) is None


def test_what_is_away_or_overloaded_may_pass_and_what_is_wrong_may_not() -> None:
    assert is_retryable(UnavailableError("x"))
    assert is_retryable(OverloadedError("x", retry_after_s=1.0))
    assert not is_retryable(PayloadTooLargeError(limit_bytes=1))
    assert not is_retryable(InvalidArgumentError("x"))
    assert not is_retryable(RuntimeFailedError("x"))
