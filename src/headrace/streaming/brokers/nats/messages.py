"""Encoding of records in NATS messages, whose headers are lines of text, one value per name.

The value is the payload. A key is the header `Headrace-Key`, in quotes and percent-encoded. A
record's headers are the message's headers if lines of text can hold them; otherwise all are in
`Headrace-Headers`, encoded as the query of a URL. Messages of other producers are read the same
way.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from headrace.streaming.brokers.checks import packed, quoted, unpacked, unquoted
from headrace.streaming.records import Header, NewRecord, Record, TopicPartition, parse_seconds

if TYPE_CHECKING:
    from nats.aio.msg import Msg

MESSAGE_ID: Final = "Nats-Msg-Id"
STATUS: Final = "Status"
_KEY: Final = "Headrace-Key"
_NULL: Final = "Headrace-Null"
_TIMESTAMP: Final = "Headrace-Timestamp"
_PACKED: Final = "Headrace-Headers"
_OURS: Final = ("nats-", "headrace-", "status", "description")
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
_LINE: Final = re.compile(rb"[!-~]([ -~]*[!-~])?")


def headers_of(record: NewRecord, *, sender: str) -> dict[str, str]:
    """Return the headers of the message for a record.

    Args:
        sender: Group that answers: each may answer the same record.
    """
    headers: dict[str, str] = {}
    if record.source is not None:
        (topic, partition), offset = record.source.topic_partition, record.source.offset
        message_id = f"{sender}/{topic}/{partition}/{offset}/{record.topic}"
        headers[MESSAGE_ID] = quote(message_id, safe="/:-_.")
    if record.key is not None:
        headers[_KEY] = quoted(record.key)
    if record.value is None:
        headers[_NULL] = "value"
    if record.timestamp_s is not None:
        headers[_TIMESTAMP] = f"{record.timestamp_s:.6f}"
    if record.headers and _are_plain(record.headers):
        headers |= {name: value.decode("ascii") for name, value in record.headers}
    elif record.headers:
        headers[_PACKED] = packed(record.headers)
    return headers


def record_of(partition: TopicPartition, message: "Msg") -> Record:
    """Return the record in a message of a consumer."""
    fields, metadata = message.headers or {}, message.metadata
    key = fields.get(_KEY)
    return Record(
        topic_partition=partition,
        offset=metadata.sequence.stream,
        key=None if key is None else unquoted(key),
        value=None if _NULL in fields and not message.data else message.data,
        headers=_headers(fields),
        timestamp_s=parse_seconds(fields.get(_TIMESTAMP), metadata.timestamp.timestamp()),
        deliveries=metadata.num_delivered,
    )


def token_of(name: str) -> str:
    """Return `name` as one token of a subject, and as the name of a consumer."""
    escaped = quote(name, safe="", errors="surrogateescape")
    return escaped.replace(".", "%2E").replace("~", "%7E").replace("%", "=")


def _are_plain(headers: tuple[Header, ...]) -> bool:
    names = {name.lower() for name, _ in headers}
    return len(names) == len(headers) and all(
        _NAME.fullmatch(name) and not name.lower().startswith(_OURS) and _LINE.fullmatch(value)
        for name, value in headers
    )


def _headers(fields: Mapping[str, str]) -> tuple[Header, ...]:
    text = fields.get(_PACKED)
    if text is not None:
        return unpacked(text)
    return tuple(
        (name, value.encode("utf-8", "surrogateescape"))
        for name, value in fields.items()
        if not name.lower().startswith(_OURS)
    )
