"""Import of a Feast registry as definitions of `features.yaml`, with a list of what is left out.

Feature types that a record of single values cannot hold and views that run Feast's code are left
out, each with a reason, and a service is imported whole or not at all.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from headrace.features.feast.repository import FeastRepository, Message

STRING: Final = 2
INT32: Final = 3
INT64: Final = 4
DATATYPES: Final[Mapping[int, str]] = {
    1: "BYTES",
    STRING: "BYTES",
    INT32: "INT64",
    INT64: "INT64",
    5: "FP64",
    6: "FP32",
    7: "BOOL",
}
"""Feast's `ValueType.Enum` ▸ our datatype."""
KEY_TYPES: Final = frozenset({1, STRING, INT32, INT64})
"""Types that join keys may have."""
_DUMMY: Final = "__dummy"
_FILE_SOURCE: Final = 1
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,127}")
_Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A Feast object that was not imported, and the reason."""

    kind: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeastImport:
    """The result of an import."""

    document: _Document
    """The equivalent content of `features.yaml`."""

    left_out: tuple[LeftOut, ...]


def import_definitions(repository: FeastRepository) -> FeastImport:
    """Import the definitions of the repository's project.

    Raises:
        FailedPreconditionError: The registry cannot be read.
    """
    registry = repository.registry()
    project = repository.project
    left_out = [
        LeftOut(kind="view", name=view.spec.name, reason="it runs Feast code on demand")
        for view in registry.on_demand_feature_views
        if view.spec.project in {"", project}
    ]
    entities = {
        entity.spec.name: entity.spec
        for entity in registry.entities
        if entity.spec.project in {"", project} and entity.spec.name != _DUMMY
    }
    views: dict[str, _Document] = {}
    for view in views_of(registry, project):
        document_of_view = _view(view.spec, entities, repository.path, left_out)
        if document_of_view is not None:
            views[view.spec.name] = document_of_view
    used = dict.fromkeys(name for view in views.values() for name in view["entities"])
    specs = {view.spec.name: view.spec for view in views_of(registry, project)}
    join_keys = {name: entity.join_key or name for name, entity in entities.items()}
    services = [
        service
        for record in registry.feature_services
        if record.spec.project in {"", project}
        and (service := _service(record.spec, views, join_keys, left_out)) is not None
    ]
    document = {
        "feast_repo": str(repository.path),
        "entities": [_entity(entities[name], specs, views) for name in used],
        "feature_views": list(views.values()),
        "feature_services": services,
    }
    return FeastImport(document=document, left_out=tuple(left_out))


def views_of(registry: Message, project: str) -> Iterator[Message]:
    """Yield the views and stream views of a project."""
    for views in (registry.feature_views, registry.stream_feature_views):
        for view in views:
            if view.spec.project in {"", project}:
                yield view


def key_types(spec: Message) -> dict[str, int]:
    """Return the Feast type of each join key of a view."""
    return {column.name: column.value_type for column in spec.entity_columns}


def _entity(spec: Message, specs: Mapping[str, Message], views: Mapping[str, Any]) -> _Document:
    """Return an entity with the key type that its views' values were written with."""
    join_key = spec.join_key or spec.name
    first_view = next(name for name, view in views.items() if spec.name in view["entities"])
    feast_type = key_types(specs[first_view]).get(join_key, spec.value_type)
    return {"name": spec.name, "join_key": join_key, "datatype": DATATYPES[feast_type]}


def _view(
    spec: Message, entities: Mapping[str, Message], folder: Path, left_out: list[LeftOut]
) -> _Document | None:
    reason = _unsupported_view_reason(spec, entities)
    features = []
    for column in spec.features:
        if column.value_type in DATATYPES:
            features.append({"name": column.name, "datatype": DATATYPES[column.value_type]})
        elif not reason:
            name = f"{spec.name}:{column.name}"
            detail = f"Feast's type {column.value_type} is not a single number, boolean or text"
            left_out.append(LeftOut(kind="feature", name=name, reason=detail))
    if not features and not reason:
        reason = "none of its features is supported"
    if reason:
        left_out.append(LeftOut(kind="view", name=spec.name, reason=reason))
        return None
    seconds = spec.ttl.seconds + spec.ttl.nanos / 1e9
    return {
        "name": spec.name,
        "entities": list(spec.entities),
        "source": _source(spec.batch_source, folder),
        "features": features,
        "ttl_s": seconds if seconds > 0 else None,
    }


def _unsupported_view_reason(spec: Message, entities: Mapping[str, Message]) -> str:
    if not _NAME.fullmatch(spec.name):
        return "its name must begin with a letter and have at most 128 letters, digits, _ and -"
    if not spec.entities or _DUMMY in spec.entities:
        return "it has no entity"
    for name in spec.entities:
        entity = entities.get(name)
        if entity is None or not _NAME.fullmatch(name):
            return f"its entity {name!r} is not in the registry, or its name is not valid here"
        feast_type = key_types(spec).get(entity.join_key or name, entity.value_type)
        if feast_type not in KEY_TYPES:
            return f"its join key {entity.join_key!r} is neither text nor an integer"
    return ""


def _source(source: Message, folder: Path) -> _Document:
    """Return the source of the values; without a path if it is not a local Parquet file."""
    if source.HasField("batch_source"):
        source = source.batch_source  # of a push source
    document: _Document = {"timestamp_field": source.timestamp_field or "event_timestamp"}
    if source.created_timestamp_column:
        document["created_timestamp_column"] = source.created_timestamp_column
    if source.field_mapping:
        document["field_mapping"] = {pair.key: pair.value for pair in source.field_mapping}
    uri = source.file.uri.removeprefix("file://")
    is_delta = source.file.format.HasField("delta")
    if source.type == _FILE_SOURCE and uri and "://" not in uri and not is_delta:
        # Feast takes a time without a zone for UTC.
        document |= {"path": str(folder / uri), "naive_times": "utc"}
    return document


def _service(
    spec: Message,
    views: Mapping[str, _Document],
    join_keys: Mapping[str, str],
    left_out: list[LeftOut],
) -> _Document | None:
    reason = "" if _NAME.fullmatch(spec.name) else "its name is not valid here"
    features: list[str] = []
    for projection in spec.features:
        reason = reason or _unsupported_projection_reason(projection, views)
        features += [f"{projection.view}:{column.name}" for column in projection.columns]
    if not features and not reason:
        reason = "it has no features"
    if reason:
        left_out.append(LeftOut(kind="service", name=spec.name, reason=reason))
        return None
    # Two columns of a service may share a name, or have the name of a key, status or timestamp.
    entities = {name for projection in spec.features for name in views[projection.view]["entities"]}
    statuses = {f"{projection.view}__status" for projection in spec.features}
    reserved = {"event_timestamp"} | statuses | {join_keys[name] for name in entities}
    names = [feature.partition(":")[2] for feature in features]
    return {
        "name": spec.name,
        "features": features,
        "full_feature_names": len(set(names)) < len(names) or not reserved.isdisjoint(names),
    }


def _unsupported_projection_reason(projection: Message, views: Mapping[str, _Document]) -> str:
    view = views.get(projection.view)
    if view is None:
        return f"its view {projection.view!r} is left out"
    if projection.join_key_map:
        return f"it maps the join keys of view {projection.view!r}"
    if projection.version:
        return f"it pins a version of view {projection.view!r}"
    available = {feature["name"] for feature in view["features"]}
    missing = [column.name for column in projection.columns if column.name not in available]
    return f"its feature {projection.view}:{missing[0]} is left out" if missing else ""
