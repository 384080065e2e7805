"""Binary format of the online store: keys of entities and records of their values, vectorized.

A key reads as `customer:17`; several values are each prefixed with their length, as in
`customer,shop:2:17,4:a,b.`, so that no text can be mistaken for two values.

A record is, little-endian and without gaps:

    8 bytes   event time, microseconds since 1970
    8 bytes   the view's schema hash, which also identifies this layout
    1 bit     per feature, whether it has a value; padded to whole bytes
    fixed     each feature's value: FP32 4, FP64 8, INT64 8, BOOL 1; BYTES 4, the end of its bytes
    heap      the bytes of all BYTES features

The fixed part is a NumPy record, so that a batch of records is decoded column by column, and
adjacent columns of one type together.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from headrace.core import Array, Datatype, InvalidArgumentError
from headrace.features.definitions import HASH_BYTES, Entity, FeatureView, Value

MAX_RECORD_BYTES: Final = 1 << 20
MAX_EVENT_US: Final = 1 << 53
"""Later times (the year 2255) are refused: Redis compares them as 64-bit floats."""
_TIME: Final = struct.Struct("<q")
_FLAGS_AT: Final = _TIME.size + HASH_BYTES
_STORED: Final = {
    Datatype.FP32: "<f4",
    Datatype.FP64: "<f8",
    Datatype.INT64: "<i8",
    Datatype.BOOL: "u1",
    Datatype.BYTES: "<u4",
}
_CODES: Final = {
    Datatype.FP32: "f",
    Datatype.FP64: "d",
    Datatype.INT64: "q",
    Datatype.BOOL: "B",
    Datatype.BYTES: "I",
}
_ONE_ROW: Final = np.ones((1, 256), dtype=np.bool_)
_ONE_ROW.setflags(write=False)
_FIRST: Final = np.zeros(1, dtype=np.int64)
_FIRST.setflags(write=False)
Record = bytes
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueColumn:
    """A feature's values; undefined where `is_present` is False."""

    values: Array
    is_present: Booleans


class DecodedRecords(msgspec.Struct, frozen=True, kw_only=True):
    """The decoded content of records.

    A struct, as each request creates some of these and creating a frozen dataclass is slower.
    """

    rows: Integers
    """Positions of the decoded records; the other fields have the same order."""

    event_us: Integers

    columns: tuple[Array, ...]
    """The requested features; writable."""

    is_present: Booleans
    """Whether there is a value [rows, features]."""

    is_whole: bool
    """Whether all values are present."""

    reasons: Mapping[int, str]
    """By position: why an existing record cannot be decoded."""


class RecordLayout:
    """Encoder and decoder of the records of one view."""

    def __init__(self, view: FeatureView) -> None:
        self._view = view
        self._hash = view.schema_hash
        self._flag_bytes = -(-len(view.features) // 8)
        fields: list[tuple[Any, ...]] = [
            ("event_us", "<i8"),
            ("schema", "<u8"),
            ("flags", "u1", (self._flag_bytes,)),
        ]
        fields += [(f"f{i}", _STORED[feature.datatype]) for i, feature in enumerate(view.features)]
        self._dtype = np.dtype(fields)
        self._heap_features = [
            i for i, feature in enumerate(view.features) if feature.datatype is Datatype.BYTES
        ]
        self._blocks = _blocks(view)
        # The same bytes, with a field per block.
        self._block_dtype = np.dtype(
            [*fields[:3], *((f"b{b.first}", _STORED[b.datatype], (b.count,)) for b in self._blocks)]
        )
        self._kinds = [feature.datatype for feature in view.features]
        self._flags_end = _FLAGS_AT + self._flag_bytes
        self._all_flags = ((1 << len(view.features)) - 1).to_bytes(self._flag_bytes, "little")
        self._whole_head = self._hash + self._all_flags
        self._is_flat = not self._heap_features
        self._flat_blocks = [
            (np.dtype(_STORED[block.datatype]), block.count, self._offset(block.first))
            for block in self._blocks
        ]
        codes = "".join(_CODES[kind] for kind in self._kinds)
        self._packer = struct.Struct(f"<q{HASH_BYTES}s{self._flag_bytes}s{codes}")

    def encode(self, event_us: Integers, columns: Sequence[ValueColumn]) -> list[Record]:
        """Encode a record per row; `columns` are the view's features in order.

        Raises:
            InvalidArgumentError: A record would be too large, or a time is out of range.
        """
        if np.any((event_us >= MAX_EVENT_US) | (event_us <= -MAX_EVENT_US)):
            raise InvalidArgumentError(f"view '{self._view.name}': a time is beyond the year 2255")
        fixed_parts = np.zeros(len(event_us), dtype=self._dtype)
        fixed_parts["event_us"] = event_us
        fixed_parts["schema"] = int.from_bytes(self._hash, "little")
        flags = np.stack([column.is_present for column in columns], axis=1)
        fixed_parts["flags"] = np.packbits(flags, axis=1, bitorder="little")
        for i, column in enumerate(columns):
            if i not in self._heap_features:
                # The value in place of a missing one is undefined, and is not stored.
                fixed_parts[f"f{i}"] = np.where(column.is_present, column.values, 0)
        heaps = self._heaps(fixed_parts, columns)
        data, size = fixed_parts.tobytes(), self._dtype.itemsize
        return [data[row * size : (row + 1) * size] + heap for row, heap in enumerate(heaps)]

    def pack(self, event_us: int, values: Sequence[Value | None]) -> Record:
        """Encode one row: equal to `encode` of many, and faster for one.

        Args:
            values: One per feature, of its type; None is a missing value.
        """
        if self._is_flat and None not in values:
            return self._packer.pack(event_us, self._hash, self._all_flags, *values)
        flags, heap = 0, b""
        stored: list[Value] = []
        for i, value in enumerate(values):
            if value is not None:
                flags |= 1 << i
            if isinstance(value, bytes):
                heap += value
            if self._kinds[i] is Datatype.BYTES:
                stored.append(len(heap))
            else:
                stored.append(0 if value is None else value)
        fixed = self._packer.pack(
            event_us, self._hash, flags.to_bytes(self._flag_bytes, "little"), *stored
        )
        return fixed + heap

    def decode(
        self, records: Sequence[Record | None], features: Sequence[int] | None = None
    ) -> DecodedRecords:
        """Decode `records`; one of another schema, or a damaged one, only has a reason.

        Args:
            features: Positions of the view's features to decode; None for all, in order.
        """
        selected = range(len(self._kinds)) if features is None else features
        if len(records) == 1 and self._is_flat and (first := records[0]) is not None:
            decoded = self._decode_record(first, features)
            if decoded is not None:
                return decoded
        rows: list[int] = []
        reasons: dict[int, str] = {}
        for row, record in enumerate(records):
            if record is None:
                continue
            reason = self._unreadable(record)
            if reason:
                reasons[row] = reason
            else:
                rows.append(row)
        size = self._dtype.itemsize
        readable = [records[row] or b"" for row in rows]
        fixed = b"".join([record[:size] for record in readable])
        read = np.frombuffer(fixed, dtype=self._block_dtype)
        is_whole = all(
            record[_FLAGS_AT : self._flags_end] == self._all_flags for record in readable
        )
        columns = self._columns(read, readable)
        return DecodedRecords(
            rows=np.array(rows, dtype=np.int64),
            event_us=read["event_us"],
            columns=tuple([columns[i] for i in selected]),
            is_present=self._is_present(read, selected, is_whole=is_whole),
            is_whole=is_whole,
            reasons=reasons,
        )

    def unpack_record(self, record: Record) -> tuple[float, ...] | None:
        """Return the event time, header fields and values of all features, in order.

        None for a record that lacks a value or cannot be read, and for views with text.
        """
        is_whole = record[_TIME.size : self._flags_end] == self._whole_head
        if not is_whole or not self._is_flat or len(record) != self._dtype.itemsize:
            return None
        return self._packer.unpack(record)

    def _decode_record(
        self, record: Record, features: Sequence[int] | None
    ) -> DecodedRecords | None:
        """Return `decode` of one complete record without text, the usual case; None for others.

        For one row, NumPy's records take longer than the rest of a read.
        """
        is_whole = record[_TIME.size : self._flags_end] == self._whole_head
        count = len(self._kinds) if features is None else len(features)
        if not is_whole or len(record) != self._dtype.itemsize or count > _ONE_ROW.shape[1]:
            return None
        columns: list[Array] = []
        for dtype, values, offset in self._flat_blocks:
            block = np.frombuffer(record, dtype, values, offset)
            block = block.astype(np.bool_) if dtype.kind == "u" else block.copy()
            columns.extend(block.reshape(values, 1))
        return DecodedRecords(
            rows=_FIRST,
            event_us=np.array(_TIME.unpack_from(record), dtype=np.int64),
            columns=tuple(columns if features is None else [columns[i] for i in features]),
            is_present=_ONE_ROW[:, :count],
            is_whole=True,
            reasons={},
        )

    def _is_present(self, read: Array, selected: Sequence[int], *, is_whole: bool) -> Booleans:
        if is_whole:
            return np.ones((len(read), len(selected)), dtype=np.bool_)
        flags = np.unpackbits(read["flags"], axis=1, bitorder="little").view(np.bool_)
        return flags[:, list(selected)]

    def _columns(self, read: Array, records: Sequence[Record]) -> list[Array]:
        """Return all features, in order: copies, as the input is neither writable nor aligned."""
        columns: list[Array] = []
        starts: Sequence[int] | Array = [0] * len(read)
        for block in self._blocks:
            stored = read[f"b{block.first}"].T
            if block.datatype is Datatype.BYTES:
                for ends in stored:
                    columns.append(self._bytes(starts, ends, records))
                    starts = ends
            elif block.datatype is Datatype.BOOL:
                columns += list(stored.astype(np.bool_, order="C"))
            else:
                columns += list(stored.copy(order="C"))
        return columns

    def _heaps(self, fixed_parts: Array, columns: Sequence[ValueColumn]) -> list[bytes]:
        """Return the bytes of each row's BYTES features; stores their ends in `fixed_parts`."""
        heaps = [b""] * len(fixed_parts)
        for i in self._heap_features:
            values, is_present = columns[i].values, columns[i].is_present
            heaps = [
                heap + value if is_value_present else heap
                for heap, value, is_value_present in zip(heaps, values, is_present, strict=True)
            ]
            lengths = [len(heap) for heap in heaps]
            if max(lengths, default=0) + self._dtype.itemsize > MAX_RECORD_BYTES:
                message = (
                    f"view '{self._view.name}': the values of one entity take more than "
                    f"{MAX_RECORD_BYTES} bytes; store large values elsewhere and reference them "
                    "by name"
                )
                raise InvalidArgumentError(message)
            fixed_parts[f"f{i}"] = lengths
        return heaps

    def _unreadable(self, record: Record) -> str:
        if len(record) < _TIME.size + HASH_BYTES:
            return "the stored record is damaged"
        if record[_TIME.size : _TIME.size + HASH_BYTES] != self._hash:
            return "the stored record has another schema; materialize the view again"
        if len(record) < self._dtype.itemsize or not self._is_heap_valid(record):
            return "the stored record is damaged"
        return ""

    def _is_heap_valid(self, record: Record) -> bool:
        size, before = len(record) - self._dtype.itemsize, 0
        for i in self._heap_features:
            (end,) = struct.unpack_from("<I", record, self._offset(i))
            if not before <= end <= size:
                return False
            before = end
        return before == size

    def _offset(self, feature: int) -> int:
        fields = self._dtype.fields
        assert fields is not None
        return int(fields[f"f{feature}"][1])

    def _bytes(
        self, starts: "Sequence[int] | Array", ends: Array, records: Sequence[Record]
    ) -> Array:
        size = self._dtype.itemsize
        return objects(
            [
                record[size + int(start) : size + int(end)]
                for record, start, end in zip(records, starts, ends, strict=True)
            ]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Adjacent features of one type."""

    first: int
    count: int
    datatype: Datatype


def _blocks(view: FeatureView) -> list[_Block]:
    blocks = []
    for datatype, group in groupby(
        enumerate(view.features), key=lambda indexed: indexed[1].datatype
    ):
        members = list(group)
        blocks.append(_Block(first=members[0][0], count=len(members), datatype=datatype))
    return blocks


def record_time_us(record: Record) -> int:
    """Return the event time of a record."""
    return int(_TIME.unpack_from(record)[0])


def objects(values: Sequence[object]) -> Array:
    """Return an array of Python objects, as used for BYTES."""
    array = np.empty(len(values), dtype=np.object_)
    array[:] = values
    return array


MAX_KEY_BYTES: Final = 1024
_INT64: Final = np.iinfo(np.int64)
_SHOWN: Final = 60
Key = bytes


def key_prefix(view: FeatureView) -> bytes:
    """Return the key prefix of all views of the same entities."""
    return f"{','.join(entity.name for entity in view.entities)}:".encode()


def encode_keys(view: FeatureView, columns: Sequence[Sequence[object]]) -> list[Key]:
    """Encode a key per row of `columns`: the view's join keys in order, of equal length.

    Raises:
        InvalidArgumentError: A value is not valid for its entity; the message names the row.
    """
    prefix = key_prefix(view)
    parts = [
        _encode_column(entity, column)
        for entity, column in zip(view.entities, columns, strict=True)
    ]
    if len(parts) == 1:
        return [prefix + part for part in parts[0]]
    return [
        prefix + b",".join(b"%d:%b" % (len(part), part) for part in row)
        for row in zip(*parts, strict=True)
    ]


def decode_key(view: FeatureView, key: Key) -> list[bytes]:
    """Decode a key of `encode_keys`: the text of each of the view's join keys, in order."""
    rest = key.removeprefix(key_prefix(view))
    if len(view.entities) == 1:
        return [rest]
    values = []
    for _ in view.entities:
        length, _, rest = rest.partition(b":")
        values.append(rest[: int(length)])
        rest = rest[int(length) + 1 :]
    return values


def show_key(key: Key) -> str:
    """Return a key for messages: `customer:17`."""
    text = key.decode(errors="replace")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _encode_column(entity: Entity, column: Sequence[object]) -> list[bytes]:
    encode = _encode_number if entity.datatype is Datatype.INT64 else _encode_text
    encoded = []
    for row, value in enumerate(column):
        try:
            encoded.append(encode(value))
        except ValueError as error:
            shown = repr(value)[:_SHOWN]
            message = f"{entity.join_key}[{row}]: {shown} is not a valid {entity.name}; {error}"
            raise InvalidArgumentError(message) from None
    return encoded


def _encode_number(value: object) -> bytes:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise ValueError("it must be an integer (INT64)")  # noqa: TRY004  # reported with its row
    if not _INT64.min <= value <= _INT64.max:
        raise ValueError("it must fit 64 bits")
    return b"%d" % value


def _encode_text(value: object) -> bytes:
    if not isinstance(value, str | bytes):
        raise ValueError("it must be text (BYTES)")  # noqa: TRY004  # reported with its row
    try:
        encoded = value.encode() if isinstance(value, str) else bytes(value)
    except UnicodeEncodeError:
        raise ValueError("it contains a lone surrogate, which UTF-8 cannot encode") from None
    if not encoded or len(encoded) > MAX_KEY_BYTES:
        raise ValueError(f"it must have 1 to {MAX_KEY_BYTES} bytes")
    return encoded
