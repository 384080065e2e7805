"""Feast's online store in Redis or Valkey: a hash for each entity, a field for each feature."""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

from headrace.core import FailedPreconditionError
from headrace.features.feast.online import FeastView, Lookups, StoredRow
from headrace.features.feast.repository import FeastRepository
from headrace.features.feast.values import WrongValueError, field_name, read_time_us
from headrace.features.online.redis import RedisStoreClient

_KEYS_PER_REQUEST: Final = 500


class RedisFetcher:
    """Reads the server that `feature_store.yaml` names; never writes it."""

    def __init__(self, repository: FeastRepository) -> None:
        self._link = RedisStoreClient(redis_url(repository.online, str(repository.path)))
        self.name = self._link.name
        self._project = repository.project.encode()
        self._fields: dict[tuple[str, tuple[str, ...]], list[bytes]] = {}

    def fetch(
        self, lookups: Lookups, *, timeout_s: float
    ) -> Iterator[tuple[FeastView, bytes, StoredRow]]:
        """Yield the stored rows, all views of an entity in one read; see `FeastFetcher`."""
        deadline = time.monotonic() + timeout_s
        views_of: dict[bytes, list[FeastView]] = {}
        for view, keys in lookups:
            for key in keys:
                views_of.setdefault(key, []).append(view)
        lookups_by_key = list(views_of.items())
        with self._link.translate_errors("read features"):
            for start in range(0, len(lookups_by_key), _KEYS_PER_REQUEST):
                chunk = lookups_by_key[start : start + _KEYS_PER_REQUEST]
                reads = [
                    (key + self._project, [f for view in views for f in self._fields_of(view)])
                    for key, views in chunk
                ]
                answers = self._link.fetch(reads, deadline)
                for (key, views), values in zip(chunk, answers, strict=True):
                    yield from self._rows(key, views, values)

    def close(self) -> None:
        """Close all connections; idempotent."""
        self._link.close()

    def _rows(
        self, key: bytes, views: list[FeastView], values: list[bytes | None]
    ) -> Iterator[tuple[FeastView, bytes, StoredRow]]:
        start = 0
        for view in views:
            end = start + len(view.features)
            stamp = values[end]
            if stamp is not None:
                yield view, key, StoredRow(event_us=_time_us(stamp), values=values[start:end])
            start = end + 1

    def _fields_of(self, view: FeastView) -> list[bytes]:
        """Return the hash fields of a view's features, and then of their time."""
        fields = self._fields.get((view.stored_as, view.features))
        if fields is None:
            fields = [field_name(view.stored_as, name) for name in view.features]
            fields.append(f"_ts:{view.stored_as}".encode())
            self._fields[view.stored_as, view.features] = fields
        return fields


def redis_url(online: Mapping[str, Any], location: str) -> str:
    """Return the URL equivalent to Feast's `connection_string`.

    Raises:
        FailedPreconditionError: The string names a cluster or sentinels, or is invalid.
    """
    kind = online.get("redis_type", "redis")
    text = str(online.get("connection_string", "localhost:6379"))
    parts = text.split(",")
    nodes = [part for part in parts if "=" not in part]
    options = dict(part.split("=", 1) for part in parts if "=" in part)
    if kind != "redis" or len(nodes) > 1:
        message = f"{location}: only a single Redis server is supported, not Feast's {kind!r}"
        raise FailedPreconditionError(message)
    user, password = options.pop("username", ""), options.pop("password", "")
    login = f"{quote(user, safe='')}:{quote(_unquoted(password), safe='')}@" if password else ""
    database, socket = options.pop("db", "0"), options.pop("unix_socket_path", "")
    is_encrypted = options.pop("ssl", "false") == "true"
    for name in ("socket_timeout", "socket_connect_timeout"):
        options.pop(name, None)  # each read has its own timeout
    if socket:
        return f"unix://{login}{_unquoted(socket)}?{urlencode({'db': database, **options})}"
    scheme = "rediss" if is_encrypted else "redis"
    query = f"?{urlencode(options)}" if options else ""
    return f"{scheme}://{login}{nodes[0] if nodes else 'localhost:6379'}/{database}{query}"


def _unquoted(text: str) -> str:
    """Return an option without quotes: Feast parses options as JSON where possible."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def _time_us(stamp: bytes) -> int | None:
    try:
        return read_time_us(stamp)
    except WrongValueError:
        return None
