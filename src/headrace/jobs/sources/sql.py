"""SQL source: rows of a query through ADBC, streamed as Arrow, whole or in key ranges.

Without a key there is one shard, as a database guarantees no order; with a key, each range is read
by its own query.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit, urlunsplit

from headrace.core import Datatype, FailedPreconditionError, InvalidArgumentError
from headrace.jobs.libraries import Schema, pa, pl
from headrace.jobs.messages import Shard, Sizes, SourceLocation
from headrace.jobs.sources.source import JobSource, ReadRequest, Rows, fingerprint, framed

SQLITE: Final = "sqlite:///"
_POSTGRES: Final = ("postgresql://", "postgres://")
_NEEDED: Final = "queries need ADBC: pip install 'headrace[sql]'"
_HEAD_ROWS: Final = 100
_STREAM_BYTES: Final = "adbc.sqlite.query.batch_rows"


def is_database(url: str) -> bool:
    """Return whether a URL names a supported database."""
    return url.startswith((SQLITE, *_POSTGRES))


def without_password(url: str) -> str:
    """Return a URL without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}@{host}"))


class SqlSource(JobSource):
    """A query on a database. `url` may contain a password; recorded locations do not."""

    def __init__(self, settings: SourceLocation, url: str) -> None:
        self._settings, self._url = settings, url
        self._query = settings.query.strip().rstrip(";").strip()
        if not self._query:
            msg = f"{settings.url} needs a query: --sql 'SELECT ...'"
            raise InvalidArgumentError(msg)
        self._schema: Schema = None

    def schema(self, datatypes: Mapping[str, Datatype] | None = None) -> Schema:
        """Return the columns of the first rows: SQLite knows no others."""
        del datatypes
        if self._schema is None:
            head = f"SELECT * FROM ({self._query}) AS q LIMIT {_HEAD_ROWS}"  # noqa: S608  # the user's own query
            with self._execute(head) as reader:
                self._schema = reader.schema
                list(reader)
        return self._schema

    def cut(self, sizes: Sizes, columns: Sequence[str]) -> list[Shard]:
        """Return one shard, or key ranges of about the size of a shard."""
        del columns
        key = self._settings.key
        if not key:
            mark = self._range_mark(0, 0)
            return [Shard(number=0, file=self._settings.url, begin=0, end=0, fingerprint=mark)]
        low, high, rows, missing = self._bounds(key)
        if missing:
            msg = (
                f"{missing} rows have a null '{key}' and are in no range; exclude them in the query"
            )
            raise InvalidArgumentError(msg)
        if not rows:
            return []
        parts = max(1, math.ceil(rows / sizes.shard_rows))
        step = max(1, math.ceil((high - low + 1) / parts))
        return [
            Shard(
                number=i,
                file=self._settings.url,
                begin=begin,
                end=min(begin + step, high + 1),
                fingerprint=self._range_mark(begin, min(begin + step, high + 1)),
            )
            for i, begin in enumerate(range(low, high + 1, step))
        ]

    def mark(self, shard: Shard) -> str:
        """Return the fingerprint of the database, if it is a file, and the range."""
        return self._range_mark(shard.begin, shard.end)

    def read(self, shard: Shard, request: ReadRequest) -> Iterator[Rows]:
        """Stream the rows, in the order of the key if there is one."""
        names = ", ".join(_quoted(name) for name in request.columns)
        query = f"SELECT {names} FROM ({self._query}) AS q"  # noqa: S608  # the user's own query
        if key := self._settings.key:
            query += (
                f" WHERE {_quoted(key)} >= {shard.begin} AND {_quoted(key)} < {shard.end}"
                f" ORDER BY {_quoted(key)}"
            )
        types = self.schema()
        with self._execute(query, request.rows) as reader:
            for batch in reader:
                for start in range(0, batch.num_rows, request.rows):
                    frame = framed(batch.slice(start, request.rows), request.columns)
                    yield Rows(frame=_as_planned(frame, types))

    def _bounds(self, key: str) -> tuple[int, int, int, int]:
        if key not in self.schema().names:
            msg = f"--sql-key: the query has no column '{key}'"
            raise InvalidArgumentError(msg)
        if not pa.types.is_integer(self.schema().field(key).type):
            msg = f"--sql-key: '{key}' is {self.schema().field(key).type}; ranges need integers"
            raise InvalidArgumentError(msg)
        name = _quoted(key)
        query = (
            f"SELECT MIN({name}) AS low, MAX({name}) AS high, COUNT({name}) AS n, "  # noqa: S608  # as above
            f"COUNT(*) - COUNT({name}) AS missing FROM ({self._query}) AS q"
        )
        with self._execute(query) as reader:
            (row,) = reader.read_all().to_pylist()
        return row["low"] or 0, row["high"] or 0, row["n"], row["missing"]

    def _range_mark(self, begin: int, end: int) -> str:
        return hashlib.sha256(f"{self._fingerprint()}:{begin}:{end}".encode()).hexdigest()[:32]

    def _fingerprint(self) -> str:
        """Return the fingerprint of SQLite's file and the query; servers have none."""
        mark = ""
        if self._url.startswith(SQLITE):
            path = self._url.removeprefix(SQLITE)
            mark, _ = fingerprint(path)
            wal = Path(f"{path}-wal")
            if wal.exists() and wal.stat().st_size:
                mark += fingerprint(str(wal))[0]
        return hashlib.sha256(f"{mark}\0{self._query}".encode()).hexdigest()[:32]

    @contextmanager
    def _execute(self, query: str, rows: int = 1024) -> Iterator[Any]:
        """Open a reader of record batches."""
        dbapi, target, error_types = self._driver()
        try:
            with dbapi.connect(target) as connection, connection.cursor() as cursor:
                if self._url.startswith(SQLITE):
                    cursor.adbc_statement.set_options(**{_STREAM_BYTES: str(rows)})
                cursor.execute(query)
                yield cursor.fetch_record_batch()
        except (*error_types, pa.ArrowException, OSError) as error:
            reason = _redacted(str(error), self._url)[:500]
            raise InvalidArgumentError(
                f"the query failed at {self._settings.url}: {reason}"
            ) from error

    def _driver(self) -> tuple[Any, str, tuple[type[Exception], ...]]:
        try:
            import adbc_driver_manager.dbapi as manager  # noqa: PLC0415  # optional

            if self._url.startswith(SQLITE):
                import adbc_driver_sqlite.dbapi as sqlite  # noqa: PLC0415  # as above

                path = self._url.removeprefix(SQLITE)
                if not Path(path).is_file():  # connecting would create it
                    raise InvalidArgumentError(f"database {path} does not exist")
                # Read-only: a job must not create locks or files.
                return sqlite, f"file:{Path(path).absolute()}?mode=ro", (manager.Error,)
            import adbc_driver_postgresql.dbapi as driver  # noqa: PLC0415  # as above
        except ModuleNotFoundError as error:
            raise FailedPreconditionError(_NEEDED) from error
        return driver, self._url, (manager.Error,)


def _as_planned(frame: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """Cast a frame to the types of the first rows.

    SQLite returns a column of a batch with only nulls as numbers.
    """
    empty = pl.from_arrow(pa.schema([schema.field(name) for name in frame.columns]).empty_table())
    assert isinstance(empty, pl.DataFrame)
    try:
        return frame.cast(dict(empty.schema))  # type: ignore[arg-type]  # datatypes by column
    except pl.exceptions.PolarsError as error:
        msg = (
            f"a column of the query has values of other types than in its first {_HEAD_ROWS} rows: "
            f"{str(error).partition(chr(10))[0][:200]}; CAST it in the query"
        )
        raise InvalidArgumentError(msg) from error


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _redacted(text: str, url: str) -> str:
    password = urlsplit(url).password
    text = re.sub(r"\s+", " ", text)
    for secret in (password, unquote(password or "")):
        if secret:
            text = text.replace(secret, "***")
    return text
