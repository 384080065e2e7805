"""Records of served rows (which values, to which entity, when) and the files that hold them.

A file holds one row a line, as JSON, so that a replica writes it without Parquet's libraries and a
crash costs a line at most. Numbers that JSON has not (NaN, infinity) are text. Files hold keys of
entities: only their owner may read them.
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
"""The newest of them are compared."""
_MAX_LINE_BYTES: Final = 1 << 22
_NAME: Final = re.compile(r"\d{8}T\d{6}\.\d{6}Z-[0-9a-f-]+\.jsonl")

Plain = bool | int | float | str
"""A value as a line has it: BYTES as text of one character a byte (Latin-1)."""


class ServedRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a service gave for one row.

    `at_us`: when, in microseconds since 1970. `keys`, `request` and `columns` by name; `statuses`
    and `event_us`, when the served values became true, by view. A view without a record is in
    `statuses` only.
    """

    at_us: int
    service: str
    schema_hash: str
    keys: dict[str, int | str]
    columns: dict[str, Plain]
    statuses: dict[str, str]
    event_us: dict[str, int] = {}
    request: dict[str, Plain] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRows:
    """Rows that were read, the oldest first. `other_schema`: those of other definitions.

    `unreadable`: lines that are none; a last one that is written just now is not counted.
    """

    rows: Sequence[ServedRow]
    other_schema: int = 0
    unreadable: int = 0


def served_directory(home: Path, service: str) -> Path:
    """Where a home keeps what a service gave."""
    return home / "features" / "served" / service


def list_served(directory: Path) -> list[Path]:
    """The files of one service, the oldest first."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


def read_served(
    path: Path, service: FeatureService, *, since_us: int | None = None, limit: int = MAX_ROWS
) -> ServedRows:
    """The newest rows of a file or directory that the service, as it is now, gave.

    Raises:
        FailedPreconditionError: There is nothing at `path`, or it cannot be read.
    """
    files = list_served(path) if path.is_dir() else [path]
    of_service = _Served(service)
    found: list[ServedRow] = []
    other = unreadable = 0
    for file in reversed(files):
        of_file: list[ServedRow] = []
        for row in _lines(file):
            if row is not None and since_us is not None and row.at_us < since_us:
                continue
            if row is not None and not of_service.gave(row):
                other += 1
            elif row is None or not of_service.is_whole(row):
                unreadable += 1
            else:
                of_file.append(row)
        found = of_file + found
        if len(found) >= limit:
            break
    found.sort(key=lambda row: row.at_us)
    return ServedRows(rows=found[-limit:], other_schema=other, unreadable=unreadable)


def plain(value: Value) -> Plain:
    """A value for a line."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, float) and (value != value or value in {float("inf"), float("-inf")}):  # noqa: PLR0124  # NaN
        return str(value)
    return value


def value_of(datatype: Datatype, value: Plain) -> Value:
    """A value of a line as its datatype has it; ValueError if it is none."""
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
    """The rows of a file; None for a line that is none."""
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
        raise FailedPreconditionError(f"there is no {path}") from None
    except OSError as error:
        raise FailedPreconditionError(f"cannot read {path}: {error.strerror}") from error


def _bounded(file: BinaryIO) -> Iterator[bytes]:
    """Lines; of one that is too long what fits, so that it counts as unreadable."""
    while line := file.readline(_MAX_LINE_BYTES):
        yield line if len(line) < _MAX_LINE_BYTES else b"\n"


class _Served:
    """What rows of one service have; its parts are asked for once, as there are many rows."""

    def __init__(self, service: FeatureService) -> None:
        self._service = (service.name, service.schema_hash)
        self._columns = [(one.name, one.feature.datatype) for one in service.columns]
        self._request = [(one.name, one.datatype) for one in service.request_columns]
        self._keys = [
            (entity.join_key, int if entity.datatype is Datatype.INT64 else str)
            for entity in service.entities
        ]
        self._views = [view.name for view in service.views]

    def gave(self, row: ServedRow) -> bool:
        """Whether a row is of this service, as it is now defined."""
        return (row.service, row.schema_hash) == self._service

    def is_whole(self, row: ServedRow) -> bool:
        """Whether a row has all of its parts, and values of their types."""
        try:
            for name, datatype in self._columns:
                value_of(datatype, row.columns[name])
            for name, datatype in self._request:
                value_of(datatype, row.request[name])
            keys = all(isinstance(row.keys[name], kind) for name, kind in self._keys)
        except (KeyError, ValueError):
            return False
        return keys and all(name in row.statuses for name in self._views)
