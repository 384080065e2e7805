"""Dead letters of a stream: written for failed records, listed, and redriven to their topic.

A dead letter is the record itself with headers for its origin and its error. A consumer group keeps
the offsets up to which dead letters were handled, so no dead letter is redriven twice. A dead
letter that is not selected moves to the end of the topic.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from headrace.core import Code, HeadraceError, InvalidArgumentError, UnavailableError
from headrace.streaming.broker import Broker, Delivery, Membership, StartPosition
from headrace.streaming.records import Header, NewRecord, Record, TopicPartition, parse_seconds

PREFIX: Final = "headrace-"
TOPIC: Final = "headrace-topic"
PARTITION: Final = "headrace-partition"
OFFSET: Final = "headrace-offset"
TIMESTAMP: Final = "headrace-timestamp"
CODE: Final = "headrace-error-code"
TEXT: Final = "headrace-error"
ATTEMPTS: Final = "headrace-attempts"
STREAM: Final = "headrace-stream"
TIME: Final = "headrace-time"
CUT: Final = "headrace-value-bytes"
"""Header of a dead letter that has only the beginning of its record: the size of the whole value.
"""
HEADERS: Final = (TOPIC, PARTITION, OFFSET, TIMESTAMP, CODE, TEXT, ATTEMPTS, STREAM, TIME)
"""Headers of every dead letter. Times are Unix times; attempts add up over redrives."""
CUT_BYTES: Final = 64 << 10
"""Largest value, and largest key, of a dead letter that is cut."""
_HEADERS_BYTES: Final = 8 << 10
_MAX_TEXT: Final = 1000
_OWN: Final = frozenset({*HEADERS, CUT})
_REMOVED: Final = _OWN - {ATTEMPTS}
"""Headers that a redriven record loses; attempts stay, so that they add up."""
_BATCH_SIZE: Final = 500
_POLL_S: Final = 0.5
_IDLE_S: Final = 3.0
"""Seconds without a record after which a read ends: offsets may have gaps."""
_TIMEOUT_S: Final = 30.0
_FLUSH_S: Final = 30.0


def size_bytes(record: NewRecord) -> int:
    """Return the size of a record's key, value and headers."""
    headers = sum(len(name) + len(value) for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers


def dead_letter(
    record: Record,
    error: HeadraceError,
    *,
    topic: str,
    stream: str,
    attempts: int,
    now_s: float,
    limit_bytes: int | None = None,
) -> NewRecord:
    """Return `record` as a dead letter, with its key, value and headers.

    A record that was a dead letter before keeps only the headers of its last failure; attempts add
    up. A dead letter that would exceed the limit has the beginning of its value, and neither the
    record's headers nor a long key.

    Args:
        attempts: How often it was tried this time.
        now_s: Unix time.
        limit_bytes: Size of the largest record that `topic` takes; None for no limit.
    """
    before = 0
    headers: list[Header] = []
    for name, value in record.headers:
        if name == ATTEMPTS and value.isdigit():
            before = int(value[:9])
        if name not in _OWN:
            headers.append((name, value))
    origin = {
        TOPIC: record.topic_partition.topic,
        PARTITION: str(record.topic_partition.partition),
        OFFSET: str(record.offset),
        TIMESTAMP: f"{record.timestamp_s:.3f}",
        CODE: str(error.code),
        # Brokers whose headers are lines take printable characters only.
        TEXT: "".join(c if c.isprintable() else " " for c in str(error)[:_MAX_TEXT]),
        ATTEMPTS: str(before + attempts),
        STREAM: stream,
        TIME: f"{now_s:.3f}",
    }
    letter = NewRecord(
        topic=topic,
        key=record.key,
        value=record.value,
        headers=(*headers, *((name, value.encode()) for name, value in origin.items())),
        source=record,
    )
    if limit_bytes is None or size_bytes(letter) <= limit_bytes:
        return letter
    origin[CUT] = str(len(record.value or b""))
    room = min(max(limit_bytes - _HEADERS_BYTES, 0) // 2, CUT_BYTES)
    return msgspec.structs.replace(
        letter,
        key=record.key if len(record.key or b"") <= room else None,
        value=record.value and record.value[:room],
        headers=tuple((name, value.encode()) for name, value in origin.items()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A dead letter with its parsed headers; empty or None if another producer omitted them."""

    record: Record
    topic: str
    partition: int | None
    offset: int | None
    code: str
    error: str
    stream: str
    attempts: int | None
    died_s: float | None
    is_cut: bool = False
    """Whether it has only the beginning of its record, which was too large for the topic."""


def parse_dead_letter(record: Record) -> DeadLetter:
    """Return a record of a dead-letter topic with its parsed headers."""
    headers = {name: value.decode("utf-8", "replace") for name, value in record.headers}
    return DeadLetter(
        record=record,
        topic=headers.get(TOPIC, ""),
        partition=_number(headers.get(PARTITION)),
        offset=_number(headers.get(OFFSET)),
        code=headers.get(CODE, ""),
        error=headers.get(TEXT, ""),
        stream=headers.get(STREAM, ""),
        attempts=_number(headers.get(ATTEMPTS)),
        died_s=parse_seconds(headers.get(TIME), None),
        is_cut=CUT in headers,
    )


def redrive_group(stream: str) -> str:
    """Return the group whose offsets mark the handled dead letters."""
    return f"{stream}-redrive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Selection of dead letters to redrive."""

    code: str
    """Only those with this error code; empty for all."""
    limit: int | None
    """Maximum number; None for all."""
    partitions: Mapping[str, int]
    """Number of partitions of each source topic; dead letters of other topics are deferred."""

    def takes(self, dead_letter: DeadLetter) -> bool:
        """Return whether a dead letter is selected; one that was cut cannot be redriven."""
        is_whole = dead_letter.topic in self.partitions and not dead_letter.is_cut
        return is_whole and self.code in {"", dead_letter.code}


class Redriven(NamedTuple):
    """Numbers of dead letters that were redriven, and that were deferred."""

    redriven: int
    deferred: int


@dataclass(slots=True, kw_only=True)
class RedriveStep:
    """Records to write, and the offsets to commit with them; two counts."""

    records: list[NewRecord] = field(default_factory=list)
    offsets: dict[TopicPartition, int] = field(default_factory=dict)
    redriven: int = 0
    deferred: int = 0


def plan_redrive(
    records: Sequence[Record], choice: Choice, *, ends: Mapping[TopicPartition, int], redriven: int
) -> RedriveStep:
    """Return what to do with the next dead letters: redrive them, or move them to the end.

    Args:
        ends: End offsets at the start: later records are not handled, so that a record that fails
            again meanwhile is not redriven forever.
        redriven: Number of dead letters redriven so far.
    """
    step = RedriveStep()
    for record in records:
        if record.offset >= ends.get(record.topic_partition, 0):
            continue
        if choice.limit is not None and redriven + step.redriven >= choice.limit:
            break
        dead_letter = parse_dead_letter(record)
        (topic, number), headers = record.topic_partition, record.headers
        if choice.takes(dead_letter):
            # The original record, to its source partition if that still exists.
            topic = dead_letter.topic
            source = range(choice.partitions[topic])
            partition = dead_letter.partition if dead_letter.partition in source else None
            headers = tuple(header for header in headers if header[0] not in _REMOVED)
            step.redriven += 1
        else:
            partition = number
            step.deferred += 1
        step.records.append(
            NewRecord(
                topic=topic,
                key=record.key,
                value=record.value,
                headers=headers,
                partition=partition,
                source=record,
            )
        )
        step.offsets[record.topic_partition] = record.offset + 1
    return step


def count(dead_letters: Iterable[DeadLetter], choice: Choice) -> int:
    """Return how many of these dead letters `choice` selects."""
    matching = sum(choice.takes(dead_letter) for dead_letter in dead_letters)
    return matching if choice.limit is None else min(matching, choice.limit)


def check_code(code: str) -> str:
    """Return `code` in upper case; empty for none.

    Raises:
        InvalidArgumentError: No error has this code.
    """
    requested = code.strip().upper()
    if requested and requested not in [*Code]:
        message = f"'{code[:60]}' is not an error code; known codes: {', '.join(Code)}"
        raise InvalidArgumentError(message)
    return requested


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text[:18].isdigit() else None


def read_dead_letters(
    broker: Broker, *, stream: str, topic: str, max_records: int
) -> list[DeadLetter]:
    """Return dead letters that were not handled yet, the oldest of each partition first.

    Raises:
        HeadraceError: The topic does not exist, or the broker cannot be reached.
    """
    after = {p: first for p, (first, _) in _remaining(broker, stream, topic).items()}
    return [
        parse_dead_letter(record)
        for record in broker.read(topic, after=after, max_records=max_records)
    ]


def redrive(
    broker: Broker,
    *,
    stream: str,
    topic: str,
    choice: Choice,
    monotonic: Callable[[], float] = time.monotonic,
) -> Redriven:
    """Move dead letters back to their source topics.

    Where the broker supports exactly-once delivery, writing a record and committing its offset are
    one step; elsewhere a crash in between may redrive it twice.

    Raises:
        ConflictError: Another redrive of this stream is running.
        HeadraceError: The broker cannot be reached, or refuses the request.
    """
    left = _remaining(broker, stream, topic)
    if not left:
        return Redriven(0, 0)
    group = redrive_group(stream)
    exact = bool(broker.abilities.exactly_once)
    membership = Membership(
        group=group,
        member=group,
        topics=(topic,),
        delivery=Delivery.EXACTLY_ONCE if exact else Delivery.AT_LEAST_ONCE,
        start=StartPosition.EARLIEST,
    )
    listener = _Listener()
    session = broker.join(membership, listener)
    redriven = deferred = 0
    positions = {partition: first for partition, (first, _) in left.items()}
    ends = {partition: end for partition, (_, end) in left.items()}
    received_at = monotonic()
    try:
        while positions != ends and (choice.limit is None or redriven < choice.limit):
            records = session.poll(_BATCH_SIZE, _POLL_S)
            now = monotonic()
            if not records:
                if listener.has_partitions and not session.problem and now - received_at > _IDLE_S:
                    break
                if now - received_at > _TIMEOUT_S:
                    reason = session.problem or "the broker returns no records to this group"
                    raise UnavailableError(f"cannot read the dead letters: {reason}")
                continue
            received_at = now
            step = plan_redrive(records, choice, ends=ends, redriven=redriven)
            if step.offsets:
                session.produce(step.records, step.offsets)
            redriven, deferred = redriven + step.redriven, deferred + step.deferred
            positions |= step.offsets
            for record in records:  # a record beyond the end shows that all before it were read
                end = ends.get(record.topic_partition)
                if end is not None and record.offset >= end:
                    positions[record.topic_partition] = end
        if not session.flush(_FLUSH_S):
            raise UnavailableError(f"redriven records are not acknowledged yet: {session.problem}")
    finally:
        session.close()
    return Redriven(redriven, deferred)


class _Listener:
    """Rebalance listener that remembers whether partitions were assigned."""

    def __init__(self) -> None:
        self.has_partitions = False

    def on_assigned(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, int] | None:
        self.has_partitions = self.has_partitions or bool(partitions)
        return None

    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Do nothing: all handled records were produced."""

    def on_lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Do nothing: all handled records were produced."""


def _remaining(broker: Broker, stream: str, topic: str) -> dict[TopicPartition, tuple[int, int]]:
    """Return the first unhandled and the end offset of each partition that has dead letters."""
    dealt = broker.committed(redrive_group(stream), topic)
    return {
        partition: (start, end)
        for partition, (first, end) in broker.ends(topic).items()
        if (start := max(first, dealt.get(partition, first))) < end
    }
