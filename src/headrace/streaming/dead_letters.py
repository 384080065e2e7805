"""What is written of a record that has no answer: itself, and why."""

from typing import Final

from headrace.core import HeadraceError
from headrace.streaming.records import Header, NewRecord, Place, Record

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
HEADERS: Final = (TOPIC, PARTITION, OFFSET, TIMESTAMP, CODE, TEXT, ATTEMPTS, STREAM, TIME)
"""Of every dead letter. Times are Unix times, attempts those of all its lives."""
_LONGEST_TEXT: Final = 1000


def answer_id(stream: str, record: Record) -> str:
    """The same for every answer of a stream to one record."""
    return f"{answer_id_prefix(stream, record.place)}{record.offset}"


def answer_id_prefix(stream: str, place: Place) -> str:
    """What `answer_id` begins with for the records of a place; their offsets follow."""
    return f"{stream}/{place.topic}/{place.partition}/"


def dead_letter(
    record: Record, error: HeadraceError, *, topic: str, stream: str, attempts: int, now_s: float
) -> NewRecord:
    """`record` for the dead-letter topic, with its key, value and headers.

    One that was such a letter before has the headers of its last death only; attempts add up.

    Args:
        attempts: How often it was tried, this time.
        now_s: Unix time.
    """
    before = 0
    kept: list[Header] = []
    for name, value in record.headers:
        if name == ATTEMPTS and value.isdigit():
            before = int(value[:9])
        if name not in HEADERS:
            kept.append((name, value))
    about = {
        TOPIC: record.place.topic,
        PARTITION: str(record.place.partition),
        OFFSET: str(record.offset),
        TIMESTAMP: f"{record.timestamp_s:.3f}",
        CODE: str(error.code),
        TEXT: _one_line(str(error)),
        ATTEMPTS: str(before + attempts),
        STREAM: stream,
        TIME: f"{now_s:.3f}",
    }
    return NewRecord(
        topic=topic,
        key=record.key,
        value=record.value,
        headers=(*kept, *((name, value.encode()) for name, value in about.items())),
        id=f"{answer_id(stream, record)}/dead",
    )


def _one_line(text: str) -> str:
    """Brokers whose headers are lines take no other characters than printable ones."""
    short = text[:_LONGEST_TEXT]
    return "".join(c if c.isprintable() else " " for c in short)
