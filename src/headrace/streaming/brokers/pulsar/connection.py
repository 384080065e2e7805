"""Pulsar client: connection, producers and errors."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final
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
    shown,
    split_options,
)
from headrace.streaming.brokers.pulsar.messages import arguments_of
from headrace.streaming.records import NewRecord

TIMEOUT_S: Final = 5
_NAMESPACE: Final = "public/default"
_REFUSED: Final = ("AuthenticationError", "AuthorizationError", "ErrorGettingAuthenticationData")
_WAIT: Final = (
    "Timeout", "ConnectError", "ReadError", "Disconnected", "LookupError", "ServiceUnitNotReady",
    "TooManyLookupRequestException", "AlreadyClosed", "NotConnected", "BrokerMetadataError",
    "BrokerPersistenceError", "ProducerQueueIsFull", "Retryable", "UnknownError", "Interrupted",
)  # fmt: skip


class PulsarLink:
    """A client, and a producer for each written topic. Safe to use from several threads."""

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
        with self.translating_errors("connect"):
            self.client = pulsar.Client(
                f"{parts.scheme}://{parts.netloc}",
                authentication=None if token is None else pulsar.AuthenticationToken(token),
                operation_timeout_seconds=TIMEOUT_S,
                connection_timeout_ms=TIMEOUT_S * 1000,
                tls_trust_certs_file_path=options.get("tls_ca_file"),
                # Errors are raised, or reported by `problem`.
                logger=pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null"),
            )

    def full_name(self, topic: str) -> str:
        """Return the full name of a topic in this namespace."""
        return f"persistent://{self._namespace}/{topic}"

    def producer(self, topic: str) -> pulsar.Producer:
        """Return the producer of a topic; the broker creates the topic if needed."""
        with self._lock:
            if topic not in self._producers:
                with self.translating_errors(f"write to topic {topic}"):
                    self._producers[topic] = self.client.create_producer(
                        self.full_name(topic),
                        send_timeout_millis=TIMEOUT_S * 1000,
                        block_if_queue_full=True,
                        # Batches of several keys go to one member, batches by key break the order,
                        # and batches are redelivered as a whole.
                        batching_enabled=False,
                    )
            return self._producers[topic]

    def write(self, records: Sequence[NewRecord]) -> None:
        """Write records, and wait for acknowledgements.

        Raises:
            HeadraceError: Some records were not acknowledged; others may be stored.
        """
        producers = {topic: self.producer(topic) for topic in {record.topic for record in records}}
        failed: list[str] = []
        left = threading.Semaphore(0)

        def on_sent(result: pulsar.Result, _: object) -> None:
            if result != pulsar.Result.Ok:
                failed.append(str(result).rpartition(".")[2])
            left.release()

        with self.translating_errors("write records"):
            for record in records:
                producers[record.topic].send_async(record.value, on_sent, **arguments_of(record))
            for producer in producers.values():
                producer.flush()
        deadline_s = 2 * TIMEOUT_S
        if not all(left.acquire(timeout=deadline_s) for _ in records):
            raise UnavailableError(f"cannot write records in {self.name}: no answer")
        if failed:
            raise _error_of_kind(failed[0], f"cannot write records in {self.name}: {failed[0]}")

    @contextmanager
    def translating_errors(self, operation: str) -> Iterator[None]:
        """Translate errors of the client or the server during `doing`."""
        try:
            yield
        except (pulsar.PulsarException, ValueError) as error:
            kind = type(error).__name__
            text = str(error) or kind
            raise _error_of_kind(kind, f"cannot {operation} in {self.name}: {text}") from error

    def close(self) -> None:
        """Close the client. Idempotent."""
        try:
            self.client.close()
        except pulsar.PulsarException:
            return  # it is closed, or the broker is unavailable


def _error_of_kind(kind: str, message: str) -> HeadraceError:
    if kind in _REFUSED:
        return FailedPreconditionError(f"{message}; the broker refuses the token in its URL")
    if kind in {"MessageTooBig", "InvalidMessage", "InvalidTopicName", "ValueError"}:
        return InvalidArgumentError(message)
    if kind in {"TopicNotFound", "NotFound"}:
        return NotFoundError(message)
    if kind in _WAIT:
        return UnavailableError(message)
    return FailedPreconditionError(message)
