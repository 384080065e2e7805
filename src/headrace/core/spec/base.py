"""Base of the spec file's parts: strict, immutable models without unknown keys."""

import ast
import sys
import types
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    SerializationInfo,
    Strict,
    TypeAdapter,
    create_model,
)
from pydantic_core import CoreSchema, core_schema

from headrace.core.spec.part import DERIVED, FLAT, FileOnly, SpecPart, default_of

_BOUNDS: Final = ("gt", "ge", "lt", "le", "multiple_of", "pattern", "min_length", "max_length")

_Part = TypeVar("_Part", bound=SpecPart)


class SpecModel(BaseModel):
    """Part of the spec file that only the control plane reads."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def parsed(part: type[_Part], value: object) -> _Part:
    """Return the part in `value` of a stored spec; raise ValidationError if it is invalid."""
    checked = _adapter(part).validate_python(value)
    assert isinstance(checked, part)
    return checked


@cache
def _adapter(part: type[SpecPart]) -> TypeAdapter[SpecPart]:
    return TypeAdapter(part)


def schema_of(part: type[SpecPart], handler: GetCoreSchemaHandler) -> CoreSchema:
    """Return the schema by which pydantic validates and writes a part, from its model."""
    model = model_of(part)

    def checked(value: Any, check: core_schema.ValidatorFunctionWrapHandler) -> SpecPart:  # noqa: ANN401  # any input
        if isinstance(value, part):
            return value
        read: BaseModel = check(value)
        names = read.model_fields_set - {part.__struct_config__.tag_field}
        return _built(part, {name: getattr(read, name) for name in names})

    return core_schema.no_info_wrap_validator_function(
        checked,
        handler(model),
        serialization=core_schema.plain_serializer_function_ser_schema(_written, info_arg=True),
    )


def _built(part: type[SpecPart], fields: Mapping[str, Any]) -> SpecPart:
    nullable, flat = _nullable(part), _flat(part)
    inside = {
        name: _built(
            kind, {n: value for n, value in fields.items() if n in model_of(kind).model_fields}
        )
        for name, kind in flat.items()
    }
    of_flat = {name for kind in flat.values() for name in model_of(kind).model_fields}
    own = {
        name: value
        for name, value in fields.items()
        if name not in of_flat and (value is not None or name not in nullable)
    }
    built = part(**own, **inside)
    built.__dict__["fields_set"] = frozenset(fields)
    return built


@cache
def model_of(kind: type[BaseModel | SpecPart]) -> type[BaseModel]:
    """Return the pydantic model with the fields of a part; a model is returned unchanged."""
    if issubclass(kind, BaseModel):
        return kind
    config = kind.__struct_config__
    fields: dict[str, Any] = {}
    if config.tag_field is not None:
        tag = Field(description=getattr(kind, config.tag_field).__doc__)
        fields[config.tag_field] = (Literal[config.tag], tag)
    texts = {name: text for base in kind.__mro__[::-1] for name, text in texts_of(base).items()}
    for field in msgspec.structs.fields(kind):
        annotation, marks = _annotation(field.type)
        if DERIVED in marks:
            continue
        if FLAT in marks:
            inner = model_of(_flat(kind)[field.name]).model_fields
            fields |= {name: (info.annotation, info) for name, info in inner.items()}
            continue
        settings: dict[str, Any] = {"description": texts.get(field.name)}
        if not field.required:
            settings["default"] = default_of(field)
        if settings.get("default") is msgspec.UNSET:
            settings["default"] = _shown_default(marks)
        if _takes_null(marks):
            annotation, settings["default"] = annotation | None, None
        fields[field.name] = (annotation, Field(**settings))
    return create_model(
        kind.__name__,
        __base__=SpecModel,
        __module__=kind.__module__,
        __doc__=kind.__doc__,
        **fields,
    )


def value_of(part: BaseModel | SpecPart, name: str) -> Any:  # noqa: ANN401  # of any type
    """Return the value of a part's field in the form of the spec file."""
    if isinstance(part, SpecPart):
        for field, kind in _flat(type(part)).items():
            if name in model_of(kind).model_fields:
                return getattr(getattr(part, field), name)
    return getattr(part, name)


@cache
def _nullable(part: type[SpecPart]) -> dict[str, Any]:
    """Return the defaults of fields for which the spec file may have null."""
    return {
        field.name: default_of(field)
        for field in msgspec.structs.fields(part)
        if _takes_null(_annotation(field.type)[1])
    }


@cache
def _flat(part: type[SpecPart]) -> dict[str, type[SpecPart]]:
    """Return the parts whose fields the spec file has directly in `part`, by field."""
    return {
        field.name: get_args(field.type)[0]
        for field in msgspec.structs.fields(part)
        if FLAT in get_args(field.type)
    }


def _takes_null(marks: Sequence[object]) -> bool:
    return any(isinstance(mark, FileOnly) and mark.null for mark in marks)


def _shown_default(marks: Sequence[object]) -> object:
    """Return the default in the schema of a field that is left out of messages until it is set."""
    shown = [mark.extra_json_schema or {} for mark in marks if isinstance(mark, msgspec.Meta)]
    return next((extra["default"] for extra in shown if "default" in extra), None)


def _annotation(kind: Any) -> tuple[Any, list[object]]:  # noqa: ANN401  # any type
    """Return a field's type for pydantic, and the marks on it that only this module knows."""
    origin, arguments = get_origin(kind), get_args(kind)
    marks: list[object] = []
    if origin is Annotated:
        inner: Any
        inner, marks = _annotation(arguments[0])
        for mark in arguments[1:]:
            if isinstance(mark, msgspec.Meta):
                bounds = {name: getattr(mark, name) for name in _BOUNDS}
                bounds = {name: bound for name, bound in bounds.items() if bound is not None}
                inner = Annotated[inner, Field(**bounds)]
            elif isinstance(mark, FileOnly):
                inner = Annotated[inner, Field(**mark.bounds)]
        for check in filter(callable, arguments[1:]):
            inner = Annotated[inner, AfterValidator(check)]
        return inner, [*marks, *arguments[1:]]
    if isinstance(kind, type) and issubclass(kind, Enum):
        values: Any = Literal[tuple(member.value for member in kind)]
        return Annotated[values, AfterValidator(kind)], marks
    if origin in {Union, types.UnionType}:
        members = [_annotation(part)[0] for part in arguments if part is not msgspec.UnsetType]
        return Union[tuple(members)], marks  # noqa: UP007  # of a list of types
    if origin in {tuple, list, dict}:
        items = tuple(part if part is ... else _annotation(part)[0] for part in arguments)
        # A list in the file may become a tuple.
        return Annotated[origin[items], Strict(strict=origin is dict)], marks
    return kind, marks


def _written(part: SpecPart, info: SerializationInfo) -> dict[str, Any]:
    """Return a part in the form of the spec file."""
    config = part.__struct_config__
    tag = {} if config.tag_field is None else {config.tag_field: config.tag}
    fields = model_of(type(part)).model_fields
    names = [name for name in fields if name not in tag]
    if info.exclude_unset:
        names = [name for name in names if name in part.model_fields_set]
    nullable = _nullable(type(part))
    values = {name: value_of(part, name) for name in names}
    values |= {n: fields[n].default for n, value in values.items() if value is msgspec.UNSET}
    return tag | {
        name: None if name in nullable and value == nullable[name] else _plain(value, info)
        for name, value in values.items()
    }


def _plain(value: object, info: SerializationInfo) -> Any:  # noqa: ANN401  # JSON
    match value:
        case SpecPart():
            return _written(value, info)
        case Enum():
            return value.value
        case tuple() | list():
            return [_plain(item, info) for item in value]
        case Mapping():
            return {name: _plain(item, info) for name, item in value.items()}
        case _:
            return value


def texts_of(kind: type) -> Mapping[str, str]:
    """Return the string under each field of a spec part or class of this package, by field."""
    if issubclass(kind, SpecPart) or kind.__module__.startswith("headrace."):
        return _texts(kind.__module__).get(kind.__name__, {})
    return {}


@cache
def _texts(module: str) -> dict[str, dict[str, str]]:
    """Return the strings under the fields of each class of a module, without keeping its tree."""
    tree = ast.parse(Path(str(sys.modules[module].__file__)).read_text(encoding="utf8"))
    return {
        node.name: {
            field.target.id: " ".join(text.value.value.split())
            for field, text in pairwise(node.body)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
