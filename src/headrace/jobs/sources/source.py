"""What a source is: columns known before data is read, shards, and rows a part at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from headrace.core import Datatype
from headrace.jobs.libraries import Batch, Schema, pa, pl
from headrace.jobs.messages import Shard, Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Some rows."""

    frame: pl.DataFrame
    broken: Mapping[int, str] = field(default_factory=dict)
    """Why a row could not be read, by its index in `frame`; its columns are null."""
    line_of: Callable[[int], int] | None = None
    """The line of the file where a row begins, from 1; None if the file is no text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is read of a shard. `datatypes`: of the inputs that columns are for.

    `whole_bytes`: a shard that is smaller than this may be in memory at once.
    """

    columns: Sequence[str]
    rows: int
    whole_bytes: int = 0
    datatypes: Mapping[str, Datatype] = field(default_factory=dict)


class Source(Protocol):
    """One input of a job, opened; holds nothing that has to be closed."""

    has_types: bool
    """Whether its columns have datatypes; if not, all are text that is read as what is wanted."""

    def schema(self, datatypes: Mapping[str, Datatype] | None = None) -> Schema:
        """The columns, read from the head of the first file only.

        Args:
            datatypes: Of the inputs that columns are for, once that is planned: values of a format
                without datatypes then have the type that the model takes.

        Raises:
            InvalidArgumentError: There is none, or it is damaged; the message names it.
        """

    def cut(self, sizes: Sizes, columns: Sequence[str]) -> list[Shard]:
        """All shards, in the input's order: the same for the same input.

        Raises:
            InvalidArgumentError: A file is damaged, or has other columns than the first.
        """

    def mark(self, shard: Shard) -> str:
        """The fingerprint that the shard's input has now.

        Raises:
            InvalidArgumentError: It is gone.
        """

    def row_bytes(self, columns: Sequence[str]) -> float:
        """About how large a row is in memory; 0 where it is not known before it is read."""

    def read(self, shard: Shard, wanted: Wanted) -> Iterator[Rows]:
        """The rows in order, at most `wanted.rows` at once, each with the columns in order.

        Raises:
            InvalidArgumentError: The input cannot be read on.
        """


def paths_of(schema: Schema) -> dict[str, tuple[str, ...]]:
    """The columns that can be named, with the path to each: fields of structs by dotted names.

    A column whose own name has the dots comes before a field of that path.
    """
    paths: dict[str, tuple[str, ...]] = {}
    nested: list[tuple[tuple[str, ...], Any]] = [((field.name,), field.type) for field in schema]
    while nested:
        path, kind = nested.pop(0)
        if pa.types.is_struct(kind):
            nested += [((*path, field.name), field.type) for field in kind]
        else:
            paths.setdefault(".".join(path), path)
    return paths


def flat_schema(schema: Schema) -> Schema:
    """The columns that can be named, with their types; a field of a null struct is null."""
    fields = []
    for name, (first, *rest) in paths_of(schema).items():
        field = schema.field(first)
        for part in rest:
            field = field.type.field(part)
        fields.append(pa.field(name, field.type, field.nullable or bool(rest)))
    return pa.schema(fields)


def framed(batch: Batch, columns: Sequence[str]) -> pl.DataFrame:
    """Columns of a record batch or a table, in this order; fields of structs by dotted names."""
    if not set(columns) <= set(batch.schema.names):
        paths = paths_of(batch.schema)
        arrays = []
        for first, *rest in (paths[name] for name in columns):
            array = batch.column(first)
            arrays.append(pa.compute.struct_field(array, rest) if rest else array)
        batch = type(batch).from_arrays(arrays, names=list(columns))
    frame = pl.from_arrow(batch.select(list(columns)))
    assert isinstance(frame, pl.DataFrame)
    return frame


def windows(
    frame: pl.DataFrame,
    rows: int,
    broken: Mapping[int, str],
    line_of: Callable[[int], int] | None = None,
) -> Iterator[Rows]:
    """A frame in parts of at most `rows`."""
    parts: dict[int, dict[int, str]] = {}
    for row, why in broken.items():
        parts.setdefault(row // rows, {})[row % rows] = why
    for part, start in enumerate(range(0, frame.height, rows)):
        yield Rows(
            frame=frame.slice(start, rows),
            broken=parts.get(part, {}),
            line_of=None if line_of is None else partial(_line_behind, line_of, start),
        )


def _line_behind(line_of: Callable[[int], int], start: int, row: int) -> int:
    return line_of(start + row)
