"""Stored state in SQLite or Postgres. Imports `model` and below.

The package imports only `location` and `records`; SQLAlchemy is imported when a store is opened.
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
    """Open the store at `url`: `sqlite:///PATH`, or `postgresql://USER:PASSWORD@HOST/DATABASE`.

    A missing SQLite file is created, readable by its owner only. An older schema is migrated.

    Args:
        legacy: The state file of Headrace 0.1; an empty store imports it, and renames it to
            `….imported`.
        lock_timeout_s: Longest wait for another writing process, in seconds.

    Raises:
        InvalidArgumentError: `url` is not the URL of a database.
        FailedPreconditionError: The database cannot be reached, read or written, its driver is not
            installed, or a newer Headrace created it. The message never contains a password.
    """
    # ruff: noqa: PLC0415  # slow import
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
