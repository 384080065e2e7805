"""Files whose cells have types to a table: JSON lines and Parquet."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from headrace.core import Array, FailedPreconditionError, InvalidArgumentError
from headrace.optimize.accuracy.tables import (
    MAX_FILE_BYTES,
    SEED,
    Sample,
    Table,
    check_size,
    text_lines,
)

_ROWS_AT_ONCE: Final = 256
_SHOWN: Final = 80
_OBJECT_BYTES: Final = 64


def read_json_lines(path: Path, *, limit: int) -> Table:
    """A table of an object a line; the first one names the columns.

    Raises:
        InvalidArgumentError: It is none; the message names the line.
    """
    check_size(path)
    names: list[str] = []
    sample = Sample(path, limit)
    with path.open("rb") as file:
        for number, line in text_lines(file, path):
            if not line.strip():
                continue
            row = _object(line, path, number)
            names = names or list(row)
            sample.offer(number, [row.get(name) for name in names], 4 * len(line))
    return sample.table(names, is_named=True)


def _object(line: str, path: Path, number: int) -> dict[str, object]:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        msg = f"{path}, line {number}: no JSON: {str(error)[:_SHOWN]}"
        raise InvalidArgumentError(msg) from None
    if not isinstance(row, dict) or not row:
        msg = f"{path}, line {number}: no JSON object; write one a line, of values by name"
        raise InvalidArgumentError(msg)
    return row


def read_parquet(path: Path, *, limit: int) -> Table:
    """A table of a Parquet file's rows; a row's number stands for its line.

    Raises:
        InvalidArgumentError: It is none, or too large.
        FailedPreconditionError: pyarrow is not installed.
    """
    check_size(path)
    try:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        msg = "Parquet is read by pyarrow, which is not installed: pip install 'headrace[data]'"
        raise FailedPreconditionError(msg) from None
    sample = Sample(path, limit)
    try:
        with parquet.ParquetFile(path) as file:
            _check_unpacked(file.metadata, path)
            names = [str(name) for name in file.schema_arrow.names]
            total = int(file.metadata.num_rows)
            chosen = np.arange(total)
            if total > limit:
                chosen = np.sort(np.random.default_rng(SEED).choice(total, limit, replace=False))
            for number, cells in _rows(file, chosen):
                sample.offer(number, cells, sum(map(_size_bytes, cells)))
    except (ValueError, OSError, TypeError, arrow.lib.ArrowException) as error:
        msg = f"{path} cannot be read as Parquet: {str(error)[:_SHOWN]}"
        raise InvalidArgumentError(msg) from None
    return replace(sample.table(names, is_named=True), rows=total)


def _check_unpacked(metadata: Any, path: Path) -> None:  # noqa: ANN401  # pyarrow has no types
    groups = (metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if sum(groups) > MAX_FILE_BYTES:
        msg = f"{path} unpacks to more than {MAX_FILE_BYTES >> 30} GiB; give a sample of it"
        raise InvalidArgumentError(msg)


def _rows(file: Any, chosen: Array) -> Iterator[tuple[int, list[object]]]:  # noqa: ANN401  # pyarrow has no types
    """The chosen rows, each with its number from 1; only these become objects."""
    start = 0
    for part in file.iter_batches(batch_size=_ROWS_AT_ONCE):
        low, high = np.searchsorted(chosen, (start, start + part.num_rows))
        numbers = chosen[low:high]
        if len(numbers):
            columns = [column.to_pylist() for column in part.take(numbers - start).columns]
            for number, cells in zip(numbers.tolist(), zip(*columns, strict=True), strict=True):
                yield number + 1, list(cells)
        start += part.num_rows


def _size_bytes(cell: object) -> int:
    if isinstance(cell, list):
        return _OBJECT_BYTES + sum(map(_size_bytes, cell))
    return len(cell) if isinstance(cell, str | bytes) else _OBJECT_BYTES
