"""CSV with a header: cut at ends of rows, parsed by Polars; a damaged row costs itself only."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from headrace.core import Array, Datatype, InvalidArgumentError
from headrace.jobs.columns import PARSED
from headrace.jobs.libraries import Schema, pa, pl
from headrace.jobs.messages import Shard, Sizes
from headrace.jobs.sources.csv_rows import CsvRows, find_rows
from headrace.jobs.sources.files import fingerprint, open_file, read_at, unreadable
from headrace.jobs.sources.lines import cut_file
from headrace.jobs.sources.source import Rows, Wanted, windows

_BOM: Final = b"\xef\xbb\xbf"
_MAX_HEAD_BYTES: Final = 1 << 20
_MORE: Final = "\x00more"
"""A column beyond the last: what a row with too many values has there."""
_TRUTH: Final = {"true": True, "false": False, "1": True, "0": False}
_SEPARATORS: Final = (",", ";", "\t", "|")


class CsvSource:
    """Files of separated values with the same header."""

    has_types = False

    def __init__(self, files: Sequence[str]) -> None:
        self._files = list(files)

    def schema(self, datatypes: Mapping[str, Datatype] | None = None) -> Schema:
        """The names; every column is text."""
        del datatypes
        names, _, _ = head_of(self._files[0])
        return pa.schema([(name, pa.large_string()) for name in names])

    def row_bytes(self, columns: Sequence[str]) -> float:
        """Not known."""
        del columns
        return 0.0

    def cut(self, sizes: Sizes, columns: Sequence[str]) -> list[Shard]:
        """Parts of about the size of a shard, at most 16 MiB."""
        del columns
        first, _, _ = head_of(self._files[0])
        shards: list[Shard] = []
        for name in self._files:
            names, begin, separator = head_of(name)
            if names != first:
                msg = f"{name} begins with other names than {self._files[0]}: {', '.join(names)}"
                raise InvalidArgumentError(msg[:500])

            def row_ends(data: bytes, *, complete: bool, separator: str = separator) -> Array:
                rows = find_rows(data, separator.encode(), len(first), complete=complete)
                return rows.bounds[1:]

            shards += cut_file(
                name,
                begin=begin,
                shard_bytes=sizes.shard_bytes,
                first=len(shards),
                line=2,
                row_ends=row_ends,
            )
        return shards

    def mark(self, shard: Shard) -> str:
        """Of its file."""
        return fingerprint(shard.file)[0]

    def read(self, shard: Shard, wanted: Wanted) -> Iterator[Rows]:
        """Parsed at once."""
        try:
            names, _, separator = head_of(shard.file)
            data = read_at(shard.file, shard.begin, shard.end)
        except OSError as error:
            raise unreadable(shard.file, error) from error
        frame, broken = parse(data, names, wanted, separator=separator)
        rows: list[CsvRows] = []

        def line_of(row: int) -> int:
            if not rows:
                rows.append(find_rows(data, separator.encode(), len(names)))
            return shard.line + rows[0].line_of(row)

        yield from windows(frame, wanted.rows, broken, line_of if shard.line else None)


def head_of(name: str) -> tuple[list[str], int, str]:
    """The names in the first line, where the rows begin, and what separates values.

    Values are separated by tabs in a `.tsv`; else by commas, or by the `;`, tab or `|` of a first
    line that has no comma.

    Raises:
        InvalidArgumentError: There are no names, or a name is not unique.
    """
    try:
        with open_file(name) as file:
            line = file.readline(_MAX_HEAD_BYTES)
    except OSError as error:
        raise unreadable(name, error) from error
    if not line:
        raise InvalidArgumentError(f"{name} is empty; its first line has to be the column names")
    try:
        text = line.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        msg = f"{name} begins with bytes that are not UTF-8; convert it: iconv -t UTF-8"
        raise InvalidArgumentError(msg) from error
    outside = "".join(text.split('"')[::2])
    separators = ("\t",) if name.lower().endswith(".tsv") else _SEPARATORS
    separator = next((one for one in separators if one in outside), separators[0])
    try:
        (names,) = csv.reader([text], delimiter=separator, strict=True)
    except (csv.Error, ValueError):
        names = []
    names = [column.strip() for column in names]
    if not names or not all(names):
        raise InvalidArgumentError(f"{name} does not begin with a line of column names")
    twice = next((column for column in names if names.count(column) > 1), None)
    if twice is not None:
        raise InvalidArgumentError(f"{name} has two columns called '{twice}'; rename one")
    return names, len(line), separator


def parse(
    data: bytes, names: Sequence[str], wanted: Wanted, *, separator: str
) -> tuple[pl.DataFrame, dict[int, str]]:
    """Rows of text as columns; numbers are parsed, and a row where that fails is told.

    First all at once as the numbers that they should be. If that fails, damaged rows are replaced
    by rows without values, and the numbers are parsed as text.
    """
    sign = separator.encode()
    numbers = {name: kind for name, kind in wanted.datatypes.items() if kind is not Datatype.BYTES}
    types = {name: PARSED[kind.dtype.kind] for name, kind in numbers.items()}
    rows = find_rows(data, sign, len(names)) if b'"' in data else None
    is_sound = b"\0" not in data and (rows is None or not rows.damaged)
    if is_sound and Datatype.BOOL not in numbers.values():
        try:
            frame = _read(data, names, wanted.columns, types, separator)
        except (pl.exceptions.PolarsError, ValueError):
            pass
        else:
            if frame[_MORE].null_count() == frame.height:
                return frame.drop(_MORE), {}
    rows = rows or find_rows(data, sign, len(names))
    data, broken = _mended(data, rows, names, wanted.columns, sign)
    frame = _read(data, names, wanted.columns, {}, separator).drop(_MORE)
    assert frame.height == len(rows), "Polars splits sound text as find_rows does"
    parsed = []
    for name, kind in numbers.items():
        text = frame[name].str.strip_chars()
        if kind is Datatype.BOOL:
            number = text.str.to_lowercase().replace_strict(
                _TRUTH, default=None, return_dtype=pl.Boolean
            )
        else:
            number = text.cast(PARSED[kind.dtype.kind], strict=False)
        for row in (number.is_null() & text.is_not_null() & (text != "")).arg_true().to_list():
            broken.setdefault(row, f"column '{name}': {str(text[row])[:40]!r} is no {kind}")
        parsed.append(number.alias(name))
    return frame.with_columns(parsed), broken


def _mended(
    data: bytes, rows: CsvRows, names: Sequence[str], columns: Sequence[str], separator: bytes
) -> tuple[bytes, dict[int, str]]:
    """The text with sound rows in the place of damaged ones, and what was wrong with these.

    A row that has too many values keeps the first ones. Values behind the last column that are
    empty are no mistake, nor are bytes that are not UTF-8 in a column that is not read.
    """
    broken = dict(rows.damaged)
    text = np.frombuffer(data, np.uint8)
    replaced: dict[int, bytes] = {}
    signs, first_signs = rows.separators(data, separator)
    for row in np.flatnonzero(np.diff(first_signs) >= len(names)).tolist():
        if row not in broken:
            behind = data[signs[first_signs[row] + len(names) - 1] : rows.bounds[row + 1]]
            if behind.strip(separator + b"\r\n"):
                values = first_signs[row + 1] - first_signs[row] + 1
                broken[row] = f"has {values} values, and the header has {len(names)} names"
            replaced[row] = data[rows.bounds[row] : rows.bounds[row + 1] - len(behind)] + b"\n"
    zeros = np.searchsorted(rows.bounds, np.flatnonzero(text == 0), side="right") - 1
    broken |= dict.fromkeys(np.unique(zeros).tolist(), "has a NUL byte")
    not_ascii = np.searchsorted(rows.bounds, np.flatnonzero(text > 127), side="right") - 1  # noqa: PLR2004  # the last of ASCII
    for row in np.unique(not_ascii).tolist():
        line = replaced.get(row, data[rows.bounds[row] : rows.bounds[row + 1]])
        try:
            line.decode()
        except UnicodeDecodeError:
            replaced[row] = line.decode(errors="replace").encode()
            places = [0, *(signs[first_signs[row] : first_signs[row + 1]] - rows.bounds[row] + 1)]
            values = zip(names, places, [*places[1:], len(line)], strict=False)
            for name, begin, end in values:
                if name in columns and not _is_utf8(line[begin:end]):
                    broken.setdefault(row, f"column '{name}' is not UTF-8")
    nothing = separator * (len(names) - 1) + b"\n"
    replaced |= dict.fromkeys(rows.damaged, nothing) | dict.fromkeys(zeros.tolist(), nothing)
    parts, end = [], 0
    for row in sorted(replaced):
        parts += [data[end : rows.bounds[row]], replaced[row]]
        end = int(rows.bounds[row + 1])
    return b"".join([*parts, data[end:]]), broken


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read(
    data: bytes,
    names: Sequence[str],
    columns: Sequence[str],
    types: Mapping[str, pl.DataType | type[pl.DataType] | None],
    separator: str,
) -> pl.DataFrame:
    every = [*names, _MORE]
    head = io.StringIO()
    csv.writer(head, delimiter=separator, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow(
        every
    )
    schema = {name: types.get(name) or pl.String for name in every}
    return pl.read_csv(
        io.BytesIO(head.getvalue().encode() + data),
        schema=schema,
        columns=[*dict.fromkeys(columns), _MORE],
        separator=separator,
    )
