"""Online store in one SQLite file: for one machine, read in some tens of microseconds.

Readers and one writer do not block each other (WAL), also across processes. The file is not mapped
into memory: truncating a mapped file would kill the process that reads it.
"""

import errno
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

from headrace.core import (
    DeadlineExceededError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    UnavailableError,
)
from headrace.features.online.store import DEFAULT_TIMEOUT_S, Place
from headrace.features.records import Key, Record, record_time_us

_KEYS_PER_REQUEST: Final = 500
_APPLICATION: Final = 0x48524654  # "HRFT": identifies the file to `file` and to this store
_FORMAT: Final = 1
_PRIMARY_CODE: Final = 0xFF
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# The key comes first: all views of an entity are on one page.
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS records (
    key BLOB NOT NULL, view TEXT NOT NULL, event_us INTEGER NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (key, view)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS watermarks (
    name TEXT PRIMARY KEY, event_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""
_WRITE: Final = """
INSERT INTO records VALUES (?, ?, ?, ?) ON CONFLICT (key, view) DO UPDATE
SET event_us = excluded.event_us, record = excluded.record
WHERE excluded.event_us >= records.event_us
"""
_RAISE: Final = """
INSERT INTO watermarks VALUES (?, ?) ON CONFLICT (name) DO UPDATE
SET event_us = max(event_us, excluded.event_us)
"""


class SqliteOnlineStore:
    """The store in the file at `path`, created on the first write.

    Args:
        lock_timeout_s: How long a write waits for another process's write.
        read_only: Never writes; the file must exist. For a process without write permission.
    """

    def __init__(
        self,
        path: Path,
        *,
        lock_timeout_s: float = DEFAULT_TIMEOUT_S,
        read_only: bool = False,
    ) -> None:
        self.name = str(path)
        self._path = path
        self._lock_timeout_s = lock_timeout_s
        self._read_only = read_only
        # Separate connections, so that a long write does not block readers of this process.
        self._reader = _Connection()
        self._writer = _Connection()

    def read(
        self, keys: Sequence[Key], views: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Mapping[Place, Record]:
        """Return the stored records; see `OnlineStore`."""
        records: dict[Place, Record] = {}
        if not self._reader.lock.acquire(timeout=max(timeout_s, 0.0)):
            raise DeadlineExceededError(f"{self.name} was busy for longer than {timeout_s:g} s")
        try:
            with self._translate_errors("read features", self._reader):
                connection = self._opened(self._reader)
                for start in range(0, len(keys), _KEYS_PER_REQUEST):
                    chunk = keys[start : start + _KEYS_PER_REQUEST]
                    statement = _read_statement(len(chunk), len(views))
                    for key, view, record in connection.execute(statement, [*chunk, *views]):
                        records[key, view] = record
        finally:
            self._reader.lock.release()
        return records

    def write(self, view: str, keys: Sequence[Key], records: Sequence[Record]) -> int:
        """Write a record per key, all of them or none; see `OnlineStore`."""
        rows = [
            (key, view, record_time_us(record), record)
            for key, record in zip(keys, records, strict=True)
        ]
        with self._writing("write features") as connection:
            return connection.executemany(_WRITE, rows).rowcount if rows else 0

    def watermark(self, name: str) -> int | None:
        """Return the event time up to which `name` was written; None at first."""
        with self._reader.lock, self._translate_errors("read a watermark", self._reader):
            row = (
                self._opened(self._reader)
                .execute("SELECT event_us FROM watermarks WHERE name = ?", (name,))
                .fetchone()
            )
        return None if row is None else int(row[0])

    def raise_watermark(self, name: str, event_us: int) -> None:
        """Store a watermark; it never falls."""
        with self._writing("write a watermark") as connection:
            connection.execute(_RAISE, (name, event_us))

    def close(self) -> None:
        """Close both connections; idempotent."""
        for connection in (self._reader, self._writer):
            with connection.lock:
                connection.close()

    @contextmanager
    def _writing(self, operation: str) -> Iterator[sqlite3.Connection]:
        """Open a transaction that commits if the block succeeds."""
        with self._writer.lock, self._translate_errors(operation, self._writer):
            connection = self._opened(self._writer)
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _opened(self, connection: "_Connection") -> sqlite3.Connection:
        if connection.opened is None:
            if not self._read_only:
                self._make_private()
            opened = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode={'ro' if self._read_only else 'rw'}",
                uri=True,
                timeout=self._lock_timeout_s,
                isolation_level=None,  # explicit transactions only
                check_same_thread=False,  # `lock` serializes access
            )
            try:
                self._prepare(opened)
            except BaseException:
                opened.close()
                raise
            connection.opened = opened
        return connection.opened

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # First, as another process may be creating the tables, which is one transaction.
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if tables and (application, version) != (_APPLICATION, _FORMAT):
            description = (
                "data of another version" if application == _APPLICATION else "something else"
            )
            message = f"{self.name} contains {description}; use another file for the online store"
            raise FailedPreconditionError(message)
        if self._read_only:
            if not tables:
                message = f"{self.name} is empty; fill it with `headrace features materialize`"
                raise FailedPreconditionError(message)
            return
        connection.execute("PRAGMA journal_mode = WAL")
        # A power failure may lose the last writes, never the file; materializing restores them.
        connection.execute("PRAGMA synchronous = NORMAL")
        if not tables:
            connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {_FORMAT}")
            connection.execute("COMMIT")

    def _make_private(self) -> None:
        # SQLite would create it readable by all users; its other files get the same mode. An
        # existing file is not opened: closing it would release the locks of other connections in
        # this process (https://www.sqlite.org/howtocorrupt.html, 2.2).
        if not self._path.parent.is_dir():
            message = (
                f"directory {self._path.parent} of {self.name} does not exist; create it first"
            )
            raise FailedPreconditionError(message)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with suppress(FileExistsError):
            os.close(os.open(self._path, flags, 0o600))
        if self._path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self._path))

    @contextmanager
    def _translate_errors(self, operation: str, connection: "_Connection") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise FailedPreconditionError(f"cannot {operation} in {self.name}: {reason}") from error
        except sqlite3.DatabaseError as error:
            if _code(error) in _DAMAGED:
                connection.close()  # a replacement file is then read without a restart
            raise self._translated(error, operation) from error

    def _translated(self, error: sqlite3.DatabaseError, operation: str) -> HeadraceError:
        code = _code(error)
        cannot = f"cannot {operation} in {self.name}"
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            reason_busy = f"another process locked it for {self._lock_timeout_s:g} s; try again"
            return UnavailableError(f"{cannot}: {reason_busy}")
        reason = str(error)
        if code in _DAMAGED:
            reason += (
                "; move the file and those beside it (-wal, -shm) away, and fill a new one with "
                "`headrace features materialize`"
            )
        elif code == sqlite3.SQLITE_FULL:
            reason += "; free some space and repeat the command: it continues where it stopped"
        return FailedPreconditionError(f"{cannot}: {reason}")


def open_sqlite_store(
    url: str,
    *,
    namespace: str,  # noqa: ARG001  # as `StoreOpener`
    timeout_s: float,
    read_only: bool,
) -> SqliteOnlineStore:
    """Return the store in the file `sqlite:///PATH`, or a plain path."""
    path = url.removeprefix("sqlite:///")
    if path.startswith("sqlite:"):
        raise InvalidArgumentError(f"{url[:60]!r} does not name a file; use sqlite:///PATH")
    return SqliteOnlineStore(Path(path), lock_timeout_s=timeout_s, read_only=read_only)


class _Connection:
    """A connection that is opened on demand, and the lock of its current user."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.opened: sqlite3.Connection | None = None

    def close(self) -> None:
        """Close the connection if it is open; the caller holds the lock."""
        if self.opened is not None:
            self.opened.close()
            self.opened = None


def _code(error: sqlite3.DatabaseError) -> int:
    """Return SQLite's primary result code: https://www.sqlite.org/rescode.html."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY_CODE


@lru_cache(maxsize=256)
def _read_statement(keys: int, views: int) -> str:
    condition = f"key IN ({_marks(keys)}) AND view IN ({_marks(views)})"
    return f"SELECT key, view, record FROM records WHERE {condition}"  # noqa: S608  # placeholders only


def _marks(count: int) -> str:
    return ",".join("?" * count)
