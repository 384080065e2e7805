"""How are commands sent to a Redis or Valkey that keeps streams, and how are its errors told?"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

Argument = bytes | str | int
TIMEOUT_S: Final = 5.0
_CONNECT_TIMEOUT_S: Final = 2.0
_WAIT: Final = ("OOM", "READONLY", "MISCONF", "LOADING", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN")
_WAYS_OUT: Final = {
    "OOM": "; the server's memory is full: trim its streams (maxlen, retention_s), or give it more",
    "READONLY": "; name the primary instead of a replica",
    "MISCONF": "; the server cannot write to its disk",
    "WRONGTYPE": "; something else than a stream is under this key",
}

_REASONS: Final[Mapping[str, tuple[type[HeadraceError], str]]] = {
    "NOTOPIC": (NotFoundError, "there is no such topic {rest}; make it first"),
    "NOTMINE": (
        ConflictError,
        "{rest} is with another member by now; what is delivered now would be there twice",
    ),
    "REPLACED": (ConflictError, "this member was replaced by another of that name"),
    "RUNS": (FailedPreconditionError, "member '{member}' runs; stop the stream first"),
    "NOGROUP": (
        FailedPreconditionError,
        "the topic or the group is gone; start again to make the group anew",
    ),
    "CROSSSLOT": (UnsupportedError, "topics have to be on one server, and this is a cluster"),
    "MOVED": (UnsupportedError, "topics have to be on one server, and this is a cluster"),
}
"""What the server or our scripts say ▸ what that means; words in braces are filled in."""


class RedisLink:
    """Connections to the server that `url` names; answers come as they are on the wire.

    A command that may have been sent is never sent again by itself.

    Args:
        timeout_s: How long one answer may take.
    """

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.name = shown(url)
        address = url.replace("valkey", "redis", 1) if url.startswith("valkey") else url
        try:
            self._pool = redis.ConnectionPool.from_url(
                address,
                protocol=2,
                socket_timeout=timeout_s,
                socket_connect_timeout=_CONNECT_TIMEOUT_S,
                socket_keepalive=True,
                retry=Retry(NoBackoff(), 0),
            )
            # Not connected yet: of options that nobody knows it is told here.
            self._pool.connection_class(**self._pool.connection_kwargs)
        except (ValueError, TypeError):
            reason = "special characters of the password are written as %XX, options are Redis's"
            message = f"the URL of the broker cannot be read ({self.name}); {reason}"
            raise InvalidArgumentError(message) from None  # the cause may show the password
        self._client = redis.Redis(connection_pool=self._pool)
        self._client.response_callbacks.clear()  # they make dicts, which lose headers
        self._scripts: dict[str, redis.commands.core.Script] = {}

    def ask(self, doing: str, *command: Argument) -> object:
        """The answer to one command."""
        with self.telling(doing):
            return cast("object", self._client.execute_command(*command))  # type: ignore[no-untyped-call]  # it has no types

    def ask_all(self, doing: str, commands: Sequence[Sequence[Argument]]) -> list[object]:
        """The answers to some, sent at once; the first that is an error is raised."""
        with self.telling(doing):
            pipeline = self._client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]  # as above
            answers = cast("list[object]", pipeline.execute(raise_on_error=False))
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            return answers

    def run(
        self, doing: str, script: str, keys: Sequence[str], arguments: Sequence[Argument]
    ) -> object:
        """The answer of a script."""
        if script not in self._scripts:
            self._scripts[script] = self._client.register_script(script)
        with self.telling(doing):
            return cast("object", self._scripts[script](keys=list(keys), args=list(arguments)))

    @contextmanager
    def telling(self, doing: str) -> Iterator[None]:
        """Say in our words what the client or the server has against `doing`."""
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise told(error, doing, self.name) from error

    def close(self) -> None:
        """Close all connections, also under who waits for an answer; twice is once."""
        self._pool.disconnect()


def told(error: Exception, doing: str, server: str) -> HeadraceError:
    """What a caller is told of an error of the client's or the server's."""
    cannot = f"cannot {doing} in {server}"
    said = str(error)
    if isinstance(error, redis.AuthenticationError):
        return FailedPreconditionError(f"{cannot}: the server refuses the name or password in it")
    if isinstance(error, redis.exceptions.NoPermissionError):
        return PermissionDeniedError(f"{cannot}: {said}")
    if isinstance(error, redis.OutOfMemoryError):
        said = f"OOM {said}"
    way = next((way for marker, way in _WAYS_OUT.items() if marker in said), "")
    if isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError) or any(
        marker in said for marker in _WAIT
    ):
        return UnavailableError(f"{cannot}: {said}{way}")
    rest = said.partition(" ")[2]
    for marker, (kind, reason) in _REASONS.items():
        if marker in said:
            return kind(f"{cannot}: {reason.format(rest=rest, member=rest.rpartition('#')[0])}")
    return FailedPreconditionError(f"{cannot}: {said}{way}")
