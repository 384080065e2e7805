"""CSV source with a header: split at row ends, parsed by Polars; a bad row fails alone.

A value in quotes ends at a quote before a separator or an end of line, and `""` inside is a quote
(RFC 4180). A row that violates this is damaged; the rows after it are read as if it did not exist.
A damaged row extends:

- With a quote inside an unquoted value, or text after a closing quote: to the end of the line that
  contains the violation.
- With an unclosed quote: to the end of the line that contains the opening quote. A quote is
  unclosed if the text ends first, or if the next single quote opens a value (it follows a separator
  or begins a line, and text follows it).
- A quote that can both open and close a value (`,",`, or alone in its line) closes it, unless its
  row spans lines and has another number of values than the header: then the previous quote is
  unclosed.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.core import Array, Datatype, InvalidArgumentError
from headrace.jobs.columns import PARSED
from headrace.jobs.libraries import Schema, pa, pl
from headrace.jobs.messages import Shard, Sizes
from headrace.jobs.sources.json_lines import cut_file
from headrace.jobs.sources.source import (
    JobSource,
    ReadRequest,
    Rows,
    open_file,
    read_at,
    unreadable,
    windows,
)

UNCLOSED: Final = "a quote is not closed"
STRAY: Final = "a quote stands inside a value"
_QUOTE, _NEWLINE, _RETURN = (ord(char) for char in '"\n\r')
_FEW_LINES, _MAX_LINES = 256, 1 << 14
"""Lines that are scanned together after a damaged row; doubled after each step without damage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvRows:
    """Rows of a text that begins with a row.

    Rows are adjacent. Text after the last row is the start of a row whose end is not in the text.
    """

    bounds: Array
    """Start offset of each row, and the end offset of the last one."""
    damaged: dict[int, str]
    """Reason why a row is damaged, by its index."""
    newlines: Array
    """Offsets of newlines."""
    quotes: Array
    """Offsets of quotes."""

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def line_of(self, row: int) -> int:
        """Return the number of lines before a row."""
        return int(np.searchsorted(self.newlines, self.bounds[row]))

    def separators(self, data: bytes, separator: bytes) -> tuple[Array, Array]:
        """Return offsets of separators outside quotes, and the index of each row's first one."""
        every = np.flatnonzero(np.frombuffer(data, np.uint8) == ord(separator))
        if len(self.quotes):
            row = np.searchsorted(self.bounds, every, side="right") - 1
            before = np.searchsorted(self.quotes, self.bounds)[row]
            every = every[(np.searchsorted(self.quotes, every) - before) & 1 == 0]
        return every, np.searchsorted(every, self.bounds)


def find_rows(data: bytes, separator: bytes, columns: int, *, complete: bool = True) -> CsvRows:
    """Return the rows of a text, in time linear in its length.

    Args:
        columns: Number of values per row.
        complete: Whether the text ends at the end of the file or of a row; then the last row needs
            no end of line.
    """
    text = np.frombuffer(data, np.uint8)
    newlines = np.flatnonzero(text == _NEWLINE)
    quotes = np.flatnonzero(text == _QUOTE)
    if not len(quotes):
        bounds = np.concatenate([[0], newlines + 1])
        if complete and bounds[-1] < len(data):
            bounds = np.append(bounds, len(data))
        return CsvRows(bounds=bounds, damaged={}, newlines=newlines, quotes=quotes)
    scan = _Scan(text, newlines, quotes, ord(separator), columns, complete=complete)
    scan.run()
    bounds = np.concatenate([[0], *scan.ends])
    return CsvRows(bounds=bounds, damaged=scan.damaged, newlines=newlines, quotes=quotes)


class _Scan:
    """One pass over a text with quotes.

    From the start of a row, quotes alternately open and close; `""` is a close and an open.
    `_wrong` has the quotes that cannot have their alternate role: for rows whose first quote has
    an even index, and for those with an odd one. Between damaged rows, many rows are processed
    at once.
    """

    def __init__(
        self,
        text: Array,
        newlines: Array,
        quotes: Array,
        separator: int,
        columns: int,
        *,
        complete: bool,
    ) -> None:
        self._text, self._newlines, self._quotes = text, newlines, quotes
        self._separator, self._columns, self._complete = separator, columns, complete
        padded = np.full(len(text) + 3, _NEWLINE, np.uint8)
        padded[1:-2] = text
        before, after, then = padded[quotes], padded[quotes + 2], padded[quotes + 3]
        self._adjoins = before == _QUOTE
        starts = (before == separator) | (before == _NEWLINE)
        ends = (after == separator) | (after == _NEWLINE)
        ends |= (after == _RETURN) & (then == _NEWLINE)
        may_open, may_close = starts | self._adjoins, ends | (after == _QUOTE)
        is_even = np.zeros(len(quotes), np.bool_)
        is_even[::2] = True
        self._wrong = (
            np.flatnonzero(~np.where(is_even, may_open, may_close)),
            np.flatnonzero(~np.where(is_even, may_close, may_open)),
        )
        if self._adjoins.any():
            # Of adjacent quotes, the first determines whether they can open a value.
            number = np.arange(len(quotes), dtype=np.int32)
            starts = starts[np.maximum.accumulate(np.where(self._adjoins, 0, number))]
        self._begins, self._ends = starts, ends
        self._quotes_before = np.searchsorted(quotes, newlines)
        self.ends: list[Array] = []
        self.damaged: dict[int, str] = {}
        self._rows = 0

    def run(self) -> None:
        begin = first = newline = 0
        """Start of the next row; index of an opening quote; index of the next newline to scan."""
        lines = _FEW_LINES
        while begin < len(self._text):
            wrong = self._wrong[first & 1]
            index = int(np.searchsorted(wrong, first))
            quote = int(wrong[index]) if index < len(wrong) else len(self._quotes)
            stop = self._quotes[quote] if quote < len(self._quotes) else len(self._text)
            last = int(np.searchsorted(self._newlines, stop))
            end = min(last, newline + lines)
            outside = (self._quotes_before[newline:end] - first) & 1 == 0
            ends = self._newlines[newline:end][outside] + 1
            swallowed = self._swallowed(begin, ends, first)
            if swallowed is not None:
                begin, damage = self._add(begin, swallowed[0]), swallowed[1]
            else:
                begin = self._add(begin, ends)
                newline, lines = end, min(lines * 2, _MAX_LINES)
                if end < last:
                    continue
                last_damage = self._damage(begin, quote, first)
                if last_damage is None:
                    return
                damage = last_damage
            self.damaged[self._rows] = damage[1]
            begin = self._add(begin, np.array([damage[0]]))
            first = int(np.searchsorted(self._quotes, begin))
            newline = int(np.searchsorted(self._newlines, begin))
            lines = _FEW_LINES

    def _add(self, begin: int, ends: Array) -> int:
        self.ends.append(ends)
        self._rows += len(ends)
        return int(ends[-1]) if len(ends) else begin

    def _swallowed(
        self, begin: int, ends: Array, first: int
    ) -> tuple[Array, tuple[int, str]] | None:
        """Return the rows before the first one with a doubtful quote and a wrong value count."""
        if not len(ends):
            return None
        for opener, closer in self._doubtful(begin, int(ends[-1]), first):
            row = int(np.searchsorted(ends, self._quotes[closer], side="right"))
            start = int(ends[row - 1]) if row else begin
            if self._values(start, int(ends[row])) != self._columns:
                end = self._line_end(opener)
                assert end is not None, "the line of its closing quote is behind it"
                return ends[:row], (end, UNCLOSED)
        return None

    def _damage(self, begin: int, quote: int, first: int) -> tuple[int, str] | None:
        """Return the end of a damaged row, and the reason; None if valid or not yet decidable.

        Args:
            quote: Index of the row's first quote in `_wrong`; the number of quotes without one.
        """
        if quote == len(self._quotes):
            if not self._complete or begin == len(self._text):
                return None
            if (quote - first) & 1 == 0:
                self._add(begin, np.array([len(self._text)]))
                return None
            opener = self._opener(quote - 1)
            reason, line = UNCLOSED, opener
        else:
            reason, line = STRAY, quote
            if (quote - first) & 1 and self._begins[quote]:
                opener = self._opener(quote - 1)
                if self._line(opener) != self._line(quote):
                    reason, line = UNCLOSED, opener
        doubtful = next(self._doubtful(begin, int(self._quotes[line]), first), None)
        if doubtful is not None:
            reason, line = UNCLOSED, doubtful[0]
        end = self._line_end(line)
        return None if end is None else (end, reason)

    def _doubtful(self, begin: int, end: int, first: int) -> Iterator[tuple[int, int]]:
        """Yield both quotes of multi-line values whose closing quote could open one."""
        low, high = np.searchsorted(self._quotes, [begin, end])
        closers = np.arange(low + (low - first + 1) % 2, high, 2)
        closers = closers[self._begins[closers] & self._ends[closers]]
        lines = np.searchsorted(self._newlines, self._quotes[[closers - 1, closers]])
        closers = closers[(lines[0] != lines[1]) | self._adjoins[closers - 1]]
        for closer in closers.tolist():
            opener = self._opener(closer - 1)
            if self._line(opener) != self._line(closer):
                yield opener, closer

    def _opener(self, quote: int) -> int:
        """Return the opening quote of a value, given a quote that may be the second of a `""`."""
        while self._adjoins[quote]:
            quote -= 2
        return quote

    def _line(self, quote: int) -> int:
        return int(np.searchsorted(self._newlines, self._quotes[quote]))

    def _line_end(self, quote: int) -> int | None:
        line = self._line(quote)
        if line < len(self._newlines):
            return int(self._newlines[line]) + 1
        return len(self._text) if self._complete else None

    def _values(self, begin: int, end: int) -> int:
        separators = begin + np.flatnonzero(self._text[begin:end] == self._separator)
        before = np.searchsorted(self._quotes, separators) - np.searchsorted(self._quotes, begin)
        return 1 + int(np.count_nonzero(before & 1 == 0))


_BOM: Final = b"\xef\xbb\xbf"
_MAX_HEAD_BYTES: Final = 1 << 20
_MORE: Final = "\x00more"
"""Additional last column, for the surplus values of a row."""
_TRUTH: Final = {"true": True, "false": False, "1": True, "0": False}
_SEPARATORS: Final = (",", ";", "\t", "|")


class CsvSource(JobSource):
    """Files of separated values with the same header."""

    has_types = False

    def __init__(self, files: Sequence[str]) -> None:
        self._files = list(files)

    def schema(self, datatypes: Mapping[str, Datatype] | None = None) -> Schema:
        """Return the column names; every column is text."""
        del datatypes
        names, _, _ = head_of(self._files[0])
        return pa.schema([(name, pa.large_string()) for name in names])

    def cut(self, sizes: Sizes, columns: Sequence[str]) -> list[Shard]:
        """Return parts of about the size of a shard, at most 16 MiB."""
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

    def read(self, shard: Shard, request: ReadRequest) -> Iterator[Rows]:
        """Yield the rows of a shard, which is parsed at once."""
        try:
            names, _, separator = head_of(shard.file)
            data = read_at(shard.file, shard.begin, shard.end)
        except OSError as error:
            raise unreadable(shard.file, error) from error
        frame, broken = parse(data, names, request, separator=separator)
        rows: list[CsvRows] = []

        def line_of(row: int) -> int:
            if not rows:
                rows.append(find_rows(data, separator.encode(), len(names)))
            return shard.line + rows[0].line_of(row)

        yield from windows(frame, request.rows, broken, line_of if shard.line else None)


def head_of(name: str) -> tuple[list[str], int, str]:
    """Return the names in the first line, the offset of the first row, and the separator.

    Values are separated by tabs in a `.tsv`; else by commas, or by the `;`, tab or `|` of a first
    line that has no comma.

    Raises:
        InvalidArgumentError: The line has no names, or a name is not unique.
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
    separator = next((candidate for candidate in separators if candidate in outside), separators[0])
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
    data: bytes, names: Sequence[str], request: ReadRequest, *, separator: str
) -> tuple[pl.DataFrame, dict[int, str]]:
    """Return the rows of a text as columns, and the reasons of rows that cannot be parsed.

    All rows are first parsed at once with their number types. If that fails, damaged rows are
    replaced by empty rows, and numbers are parsed from text columns.
    """
    sign = separator.encode()
    numbers = {name: kind for name, kind in request.datatypes.items() if kind is not Datatype.BYTES}
    types = {name: PARSED[kind.dtype.kind] for name, kind in numbers.items()}
    rows = find_rows(data, sign, len(names)) if b'"' in data else None
    is_sound = b"\0" not in data and (rows is None or not rows.damaged)
    if is_sound and Datatype.BOOL not in numbers.values():
        try:
            frame = _read(data, names, request.columns, types, separator)
        except (pl.exceptions.PolarsError, ValueError):
            pass
        else:
            if frame[_MORE].null_count() == frame.height:
                return frame.drop(_MORE), {}
    rows = rows or find_rows(data, sign, len(names))
    data, broken = _mended(data, rows, names, request.columns, sign)
    frame = _read(data, names, request.columns, {}, separator).drop(_MORE)
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
    """Return the text with damaged rows replaced by valid ones, and the reasons by row.

    A row with too many values keeps the first ones. Empty values after the last column are allowed,
    as are bytes that are not UTF-8 in columns that are not read.
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
            starts = [
                0,
                *(signs[first_signs[row] : first_signs[row + 1]] - rows.bounds[row] + 1),
            ]
            values = zip(names, starts, [*starts[1:], len(line)], strict=False)
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
