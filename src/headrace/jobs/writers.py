"""Writers of the output formats of a job.

A crash leaves files called `.NAME.tmp` or `.NAME.ATTEMPT.tmp`, which are not output.
"""

import contextlib
import hashlib
from pathlib import Path
from typing import IO, Any, Final, Protocol

import msgspec
import orjson

from headrace.jobs.libraries import Schema, pa, pl, pq
from headrace.jobs.messages import FileFormat, OutputFile
from headrace.protocol.values import spelled

_ROWS: Final = 1 << 17
"""Maximum rows of a row group in the output."""
_BLOCK: Final = 1 << 20


class TableWriter(Protocol):
    """Writes tables of one schema, in order."""

    def write(self, table: Any) -> None:  # noqa: ANN401  # a pyarrow.Table
        """Add rows."""

    def close(self) -> None:
        """Write the remaining rows."""

    def abandon(self) -> None:
        """Close the file without completing it."""


def open_writer(
    file: IO[bytes], schema: Schema, form: FileFormat, *, buffer_bytes: int
) -> TableWriter:
    """Return the writer of a format."""
    match form:
        case FileFormat.PARQUET:
            texts = [field.name for field in schema if _is_text(field.type)]
            parquet = pq.ParquetWriter(file, schema, compression="snappy", use_dictionary=texts)
            return _Grouped(parquet, buffer_bytes)
        case FileFormat.ARROW:
            return _Grouped(pa.ipc.new_file(file, schema), buffer_bytes)
        case FileFormat.CSV:
            return _Csv(file, schema)
        case FileFormat.JSONL:
            return _JsonLines(file)


class _Grouped:
    """Combines tables into larger groups, which are faster to read."""

    def __init__(self, writer: Any, buffer_bytes: int) -> None:  # noqa: ANN401  # pyarrow has no types
        self._writer, self._most = writer, buffer_bytes
        self._tables: list[Any] = []
        self._rows = self._bytes = 0

    def write(self, table: Any) -> None:  # noqa: ANN401  # as above
        self._tables.append(table)
        self._rows += table.num_rows
        self._bytes += table.nbytes
        if self._rows >= _ROWS or self._bytes >= self._most:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        with contextlib.suppress(OSError, pa.ArrowException):  # for instance if the disk is full
            self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.concat_tables(self._tables), max(self._rows, 1))
        self._tables, self._rows, self._bytes = [], 0, 0


class _Csv:
    """Comma-separated values; a list of fixed size becomes a column for each value."""

    def __init__(self, file: IO[bytes], schema: Schema) -> None:
        self._file = file
        empty = _flattened(schema.empty_table())
        file.write(empty.write_csv(include_header=True).encode())

    def write(self, table: Any) -> None:  # noqa: ANN401  # as above
        _flattened(table).write_csv(self._file, include_header=False)

    def close(self) -> None:
        """Do nothing: no rows are buffered."""

    def abandon(self) -> None:
        """Do nothing: no rows are buffered."""


class _JsonLines:
    """One object per line. NaN is null, an infinity `"Infinity"` or `"-Infinity"`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, table: Any) -> None:  # noqa: ANN401  # as above
        frame = _frame(table)
        lines = frame.write_ndjson().encode().split(b"\n")
        for column in frame.iter_columns():
            for row in _infinite_rows(column):  # Polars writes null for these, too
                values = orjson.loads(lines[row])
                value = column[row]
                plain = value.to_list() if isinstance(value, pl.Series) else value
                values[column.name] = spelled(plain)
                lines[row] = orjson.dumps(values)
        self._file.write(b"\n".join(lines))

    def close(self) -> None:
        """Do nothing: no rows are buffered."""

    def abandon(self) -> None:
        """Do nothing: no rows are buffered."""


def check_writable(schema: Schema, form: FileFormat) -> str:
    """Return why a format cannot hold such rows; empty if it can."""
    if form is not FileFormat.CSV:
        return ""
    wrong = [field.name for field in schema if _is_variable(field.type)]
    if not wrong:
        return ""
    return f"output '{wrong[0]}' has rows of different lengths, which CSV cannot hold; write jsonl"


def written(folder: Path, name: str) -> OutputFile:
    """Return a file's size and digest.

    Raises:
        OSError: The file cannot be read.
    """
    path = folder / name
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return OutputFile(name=name, size_bytes=path.stat().st_size, sha256=digest.hexdigest())


def error_lines(keys: Any, errors: dict[int, str], first: int) -> bytes:  # noqa: ANN401  # a pyarrow.Table
    """Return JSON lines with each row's index in the shard, its keys, and its error.

    Args:
        first: Index of the window's first row.
    """
    lines = []
    for row, text in sorted(errors.items()):
        (values,) = keys.slice(row, 1).to_pylist() or [{}]
        lines.append(msgspec.json.encode({"row": first + row, "keys": values, "error": text}))
    return b"".join(line + b"\n" for line in lines)


def _frame(table: Any) -> pl.DataFrame:  # noqa: ANN401  # as above
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _infinite_rows(column: pl.Series) -> list[int]:
    flat = column
    while isinstance(flat.dtype, pl.List | pl.Array):
        flat = flat.explode()
    if not flat.dtype.is_float() or not flat.is_infinite().any():
        return []
    return [row for row, value in enumerate(column.to_list()) if spelled(value) != value]


def _flattened(table: Any) -> pl.DataFrame:  # noqa: ANN401  # as above
    frame = _frame(table)
    columns: list[pl.Series] = []
    for column in frame.iter_columns():
        columns += _parts(column)
    return pl.DataFrame(columns)


def _parts(column: pl.Series) -> list[pl.Series]:
    kind = column.dtype
    if not isinstance(kind, pl.Array):
        return [column]
    parts = [column.arr.get(i).alias(f"{column.name}_{i}") for i in range(kind.shape[0])]
    return [column_part for part in parts for column_part in _parts(part)]


def _is_variable(kind: Any) -> bool:  # noqa: ANN401  # as above
    while pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_large_list(kind) or pa.types.is_list(kind))


def _is_text(kind: Any) -> bool:  # noqa: ANN401  # as above
    return bool(pa.types.is_large_string(kind) or pa.types.is_string(kind))
