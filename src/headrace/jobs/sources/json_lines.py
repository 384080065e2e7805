"""JSON lines, an object each: cut at ends of lines; a line that is none costs itself only."""

from collections.abc import Iterator, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, Final

import msgspec

from headrace.core import InvalidArgumentError
from headrace.jobs.libraries import Schema, pa, pl
from headrace.jobs.messages import Shard, Sizes
from headrace.jobs.sources.files import fingerprint, open_file, read_at, unreadable
from headrace.jobs.sources.lines import MAX_LINE_BYTES, cut_file
from headrace.jobs.sources.source import Rows, Wanted, windows
from headrace.protocol.json_messages import UNREADABLE, JsonDecoder
from headrace.protocol.values import SPELLED

_HEAD_LINES: Final = 20
_LINE: Final[JsonDecoder[Any]] = JsonDecoder(Any)


class JsonLinesSource:
    """Files of JSON lines. What a column is, is told by the first lines of the first file."""

    has_types = True

    def __init__(self, files: Sequence[str]) -> None:
        self._files = list(files)
        self._schema: Schema = None

    def schema(self) -> Schema:
        """The names and kinds of values in the first lines."""
        if self._schema is None:
            self._schema = _schema(self._files[0])
        return self._schema

    def row_bytes(self, columns: Sequence[str]) -> float:
        """Not known."""
        del columns
        return 0.0

    def cut(self, sizes: Sizes, columns: Sequence[str]) -> list[Shard]:
        """Parts of about the size of a shard, at most 16 MiB."""
        del columns
        shards: list[Shard] = []
        for name in self._files:
            shards += cut_file(name, begin=0, shard_bytes=sizes.shard_bytes, first=len(shards))
        return shards

    def mark(self, shard: Shard) -> str:
        """Of its file."""
        return fingerprint(shard.file)[0]

    def read(self, shard: Shard, wanted: Wanted) -> Iterator[Rows]:
        """Parsed at once."""
        try:
            data = read_at(shard.file, shard.begin, shard.end)
        except OSError as error:
            raise unreadable(shard.file, error) from error
        types = {name: _polars(self.schema().field(name).type) for name in wanted.columns}
        frame, broken = parse(data, types)
        lines: list[int] = []

        def line_of(row: int) -> int:
            if not lines:
                lines.extend(i for i, line in enumerate(data.split(b"\n")) if line.strip())
            return shard.line + lines[row]

        yield from windows(frame, wanted.rows, broken, line_of if shard.line else None)


def parse(data: bytes, types: dict[str, Any]) -> tuple[pl.DataFrame, dict[int, str]]:
    """Lines as columns of these types; what is not so is told by its row. Empty lines are none.

    Of a key that stands twice in a line the last one counts, as in requests. (With Polars' own
    parser it would be the first, so msgspec parses the lines.)
    """
    try:
        return _parse_sound(data, types), {}
    except (*UNREADABLE, ValueError, OverflowError, KeyError):
        pass
    broken: dict[int, str] = {}
    columns: dict[str, list[Any]] = {name: [] for name in types}
    lines = (line for line in data.split(b"\n") if line.strip())
    for row, line in enumerate(lines):
        found = _object(line)
        if isinstance(found, str):
            broken[row], found = found, {}
        for name, kind in types.items():
            value = _number(found.get(name), kind)
            if not _fits(value, kind):
                broken.setdefault(row, f"column '{name}': {str(value)[:40]!r} is no {_told(kind)}")
                value = None
            columns[name].append(value)
    return pl.DataFrame(columns, schema=types, strict=False), broken


def _parse_sound(data: bytes, types: dict[str, Any]) -> pl.DataFrame:
    """Lines as columns; raises one of several errors unless each line is an object of the types."""
    names = {f"f{at}": name for at, name in enumerate(types)}
    row = msgspec.defstruct(
        "Row",
        [(field, _python_type(types[name]), None) for field, name in names.items()],
        rename=names,
        gc=False,
    )
    text = data.strip(b" \t\r\n")
    if 13 in text:  # noqa: PLR2004  # carriage return; of one byte the search is fast
        text = text.replace(b"\r\n", b"\n")
    if not text.isascii():
        text.decode()  # msgspec does not look into strings that it skips
    rows = msgspec.json.Decoder(row).decode_lines(text)
    lines = text.count(b"\n") + 1
    # An object over two lines would hide that another line has two.
    if not len(rows) == lines == text.count(b"}\n{") + 1:
        raise ValueError(lines)
    columns = [
        pa.array(list(map(attrgetter(field), rows)), _arrow_type(types[name]))
        for field, name in names.items()
    ]
    frame = pl.from_arrow(pa.table(columns, names=list(types)))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _python_type(kind: Any) -> Any:  # noqa: ANN401  # types that are made
    if isinstance(kind, pl.List):
        return list[_python_type(kind.inner)] | None  # type: ignore[misc]  # as above
    plain = {pl.Float64: float, pl.Int64: int, pl.Boolean: bool, pl.String: str}
    return plain[kind] | None


def _arrow_type(kind: Any) -> Any:  # noqa: ANN401  # neither library has types
    return pl.Series([], dtype=kind).to_arrow(compat_level=pl.CompatLevel.oldest()).type


def _number(value: object, kind: Any) -> object:  # noqa: ANN401  # a Polars datatype
    """`value`, or the float that a text stands for."""
    if isinstance(kind, pl.List) and isinstance(value, list):
        return [_number(item, kind.inner) for item in value]
    return SPELLED.get(value, value) if isinstance(value, str) and kind == pl.Float64 else value


def _object(line: bytes) -> dict[str, Any] | str:
    try:
        found = _LINE.decode(line)
    except UNREADABLE as error:
        return f"is no JSON: {str(error)[:100]}"
    return found if isinstance(found, dict) else "is no JSON object"


def _fits(value: object, kind: Any) -> bool:  # noqa: ANN401  # a Polars datatype
    if isinstance(kind, pl.List) and isinstance(value, list):
        return all(_fits(one, kind.inner) for one in value)
    match value:
        case None:
            return True
        case bool():
            return bool(kind == pl.Boolean)
        case int():
            return kind == pl.Float64 or (kind == pl.Int64 and -(2**63) <= value < 2**63)
        case float():
            return bool(kind == pl.Float64)
        case _:
            return isinstance(value, str) and kind == pl.String


def _told(kind: Any) -> str:  # noqa: ANN401  # as above
    if isinstance(kind, pl.List):
        return f"list of {_told(kind.inner)}s"
    return {pl.String: "text", pl.Boolean: "truth value", pl.Int64: "whole number"}.get(
        kind, "number"
    )


def _schema(name: str) -> Schema:
    try:
        with open_file(name) as file:
            lines = [file.readline(MAX_LINE_BYTES) for _ in range(_HEAD_LINES)]
    except OSError as error:
        raise unreadable(name, error) from error
    found: dict[str, Any] = {}
    for line in islice((line for line in lines if line.strip()), _HEAD_LINES):
        row = _object(line)
        if isinstance(row, str):
            continue
        for column, value in row.items():
            found[column] = _wider(found.get(column), _kind(value))
    if not found:
        raise InvalidArgumentError(f"{name} does not begin with lines that are JSON objects")
    return pa.schema([(column, kind or pa.large_string()) for column, kind in found.items()])


def _kind(value: object) -> Any:  # noqa: ANN401  # pyarrow has no types
    match value:
        case bool():
            return pa.bool_()
        case int():
            return pa.int64()
        case float():
            return pa.float64()
        case str():
            return pa.large_string()
        case list():
            inner = None
            for one in value:
                inner = _wider(inner, _kind(one))
            return pa.large_list(inner or pa.float64())
        case _:
            return None


def _wider(one: Any, other: Any) -> Any:  # noqa: ANN401  # as above
    """What holds both; texts where nothing else does."""
    if one is None or other is None or one == other:
        return one or other
    if {one, other} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_large_list(one) and pa.types.is_large_list(other):
        return pa.large_list(_wider(one.value_type, other.value_type))
    return pa.large_string()


def _polars(kind: Any) -> Any:  # noqa: ANN401  # as above
    return pl.from_arrow(pa.nulls(0, kind)).dtype  # type: ignore[union-attr]  # of an array: a Series
