"""What did the writer of a spec say? Every setting that is not its default, with its place."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Written:
    """One setting: `endpoints[0].timeout_s`, its field `endpoints[].timeout_s`, what it is."""

    place: str
    field: str
    value: Any


def written(model: BaseModel, place: str = "", field: str = "") -> Iterator[Written]:
    """The settings of `model` that are set and differ from their default, in the file's order.

    A part is told before what is in it; a default that was written out says nothing.
    """
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
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
    if isinstance(value, BaseModel):
        yield Written(place, field, value)
        yield from written(value, place, field)
    elif isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
        yield Written(place, field, value)
        for i, item in enumerate(value):
            yield from written(item, f"{place}[{i}]", f"{field}[]")
    else:
        yield Written(place, field, value)


def _fields(model: type[BaseModel], field: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        here = _joined(field, name)
        yield here
        for inner, is_list in _models(info.annotation):
            yield from _fields(inner, f"{here}[]" if is_list else here)


def _models(annotation: object, *, is_list: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    """The models that a value of this type may hold, and whether in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, is_list
        return
    origin = get_origin(annotation)
    listed = is_list or origin in {tuple, list}
    if origin in {tuple, list, Union, UnionType, Annotated}:
        for argument in get_args(annotation):
            yield from _models(argument, is_list=listed)
    assert origin not in {dict, Mapping} or not list(_inner(annotation)), "no models in mappings"


def _inner(annotation: object) -> Iterator[tuple[type[BaseModel], bool]]:
    for argument in get_args(annotation):
        yield from _models(argument)


def _joined(outer: str, name: str) -> str:
    return f"{outer}.{name}" if outer else name
