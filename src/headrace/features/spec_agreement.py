"""What is wrong between parts of `features.yaml` that may each be right?

Takes the raw document, whatever it holds, so that these mistakes are told together with those of
single fields.
"""

from collections.abc import Iterator, Mapping

from headrace.core.spec_yaml import SpecMistake
from headrace.features.definitions import EVENT_TIMESTAMP
from headrace.features.spec_document import (
    Document,
    by_name,
    items,
    join_key,
    misfitting_default,
    repeated,
    texts,
)
from headrace.features.spec_services import of_on_demand, of_service


def disagreements(document: Document) -> list[SpecMistake]:
    """Every such mistake."""
    entities = by_name(document.get("entities"))
    views = by_name(document.get("feature_views"))
    found = [*repeated(document.get("entities"), "entities")]
    found += repeated(document.get("feature_views"), "feature_views")
    on_demand = by_name(document.get("on_demand_views"))
    found += repeated(document.get("on_demand_views"), "on_demand_views")
    found += repeated(document.get("feature_services"), "feature_services")
    for i, view in items(document.get("feature_views")):
        found += _of_view(view, entities, f"feature_views[{i}]")
    for i, view in items(document.get("on_demand_views")):
        found += of_on_demand(view, views, f"on_demand_views[{i}]")
    for i, service in items(document.get("feature_services")):
        found += of_service(service, {**on_demand, **views}, entities, f"feature_services[{i}]")
    return found


def _of_view(view: Document, entities: Document, place: str) -> Iterator[SpecMistake]:
    taken: dict[str, str] = {}
    for i, name in texts(view.get("entities")):
        at = f"{place}.entities[{i}]"
        entity = entities.get(name)
        if entity is None:
            known = ", ".join(map(str, entities)) or "none"
            yield SpecMistake(place=at, message=f"there is no entity {name!r}; there are: {known}")
            continue
        key = join_key(entity)
        if key in taken:
            message = f"has the join key {key!r}, as {taken[key]}; give one entity another one"
            yield SpecMistake(place=at, message=message)
        taken.setdefault(key, f"entity {name!r}")
    yield from _columns_of_source(view, taken, place)
    yield from repeated(view.get("features"), f"{place}.features")
    for i, feature in items(view.get("features")):
        yield from misfitting_default(feature, f"{place}.features[{i}].default")


def _columns_of_source(view: Document, taken: dict[str, str], place: str) -> Iterator[SpecMistake]:
    """A column has one part: join key, time, or feature."""
    source = view.get("source")
    source = source if isinstance(source, Mapping) else {}
    path = source.get("path")
    if isinstance(path, str) and ("://" in path or "\0" in path):
        message = "is no path; only files of this machine are read, so mount or copy it"
        yield SpecMistake(place=f"{place}.source.path", message=message)
    yield from _repeated_names(source.get("field_mapping"), f"{place}.source.field_mapping")
    yield from _repeated_names(source.get("field_mapping"), f"{place}.source.field_mapping")
    columns = [
        ("source.timestamp_field", source.get("timestamp_field", EVENT_TIMESTAMP), "the time"),
        ("source.created_timestamp_column", source.get("created_timestamp_column"), "the creation"),
        *(
            (f"features[{i}].name", feature.get("name"), "a feature")
            for i, feature in items(view.get("features"))
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
