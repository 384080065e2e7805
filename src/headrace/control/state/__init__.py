"""Stored state in SQLite or Postgres. Imports `model` and below.

Only `location` and `records` are loaded with this package; SQLAlchemy is when a store is opened.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from headrace.control.state.location import STATE_FILE, home_url, references_in, sqlite_path

if TYPE_CHECKING:
    from headrace.control.state.store import Store

__all__ = ["STATE_FILE", "home_url", "open_store", "references_in", "sqlite_path"]

_LOCK_TIMEOUT_S: Final = 5.0


def open_store(
    url: str, *, legacy: Path | None = None, lock_timeout_s: float = _LOCK_TIMEOUT_S
) -> "Store":
    """The store at `url`: `sqlite:///PATH`, or `postgresql://USER:PASSWORD@HOST/DATABASE`.

    A SQLite file is made, readable by its owner only. An older schema is brought up to date.

    Args:
        legacy: The state file that Headrace 0.1 wrote; taken over by a store that is still empty,
            and renamed to `….imported`.
        lock_timeout_s: How long to wait for another process that is writing.

    Raises:
        InvalidArgumentError: `url` names no database.
        FailedPreconditionError: The database cannot be reached, read or written, its driver is not
            installed, or a newer Headrace made it; so the message, which never shows a password.
    """
    # ruff: noqa: PLC0415  # costly to load
    from headrace.control.state.database import Database
    from headrace.control.state.schema import ensure_schema, import_legacy
    from headrace.control.state.store import Store

    database = Database(url, lock_timeout_s=lock_timeout_s)
    try:
        ensure_schema(database)
        if legacy is not None:
            import_legacy(database, legacy)
    except BaseException:
        database.close()
        raise
    return Store(database)
