"""Parquet and Arrow sources: shards are sequences of row groups or of record batches.

A large row group is split; a stream of batches is one shard. Only the required columns are read.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import IO, Any

from headrace.core import Datatype, InvalidArgumentError
from headrace.jobs.libraries import Schema, pa, pl, pq
from headrace.jobs.messages import Shard, Sizes
from headrace.jobs.sources.source import (
    JobSource,
    ReadRequest,
    Rows,
    fingerprint,
    flat_schema,
    framed,
    is_url,
    open_file,
    paths_of,
    unreadable,
    windows,
)

_BUFFER_BYTES = 1 << 20
_MAX_PARTS = 4
"""Maximum parts of a row group: each part decodes the rows that precede it. If there are few
shards, runs of the model have their own threads."""


class ParquetSource(JobSource):
    """Parquet files with the same columns."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = list(files)

    def schema(self, datatypes: Mapping[str, Datatype] | None = None) -> Schema:
        """Return the schema of the first file."""
        del datatypes
        name = self._files[0]
        with _opened(name) as file:
            return flat_schema(file.schema_arrow)

    def row_bytes(self, columns: Sequence[str]) -> float:
        """Return the row size from the first file's footer."""
        opened = _opened(self._files[0])
        with opened as file:
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            sizes = [_size(group, columns) / max(group.num_rows, 1) for group in groups]
        return max(sizes, default=0.0)

    def cut(self, sizes: Sizes, columns: Sequence[str]) -> list[Shard]:
        """Group row groups up to the size of a shard; split a larger one into at most four parts.

        A row group of a remote file is not split: its first rows would be fetched for each part.
        """
        first = self.schema()
        shards: list[Shard] = []
        for name in self._files:
            mark, _ = fingerprint(name)
            with _opened(name) as file:
                _check_same(name, flat_schema(file.schema_arrow), first, self._files[0], columns)
                groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
                counted = [(group.num_rows, _size(group, columns)) for group in groups]
            for begin, end in runs(counted, sizes):
                rows = sum(rows for rows, _ in counted[begin:end])
                size = sum(size for _, size in counted[begin:end])
                parts = 1
                if end - begin == 1 and not is_url(name):
                    needed = max(rows / sizes.shard_rows, size / sizes.shard_bytes)
                    parts = max(1, min(rows, math.ceil(needed), _MAX_PARTS))
                for part in range(parts):
                    first_row, behind = rows * part // parts, rows * (part + 1) // parts
                    shards.append(
                        Shard(
                            number=len(shards),
                            file=name,
                            begin=begin,
                            end=end,
                            fingerprint=mark,
                            rows=behind - first_row,
                            size_bytes=size // parts,
                            first_row=first_row,
                        )
                    )
        return shards

    def read(self, shard: Shard, request: ReadRequest) -> Iterator[Rows]:
        """Yield the rows of a shard; small shards are read at once, others batch by batch."""
        try:
            with _opened(shard.file) as file:
                whole = _whole(file, shard, request)
                if whole is not None:
                    yield from windows(whole, request.rows, {})
                    return
                skip, left = shard.first_row, shard.rows or 0
                for batch in file.iter_batches(
                    request.rows,
                    row_groups=list(range(shard.begin, shard.end)),
                    columns=list(request.columns),
                    # Without threads: shards already use all cores; columns would wait for one.
                    use_threads=False,
                ):
                    rows = batch.slice(skip, left)
                    skip = max(skip - batch.num_rows, 0)
                    left -= rows.num_rows
                    if rows.num_rows:
                        yield Rows(frame=framed(rows, request.columns))
                    if not left:
                        return
        except (OSError, pa.ArrowException) as error:
            raise unreadable(shard.file, error) from error


def runs(counted: Sequence[tuple[int, int]], sizes: Sizes) -> list[tuple[int, int]]:
    """Return bounds of consecutive units that fit into a shard; a larger unit is a shard alone.

    Args:
        counted: Rows and bytes of each unit.
    """
    bounds: list[tuple[int, int]] = []
    start = rows = size = 0
    for i, (more_rows, more_bytes) in enumerate(counted):
        too_many = rows + more_rows > sizes.shard_rows or size + more_bytes > sizes.shard_bytes
        if i > start and too_many:
            bounds.append((start, i))
            start, rows, size = i, 0, 0
        rows, size = rows + more_rows, size + more_bytes
    return [*bounds, (start, len(counted))] if counted else []


def fits_in_memory(kinds: Sequence[Any], rows: int | None, whole_bytes: int) -> bool:
    """Return whether a shard certainly fits into memory: all its columns are numbers."""
    sizes = [_fixed_bytes(kind) for kind in kinds]
    return rows is not None and all(sizes) and rows * sum(sizes) <= whole_bytes


def _fixed_bytes(kind: Any) -> int:  # noqa: ANN401  # pyarrow has no types
    """Return the maximum bytes of a number in memory; 0 for other types."""
    types = pa.types
    if types.is_integer(kind) or types.is_float32(kind) or types.is_float64(kind):
        return int(kind.bit_width) // 8
    return int(types.is_boolean(kind))


def _whole(file: Any, shard: Shard, request: ReadRequest) -> pl.DataFrame | None:  # noqa: ANN401  # as above
    """Return all rows of a shard, read by Polars, which decodes numbers faster than pyarrow.

    None if Polars might exceed the memory limit, as it may decode whole row groups for a part of
    them, or does not support the encoding.
    """
    schema, paths = flat_schema(file.schema_arrow), paths_of(file.schema_arrow)
    kinds = [schema.field(name).type for name in request.columns]
    lengths = [file.metadata.row_group(i).num_rows for i in range(shard.end)]
    if is_url(shard.file) or not fits_in_memory(
        kinds, sum(lengths[shard.begin :]), request.whole_bytes
    ):
        return None
    columns = []
    for name in request.columns:
        outer, *rest = paths[name]
        column = pl.col(outer)
        for part in rest:
            column = column.struct.field(part)
        columns.append(column.alias(name))
    first = sum(lengths[: shard.begin]) + shard.first_row
    try:
        scan = pl.scan_parquet(shard.file, glob=False, hive_partitioning=False)
        return scan.select(columns).slice(first, shard.rows).collect()
    except pl.exceptions.PolarsError:
        return None  # pyarrow reads it, or says why it cannot be read


def _opened(name: str) -> Any:  # noqa: ANN401  # pyarrow has no types
    source: str | IO[bytes] = name
    try:
        if is_url(name):
            source = open_file(name)
        return pq.ParquetFile(source, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(name, error) from error


def _size(group: Any, columns: Sequence[str]) -> int:  # noqa: ANN401  # as above
    names = set(columns)
    return sum(
        part.total_uncompressed_size
        for part in map(group.column, range(group.num_columns))
        if not names.isdisjoint(accumulate(part.path_in_schema.split("."), "{}.{}".format))
    )


def _check_same(
    name: str, schema: Schema, first: Schema, first_name: str, columns: Sequence[str]
) -> None:
    for column in columns:
        if schema.get_field_index(column) < 0:
            raise InvalidArgumentError(f"{name} has no column '{column}', which {first_name} has")
        actual, expected = schema.field(column).type, first.field(column).type
        if actual != expected:
            msg = f"{name}: column '{column}' is {actual}, and {expected} in {first_name}"
            raise InvalidArgumentError(msg)


_MAGIC = b"ARROW1"
_ALL = -1
"""`Shard.end` of a shard that is a whole stream."""


class ArrowSource(JobSource):
    """Files in Arrow's IPC format (as Feather version 2), or streams of it."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = list(files)

    def schema(self, datatypes: Mapping[str, Datatype] | None = None) -> Schema:
        """Return the schema of the first file."""
        del datatypes
        with _opened_ipc(self._files[0]) as (reader, _):
            return flat_schema(reader.schema)

    def row_bytes(self, columns: Sequence[str]) -> float:
        """Return the row size of the first batch."""
        try:
            with _opened_ipc(self._files[0]) as (reader, is_file):
                if is_file and not reader.num_record_batches:
                    return 0.0
                batch = reader.get_batch(0) if is_file else reader.read_next_batch()
                batch = batch.select(_outer(batch.schema, columns))
                return float(batch.nbytes / max(batch.num_rows, 1))
        except StopIteration:
            return 0.0

    def cut(self, sizes: Sizes, columns: Sequence[str]) -> list[Shard]:
        """Group batches up to the size of a shard."""
        first = self.schema()
        shards: list[Shard] = []
        for name in self._files:
            mark, size = fingerprint(name)
            with _opened_ipc(name) as (reader, is_file):
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

    def read(self, shard: Shard, request: ReadRequest) -> Iterator[Rows]:
        """Yield the rows of a shard's batches, each batch in windows."""
        with _opened_ipc(shard.file) as (reader, is_file):
            batches = (
                map(reader.get_batch, range(shard.begin, shard.end)) if is_file else iter(reader)
            )
            for batch in batches:
                for start in range(0, batch.num_rows, request.rows):
                    yield Rows(frame=framed(batch.slice(start, request.rows), request.columns))


def _counted(reader: Any, columns: Sequence[str]) -> list[tuple[int, int]]:  # noqa: ANN401  # pyarrow has no types
    """Return rows and bytes of each batch; the file is memory-mapped, so no data is read."""
    batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    outer = _outer(reader.schema, columns)
    return [(batch.num_rows, batch.select(outer).nbytes) for batch in batches]


def _outer(schema: Schema, columns: Sequence[str]) -> list[str]:
    """Return the file's columns that contain the named ones."""
    paths = paths_of(schema)
    return list(dict.fromkeys(paths[name][0] for name in columns))


@contextmanager
def _opened_ipc(name: str) -> Iterator[tuple[Any, bool]]:
    """Open a reader; yield it and whether its batches can be read in any order."""
    try:
        with open_file(name) as file:
            is_file = file.read(len(_MAGIC)) == _MAGIC
        source: IO[bytes] | Any = open_file(name) if is_url(name) else pa.memory_map(name)
        with source:
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            yield reader, is_file
    except (OSError, pa.ArrowException) as error:
        raise unreadable(name, error) from error
