"""Where a member begins to read, asked of a cluster that is slow, away, or in a transaction."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from headrace.core import UnavailableError
from headrace.streaming.broker import Membership, Start
from headrace.streaming.brokers.kafka_positions import Assigning
from headrace.streaming.records import Place
from headrace.testing.turned import TurnedClock

NONE = -1001  # what the client says of a place where a group never was
PLACES = [Place("t", number) for number in range(50)]


@dataclass
class Cluster:
    """What a consumer asks: it answers after `takes_s`, or not in time, as real ones do."""

    time: TurnedClock
    takes_s: float = 0.0
    kept: Callable[[], list[Any]] = list
    asked: int = 0
    timeouts: list[float] = field(default_factory=list)

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[Any]:
        self._wait(timeout)
        return self.kept() or [TopicPartition(p.topic, p.partition, NONE) for p in partitions]

    def get_watermark_offsets(self, _at: TopicPartition, timeout: float) -> tuple[int, int] | None:
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


def assigning(time: TurnedClock, *, start: Start) -> Assigning:
    return Assigning(
        membership=Membership(group="g", member="m", topics=("t",), start=start),
        is_cooperative=True,
        longest_s=20.0,
        address="h:9092",
        clock=time,
        wait=time.turn,
    )


def starts(
    cluster: Cluster, places: list[Place], *, start: Start = Start.EARLIEST
) -> tuple[dict[Place, int], dict[Place, int]]:
    asks = assigning(cluster.time, start=start)
    return asks.starts(cast("Consumer", cluster), places, {}, until=asks.due())


def at(place: Place, offset: int, code: int | None = None) -> "TopicPartition | Refused":
    if code is None:
        return TopicPartition(place.topic, place.partition, offset)
    return Refused(place.topic, place.partition, offset, KafkaError(code))


@dataclass
class Refused:
    """A place of an answer that has an error instead of an offset; the client's cannot be made."""

    topic: str
    partition: int
    offset: int
    error: KafkaError


def test_a_group_goes_on_where_it_was_and_begins_where_it_never_read() -> None:
    kept = [at(PLACES[0], 7), at(PLACES[1], NONE)]
    cluster = Cluster(TurnedClock(), kept=lambda: kept)

    found = starts(cluster, PLACES[:2])

    assert found == ({PLACES[0]: 7, PLACES[1]: 3}, {PLACES[1]: 3})
    assert starts(cluster, PLACES[:2], start=Start.LATEST)[0] == {PLACES[0]: 7, PLACES[1]: 9}


def test_all_places_together_take_no_longer_than_a_poll_may() -> None:
    cluster = Cluster(TurnedClock(), takes_s=1.0)
    began = cluster.time.monotonic()

    with pytest.raises(UnavailableError, match=r"h:9092: cannot find where group 'g' is"):
        starts(cluster, PLACES)

    assert cluster.time.monotonic() - began <= 20.0 + 0.1
    assert cluster.asked < len(PLACES)


def test_a_cluster_that_is_away_is_given_up_in_time() -> None:
    cluster = Cluster(TurnedClock(), takes_s=1e9)
    began = cluster.time.monotonic()

    with pytest.raises(UnavailableError, match="cannot find where group 'g' is"):
        starts(cluster, PLACES)

    assert 20.0 <= cluster.time.monotonic() - began <= 20.5
    assert max(cluster.timeouts) <= 5.0


def test_the_end_of_a_transaction_is_waited_for_and_not_taken_for_a_new_group() -> None:
    time = TurnedClock()

    def kept() -> list[Any]:
        if time.monotonic() < 10.0:
            return [at(PLACES[0], NONE, KafkaError.UNSTABLE_OFFSET_COMMIT)]
        return [at(PLACES[0], 7)]

    cluster = Cluster(time, kept=kept)

    assert starts(cluster, PLACES[:1]) == ({PLACES[0]: 7}, {})
    assert 10.0 <= time.monotonic() <= 10.3
    assert cluster.asked <= 110, "it is not asked without a pause"


def test_a_transaction_that_does_not_end_is_named() -> None:
    kept = [at(PLACES[0], NONE, KafkaError.UNSTABLE_OFFSET_COMMIT)]

    with pytest.raises(UnavailableError, match=r"a transaction that covers it is open"):
        starts(Cluster(TurnedClock(), kept=lambda: kept), PLACES[:1])
