"""How is a record written in an entry of a Redis stream, and which number is the entry's id?

An entry has the fields `key`, `value`, `h:NAME` for each header (in order, doubles too) and
`timestamp` if the record brings one. Entries that others wrote need not be like that: a field of
another name is a header, and the value where it is the only field.
"""

from collections.abc import Sequence
from typing import Final

from headrace.core import FailedPreconditionError
from headrace.streaming.records import NewRecord, Place, Record

_SEQUENCE_BITS: Final = 21  # two million in a millisecond; with 42 for those, enough until 2109
_MOST_SEQUENCE: Final = (1 << _SEQUENCE_BITS) - 1
_KEY: Final = b"key"
_VALUE: Final = b"value"
_TIMESTAMP: Final = b"timestamp"
_NOTHING: Final = b"nothing"  # an entry has to have a field
_HEADER: Final = b"h:"

Fields = Sequence[bytes]
"""Names and values in turn."""


def offset_of(entry_id: bytes) -> int:
    """The offset of an entry: ids in their order, as one number.

    Raises:
        FailedPreconditionError: There are more entries in one millisecond than can be told apart.
    """
    ms, _, sequence = entry_id.partition(b"-")
    number = int(sequence)
    if number > _MOST_SEQUENCE:
        message = (
            f"entry {entry_id.decode()} is beyond number {_MOST_SEQUENCE} of its millisecond: "
            "let the server choose the ids (XADD *), and its clock never stand back for long"
        )
        raise FailedPreconditionError(message)
    return int(ms) << _SEQUENCE_BITS | number


def id_of(offset: int) -> bytes:
    """The contrary; what lies before all is before the first id."""
    at = max(offset, 0)
    return b"%d-%d" % (at >> _SEQUENCE_BITS, at & _MOST_SEQUENCE)


def offset_at(at_s: float) -> int:
    """The lowest offset of entries that were written at this time or later."""
    return max(-int(-at_s * 1000 // 1), 0) << _SEQUENCE_BITS


def written_s(offset: int) -> float:
    """When the entry was written, in Unix time by the server's clock."""
    return (offset >> _SEQUENCE_BITS) / 1000


def fields_of(record: NewRecord) -> list[bytes]:
    """What is written."""
    fields: list[bytes] = []
    if record.key is not None:
        fields += (_KEY, record.key)
    if record.value is not None:
        fields += (_VALUE, record.value)
    for name, value in record.headers:
        fields += (_HEADER + name.encode("utf-8", "surrogateescape"), value)
    if record.timestamp_s is not None:
        fields += (_TIMESTAMP, b"%.6f" % record.timestamp_s)
    return fields or [_NOTHING, b""]


def record_of(place: Place, entry_id: bytes, fields: Fields, *, deliveries: int = 1) -> Record:
    """What an entry says."""
    offset = offset_of(entry_id)
    key: bytes | None = None
    value: bytes | None = None
    headers: list[tuple[str, bytes]] = []
    timestamp_s = written_s(offset)
    for name, said in zip(fields[::2], fields[1::2], strict=True):
        if name == _VALUE:
            value = said
        elif name == _KEY:
            key = said
        elif name == _TIMESTAMP:
            timestamp_s = _number(said, timestamp_s)
        elif name != _NOTHING:
            header = name.removeprefix(_HEADER)
            headers.append((header.decode("utf-8", "surrogateescape"), said))
    if len(fields) == 2 and headers and not fields[0].startswith(_HEADER):  # noqa: PLR2004  # one
        value, headers = headers[0][1], []
    return Record(
        place=place,
        offset=offset,
        key=key,
        value=value,
        headers=tuple(headers),
        timestamp_s=timestamp_s,
        deliveries=deliveries,
    )


def _number(said: bytes, default: float) -> float:
    try:
        return float(said)
    except ValueError:
        return default
