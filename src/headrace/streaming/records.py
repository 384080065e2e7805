"""What a stream reads and writes: records at places of a log."""

from dataclasses import dataclass
from typing import NamedTuple

Header = tuple[str, bytes]


class Place(NamedTuple):
    """One ordered part of a topic. A broker without partitions has the partition 0 only."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record that was read.

    `offset`: its position; those of one place ascend, gaps are possible. `timestamp_s`: when it was
    written, in Unix time, as the broker has it. `deliveries`: how often it was handed out, counting
    this time, where the broker counts; else 1.
    """

    place: Place
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()
    timestamp_s: float = 0.0
    deliveries: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRecord:
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
class Lag:
    """How far a group is behind at one place.

    `records`: that wait, the ones handed out and not done counted in. `seconds`: since the oldest
    of them was written; 0 where none waits, None where it is not known.
    """

    records: int
    seconds: float | None
