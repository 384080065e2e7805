"""Writes records to NATS and waits until they are safe, in the event loop of the client."""

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from headrace.core import InvalidArgumentError, UnavailableError
from headrace.streaming.brokers.nats_groups import stream_of
from headrace.streaming.brokers.nats_link import TIMEOUT_S, NatsLink
from headrace.streaming.brokers.nats_messages import headers_of
from headrace.streaming.records import NewRecord

_OVERHEAD_BYTES: Final = 64
_LINE_BYTES: Final = 4


class Message(NamedTuple):
    """What is published."""

    topic: str
    payload: bytes
    headers: dict[str, str]


def messages_of(records: Sequence[NewRecord], *, sender: str, most_bytes: int) -> list[Message]:
    """The messages that say these records.

    Raises:
        InvalidArgumentError: One is larger than the server takes.
    """
    found = []
    for record in records:
        payload = record.value or b""
        headers = headers_of(record, sender=sender)
        size = sum(len(name) + len(value) + _LINE_BYTES for name, value in headers.items())
        size_bytes = len(payload) + size + _OVERHEAD_BYTES
        if size_bytes > most_bytes:
            message = (
                f"a record for {record.topic} has {size_bytes} bytes with its headers, and the "
                f"server takes {most_bytes}; raise its max_payload, or answer less"
            )
            raise InvalidArgumentError(message)
        found.append(Message(record.topic, payload, headers))
    return found


async def publish(link: NatsLink, messages: Sequence[Message]) -> None:
    """Write all and wait for the server's word on each.

    Raises:
        UnavailableError: It did not come; some may be there.
        NotFoundError: There is no such topic.
    """
    link.check_connected()
    waiting = [
        await link.stream_api.publish_async(topic, payload, headers=headers or None)
        for topic, payload, headers in messages
    ]
    if not waiting:
        return
    done, late = await asyncio.wait(waiting, timeout=TIMEOUT_S)
    for future in late:
        future.cancel()
    if late:
        message = f"{link.name} did not say within {TIMEOUT_S:g} s that it has what was written"
        raise UnavailableError(message)
    errors = [error for future in done if (error := future.exception()) is not None]
    if not errors:
        return
    for topic in {message.topic for message in messages}:
        await stream_of(link, topic)
    raise errors[0]


async def acknowledge(link: NatsLink, replies: Sequence[str], *, is_confirmed: bool) -> None:
    """Be done with messages; wait for the server's word on each if `is_confirmed`."""
    link.check_connected()
    if is_confirmed:
        waits = (link.client.request(reply, b"", timeout=TIMEOUT_S) for reply in replies)
        await asyncio.gather(*waits)
        return
    for reply in replies:
        await link.client.publish(reply, b"")
