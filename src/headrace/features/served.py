"""Log of served feature rows: which values, for which entity, when; its format and its reader.

A file holds one row per line, as JSON, so that a replica needs no Parquet library and a crash loses
at most one line. NaN and infinity, which JSON lacks, are text. Files contain entity keys: only
their owner may read them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from headrace.core import Datatype, FailedPreconditionError
from headrace.core.error_kind import UNDECODABLE
from headrace.features.definitions import FeatureService, Value

SUFFIX: Final = ".jsonl"
MAX_ROWS: Final = 100_000
"""Limit of a comparison, newest rows first."""
_MAX_LINE_BYTES: Final = 1 << 22
_NAME: Final = re.compile(r"\d{8}T\d{6}\.\d{6}Z-[0-9a-f-]+\.jsonl")

Plain = bool | int | float | str
"""A value in a line: BYTES as Latin-1 text, one character per byte."""


class ServedRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The values that a service returned for one row."""

    at_us: int
    """Time of serving, in microseconds since 1970."""

    service: str

    schema_hash: str

    keys: dict[str, int | str]
    """By join key."""

    columns: dict[str, Plain]
    """Served values, by column."""

    statuses: dict[str, str]
    """By view; a view without a record appears only here."""

    event_us: dict[str, int] = {}
    """Event time of the served values, by view."""

    request: dict[str, Plain] = {}
    """Values of the request, by request column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRows:
    """Served rows in order of time."""

    rows: Sequence[ServedRow]

    other_schema: int = 0
    """Number of rows of other definitions."""

    unreadable: int = 0
    """Number of invalid lines, without an incomplete last line."""


def served_directory(home: Path, service: str) -> Path:
    """Return the directory of a home's log of a service."""
    return home / "features" / "served" / service


def list_served(directory: Path) -> list[Path]:
    """Return the files of one service, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


def read_served(
    path: Path, service: FeatureService, *, since_us: int | None = None, limit: int = MAX_ROWS
) -> ServedRows:
    """Return the newest rows of a file or directory that match the service's current definition.

    Raises:
        FailedPreconditionError: `path` does not exist, or cannot be read.
    """
    files = list_served(path) if path.is_dir() else [path]
    shape = _Served(service)
    rows: list[ServedRow] = []
    other = unreadable = 0
    for file in reversed(files):
        file_rows: list[ServedRow] = []
        for row in _lines(file):
            if row is not None and since_us is not None and row.at_us < since_us:
                continue
            if row is not None and not shape.is_current(row):
                other += 1
            elif row is None or not shape.is_whole(row):
                unreadable += 1
            else:
                file_rows.append(row)
        rows = file_rows + rows
        if len(rows) >= limit:
            break
    rows.sort(key=lambda row: row.at_us)
    return ServedRows(rows=rows[-limit:], other_schema=other, unreadable=unreadable)


def plain(value: Value) -> Plain:
    """Convert a value for a line."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, float) and (value != value or value in {float("inf"), float("-inf")}):  # noqa: PLR0124  # NaN
        return str(value)
    return value


def value_of(datatype: Datatype, value: Plain) -> Value:
    """Convert a value of a line to its datatype; ValueError if it does not fit."""
    match datatype:
        case Datatype.BYTES if isinstance(value, str):
            return value.encode("latin-1")
        case Datatype.FP32 | Datatype.FP64 if not isinstance(value, bool):
            return float(value)
        case Datatype.BOOL if isinstance(value, bool):
            return value
        case Datatype.INT64 if isinstance(value, int) and not isinstance(value, bool):
            return value
    raise ValueError(f"{value!r} is no {datatype}")


def _lines(path: Path) -> Iterator[ServedRow | None]:
    """Yield the rows of a file; None for an invalid line."""
    decoder = msgspec.json.Decoder(ServedRow)
    try:
        with path.open("rb") as file:
            for line in _bounded(file):
                try:
                    yield decoder.decode(line)
                except UNDECODABLE:
                    if line.endswith(b"\n"):
                        yield None
    except FileNotFoundError:
        raise FailedPreconditionError(f"{path} does not exist") from None
    except OSError as error:
        raise FailedPreconditionError(f"cannot read {path}: {error.strerror}") from error


def _bounded(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file; one that is too long is cut, and so counts as unreadable."""
    while line := file.readline(_MAX_LINE_BYTES):
        yield line if len(line) < _MAX_LINE_BYTES else b"\n"


class _Served:
    """The expected parts of a service's rows, precomputed because there are many rows."""

    def __init__(self, service: FeatureService) -> None:
        self._service = (service.name, service.schema_hash)
        self._columns = [(column.name, column.feature.datatype) for column in service.columns]
        self._request = [(column.name, column.datatype) for column in service.request_columns]
        self._keys = [
            (entity.join_key, int if entity.datatype is Datatype.INT64 else str)
            for entity in service.entities
        ]
        self._views = [view.name for view in service.views]

    def is_current(self, row: ServedRow) -> bool:
        """Whether a row matches the service's current definition."""
        return (row.service, row.schema_hash) == self._service

    def is_whole(self, row: ServedRow) -> bool:
        """Whether a row has all its parts, with values of their types."""
        try:
            for name, datatype in self._columns:
                value_of(datatype, row.columns[name])
            for name, datatype in self._request:
                value_of(datatype, row.request[name])
            keys = all(isinstance(row.keys[name], kind) for name, kind in self._keys)
        except (KeyError, ValueError):
            return False
        return keys and all(name in row.statuses for name in self._views)
