"""How do records cross between us and Kafka's client?"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from headrace.core import InvalidArgumentError, UnavailableError
from headrace.core.clock import Clock
from headrace.streaming.brokers.kafka_errors import error_of, failure
from headrace.streaming.records import Header, NewRecord, Place, Record

_MILLISECONDS: Final = 1000
_ANY_PARTITION: Final = -1
_LONGEST_FULL_S: Final = 30.0
_FULL_STEP_S: Final = 0.02
_SEND_S: Final = 0.001
"""The client's shortest flush. It sends all that is queued; it need not outlast the answers."""
_LAST_MS: Final = (1 << 63) - 1
_TOO_LARGE: Final = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})

Report = Callable[[KafkaError | None, Message], None]


class Places(dict[tuple[str | None, int | None], Place]):
    """Makes each place once: making it anew for each record would cost as much as the record."""

    def __missing__(self, key: tuple[str | None, int | None]) -> Place:
        topic, partition = key
        assert topic is not None
        assert partition is not None
        place = self[key] = Place(topic, partition)
        return place


def records_of(messages: Sequence[Message], place: Place) -> list[Record]:
    """What was read of a place. In one piece, as calls would cost as much as the records."""
    return [
        Record(
            place=place,
            offset=message.offset(),  # type: ignore[arg-type]  # what was read has one
            key=message.key(),
            value=message.value(),
            headers=_headers(headers) if (headers := message.headers()) else (),
            timestamp_s=at_ms / _MILLISECONDS if (at_ms := message.timestamp()[1]) > 0 else 0.0,
        )
        for message in messages
    ]


def _headers(found: Any) -> tuple[Header, ...]:  # noqa: ANN401  # a list, when it is read
    return tuple([(name, value or b"") for name, value in found])


def milliseconds(at_s: float) -> int:
    """Kafka's time; rounded up, so that what is asked for by time is of that time or later."""
    if not math.isfinite(at_s):
        raise InvalidArgumentError(f"a time has to be a Unix time, not {at_s}")
    return min(max(math.ceil(at_s * _MILLISECONDS), 0), _LAST_MS)


def check_new(records: Sequence[NewRecord], *, limit_bytes: int) -> None:
    """Raises InvalidArgumentError for a record that Kafka would not take."""
    for record in records:
        size = len(record.value or b"") + len(record.key or b"")
        if size > limit_bytes:
            raise _too_large(record, limit_bytes)
        if record.timestamp_s is not None and not 0 <= record.timestamp_s < math.inf:
            message = f"a record for {record.topic} is of the time {record.timestamp_s}"
            raise InvalidArgumentError(message)


class Writing:
    """Puts records into a producer's queue, and waits where it is full.

    Args:
        lingers: Whether the user chose how long records wait for others: `send_now` does nothing.
    """

    def __init__(
        self,
        producer: Producer,
        *,
        limit_bytes: int,
        address: str,
        clock: Clock,
        lingers: bool = False,
    ) -> None:
        self._producer = producer
        self._lingers = lingers
        self._limit_bytes = limit_bytes
        self._address = address
        self._clock = clock

    def put(self, records: Sequence[NewRecord], report: Report) -> None:
        """Queue them, in order.

        Args:
            report: Hears of each record that was not written, within `serve`. The client lets go
                of it when all of them are written or reported.

        Raises:
            HeadraceError: One cannot be written; those before it are under way.
        """
        produce = self._producer.produce
        last_s: float | None = None
        at_ms = 0
        for record in records:
            partition, at_s = record.partition, record.timestamp_s
            if at_s != last_s:  # neighbours often share their time
                last_s = at_s
                # 0 means now to the client, so the first millisecond of 1970 cannot be written.
                # Rounded, as a float of whole milliseconds may be a little more or less.
                at_ms = 0 if at_s is None else round(at_s * _MILLISECONDS)
                if at_s is not None and not 0 < at_ms <= _LAST_MS:
                    at_ms = min(max(at_ms, 1), _LAST_MS)
            if partition is None:
                partition = _ANY_PARTITION
            topic, value, key = record.topic, record.value, record.key
            headers = record.headers
            try:
                # By position: names cost a third of the call, unpacking a tenth.
                if headers:
                    produce(topic, value, key, partition, report, None, at_ms, list(headers))
                else:
                    produce(topic, value, key, partition, report, None, at_ms)
            except BufferError:
                self._wait_for_room()
                self.put([record], report)
            except KafkaException as error:
                raise self.failed(error_of(error), record) from error

    def serve(self, timeout_s: float = 0.0) -> None:
        """Hear what became of records.

        Raises:
            HeadraceError: The producer can go on no more; its client raises that from here.
        """
        try:
            self._producer.poll(timeout_s)
        except KafkaException as error:
            raise failure(error_of(error), doing="write", address=self._address) from error

    def send_now(self) -> None:
        """End the wait of queued records for others; takes at most 1 ms.

        Raises:
            HeadraceError: As `serve`.
        """
        if self._lingers:
            return
        try:
            self._producer.flush(_SEND_S)
        except KafkaException as error:
            raise failure(error_of(error), doing="write", address=self._address) from error

    def _wait_for_room(self) -> None:
        until = self._clock.monotonic() + _LONGEST_FULL_S
        before = len(self._producer)
        while len(self._producer) >= before:
            if self._clock.monotonic() >= until:
                message = (
                    f"Kafka at {self._address} has taken nothing for {_LONGEST_FULL_S:g} s, and "
                    f"no more than {before} records may wait for it"
                )
                raise UnavailableError(message)
            self.serve(_FULL_STEP_S)

    def failed(self, error: KafkaError, record: NewRecord | None, topic: str = "") -> Exception:
        """What to raise for a record that was not written."""
        name = topic if record is None else record.topic
        if error.code() in _TOO_LARGE and record is not None:
            return _too_large(record, self._limit_bytes)
        where = f"write to topic '{name}'"
        if record is not None and record.partition is not None:
            where = f"write to partition {record.partition} of topic '{name}'"
        if error.code() in _TOO_LARGE:
            where += (
                f" a record within our own limit of {self._limit_bytes} bytes, over the topic's,"
            )
        return failure(error, doing=where, address=self._address)


def partitions_of(offsets: dict[Place, int]) -> list[TopicPartition]:
    """As the client wants them."""
    return [TopicPartition(topic, number, at) for (topic, number), at in offsets.items()]


def _too_large(record: NewRecord, limit_bytes: int) -> InvalidArgumentError:
    size = len(record.value or b"") + len(record.key or b"")
    size += sum(len(name) + len(value) for name, value in record.headers)
    message = (
        f"a record of {size} bytes for {record.topic} exceeds the limit of {limit_bytes} bytes, "
        "its frame counted in; allow more by ?message.max.bytes= here and max.message.bytes of the "
        "topic, or put what is large elsewhere and its address here"
    )
    return InvalidArgumentError(message)
