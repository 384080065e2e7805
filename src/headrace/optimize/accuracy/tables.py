"""Readers of example tables: CSV, JSON lines and Parquet.

Files are streamed and sampled, so that large ones need no memory. Errors name the line.
"""

import csv
import importlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
import numpy as np

from headrace.core import Array, FailedPreconditionError, InvalidArgumentError

MAX_FILE_BYTES: Final = 4 << 30
MAX_CACHED_BYTES: Final = 1 << 30
MAX_LINE_BYTES: Final = 4 << 20
MAX_EXAMPLES: Final = 100_000
"""Sample size of larger files; more labels would not find smaller relevant losses."""
SEED: Final = 20_261_124
_BOM: Final = b"\xef\xbb\xbf"
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")
_LOOK_AHEAD: Final = 100
_LABEL_AFTER_SPACE: Final = re.compile(r"^(.*\S)\s+([-+]?\d+(?:\.\d+)?)$", re.DOTALL)
Cells = Sequence[object]
IsHeader = Callable[[Sequence[str], Sequence[str]], bool]
"""Decides from the first two rows whether the first is a header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleTable:
    """Sampled rows of a file."""

    path: Path
    columns: dict[str, list[object]]
    """Cells by column; raw texts if the format is untyped. Unnamed columns are "1", "2", and on."""
    lines: Sequence[int]
    """Line number of each row, from 1."""
    rows: int
    """Number of rows in the file."""
    is_named: bool

    def row_error(self, row: int, message: str) -> InvalidArgumentError:
        """Return an error that names the row's line."""
        return InvalidArgumentError(f"{self.path}, line {self.lines[row]}: {message}")

    def describe_columns(self) -> str:
        """Return the column names for messages."""
        shown = 12
        listed = list(self.columns)
        names = ", ".join(repr(name) for name in listed[:shown])
        more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
        return f"{'columns' if self.is_named else 'unnamed columns'} {names}{more}"


class RowSampler:
    """Reservoir sample of at most `limit` rows.

    Algorithm R, Vitter 1985, "Random Sampling with a Reservoir".
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.count = 0
        self._path = path
        self._limit = limit
        self._sample: list[tuple[int, Cells, int]] = []
        self._bytes = 0
        self._rng = np.random.default_rng(SEED)

    def offer(self, line: int, cells: Cells, size_bytes: int) -> None:
        """Consider a row for the sample."""
        self.count += 1
        position = len(self._sample)
        if self.count > self._limit:
            position = int(self._rng.integers(self.count))
            if position >= self._limit:
                return
            self._bytes -= self._sample[position][2]
        self._sample[position : position + 1] = [(line, cells, size_bytes)]
        self._bytes += size_bytes
        if self._bytes > MAX_CACHED_BYTES:
            msg = (
                f"{self._path}: {len(self._sample)} rows exceed {MAX_CACHED_BYTES >> 20} MiB; "
                "set a "
                "smaller limit of examples"
            )
            raise InvalidArgumentError(msg)

    def table(self, names: Sequence[str], *, is_named: bool) -> ExampleTable:
        """Return the sampled rows in the file's order."""
        if not self._sample:
            msg = f"{self._path} holds no rows; each line is one example, with its label"
            raise InvalidArgumentError(msg)
        rows = sorted(self._sample, key=lambda row: row[0])
        return ExampleTable(
            path=self._path,
            columns={name: [row[1][i] for row in rows] for i, name in enumerate(names)},
            lines=[row[0] for row in rows],
            rows=self.count,
            is_named=is_named,
        )


def check_size(path: Path) -> None:
    """Refuse a path that is not a file, is empty, or is too large.

    Raises:
        InvalidArgumentError: The path is refused.
    """
    if not path.is_file():
        raise InvalidArgumentError(f"{path} is not a file")
    size = path.stat().st_size
    if size == 0:
        raise InvalidArgumentError(f"{path} is empty")
    if size > MAX_FILE_BYTES:
        msg = (
            f"{path} has {size / 2**30:.1f} GiB, more than {MAX_FILE_BYTES >> 30} GiB; give a "
            "sample of it: a few thousand examples are enough"
        )
        raise InvalidArgumentError(msg)


def text_lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, str]]:
    """Yield UTF-8 lines with their numbers, line ends included.

    Raises:
        InvalidArgumentError: A line is too long, or not UTF-8.
    """
    number = 0
    while raw := file.readline(MAX_LINE_BYTES):
        number += 1
        if number == 1:
            if raw.startswith(_UTF16):
                raise InvalidArgumentError(f"{path} is UTF-16; save it as UTF-8")
            raw = raw.removeprefix(_BOM)
        if len(raw) >= MAX_LINE_BYTES and not raw.endswith(b"\n"):
            msg = f"{path}, line {number}: longer than {MAX_LINE_BYTES >> 20} MiB"
            raise InvalidArgumentError(msg)
        try:
            yield number, raw.decode()
        except UnicodeDecodeError as error:
            msg = f"{path}, line {number}: not UTF-8 (byte {error.start}); save it as UTF-8"
            raise InvalidArgumentError(msg) from None


def read_separated(path: Path, *, limit: int, is_header: IsHeader) -> ExampleTable:
    """Read a text table: `.csv` with quotes, others separated by tabs without quotes.

    In an unnamed tab table the last value, a number, may follow a space.

    Raises:
        InvalidArgumentError: It is malformed; the message names the line.
    """
    check_size(path)
    with path.open("rb") as file:
        lines = text_lines(file, path)
        is_csv = path.suffix.lower() == ".csv"
        rows = _csv_rows(lines, path) if is_csv else _tab_rows(lines)
        ahead = list(islice(rows, _LOOK_AHEAD))
        if not ahead:
            raise InvalidArgumentError(f"{path} holds no rows")
        second = ahead[1][1] if len(ahead) > 1 else []
        is_named = is_header(ahead[0][1], second)
        names = _names(ahead[0][1], path) if is_named else []
        width = len(names) if is_named else _usual_width(ahead, has_tabs=not is_csv)
        sample = RowSampler(path, limit)
        for number, values in chain(ahead[is_named:], rows):
            cells = values
            if len(cells) == width - 1 and not is_csv and not is_named:
                cells = _split_at_space(cells)
            if len(cells) != width:
                how = "comma" if is_csv else "tab"
                msg = (
                    f"{path}, line {number}: {len(cells)} values where there should be {width} "
                    f"({how} separated); correct or remove the line"
                )
                raise InvalidArgumentError(msg)
            sample.offer(number, cells, sum(map(len, cells)) + 64 * width)
    names = names or [str(i) for i in range(1, width + 1)]
    return sample.table(names, is_named=is_named)


def _csv_rows(lines: Iterable[tuple[int, str]], path: Path) -> Iterator[tuple[int, list[str]]]:
    numbered = iter(lines)
    first = next(numbered, (1, ""))
    current_line = [first[0]]

    def plain() -> Iterator[str]:
        for number, line in chain([first], numbered):
            current_line[0] = number
            yield line

    separators = [mark for mark in ",;\t" if mark in first[1]] or [","]
    try:
        for cells in csv.reader(plain(), strict=True, delimiter=separators[0]):
            if any(cell.strip() for cell in cells):
                yield current_line[0], cells
    except csv.Error as error:
        msg = (
            f"{path}, line {current_line[0]}: {error}; quote texts as CSV does, or use tabs (.tsv)"
        )
        raise InvalidArgumentError(msg) from None


def _tab_rows(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines:
        if line.strip():
            yield number, line.rstrip("\r\n").split("\t")


def _usual_width(rows: Sequence[tuple[int, list[str]]], *, has_tabs: bool) -> int:
    width = Counter(len(cells) for _, cells in rows).most_common(1)[0][0]
    if width == 1 and has_tabs and all(len(_split_at_space(cells)) > 1 for _, cells in rows):
        return 2
    return width


def _split_at_space(cells: list[str]) -> list[str]:
    match = _LABEL_AFTER_SPACE.match(cells[-1].rstrip())
    return [*cells[:-1], *match.groups()] if match else cells


def _names(cells: Sequence[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InvalidArgumentError(f"{path}: two columns are called {twice[0]!r}; rename one")
    return names


_ROWS_PER_CHUNK: Final = 256
_SHOWN: Final = 80
_OBJECT_BYTES: Final = 64


def read_json_lines(path: Path, *, limit: int) -> ExampleTable:
    """Read a table of one JSON object per line; the first one names the columns.

    Raises:
        InvalidArgumentError: It is malformed; the message names the line.
    """
    check_size(path)
    names: list[str] = []
    sample = RowSampler(path, limit)
    with path.open("rb") as file:
        for number, line in text_lines(file, path):
            if not line.strip():
                continue
            try:
                row = msgspec.json.decode(line)
            except (msgspec.DecodeError, RecursionError) as error:
                msg = f"{path}, line {number}: no JSON: {str(error)[:_SHOWN]}"
                raise InvalidArgumentError(msg) from None
            if not isinstance(row, dict) or not row:
                msg = f"{path}, line {number}: not a JSON object; write one object per line"
                raise InvalidArgumentError(msg)
            names = names or list(row)
            sample.offer(number, [row.get(name) for name in names], 4 * len(line))
    return sample.table(names, is_named=True)


def read_parquet(path: Path, *, limit: int) -> ExampleTable:
    """Read a Parquet file; row numbers serve as line numbers.

    Raises:
        InvalidArgumentError: It is not Parquet, or too large.
        FailedPreconditionError: pyarrow is not installed.
    """
    check_size(path)
    try:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        msg = "Parquet is read by pyarrow, which is not installed: pip install 'headrace[data]'"
        raise FailedPreconditionError(msg) from None
    sample = RowSampler(path, limit)
    try:
        with parquet.ParquetFile(path) as file:
            _check_unpacked(file.metadata, path)
            names = [str(name) for name in file.schema_arrow.names]
            total = int(file.metadata.num_rows)
            selected = np.arange(total)
            if total > limit:
                selected = np.sort(np.random.default_rng(SEED).choice(total, limit, replace=False))
            for number, cells in _rows(file, selected):
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


def _rows(file: Any, selected: Array) -> Iterator[tuple[int, list[object]]]:  # noqa: ANN401  # pyarrow has no types
    """Yield the chosen rows with their numbers from 1; only these become Python objects."""
    start = 0
    for part in file.iter_batches(batch_size=_ROWS_PER_CHUNK):
        low, high = np.searchsorted(selected, (start, start + part.num_rows))
        numbers = selected[low:high]
        if len(numbers):
            columns = [column.to_pylist() for column in part.take(numbers - start).columns]
            for number, cells in zip(numbers.tolist(), zip(*columns, strict=True), strict=True):
                yield number + 1, list(cells)
        start += part.num_rows


def _size_bytes(cell: object) -> int:
    if isinstance(cell, list):
        return _OBJECT_BYTES + sum(map(_size_bytes, cell))
    return len(cell) if isinstance(cell, str | bytes) else _OBJECT_BYTES
