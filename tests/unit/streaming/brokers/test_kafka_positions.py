"""Kafka: positions of a member at its partitions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import UnavailableError
from headrace.streaming.broker import Membership, StartPosition
from headrace.streaming.brokers.kafka.offsets import Assigning, PartitionOffsets
from headrace.streaming.records import PartitionLag, Record, TopicPartition
from headrace.testing.virtual_time import TurnedClock

PLACE = TopicPartition("t", 0)
NOW_S = 1000.0


def record(offset: int) -> Record:
    """Written as many seconds after 0 as its offset says."""
    return Record(
        topic_partition=PLACE, offset=offset, key=None, value=None, timestamp_s=float(offset)
    )


def positions(start: int = 0) -> PartitionOffsets:
    held = PartitionOffsets()
    held.hold({PLACE: start})
    return held


def test_nothing_is_known_of_the_end_before_the_first_fetch() -> None:
    assert positions(5).lag(PLACE, -1, NOW_S) == PartitionLag(records=0, seconds=0.0)


def test_places_that_are_gone_are_done_without_harm() -> None:
    held = positions()
    held.drop([PLACE, TopicPartition("t", 1)])
    held.commit({PLACE: 3})
    held.reached_end(PLACE, 3)

    assert list(held) == []


@given(
    st.lists(st.integers(1, 5), max_size=30),
    st.lists(st.integers(0, 60), max_size=10).map(sorted),
    st.integers(0, 20),
    st.integers(0, 3),
)
def test_lag_is_what_a_slow_count_says(
    runs: list[int], dones: list[int], behind: int, markers: int
) -> None:
    """The end of what was read is reached, or is followed by markers of transactions."""
    held = positions()
    following = 0
    firsts = []
    for length in runs:
        held.delivered(record(following), following + length)
        firsts.append(following)
        following += length
    held.reached_end(PLACE, following + markers)
    done = 0
    for one in dones:
        done = min(one, following)
        held.commit({PLACE: done})

    lag = held.lag(PLACE, following + markers + behind, NOW_S)

    open_firsts = [
        first for first, length in zip(firsts, runs, strict=True) if first + length > done
    ]
    if open_firsts:
        assert lag.records == following + markers + behind - done
        assert lag.seconds == NOW_S - open_firsts[0]
    else:  # the markers are no records
        assert lag == PartitionLag(records=behind, seconds=None if behind else 0.0)


NONE = -1001  # what the client says of a place where a group never was
PLACES = [TopicPartition("t", number) for number in range(50)]


@dataclass
class Cluster:
    """What a consumer asks: it answers after `takes_s`, or not in time, as real ones do."""

    time: TurnedClock
    takes_s: float = 0.0
    kept: Callable[[], list[Any]] = list
    others: list[Any] = field(default_factory=list)
    """Committed offsets of partitions that other members read."""
    count: int = 2
    asked: int = 0
    timeouts: list[float] = field(default_factory=list)

    def committed(self, partitions: list[KafkaPartition], timeout: float) -> list[Any]:
        self._wait(timeout)
        kept = {p.partition: p for p in [*self.others, *self.kept()]}
        return [
            kept.get(p.partition, KafkaPartition(p.topic, p.partition, NONE)) for p in partitions
        ]

    def list_topics(self, topic: str, timeout: float) -> Any:  # noqa: ANN401  # has no type
        self._wait(timeout)
        return SimpleNamespace(
            topics={topic: SimpleNamespace(partitions=dict.fromkeys(range(self.count)))}
        )

    def get_watermark_offsets(self, _at: KafkaPartition, timeout: float) -> tuple[int, int] | None:
        try:
            self._wait(timeout)
        except KafkaException:
            return None  # this call of the client's raises nothing
        return 3, 9

    def _wait(self, timeout: float) -> None:
        self.asked += 1
        self.timeouts.append(timeout)
        self.time.turn(min(self.takes_s, timeout))
        if self.takes_s > timeout:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))


def assigning(time: TurnedClock, *, start: StartPosition) -> Assigning:
    return Assigning(
        membership=Membership(group="g", member="m", topics=("t",), start=start),
        is_cooperative=True,
        timeout_s=20.0,
        address="h:9092",
        clock=time,
        wait=time.turn,
    )


def starts(
    cluster: Cluster,
    partitions: list[TopicPartition],
    *,
    start: StartPosition = StartPosition.EARLIEST,
) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
    asks = assigning(cluster.time, start=start)
    return asks.starts(cast("Consumer", cluster), partitions, {}, until=asks.due())


def at(
    partition: TopicPartition, offset: int, code: int | None = None, *, count: str = ""
) -> "KafkaPartition | Refused":
    if code is None:
        return KafkaPartition(partition.topic, partition.partition, offset, count)
    return Refused(partition.topic, partition.partition, offset, KafkaError(code))


@dataclass
class Refused:
    """A place of an answer that has an error instead of an offset; the client's cannot be made."""

    topic: str
    partition: int
    offset: int
    error: KafkaError


UNSTABLE = KafkaError.UNSTABLE_OFFSET_COMMIT


@pytest.mark.parametrize(
    ("others", "start", "count"),
    [
        ([at(PLACES[0], 7, count="1")], 3, 1),  # this one was added later
        ([at(PLACES[0], 7)], 3, 0),  # an earlier version, or another program, read the topic
        ([at(PLACES[0], NONE, UNSTABLE), at(PLACES[2], 7, count="1")], 3, 1),
        ([at(PLACES[1], 7, count="2")], 7, 2),  # it goes on where it was
        ([at(PLACES[0], 7, count="3")], 9, 3),  # another member of the new group was faster
        ([], 9, 3),  # nobody has read the topic
    ],
)
def test_a_partition_that_was_added_begins_at_its_start_whatever_the_stream_says(
    others: list[Any], start: int, count: int
) -> None:
    cluster = Cluster(TurnedClock(), others=others, count=3)
    asks = assigning(cluster.time, start=StartPosition.LATEST)
    found, fresh = asks.starts(cast("Consumer", cluster), [PLACES[1]], {}, until=asks.due())

    assert found == {PLACES[1]: start}
    assert fresh == ({} if start == 7 else found)
    assert asks.counts == {"t": count}, "it is committed with each offset from now on"


def test_a_partition_that_has_records_and_returns_none_is_named() -> None:
    held = PartitionOffsets()
    held.hold({PLACES[0]: 5, PLACES[1]: 5, PLACES[2]: 5})
    held.reached_end(PLACES[1], 9)  # markers of transactions
    ends = {PLACES[0]: 9, PLACES[1]: 9, PLACES[2]: 5}

    assert held.stalled(ends, (), 0.0) is None
    assert held.stalled(ends, (), 10.0) == (PLACES[0], 5, 10.0)
    assert held.stalled(ends, [PLACES[0]], 20.0) is None, "it is paused"
    held.delivered(Record(topic_partition=PLACES[0], offset=5, key=None, value=None), following=8)
    assert held.stalled(ends, (), 30.0) is None


@pytest.mark.parametrize("takes_s", [1.0, 1e9])
def test_all_places_together_take_no_longer_than_a_poll_may(takes_s: float) -> None:
    cluster = Cluster(TurnedClock(), takes_s=takes_s)
    began = cluster.time.monotonic()

    with pytest.raises(UnavailableError, match=r"h:9092: cannot read the offsets of group 'g'"):
        starts(cluster, PLACES)

    assert 20.0 <= cluster.time.monotonic() - began <= 20.5
    assert cluster.asked < len(PLACES)
    assert max(cluster.timeouts) <= 5.0


def test_a_transaction_that_does_not_end_is_named() -> None:
    cluster = Cluster(TurnedClock(), kept=lambda: [at(PLACES[0], NONE, UNSTABLE)])

    with pytest.raises(UnavailableError, match=r"an open transaction covers it"):
        starts(cluster, PLACES[:1])
    assert cluster.asked <= 210, "it is not asked without a pause"
