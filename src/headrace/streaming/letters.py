"""What does a dead letter say, and what becomes of it when people have seen to its cause? Pure.

Letters that were put back are known by the offsets of a group of their own: what lies before them
was dealt with, and is never put back again. One that is left for another time moves to the end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from headrace.core import InvalidArgumentError
from headrace.streaming.dead_letters import (
    ATTEMPTS,
    CODE,
    HEADERS,
    OFFSET,
    PARTITION,
    STREAM,
    TEXT,
    TIME,
    TOPIC,
)
from headrace.streaming.records import NewRecord, Place, Record

_KEPT: Final = frozenset(HEADERS) - {ATTEMPTS}
"""What a record loses that is put back; attempts of all its lives add up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A dead letter: the record it is, and what its headers say of where it was and why it died.

    What another wrote there may lack all of it: empty, or None.
    """

    record: Record
    topic: str
    partition: int | None
    offset: int | None
    code: str
    error: str
    stream: str
    attempts: int | None
    died_s: float | None


def letter_of(record: Record) -> Letter:
    """What a record of a dead-letter topic says."""
    said = {name: value.decode("utf-8", "replace") for name, value in record.headers}
    return Letter(
        record=record,
        topic=said.get(TOPIC, ""),
        partition=_number(said.get(PARTITION)),
        offset=_number(said.get(OFFSET)),
        code=said.get(CODE, ""),
        error=said.get(TEXT, ""),
        stream=said.get(STREAM, ""),
        attempts=_number(said.get(ATTEMPTS)),
        died_s=_seconds(said.get(TIME)),
    )


def redrive_group(stream: str) -> str:
    """The group whose offsets say which letters were dealt with."""
    return f"{stream}-redrive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which letters are put back, and where they may go.

    `code`: only those of this error; empty for all. `limit`: so many at most; None for all.
    `partitions`: of each source topic; letters of other topics stay.
    """

    code: str
    limit: int | None
    partitions: Mapping[str, int]

    def takes(self, letter: Letter) -> bool:
        """Whether a letter is one of them."""
        return letter.topic in self.partitions and self.code in {"", letter.code}


@dataclass(slots=True, kw_only=True)
class Step:
    """What to write, and how far that deals with the letters. `redriven` and `kept` are counts."""

    records: list[NewRecord] = field(default_factory=list)
    done: dict[Place, int] = field(default_factory=dict)
    redriven: int = 0
    kept: int = 0


def deal_with(
    records: Sequence[Record], choice: Choice, *, ends: Mapping[Place, int], redriven: int
) -> Step:
    """What to do with the next letters: put back, or move to the end.

    Args:
        ends: Where the topic ended at first: what came later is not dealt with, so that a letter
            that dies again meanwhile is not put back for ever.
        redriven: How many were put back before.
    """
    step = Step()
    for record in records:
        if record.offset >= ends.get(record.place, 0):
            continue
        if choice.limit is not None and redriven + step.redriven >= choice.limit:
            break
        letter = letter_of(record)
        if choice.takes(letter):
            step.records.append(_back(letter, choice.partitions[letter.topic]))
            step.redriven += 1
        else:
            step.records.append(_again(record))
            step.kept += 1
        step.done[record.place] = record.offset + 1
    return step


def count(letters: Iterable[Letter], choice: Choice) -> int:
    """How many of these would be put back."""
    found = sum(choice.takes(letter) for letter in letters)
    return found if choice.limit is None else min(found, choice.limit)


def check_code(code: str, known: Iterable[str]) -> str:
    """`code` in capitals, if it is one of an error.

    Raises:
        InvalidArgumentError: It is none.
    """
    wanted = code.strip().upper()
    names = list(known)
    if wanted and wanted not in names:
        message = f"'{code[:60]}' is no error's code; there are: {', '.join(names)}"
        raise InvalidArgumentError(message)
    return wanted


def _back(letter: Letter, partitions: int) -> NewRecord:
    """The record as it was, for the partition that it came from while there is such a one."""
    record, partition = letter.record, letter.partition
    is_there = partition is not None and 0 <= partition < partitions
    return NewRecord(
        topic=letter.topic,
        key=record.key,
        value=record.value,
        headers=tuple(header for header in record.headers if header[0] not in _KEPT),
        partition=partition if is_there else None,
        id=f"{letter.stream}/redriven/{_place(record)}",
    )


def _again(record: Record) -> NewRecord:
    return NewRecord(
        topic=record.place.topic,
        key=record.key,
        value=record.value,
        headers=record.headers,
        partition=record.place.partition,
        id=f"kept/{_place(record)}",
    )


def _place(record: Record) -> str:
    return f"{record.place.topic}/{record.place.partition}/{record.offset}"


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text[:18].isdigit() else None


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
