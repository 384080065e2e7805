"""Messages of a consumer as records: taken, or put aside while nobody takes any."""

from collections import deque
from collections.abc import Sequence
from itertools import groupby
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from headrace.streaming.brokers.kafka_errors import (
    MAX_POLL_EXCEEDED,
    PARTITION_EOF,
    SHOULD_WAIT,
    error_of,
    failure,
)
from headrace.streaming.brokers.kafka_health import Health
from headrace.streaming.brokers.kafka_positions import Positions
from headrace.streaming.brokers.kafka_records import Places, records_of
from headrace.streaming.records import Place, Record

_MOST_ASIDE: Final = 200
_NO_ERRORS: Final = frozenset({type(None)})


class KafkaSource:
    """What a member reads. A consumer lives by being polled, also while nobody takes records."""

    def __init__(
        self, consumer: Consumer, positions: Positions, health: Health, *, address: str
    ) -> None:
        self.places = Places()
        self._consumer = consumer
        self._positions = positions
        self._health = health
        self._address = address
        self._paused: set[Place] = set()
        self._is_held = False
        self._aside: deque[Record] = deque()

    def take(self, most: int, part_s: float) -> list[Record]:
        """At most so many, after at most so long."""
        if self._aside:
            found = self._from_aside(most)
            if found:
                return found
        if self._is_held and not self._aside:
            self._hold(is_held=False)
        return self._polled(most, part_s)

    def put_aside(self) -> None:
        """Serve the consumer without handing out what it may give: the next `take` does."""
        if len(self._aside) >= _MOST_ASIDE and not self._is_held:
            self._hold(is_held=True)
        self._aside += self._polled(1, 0)

    def pause(self, places: Sequence[Place]) -> None:
        """Hand out nothing of these."""
        fresh = [
            place for place in places if place in self._positions and place not in self._paused
        ]
        self._paused.update(fresh)
        if fresh and not self._is_held:
            self._consumer.pause([TopicPartition(*place) for place in fresh])

    def resume(self, places: Sequence[Place]) -> None:
        """The contrary."""
        again = [place for place in places if place in self._paused]
        self._paused.difference_update(again)
        if again and not self._is_held:
            self._consumer.resume([TopicPartition(*place) for place in again])

    def gained(self, places: Sequence[Place]) -> None:
        """These are read from now on."""
        if self._is_held:
            self._consumer.pause([TopicPartition(*one) for one in places])

    def drop(self, places: Sequence[Place]) -> None:
        """These are read no more."""
        gone = set(places)
        self._aside = deque(one for one in self._aside if one.place not in gone)
        self._paused -= gone

    def _polled(self, most: int, part_s: float) -> list[Record]:
        try:
            first = self._consumer.poll(part_s)
            if first is None:
                return []
            messages = [first]
            if most > 1:
                messages += self._consumer.consume(most - 1, 0)
        except KafkaException as error:
            self._health.ends(failure(error_of(error), doing="read", address=self._address))
            return []
        found = self._records(messages)
        if found:
            self._health.answered()
        return found

    def _records(self, messages: Sequence[Message]) -> list[Record]:
        """Without those of places that went away meanwhile."""
        errors = [message.error() for message in messages]
        if not _NO_ERRORS.issuperset(map(type, errors)):  # an error is not comparable with None
            for error, message in zip(errors, messages, strict=True):
                if error is not None:
                    self._read_failed(error, message)
            messages = [message for message in messages if message.error() is None]
        topics = [message.topic() for message in messages]
        partitions = [message.partition() for message in messages]
        count = len(messages)
        if count and partitions.count(partitions[0]) == count and topics.count(topics[0]) == count:
            return self._run(messages, self.places[topics[0], partitions[0]])
        records: list[Record] = []
        first = 0
        for key, run in groupby(zip(topics, partitions, strict=True)):
            end = first + sum(1 for _ in run)
            records += self._run(messages[first:end], self.places[key])
            first = end
        return records

    def _run(self, messages: Sequence[Message], place: Place) -> list[Record]:
        """The records of one place; none if it went away meanwhile."""
        if place not in self._positions:
            return []
        records = records_of(messages, place)
        self._positions.handed_out(records[0], records[-1].offset + 1)
        return records

    def _read_failed(self, error: KafkaError, message: Message) -> None:
        code = error.code()
        if code == PARTITION_EOF:
            offset = message.offset()
            assert offset is not None
            self._positions.reached_end(self.places[message.topic(), message.partition()], offset)
        elif error.fatal():
            self._health.failed(error)
        elif code not in SHOULD_WAIT and code != MAX_POLL_EXCEEDED and not error.retriable():
            topic = message.topic()
            doing = f"read topic '{topic}'" if topic else "read"
            self._health.ends(failure(error, doing=doing, address=self._address))

    def _from_aside(self, most: int) -> list[Record]:
        found: list[Record] = []
        kept: deque[Record] = deque()
        for record in self._aside:
            is_next = len(found) < most and record.place not in self._paused
            (found if is_next else kept).append(record)
        self._aside = kept
        return found

    def _hold(self, *, is_held: bool) -> None:
        """Let the client fetch nothing of any place, or again of those that are not paused."""
        self._is_held = is_held
        places = [TopicPartition(*one) for one in self._positions if one not in self._paused]
        if places:
            (self._consumer.pause if is_held else self._consumer.resume)(places)
