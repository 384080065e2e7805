"""Delayed labels, joined with recorded answers by request id.

They have a separate file beside the sketches: hundreds of answers arrive per second, most are never
labelled, and the oldest may be dropped at any time. Counts of correct answers stay for a month.
"""

import contextlib
import math
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.core import FailedPreconditionError
from headrace.core.files import make_private_dir

MAX_ANSWERS: Final = 500_000
"""Most stored answers and waiting labels of all endpoints."""
WINDOWS_S: Final = (3600.0, 86_400.0, 7 * 86_400.0, 30 * 86_400.0)
_BUCKET_S: Final = 600.0
_FORGET_EVERY: Final = 10_000
_TAKEN, _DUPLICATE, _WAITING, _UNFIT = "taken", "duplicate", "waiting", "unfit"
_UNKNOWN: Final = "unknown"
Label = str | float | int | bool

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS answers (
  request_id TEXT PRIMARY KEY, at REAL NOT NULL, endpoint TEXT, version TEXT,
  number REAL, class TEXT, label TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_at ON answers (at);
CREATE TABLE IF NOT EXISTS scores (
  endpoint TEXT, version TEXT, bucket INTEGER, is_class INTEGER,
  rows INTEGER NOT NULL, right REAL NOT NULL, error REAL NOT NULL,
  PRIMARY KEY (endpoint, version, bucket, is_class)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveScore:
    """Quality of the labelled answers of the last `seconds`."""

    seconds: float
    rows: int
    accuracy: float | None
    """Ratio of correct classes; None if answers are numbers."""
    mean_error: float | None
    """Mean absolute error of numbers; None if answers are classes."""


@dataclass(slots=True)
class LabelStore:
    """Stores answers at `path`, and counts labelled ones. Blocking and thread-safe."""

    path: Path
    max_answers: int = MAX_ANSWERS
    _connection: sqlite3.Connection | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _added: int = 0

    def add_answers(
        self,
        endpoint: str,
        version: str,
        answers: Sequence[tuple[str, str | float]],
        *,
        now: float,
    ) -> None:
        """Store answers: request ids with a class or a number."""
        with self._writing() as connection:
            for request_id, value in answers:
                row = connection.execute(
                    "SELECT label, endpoint FROM answers WHERE request_id = ?", (request_id,)
                ).fetchone()
                if row is not None and row[1] is not None:
                    continue
                number, class_ = (None, value) if isinstance(value, str) else (value, None)
                label = None if row is None else row[0]
                connection.execute(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (request_id, now, endpoint, version, number, class_, label),
                )
                if label is not None:
                    _count(connection, (endpoint, version), value, label, timestamp=now)
            self._added += len(answers)
            self._forget(connection, now)

    def add_label(
        self,
        request_id: str,
        label: Label,
        *,
        now: float,
        endpoints: frozenset[str] | None = None,
    ) -> str:
        """Add a label; return `taken`, `duplicate`, `waiting` (no answer yet) or `unfit`.

        Args:
            endpoints: Endpoints whose answers may get it; None for all. For other answers, and
                answers not stored yet, the result is `unknown` and nothing is stored.
        """
        text = label_text(label)
        with self._writing() as connection:
            row = connection.execute(
                "SELECT at, endpoint, version, number, class, label FROM answers "
                "WHERE request_id = ?",
                (request_id,),
            ).fetchone()
            if endpoints is not None and (row is None or row[1] not in endpoints):
                return _UNKNOWN
            if row is None:
                connection.execute(
                    "INSERT INTO answers (request_id, at, label) VALUES (?, ?, ?)",
                    (request_id, now, text),
                )
                self._added += 1
                self._forget(connection, now)
                return _WAITING
            answered_at, endpoint, version, number, class_, before = row
            if before is not None:
                return _DUPLICATE
            assert endpoint is not None, "what has neither is not stored"
            value = number if class_ is None else class_
            if not _count(connection, (endpoint, version), value, text, timestamp=answered_at):
                return _UNFIT
            connection.execute(
                "UPDATE answers SET label = ? WHERE request_id = ?", (text, request_id)
            )
            return _TAKEN

    def scores(self, endpoint: str, version: str, *, now: float) -> list[LiveScore]:
        """Return a version's scores over several windows of answer times."""
        if self._connection is None and not self.path.exists():
            return []
        with self._writing() as connection:
            return [
                score
                for seconds in WINDOWS_S
                if (score := _score(connection, endpoint, version, seconds, now)) is not None
            ]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if self._connection is None:
                    path = self.path
                    make_private_dir(path.parent)
                    connection = sqlite3.connect(path, check_same_thread=False)
                    path.chmod(0o600)
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.execute("PRAGMA synchronous = NORMAL")
                    connection.executescript(_SCHEMA)
                    self._connection = connection
                with self._connection:
                    yield self._connection
            except sqlite3.Error as error:
                raise FailedPreconditionError(f"{self.path} cannot be used: {error}") from error

    def _forget(self, connection: sqlite3.Connection, now: float) -> None:
        """Drop, from time to time, the oldest answers beyond the bound and old counts."""
        if self._added < min(_FORGET_EVERY, self.max_answers):
            return
        self._added = 0
        (count,) = connection.execute("SELECT count(*) FROM answers").fetchone()
        connection.execute(
            "DELETE FROM answers WHERE request_id IN "
            "(SELECT request_id FROM answers ORDER BY at LIMIT ?)",
            (max(0, count - self.max_answers),),
        )
        oldest = int((now - WINDOWS_S[-1]) // _BUCKET_S)
        connection.execute("DELETE FROM scores WHERE bucket < ?", (oldest,))


def label_text(label: Label) -> str:
    """Return a label as a class name: 3 and 3.0 are `3`."""
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label)


def _count(
    connection: sqlite3.Connection,
    who: tuple[str, str],
    value: str | float,
    label: str,
    *,
    timestamp: float,
) -> bool:
    """Count the answer's correctness; return whether the label has the answer's kind."""
    is_class = isinstance(value, str)
    right = error = 0.0
    if isinstance(value, str):
        right = float(value == label)
    else:
        try:
            error = abs(value - float(label))
        except ValueError:
            return False
        if not math.isfinite(error):
            return False
    connection.execute(
        "INSERT INTO scores VALUES (?, ?, ?, ?, 1, ?, ?) ON CONFLICT DO UPDATE SET "
        "rows = rows + 1, right = right + excluded.right, error = error + excluded.error",
        (*who, int(timestamp // _BUCKET_S), is_class, right, error),
    )
    return True


def _score(
    connection: sqlite3.Connection, endpoint: str, version: str, seconds: float, now: float
) -> LiveScore | None:
    """Return the window's score, of classes if there are any; None without labels."""
    row = connection.execute(
        "SELECT is_class, sum(rows), sum(right), sum(error) FROM scores "
        "WHERE endpoint = ? AND version = ? AND bucket >= ? GROUP BY is_class "
        "ORDER BY is_class DESC LIMIT 1",
        (endpoint, version, int((now - seconds) // _BUCKET_S)),
    ).fetchone()
    if row is None:
        return None
    is_class, rows, right, error = row
    return LiveScore(
        seconds=seconds,
        rows=rows,
        accuracy=right / rows if is_class else None,
        mean_error=None if is_class else error / rows,
    )
