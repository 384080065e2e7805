"""Location of the stored state, and its references to models, without loading SQLAlchemy."""

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from headrace.control.model.desired import DesiredEndpoint, DesiredStream
from headrace.control.model.records import RolloutRecord
from headrace.control.state.encoding import decoded
from headrace.core import FailedPreconditionError, InvalidArgumentError

STATE_FILE: Final = "state.db"
_SQLITE: Final = ("sqlite:///", "sqlite+pysqlite:///")
_POSTGRES: Final = frozenset({"postgres", "postgresql", "postgresql+psycopg"})
_HOW: Final = "use sqlite:///PATH or postgresql://USER@HOST/DATABASE"
_PINNED: Final = "SELECT pinned FROM endpoints"
_NEWEST_ROLLOUTS: Final = """
    SELECT record FROM rollouts
    WHERE serial IN (SELECT max(serial) FROM rollouts GROUP BY endpoint)
"""
_STATE: Final = "SELECT * FROM state"  # earlier versions have no streams
_STREAMS: Final = "streams"
_LOCK_TIMEOUT_S: Final = 5.0


def home_url(home: Path) -> str:
    """Return the URL of a home's database, a SQLite file in it."""
    return f"sqlite:///{home.absolute() / STATE_FILE}"


def sqlite_path(url: str) -> Path | None:
    """Return the file that `url` names; None if it names a Postgres database.

    The text after `sqlite:///` is the path, with any characters.

    Raises:
        InvalidArgumentError: `url` names neither. The message does not contain it, because it may
            contain a password.
    """
    for prefix in _SQLITE:
        if url.startswith(prefix) and len(url) > len(prefix):
            return Path(url.removeprefix(prefix)).absolute()
    scheme, separator, _ = url.partition("://")
    if separator and scheme in _POSTGRES:
        return None
    raise InvalidArgumentError(f"the URL of the state names no database; {_HOW}")


def references_in(url: str, *, legacy: Path | None = None) -> set[str]:
    """Return `NAME:VERSION` of every model that the state at `url` serves or may roll back to.

    These are the desired versions, and both sides of each endpoint's newest rollout: after a
    rollback the old version stays in use. A SQLite file is read with the standard library, which
    takes milliseconds, while SQLAlchemy takes 0.1 s.

    Args:
        legacy: File to read if the database does not exist yet.

    Raises:
        FailedPreconditionError: The state cannot be read.
    """
    path = sqlite_path(url)
    if path is None:
        return _references(*_read_postgres(url))
    if path.exists():
        return _references(*_read_sqlite(path))
    return set() if legacy is None else _legacy_references(legacy)


_Texts = tuple[list[str], list[str], str]
"""JSON texts of endpoints, of rollouts, and of the streams."""


def _read_sqlite(path: Path) -> _Texts:
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=_LOCK_TIMEOUT_S)) as connection:
            connection.execute("PRAGMA query_only = ON")
            pinned = [text for (text,) in connection.execute(_PINNED)]
            rollouts = [text for (text,) in connection.execute(_NEWEST_ROLLOUTS)]
            cursor = connection.execute(_STATE)
            names = [column[0] for column in cursor.description]
            state = dict(zip(names, cursor.fetchone() or (), strict=False))
            return pinned, rollouts, state.get(_STREAMS, "[]")
    except sqlite3.Error as error:
        message = f"cannot read the desired state in {path}: {error}"
        raise FailedPreconditionError(message) from error


def _read_postgres(url: str) -> _Texts:
    from headrace.control.state.database import Database  # noqa: PLC0415  # costly to load

    database = Database(url)
    try:
        with database.reading("read the desired state") as connection:
            pinned = connection.exec_driver_sql(_PINNED).scalars().all()
            rollouts = list(connection.exec_driver_sql(_NEWEST_ROLLOUTS).scalars())
            state = connection.exec_driver_sql(_STATE).mappings().first()
            streams = "[]" if state is None else state.get(_STREAMS, "[]")
            return list(pinned), rollouts, streams
    finally:
        database.close()


def _legacy_references(path: Path) -> set[str]:
    from headrace.control.state.schema import read_legacy  # noqa: PLC0415  # costly to load

    state = read_legacy(path)
    return set() if state is None else _models(state.endpoints)


def _references(pinned: list[str], rollouts: list[str], streams: str) -> set[str]:
    desired = [decoded(text, DesiredEndpoint, description="an endpoint") for text in pinned]
    records = [decoded(text, RolloutRecord, description="a rollout") for text in rollouts]
    moving = [endpoint for record in records for endpoint in (record.source, record.target)]
    running = decoded(streams, tuple[DesiredStream, ...], description="the streams")
    return _models([*desired, *moving]).union(stream.model for stream in running)


def _models(endpoints: Iterable[DesiredEndpoint]) -> set[str]:
    return {arm.revision.model for endpoint in endpoints for arm in endpoint.arms}
