"""Options of a `kafka://` URL, and the client settings that follow from them.

Options are librdkafka's, so all its ways to authenticate and to encrypt work, and a few are
Headrace's own. `${NAME}` in an option is replaced by an environment variable.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.core.redact import is_secret_name, remember_resolved
from headrace.core.variables import filled_in, url_filled_in
from headrace.streaming.broker import GroupProtocol, Membership

_MAX_TRANSACTION_MS: Final = 15_000
_TRANSACTION_MS: Final = 10_000
_WRITE_RATIO: Final = 0.7
_MIN_POLL_INTERVAL_MS: Final = 30_000
_MAX_ASSIGN_S: Final = 15.0
"""As long as a transaction of a producer lasts: the lookup waits for its end."""
_ASSIGN_RATIO: Final = 1 / 2
POLL_INTERVAL: Final = "max.poll.interval.ms"
_HEARTBEATS: Final = 4  # within a session's timeout
_MAX_HEARTBEAT_MS: Final = 3_000
COOPERATIVE: Final = "cooperative-sticky"
_STRATEGY: Final = "partition.assignment.strategy"
_PROTOCOL: Final = "group.protocol"
_REFRESH: Final = "topic.metadata.refresh.interval.ms"
LIMIT: Final = "message.max.bytes"
TRANSACTION: Final = "transaction.timeout.ms"
_MAX_LIMIT_BYTES: Final = 100_000_000
"""Servers close connections with larger requests (socket.request.max.bytes)."""
_BATCH_BYTES: Final = 1_000_000
_REFRESH_MS: Final = "10000"
"""Interval of metadata requests, which notice partitions that were added and topics that were
deleted."""
_LINGER: Final = frozenset({"linger.ms", "queue.buffering.max.ms"})
Settings = dict[str, str | int | float | bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaOptions:
    """A cluster and the client options for it."""

    address: str
    """Addresses of its servers, for messages and for the client."""
    is_static: bool
    """Whether members keep their partitions over a restart."""
    settings: Mapping[str, str] = field(repr=False)
    """Options of librdkafka; they contain secrets."""

    def is_cooperative(self, protocol: GroupProtocol) -> bool:
        """Return whether a rebalance moves only the partitions that have to move."""
        if protocol is GroupProtocol.CONSUMER:
            return True
        return self.settings.get(_STRATEGY, COOPERATIVE) == COOPERATIVE

    @property
    def max_assign_s(self) -> float:
        """How long a member may look up start offsets within its `poll`."""
        given_ms = int(self.settings.get(POLL_INTERVAL, _MIN_POLL_INTERVAL_MS))
        return min(_MAX_ASSIGN_S, given_ms / 1000 * _ASSIGN_RATIO)

    @property
    def limit_bytes(self) -> int:
        """Maximum size of a record that the client writes; topics have limits of their own."""
        return int(self.settings.get(LIMIT, _MAX_LIMIT_BYTES))

    @property
    def lingers(self) -> bool:
        """Whether the user set how long a record waits for others of its request."""
        return not _LINGER.isdisjoint(self.settings)

    def client(self) -> Settings:
        """Return settings common to all clients."""
        return {
            # Each failed connection attempt would be a log line, ten a second; errors and
            # `problem` report it once.
            "log_level": "2",
            "reconnect.backoff.max.ms": "2000",
            **self.settings,
            "bootstrap.servers": self.address,
            "client.id": "headrace",
        }

    def reader(self) -> Settings:
        """Return settings of a consumer outside any group."""
        return {
            **self.client(),
            "group.id": "headrace-reader",
            # As for a member; the client rejects a value below its session timeout.
            POLL_INTERVAL: "300000",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "allow.auto.create.topics": False,
            "fetch.queue.backoff.ms": "10",
            _STRATEGY: COOPERATIVE,
            _PROTOCOL: "classic",
        }

    def member(self, membership: Membership, protocol: GroupProtocol) -> Settings:
        """Return settings of a group member's consumer."""
        timeout_ms = round(membership.session_timeout_s * 1000)
        settings: Settings = {
            POLL_INTERVAL: str(max(3 * timeout_ms, _MIN_POLL_INTERVAL_MS)),
            # In the default of 1 s a queue of 100,000 records is consumed: it would run empty.
            "fetch.queue.backoff.ms": "10",
            _REFRESH: _REFRESH_MS,
            **self.client(),
            "group.id": membership.group,
            _PROTOCOL: protocol.value,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "allow.auto.create.topics": False,
            # Start offsets of new groups are looked up. The client reports where retention deleted
            # the next record, and the session continues with the first available one.
            "auto.offset.reset": "error",
            "statistics.interval.ms": 1000,
        }
        if self.is_static:
            settings["group.instance.id"] = membership.member
        if protocol is GroupProtocol.CONSUMER:
            settings.pop(_STRATEGY, None)  # the group's coordinator assigns partitions
        else:
            settings["session.timeout.ms"] = timeout_ms
            settings["heartbeat.interval.ms"] = max(
                1, min(timeout_ms // _HEARTBEATS, _MAX_HEARTBEAT_MS)
            )
            settings.setdefault(_STRATEGY, COOPERATIVE)
        return settings

    def producer(self, *, transactional_id: str = "", batch_bytes: int = _BATCH_BYTES) -> Settings:
        """Return settings of a producer; with transactions if it has an id.

        Args:
            batch_bytes: Size of the largest request that all topics take. The client does not split
                a larger one.
        """
        settings: Settings = {
            # Longer than queueing a large request takes; small requests are sent at once.
            "linger.ms": "5",
            # The Java client's partitioner, so that all producers map a key to one partition.
            "partitioner": "murmur2_random",
            "message.timeout.ms": "120000",
            "batch.size": min(batch_bytes, _BATCH_BYTES),
            LIMIT: _MAX_LIMIT_BYTES,
            _REFRESH: _REFRESH_MS,
            # How long a topic that does not exist is considered new. Topics exist before they are
            # written, so this is how long a deleted one is waited for.
            "topic.metadata.propagation.max.ms": "5000",
            **self.client(),
            "enable.idempotence": True,
            "delivery.report.only.error": True,
        }
        if transactional_id:
            # With no reachable server the client would rebootstrap, after which a call that sends
            # offsets to a transaction never returns (librdkafka issue 5511). A session does not
            # need that: it creates new clients after a failed transaction.
            settings.setdefault("metadata.recovery.strategy", "none")
            requested_ms = int(self.settings.get(TRANSACTION, _TRANSACTION_MS))
            timeout_ms = min(requested_ms, _MAX_TRANSACTION_MS)
            settings |= {
                "transactional.id": transactional_id,
                TRANSACTION: timeout_ms,
                # Before the cluster aborts the transaction, so that it can be repeated.
                "message.timeout.ms": round(_WRITE_RATIO * timeout_ms),
            }
        return settings


_PORT: Final = 9092
_SERVER: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_OPTIONS: Final = "an option of Kafka"
_NAME: Final = re.compile(r"[a-z][a-z0-9._]{0,99}")
_FILE: Final = "properties_file"
_MEMBERSHIP: Final = "membership"
_COMPRESSION: Final = "compression"
_STATIC: Final = "static"
_DYNAMIC: Final = "dynamic"
_MAX_BYTES: Final = 1 << 20
_SHOWN: Final = 60
_RESERVED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("bootstrap.servers", "metadata.broker.list"), "put the servers before the '?'"
    ),
    **dict.fromkeys(
        (
            "group.id",
            "group.instance.id",
            "group.protocol",
            "transactional.id",
            "client.id",
            "session.timeout.ms",
            "heartbeat.interval.ms",
            "auto.offset.reset",
        ),
        "set it in the stream's own settings",
    ),
    **dict.fromkeys(
        (
            "enable.auto.commit",
            "auto.commit.enable",
            "auto.commit.interval.ms",
            "enable.auto.offset.store",
            "enable.idempotence",
            "enable.partition.eof",
            "isolation.level",
            "acks",
            "request.required.acks",
            "statistics.interval.ms",
            "delivery.report.only.error",
        ),
        "delivery guarantees depend on it",
    ),
    **dict.fromkeys(
        ("plugin.library.paths", "ssl.engine.location", "ssl.providers"),
        "it would load code into this process",
    ),
}


def kafka_options(url: str, environment: Mapping[str, str] | None = None) -> KafkaOptions:
    """Return the options in a URL.

    Args:
        environment: None for this process's.

    Raises:
        InvalidArgumentError: The URL is invalid.
        FailedPreconditionError: A variable or a file that it names does not exist.
    """
    # Before parsing, and once: variables within a variable's value are not expanded.
    parts = urlsplit(url_filled_in(url, description=_OPTIONS, environment=environment))
    if "@" in parts.netloc:
        message = (
            "a Kafka URL takes no user before the host; use ?security.protocol=SASL_SSL&"
            "sasl.mechanism=SCRAM-SHA-512&sasl.username=NAME&sasl.password=${VARIABLE}"
        )
        raise InvalidArgumentError(message)
    if parts.path.strip("/") or parts.fragment:
        message = (
            f"a Kafka URL takes no path or fragment: {(parts.path or parts.fragment)[:_SHOWN]!r}"
        )
        raise InvalidArgumentError(f"{message}; name topics in the stream")
    options = _checked(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=False))
    file = options.pop(_FILE, None)
    if file is not None:
        options = _properties(Path(file), environment) | options
    membership = options.pop(_MEMBERSHIP, _STATIC)
    if membership not in {_STATIC, _DYNAMIC}:
        message = f"membership={membership[:_SHOWN]!r} of Kafka: use {_STATIC} or {_DYNAMIC}"
        raise InvalidArgumentError(message)
    if _COMPRESSION in options:
        options["compression.type"] = options.pop(_COMPRESSION)
    for name in (LIMIT, TRANSACTION, POLL_INTERVAL):
        text = options.get(name, "1")
        if not (text.isascii() and text.isdecimal() and int(text) > 0):
            raise InvalidArgumentError(
                f"{name}={text[:_SHOWN]!r} of Kafka must be a number greater than 0"
            )
    return KafkaOptions(
        address=_servers(parts.netloc), is_static=membership == _STATIC, settings=options
    )


def options_text(url: str) -> str:
    """Return the content of the options file that a URL names; empty if it cannot be read."""
    with suppress(OSError, ValueError):  # `kafka_options` reports the error
        named = dict(parse_qsl(urlsplit(url).query)).get(_FILE, "")
        if named and url.startswith("kafka:"):
            with Path(named).open("rb") as file:
                return file.read(_MAX_BYTES).decode("utf-8")
    return ""


def _servers(netloc: str) -> str:
    """Return `HOST:PORT,HOST:PORT`, with default ports filled in."""
    servers = []
    for server in netloc.split(","):
        match = _SERVER.fullmatch(server)
        port = int(match[2] or _PORT) if match is not None else 0
        if match is None or not 1 <= port <= 65535:  # noqa: PLR2004  # the largest port there is
            message = (
                f"{server[:_SHOWN]!r} is not a Kafka server: use kafka://HOST:PORT, or several "
                "separated by commas"
            )
            raise InvalidArgumentError(message)
        servers.append(f"{match[1]}:{port}")
    return ",".join(servers)


def _checked(pairs: list[tuple[str, str]]) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in pairs:
        if name in _RESERVED:
            raise InvalidArgumentError(f"'{name}' cannot be set for Kafka: {_RESERVED[name]}")
        if _NAME.fullmatch(name) is None:
            raise InvalidArgumentError(f"{name[:_SHOWN]!r} is not an option of the Kafka client")
        if name in options:
            raise InvalidArgumentError(f"'{name}' is set twice in the options of Kafka")
        options[name] = value
    return options


def _properties(path: Path, environment: Mapping[str, str] | None) -> dict[str, str]:
    """Return the options of a `name=value` file, without comments and empty lines."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise FailedPreconditionError(f"cannot read the options in {path}: {reason}") from error
    if len(data) > _MAX_BYTES:
        raise FailedPreconditionError(f"the options in {path} exceed {_MAX_BYTES} bytes")
    pairs = []
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped[0] in "#!":
            continue
        name, equals, value = stripped.partition("=")
        if not equals or name.strip() in {_FILE, _MEMBERSHIP, _COMPRESSION}:
            message = f"line {number} of {path} is not a name=value option of the Kafka client"
            raise InvalidArgumentError(message)
        pairs.append((name.strip(), value.strip()))
        if is_secret_name(name.strip()):
            remember_resolved(value.strip(), f"file:{path}")
    return {
        name: filled_in(value, description=_OPTIONS, environment=environment)
        for name, value in _checked(pairs).items()
    }
