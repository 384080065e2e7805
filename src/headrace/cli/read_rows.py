"""Turns rows that people have (Parquet, JSON lines, CSV) into values of one feature view.

Read a part at a time, so that a stream may be endless. A row that cannot be read is told by its
number; only what breaks the file itself ends it.
"""

import csv
import io
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from headrace.core import Datatype, InvalidArgumentError
from headrace.features import FeatureView

ROWS_AT_ONCE: Final = 5_000
MAX_LINE_BYTES: Final = 4 << 20
_PARQUET: Final = b"PAR1"
_BOM: Final = b"\xef\xbb\xbf"
_TRUTH: Final = {"true": True, "false": False, "1": True, "0": False}
_SHOWN: Final = 60

Row = Mapping[str, object]
"""Values by column; None is a missing one."""


def read_rows(
    stream: BinaryIO, name: str, view: FeatureView
) -> Iterator[list[tuple[int, Row | str]]]:
    """Parts of the rows, each with its number from 1; a text says why it is none.

    The format is told by the first bytes: Parquet, JSON (an object a line), else CSV with a line of
    names, in which nothing stands for a missing value.

    Raises:
        InvalidArgumentError: The file cannot be read on; what came before was given.
        FailedPreconditionError: It is Parquet, and Polars is not installed.
    """
    found: Iterator[Row | str]
    head = stream.read(len(_PARQUET))
    if head == _PARQUET:
        found = _from_parquet(head + stream.read(), name)
    else:
        lines = _lines(head.removeprefix(_BOM), stream, name)
        first = next((line for line in lines if line.strip()), b"")
        if not first:
            raise InvalidArgumentError(f"{name} holds no rows")
        rest = chain([first], lines)
        is_json = first.lstrip()[:1] == b"{"
        found = _from_json(rest) if is_json else _from_csv(rest, name, view)
    numbered = enumerate((_timed(row, view) for row in found), start=1)
    while part := list(islice(numbered, ROWS_AT_ONCE)):
        yield part


def _lines(head: bytes, stream: BinaryIO, name: str) -> Iterator[bytes]:
    line = head if head.endswith(b"\n") else head + stream.readline(MAX_LINE_BYTES)
    while line:
        # What was read at first may hold several lines of their own.
        *whole, last = line.splitlines(keepends=True)
        yield from whole
        if len(last) >= MAX_LINE_BYTES and not last.endswith(b"\n"):
            raise InvalidArgumentError(f"{name} has a line of more than {MAX_LINE_BYTES} bytes")
        yield last
        line = stream.readline(MAX_LINE_BYTES)


def _from_json(lines: Iterator[bytes]) -> Iterator[Row | str]:
    for line in lines:
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            yield f"it is no JSON: {str(error)[:_SHOWN]}"
            continue
        yield row if isinstance(row, dict) else "it is no JSON object"


def _from_csv(lines: Iterator[bytes], name: str, view: FeatureView) -> Iterator[Row | str]:
    kinds = {entity.join_key: entity.datatype for entity in view.entities}
    kinds |= {feature.name: feature.datatype for feature in view.features}
    try:
        reader = csv.reader((line.decode() for line in lines), strict=True)
        columns = [column.strip() for column in next(reader)]
        for row in reader:
            if not row:
                continue
            if len(row) != len(columns):
                yield f"it has {len(row)} values under {len(columns)} names"
                continue
            cells = zip(columns, row, strict=True)
            yield {column: _cell(text, kinds.get(column)) for column, text in cells}
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{name} cannot be read as CSV: {error}") from None


def _cell(text: str, datatype: Datatype | None) -> object:
    """What a cell says; as it is where that is nothing of the type, which is then told."""
    if not text:
        return None
    try:
        match datatype:
            case Datatype.INT64:
                return int(text)
            case Datatype.FP32 | Datatype.FP64:
                return float(text)
            case Datatype.BOOL:
                return _TRUTH.get(text.strip().lower(), text)
            case _:
                return text
    except ValueError:
        return text


def _from_parquet(data: bytes, name: str) -> Iterator[Row]:
    from headrace.features.source import (  # noqa: PLC0415
        UNREADABLE,
        pl,  # an extra, and slow to load
        reason_of,
    )

    try:
        frame = pl.read_parquet(io.BytesIO(data))
    except UNREADABLE as error:
        message = f"{name} cannot be read as Parquet: {reason_of(error)}"
        raise InvalidArgumentError(message) from error
    yield from frame.iter_rows(named=True)


def _timed(row: Row | str, view: FeatureView) -> Row | str:
    """The row, its time as one where it is text; and in UTC where the view takes it so."""
    name = view.source.timestamp_field
    said = None if isinstance(row, str) else row.get(name)
    if isinstance(row, str) or said is None:
        return row
    time: object = said
    if isinstance(said, str):
        try:
            time = datetime.fromisoformat(said)
        except ValueError:
            return f"{name!r}: '{said[:_SHOWN]}' is no time; write it as 2026-11-27T06:00:00Z"
    if isinstance(time, datetime) and time.tzinfo is None and view.source.is_naive_utc:
        time = time.replace(tzinfo=UTC)
    return {**row, name: time}


def opened(path: Path) -> BinaryIO:
    """The file at `path`; standard input for `-`."""
    if str(path) == "-":
        return sys.stdin.buffer
    return path.open("rb")
