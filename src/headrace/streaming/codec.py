"""How do records become rows of tensors, and a model's outputs the answers to records?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from headrace.core import HeadraceError, Tensors
from headrace.streaming.records import Record


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What is written for one record. `value`: None deletes the key."""

    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Records whose tensors have the same shapes, and so are one.

    `places`: which of the records that were decoded, in their order. `rows_each`: how many rows
    each of them has; for a model without a batch axis one record is a group. `keys`: of their
    answers. `context`: what the codec wants back for the answers.
    """

    places: Sequence[int]
    inputs: Tensors
    rows_each: int = 1
    keys: Sequence[bytes | None] = ()
    context: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Records as tensors. `errors`: why a record is none, by its place."""

    groups: Sequence[Group]
    errors: dict[int, HeadraceError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """Fields that records have besides their own, such as what windows come to.

    `columns`: by name, a value for each record; those of `errors` have one that means nothing.
    `errors`: why a record cannot be scored, by its place.
    """

    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    errors: Mapping[int, HeadraceError] = field(default_factory=dict)

    def of(self, places: Sequence[int]) -> "Added":
        """For these records only, in this order."""
        errors = {at: self.errors[place] for at, place in enumerate(places) if place in self.errors}
        columns = {name: [one[at] for at in places] for name, one in self.columns.items()}
        return Added(columns=columns, errors=errors)


NOTHING_ADDED: Final = Added()


class Codec(Protocol):
    """Turns records into tensors and back. Used by one thread."""

    def decode(self, records: Sequence[Record], added: Added = NOTHING_ADDED) -> Decoded:
        """Every record is in a group or in the errors.

        Args:
            added: Fields of these records beside what they hold themselves; without errors.

        Raises:
            HeadraceError: What stands in the way of every record.
        """

    def encode(self, group: Group, outputs: Tensors, kept: Sequence[int]) -> list[Answer]:
        """The answers to those records of a group that have one.

        Args:
            outputs: Of these records only, in their order.
            kept: Which ones of the group.

        Raises:
            HeadraceError: They cannot be written.
        """
