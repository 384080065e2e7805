"""How does a control plane get at its state? Opened, of today's shape, the old file read."""

from pathlib import Path
from typing import Final

from headrace.control.state.database import LOCK_TIMEOUT_S, Database
from headrace.control.state.legacy import import_legacy
from headrace.control.state.retention import Bounds
from headrace.control.state.schema import ensure_schema
from headrace.control.state.sql_store import SqlStore

_BOUNDS: Final = Bounds()


def open_sql_store(
    url: str,
    *,
    legacy: Path | None = None,
    bounds: Bounds = _BOUNDS,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
) -> SqlStore:
    """The store at `url`, as `headrace.control.state.open_store` documents it.

    Args:
        bounds: How much is kept.
        lock_timeout_s: How long to wait for another process that is writing.
    """
    database = Database(url, lock_timeout_s=lock_timeout_s)
    try:
        ensure_schema(database)
        if legacy is not None:
            import_legacy(database, legacy)
    except BaseException:
        database.close()
        raise
    return SqlStore(database, bounds=bounds)
