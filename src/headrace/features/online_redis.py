"""An online store in Redis or Valkey: for several machines. A hash for each entity, a field a view.

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
from headrace.features.keys import Key
from headrace.features.online import DEFAULT_TIMEOUT_S, Place, without_password
from headrace.features.records import Record

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ModuleNotFoundError as error:
    message = "an online store in Redis needs its client: pip install 'headrace[redis]'"
    raise FailedPreconditionError(message) from error

_KEYS_AT_ONCE: Final = 500
_CONNECT_TIMEOUT_S: Final = 1.0
# The first eight bytes of a record are its time; in Lua they are a float, exact up to 2^53.
_WRITE: Final = """
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old and #old >= 8 and struct.unpack('<i8', old) > struct.unpack('<i8', ARGV[2]) then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
"""
_RAISE: Final = """
local old = redis.call('HGET', KEYS[1], ARGV[1])
if not old or tonumber(old) < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
"""


class _Connection(Protocol):
    """What is used of the client's connections, which have no types."""

    def pack_commands(self, commands: Sequence[tuple[str | bytes, ...]]) -> list[bytes]: ...

    def send_packed_command(self, command: list[bytes]) -> None: ...

    def can_read(self, timeout: float) -> bool: ...

    def read_response(self, *, disable_decoding: bool) -> list[Record | None]: ...

    def disconnect(self) -> None: ...


class RedisOnlineStore:
    """The store in the server that `url` names, under `headrace:features:NAMESPACE:`.

    Args:
        timeout_s: How long a write waits for one answer; a read brings its own.
    """

    def __init__(
        self, url: str, *, namespace: str = "default", timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self.name = without_password(url)
        prefix = f"headrace:features:{check_name(namespace, kind='namespace')}:".encode()
        self._entity = prefix + b"entity:"
        self._watermarks = prefix + b"watermarks"
        address = url.replace("valkey", "redis", 1) if url.startswith("valkey") else url
        try:
            self._pool = redis.ConnectionPool.from_url(
                address,
                socket_timeout=timeout_s,
                socket_connect_timeout=min(_CONNECT_TIMEOUT_S, timeout_s),
                retry=Retry(NoBackoff(), 0),  # the caller's time is better spent on telling it
            )
            # Not connected yet: of options that nobody knows it is told here, not in a request.
            self._pool.connection_class(**self._pool.connection_kwargs)
        except (ValueError, TypeError):
            reason = "special characters of the password are written as %XX, options are Redis's"
            message = f"the URL of the online store cannot be read ({self.name}); {reason}"
            raise InvalidArgumentError(message) from None  # the cause may show the password
        self._client = redis.Redis(connection_pool=self._pool)
        self._write = self._client.register_script(_WRITE)
        self._raise = self._client.register_script(_RAISE)

    def read(
        self, keys: Sequence[Key], views: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Mapping[Place, Record]:
        """The records that there are; see `OnlineStore`."""
        deadline = time.monotonic() + timeout_s
        found: dict[Place, Record] = {}
        with self._telling("read features"):
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                some = keys[start : start + _KEYS_AT_ONCE]
                for key, records in zip(some, self._fetch(some, views, deadline), strict=True):
                    for view, record in zip(views, records, strict=True):
                        if record is not None:
                            found[key, view] = record
        return found

    def write(self, view: str, keys: Sequence[Key], records: Sequence[Record]) -> int:
        """Put a record in the place of each key; see `OnlineStore`. Each by itself."""
        written = 0
        with self._telling("write features"):
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                pipeline = self._client.pipeline(transaction=False)
                end = start + _KEYS_AT_ONCE
                for key, record in zip(keys[start:end], records[start:end], strict=True):
                    self._write(keys=[self._entity + key], args=[view, record], client=pipeline)
                # Raised by the client, an error would begin with the command, which is long.
                answers = pipeline.execute(raise_on_error=False)
                for answer in answers:
                    if isinstance(answer, Exception):
                        raise answer
                written += sum(answers)
        return written

    def watermark(self, name: str) -> int | None:
        """Up to which event time `name` was written; None at first."""
        with self._telling("read a watermark"):
            found = cast("bytes | None", self._client.hget(self._watermarks, name))
        try:
            return None if found is None else int(found)
        except ValueError as error:
            message = f"the watermark of {name} in {self.name} is no number{_way_out('WRONGTYPE')}"
            raise FailedPreconditionError(message) from error

    def raise_watermark(self, name: str, event_us: int) -> None:
        """Remember that; a watermark never falls."""
        with self._telling("write a watermark"):
            self._raise(keys=[self._watermarks], args=[name, event_us])

    def close(self) -> None:
        """Close all connections; twice is once."""
        self._pool.disconnect()

    def _fetch(
        self, keys: Sequence[Key], views: Sequence[str], deadline: float
    ) -> list[list[Record | None]]:
        """A list for each key with a record, or None, for each view."""
        taken = self._pool.get_connection()
        connection = cast("_Connection", taken)
        try:
            commands: list[tuple[str | bytes, ...]] = [
                ("HMGET", self._entity + key, *views) for key in keys
            ]
            connection.send_packed_command(connection.pack_commands(commands))
            return [self._answer(connection, deadline) for _ in keys]
        except BaseException:
            # Answers that were not read would be taken for the next caller's.
            connection.disconnect()
            raise
        finally:
            self._pool.release(taken)

    def _answer(self, connection: "_Connection", deadline: float) -> list[Record | None]:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0 or not connection.can_read(remaining_s):
            raise DeadlineExceededError(f"{self.name} did not answer before the deadline")
        return connection.read_response(disable_decoding=True)

    @contextmanager
    def _telling(self, doing: str) -> Iterator[None]:
        cannot = f"cannot {doing} in {self.name}"
        try:
            yield
        except redis.AuthenticationError as error:
            reason = "the server refuses the name or password in the URL"
            raise FailedPreconditionError(f"{cannot}: {reason}") from error
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            raise UnavailableError(f"{cannot}: {error}") from error
        except redis.RedisError as error:
            raise FailedPreconditionError(f"{cannot}: {error}{_way_out(str(error))}") from error


def _way_out(said: str) -> str:
    if "maxmemory" in said:
        return "; give the server more memory"
    if "READONLY" in said:
        return "; name the primary instead of a replica"
    if "WRONGTYPE" in said:
        return "; something else wrote under this key, so take another namespace"
    return ""
