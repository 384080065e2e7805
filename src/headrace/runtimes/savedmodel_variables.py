"""Do the variables of a SavedModel lie where their index says?

Read before OpenVINO does, whose reader follows the index out of its memory. The index is a sorted
table of LevelDB's format: https://github.com/google/leveldb/blob/main/doc/table_format.md; each
value says where a tensor lies:
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/tensor_bundle.proto
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.runtimes.file_bytes import BrokenFileError, Field, Source, inside, signed, varint

INDEX: Final = "variables.index"
_FOOTER_BYTES: Final = 48
_MAGIC: Final = 0xDB4775248B80FB57
_TRAILER_BYTES: Final = 5
_MOST_BLOCKS: Final = 1_000_000
_MOST_SHARDS: Final = 10_000
_STRING: Final = 7
_ITEM_BYTES: Final = {
    1: 4, 2: 8, 3: 4, 4: 1, 5: 2, 6: 1, 8: 8, 9: 8, 10: 1, 11: 1, 12: 1, 13: 4, 14: 2, 15: 2,
    16: 2, 17: 2, 18: 16, 19: 2, 22: 4, 23: 8,
}  # fmt: skip
"""By the number of the type in `types.proto`."""


@dataclass(slots=True)
class _Entry:
    """Where a tensor lies."""

    kind: int = 0
    shape: list[int] = field(default_factory=list)
    shard: int = 0
    offset: int = 0
    size: int = 0
    is_sliced: bool = False


def check_variables(variables: Path) -> None:
    """Refuse an index that is damaged, or names what its files do not have.

    Raises:
        BrokenFileError: It does.
    """
    with Source(variables / INDEX) as source:
        values = [value for block in _blocks(source) for value in _values(source, block)]
        if not values:
            raise BrokenFileError("is damaged: it has no header")
        shards = _shards(source, values[0])
        files = [variables / f"variables.data-{i:05d}-of-{shards:05d}" for i in range(shards)]
        sizes = [file.stat().st_size if file.is_file() else -1 for file in files]
        if min(sizes) < 0:
            missing = files[sizes.index(-1)].name
            raise BrokenFileError(f"names {missing}, which is not there")
        for value in values[1:]:
            entry = _entry(source, value)
            _check(entry, sizes)
            if entry.kind == _STRING and not entry.is_sliced:
                _check_strings(files[entry.shard], entry)


def _blocks(source: Source) -> Iterator[Field]:
    """The blocks of data, as the block that lists them has them."""
    if source.size < _FOOTER_BYTES:
        raise BrokenFileError("is truncated")
    start = source.size - _FOOTER_BYTES
    if source.number(source.size - 8, "Q") != _MAGIC:
        raise BrokenFileError("is truncated or damaged: it does not end as a table of variables")
    place, end = start, source.size - 8
    numbers = []
    for _ in range(4):
        number, place = varint(source, place, end)
        numbers.append(number)
    for count, value in enumerate(_values(source, _block(source, numbers[2], numbers[3]))):
        if count > _MOST_BLOCKS:
            raise BrokenFileError(f"has more than {_MOST_BLOCKS} blocks")
        offset, place = varint(source, value.start, value.end)
        size, _ = varint(source, place, value.end)
        yield _block(source, offset, size)


def _block(source: Source, offset: int, size: int) -> Field:
    if offset + size + _TRAILER_BYTES > source.size - _FOOTER_BYTES:
        raise BrokenFileError("is damaged: a block ends beyond the file")
    if source.read(offset + size, 1) != b"\0":
        raise BrokenFileError("is damaged, or compressed, as TensorFlow does not write it")
    restarts = source.number(offset + size - 4, "I") if size >= 8 else 0  # noqa: PLR2004  # one restart and their number
    end = size - 4 - 4 * restarts
    if not restarts or end < 0:
        raise BrokenFileError("is damaged: a block is shorter than its list of restarts")
    for i in range(restarts):
        if source.number(offset + end + 4 * i, "I") > end:
            raise BrokenFileError("is damaged: a restart lies beyond its block")
    return Field(0, 2, 0, offset, offset + end)


def _values(source: Source, block: Field) -> Iterator[Field]:
    """Where the values of a block lie; keys only say what they have anew."""
    place, key_bytes = block.start, 0
    while place < block.end:
        shared, place = varint(source, place, block.end)
        own, place = varint(source, place, block.end)
        size, place = varint(source, place, block.end)
        if shared > key_bytes or place + own + size > block.end:
            raise BrokenFileError("is damaged: an entry ends beyond its block")
        key_bytes = shared + own
        place += own + size
        yield Field(0, 2, 0, place - size, place)


def _shards(source: Source, header: Field) -> int:
    found = {one.number: one.value for one in inside(source, header) if not one.is_bytes}
    shards = found.get(1, 0)
    if not 1 <= shards <= _MOST_SHARDS or found.get(2, 0):
        raise BrokenFileError(f"has {shards} files, or numbers in another order of bytes")
    return shards


def _entry(source: Source, value: Field) -> _Entry:
    entry = _Entry()
    for one in inside(source, value):
        match one.number:
            case 1:
                entry.kind = one.value
            case 2:
                dims = (dim for dim in inside(source, one) if dim.number == 2)  # noqa: PLR2004  # dim
                for dim in dims:
                    sizes = [signed(part.value) for part in inside(source, dim) if part.number == 1]
                    entry.shape.append(sizes[0] if sizes else 0)
            case 3:
                entry.shard = one.value
            case 4:
                entry.offset = one.value
            case 5:
                entry.size = one.value
            case 7:
                entry.is_sliced = True
    return entry


def _check(entry: _Entry, sizes: list[int]) -> None:
    if entry.shard >= len(sizes) or entry.offset + entry.size > sizes[entry.shard]:
        raise BrokenFileError("names a variable that ends beyond its file")
    if any(size < 0 for size in entry.shape):
        raise BrokenFileError(f"names a variable of the shape {entry.shape[:8]}")
    if entry.is_sliced or entry.kind == _STRING:
        return
    item_bytes = _ITEM_BYTES.get(entry.kind)
    if item_bytes is None:
        raise BrokenFileError(f"names a variable of the type {entry.kind}")
    if math.prod(entry.shape) * item_bytes != entry.size:
        raise BrokenFileError(f"names a variable {entry.shape[:8]} of {entry.size} bytes")


def _check_strings(file: Path, entry: _Entry) -> None:
    """Texts lie behind their lengths and a checksum of those."""
    count = math.prod(entry.shape)
    if count > entry.size:
        raise BrokenFileError(f"names {count} texts in {entry.size} bytes")
    with Source(file) as source:
        place, end = entry.offset, entry.offset + entry.size
        total = 0
        for _ in range(count):
            length, place = varint(source, place, end)
            total += length
        if place + 4 + total != end:
            raise BrokenFileError("names texts that end beyond their bytes")
