"""Feast's online store in Redis or Valkey: a hash for each entity, a field for each feature."""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

from headrace.core import FailedPreconditionError
from headrace.features.feast.online import FeastView, StoredRow, Wanted
from headrace.features.feast.repository import FeastRepository
from headrace.features.feast.values import WrongValueError, field_name, read_time_us
from headrace.features.online.redis import RedisStoreClient

_KEYS_AT_ONCE: Final = 500


class RedisFetcher:
    """Reads the server that `feature_store.yaml` names; never writes it."""

    def __init__(self, repository: FeastRepository) -> None:
        self._link = RedisStoreClient(redis_url(repository.online, str(repository.path)))
        self.name = self._link.name
        self._project = repository.project.encode()
        self._fields: dict[tuple[str, tuple[str, ...]], list[bytes]] = {}

    def fetch(
        self, wanted: Wanted, *, timeout_s: float
    ) -> Iterator[tuple[FeastView, bytes, StoredRow]]:
        """What there is of them, all views of an entity at once; see `FeastFetcher`."""
        deadline = time.monotonic() + timeout_s
        views_of: dict[bytes, list[FeastView]] = {}
        for view, keys in wanted:
            for key in keys:
                views_of.setdefault(key, []).append(view)
        places = list(views_of.items())
        with self._link.telling("read features"):
            for start in range(0, len(places), _KEYS_AT_ONCE):
                some = places[start : start + _KEYS_AT_ONCE]
                reads = [
                    (key + self._project, [f for view in views for f in self._fields_of(view)])
                    for key, views in some
                ]
                answers = self._link.fetch(reads, deadline)
                for (key, views), answer in zip(some, answers, strict=True):
                    yield from self._rows(key, views, answer)

    def close(self) -> None:
        """Close all connections; twice is once."""
        self._link.close()

    def _rows(
        self, key: bytes, views: list[FeastView], answer: list[bytes | None]
    ) -> Iterator[tuple[FeastView, bytes, StoredRow]]:
        start = 0
        for view in views:
            end = start + len(view.features)
            stamp = answer[end]
            if stamp is not None:
                yield view, key, StoredRow(event_us=_time_us(stamp), values=answer[start:end])
            start = end + 1

    def _fields_of(self, view: FeastView) -> list[bytes]:
        """Where a view's features stand, and then their time."""
        known = self._fields.get((view.stored_as, view.features))
        if known is None:
            known = [field_name(view.stored_as, name) for name in view.features]
            known.append(f"_ts:{view.stored_as}".encode())
            self._fields[view.stored_as, view.features] = known
        return known


def redis_url(online: Mapping[str, Any], where: str) -> str:
    """The URL that says the same as Feast's `connection_string`.

    Raises:
        FailedPreconditionError: It names a cluster or sentinels, or cannot be read.
    """
    kind = online.get("redis_type", "redis")
    text = str(online.get("connection_string", "localhost:6379"))
    parts = text.split(",")
    nodes = [part for part in parts if "=" not in part]
    options = dict(part.split("=", 1) for part in parts if "=" in part)
    if kind != "redis" or len(nodes) > 1:
        message = f"{where}: of Redis only a single server is read, and this is {kind!r} of Feast's"
        raise FailedPreconditionError(message)
    user, password = options.pop("username", ""), options.pop("password", "")
    login = f"{quote(user, safe='')}:{quote(_unquoted(password), safe='')}@" if password else ""
    database, socket = options.pop("db", "0"), options.pop("unix_socket_path", "")
    is_encrypted = options.pop("ssl", "false") == "true"
    for name in ("socket_timeout", "socket_connect_timeout"):
        options.pop(name, None)  # a read brings its own
    if socket:
        return f"unix://{login}{_unquoted(socket)}?{urlencode({'db': database, **options})}"
    scheme = "rediss" if is_encrypted else "redis"
    query = f"?{urlencode(options)}" if options else ""
    return f"{scheme}://{login}{nodes[0] if nodes else 'localhost:6379'}/{database}{query}"


def _unquoted(text: str) -> str:
    """Feast reads options as JSON where they are: a text may stand in quotes."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def _time_us(stamp: bytes) -> int | None:
    try:
        return read_time_us(stamp)
    except WrongValueError:
        return None
