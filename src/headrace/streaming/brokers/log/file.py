"""File of an embedded log, and datagrams that announce new records in it.

WAL mode: readers and one writer do not block each other, also across processes. The file is not
mapped into memory: a mapped file that another process truncates ends the process that reads it. A
datagram to a socket in the folder only ends a wait early; a disk without sockets is polled.
"""

import os
import select
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Final

from headrace.core import FailedPreconditionError, HeadraceError, UnavailableError

FOLDER: Final = "waiting"
"""Folder of the sockets of waiting members, within the log's folder."""
_DATAGRAM_BYTES: Final = 16
_MILLISECONDS: Final = 1000


class ChangeNotifier:
    """Notifies the other members of a log, and waits for notifications after `listen`.

    For one thread at a time, except `wake`.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / FOLDER
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
            if os.geteuid() == 0:  # the log's owner needs access; SQLite does the same
                owner = folder.stat()
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        # A socket's path is limited to 107 bytes; this path is short for any folder.
        self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(0)
        self._poller = select.poll()
        self._name = ""

    def listen(self, name: str) -> bool:
        """Receive notifications under this name; return False if sockets do not work here."""
        try:
            self._socket.bind(self._address(name))
        except OSError:
            return False
        self._name = name
        self._poller.register(self._socket, select.POLLIN)
        return True

    def notify(self) -> None:
        """Notify all other listeners; sockets of dead ones are removed."""
        with suppress(OSError):
            for name in os.listdir(self._folder):  # noqa: PTH208  # a file descriptor, not a path
                if name != self._name:
                    self._send(name)

    def wake(self) -> None:
        """End a wait of this notifier; safe to call from any thread."""
        if self._name:
            self._send(self._name)

    def wait(self, timeout_s: float) -> None:
        """Wait for a notification, or until the timeout."""
        if self._poller.poll(timeout_s * _MILLISECONDS):
            with suppress(BlockingIOError):
                while True:
                    self._socket.recv(_DATAGRAM_BYTES)

    def close(self) -> None:
        """Stop listening. Idempotent."""
        if self._folder < 0:
            return
        if self._name:
            self._forget(self._name)
        self._socket.close()
        os.close(self._folder)
        self._folder = -1

    def _send(self, name: str) -> None:
        try:
            self._socket.sendto(b"!", self._address(name))
        except (BlockingIOError, FileNotFoundError):
            pass  # it has pending notifications, or has left
        except ConnectionRefusedError:
            self._forget(name)
        except OSError:
            pass  # it polls a little later

    def _forget(self, name: str) -> None:
        with suppress(OSError):
            os.unlink(name, dir_fd=self._folder)

    def _address(self, name: str) -> str:
        return f"/proc/self/fd/{self._folder}/{name}"


_NAME: Final = "log.db"
_APPLICATION: Final = 0x48524C47  # "HRLG": identifies the file to `file` and to Headrace
_FORMAT: Final = 1
_PRIMARY_CODE: Final = 0xFF
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_AWAY: Final = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR})
_RETRY_EVERY_S: Final = 0.0003  # a write takes some milliseconds; SQLite's own retry waits longer
_WAL_KEPT_BYTES: Final = 64 << 20
# records.id is place << 40 | offset (place: a partition's id), so a partition is contiguous.
# A segment is a range of a partition that is deleted at once when it has expired; `high_s` is the
# newest timestamp up to its end, `written_s` the time of its last write.
_SCHEMA: Final = """
CREATE TABLE topics (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
    retention_s REAL NOT NULL, retention_bytes INTEGER NOT NULL
) STRICT;
CREATE TABLE places (
    id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, partition INTEGER NOT NULL,
    first INTEGER NOT NULL DEFAULT 0, next INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0, UNIQUE (topic, partition)
) STRICT;
CREATE TABLE records (
    id INTEGER PRIMARY KEY, key BLOB, value BLOB, headers BLOB, timestamp_s REAL NOT NULL
) STRICT;
CREATE TABLE segments (
    place INTEGER NOT NULL, first INTEGER NOT NULL, next INTEGER NOT NULL, bytes INTEGER NOT NULL,
    high_s REAL NOT NULL, written_s REAL NOT NULL, PRIMARY KEY (place, first)
) STRICT, WITHOUT ROWID;
CREATE TABLE groups (
    name TEXT PRIMARY KEY, generation INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE members (
    "group" TEXT NOT NULL, name TEXT NOT NULL, epoch INTEGER NOT NULL, topics BLOB NOT NULL,
    seen_s REAL NOT NULL, timeout_s REAL NOT NULL, PRIMARY KEY ("group", name)
) STRICT, WITHOUT ROWID;
CREATE TABLE claims (
    "group" TEXT NOT NULL, place INTEGER NOT NULL, epoch INTEGER NOT NULL,
    PRIMARY KEY ("group", place)
) STRICT, WITHOUT ROWID;
CREATE TABLE positions (
    "group" TEXT NOT NULL, place INTEGER NOT NULL, next INTEGER NOT NULL,
    PRIMARY KEY ("group", place)
) STRICT, WITHOUT ROWID
"""


class Sync(StrEnum):
    """Records that a power failure may lose; killing a process never loses records."""

    NORMAL = "normal"
    """About the last second, of both answers and offsets; the file stays consistent."""
    FULL = "full"
    """No records: every write waits for the disk."""


class LogFullError(FailedPreconditionError):
    """The disk has no space left; the records were not written."""


class LogFile:
    """One connection to the log in a folder, which is created if it does not exist.

    For one thread at a time.
    """

    def __init__(self, folder: Path, *, sync: Sync, lock_timeout_s: float) -> None:
        self.name = str(folder)
        self._lock_timeout_s = lock_timeout_s
        self._version: int | None = None
        with self._translating_errors("open"):
            self._db = self._open(folder, sync)
            try:
                self.notifier = ChangeNotifier(folder)
            except BaseException:
                self._db.close()
                raise

    @contextmanager
    def writing(self, operation: str) -> Iterator[sqlite3.Connection]:
        """Open a write transaction, which is committed if the block succeeds."""
        with self._translating_errors(operation):
            self._begin()
            try:
                yield self._db
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        self.notifier.notify()

    @contextmanager
    def reading(self, operation: str) -> Iterator[sqlite3.Connection]:
        """Open a consistent read transaction."""
        with self._translating_errors(operation):
            self._db.execute("BEGIN")
            try:
                yield self._db
            finally:
                self._db.execute("ROLLBACK")

    def has_changed(self) -> bool:
        """Return whether another connection has written since the last call; cheap."""
        with self._translating_errors("look"):
            (version,) = self._db.execute("PRAGMA data_version").fetchone()
        changed: bool = version != self._version
        self._version = version
        return changed

    def close(self) -> None:
        """Close the file. Idempotent."""
        self.notifier.close()
        self._db.close()

    def _begin(self) -> None:
        deadline = time.monotonic() + self._lock_timeout_s
        self._db.execute("PRAGMA busy_timeout = 0")
        try:
            while True:
                try:
                    self._db.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    if _code(error) not in _BUSY or time.monotonic() > deadline:
                        raise
                    time.sleep(_RETRY_EVERY_S)
                else:
                    return
        finally:
            self._db.execute(f"PRAGMA busy_timeout = {int(self._lock_timeout_s * 1000)}")

    def _open(self, folder: Path, sync: Sync) -> sqlite3.Connection:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / _NAME
        if not path.exists():
            _create(path)
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=self._lock_timeout_s,
            isolation_level=None,  # explicit transactions only
            check_same_thread=False,  # callers serialize access
        )
        try:
            self._check(db)
            db.execute(f"PRAGMA synchronous = {sync}")
            db.execute(f"PRAGMA journal_size_limit = {_WAL_KEPT_BYTES}")
        except BaseException:
            db.close()
            raise
        return db

    def _check(self, db: sqlite3.Connection) -> None:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if (application, version) != (_APPLICATION, _FORMAT):
            description = "of another version" if application == _APPLICATION else "something else"
            message = f"{_NAME} in {self.name} holds {description}; give the log another folder"
            raise FailedPreconditionError(message)

    @contextmanager
    def _translating_errors(self, operation: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            message = f"cannot {operation} the log in {self.name}: {reason}"
            raise FailedPreconditionError(message) from error
        except sqlite3.Error as error:
            raise self._translated(error, operation) from error

    def _translated(self, error: sqlite3.Error, operation: str) -> HeadraceError:
        code = _code(error)
        cannot = f"cannot {operation} the log in {self.name}: "
        if code in _BUSY:
            held = f"another process has locked it for {self._lock_timeout_s:g} s"
            return UnavailableError(f"{cannot}{held}; stop that process, or retry")
        if code == sqlite3.SQLITE_FULL:
            return LogFullError(
                f"{cannot}no space is left on the disk; free some (nothing was lost)"
            )
        if code in _AWAY:
            hint = "check that the disk is mounted and that this user may write to the folder"
            return UnavailableError(f"{cannot}{error}; {hint}")
        if code == sqlite3.SQLITE_READONLY:
            return FailedPreconditionError(f"{cannot}it is read-only, but readers write to a log")
        reason = str(error)
        if code in _DAMAGED:
            reason += (
                f"; save what `sqlite3 {_NAME} .recover` finds, then move {_NAME} and its "
                "-wal and -shm files away to start a new log"
            )
        return FailedPreconditionError(f"{cannot}{reason}")


def _create(path: Path) -> None:
    """Create the file under a temporary name, then link it: it appears complete, and only once.

    Only the owner can read it and SQLite's additional files. The mode is not set later: to open and
    close a file that SQLite has open would release SQLite's locks
    (https://www.sqlite.org/howtocorrupt.html, 2.2).
    """
    descriptor, aside = tempfile.mkstemp(prefix=f".{_NAME}-", dir=path.parent)
    os.close(descriptor)
    try:
        with closing(sqlite3.connect(aside, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {_APPLICATION}")
            db.execute(f"PRAGMA user_version = {_FORMAT}")
        with suppress(FileExistsError):
            Path(path).hardlink_to(aside)
    finally:
        Path(aside).unlink()


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's result code: https://www.sqlite.org/rescode.html."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY_CODE
