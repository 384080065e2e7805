"""Records of a stream: what it reads and writes at places of a log, and times in their fields.

Records are Structs: making two frozen dataclasses took most of the 10 µs that there are for a
record at 100,000 a second. They can be in no cycle, so the collector of garbage leaves them alone.
"""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

import msgspec

from headrace.core import InvalidArgumentError

Header = tuple[str, bytes]
MAX_TIME_S: Final = 253_402_300_800.0
"""The year 10000: no time is that late."""
_SHOWN: Final = 60


class TopicPartition(NamedTuple):
    """One ordered part of a topic. A broker without partitions has the partition 0 only."""

    topic: str
    partition: int


class Record(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A record that was read.

    `offset`: its position; those of one place ascend, gaps are possible. `timestamp_s`: when it was
    written, in Unix time, as the broker has it. `deliveries`: how often it was handed out, counting
    this time, where the broker counts; else 1.
    """

    topic_partition: TopicPartition
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()
    timestamp_s: float = 0.0
    deliveries: int = 1


class NewRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A record that is to be written.

    `partition`: None lets the key decide. `timestamp_s`: None for when it is written. `id`: the
    same for the same answer to the same input, so that a broker that drops what it has seen already
    writes it once; empty where there is none.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()
    partition: int | None = None
    timestamp_s: float | None = None
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionLag:
    """How far a group is behind at one place.

    `records`: that wait, the ones handed out and not done counted in. `seconds`: since the oldest
    of them was written; 0 where none waits, None where it is not known.
    """

    records: int
    seconds: float | None


def parse_seconds(text: str | bytes | None, default: float) -> float:
    """The number in a text that another producer may have written; `default` where it is none."""
    try:
        return default if text is None else float(text)
    except ValueError:
        return default


def unix_time(name: str, value: object) -> float:
    """The Unix time that field `name` holds: seconds, or ISO 8601 with a zone.

    Raises:
        InvalidArgumentError: It is neither, or not between 1970 and 10000.
    """
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value) if abs(value) < MAX_TIME_S else math.nan
    elif isinstance(value, datetime) and value.tzinfo is not None:
        number = value.timestamp()
    elif isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is not None and moment.tzinfo is not None:
            number = moment.timestamp()
    if 0 <= number < MAX_TIME_S:
        return number
    shown = "null" if value is None else repr(value)[:_SHOWN]
    msg = f"'{name}' is a time: Unix seconds or ISO 8601 with a zone, not {shown}"
    raise InvalidArgumentError(msg)
