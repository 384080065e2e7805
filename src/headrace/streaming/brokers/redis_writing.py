"""Which command writes a record to a Redis stream?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.core import InvalidArgumentError
from headrace.streaming.brokers.redis_entries import fields_of
from headrace.streaming.brokers.redis_link import Argument
from headrace.streaming.records import NewRecord, Place

_MOST_FIELDS: Final = 2000  # names and values; the server's Lua takes less than 8000 arguments
_MOST_BYTES: Final = 256 << 20  # the server takes 512 MB for a value, and hangs up beyond

Call = tuple[list[str], list[Argument]]
"""Keys and arguments of a script."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trim:
    """What the streams that are written to keep: `maxlen` entries, or if 0 `retention_s`."""

    maxlen: int
    retention_s: float

    def arguments(self, now_s: float) -> tuple[Argument, ...]:
        """Of XADD; about so much, which costs next to nothing."""
        if self.maxlen:
            return ("MAXLEN", "~", self.maxlen)
        return ("MINID", "~", max(int((now_s - self.retention_s) * 1000), 0))


def add_arguments(record: NewRecord, trim: Trim, now_s: float) -> list[Argument]:
    """Those of XADD after the stream's name; it writes to no stream that is not there.

    Raises:
        InvalidArgumentError: It is more than a server takes.
    """
    fields = fields_of(record)
    if len(fields) > _MOST_FIELDS:
        message = f"a record for {record.topic} has over {_MOST_FIELDS // 2} headers; Redis's limit"
        raise InvalidArgumentError(message)
    size_bytes = sum(map(len, fields))
    if size_bytes > _MOST_BYTES:
        message = f"a record for {record.topic} has {size_bytes} bytes; Redis takes {_MOST_BYTES}"
        raise InvalidArgumentError(message)
    return ["NOMKSTREAM", *trim.arguments(now_s), "*", *fields]


def add_command(record: NewRecord, trim: Trim, now_s: float) -> list[Argument]:
    """All of XADD."""
    return ["XADD", record.topic, *add_arguments(record, trim, now_s)]


def members_key(topic: str, group: str) -> str:
    """Where the members of a group are."""
    return f"headrace:members:{topic}:{group}"


def deliver_call(
    owner: tuple[str, str],
    written: Sequence[tuple[str, list[Argument]]],
    tokens: Mapping[Place, Sequence[bytes]],
    *,
    is_strict: bool,
) -> Call:
    """What the script DELIVER is told.

    Args:
        owner: Group and consumer.
        written: Topics, and arguments of XADD.
        tokens: Ids of entries of the input, ascending, at least one for each place.
        is_strict: Whether all of them have to be this consumer's still.
    """
    numbers: dict[str, int] = {}
    arguments: list[Argument] = [int(is_strict), *owner, len(tokens)]
    for place, ids in tokens.items():
        number = numbers.setdefault(place.topic, len(numbers) + 1)
        arguments += (number, len(ids), *ids)
    arguments.append(len(written))
    for topic, added in written:
        number = numbers.setdefault(topic, len(numbers) + 1)
        arguments += (number, len(added), *added)
    return list(numbers), arguments
