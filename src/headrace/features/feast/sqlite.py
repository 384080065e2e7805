"""Feast's online store in SQLite: a table per view, a row per entity and feature."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Final
from urllib.parse import quote

from headrace.core import (
    DeadlineExceededError,
    FailedPreconditionError,
    UnavailableError,
)
from headrace.features.feast.online import FeastView, Lookups, StoredRow
from headrace.features.feast.repository import FeastRepository
from headrace.features.values import microseconds

_KEYS_PER_REQUEST: Final = 500
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_PRIMARY_CODE: Final = 0xFF
_KEY_OF: Final = itemgetter(0)
_DEFAULT_PATH: Final = "data/online.db"


class SqliteFetcher:
    """Reads the file named in `feature_store.yaml`; never writes it."""

    def __init__(self, repository: FeastRepository) -> None:
        self._path = repository.path / str(repository.online.get("path", _DEFAULT_PATH))
        self.name = str(self._path)
        self._project = repository.project
        self._lock = threading.Lock()
        self._opened: sqlite3.Connection | None = None
        self._waits_ms = 0

    def fetch(
        self, lookups: Lookups, *, timeout_s: float
    ) -> Iterator[tuple[FeastView, bytes, StoredRow]]:
        """Yield the stored rows; see `FeastFetcher`."""
        deadline = time.monotonic() + timeout_s
        if not self._lock.acquire(timeout=max(timeout_s, 0.0)):
            raise DeadlineExceededError(f"{self.name} was busy for longer than {timeout_s:g} s")
        try:
            with self._translate_errors():
                return iter(self._fetched(lookups, deadline))
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the connection; idempotent."""
        with self._lock:
            self._disconnect()

    def _fetched(
        self, lookups: Lookups, deadline: float
    ) -> list[tuple[FeastView, bytes, StoredRow]]:
        rows_by_view = []
        for view, keys in lookups:
            for start in range(0, len(keys), _KEYS_PER_REQUEST):
                chunk = keys[start : start + _KEYS_PER_REQUEST]
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0:
                    raise DeadlineExceededError(f"{self.name} was not read before the deadline")
                connection = self._connection(remaining_s)
                table = f"{self._project}_{view.stored_as}"
                rows = connection.execute(_statement(table, len(chunk)), chunk)
                for key, key_rows in groupby(rows, key=_KEY_OF):
                    stored = _stored(view, list(key_rows))
                    if stored is not None:
                        rows_by_view.append((view, key, stored))
        return rows_by_view

    def _connection(self, timeout_s: float) -> sqlite3.Connection:
        """Return the connection, with a busy timeout of at least half the remaining time.

        Setting the exact time for each read would take a tenth of the read.
        """
        if self._opened is None:
            self._waits_ms = 0
            self._opened = sqlite3.connect(
                f"file:{quote(str(self._path.absolute()))}?mode=ro",
                uri=True,
                isolation_level=None,
                check_same_thread=False,  # `lock` serializes access
            )
        waits_ms = 1 << int(timeout_s * 1000).bit_length() >> 1
        if waits_ms != self._waits_ms:
            self._opened.execute(f"PRAGMA busy_timeout = {waits_ms}")
            self._waits_ms = waits_ms
        return self._opened

    def _disconnect(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            self._disconnect()  # a replacement file is then read without a restart
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY_CODE
            cannot = f"cannot read features in Feast's {self.name}"
            if code in _BUSY:
                message = f"{cannot}: another process locks it; try again"
                raise UnavailableError(message) from error
            message = f"{cannot}: {error}; `feast apply` and `feast materialize` create and fill it"
            raise FailedPreconditionError(message) from error


@lru_cache(maxsize=512)
def _statement(table: str, keys: int) -> str:
    name, marks = table.replace('"', '""'), ",".join("?" * keys)
    return (
        f'SELECT entity_key, feature_name, value, event_ts FROM "{name}" '  # noqa: S608  # a quoted name, and placeholders
        f"WHERE entity_key IN ({marks}) ORDER BY entity_key"
    )


def _stored(view: FeastView, rows: list[tuple[bytes, str, bytes, object]]) -> StoredRow | None:
    by_name = {feature: (value, time) for _, feature, value, time in rows}
    columns = [by_name.get(name, (None, None)) for name in view.features]
    # If Feast wrote only some features later, the others are older: the oldest time counts.
    times = {stored for value, stored in columns if value is not None}
    if not times:
        return None
    times_us = [_time_us(stored) for stored in times]
    event_us = None if None in times_us else min(time for time in times_us if time is not None)
    return StoredRow(event_us=event_us, values=[value for value, _ in columns])


def _time_us(stored: object) -> int | None:
    """Return the microseconds since 1970 of a stored time.

    Feast writes times of UTC as if they were local ones, as whole seconds, so the reader must run
    in the same time zone, as Feast's own reader must. Older versions wrote text.
    """
    try:
        if isinstance(stored, int):
            return microseconds(datetime.fromtimestamp(stored).replace(tzinfo=UTC))  # noqa: DTZ006  # as above
        if isinstance(stored, str):
            read = datetime.fromisoformat(stored)
            return microseconds(read if read.tzinfo else read.replace(tzinfo=UTC))
    except (ValueError, OverflowError, OSError):
        return None
    return None
