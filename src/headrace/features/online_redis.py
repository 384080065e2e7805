"""An online store in Redis or Valkey: for several machines. A hash for each entity, a field a view.

One round trip reads any number of entities.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Final, cast

from headrace.core import FailedPreconditionError, InvalidArgumentError, check_name
from headrace.features.keys import Key
from headrace.features.online import DEFAULT_TIMEOUT_S, Place
from headrace.features.records import Record
from headrace.features.redis_link import RedisLink, way_out

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
        self._link = RedisLink(url, timeout_s=timeout_s)
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
