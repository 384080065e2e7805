"""Pulsar's client: connection, errors, and the encoding of records in messages."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol
from urllib.parse import urlsplit

import pulsar

from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.streaming.brokers.checks import (
    packed,
    quoted,
    shown,
    split_options,
    unpacked,
    unquoted,
)
from headrace.streaming.records import Header, NewRecord, Place, Record

_ENTRY_BITS: Final = 20  # a ledger has 50,000 entries, unless somebody sets that
_BATCH_BITS: Final = 12  # a batch has at most 1000 messages, unless somebody sets that
_KEY: Final = "headrace-key"
_HEADERS: Final = "headrace-headers"


class MessageId(Protocol):
    """What is used of the client's ids, which have no types."""

    ledger_id: Callable[[], int]
    entry_id: Callable[[], int]
    batch_index: Callable[[], int]


class Message(Protocol):
    """What is used of the client's messages, which have no types."""

    data: Callable[[], bytes]
    has_null_value: Callable[[], bool]
    properties: Callable[[], dict[str, str]]
    partition_key: Callable[[], str]
    publish_timestamp: Callable[[], int]
    event_timestamp: Callable[[], int]
    redelivery_count: Callable[[], int]
    message_id: Callable[[], MessageId]


def offset_of(message_id: MessageId) -> int:
    """The offset of a message; 0 is before all."""
    if message_id.entry_id() < 0:
        return 0
    entry = message_id.ledger_id() << _ENTRY_BITS | message_id.entry_id()
    return entry << _BATCH_BITS | max(message_id.batch_index(), 0)


def id_of(offset: int) -> object:
    """The id of the message, or of the batch, that has this offset."""
    import pulsar  # noqa: PLC0415  # what else is here needs no client

    entry = offset >> _BATCH_BITS
    return pulsar.MessageId(-1, entry >> _ENTRY_BITS, entry & ((1 << _ENTRY_BITS) - 1), -1)


def arguments_of(record: NewRecord) -> dict[str, object]:
    """What the client's `send` is told besides the value."""
    properties: dict[str, str] = {}
    found: dict[str, object] = {"properties": properties}
    if record.key is not None:
        # The broker's key is text, which not all keys are, and decides which member gets it.
        properties[_KEY] = quoted(record.key)
        found["partition_key"] = quoted(record.key)
    if record.headers:
        properties[_HEADERS] = packed(record.headers)
    if record.timestamp_s is not None:
        found["event_timestamp"] = max(round(record.timestamp_s * 1000), 1)
    return found


def record_of(place: Place, message: Message) -> Record:
    """What a message says; of others' the properties are headers."""
    properties = message.properties()
    key: bytes | None = None
    if _KEY in properties:
        key = unquoted(properties[_KEY])
    elif message.partition_key():
        key = message.partition_key().encode()
    at_ms = message.event_timestamp() or message.publish_timestamp()
    return Record(
        place=place,
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


TIMEOUT_S: Final = 5
_NAMESPACE: Final = "public/default"
_REFUSED: Final = ("AuthenticationError", "AuthorizationError", "ErrorGettingAuthenticationData")
_WAIT: Final = (
    "Timeout", "ConnectError", "ReadError", "Disconnected", "LookupError", "ServiceUnitNotReady",
    "TooManyLookupRequestException", "AlreadyClosed", "NotConnected", "BrokerMetadataError",
    "BrokerPersistenceError", "ProducerQueueIsFull", "Retryable", "UnknownError", "Interrupted",
)  # fmt: skip


class PulsarLink:
    """A client, and producers as they are needed. Safe to use from several threads."""

    def __init__(self, url: str) -> None:
        self.name = shown(url)
        address, options = split_options(url, ("token", "tls_ca_file"))
        parts = urlsplit(address)
        if parts.query or "@" in parts.netloc or not parts.netloc:
            message = (
                f"the URL of the broker cannot be read ({self.name}); use "
                "pulsar://HOST:PORT[/TENANT/NAMESPACE][?token=...&tls_ca_file=...]"
            )
            raise InvalidArgumentError(message)
        self._namespace = parts.path.strip("/") or _NAMESPACE
        self._producers: dict[str, pulsar.Producer] = {}
        self._lock = threading.Lock()
        token = options.get("token")
        with self.telling("connect"):
            self.client = pulsar.Client(
                f"{parts.scheme}://{parts.netloc}",
                authentication=None if token is None else pulsar.AuthenticationToken(token),
                operation_timeout_seconds=TIMEOUT_S,
                connection_timeout_ms=TIMEOUT_S * 1000,
                tls_trust_certs_file_path=options.get("tls_ca_file"),
                # What goes wrong is raised, or said by `trouble`.
                logger=pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null"),
            )

    def full_name(self, topic: str) -> str:
        """Of a topic in this namespace."""
        return f"persistent://{self._namespace}/{topic}"

    def producer(self, topic: str) -> pulsar.Producer:
        """What writes to a topic; the broker makes the topic if there is none."""
        with self._lock:
            if topic not in self._producers:
                with self.telling(f"write to topic {topic}"):
                    self._producers[topic] = self.client.create_producer(
                        self.full_name(topic),
                        send_timeout_millis=TIMEOUT_S * 1000,
                        block_if_queue_full=True,
                        # A batch of several keys goes to one member, one of each breaks the order,
                        # and any is handed out again as a whole.
                        batching_enabled=False,
                    )
            return self._producers[topic]

    def write(self, records: Sequence[NewRecord]) -> None:
        """Write all, and wait until the broker has them.

        Raises:
            HeadraceError: It has not; some may be there.
        """
        producers = {topic: self.producer(topic) for topic in {one.topic for one in records}}
        failed: list[str] = []
        left = threading.Semaphore(0)

        def heard(result: pulsar.Result, _: object) -> None:
            if result != pulsar.Result.Ok:
                failed.append(str(result).rpartition(".")[2])
            left.release()

        with self.telling("write records"):
            for record in records:
                producers[record.topic].send_async(record.value, heard, **arguments_of(record))
            for producer in producers.values():
                producer.flush()
        deadline_s = 2 * TIMEOUT_S
        if not all(left.acquire(timeout=deadline_s) for _ in records):
            raise UnavailableError(f"cannot write records in {self.name}: no answer")
        if failed:
            raise _of_kind(failed[0], f"cannot write records in {self.name}: {failed[0]}")

    @contextmanager
    def telling(self, doing: str) -> Iterator[None]:
        """Say in our words what the client or the broker has against `doing`."""
        try:
            yield
        except (pulsar.PulsarException, ValueError) as error:
            kind = type(error).__name__
            said = str(error) or kind
            raise _of_kind(kind, f"cannot {doing} in {self.name}: {said}") from error

    def close(self) -> None:
        """Close all; twice is once."""
        try:
            self.client.close()
        except pulsar.PulsarException:
            return  # it is closed, or the broker is away


def _of_kind(kind: str, message: str) -> HeadraceError:
    if kind in _REFUSED:
        return FailedPreconditionError(f"{message}; the broker refuses the token in its URL")
    if kind in {"MessageTooBig", "InvalidMessage", "InvalidTopicName", "ValueError"}:
        return InvalidArgumentError(message)
    if kind in {"TopicNotFound", "NotFound"}:
        return NotFoundError(message)
    if kind in _WAIT:
        return UnavailableError(message)
    return FailedPreconditionError(message)
