"""JSON Lines source."""

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import IO, Any, Final, Protocol

import msgspec
import numpy as np

from headrace.core import Array, Datatype, InvalidArgumentError
from headrace.jobs.libraries import Schema, pa, pl
from headrace.jobs.messages import Shard, Sizes
from headrace.jobs.sources.source import (
    JobSource,
    ReadRequest,
    Rows,
    fingerprint,
    open_file,
    read_at,
    unreadable,
    windows,
)
from headrace.protocol.json_messages import UNREADABLE, JsonDecoder
from headrace.protocol.values import SPELLED

MAX_SHARD_BYTES: Final = 16 << 20
"""Maximum shard size: a shard is parsed at once, and number columns are about as large as it."""
MAX_LINE_BYTES: Final = 64 << 20
_BLOCK_BYTES: Final = 1 << 20


class RowEnds(Protocol):
    """Function that finds the ends of rows in a text that begins with a row."""

    def __call__(self, data: bytes, *, complete: bool) -> Array:
        """Return the end offset of each row, ascending.

        Args:
            complete: Whether the file ends here; otherwise rows that more text could change are
                left out.
        """


def line_ends(data: bytes, *, complete: bool) -> Array:
    """Return the end offsets of rows in a text where each line is a row."""
    del complete  # the end of the file also ends the last shard
    return np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1


def cut_file(
    name: str,
    *,
    begin: int,
    shard_bytes: int,
    first: int,
    line: int = 1,
    row_ends: RowEnds = line_ends,
) -> Iterator[Shard]:
    """Yield shards of a file from `begin` on, of about `shard_bytes`, at most 16 MiB and a row.

    Args:
        first: Number of the first shard.
        line: Line number at `begin`.

    Raises:
        InvalidArgumentError: The file cannot be read, or a line is too long.
    """
    mark, size = fingerprint(name)
    start = begin
    try:
        with open_file(name) as file:
            cuts = _cuts(file, name, begin, min(shard_bytes, MAX_SHARD_BYTES), row_ends)
            for end, lines in [*cuts, (size, 0)]:
                if end > start:
                    yield Shard(
                        number=first,
                        file=name,
                        begin=start,
                        end=end,
                        fingerprint=mark,
                        size_bytes=end - start,
                        line=line,
                    )
                    first, start, line = first + 1, end, line + lines
    except OSError as error:
        raise unreadable(name, error) from error


def _cuts(
    file: IO[bytes], name: str, begin: int, request: int, row_ends: RowEnds
) -> Iterator[tuple[int, int]]:
    """Yield row ends at least `request` bytes apart, and the number of lines between them."""
    file.seek(begin)
    data, offset, last, lines = b"", begin, begin, 0
    """Text from the start of a row, and its offset; the last cut, and the lines since it."""
    # A row longer than a block is scanned again only after the text has doubled.
    while block := file.read(max(_BLOCK_BYTES, len(data))):
        data += block
        ends = row_ends(data, complete=False)
        if not len(ends) and len(data) > MAX_LINE_BYTES:
            # A row with an unclosed quote ends with its line, if the line has an end.
            ends = row_ends(data, complete=True)[:1]
            if not len(ends) or ends[0] == len(data):
                msg = (
                    f"{name}: a line after byte {offset} has more than {MAX_LINE_BYTES} bytes; "
                    "is a quote missing?"
                )
                raise InvalidArgumentError(msg)
        end = 0
        while (row := int(np.searchsorted(ends, last + request - offset))) < len(ends):
            cut = int(ends[row])
            lines += data.count(b"\n", end, cut)
            yield offset + cut, lines
            last, lines, end = offset + cut, 0, cut
        done = int(ends[-1]) if len(ends) else 0
        lines += data.count(b"\n", end, done)
        data, offset = data[done:], offset + done


Path = tuple[str, ...]
"""Keys that lead to a value through nested objects."""
_HEAD_LINES: Final = 20
_NUMBERS: Final = {"f": pa.float64(), "i": pa.int64(), "u": pa.uint64(), "b": pa.bool_()}
"""Type as which numbers are read first, by NumPy kind of the input."""
_LINE: Final[JsonDecoder[Any]] = JsonDecoder(Any)


class JsonLinesSource(JobSource):
    """Files of JSON Lines. The first lines of the first file define the columns."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = list(files)
        self._head: dict[Path, list[object]] = {}

    def schema(self, datatypes: Mapping[str, Datatype] | None = None) -> Schema:
        """Return the columns, with the most frequent type of their values in the first lines.

        With `datatypes`, columns of inputs have the type that the model takes, and the others a
        type that holds all values in the first lines.
        """
        fields = []
        for name, path in self._paths().items():
            values = [value for value in self._head[path] if value is not None]
            depths = Counter(map(_depth, values))
            depth = max(depths, key=depths.__getitem__, default=0)
            leaves = [leaf for value in values if _depth(value) == depth for leaf in _leaves(value)]
            kinds = Counter(map(_kind, leaves))
            kind = max(kinds, key=kinds.__getitem__, default=pa.large_string())
            datatype = None if datatypes is None else datatypes.get(name)
            if datatype is Datatype.BYTES:
                kind = pa.large_string()
            elif datatype is not None and kind != pa.bool_():
                kind = _NUMBERS[datatype.dtype.kind]
            elif datatype is None and datatypes is not None:
                kind = _widest(kinds)
            for _ in range(depth):
                kind = pa.large_list(kind)
            fields.append(pa.field(name, kind))
        return pa.schema(fields)

    def _paths(self) -> dict[str, Path]:
        """Return the path of each column; a key with dots takes precedence over an equal path."""
        if not self._head:
            self._head = _first_values(self._files[0])
        paths: dict[str, Path] = {}
        for path in self._head:
            before = paths.setdefault(".".join(path), path)
            if len(path) < len(before):
                paths[".".join(path)] = path
        return paths

    def cut(self, sizes: Sizes, columns: Sequence[str]) -> list[Shard]:
        """Return shards of about the requested size, at most 16 MiB."""
        del columns
        shards: list[Shard] = []
        for name in self._files:
            shards += cut_file(name, begin=0, shard_bytes=sizes.shard_bytes, first=len(shards))
        return shards

    def read(self, shard: Shard, request: ReadRequest) -> Iterator[Rows]:
        """Yield the rows of a shard, which is parsed at once."""
        try:
            data = read_at(shard.file, shard.begin, shard.end)
        except OSError as error:
            raise unreadable(shard.file, error) from error
        schema, paths = self.schema(request.datatypes), self._paths()
        types = {name: _polars(schema.field(name).type) for name in request.columns}
        frame, broken = parse(data, types, paths, keys=set(types) - set(request.datatypes))
        lines: list[int] = []

        def line_of(row: int) -> int:
            if not lines:
                lines.extend(i for i, line in enumerate(data.split(b"\n")) if line.strip())
            return shard.line + lines[row]

        yield from windows(frame, request.rows, broken, line_of if shard.line else None)


def parse(
    data: bytes,
    types: Mapping[str, Any],
    paths: Mapping[str, Path] | None = None,
    *,
    keys: Container[str] = (),
) -> tuple[pl.DataFrame, dict[int, str]]:
    """Return lines as columns of these types, and errors by row. Empty lines are skipped.

    The last of duplicate keys in a line counts, as in requests. (Polars' own parser takes the
    first, so msgspec parses the lines.)

    Args:
        paths: Path of keys to each column; by default the column's name is the only key.
        keys: Text columns that also take numbers, as they are written.
    """
    paths = {name: (paths or {}).get(name, (name,)) for name in types}
    try:
        return _parse_sound(data, types, paths), {}
    except (*UNREADABLE, ValueError, OverflowError):
        pass
    broken: dict[int, str] = {}
    columns: dict[str, list[Any]] = {name: [] for name in types}
    lines = (line for line in data.split(b"\n") if line.strip())
    for row, line in enumerate(lines):
        parsed = _object(line)
        if isinstance(parsed, str):
            broken[row], parsed = parsed, {}
        for name, kind in types.items():
            value: object = parsed
            for key in paths[name]:
                if not isinstance(value, dict | None):
                    reason = f"column '{name}': {str(value)[:40]!r} is no object with a '{key}'"
                    broken.setdefault(row, reason)
                    value = None
                value = value.get(key) if value else None
            value = _number(value, kind)
            if name in keys and kind == pl.String and isinstance(value, bool | int | float):
                value = msgspec.json.encode(value).decode()
            if not _fits(value, kind):
                shown = f"column '{name}': {str(value)[:40]!r}"
                is_large = isinstance(value, int) and _told(kind) == _told(pl.Int64)
                reason = "does not fit into 64 bits" if is_large else f"is no {_told(kind)}"
                broken.setdefault(row, f"{shown} {reason}")
                value = None
            columns[name].append(value)
    return pl.DataFrame(columns, schema=types, strict=False), broken


def _parse_sound(data: bytes, types: Mapping[str, Any], paths: Mapping[str, Path]) -> pl.DataFrame:
    """Return lines as columns; raise unless each line is an object of these types."""
    row, getters = _row_type(list(paths.values()), [_python_type(kind) for kind in types.values()])
    text = data.strip(b" \t\r\n")
    if 13 in text:  # noqa: PLR2004  # carriage return; the search for one byte is fast
        text = text.replace(b"\r\n", b"\n")
    if not text.isascii():
        text.decode()  # msgspec does not validate strings that it skips
    rows: list[Any] = msgspec.json.Decoder(row).decode_lines(text)
    lines = text.count(b"\n") + 1
    # The total could match if one object spans two lines and another line has two objects.
    if not len(rows) == lines == text.count(b"}\n{") + 1:
        raise ValueError(lines)
    columns = [
        pa.array(list(map(getter, rows)), _arrow_type(kind))
        for getter, kind in zip(getters, types.values(), strict=True)
    ]
    frame = pl.from_arrow(pa.table(columns, names=list(types)))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _row_type(
    paths: Sequence[Path], kinds: Sequence[Any]
) -> tuple[type, list[Callable[[Any], object]]]:
    """Return a struct type with the values at these paths, and a getter for each."""
    inner: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        inner.setdefault(path[0], []).append(index)
    getters: list[Callable[[Any], object]] = [attrgetter("")] * len(paths)
    fields: list[tuple[str, Any, None]] = []
    for number, members in enumerate(inner.values()):
        field = f"f{number}"
        if [len(paths[index]) for index in members] == [1]:
            fields.append((field, kinds[members[0]], None))
            getters[members[0]] = attrgetter(field)
            continue
        if any(len(paths[index]) == 1 for index in members):
            raise ValueError("a column is an object in some lines and a value in others")
        kind, getters_within = _row_type(
            [paths[index][1:] for index in members], [kinds[index] for index in members]
        )
        fields.append((field, kind | None, None))
        outer = attrgetter(field)
        for index, within in zip(members, getters_within, strict=True):
            getters[index] = partial(_within, outer, within)
    names = {f"f{number}": name for number, name in enumerate(inner)}
    return msgspec.defstruct("Row", fields, rename=names, gc=False), getters


def _within(outer: Callable[[Any], Any], within: Callable[[Any], object], row: object) -> object:
    value = outer(row)
    return None if value is None else within(value)


def _python_type(kind: Any) -> Any:  # noqa: ANN401  # types built at run time
    if isinstance(kind, pl.List):
        return list[_python_type(kind.inner)] | None  # type: ignore[misc]  # as above
    plain = {
        pl.Float64: float,
        pl.Int64: int,
        pl.UInt64: int,
        pl.Boolean: bool,
        pl.String: str,
    }
    return plain[kind] | None


def _arrow_type(kind: Any) -> Any:  # noqa: ANN401  # neither library has types
    return pl.Series([], dtype=kind).to_arrow(compat_level=pl.CompatLevel.oldest()).type


def _number(value: object, kind: Any) -> object:  # noqa: ANN401  # a Polars datatype
    """Return `value`, or the float that a text represents."""
    if isinstance(kind, pl.List) and isinstance(value, list):
        return [_number(item, kind.inner) for item in value]
    return SPELLED.get(value, value) if isinstance(value, str) and kind == pl.Float64 else value


def _object(line: bytes) -> dict[str, Any] | str:
    try:
        parsed = _LINE.decode(line)
    except UNREADABLE as error:
        return f"is no JSON: {str(error)[:100]}"
    return parsed if isinstance(parsed, dict) else "is no JSON object"


def _fits(value: object, kind: Any) -> bool:  # noqa: ANN401  # a Polars datatype
    if isinstance(kind, pl.List) and isinstance(value, list):
        return all(_fits(element, kind.inner) for element in value)
    match value:
        case None:
            return True
        case bool():
            return bool(kind == pl.Boolean)
        case int():
            bounds = {pl.Int64: (-(2**63), 2**63), pl.UInt64: (0, 2**64)}
            low, end = bounds.get(kind, (0, 0))
            return kind == pl.Float64 or low <= value < end
        case float():
            return bool(kind == pl.Float64)
        case _:
            return isinstance(value, str) and kind == pl.String


def _told(kind: Any) -> str:  # noqa: ANN401  # as above
    if isinstance(kind, pl.List):
        return f"list of {_told(kind.inner)}s"
    names = {pl.String: "text", pl.Boolean: "truth value", pl.Int64: "whole number"}
    return {**names, pl.UInt64: "whole number"}.get(kind, "number")


def _first_values(name: str) -> dict[Path, list[object]]:
    """Return the values in the first lines of a file, by their path of keys."""
    try:
        with open_file(name) as file:
            lines = [file.readline(MAX_LINE_BYTES) for _ in range(_HEAD_LINES)]
    except OSError as error:
        raise unreadable(name, error) from error
    values: dict[Path, list[object]] = {}
    for line in lines:
        row = _object(line) if line.strip() else ""
        todo: list[tuple[Path, object]] = [] if isinstance(row, str) else [((), row)]
        while todo:
            path, value = todo.pop(0)
            if isinstance(value, dict):
                todo += [((*path, key), inner) for key, inner in value.items()]
            else:
                values.setdefault(path, []).append(value)
    if not values:
        raise InvalidArgumentError(f"{name} does not begin with lines that are JSON objects")
    return values


def _depth(value: object) -> int:
    """Return the nesting depth of lists."""
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif value is not None:
        yield value


def _kind(value: object) -> Any:  # noqa: ANN401  # pyarrow has no types
    kinds = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return kinds.get(type(value), pa.large_string())


def _widest(kinds: Collection[Any]) -> Any:  # noqa: ANN401  # as above
    """Return the type that holds values of all these types; text if no number type does."""
    if len(kinds) == 1:
        return next(iter(kinds))
    return pa.float64() if set(kinds) == {pa.int64(), pa.float64()} else pa.large_string()


def _polars(kind: Any) -> Any:  # noqa: ANN401  # as above
    return pl.from_arrow(pa.nulls(0, kind)).dtype  # type: ignore[union-attr]  # of an array: a Series
