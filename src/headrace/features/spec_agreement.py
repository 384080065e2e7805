"""What is wrong between parts of `features.yaml` that may each be right?

Takes the raw document, whatever it holds, so that these mistakes are told together with those of
single fields.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from headrace.core.spec_yaml import SpecMistake
from headrace.features.definitions import EVENT_TIMESTAMP, STATUS_SUFFIX

_INT64: Final = range(-(1 << 63), 1 << 63)
_LARGEST_FP32: Final = 3.4028234663852886e38
_Document = Mapping[Any, Any]


def disagreements(document: _Document) -> list[SpecMistake]:
    """Every such mistake."""
    entities = _by_name(document.get("entities"))
    views = _by_name(document.get("feature_views"))
    found = [*_repeated(document.get("entities"), "entities")]
    found += _repeated(document.get("feature_views"), "feature_views")
    found += _repeated(document.get("feature_services"), "feature_services")
    for i, view in _items(document.get("feature_views")):
        found += _of_view(view, entities, f"feature_views[{i}]")
    for i, service in _items(document.get("feature_services")):
        found += _of_service(service, views, entities, f"feature_services[{i}]")
    return found


def _of_view(view: _Document, entities: _Document, place: str) -> Iterator[SpecMistake]:
    taken: dict[str, str] = {}
    for i, name in _texts(view.get("entities")):
        at = f"{place}.entities[{i}]"
        entity = entities.get(name)
        if entity is None:
            known = ", ".join(map(str, entities)) or "none"
            yield SpecMistake(place=at, message=f"there is no entity {name!r}; there are: {known}")
            continue
        key = _join_key(entity)
        if key in taken:
            message = f"has the join key {key!r}, as {taken[key]}; give one entity another one"
            yield SpecMistake(place=at, message=message)
        taken.setdefault(key, f"entity {name!r}")
    yield from _columns_of_source(view, taken, place)
    yield from _repeated(view.get("features"), f"{place}.features")
    for i, feature in _items(view.get("features")):
        yield from _of_default(feature, f"{place}.features[{i}].default")


def _columns_of_source(view: _Document, taken: dict[str, str], place: str) -> Iterator[SpecMistake]:
    """A column has one part: join key, time, or feature."""
    source = view.get("source")
    source = source if isinstance(source, Mapping) else {}
    path = source.get("path")
    if isinstance(path, str) and ("://" in path or "\0" in path):
        message = "is no path; only files of this machine are read, so mount or copy it"
        yield SpecMistake(place=f"{place}.source.path", message=message)
    yield from _repeated_names(source.get("field_mapping"), f"{place}.source.field_mapping")
    columns = [
        ("source.timestamp_field", source.get("timestamp_field", EVENT_TIMESTAMP), "the time"),
        ("source.created_timestamp_column", source.get("created_timestamp_column"), "the creation"),
        *(
            (f"features[{i}].name", feature.get("name"), "a feature")
            for i, feature in _items(view.get("features"))
        ),
    ]
    for at, name, part in columns:
        if not isinstance(name, str):
            continue
        if name in taken and taken[name] != part:
            message = f"{name!r} is already {taken[name]} of this view"
            yield SpecMistake(place=f"{place}.{at}", message=message)
        taken.setdefault(name, part)


def _repeated_names(mapping: object, place: str) -> Iterator[SpecMistake]:
    """Two columns of a file that a view would call the same."""
    taken: dict[object, object] = {}
    for column, name in (mapping if isinstance(mapping, Mapping) else {}).items():
        if isinstance(name, str) and name in taken:
            message = f"{name!r} is already what column {taken[name]!r} is called"
            yield SpecMistake(place=f"{place}.{column}", message=message)
        elif isinstance(name, str):
            taken[name] = column


def _of_default(feature: _Document, place: str) -> Iterator[SpecMistake]:
    default, datatype = feature.get("default"), feature.get("datatype")
    if default is None or not isinstance(default, bool | int | float | str):
        return
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    match datatype:
        case "BYTES":
            fits, wanted = isinstance(default, str), "text"
        case "BOOL":
            fits, wanted = isinstance(default, bool), "true or false"
        case "INT64":
            fits = is_number and isinstance(default, int) and default in _INT64
            wanted = "a whole number of 64 bits"
        case "FP32" | "FP64":
            fits, wanted = is_number and _is_float(default, str(datatype)), "a number of that size"
        case _:
            return
    if not fits:
        shown = str(default)[:60]
        message = f"{shown} does not fit {datatype}; it should be {wanted}"
        yield SpecMistake(place=place, message=message)


def _is_float(value: bool | float | str, datatype: str) -> bool:  # noqa: FBT001  # any default
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return False
    return math.isfinite(number) and (datatype == "FP64" or abs(number) <= _LARGEST_FP32)


def _of_service(
    service: _Document, views: _Document, entities: _Document, place: str
) -> Iterator[SpecMistake]:
    is_full = service.get("full_feature_names") is True
    used = [item.partition(":")[0] for _, item in _texts(service.get("features"))]
    taken = _reserved([name for name in used if name in views], views, entities)
    for i, item in _texts(service.get("features")):
        at = f"{place}.features[{i}]"
        view_name, colon, wanted = item.partition(":")
        if view_name not in views:
            known = ", ".join(map(str, views)) or "none"
            message = f"there is no feature view {view_name!r}; there are: {known}"
            yield SpecMistake(place=at, message=message)
            continue
        names = [str(one.get("name")) for _, one in _items(views[view_name].get("features"))]
        if colon and wanted not in names:
            message = f"view {view_name!r} has no feature {wanted!r}; it has: {', '.join(names)}"
            yield SpecMistake(place=at, message=message)
            continue
        for name in [wanted] if colon else names:
            shown_as = f"{view_name}__{name}" if is_full else name
            if shown_as in taken:
                message = (
                    f"{shown_as!r} is already {taken[shown_as]}; name each feature once, or set "
                    "full_feature_names where two views have features of one name"
                )
                yield SpecMistake(place=at, message=message)
            taken.setdefault(shown_as, f"a column, of view {view_name!r}")


def _reserved(used: Sequence[str], views: _Document, entities: _Document) -> dict[str, str]:
    """What a table of the service has besides its features, which none may be called like."""
    taken = {EVENT_TIMESTAMP: "the column of the time"}
    for view_name in used:
        taken[f"{view_name}{STATUS_SUFFIX}"] = f"the status of view {view_name!r}"
        for _, name in _texts(views[view_name].get("entities")):
            taken[_join_key(entities.get(name, {"name": name}))] = "a join key"
    return taken


def _repeated(value: object, place: str) -> Iterator[SpecMistake]:
    first_use: dict[str, int] = {}
    for i, item in _items(value):
        name = item.get("name")
        if isinstance(name, str) and first_use.setdefault(name, i) != i:
            message = f"{name!r} is already the name of {place}[{first_use[name]}]"
            yield SpecMistake(place=f"{place}[{i}].name", message=message)


def _join_key(entity: object) -> str:
    given = entity if isinstance(entity, Mapping) else {}
    return str(given.get("join_key") or given.get("name"))


def _by_name(value: object) -> dict[str, _Document]:
    named = ((item.get("name"), item) for _, item in _items(value))
    return {name: item for name, item in named if isinstance(name, str)}


def _items(value: object) -> Iterator[tuple[int, _Document]]:
    for i, item in enumerate(value if isinstance(value, list | tuple) else ()):
        if isinstance(item, Mapping):
            yield i, item


def _texts(value: object) -> Iterator[tuple[int, str]]:
    for i, item in enumerate(value if isinstance(value, list | tuple) else ()):
        if isinstance(item, str):
            yield i, item
