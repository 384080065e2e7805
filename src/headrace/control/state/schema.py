"""Schema of the database: creation, migration, and import of the state file of Headrace 0.1."""

import logging
from pathlib import Path
from typing import Final

import msgspec
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

from headrace.control.model.desired import DesiredState
from headrace.control.state.database import Database
from headrace.control.state.desired_rows import load_state, replace_state
from headrace.control.state.tables import COUNTERS, METADATA, STATE
from headrace.core import FailedPreconditionError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import move

_LOG: Final = logging.getLogger("headrace.control")
NEWEST: Final = "0009"
"""Number of the last migration; numbers have four digits and increase by one."""
VERSION_TABLE: Final = "headrace_schema"
_MIGRATIONS: Final = Path(__file__).with_name("migrations")
_LEGACY_FORMAT: Final = 1
_UNDEFINED_TABLE: Final = "42P01"
_LOCK_KEY: Final = 0x6865_6164_7261_6365  # "headrace"; any number unique to Headrace


def ensure_schema(database: Database) -> None:
    """Migrate the schema to the newest version; one read if it is current.

    An empty database gets the newest schema directly. All migrations run in one transaction, by one
    process at a time: a crash or an error leaves the old schema, and a second control plane that
    starts meanwhile waits and finds the new one.

    Raises:
        FailedPreconditionError: A newer Headrace created the schema, or it cannot be changed.
    """
    if _version(database) == NEWEST:
        return
    with database.writing("bring the schema up to date") as connection:
        if connection.dialect.name == "postgresql":
            key = {"key": _LOCK_KEY}
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), key)
        version = None
        if inspect(connection).has_table(VERSION_TABLE):
            version = connection.execute(_SELECT_VERSION).scalar()
        if version is not None and not "0000" < version <= NEWEST:
            message = (
                f"{database.name} has schema {version} of a newer Headrace; this version "
                f"supports up to {NEWEST}: upgrade Headrace, or restore an older backup"
            )
            raise FailedPreconditionError(message)
        if version is None:
            _make(connection)
        elif version != NEWEST:
            migrate(connection)


def _version(database: Database) -> str | None:
    """Return the schema's version by one select; None for an empty database."""
    try:
        with database.reading("open the state") as connection:
            return connection.execute(_SELECT_VERSION).scalar()
    except FailedPreconditionError as error:
        if _is_missing_table(error.__cause__):
            return None
        raise


def _is_missing_table(error: BaseException | None) -> bool:
    cause = error.orig if isinstance(error, DBAPIError) else None
    return getattr(cause, "sqlstate", None) == _UNDEFINED_TABLE or "no such table" in str(cause)


def _make(connection: Connection) -> None:
    """Create the newest schema, and the rows that are updated but never inserted.

    A test compares it with the result of the migrations. Alembic takes as long to import as all
    other database modules of a control plane.
    """
    METADATA.create_all(connection)
    state = {"id": 1, "generation": 0, "at": 0.0, "spec": "{}", "pools": "[]", "endpoints": "[]"}
    connection.execute(STATE.insert(), state)
    names = ("events", "rollouts", "trail")
    connection.execute(COUNTERS.insert(), [{"name": name, "value": 0} for name in names])
    key = f"CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY (version_num)"
    connection.execute(
        text(f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL, {key})")
    )
    connection.execute(text(f"INSERT INTO {VERSION_TABLE} VALUES ('{NEWEST}')"))  # noqa: S608  # a constant


def migrate(connection: Connection) -> None:
    """Run the missing migrations."""
    # Slow import, needed once.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, NEWEST)


_SELECT_VERSION: Final = text(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608  # a constant


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    state: DesiredState


def read_legacy(path: Path) -> DesiredState | None:
    """Return the state in the file of Headrace 0.1; None if there is no file.

    Raises:
        FailedPreconditionError: The file cannot be read.
    """
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
    except FileNotFoundError:
        return None
    except (OSError, *UNDECODABLE) as error:
        message = f"cannot read {path}: {error}; move it away to start from the spec file"
        raise FailedPreconditionError(message) from error
    if stored.format != _LEGACY_FORMAT:
        message = f"{path} has format {stored.format}; this version reads {_LEGACY_FORMAT}"
        raise FailedPreconditionError(message)
    return stored.state


def import_legacy(database: Database, path: Path) -> None:
    """Import the state in `path` if the database has none, and rename the file.

    After a crash in between both exist, and the next start only renames.

    Raises:
        FailedPreconditionError: The file cannot be read; it stays.
    """
    state = read_legacy(path)
    if state is None:
        return
    with database.writing(f"import {path}") as connection:
        stored = load_state(connection).generation
        if stored == 0 < state.generation:
            numbered = tuple(
                msgspec.structs.replace(endpoint, generation=1) for endpoint in state.endpoints
            )
            replace_state(
                connection,
                msgspec.structs.replace(state, endpoints=numbered),
                timestamp=path.stat().st_mtime,
                reason=f"taken over from {path.name}",
                actor="",
                before=0,
            )
        elif stored != state.generation:
            extra = {"path": str(path), "generation": stored}
            _LOG.warning("an old state file is ignored: the database has a state", extra=extra)
            return
    move(path, path.with_name(f"{path.name}.imported"))
