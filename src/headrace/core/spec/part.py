"""Parts of the spec file that all processes read, with or without pydantic."""

from typing import TYPE_CHECKING, Any, Final, get_args

import msgspec

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

DERIVED: Final = "derived"
"""Marks a field that the control plane sets; the spec file does not have it."""
FLAT: Final = "flat"
"""Marks a field whose own fields are directly in the spec file instead."""


class FileOnly:
    """Mark for constraints of a field in the spec file only, not in stored state and messages.

    `null`: the file may say null, which is the default. `bounds` are those of `pydantic.Field`.
    """

    def __init__(self, *, null: bool = False, **bounds: Any) -> None:  # noqa: ANN401  # of any type
        self.null = null
        self.bounds = bounds


class SpecPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """One part of the spec file, which is also the form in processes and stored state.

    `msgspec.Meta` in a field's annotation holds its bounds; a function there checks a value and
    raises ValueError. `__post_init__` checks that fields agree. The text under a field is its
    description in the schema.
    """

    @property
    def model_fields_set(self) -> frozenset[str]:
        """Return the fields that the spec file sets, or in code, those not at the default."""
        field_names: frozenset[str] | None = self.__dict__.get("fields_set")
        if field_names is not None:
            return field_names
        names: set[str] = set()
        for field in msgspec.structs.fields(type(self)):
            value = getattr(self, field.name)
            if FLAT in get_args(field.type):
                names |= value.model_fields_set
            elif field.required or value != default_of(field):
                names.add(field.name)
        return frozenset(names)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, _source: object, handler: "GetCoreSchemaHandler"
    ) -> "CoreSchema":
        """Return the schema by which pydantic validates such a part in a spec."""
        from headrace.core.spec.base import schema_of  # noqa: PLC0415  # replicas lack pydantic

        return schema_of(cls, handler)


def default_of(field: msgspec.structs.FieldInfo) -> Any:  # noqa: ANN401  # of any type
    """Return the default of a field that is not required."""
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default
