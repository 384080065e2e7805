"""Interface of a format: it reads fields of records' values, and writes answers as values.

A `FieldLayout` lists the fields and their meaning to the model. `headrace.streaming.codec` makes
tensors of them, so a format handles tensors only as columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from headrace.core import Array, Datatype, HeadraceError, InvalidArgumentError
from headrace.streaming.records import Record

Column = Sequence[Any] | Array
"""One field of many records, a value for each: numbers, texts, `bytes`, or lists of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSpec:
    """One field: its name, and what its values are.

    `shape`: of one value; empty for a scalar, -1 for any size.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldLayout:
    """The fields of the records that come and of the answers that go.

    `passed`: fields of any type that are read as well. `answered`: those of `passed` that answers
    have. `outputs` follow them.
    """

    inputs: tuple[FieldSpec, ...]
    outputs: tuple[FieldSpec, ...]
    passed: tuple[str, ...] = ()
    answered: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """The fields of those records that could be read.

    `columns`: by name, of `FieldLayout.inputs` and `.passed`; values in the order of the records
    that are not in `errors`. `errors`: why a record could not be read, by its place. `typed`: every
    value is known to be of its field's kind (not that it is in range), so nobody looks again.
    """

    columns: Mapping[str, Column]
    errors: Mapping[int, HeadraceError] = field(default_factory=dict)
    typed: bool = False


class ValueReader(Protocol):
    """Reads one kind of value. Used by several threads at once.

    The module of a format has `make_reader(settings: StreamFormatSpec, layout: Layout)` and
    `make_writer` with the same arguments; a layout of one way has nothing of the other.
    """

    def decode(self, records: Sequence[Record]) -> Fields:
        """The fields of records; one that is unreadable costs itself only.

        A number that its field's datatype cannot hold may be left to who makes tensors of it.

        Raises:
            HeadraceError: What stands in the way of every record, such as a registry that is away.
        """


class ValueWriter(Protocol):
    """Writes one kind of value. Used by several threads at once."""

    def encode(self, columns: Mapping[str, Column], rows: int) -> list[bytes]:
        """The values of answers.

        Args:
            columns: By name, of `FieldLayout.answered` and `.outputs`; each has `rows` values.

        Raises:
            HeadraceError: The answers cannot be written so.
        """


def without_value() -> InvalidArgumentError:
    """The error for a record that is nothing but a key."""
    return InvalidArgumentError("the record has no value (it is a tombstone)")


def unreadable(kind: str, reason: object) -> InvalidArgumentError:
    """The error for a value that is not of its format."""
    return InvalidArgumentError(f"the value is not readable as {kind}: {str(reason)[:300]}")
