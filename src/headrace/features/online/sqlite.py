"""An online store in one SQLite file: for one machine, read in some tens of microseconds.

Readers and one writer do not wait for each other (WAL), also from several processes. The file is
not mapped into memory: a mapped file that somebody cuts short ends the process that reads it.
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

_KEYS_AT_ONCE: Final = 500
_APPLICATION: Final = 0x48524654  # "HRFT": whose file this is, as `file` and we tell it
_FORMAT: Final = 1
_PRIMARY_CODE: Final = 0xFF
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# The key comes first: all views of an entity stand on one page.
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
    """The store in the file at `path`, which is made when it is needed.

    Args:
        lock_timeout_s: How long a write waits for another process's.
        read_only: Nothing is written, and the file has to be there; for a process that may not.
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
        # One connection each, so that a long write keeps no reader of this process waiting.
        self._reader = _Connection()
        self._writer = _Connection()

    def read(
        self, keys: Sequence[Key], views: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Mapping[Place, Record]:
        """The records that there are; see `OnlineStore`."""
        found: dict[Place, Record] = {}
        if not self._reader.lock.acquire(timeout=max(timeout_s, 0.0)):
            raise DeadlineExceededError(f"{self.name} was not free to read within {timeout_s:g} s")
        try:
            with self._telling("read features", self._reader):
                connection = self._opened(self._reader)
                for start in range(0, len(keys), _KEYS_AT_ONCE):
                    some = keys[start : start + _KEYS_AT_ONCE]
                    statement = _read_statement(len(some), len(views))
                    for key, view, record in connection.execute(statement, [*some, *views]):
                        found[key, view] = record
        finally:
            self._reader.lock.release()
        return found

    def write(self, view: str, keys: Sequence[Key], records: Sequence[Record]) -> int:
        """Put a record in the place of each key; see `OnlineStore`. All of them, or none."""
        rows = [
            (key, view, record_time_us(record), record)
            for key, record in zip(keys, records, strict=True)
        ]
        with self._writing("write features") as connection:
            return connection.executemany(_WRITE, rows).rowcount if rows else 0

    def watermark(self, name: str) -> int | None:
        """Up to which event time `name` was written; None at first."""
        with self._reader.lock, self._telling("read a watermark", self._reader):
            found = (
                self._opened(self._reader)
                .execute("SELECT event_us FROM watermarks WHERE name = ?", (name,))
                .fetchone()
            )
        return None if found is None else int(found[0])

    def raise_watermark(self, name: str, event_us: int) -> None:
        """Remember that; a watermark never falls."""
        with self._writing("write a watermark") as connection:
            connection.execute(_RAISE, (name, event_us))

    def close(self) -> None:
        """Close both connections; twice is once."""
        for held in (self._reader, self._writer):
            with held.lock:
                held.close()

    @contextmanager
    def _writing(self, doing: str) -> Iterator[sqlite3.Connection]:
        """A transaction that is kept if the block ends well."""
        with self._writer.lock, self._telling(doing, self._writer):
            connection = self._opened(self._writer)
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _opened(self, held: "_Connection") -> sqlite3.Connection:
        if held.opened is None:
            if not self._read_only:
                self._make_private()
            made = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode={'ro' if self._read_only else 'rw'}",
                uri=True,
                timeout=self._lock_timeout_s,
                isolation_level=None,  # transactions begin and end where we say so
                check_same_thread=False,  # the lock beside it keeps threads apart
            )
            try:
                self._prepare(made)
            except BaseException:
                made.close()
                raise
            held.opened = made
        return held.opened

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # First, as another process may be making them: all of this comes there in one step.
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if tables and (application, version) != (_APPLICATION, _FORMAT):
            what = "of another version" if application == _APPLICATION else "something else"
            message = f"{self.name} holds {what}; give the online store another file"
            raise FailedPreconditionError(message)
        if self._read_only:
            if not tables:
                message = f"{self.name} is empty; fill it with `headrace features materialize`"
                raise FailedPreconditionError(message)
            return
        connection.execute("PRAGMA journal_mode = WAL")
        # A loss of power may cost the last writes, never the file; materializing brings them back.
        connection.execute("PRAGMA synchronous = NORMAL")
        if not tables:
            connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {_FORMAT}")
            connection.execute("COMMIT")

    def _make_private(self) -> None:
        # SQLite would make it readable by everybody; its other files get the same mode. One that is
        # there is not opened: closing it would let go of the locks of whoever has it open in this
        # process (https://www.sqlite.org/howtocorrupt.html, 2.2).
        if not self._path.parent.is_dir():
            message = f"there is no directory {self._path.parent} for {self.name}; make it first"
            raise FailedPreconditionError(message)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with suppress(FileExistsError):
            os.close(os.open(self._path, flags, 0o600))
        if self._path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self._path))

    @contextmanager
    def _telling(self, doing: str, held: "_Connection") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise FailedPreconditionError(f"cannot {doing} in {self.name}: {reason}") from error
        except sqlite3.DatabaseError as error:
            if _code(error) in _DAMAGED:
                held.close()  # a new file in its place is then read without a restart
            raise self._told(error, doing) from error

    def _told(self, error: sqlite3.DatabaseError, doing: str) -> HeadraceError:
        code = _code(error)
        cannot = f"cannot {doing} in {self.name}"
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            held = f"another process has held it for {self._lock_timeout_s:g} s; try again"
            return UnavailableError(f"{cannot}: {held}")
        reason = str(error)
        if code in _DAMAGED:
            reason += (
                "; move the file and those beside it (-wal, -shm) away, and fill a new one with "
                "`headrace features materialize`"
            )
        elif code == sqlite3.SQLITE_FULL:
            reason += "; free some space, and run the same again: it goes on where it stood"
        return FailedPreconditionError(f"{cannot}: {reason}")


def open_sqlite_store(
    url: str,
    *,
    namespace: str,  # noqa: ARG001  # as `StoreOpener`
    timeout_s: float,
    read_only: bool,
) -> SqliteOnlineStore:
    """The store in the file that `sqlite:///PATH`, or a path alone, names."""
    path = url.removeprefix("sqlite:///")
    if path.startswith("sqlite:"):
        raise InvalidArgumentError(f"{url[:60]!r} names no file; write sqlite:///PATH")
    return SqliteOnlineStore(Path(path), lock_timeout_s=timeout_s, read_only=read_only)


class _Connection:
    """A connection that is opened when it is needed, and who may use it now."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.opened: sqlite3.Connection | None = None

    def close(self) -> None:
        """Close it, if it is open; by whoever holds the lock."""
        if self.opened is not None:
            self.opened.close()
            self.opened = None


def _code(error: sqlite3.DatabaseError) -> int:
    """What went wrong, as SQLite numbers it: https://www.sqlite.org/rescode.html."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY_CODE


@lru_cache(maxsize=256)
def _read_statement(keys: int, views: int) -> str:
    places = f"key IN ({_marks(keys)}) AND view IN ({_marks(views)})"
    return f"SELECT key, view, record FROM records WHERE {places}"  # noqa: S608  # marks only


def _marks(count: int) -> str:
    return ",".join("?" * count)
