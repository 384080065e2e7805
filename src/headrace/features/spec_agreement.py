"""Consistency checks between parts of `features.yaml` that are each valid."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from headrace.core.spec.yaml import SpecMistake
from headrace.features.definitions import EVENT_TIMESTAMP, STATUS_SUFFIX

_INT64: Final = range(-(1 << 63), 1 << 63)
_LARGEST_FP32: Final = 3.4028234663852886e38
Document = Mapping[Any, Any]


def repeated(value: object, location: str) -> Iterator[SpecMistake]:
    """Yield the names that occur several times in a list."""
    first_use: dict[str, int] = {}
    for i, item in items(value):
        name = item.get("name")
        if isinstance(name, str) and first_use.setdefault(name, i) != i:
            message = f"{name!r} is already the name of {location}[{first_use[name]}]"
            yield SpecMistake(place=f"{location}[{i}].name", message=message)


def join_key(entity: object) -> str:
    """Return the column that identifies an entity."""
    mapping = entity if isinstance(entity, Mapping) else {}
    return str(mapping.get("join_key") or mapping.get("name"))


def by_name(value: object) -> dict[str, Document]:
    """Return the named mappings of a list."""
    named = ((item.get("name"), item) for _, item in items(value))
    return {name: item for name, item in named if isinstance(name, str)}


def items(value: object) -> Iterator[tuple[int, Document]]:
    """Yield the mappings of a list, with their positions."""
    for i, item in enumerate(value if isinstance(value, list | tuple) else ()):
        if isinstance(item, Mapping):
            yield i, item


def texts(value: object) -> Iterator[tuple[int, str]]:
    """Yield the texts of a list, with their positions."""
    for i, item in enumerate(value if isinstance(value, list | tuple) else ()):
        if isinstance(item, str):
            yield i, item


def misfitting_default(feature: Document, location: str) -> Iterator[SpecMistake]:
    """Yield a default that does not fit its column's datatype."""
    default, datatype = feature.get("default"), feature.get("datatype")
    if default is None or not isinstance(default, bool | int | float | str):
        return
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    match datatype:
        case "BYTES":
            fits, expected = isinstance(default, str), "text"
        case "BOOL":
            fits, expected = isinstance(default, bool), "true or false"
        case "INT64":
            fits = is_number and isinstance(default, int) and default in _INT64
            expected = "a 64-bit integer"
        case "FP32" | "FP64":
            fits, expected = (
                is_number and _is_float(default, str(datatype)),
                "a number of that size",
            )
        case _:
            return
    if not fits:
        shown = str(default)[:60]
        message = f"{shown} does not fit {datatype}; it should be {expected}"
        yield SpecMistake(place=location, message=message)


def _is_float(value: bool | float | str, datatype: str) -> bool:  # noqa: FBT001  # a default of any type
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return False
    return math.isfinite(number) and (datatype == "FP64" or abs(number) <= _LARGEST_FP32)


_FUNCTION: Final = re.compile(r"[^\x00-\x1f\x7f:]+\.py:[A-Za-z_][A-Za-z0-9_]*")
_Views = Mapping[str, Document]


def on_demand_mistakes(view: Document, views: _Views, path: str) -> Iterator[SpecMistake]:
    """Yield the mistakes of an on-demand view; `views` are the defined feature views."""
    name = view.get("name")
    if isinstance(name, str) and name in views:
        message = f"{name!r} is already the name of a feature view"
        yield SpecMistake(place=f"{path}.name", message=message)
    function = view.get("function")
    if isinstance(function, str) and not _FUNCTION.fullmatch(function):
        message = f"{function[:200]!r} is not FILE.py:NAME, such as ratios.py:ratios"
        yield SpecMistake(place=f"{path}.function", message=message)
    taken: dict[str, str] = {}
    is_full = view.get("full_feature_names") is True
    yield from _columns(view.get("inputs"), views, taken, f"{path}.inputs", is_full=is_full)
    for i, column in items(view.get("request_columns")):
        location = f"{path}.request_columns[{i}]"
        yield from misfitting_default(column, f"{location}.default")
        shown_as = column.get("name")
        if shown_as == EVENT_TIMESTAMP:
            yield SpecMistake(place=f"{location}.name", message="is the name of the time column")
        elif isinstance(shown_as, str):
            if shown_as in taken:
                message = f"{shown_as!r} is already {taken[shown_as]}; give it another name"
                yield SpecMistake(place=f"{location}.name", message=message)
            taken.setdefault(shown_as, "a request column")
    if not taken and not list(texts(view.get("inputs"))):
        message = "has no inputs; set `inputs` from feature views, or `request_columns`"
        yield SpecMistake(place=path, message=message)
    yield from repeated(view.get("features"), f"{path}.features")
    for i, feature in items(view.get("features")):
        yield from misfitting_default(feature, f"{path}.features[{i}].default")


def service_mistakes(
    service: Document, views: _Views, entities: Document, location: str
) -> Iterator[SpecMistake]:
    """Yield the mistakes of a service; `views` are feature views and on-demand views."""
    used = [item.partition(":")[0] for _, item in texts(service.get("features"))]
    taken = _reserved([name for name in used if name in views], views, entities)
    yield from _request_columns(dict.fromkeys(used), views, taken, location)
    is_full = service.get("full_feature_names") is True
    yield from _columns(
        service.get("features"), views, taken, f"{location}.features", is_full=is_full
    )


def _columns(
    value: object, views: _Views, taken: dict[str, str], path: str, *, is_full: bool
) -> Iterator[SpecMistake]:
    """Yield mistakes in a list of `VIEW` and `VIEW:FEATURE`; names in `taken` are not available."""
    for i, item in texts(value):
        location = f"{path}[{i}]"
        view_name, colon, feature_name = item.partition(":")
        if view_name not in views:
            available = ", ".join(map(str, views)) or "none"
            message = f"feature view {view_name!r} is not defined; defined: {available}"
            yield SpecMistake(place=location, message=message)
            continue
        names = [str(feature.get("name")) for _, feature in items(views[view_name].get("features"))]
        if colon and feature_name not in names:
            message = (
                f"view {view_name!r} has no feature {feature_name!r}; it has: {', '.join(names)}"
            )
            yield SpecMistake(place=location, message=message)
            continue
        for name in [feature_name] if colon else names:
            shown_as = f"{view_name}__{name}" if is_full else name
            if shown_as in taken:
                message = (
                    f"{shown_as!r} is already {taken[shown_as]}; name each feature once, or set "
                    "full_feature_names if two views have features with the same name"
                )
                yield SpecMistake(place=location, message=message)
            taken.setdefault(shown_as, f"a column, of view {view_name!r}")


def _reserved(used: Sequence[str], views: _Views, entities: Document) -> dict[str, str]:
    """Return column names of a service's table that its features must not use."""
    taken = {EVENT_TIMESTAMP: "the time column"}
    for view_name in used:
        taken[f"{view_name}{STATUS_SUFFIX}"] = f"the status of view {view_name!r}"
        inputs = texts(views[view_name].get("inputs"))
        for source in (view_name, *(item.partition(":")[0] for _, item in inputs)):
            taken[f"{source}{STATUS_SUFFIX}"] = f"the status of view {source!r}"
            for _, name in texts(views.get(source, {}).get("entities")):
                taken[join_key(entities.get(name, {"name": name}))] = "a join key"
    return taken


def _request_columns(
    used: Mapping[str, None], views: _Views, taken: dict[str, str], location: str
) -> Iterator[SpecMistake]:
    """Yield mistakes of request columns: those with the same name must be the same column."""
    columns: dict[str, tuple[object, object]] = {}
    for view_name in used:
        for name, column in by_name(views.get(view_name, {}).get("request_columns")).items():
            kind = (column.get("datatype"), column.get("default"))
            if name in taken or columns.setdefault(name, kind) != kind:
                conflict = taken.get(name, "a request column of another datatype or default")
                message = f"view {view_name!r} has the request column {name!r}, which is {conflict}"
                yield SpecMistake(place=f"{location}.features", message=message)
    taken |= dict.fromkeys(columns, "a request column")


def consistency_mistakes(document: Document) -> list[SpecMistake]:
    """Return all consistency mistakes of a document."""
    entities = by_name(document.get("entities"))
    views = by_name(document.get("feature_views"))
    mistakes = [*repeated(document.get("entities"), "entities")]
    mistakes += repeated(document.get("feature_views"), "feature_views")
    on_demand = by_name(document.get("on_demand_views"))
    mistakes += repeated(document.get("on_demand_views"), "on_demand_views")
    mistakes += repeated(document.get("feature_services"), "feature_services")
    for i, view in items(document.get("feature_views")):
        mistakes += _view_mistakes(view, entities, f"feature_views[{i}]")
    for i, view in items(document.get("on_demand_views")):
        mistakes += on_demand_mistakes(view, views, f"on_demand_views[{i}]")
    for i, service in items(document.get("feature_services")):
        mistakes += service_mistakes(
            service, {**on_demand, **views}, entities, f"feature_services[{i}]"
        )
    return mistakes


def _view_mistakes(view: Document, entities: Document, path: str) -> Iterator[SpecMistake]:
    taken: dict[str, str] = {}
    for i, name in texts(view.get("entities")):
        location = f"{path}.entities[{i}]"
        entity = entities.get(name)
        if entity is None:
            available = ", ".join(map(str, entities)) or "none"
            yield SpecMistake(
                place=location, message=f"entity {name!r} is not defined; defined: {available}"
            )
            continue
        key = join_key(entity)
        if key in taken:
            message = f"has the join key {key!r}, as {taken[key]}; give one entity another join key"
            yield SpecMistake(place=location, message=message)
        taken.setdefault(key, f"entity {name!r}")
    yield from _columns_of_source(view, taken, path)
    yield from repeated(view.get("features"), f"{path}.features")
    for i, feature in items(view.get("features")):
        yield from misfitting_default(feature, f"{path}.features[{i}].default")


def _columns_of_source(view: Document, taken: dict[str, str], place: str) -> Iterator[SpecMistake]:
    """Yield mistakes of columns with several roles: join key, time, or feature."""
    source = view.get("source")
    source = source if isinstance(source, Mapping) else {}
    path = source.get("path")
    if isinstance(path, str) and ("://" in path or "\0" in path):
        message = "is not a path; only local files are read, so mount or copy it"
        yield SpecMistake(place=f"{place}.source.path", message=message)
    yield from _repeated_names(source.get("field_mapping"), f"{place}.source.field_mapping")
    columns = [
        ("source.timestamp_field", source.get("timestamp_field", EVENT_TIMESTAMP), "the time"),
        ("source.created_timestamp_column", source.get("created_timestamp_column"), "the creation"),
        *(
            (f"features[{i}].name", feature.get("name"), "a feature")
            for i, feature in items(view.get("features"))
        ),
    ]
    for location, name, part in columns:
        if not isinstance(name, str):
            continue
        if name in taken and taken[name] != part:
            message = f"{name!r} is already {taken[name]} of this view"
            yield SpecMistake(place=f"{place}.{location}", message=message)
        taken.setdefault(name, part)


def _repeated_names(mapping: object, location: str) -> Iterator[SpecMistake]:
    """Yield mistakes of two columns of a file with the same name in the view."""
    taken: dict[object, object] = {}
    for column, name in (mapping if isinstance(mapping, Mapping) else {}).items():
        if isinstance(name, str) and name in taken:
            message = f"{name!r} is already the name of column {taken[name]!r}"
            yield SpecMistake(place=f"{location}.{column}", message=message)
        elif isinstance(name, str):
            taken[name] = column
