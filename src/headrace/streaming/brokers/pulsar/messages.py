"""Encoding of records in Pulsar messages, and of message ids as offsets.

Imports no client: Pulsar's registers exception translators in pybind11 that all modules of a
process share, after which ONNX Runtime and OpenVINO raise RuntimeError instead of their own types.
"""

from typing import TYPE_CHECKING, Final

from headrace.streaming.brokers.checks import packed, quoted, unpacked, unquoted
from headrace.streaming.records import Header, NewRecord, Record, TopicPartition

if TYPE_CHECKING:
    import pulsar

_ENTRY_BITS: Final = 20  # a ledger has 50,000 entries by default
_BATCH_BITS: Final = 12  # a batch has at most 1000 messages by default
_KEY: Final = "headrace-key"
_HEADERS: Final = "headrace-headers"


def offset_of(message_id: "pulsar.MessageId") -> int:
    """Return the offset of a message; 0 is before all messages."""
    if message_id.entry_id() < 0:
        return 0
    first = entry_offset(message_id.ledger_id(), message_id.entry_id())
    return first | max(int(message_id.batch_index()), 0)


def entry_offset(ledger: int, entry: int) -> int:
    """Return the offset of the first record of an entry."""
    return (ledger << _ENTRY_BITS) + entry << _BATCH_BITS


def id_of(offset: int) -> "pulsar.MessageId":
    """Return the id of the message, or of the batch, at this offset."""
    import pulsar  # noqa: PLC0415  # only this function needs the client

    entry = offset >> _BATCH_BITS
    return pulsar.MessageId(-1, entry >> _ENTRY_BITS, entry & ((1 << _ENTRY_BITS) - 1), -1)


def arguments_of(record: NewRecord) -> dict[str, object]:
    """Return the arguments of the client's `send` besides the value."""
    properties: dict[str, str] = {}
    arguments: dict[str, object] = {"properties": properties}
    if record.key is not None:
        # Pulsar's own key must be text, and determines the receiving member.
        properties[_KEY] = quoted(record.key)
        arguments["partition_key"] = quoted(record.key)
    if record.headers:
        properties[_HEADERS] = packed(record.headers)
    if record.timestamp_s is not None:
        arguments["event_timestamp"] = max(round(record.timestamp_s * 1000), 1)
    return arguments


def record_of(partition: TopicPartition, message: "pulsar.Message") -> Record:
    """Return the record in a message; properties of other producers become headers."""
    properties: dict[str, str] = message.properties()
    key: bytes | None = None
    if _KEY in properties:
        key = unquoted(properties[_KEY])
    elif message.partition_key():
        key = message.partition_key().encode()
    at_ms = message.event_timestamp() or message.publish_timestamp()
    return Record(
        topic_partition=partition,
        offset=offset_of(message.message_id()),
        key=key,
        value=None if message.has_null_value() else message.data(),
        headers=_headers(properties),
        timestamp_s=at_ms / 1000,
        deliveries=message.redelivery_count() + 1,
    )


def _headers(properties: dict[str, str]) -> tuple[Header, ...]:
    if _HEADERS in properties:
        return unpacked(properties[_HEADERS])
    return tuple(
        (name, value.encode()) for name, value in sorted(properties.items()) if name != _KEY
    )
