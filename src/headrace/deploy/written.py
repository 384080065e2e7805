"""What did the writer of a spec say? Every setting that is not its default, with its place."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel

from headrace.core.spec_base import model_of, value_of
from headrace.core.spec_part import SpecPart

_HOLDING_MANY: Final = frozenset({tuple, list, dict, Mapping})


@dataclass(frozen=True, slots=True)
class Written:
    """One setting: `endpoints[0].timeout_s`, its field `endpoints[].timeout_s`, what it is.

    What a mapping has under a name stands at that name: `kubernetes.endpoints[fraud].image`.
    """

    place: str
    field: str
    value: Any


def written(model: BaseModel | SpecPart, place: str = "", field: str = "") -> Iterator[Written]:
    """The settings of `model` that are set and differ from their default, in the file's order.

    A part is told before what is in it; a default that was written out says nothing.
    """
    for name, info in model_of(type(model)).model_fields.items():
        value = value_of(model, name)
        if name not in model.model_fields_set:
            continue
        if not info.is_required() and value == info.get_default(call_default_factory=True):
            continue
        yield from _told(value, _joined(place, name), _joined(field, name))


def known_fields(model: type[BaseModel], field: str = "") -> Iterator[str]:
    """Every field that a document of this model may have, each once, outer ones first."""
    seen: set[str] = set()
    for found in _fields(model, field):
        if found not in seen:
            seen.add(found)
            yield found


def is_within(field: str, outer: str) -> bool:
    """Whether `field` is `outer`, or a part of it."""
    return field == outer or field.startswith((f"{outer}.", f"{outer}["))


def _told(value: object, place: str, field: str) -> Iterator[Written]:
    if isinstance(value, BaseModel | SpecPart):
        yield Written(place, field, value)
        yield from written(value, place, field)
    elif isinstance(value, tuple) and any(isinstance(item, BaseModel | SpecPart) for item in value):
        yield Written(place, field, value)
        for i, item in enumerate(value):
            yield from written(item, f"{place}[{i}]", f"{field}[]")
    elif isinstance(value, Mapping) and any(
        isinstance(i, BaseModel | SpecPart) for i in value.values()
    ):
        yield Written(place, field, value)
        for name, item in value.items():
            yield from written(item, f"{place}[{name}]", f"{field}[]")
    else:
        yield Written(place, field, value)


def _fields(model: type[BaseModel], field: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        here = _joined(field, name)
        yield here
        for inner, is_one_of in _models(info.annotation):
            yield from _fields(inner, f"{here}[]" if is_one_of else here)


def _models(
    annotation: object, *, is_one_of: bool = False
) -> Iterator[tuple[type[BaseModel], bool]]:
    """The models that a value of this type may hold, and whether in a list or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel | SpecPart):
        yield model_of(annotation), is_one_of
        return
    origin = get_origin(annotation)
    inside = is_one_of or origin in _HOLDING_MANY
    if inside or origin in {Union, UnionType, Annotated}:
        for argument in get_args(annotation):
            yield from _models(argument, is_one_of=inside)


def _joined(outer: str, name: str) -> str:
    return f"{outer}.{name}" if outer else name
