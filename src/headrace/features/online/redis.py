"""Online store in Redis or Valkey, for several machines: a hash per entity, a field per view.

One round trip reads any number of entities. A server that is full, slow or unreachable causes an
error within the time limit of the read.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Protocol, cast

from headrace.core import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
    check_name,
)
from headrace.features.online.store import DEFAULT_TIMEOUT_S, Place, without_password
from headrace.features.records import Key, Record

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ModuleNotFoundError as error:
    message = "an online store in Redis needs its client: pip install 'headrace[redis]'"
    raise FailedPreconditionError(message) from error
_CONNECT_TIMEOUT_S: Final = 1.0
HashRead = tuple[bytes, Sequence[bytes]]
"""A key and the fields of its hash."""


class _Connection(Protocol):
    """The part of the client's connections that is used here; they are not typed."""

    def send_packed_command(self, command: list[bytes]) -> None: ...

    def can_read(self, timeout: float) -> bool: ...

    def read_response(self, *, disable_decoding: bool) -> list[bytes | None]: ...

    def disconnect(self) -> None: ...


class RedisStoreClient:
    """Connections to the server at `url`, opened on demand.

    Args:
        timeout_s: Limit of each response, except in `fetch`.
    """

    def __init__(self, url: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.name = without_password(url)
        address = url.replace("valkey", "redis", 1) if url.startswith("valkey") else url
        try:
            self._pool = redis.ConnectionPool.from_url(
                address,
                socket_timeout=timeout_s,
                socket_connect_timeout=_CONNECT_TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),  # the caller gets the error and decides
            )
            # Not connected yet: an unknown option is reported here, not in a request.
            self._pool.connection_class(**self._pool.connection_kwargs)
        except (ValueError, TypeError):
            reason = (
                "escape special characters of the password as %XX; options are those of redis-py"
            )
            message = f"the URL of the online store is not valid ({self.name}); {reason}"
            raise InvalidArgumentError(message) from None  # the cause may show the password
        self.client = redis.Redis(connection_pool=self._pool)

    def fetch(self, reads: Sequence[HashRead], deadline: float) -> list[list[bytes | None]]:
        """Return the field values of each read, in one round trip."""
        pooled = self._pool.get_connection()
        connection = cast("_Connection", pooled)
        try:
            connection.send_packed_command([b"".join([_packed(*read) for read in reads])])
            return [self._answer(connection, deadline) for _ in reads]
        except BaseException:
            # The next caller would receive the responses that were not read.
            connection.disconnect()
            raise
        finally:
            self._pool.release(pooled)

    @contextmanager
    def translate_errors(self, operation: str) -> Iterator[None]:
        """Convert errors of the client or the server during `doing`."""
        cannot = f"cannot {operation} in {self.name}"
        try:
            yield
        except redis.AuthenticationError as error:
            reason = "the server refused the user name or password in the URL"
            raise FailedPreconditionError(f"{cannot}: {reason}") from error
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            raise UnavailableError(f"{cannot}: {error}") from error
        except redis.RedisError as error:
            raise FailedPreconditionError(f"{cannot}: {error}{remedy(str(error))}") from error

    def close(self) -> None:
        """Close all connections; idempotent."""
        self._pool.disconnect()

    def _answer(self, connection: "_Connection", deadline: float) -> list[bytes | None]:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0 or not connection.can_read(remaining_s):
            raise DeadlineExceededError(f"{self.name} did not answer before the deadline")
        return connection.read_response(disable_decoding=True)


def _packed(key: bytes, fields: Sequence[bytes]) -> bytes:
    """Return the encoded HMGET command; the client takes four times as long to encode it."""
    parts = [b"*%d\r\n$5\r\nHMGET\r\n$%d\r\n%b\r\n" % (2 + len(fields), len(key), key)]
    parts += [b"$%d\r\n%b\r\n" % (len(field), field) for field in fields]
    return b"".join(parts)


def remedy(error_text: str) -> str:
    """Return the remedy for an error of the server."""
    if "maxmemory" in error_text:
        return "; give the server more memory"
    if "READONLY" in error_text:
        return "; name the primary instead of a replica"
    if "WRONGTYPE" in error_text:
        return "; another program uses this key; choose another namespace"
    return ""


_KEYS_PER_REQUEST: Final = 500
# The first eight bytes of a record are its time; in Lua it is a float, exact up to 2^53.
_WRITE: Final = """
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old and #old >= 8 and struct.unpack('<i8', old) > struct.unpack('<i8', ARGV[2]) then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if ARGV[3] ~= '0' then
  redis.call('EXPIRE', KEYS[1], ARGV[3])
end
return 1
"""
_MAX_EXPIRE_S: Final = 10**9
_RAISE: Final = """
local old = redis.call('HGET', KEYS[1], ARGV[1])
if not old or tonumber(old) < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
"""


class RedisOnlineStore:
    """The store in the server at `url`, with the key prefix `headrace:features:NAMESPACE:`.

    Args:
        timeout_s: Limit of each response to a write; a read has its own.
        expire_s: An entity without writes for this time is deleted; 0 for never.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "default",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        expire_s: int = 0,
    ) -> None:
        prefix = f"headrace:features:{check_name(namespace, kind='namespace')}:".encode()
        self._entity = prefix + b"entity:"
        self._watermarks = prefix + b"watermarks"
        self._link = RedisStoreClient(url, timeout_s=timeout_s)
        self.name = self._link.name
        self._client = self._link.client
        self._expire_s = expire_s
        self._write = self._client.register_script(_WRITE)
        self._raise = self._client.register_script(_RAISE)

    def read(
        self, keys: Sequence[Key], views: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Mapping[Place, Record]:
        """Return the stored records; see `OnlineStore`."""
        deadline = time.monotonic() + timeout_s
        records_by_address: dict[Place, Record] = {}
        fields = [view.encode() for view in views]
        with self._link.translate_errors("read features"):
            for start in range(0, len(keys), _KEYS_PER_REQUEST):
                chunk = keys[start : start + _KEYS_PER_REQUEST]
                reads = [(self._entity + key, fields) for key in chunk]
                for key, records in zip(chunk, self._link.fetch(reads, deadline), strict=True):
                    for view, record in zip(views, records, strict=True):
                        if record is not None:
                            records_by_address[key, view] = record
        return records_by_address

    def write(self, view: str, keys: Sequence[Key], records: Sequence[Record]) -> int:
        """Write a record per key, each one atomically; see `OnlineStore`."""
        written = 0
        with self._link.translate_errors("write features"):
            for start in range(0, len(keys), _KEYS_PER_REQUEST):
                pipeline = self._client.pipeline(transaction=False)
                end = start + _KEYS_PER_REQUEST
                for key, record in zip(keys[start:end], records[start:end], strict=True):
                    arguments: list[str | bytes | int] = [view, record, self._expire_s]
                    self._write(keys=[self._entity + key], args=arguments, client=pipeline)
                # An error raised by the client would begin with the command, which is long.
                answers = pipeline.execute(raise_on_error=False)
                for answer in answers:
                    if isinstance(answer, Exception):
                        raise answer
                written += sum(answers)
        return written

    def watermark(self, name: str) -> int | None:
        """Return the event time up to which `name` was written; None at first."""
        with self._link.translate_errors("read a watermark"):
            stored = cast("bytes | None", self._client.hget(self._watermarks, name))
        try:
            return None if stored is None else int(stored)
        except ValueError as error:
            message = f"the watermark of {name} in {self.name} is not a number{remedy('WRONGTYPE')}"
            raise FailedPreconditionError(message) from error

    def raise_watermark(self, name: str, event_us: int) -> None:
        """Store a watermark; it never falls."""
        with self._link.translate_errors("write a watermark"):
            self._raise(keys=[self._watermarks], args=[name, event_us])

    def close(self) -> None:
        """Close all connections; idempotent."""
        self._link.close()


def open_redis_store(
    url: str,
    *,
    namespace: str,
    timeout_s: float,
    read_only: bool,  # noqa: ARG001  # as `StoreOpener`; the user in the URL says what may be done
) -> RedisOnlineStore:
    """Return the store in the server at `url`; `?expire_s=SECONDS` is an option of Headrace.

    Raises:
        InvalidArgumentError: The URL is not valid.
    """
    address, _, query = url.partition("?")
    options = [option.partition("=") for option in query.split("&") if option]
    expire_s = 0
    for name, _, text in options:
        if name == "expire_s":
            expire_s = int(text) if text.isascii() and text.isdigit() else -1
            if not 0 < expire_s <= _MAX_EXPIRE_S:
                message = (
                    f"expire_s={text[:20]} in the URL of the online store must be whole seconds, "
                    "longer than any ttl_s of a view"
                )
                raise InvalidArgumentError(message)
    rest = "&".join("".join(option) for option in options if option[0] != "expire_s")
    url = f"{address}?{rest}" if rest else address
    return RedisOnlineStore(url, namespace=namespace, timeout_s=timeout_s, expire_s=expire_s)
