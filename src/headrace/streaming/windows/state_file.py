"""Window state of a partition, in memory and in its file.

The last process that opens a file owns it: earlier owners can no longer write. Panes that were read
stay in memory. A change is written, with the offset after it, only when its answers are produced:
so a file never includes an answer that was not produced, and reading from the file's offset after a
crash gives the same values. A power failure may lose the last transactions; their records are read
again.
"""

import hashlib
import logging
import math
import sqlite3
from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple
from urllib.parse import quote

from headrace.core import ConflictError, FailedPreconditionError, HeadraceError, UnavailableError
from headrace.core.files import move
from headrace.streaming.records import TopicPartition
from headrace.streaming.settings import WorkerSettings
from headrace.streaming.windows.panes import Number, Pane, WindowEvent, WindowPlan

CACHED_KEYS: Final = 200_000
"""Keys of a partition that stay in memory after their panes were written."""
KeyOf = tuple[int, bytes]
"""A series, and a key in it."""
PaneOf = tuple[int, bytes, int]
"""A series, a key in it, and the number of a pane."""


class WindowChange(NamedTuple):
    """Changes up to `offset` (exclusive): the complete changed panes, and the newest event."""

    offset: int
    panes: Mapping[PaneOf, Pane]
    newest_us: int | None


class CountedEvents(NamedTuple):
    """Result of counting events."""

    rows: list[list[Number] | HeadraceError | None]
    """The value of each window, for each event; None without an event."""
    late: int
    """Number of events that were too late to be counted."""


class PartitionState:
    """Counts the events of one partition, in order. Used by one thread."""

    def __init__(
        self, plan: WindowPlan, stored: "WindowStateFile", *, newest_us: int | None
    ) -> None:
        self._plan = plan
        self._stored = stored
        self._newest_us = newest_us
        self._keys: dict[KeyOf, dict[int, Pane]] = {}
        self._orders: dict[KeyOf, list[int]] = {}
        self._changes: deque[WindowChange] = deque()

    def __len__(self) -> int:
        """Number of keys in memory."""
        return len(self._keys)

    def count(
        self, events: Sequence[WindowEvent | HeadraceError | None], *, offset: int
    ) -> CountedEvents:
        """Count events and return the windows' values after each of them.

        An event older than the lateness allows is not counted. Its values are those of the oldest
        moment that still counts: earlier panes are dropped.

        Args:
            events: In order; an error and None are not counted.
            offset: The next one after their records.
        """
        self._load(events)
        touched: set[PaneOf] = set()
        rows: list[list[Number] | HeadraceError | None] = []
        late = 0
        for event in events:
            if not isinstance(event, WindowEvent):
                rows.append(event)
                continue
            newest_us = self._newest_us
            oldest_us = event.at_us if newest_us is None else self._plan.oldest_us(newest_us)
            if event.at_us < oldest_us:
                late += 1
            else:
                self._add(event, touched)
            rows.append(self._values(event, max(event.at_us, oldest_us)))
        panes = {
            (series, key, pane): self._keys[series, key][pane] for series, key, pane in touched
        }
        self._changes.append(WindowChange(offset, panes, self._newest_us))
        return CountedEvents(rows, late)

    @property
    def unwritten(self) -> int:
        """Number of changed panes, by batch."""
        return sum([len(change.panes) for change in self._changes])

    def changes(self, upper: int, *, max_panes: float = math.inf) -> WindowChange | None:
        """Return the merged changes before `upper`; None without changes.

        Args:
            max_panes: Approximate maximum number of panes; the rest is returned later.
        """
        panes: dict[PaneOf, Pane] = {}
        last = None
        for change in self._changes:
            if change.offset > upper or len(panes) >= max_panes:
                break
            panes.update(change.panes)
            last = change
        return last and WindowChange(last.offset, panes, last.newest_us)

    def on_written(self, offset: int) -> None:
        """Drop changes that were written, and surplus keys."""
        while self._changes and self._changes[0].offset <= offset:
            self._changes.popleft()
        surplus = len(self._keys) - CACHED_KEYS
        if surplus <= 0:
            return
        needed = {(series, key) for change in self._changes for series, key, _ in change.panes}
        for series_key in [series_key for series_key in self._keys if series_key not in needed][
            :surplus
        ]:
            del self._keys[series_key], self._orders[series_key]

    def _load(self, events: Iterable[WindowEvent | HeadraceError | None]) -> None:
        needed = {
            (number, event.keys[series.key])
            for event in events
            if isinstance(event, WindowEvent)
            for number, series in enumerate(self._plan.series)
        }
        missing = [series_key for series_key in needed if series_key not in self._keys]
        if not missing:
            return
        stored = self._stored.read(missing)
        for series_key in missing:
            panes = dict(stored.get(series_key, {}))
            self._keys[series_key] = panes
            self._orders[series_key] = sorted(panes)

    def _add(self, event: WindowEvent, touched: set[PaneOf]) -> None:
        at_us = event.at_us
        self._newest_us = at_us if self._newest_us is None else max(self._newest_us, at_us)
        oldest_us = self._plan.oldest_us(self._newest_us)
        for number, series in enumerate(self._plan.series):
            value = 0.0 if series.field is None else event.values[series.field]
            if value is None:
                continue
            key = event.keys[series.key]
            panes, order = self._keys[number, key], self._orders[number, key]
            pane = at_us // series.pane_us
            before = panes.get(pane)
            if before is None:
                insort(order, pane)
                first = series.first_needed(oldest_us)
                while order[0] < first:  # no later event needs it
                    dropped = order.pop(0)
                    panes.pop(dropped, None)
                    touched.discard((number, key, dropped))
            panes[pane] = (before or Pane()).with_value(value)
            touched.add((number, key, pane))

    def _values(self, event: WindowEvent, at_us: int) -> list[Number]:
        values = []
        for window in self._plan.windows:
            series = self._plan.series[window.series]
            series_key = window.series, event.keys[series.key]
            panes, order = self._keys[series_key], self._orders[series_key]
            values.append(window.value(panes, order, series.pane_us, at_us))
        return values


_log = logging.getLogger(__name__)
_HOME_FOLDER: Final = "stream-state"
_VERSION: Final = 1
_LOCK_TIMEOUT_S: Final = 5.0
_PRIVATE: Final = 0o700
_MAX_NAME: Final = 200
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS state (
    one INTEGER PRIMARY KEY CHECK (one = 1), definition TEXT NOT NULL, "offset" INTEGER NOT NULL,
    newest_us INTEGER, owner INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS panes (
    series INTEGER, "key" BLOB, pane INTEGER, count INTEGER NOT NULL, total REAL NOT NULL,
    least REAL NOT NULL, greatest REAL NOT NULL, PRIMARY KEY (series, "key", pane)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS panes_by_age ON panes (series, pane);
"""


class StatePosition(NamedTuple):
    """Offset up to which a state counts, and its newest event in microseconds since 1970."""

    offset: int
    newest_us: int | None


class WindowStateFile:
    """State file of one partition. Used by one thread.

    Args:
        definition: Definition of the windows; a state with another definition is discarded.
    """

    def __init__(self, path: Path, *, definition: str) -> None:
        self._path = path
        self._definition = definition
        self._db = self._open()
        try:
            with self._using("write") as db:
                row = db.execute("SELECT definition FROM state").fetchone()
                if row is not None and row[0] != self._definition:
                    db.execute("DELETE FROM state")
                    db.execute("DELETE FROM panes")
                owner = db.execute("UPDATE state SET owner = owner + 1 RETURNING owner").fetchall()
            self._owner = int(owner[0][0]) if owner else 0
        except BaseException:
            self._db.close()
            raise

    def position(self) -> StatePosition | None:
        """Return the position of the stored state; None without one."""
        with self._using("read") as db:
            row = db.execute('SELECT "offset", newest_us FROM state').fetchone()
        return None if row is None else StatePosition(*row)

    def begin(self, offset: int) -> None:
        """Discard all panes; count from this offset."""
        with self._using("write") as db:
            db.execute("DELETE FROM panes")
            (owner,) = db.execute(
                "INSERT INTO state VALUES (1, ?, ?, NULL, 1) ON CONFLICT (one) DO UPDATE SET "
                'definition = excluded.definition, "offset" = excluded."offset", '
                "newest_us = NULL, owner = owner + 1 RETURNING owner",
                (self._definition, offset),
            ).fetchone()
        self._owner = int(owner)

    def read(self, keys: Sequence[KeyOf]) -> Mapping[KeyOf, Mapping[int, Pane]]:
        """Return the stored panes of these keys; keys without panes are left out."""
        panes: dict[KeyOf, dict[int, Pane]] = {}
        with self._using("read") as db:
            for series_key in keys:
                rows = db.execute(
                    "SELECT pane, count, total, least, greatest FROM panes "
                    'WHERE series = ? AND "key" = ?',
                    series_key,
                ).fetchall()
                if rows:
                    panes[series_key] = {row[0]: Pane(*row[1:]) for row in rows}
        return panes

    def write(self, change: WindowChange, *, first_needed: Sequence[int]) -> None:
        """Write panes and their offset in one transaction.

        Args:
            first_needed: The first needed pane of each series.

        Raises:
            ConflictError: Another process owns the file now.
            UnavailableError: The file cannot be written; nothing was written.
        """
        with self._using("write") as db:
            done = db.execute(
                'UPDATE state SET "offset" = ?, newest_us = ? WHERE owner = ?',
                (change.offset, change.newest_us, self._owner),
            )
            if done.rowcount != 1:
                msg = f"{self._path} was taken over by another worker; this one no longer writes it"
                raise ConflictError(msg)
            db.executemany(
                "INSERT OR REPLACE INTO panes VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(*series_key, *pane) for series_key, pane in change.panes.items()],
            )
            for series, first in enumerate(first_needed):
                db.execute("DELETE FROM panes WHERE series = ? AND pane < ?", (series, first))

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._db.close()

    def _open(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            try:
                return _connected(self._path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                _quarantine(self._path)
                return _connected(self._path)
        except (OSError, sqlite3.Error) as error:
            msg = f"cannot open the state of windows in {self._path}: {error}"
            raise FailedPreconditionError(msg) from error

    @contextmanager
    def _using(self, action: Literal["read", "write"]) -> Iterator[sqlite3.Connection]:
        try:
            if action == "write":
                self._db.execute("BEGIN IMMEDIATE")
            with self._db:  # commits, or rolls back
                yield self._db
        except sqlite3.Error as error:
            if type(error) is sqlite3.DatabaseError:  # damaged: the next owner starts a new file
                self._db.close()
                _quarantine(self._path)
            msg = f"cannot {action} the state of windows in {self._path}: {error}"
            raise UnavailableError(msg) from error


def state_path(folder: Path, partition: TopicPartition) -> Path:
    """Return the file of a partition; a long topic name is cut and completed by its hash."""
    name = quote(partition.topic, safe="")
    if len(name) > _MAX_NAME:
        digest = hashlib.sha256(partition.topic.encode()).hexdigest()[:16]
        name = f"{name[:_MAX_NAME]}~{digest}"
    return folder / f"{name}-{partition.partition}.db"


def _connected(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_LOCK_TIMEOUT_S, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            msg = f"it is of version {version}, which this Headrace cannot read; delete it"
            raise sqlite3.OperationalError(msg)  # noqa: TRY301  # handled as SQLite's errors
        db.executescript(_SCHEMA)
        db.execute(f"PRAGMA user_version = {_VERSION}")
    except BaseException:
        db.close()
        raise
    return db


def _quarantine(path: Path) -> None:
    """Keep a damaged file under another name for inspection."""
    _log.warning("the state of windows in %s is damaged; it is rebuilt from the topic", path)
    move(path, path.with_name(f"{path.name}.damaged"))
    for suffix in ("-wal", "-shm"):
        path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)


def state_folder(settings: WorkerSettings) -> Path:
    """Return the folder of a group's states."""
    home = Path(settings.home) if settings.home else Path.cwd()
    if settings.windows is not None and settings.windows.state:
        root = Path(settings.windows.state)
        return root / _folder_name(settings.name) / _folder_name(settings.group)
    return group_folder(home, settings.name, settings.group)


def group_folder(home: Path, stream: str, group: str) -> Path:
    """Return the default folder of a group's states."""
    return home / _HOME_FOLDER / _folder_name(stream) / _folder_name(group)


def _folder_name(name: str) -> str:
    return quote(name, safe="").replace(".", "%2E")  # '..' is a valid name
