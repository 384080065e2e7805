"""Where is the state? What a URL means, found out without loading a database library."""

from pathlib import Path
from typing import Final

from headrace.core import InvalidArgumentError

STATE_FILE: Final = "state.db"
_SQLITE: Final = ("sqlite:///", "sqlite+pysqlite:///")
_POSTGRES: Final = frozenset({"postgres", "postgresql", "postgresql+psycopg"})
_HOW: Final = "use sqlite:///PATH or postgresql://USER@HOST/DATABASE"


def home_url(home: Path) -> str:
    """The URL of the database that belongs to a home: a SQLite file in it."""
    return f"sqlite:///{home.absolute() / STATE_FILE}"


def sqlite_path(url: str) -> Path | None:
    """The file that `url` names; None if it names a Postgres database.

    All that follows `sqlite:///` is the path, whatever characters it has.

    Raises:
        InvalidArgumentError: It names neither. The message does not repeat it: it may hold a
            password.
    """
    for prefix in _SQLITE:
        if url.startswith(prefix) and len(url) > len(prefix):
            return Path(url.removeprefix(prefix)).absolute()
    scheme, separator, _ = url.partition("://")
    if separator and scheme in _POSTGRES:
        return None
    raise InvalidArgumentError(f"the URL of the state names no database; {_HOW}")
