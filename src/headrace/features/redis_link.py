"""How are hashes of a Redis read before a deadline, and how are its errors told?

A server that is full, slow or away is an error within the time that a read has, never a wait.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol, cast

from headrace.core import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from headrace.features.online import DEFAULT_TIMEOUT_S, without_password

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


class RedisLink:
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
