"""Formats of values: JSON, Avro, protobuf and raw bytes. Imports `records` and below.

A `FieldLayout` lists the fields and their meaning to the model. `headrace.streaming.codec` converts
them to tensors, so a format handles tensors only as columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from headrace.core import Array, Datatype, HeadraceError, InvalidArgumentError
from headrace.streaming.records import Record

Column = Sequence[Any] | Array
"""One field of many records, a value for each: numbers, text, `bytes`, or lists of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSpec:
    """One field: its name, datatype and shape."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...] = ()
    """Shape of one value; empty for a scalar, -1 for any size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldLayout:
    """The fields of input records and of answers."""

    inputs: tuple[FieldSpec, ...]
    outputs: tuple[FieldSpec, ...]
    passed: tuple[str, ...] = ()
    """Fields of any type that are read as well."""
    answered: tuple[str, ...] = ()
    """Those of `passed` that answers contain; `outputs` follow them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Decoded fields of the readable records."""

    columns: Mapping[str, Column]
    """Values by field name, in the order of the records that are not in `errors`."""
    errors: Mapping[int, HeadraceError] = field(default_factory=dict)
    """Why a record could not be read, by its position."""
    typed: bool = False
    """Whether every value has its field's type (not necessarily its range), so that no check is
    needed."""


class ValueReader(Protocol):
    """Reads one kind of value. Used by several threads at once.

    The module of a format has `make_reader(settings: StreamFormatSpec, layout: FieldLayout)` and
    `make_writer` with the same arguments; a layout for one direction has no fields of the other.
    """

    def decode(self, records: Sequence[Record]) -> Fields:
        """Return the fields of records; an unreadable one fails alone.

        A number out of its datatype's range may be left to the tensor conversion.

        Raises:
            HeadraceError: The error affects every record, such as an unavailable registry.
        """


class ValueWriter(Protocol):
    """Writes one kind of value. Used by several threads at once."""

    def encode(self, columns: Mapping[str, Column], rows: int) -> list[bytes]:
        """Return the values of answers.

        Args:
            columns: By name, of `FieldLayout.answered` and `.outputs`; each has `rows` values.

        Raises:
            HeadraceError: The answers cannot be written in this format.
        """


def without_value() -> InvalidArgumentError:
    """Return the error for a record without a value."""
    return InvalidArgumentError("the record has no value (it is a tombstone)")


def unreadable(kind: str, reason: object) -> InvalidArgumentError:
    """Return the error for a value that is not in its format."""
    return InvalidArgumentError(f"the value is not readable as {kind}: {str(reason)[:300]}")
