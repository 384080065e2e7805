"""Where is kept what must survive? In a database: a SQLite file of the home, or Postgres by URL.

Only names are loaded with this package; SQLAlchemy is when a store is opened.
"""

from pathlib import Path

from headrace.control.state.address import STATE_FILE, home_url, sqlite_path
from headrace.control.state.references import references_in
from headrace.control.store import Store

__all__ = ["STATE_FILE", "home_url", "open_store", "references_in", "sqlite_path"]


def open_store(url: str, *, legacy: Path | None = None) -> Store:
    """The store at `url`: `sqlite:///PATH`, or `postgresql://USER:PASSWORD@HOST/DATABASE`.

    A SQLite file is made, readable by its owner only. An older schema is brought up to date.

    Args:
        legacy: The state file that Headrace 0.1 wrote; taken over by a store that is still empty,
            and renamed to `….imported`.

    Raises:
        InvalidArgumentError: `url` names no database.
        FailedPreconditionError: The database cannot be reached, read or written, its driver is not
            installed, or a newer Headrace made it; so the message, which never shows a password.
    """
    from headrace.control.state.opening import open_sql_store  # noqa: PLC0415  # costly to load

    return open_sql_store(url, legacy=legacy)
