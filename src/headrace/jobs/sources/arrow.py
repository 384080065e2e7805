"""Arrow's own files: shards are runs of record batches; an open stream of batches is one shard."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from headrace.core import Datatype, InvalidArgumentError
from headrace.jobs.libraries import Schema, pa
from headrace.jobs.messages import Shard, Sizes
from headrace.jobs.sources.files import fingerprint, is_url, open_file, unreadable
from headrace.jobs.sources.parquet import runs
from headrace.jobs.sources.source import Rows, Wanted, flat_schema, framed, paths_of

_MAGIC = b"ARROW1"
_ALL = -1
"""The end of a shard that is a whole stream."""


class ArrowSource:
    """Files in Arrow's IPC format, as Feather version 2 is, or streams of it."""

    has_types = True

    def __init__(self, files: Sequence[str]) -> None:
        self._files = list(files)

    def schema(self, datatypes: Mapping[str, Datatype] | None = None) -> Schema:
        """Of the first file."""
        del datatypes
        with _opened(self._files[0]) as (reader, _):
            return flat_schema(reader.schema)

    def row_bytes(self, columns: Sequence[str]) -> float:
        """Of the first batch."""
        try:
            with _opened(self._files[0]) as (reader, is_file):
                if is_file and not reader.num_record_batches:
                    return 0.0
                batch = reader.get_batch(0) if is_file else reader.read_next_batch()
                batch = batch.select(_outer(batch.schema, columns))
                return float(batch.nbytes / max(batch.num_rows, 1))
        except StopIteration:
            return 0.0

    def cut(self, sizes: Sizes, columns: Sequence[str]) -> list[Shard]:
        """Batches together, up to the size of a shard."""
        first = self.schema()
        shards: list[Shard] = []
        for name in self._files:
            mark, size = fingerprint(name)
            with _opened(name) as (reader, is_file):
                _check_same(name, flat_schema(reader.schema), first, self._files[0], columns)
                counted = _counted(reader, columns) if is_file else []
            parts = runs(counted, sizes) if is_file else [(0, _ALL)]
            for begin, end in parts:
                some = counted[begin:end]
                shards.append(
                    Shard(
                        number=len(shards),
                        file=name,
                        begin=begin,
                        end=end,
                        fingerprint=mark,
                        rows=sum(rows for rows, _ in some) if is_file else None,
                        size_bytes=sum(length for _, length in some) if is_file else size,
                    )
                )
        return shards

    def mark(self, shard: Shard) -> str:
        """Of its file."""
        return fingerprint(shard.file)[0]

    def read(self, shard: Shard, wanted: Wanted) -> Iterator[Rows]:
        """Batch by batch, each in parts."""
        with _opened(shard.file) as (reader, is_file):
            found = (
                map(reader.get_batch, range(shard.begin, shard.end)) if is_file else iter(reader)
            )
            for batch in found:
                for start in range(0, batch.num_rows, wanted.rows):
                    yield Rows(frame=framed(batch.slice(start, wanted.rows), wanted.columns))


def _counted(reader: Any, columns: Sequence[str]) -> list[tuple[int, int]]:  # noqa: ANN401  # pyarrow has no types
    """Rows and bytes of each batch; the file is mapped, so that nothing is read for it."""
    batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    outer = _outer(reader.schema, columns)
    return [(batch.num_rows, batch.select(outer).nbytes) for batch in batches]


def _outer(schema: Schema, columns: Sequence[str]) -> list[str]:
    """The columns of the file in which those that are named lie."""
    paths = paths_of(schema)
    return list(dict.fromkeys(paths[name][0] for name in columns))


@contextmanager
def _opened(name: str) -> Iterator[tuple[Any, bool]]:
    """A reader, and whether its batches may be read in any order."""
    try:
        with open_file(name) as file:
            is_file = file.read(len(_MAGIC)) == _MAGIC
        source: IO[bytes] | Any = open_file(name) if is_url(name) else pa.memory_map(name)
        with source:
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            yield reader, is_file
    except (OSError, pa.ArrowException) as error:
        raise unreadable(name, error) from error


def _check_same(
    name: str, schema: Schema, first: Schema, first_name: str, columns: Sequence[str]
) -> None:
    for column in columns:
        if schema.get_field_index(column) < 0 or schema.field(column) != first.field(column):
            msg = f"{name} has no column '{column}' as {first_name} has it: {first.field(column)}"
            raise InvalidArgumentError(msg)
