"""Pulsar client: connection, partitions, producers and errors."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
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
from headrace.core.error_kind import error_kind
from headrace.core.redact import remember_resolved
from headrace.streaming.brokers.checks import TLS_FILES, shown, split_options, tls_context
from headrace.streaming.brokers.pulsar.admin import PulsarAdmin
from headrace.streaming.brokers.pulsar.messages import arguments_of
from headrace.streaming.records import NewRecord, TopicPartition

TIMEOUT_S: Final = 5
_NAMESPACE: Final = "public/default"
_REFUSED: Final = ("AuthenticationError", "AuthorizationError", "ErrorGettingAuthenticationData")
_WAIT: Final = (
    "Timeout", "ConnectError", "ReadError", "Disconnected", "LookupError", "ServiceUnitNotReady",
    "TooManyLookupRequestException", "AlreadyClosed", "NotConnected", "BrokerMetadataError",
    "BrokerPersistenceError", "ProducerQueueIsFull", "Retryable", "UnknownError", "Interrupted",
)  # fmt: skip


_OPTIONS: Final = ("admin", "subscription", "token", "token_file", *TLS_FILES)
_SUBSCRIPTIONS: Final[Mapping[str, pulsar.ConsumerType]] = {
    "shared": pulsar.ConsumerType.Shared,
    "failover": pulsar.ConsumerType.Failover,
    "key_shared": pulsar.ConsumerType.KeyShared,
}


class PulsarLink:
    """A client, and a producer for each written topic. Safe to use from several threads."""

    def __init__(self, url: str) -> None:
        self.name = shown(url)
        address, options = split_options(url, _OPTIONS)
        parts = urlsplit(address)
        if parts.query or "@" in parts.netloc or not parts.netloc:
            message = (
                f"the URL of the broker cannot be read ({self.name}); use "
                f"pulsar://HOST:PORT[/TENANT/NAMESPACE], and the options {', '.join(_OPTIONS)}"
            )
            raise InvalidArgumentError(message)
        subscription = options.get("subscription", "shared")
        if subscription not in _SUBSCRIPTIONS:
            message = f"subscription={subscription[:60]!r} must be {', '.join(_SUBSCRIPTIONS)}"
            raise InvalidArgumentError(message)
        self.consumer_type = _SUBSCRIPTIONS[subscription]
        self._namespace = parts.path.strip("/") or _NAMESPACE
        self._producers: dict[tuple[str, int | None], pulsar.Producer] = {}
        self._lock = threading.Lock()
        self._is_closed = False
        token = _token(options)
        ca, cert, key = map(options.get, TLS_FILES)
        authentication = None if token is None else pulsar.AuthenticationToken(token)
        if authentication is None and cert is not None:
            authentication = pulsar.AuthenticationTLS(cert, key or cert)
        scheme, ports = ("https", 8443) if parts.scheme == "pulsar+ssl" else ("http", 8080)
        hosts = [urlsplit(f"//{host}").hostname for host in parts.netloc.split(",")]
        web = [f"{scheme}://{f'[{h}]' if ':' in (h or '') else h}:{ports}" for h in hosts]
        with self.translating_errors("connect"):
            self.admin = PulsarAdmin(
                [options["admin"].rstrip("/")] if "admin" in options else web,
                token=token,
                tls=tls_context(options, server="Pulsar"),
            )
            self.client = pulsar.Client(
                f"{parts.scheme}://{parts.netloc}",
                authentication=authentication,
                operation_timeout_seconds=TIMEOUT_S,
                connection_timeout_ms=TIMEOUT_S * 1000,
                tls_trust_certs_file_path=ca,
                tls_certificate_file_path=cert,
                tls_private_key_file_path=key or cert,
                tls_validate_hostname=True,
                # Errors are raised, or reported by `problem`.
                logger=pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null"),
            )

    def full_name(self, topic: str) -> str:
        """Return the full name of a topic in this namespace."""
        return f"persistent://{self._namespace}/{topic}"

    def partitions(self, topic: str) -> dict[TopicPartition, str]:
        """Return the full name of each partition; a topic without partitions is partition 0."""
        with self.translating_errors(f"look at topic {topic}"):
            names = self.client.get_topic_partitions(self.full_name(topic))
        return {TopicPartition(topic, number): name for number, name in enumerate(names)}

    def full_name_of(self, partition: TopicPartition) -> str:
        """Return the full name of a partition.

        Raises:
            InvalidArgumentError: The topic does not have it.
        """
        names = self.partitions(partition.topic)
        if partition not in names:
            message = f"{partition.topic} has {len(names)} partitions, not {partition.partition}"
            raise InvalidArgumentError(message)
        return names[partition]

    def producer(self, topic: str, partition: int | None = None) -> pulsar.Producer:
        """Return the producer of a topic or partition; the broker creates the topic if needed."""
        with self._lock:
            if (topic, partition) not in self._producers:
                name = self.full_name(topic)
                if partition is not None:
                    name = self.full_name_of(TopicPartition(topic, partition))
                with self.translating_errors(f"write to topic {topic}"):
                    self._producers[topic, partition] = self.client.create_producer(
                        name,
                        send_timeout_millis=TIMEOUT_S * 1000,
                        block_if_queue_full=True,
                        # Batches of several keys go to one member, batches by key break the order,
                        # and batches are redelivered as a whole.
                        batching_enabled=False,
                    )
            return self._producers[topic, partition]

    def write(self, records: Sequence[NewRecord]) -> None:
        """Write records, and wait for acknowledgements.

        Raises:
            HeadraceError: Some records were not acknowledged; others may be stored.
        """
        targets = {(record.topic, record.partition) for record in records}
        producers = {target: self.producer(*target) for target in targets}
        failed: list[str] = []
        left = threading.Semaphore(0)

        def on_sent(result: pulsar.Result, _: object) -> None:
            if result != pulsar.Result.Ok:
                failed.append(str(result).rpartition(".")[2])
            left.release()

        with self.translating_errors("write records"):
            for record in records:
                producer = producers[record.topic, record.partition]
                producer.send_async(record.value, on_sent, **arguments_of(record))
            for producer in producers.values():
                producer.flush()
        deadline_s = 2 * TIMEOUT_S
        if not all(left.acquire(timeout=deadline_s) for _ in records):
            raise UnavailableError(f"cannot write records in {self.name}: no answer")
        if failed:
            raise _error_of_kind(failed[0], f"cannot write records in {self.name}: {failed[0]}")

    @contextmanager
    def translating_errors(self, operation: str) -> Iterator[None]:
        """Translate errors of the client or the server during `operation`."""
        if self._is_closed:
            raise FailedPreconditionError("this broker is closed; open it again")
        try:
            yield
        except (pulsar.PulsarException, ValueError) as error:
            kind = type(error).__name__
            text = str(error) or kind
            raise _error_of_kind(kind, f"cannot {operation} in {self.name}: {text}") from error

    def close(self) -> None:
        """Close the client. Idempotent."""
        self._is_closed = True
        self.admin.close()
        try:
            self.client.close()
        except pulsar.PulsarException:
            return  # it is closed, or the broker is unavailable


def _token(options: Mapping[str, str]) -> Callable[[], str] | None:
    """Return a function for the current token; None for none."""
    token, path = options.get("token"), options.get("token_file")
    if path is None:
        return None if token is None else lambda: token

    def read() -> str:
        try:
            secret = Path(path).expanduser().read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            message = f"token_file of the broker's URL cannot be read: {error_kind(error)}"
            raise FailedPreconditionError(message) from None
        remember_resolved(secret, "file:token_file")
        return secret

    read()
    return read


def _error_of_kind(kind: str, message: str) -> HeadraceError:
    if kind in _REFUSED:
        return FailedPreconditionError(f"{message}; the broker refuses the credentials in its URL")
    if kind in {"MessageTooBig", "InvalidMessage", "InvalidTopicName", "ValueError"}:
        return InvalidArgumentError(message)
    if kind in {"TopicNotFound", "NotFound"}:
        return NotFoundError(message)
    if kind in {"Timeout", "ConnectError"}:  # the client does not tell why it cannot connect
        message += "; check address, TLS files and credentials"
    if kind in _WAIT:
        return UnavailableError(message)
    return FailedPreconditionError(message)
