"""Tables of training data and features (Parquet, CSV, JSON lines, .npz) as column values.

Files are read in parts, so that a stream may be endless. An invalid row is reported by its number;
only an error of the file itself ends reading.

Unlike model inputs, data may have missing values and many rows.
"""

import csv
import importlib
import io
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    FailedPreconditionError,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    TensorSpec,
)
from headrace.core.error_kind import UNDECODABLE
from headrace.features import FeatureView

ROWS_PER_CHUNK: Final = 5_000
MAX_LINE_BYTES: Final = 4 << 20
_PARQUET: Final = b"PAR1"
_BOM: Final = b"\xef\xbb\xbf"
_TRUTH: Final = {"true": True, "false": False, "1": True, "0": False}
_SHOWN: Final = 60
Row = Mapping[str, object]
"""Values by column; None for missing values."""


def read_rows(
    stream: BinaryIO, name: str, view: FeatureView
) -> Iterator[list[tuple[int, Row | str]]]:
    """Yield parts of the rows, each with its number from 1; a text is the error of a row.

    The format is detected from the first bytes: Parquet, JSON (an object per line), else CSV with a
    header line, where an empty cell is a missing value.

    Raises:
        InvalidArgumentError: The file cannot be read further; earlier rows were yielded.
        FailedPreconditionError: The file is Parquet, and Polars is not installed.
    """
    rows: Iterator[Row | str]
    head = stream.read(len(_PARQUET))
    if head == _PARQUET:
        from headrace.features.source import (  # noqa: PLC0415  # an extra, and slow to load
            UNREADABLE,
            pl,
            reason_of,
        )

        try:
            frame = pl.read_parquet(io.BytesIO(head + stream.read()))
        except UNREADABLE as error:
            message = f"{name} cannot be read as Parquet: {reason_of(error)}"
            raise InvalidArgumentError(message) from error
        rows = frame.iter_rows(named=True)
    else:
        lines = _lines(head.removeprefix(_BOM), stream, name)
        first = next((line for line in lines if line.strip()), b"")
        if not first:
            raise InvalidArgumentError(f"{name} has no rows")
        rest = chain([first], lines)
        is_json = first.lstrip()[:1] == b"{"
        rows = _from_json(rest) if is_json else _from_csv(rest, name, view)
    numbered = enumerate((_timed(row, view) for row in rows), start=1)
    while part := list(islice(numbered, ROWS_PER_CHUNK)):
        yield part


def _lines(head: bytes, stream: BinaryIO, name: str) -> Iterator[bytes]:
    line = head if head.endswith(b"\n") else head + stream.readline(MAX_LINE_BYTES)
    while line:
        # The first part may contain several lines.
        *whole, last = line.splitlines(keepends=True)
        yield from whole
        if len(last) >= MAX_LINE_BYTES and not last.endswith(b"\n"):
            raise InvalidArgumentError(f"{name} has a line of more than {MAX_LINE_BYTES} bytes")
        yield last
        line = stream.readline(MAX_LINE_BYTES)


def _from_json(lines: Iterator[bytes]) -> Iterator[Row | str]:
    for line in filter(bytes.strip, lines):
        try:
            row = msgspec.json.decode(line)
        except UNDECODABLE as error:
            yield f"it is not JSON: {str(error)[:_SHOWN]}"
        else:
            yield row if isinstance(row, dict) else "it is not a JSON object"


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
    """Return the typed value of a cell; the text itself if it does not parse."""
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


def _timed(row: Row | str, view: FeatureView) -> Row | str:
    """Return the row with its time parsed from text, and in UTC if the view requires it."""
    name = view.source.timestamp_field
    if isinstance(row, str) or row.get(name) is None:
        return row
    time: object = row[name]
    if isinstance(time, str):
        text = time[:_SHOWN]
        try:
            time = datetime.fromisoformat(time)
        except ValueError:
            return f"{name!r}: '{text}' is not a time; write it as 2026-11-27T06:00:00Z"
    if isinstance(time, datetime) and time.tzinfo is None and view.source.is_naive_utc:
        time = time.replace(tzinfo=UTC)
    return {**row, name: time}


def opened(path: Path) -> BinaryIO:
    """Return the file at `path`; standard input for `-`."""
    if str(path) == "-":
        return sys.stdin.buffer
    return path.open("rb")


MAX_ROWS: Final = 500_000
"""Maximum number of rows that are read: more do not improve a reference."""
_NUMPY: Final = frozenset({".npz", ".npy"})
_LATEST_S: Final = 1e11
"""Larger numbers are milliseconds. Unit: seconds since 1970."""
Table = dict[str, Array]
"""Columns by name: float64 with NaN for missing values, or texts."""


def read_tensors(
    path: Path, signature: ModelSignature, *, columns: Sequence[str] = (), without: str = ""
) -> tuple[Tensors, dict[str, tuple[str, ...]]]:
    """Return the inputs, and outputs if the file has them, and the source columns of each.

    A column (or array) that is named like an input or output is that one. Else all columns together
    are the only input, in their order.

    Args:
        columns: Input columns of a table; empty for all.
        without: A column that is no input, as the rows' times; empty for none.

    Raises:
        InvalidArgumentError: The file cannot be read, or does not fit the model.
        FailedPreconditionError: The file is Parquet, and pyarrow is not installed.
    """
    specs = {spec.name: spec for spec in (*signature.inputs, *signature.outputs)}
    table = _table(path)
    if without:
        table.pop(without, None)
    if path.suffix in _NUMPY:
        arrays = {name or signature.inputs[0].name: array for name, array in table.items()}
        unknown = ", ".join(sorted(arrays.keys() - specs.keys()))
        if unknown:
            raise InvalidArgumentError(f"the model has no input or output named {unknown}")
        return {name: array[:MAX_ROWS] for name, array in arrays.items()}, {}
    unknown_columns = [name for name in columns if name not in table]
    if unknown_columns:
        msg = f"the file has no column {unknown_columns[0]!r}: {_names(table)}"
        raise InvalidArgumentError(msg)
    named = {name: column for name, column in table.items() if name in specs and not columns}
    tensors = {name: _tensor([column], specs[name]) for name, column in named.items()}
    made_of: dict[str, tuple[str, ...]] = {name: (name,) for name in named}
    missing = [spec for spec in signature.inputs if spec.name not in tensors]
    if not missing:
        return tensors, made_of
    if len(missing) > 1 or len(signature.inputs) > 1:
        inputs = ", ".join(spec.name for spec in missing)
        raise InvalidArgumentError(f"the file has no column for input {inputs}: {_names(table)}")
    spec = missing[0]
    selected = list(columns) or [name for name in table if name not in named]
    width = math.prod(spec.shape[1:] if signature.batched else spec.shape)
    if VARIABLE not in spec.shape[1:] and len(selected) != width:
        message = (
            f"input '{spec.name}' has {width} values a row, the file {len(selected)} columns "
            f"({_names(selected)}); select columns with --columns"
        )
        raise InvalidArgumentError(message)
    tensors[spec.name] = _tensor([table[name] for name in selected], spec)
    return tensors, made_of | {spec.name: tuple(selected)}


def read_times(path: Path, column: str) -> Array:
    """Return the times of a file's rows, `[rows]`, in seconds since 1970, from one column.

    Numbers are such seconds; texts are ISO 8601, in UTC where they name no zone.

    Raises:
        InvalidArgumentError: The column does not exist, or a value is not a time.
        FailedPreconditionError: The file is Parquet, and pyarrow is not installed.
    """
    table = _table(path)
    if column not in table:
        raise InvalidArgumentError(f"{path} has no column {column!r} of times: {_names(table)}")
    values = table[column].reshape(-1)[:MAX_ROWS]
    if values.dtype.kind == "M":
        values = values.astype("datetime64[us]").astype(np.float64) / 1e6
    times = np.array([_time(value) for value in values.tolist()], dtype=np.float64)
    wrong = np.flatnonzero(~(np.abs(times) < _LATEST_S))
    if len(wrong):
        message = (
            f"{path}, row {wrong[0] + 1}: column {column!r} has no time; "
            "write ISO 8601 (2026-11-29T16:00:00Z) or seconds since 1970"
        )
        raise InvalidArgumentError(message)
    return times


def _time(value: float | str) -> float:
    """Return seconds since 1970; NaN for invalid times."""
    if not isinstance(value, str):
        return float(value)
    try:
        moment = datetime.fromisoformat(value.strip())
    except ValueError:
        return math.nan
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _table(path: Path) -> Table:
    """Return the columns of a file; the one of a NumPy file without a name is called ``."""
    if path.suffix in _NUMPY:
        try:
            loaded = np.load(path, allow_pickle=False)
            return (
                {name: loaded[name] for name in loaded}
                if hasattr(loaded, "files")
                else {"": loaded}
            )
        except (ValueError, OSError, EOFError) as error:
            raise InvalidArgumentError(f"{path} cannot be read: {error}") from None
    if path.suffix in {".parquet", ".pq"}:
        try:
            parquet: Any = importlib.import_module("pyarrow.parquet")
        except ImportError:
            message = "reading Parquet needs pyarrow, which is not installed: `pip install pyarrow`"
            raise FailedPreconditionError(message) from None
        try:
            table = parquet.read_table(path).slice(0, MAX_ROWS)
        except (ValueError, OSError) as error:
            raise InvalidArgumentError(f"{path} cannot be read: {error}") from None
        return {name: column_of(table.column(name).to_pylist()) for name in table.column_names}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in islice(csv.reader(file, strict=True), MAX_ROWS + 1) if row]
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error}") from None
    if len(rows) < 2:  # noqa: PLR2004  # names, and a row
        raise InvalidArgumentError(f"{path} has no rows below the header")
    names = [name.strip() for name in rows[0]]
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(names):
            message = f"{path}, row {number}: {len(row)} values under {len(names)} names"
            raise InvalidArgumentError(message)
    columns = dict(zip(names, zip(*rows[1:], strict=True), strict=True))
    return {name: _of_texts(texts) for name, texts in columns.items()}


def _of_texts(texts: Sequence[str]) -> Array:
    """Return numbers if all are, with NaN for empty texts; else texts."""
    try:
        return np.array([float(text) if text.strip() else math.nan for text in texts])
    except ValueError:
        return np.array(texts, dtype=np.object_)


def column_of(values: Sequence[object]) -> Array:
    """Return a Parquet column: texts, or numbers (times in seconds since 1970); NaN is missing."""
    if any(isinstance(value, str | bytes) for value in values):
        return np.array(["" if value is None else value for value in values], dtype=np.object_)
    return np.array([_number(value) for value in values])


def _number(value: Any) -> float:  # noqa: ANN401  # pyarrow has no types
    if isinstance(value, date):
        whole = value if isinstance(value, datetime) else datetime.combine(value, time())
        return (whole if whole.tzinfo else whole.replace(tzinfo=UTC)).timestamp()
    return math.nan if value is None else float(value)


def _tensor(columns: Sequence[Array], spec: TensorSpec) -> Array:
    """Return columns side by side, as the model takes them; missing values stay NaN."""
    if spec.datatype is Datatype.BYTES:
        tensor = np.empty((len(columns[0]), len(columns)), dtype=np.object_)
        for i, column in enumerate(columns):
            tensor[:, i] = [value if isinstance(value, bytes) else str(value) for value in column]
        return tensor
    texts = [i for i, column in enumerate(columns) if column.dtype.kind == "O"]
    if texts:
        raise InvalidArgumentError(
            f"'{spec.name}' takes numbers, and column {texts[0] + 1} is text"
        )
    return np.stack(columns, axis=1)


def _names(names: "Sequence[str] | Table") -> str:
    shown = 8
    listed = list(names)
    return ", ".join(listed[:shown]) + (", …" if len(listed) > shown else "")
