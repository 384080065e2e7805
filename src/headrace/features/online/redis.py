"""Online store in Redis or Valkey, for several machines: a hash an entity, a field a view.

One round trip reads any number of entities. A server that is full, slow or away is an error within
the time that a read has, never a wait.
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
"""A key, and the fields of its hash."""


class _Connection(Protocol):
    """What is used of the client's connections, which have no types."""

    def send_packed_command(self, command: list[bytes]) -> None: ...

    def can_read(self, timeout: float) -> bool: ...

    def read_response(self, *, disable_decoding: bool) -> list[bytes | None]: ...

    def disconnect(self) -> None: ...


class RedisStoreClient:
    """Connections to the server that `url` names, made when they are needed.

    Args:
        timeout_s: How long anything but `fetch` waits for one answer.
    """

    def __init__(self, url: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.name = without_password(url)
        address = url.replace("valkey", "redis", 1) if url.startswith("valkey") else url
        try:
            self._pool = redis.ConnectionPool.from_url(
                address,
                socket_timeout=timeout_s,
                socket_connect_timeout=_CONNECT_TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),  # the caller's time is better spent on telling it
            )
            # Not connected yet: of options that nobody knows it is told here, not in a request.
            self._pool.connection_class(**self._pool.connection_kwargs)
        except (ValueError, TypeError):
            reason = "special characters of the password are written as %XX, options are Redis's"
            message = f"the URL of the online store cannot be read ({self.name}); {reason}"
            raise InvalidArgumentError(message) from None  # the cause may show the password
        self.client = redis.Redis(connection_pool=self._pool)

    def fetch(self, reads: Sequence[HashRead], deadline: float) -> list[list[bytes | None]]:
        """For each read its fields' values, in one round trip."""
        taken = self._pool.get_connection()
        connection = cast("_Connection", taken)
        try:
            connection.send_packed_command([b"".join([_packed(*read) for read in reads])])
            return [self._answer(connection, deadline) for _ in reads]
        except BaseException:
            # Answers that were not read would be taken for the next caller's.
            connection.disconnect()
            raise
        finally:
            self._pool.release(taken)

    @contextmanager
    def telling(self, doing: str) -> Iterator[None]:
        """Say in our words what the client or the server has against `doing`."""
        cannot = f"cannot {doing} in {self.name}"
        try:
            yield
        except redis.AuthenticationError as error:
            reason = "the server refuses the name or password in the URL"
            raise FailedPreconditionError(f"{cannot}: {reason}") from error
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            raise UnavailableError(f"{cannot}: {error}") from error
        except redis.RedisError as error:
            raise FailedPreconditionError(f"{cannot}: {error}{way_out(str(error))}") from error

    def close(self) -> None:
        """Close all connections; twice is once."""
        self._pool.disconnect()

    def _answer(self, connection: "_Connection", deadline: float) -> list[bytes | None]:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0 or not connection.can_read(remaining_s):
            raise DeadlineExceededError(f"{self.name} did not answer before the deadline")
        return connection.read_response(disable_decoding=True)


def _packed(key: bytes, fields: Sequence[bytes]) -> bytes:
    """The command that reads them, in the protocol's words; the client takes four times as long."""
    parts = [b"*%d\r\n$5\r\nHMGET\r\n$%d\r\n%b\r\n" % (2 + len(fields), len(key), key)]
    parts += [b"$%d\r\n%b\r\n" % (len(field), field) for field in fields]
    return b"".join(parts)


def way_out(said: str) -> str:
    """What to do about an error of the server's."""
    if "maxmemory" in said:
        return "; give the server more memory"
    if "READONLY" in said:
        return "; name the primary instead of a replica"
    if "WRONGTYPE" in said:
        return "; something else wrote under this key, so take another namespace"
    return ""


_KEYS_AT_ONCE: Final = 500
# The first eight bytes of a record are its time; in Lua they are a float, exact up to 2^53.
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
    """The store in the server that `url` names, under `headrace:features:NAMESPACE:`.

    Args:
        timeout_s: How long a write waits for one answer; a read brings its own.
        expire_s: An entity of which nothing was written for so long is forgotten; 0 for never.
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
        """The records that there are; see `OnlineStore`."""
        deadline = time.monotonic() + timeout_s
        found: dict[Place, Record] = {}
        fields = [view.encode() for view in views]
        with self._link.telling("read features"):
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                some = keys[start : start + _KEYS_AT_ONCE]
                reads = [(self._entity + key, fields) for key in some]
                for key, records in zip(some, self._link.fetch(reads, deadline), strict=True):
                    for view, record in zip(views, records, strict=True):
                        if record is not None:
                            found[key, view] = record
        return found

    def write(self, view: str, keys: Sequence[Key], records: Sequence[Record]) -> int:
        """Put a record in the place of each key; see `OnlineStore`. Each by itself."""
        written = 0
        with self._link.telling("write features"):
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                pipeline = self._client.pipeline(transaction=False)
                end = start + _KEYS_AT_ONCE
                for key, record in zip(keys[start:end], records[start:end], strict=True):
                    arguments: list[str | bytes | int] = [view, record, self._expire_s]
                    self._write(keys=[self._entity + key], args=arguments, client=pipeline)
                # Raised by the client, an error would begin with the command, which is long.
                answers = pipeline.execute(raise_on_error=False)
                for answer in answers:
                    if isinstance(answer, Exception):
                        raise answer
                written += sum(answers)
        return written

    def watermark(self, name: str) -> int | None:
        """Up to which event time `name` was written; None at first."""
        with self._link.telling("read a watermark"):
            found = cast("bytes | None", self._client.hget(self._watermarks, name))
        try:
            return None if found is None else int(found)
        except ValueError as error:
            message = f"the watermark of {name} in {self.name} is no number{way_out('WRONGTYPE')}"
            raise FailedPreconditionError(message) from error

    def raise_watermark(self, name: str, event_us: int) -> None:
        """Remember that; a watermark never falls."""
        with self._link.telling("write a watermark"):
            self._raise(keys=[self._watermarks], args=[name, event_us])

    def close(self) -> None:
        """Close all connections; twice is once."""
        self._link.close()


def open_redis_store(
    url: str,
    *,
    namespace: str,
    timeout_s: float,
    read_only: bool,  # noqa: ARG001  # as `StoreOpener`; the user in the URL says what may be done
) -> RedisOnlineStore:
    """The store in the server that `url` names; `?expire_s=SECONDS` is our own option.

    Raises:
        InvalidArgumentError: It cannot be read.
    """
    address, _, query = url.partition("?")
    options = [option.partition("=") for option in query.split("&") if option]
    expire_s = 0
    for name, _, text in options:
        if name == "expire_s":
            expire_s = int(text) if text.isascii() and text.isdigit() else -1
            if not 0 < expire_s <= _MAX_EXPIRE_S:
                message = (
                    f"expire_s={text[:20]} in the URL of the online store should be whole seconds, "
                    "longer than any ttl_s of a view"
                )
                raise InvalidArgumentError(message)
    rest = "&".join("".join(option) for option in options if option[0] != "expire_s")
    url = f"{address}?{rest}" if rest else address
    return RedisOnlineStore(url, namespace=namespace, timeout_s=timeout_s, expire_s=expire_s)
