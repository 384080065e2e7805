"""Redis client for streams: commands, errors, and the encoding of records in entries.

An entry has the fields `key`, `value`, `h:NAME` for each header (in order, duplicates too) and
`timestamp` if the record has one. In entries of other producers, a field of another name is a
header, or the value if it is the only field.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from headrace.core import (
    ConflictError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
    UnsupportedError,
)
from headrace.streaming.brokers.checks import shown
from headrace.streaming.records import NewRecord, Record, TopicPartition, parse_seconds

Argument = bytes | str | int
_TIMEOUT_S: Final = 5.0
_CONNECT_TIMEOUT_S: Final = 2.0
_WAIT: Final = ("OOM", "READONLY", "MISCONF", "LOADING", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN")
_HINTS: Final = {
    "OOM": "; the server's memory is full: trim its streams (maxlen, retention_s), or give it more",
    "READONLY": "; name the primary instead of a replica",
    "MISCONF": "; the server cannot write to its disk",
    "WRONGTYPE": "; the key holds something other than a stream",
}
_REASONS: Final[Mapping[str, tuple[type[HeadraceError], str]]] = {
    "NOTOPIC": (NotFoundError, "topic {rest} does not exist; create it first"),
    "no such key": (NotFoundError, "the topic does not exist; create it first"),
    "NOTMINE": (
        ConflictError,
        "{rest} belongs to another member by now; records written now would be duplicates",
    ),
    "REPLACED": (ConflictError, "this member was replaced by another member of that name"),
    "RUNS": (FailedPreconditionError, "member '{member}' runs; stop the stream first"),
    "NOGROUP": (
        FailedPreconditionError,
        "the topic or the group was deleted; restart the stream to create the group again",
    ),
    "CROSSSLOT": (UnsupportedError, "all topics must be on one server, but this is a cluster"),
    "MOVED": (UnsupportedError, "all topics must be on one server, but this is a cluster"),
}
"""Error markers of the server or our scripts, with their meaning; braces are filled in."""


class RedisConnection:
    """Connection pool to a server; answers are returned as on the wire.

    A command that may have been sent is never sent again automatically.
    """

    def __init__(self, url: str) -> None:
        self.name = shown(url)
        address = url.replace("valkey", "redis", 1) if url.startswith("valkey") else url
        try:
            self._pool = redis.ConnectionPool.from_url(
                address,
                protocol=2,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_CONNECT_TIMEOUT_S,
                socket_keepalive=True,
                retry=Retry(NoBackoff(), 0),
            )
            # Not connected yet: unknown options are reported here.
            self._pool.connection_class(**self._pool.connection_kwargs)
        except (ValueError, TypeError):
            reason = "write special characters of the password as %XX, and use Redis's options"
            message = f"the URL of the broker cannot be read ({self.name}); {reason}"
            raise InvalidArgumentError(message) from None  # the cause may contain the password
        self._client = redis.Redis(connection_pool=self._pool)
        self._client.response_callbacks.clear()  # they return dicts, which lose duplicate headers
        self._is_closed = False

    def ask(self, operation: str, *command: Argument) -> object:
        """Return the answer to one command."""
        with self.translating_errors(operation):
            return cast("object", self._client.execute_command(*command))  # type: ignore[no-untyped-call]  # it has no types

    def request_all(self, operation: str, commands: Sequence[Sequence[Argument]]) -> list[object]:
        """Return the answers to commands sent together; raise the first error."""
        with self.translating_errors(operation):
            pipeline = self._client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]  # as above
            answers = cast("list[object]", pipeline.execute(raise_on_error=False))
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            return answers

    def run(
        self, operation: str, script: str, keys: Sequence[str], arguments: Sequence[Argument]
    ) -> object:
        """Return the answer of a script."""
        registered = self._client.register_script(script)
        with self.translating_errors(operation):
            return cast("object", registered(keys=list(keys), args=list(arguments)))

    @contextmanager
    def translating_errors(self, operation: str) -> Iterator[None]:
        """Translate errors of the client or the server during `operation`."""
        if self._is_closed:
            raise FailedPreconditionError("this broker is closed; open it again")
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise _headrace_error(error, f"cannot {operation} in {self.name}") from error

    def close(self) -> None:
        """Close all connections, including those in use. Idempotent."""
        self._is_closed = True
        self._pool.disconnect()


def _headrace_error(error: Exception, cannot: str) -> HeadraceError:
    text = str(error)
    if isinstance(error, redis.AuthenticationError):
        return FailedPreconditionError(
            f"{cannot}: the server refuses the name or password in the URL"
        )
    if isinstance(error, redis.exceptions.NoPermissionError):
        return PermissionDeniedError(f"{cannot}: {text}")
    if isinstance(error, redis.OutOfMemoryError):
        text = f"OOM {text}"
    way = next((way for marker, way in _HINTS.items() if marker in text), "")
    if isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError) or any(
        marker in text for marker in _WAIT
    ):
        return UnavailableError(f"{cannot}: {text}{way}")
    rest = text.partition(" ")[2]
    for marker, (kind, reason) in _REASONS.items():
        if marker in text:
            return kind(f"{cannot}: {reason.format(rest=rest, member=rest.rpartition('#')[0])}")
    return FailedPreconditionError(f"{cannot}: {text}{way}")


_SEQUENCE_BITS: Final = 21  # two million per millisecond; 42 bits of milliseconds last until 2109
_MAX_SEQUENCE: Final = (1 << _SEQUENCE_BITS) - 1
_KEY: Final = b"key"
_VALUE: Final = b"value"
_TIMESTAMP: Final = b"timestamp"
_NOTHING: Final = b"nothing"  # an entry has to have a field
_HEADER: Final = b"h:"
Fields = Sequence[bytes]
"""Alternating names and values."""


def offset_of(entry_id: bytes) -> int:
    """Return the offset of an entry: its id as one number.

    Raises:
        FailedPreconditionError: The millisecond has more entries than the offset can number.
    """
    ms, _, sequence = entry_id.partition(b"-")
    number = int(sequence)
    if number > _MAX_SEQUENCE:
        message = (
            f"entry {entry_id.decode()} is beyond number {_MAX_SEQUENCE} of its millisecond: "
            "let the server choose the ids (XADD *), and keep its clock correct"
        )
        raise FailedPreconditionError(message)
    return int(ms) << _SEQUENCE_BITS | number


def id_of(offset: int) -> bytes:
    """Return the entry id of an offset; negative offsets are before the first id."""
    number = max(offset, 0)
    return b"%d-%d" % (number >> _SEQUENCE_BITS, number & _MAX_SEQUENCE)


def offset_at(at_s: float) -> int:
    """Return the lowest offset of entries written at this time or later."""
    return max(-int(-at_s * 1000 // 1), 0) << _SEQUENCE_BITS


def written_s(offset: int) -> float:
    """Return when the entry was written, in Unix time by the server's clock."""
    return (offset >> _SEQUENCE_BITS) / 1000


def fields_of(record: NewRecord) -> list[bytes]:
    """Return the fields of a record's entry."""
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


def record_of(
    partition: TopicPartition, entry_id: bytes, fields: Fields, *, deliveries: int = 1
) -> Record:
    """Return the record in an entry."""
    offset = offset_of(entry_id)
    key: bytes | None = None
    value: bytes | None = None
    headers: list[tuple[str, bytes]] = []
    timestamp_s = written_s(offset)
    for name, content in zip(fields[::2], fields[1::2], strict=True):
        if name == _VALUE:
            value = content
        elif name == _KEY:
            key = content
        elif name == _TIMESTAMP:
            timestamp_s = parse_seconds(content, timestamp_s)
        elif name != _NOTHING:
            header = name.removeprefix(_HEADER)
            headers.append((header.decode("utf-8", "surrogateescape"), content))
    if len(fields) == 2 and headers and not fields[0].startswith(_HEADER):  # noqa: PLR2004  # one name and value
        value, headers = headers[0][1], []
    return Record(
        topic_partition=partition,
        offset=offset,
        key=key,
        value=value,
        headers=tuple(headers),
        timestamp_s=timestamp_s,
        deliveries=deliveries,
    )


_MAX_FIELDS: Final = 2000  # names and values; the server's Lua accepts fewer than 8000 arguments
_MAX_BYTES: Final = 256 << 20  # the server accepts 512 MB per value, and disconnects beyond


@dataclass(frozen=True, slots=True, kw_only=True)
class Trim:
    """Retention of written streams."""

    maxlen: int
    """Maximum number of entries; 0 to use `retention_s`."""
    retention_s: float

    def arguments(self, now_s: float) -> tuple[Argument, ...]:
        """Return the arguments of XADD; approximate trimming costs next to nothing."""
        if self.maxlen:
            return ("MAXLEN", "~", self.maxlen)
        return ("MINID", "~", max(int((now_s - self.retention_s) * 1000), 0))


def add_arguments(record: NewRecord, trim: Trim, now_s: float) -> list[Argument]:
    """Return the arguments of XADD after the stream's name; it does not create streams.

    Raises:
        InvalidArgumentError: The record exceeds a limit of the server.
    """
    fields = fields_of(record)
    if len(fields) > _MAX_FIELDS:
        message = f"a record for {record.topic} has over {_MAX_FIELDS // 2} headers; Redis's limit"
        raise InvalidArgumentError(message)
    size_bytes = sum(map(len, fields))
    if size_bytes > _MAX_BYTES:
        message = f"a record for {record.topic} has {size_bytes} bytes; Redis takes {_MAX_BYTES}"
        raise InvalidArgumentError(message)
    return ["NOMKSTREAM", *trim.arguments(now_s), "*", *fields]


def members_key(topic: str, group: str) -> str:
    """Return the key of a group's members."""
    return f"headrace:members:{topic}:{group}"
