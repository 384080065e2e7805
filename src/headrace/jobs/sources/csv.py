"""CSV with a line of names: cut at ends of lines, parsed by Polars; a bad row costs itself only."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from headrace.core import Datatype, InvalidArgumentError
from headrace.jobs.columns import PARSED
from headrace.jobs.libraries import Schema, pa, pl
from headrace.jobs.messages import Shard, Sizes
from headrace.jobs.sources.files import fingerprint, open_file, read_at, unreadable
from headrace.jobs.sources.lines import MAX_SHARD_BYTES, cut_file
from headrace.jobs.sources.source import Rows, Wanted, windows

_BOM: Final = b"\xef\xbb\xbf"
_MAX_HEAD_BYTES: Final = 1 << 20
_MORE: Final = "\x00more"
"""A column beyond the last: what a row with too many values has there."""
_TRUTH: Final = {"true": True, "false": False, "1": True, "0": False}


class CsvSource:
    """Files of CSV, or of values between tabs, with the same line of names."""

    has_types = False

    def __init__(self, files: Sequence[str]) -> None:
        self._files = list(files)

    def schema(self) -> Schema:
        """The names; every column is text."""
        names, _ = head_of(self._files[0])
        return pa.schema([(name, pa.large_string()) for name in names])

    def row_bytes(self, columns: Sequence[str]) -> float:
        """Not known."""
        del columns
        return 0.0

    def cut(self, sizes: Sizes, columns: Sequence[str]) -> list[Shard]:
        """Parts of about the size of a shard, at most 16 MiB."""
        del columns
        first, _ = head_of(self._files[0])
        found: list[Shard] = []
        for name in self._files:
            names, begin = head_of(name)
            if names != first:
                msg = f"{name} begins with other names than {self._files[0]}: {', '.join(names)}"
                raise InvalidArgumentError(msg[:500])
            wanted = min(sizes.shard_bytes, MAX_SHARD_BYTES)
            found += cut_file(name, begin=begin, shard_bytes=wanted, quoted=True, first=len(found))
        return found

    def mark(self, shard: Shard) -> str:
        """Of its file."""
        return fingerprint(shard.file)[0]

    def read(self, shard: Shard, wanted: Wanted) -> Iterator[Rows]:
        """Parsed at once."""
        try:
            names, _ = head_of(shard.file)
            data = read_at(shard.file, shard.begin, shard.end)
        except OSError as error:
            raise unreadable(shard.file, error) from error
        frame, broken = parse(data, names, wanted, separator=_separator(shard.file))
        yield from windows(frame, wanted.rows, broken)


def head_of(name: str) -> tuple[list[str], int]:
    """The names in the first line, and where the rows begin.

    Raises:
        InvalidArgumentError: There are none, or one stands twice.
    """
    try:
        with open_file(name) as file:
            line = file.readline(_MAX_HEAD_BYTES)
    except OSError as error:
        raise unreadable(name, error) from error
    try:
        text = line.removeprefix(_BOM).decode()
        (names,) = csv.reader([text], delimiter=_separator(name), strict=True)
    except (UnicodeDecodeError, csv.Error, ValueError):
        names = []
    names = [column.strip() for column in names]
    if not names or not all(names):
        raise InvalidArgumentError(f"{name} does not begin with a line of column names")
    twice = next((column for column in names if names.count(column) > 1), None)
    if twice is not None:
        raise InvalidArgumentError(f"{name} has two columns called '{twice}'")
    return names, len(line)


def parse(
    data: bytes, names: Sequence[str], wanted: Wanted, *, separator: str
) -> tuple[pl.DataFrame, dict[int, str]]:
    """Rows of text as columns; numbers are parsed, and a row where that fails is told.

    First all at once as the numbers that they should be; if one is none, as text.
    """
    types = {name: PARSED[kind.dtype.kind] for name, kind in wanted.numbers.items()}
    plain = all(kind is not Datatype.BOOL for kind in wanted.numbers.values())
    if plain:
        try:
            frame = _read(data, names, wanted.columns, types, separator, lossy=False)
        except (pl.exceptions.PolarsError, ValueError):
            pass
        else:
            return _checked(frame, {})
    frame = _read(data, names, wanted.columns, {}, separator, lossy=True)
    broken: dict[int, str] = {}
    parsed = []
    for name, kind in wanted.numbers.items():
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
    for name in wanted.columns:
        if name not in wanted.numbers:
            for row in frame[name].str.contains("\ufffd", literal=True).arg_true().to_list():
                broken.setdefault(row, f"column '{name}' is not UTF-8")
    return _checked(frame.with_columns(parsed), broken)


def _read(
    data: bytes,
    names: Sequence[str],
    columns: Sequence[str],
    types: Mapping[str, pl.DataType | type[pl.DataType] | None],
    separator: str,
    *,
    lossy: bool,
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
        encoding="utf8-lossy" if lossy else "utf8",
    )


def _checked(frame: pl.DataFrame, broken: dict[int, str]) -> tuple[pl.DataFrame, dict[int, str]]:
    for row in frame[_MORE].is_not_null().arg_true().to_list():
        broken[row] = "has more values than there are names in the first line"
    return frame.drop(_MORE), broken


def _separator(name: str) -> str:
    return "\t" if name.lower().endswith(".tsv") else ","
