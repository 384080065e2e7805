"""Database of the state: engine, single thread, transactions, and errors with a remedy."""

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
)

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from headrace.control.state.location import sqlite_path
from headrace.control.state.tables import COUNTERS
from headrace.core import ConflictError, FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql

_P = ParamSpec("_P")
_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)
Upsert: TypeAlias = "postgresql.Insert | sqlite.Insert"
LOCK_TIMEOUT_S: Final = 5.0
_CONNECT_TIMEOUT_S: Final = 5
_WRITES: Final = "headrace_writes"
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_LOST_RACES: Final = frozenset({"40001", "40P01"})
_LOCK_TIMED_OUT: Final = "55P03"


class Database:
    """A SQLite file or a Postgres database; connections are opened on demand.

    Awaited transactions run sequentially in the database's single thread. `name` is its name in
    messages: the file, or the URL without password and options.
    """

    def __init__(self, url: str, *, lock_timeout_s: float = LOCK_TIMEOUT_S) -> None:
        self._lock_timeout_s = lock_timeout_s
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        path = sqlite_path(url)
        if path is not None:
            self.name = str(path)
            self._secrets: tuple[str, ...] = ()
            self._engine = _sqlite_engine(path, lock_timeout_s)
        else:
            parsed = _parsed(url)
            self.name = _without_secrets(parsed)
            self._secrets = _secrets(parsed)
            self._engine = _postgres_engine(parsed, lock_timeout_s)

    @contextmanager
    def reading(self, operation: str) -> Iterator[Connection]:
        """Yield a transaction with a consistent snapshot of the database.

        Args:
            doing: Description of the operation, for error messages.

        Raises:
            FailedPreconditionError: The database cannot be reached or read.
        """
        is_postgres = self._engine.dialect.name == "postgresql"
        snapshot = {"isolation_level": "REPEATABLE READ"} if is_postgres else {}
        with self._transaction(operation, snapshot) as connection:
            yield connection

    @contextmanager
    def writing(self, operation: str) -> Iterator[Connection]:
        """Yield a transaction that is committed if the block succeeds, and else rolled back.

        Raises:
            FailedPreconditionError: The database cannot be reached or written, or another process
                locked it for too long.
            ConflictError: Another process changed the same rows concurrently.
        """
        with self._transaction(operation, {_WRITES: True}) as connection:
            yield connection

    async def run(self, transaction: Callable[[], _T]) -> _T:
        """Return what a blocking `transaction` returns, run in the database's thread.

        If the caller is cancelled, the transaction still runs to its end.
        """
        work = asyncio.get_running_loop().run_in_executor(self._executor, transaction)
        return await asyncio.shield(work)

    def close(self) -> None:
        """Finish the queued transactions, and close all connections."""
        self._executor.shutdown(wait=True)
        self._engine.dispose()

    @contextmanager
    def _transaction(self, operation: str, options: dict[str, Any]) -> Iterator[Connection]:
        with self._telling(operation), self._engine.connect() as opened:
            connection = opened.execution_options(**options)
            with connection.begin():
                yield connection

    @contextmanager
    def _telling(self, operation: str) -> Iterator[None]:
        dbapi = self._engine.dialect.loaded_dbapi
        try:
            yield
        except DBAPIError as error:
            raise self._error_of(error.orig or error, operation) from error
        except (dbapi.Error, SQLAlchemyError, OSError) as error:
            raise self._error_of(error, operation) from error

    def _error_of(
        self, error: BaseException, operation: str
    ) -> FailedPreconditionError | ConflictError:
        sqlstate = getattr(error, "sqlstate", None)
        detail = error.strerror if isinstance(error, OSError) else None
        reason = " ".join((detail or str(error)).split())
        for secret in self._secrets:
            reason = reason.replace(secret, "***")
        if sqlstate in _LOST_RACES:
            return ConflictError(f"cannot {operation} in {self.name}: {reason}; try again")
        if sqlstate == _LOCK_TIMED_OUT or "database is locked" in reason:
            held = f"another process has held it for {self._lock_timeout_s:g} s; try again"
            return FailedPreconditionError(f"cannot {operation} in {self.name}: {held}")
        if "not a database" in reason or "malformed" in reason:
            reason += "; move it away to start from the spec file, or restore a backup of it"
        return FailedPreconditionError(f"cannot {operation} in {self.name}: {reason}")


class _TableGroup(Protocol):
    """A class whose attributes are transactions."""

    database: Database


@dataclass(frozen=True, slots=True)
class BoundTransaction(Generic[_P, _T_co]):
    """A transaction of one database: a call is awaited, `blocking` runs in the calling thread."""

    database: Database
    doing: str
    statements: Callable[Concatenate[Connection, _P], _T_co]
    is_writing: bool

    async def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _T_co:
        """Run the statements; return their result once they are committed."""
        return await self.database.run(lambda: self.blocking(*args, **kwargs))

    def blocking(self, *args: _P.args, **kwargs: _P.kwargs) -> _T_co:
        """Run the statements in the calling thread, for callers without an event loop."""
        begin = self.database.writing if self.is_writing else self.database.reading
        with begin(self.doing) as connection:
            return self.statements(connection, *args, **kwargs)


@dataclass(frozen=True, slots=True)
class _Transaction(Generic[_P, _T]):
    """Descriptor that binds statements to the database of its object."""

    doing: str
    statements: Callable[Concatenate[Connection, _P], _T]
    is_writing: bool

    def __get__(
        self, group: _TableGroup, owner: type[_TableGroup] | None = None
    ) -> BoundTransaction[_P, _T]:
        return BoundTransaction(group.database, self.doing, self.statements, self.is_writing)


def reads(
    operation: str, statements: Callable[Concatenate[Connection, _P], _T]
) -> _Transaction[_P, _T]:
    """Declare a method that runs `statements` in a transaction that only reads.

    Args:
        doing: Description of the operation for error messages, such as `read the events`.
    """
    return _Transaction(operation, statements, is_writing=False)


def writes(
    operation: str, statements: Callable[Concatenate[Connection, _P], _T]
) -> _Transaction[_P, _T]:
    """Declare a method that runs `statements` in an atomic transaction."""
    return _Transaction(operation, statements, is_writing=True)


def count_up(connection: Connection, name: str, by: int) -> int:
    """Increment a counter by `by` and return it; its row is locked until the transaction ends.

    Numbers have no gaps, because the counter is part of the transaction.
    """
    counted = update(COUNTERS).where(COUNTERS.c.name == name)
    result = connection.execute(
        counted.values(value=COUNTERS.c.value + by).returning(COUNTERS.c.value)
    )
    value: int = result.scalar_one()
    return value


def upsert_into(table: Table, *, dialect: str) -> Upsert:
    """Return the dialect's insert statement with `on_conflict_do_update`."""
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql  # noqa: PLC0415  # 30 ms, unused by SQLite

        return postgresql.insert(table)
    return sqlite.insert(table)


def _sqlite_engine(path: Path, lock_timeout_s: float) -> Engine:
    engine = create_engine(URL.create("sqlite", database=str(path)), hide_parameters=True)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:  # noqa: ANN401  # of the driver
        # The driver would begin transactions implicitly, and read without one.
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {round(lock_timeout_s * 1000)}",
            "journal_mode = WAL",  # readers and one writer do not wait for each other
            "synchronous = FULL",  # commits survive a power failure
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Lock early: a transaction that reads before it writes cannot wait for another writer.
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    @event.listens_for(engine, "do_connect")
    def make_private(*_: object) -> None:
        # SQLite would make it world-readable; its other files get the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    return engine


def _postgres_engine(url: URL, lock_timeout_s: float) -> Engine:
    try:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            hide_parameters=True,
            pool_pre_ping=True,  # the server may have been restarted meanwhile
            connect_args={} if "connect_timeout" in url.query else _CONNECT,
        )
    except ModuleNotFoundError as error:
        message = (
            "state in Postgres needs psycopg; install it with pip install 'headrace[postgres]'"
        )
        raise FailedPreconditionError(message) from error

    @event.listens_for(engine, "connect", insert=True)  # before SQLAlchemy reads any text
    def prepare(connection: Any, _record: object) -> None:  # noqa: ANN401  # of the driver
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != _ENCODING:
            raise FailedPreconditionError(
                f"the database {_without_secrets(url)} has the encoding {encoding}, not "
                f"{_ENCODING}; create another one: CREATE DATABASE headrace ENCODING '{_ENCODING}' "
                "TEMPLATE template0"
            )
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {round(lock_timeout_s * 1000)}")
        connection.commit()

    return engine


_ENCODING: Final = "UTF8"
_CONNECT: Final = {"connect_timeout": _CONNECT_TIMEOUT_S}


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except (SQLAlchemyError, ValueError):
        message = (
            "the URL of the state cannot be read; it looks like postgresql://USER:PASSWORD@HOST:PORT"
            "/DATABASE, and special characters of the password are written as %XX"
        )
        raise InvalidArgumentError(message) from None  # the cause may contain the password


def _secrets(url: URL) -> tuple[str, ...]:
    named = (url.password, url.query.get("password"), url.query.get("sslpassword"))
    return tuple(secret for secret in named if isinstance(secret, str) and secret)


def _without_secrets(url: URL) -> str:
    host = url.host or url.query.get("host") or "localhost"
    port = f":{url.port}" if url.port else ""
    user = f"{url.username}@" if url.username else ""
    return f"postgresql://{user}{host}{port}/{url.database or ''}"
