"""Import of Feast's registry as definitions of `features.yaml`, and the list of what is left out.

Left out is what a record of single values cannot hold, and what runs code of Feast's: with a reason
for each, and never a part of a service.
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
"""Of which types join keys may be."""
_DUMMY: Final = "__dummy"
_FILE_SOURCE: Final = 1
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,127}")
_Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Something of Feast's that was not taken, and why."""

    kind: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeastImport:
    """`document` is what `features.yaml` would say."""

    document: _Document
    left_out: tuple[LeftOut, ...]


def import_definitions(repository: FeastRepository) -> FeastImport:
    """What the repository's project defines.

    Raises:
        FailedPreconditionError: The registry cannot be read.
    """
    registry = repository.registry()
    project = repository.project
    left_out = [
        LeftOut(kind="view", name=one.spec.name, reason="it runs code of Feast's on demand")
        for one in registry.on_demand_feature_views
        if one.spec.project in {"", project}
    ]
    entities = {
        one.spec.name: one.spec
        for one in registry.entities
        if one.spec.project in {"", project} and one.spec.name != _DUMMY
    }
    views: dict[str, _Document] = {}
    for view in views_of(registry, project):
        made = _view(view.spec, entities, repository.path, left_out)
        if made is not None:
            views[view.spec.name] = made
    used = dict.fromkeys(name for view in views.values() for name in view["entities"])
    specs = {one.spec.name: one.spec for one in views_of(registry, project)}
    join_keys = {name: one.join_key or name for name, one in entities.items()}
    services = [
        made
        for one in registry.feature_services
        if one.spec.project in {"", project}
        and (made := _service(one.spec, views, join_keys, left_out)) is not None
    ]
    document = {
        "feast_repo": str(repository.path),
        "entities": [_entity(entities[name], specs, views) for name in used],
        "feature_views": list(views.values()),
        "feature_services": services,
    }
    return FeastImport(document=document, left_out=tuple(left_out))


def views_of(registry: Message, project: str) -> Iterator[Message]:
    """The views and stream views of a project."""
    for views in (registry.feature_views, registry.stream_feature_views):
        for view in views:
            if view.spec.project in {"", project}:
                yield view


def key_types(spec: Message) -> dict[str, int]:
    """Of which of Feast's types each join key of a view is."""
    return {column.name: column.value_type for column in spec.entity_columns}


def _entity(spec: Message, specs: Mapping[str, Message], views: Mapping[str, Any]) -> _Document:
    """An entity; its type is that by which the values of its views were written."""
    join_key = spec.join_key or spec.name
    of = next(name for name, view in views.items() if spec.name in view["entities"])
    kind = key_types(specs[of]).get(join_key, spec.value_type)
    return {"name": spec.name, "join_key": join_key, "datatype": DATATYPES[kind]}


def _view(
    spec: Message, entities: Mapping[str, Message], folder: Path, left_out: list[LeftOut]
) -> _Document | None:
    reason = _unfit_view(spec, entities)
    features = []
    for one in spec.features:
        if one.value_type in DATATYPES:
            features.append({"name": one.name, "datatype": DATATYPES[one.value_type]})
        elif not reason:
            name = f"{spec.name}:{one.name}"
            why = f"Feast's type {one.value_type} is no single number, truth value or text"
            left_out.append(LeftOut(kind="feature", name=name, reason=why))
    if not features and not reason:
        reason = "none of its features can be taken"
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


def _unfit_view(spec: Message, entities: Mapping[str, Message]) -> str:
    if not _NAME.fullmatch(spec.name):
        return "names begin with a letter and have at most 128 letters, digits, _ and -"
    if not spec.entities or _DUMMY in spec.entities:
        return "it has no entity"
    for name in spec.entities:
        entity = entities.get(name)
        if entity is None or not _NAME.fullmatch(name):
            return f"its entity {name!r} is not in the registry, or has no name of ours"
        kind = key_types(spec).get(entity.join_key or name, entity.value_type)
        if kind not in KEY_TYPES:
            return f"its join key {entity.join_key!r} is neither text nor a whole number"
    return ""


def _source(source: Message, folder: Path) -> _Document:
    """Where the values come from; without a path where that is no Parquet of this machine."""
    if source.HasField("batch_source"):
        source = source.batch_source  # of what is pushed
    made: _Document = {"timestamp_field": source.timestamp_field or "event_timestamp"}
    if source.created_timestamp_column:
        made["created_timestamp_column"] = source.created_timestamp_column
    if source.field_mapping:
        made["field_mapping"] = {pair.key: pair.value for pair in source.field_mapping}
    uri = source.file.uri.removeprefix("file://")
    is_delta = source.file.format.HasField("delta")
    if source.type == _FILE_SOURCE and uri and "://" not in uri and not is_delta:
        # Feast takes a time without a zone for UTC.
        made |= {"path": str(folder / uri), "naive_times": "utc"}
    return made


def _service(
    spec: Message,
    views: Mapping[str, _Document],
    join_keys: Mapping[str, str],
    left_out: list[LeftOut],
) -> _Document | None:
    reason = "" if _NAME.fullmatch(spec.name) else "its name is none of ours"
    features: list[str] = []
    for projection in spec.features:
        reason = reason or _unfit_projection(projection, views)
        features += [f"{projection.view}:{column.name}" for column in projection.columns]
    if not features and not reason:
        reason = "it has no features"
    if reason:
        left_out.append(LeftOut(kind="service", name=spec.name, reason=reason))
        return None
    # Two of a service's columns may have one name, or the name of a key, status or timestamp.
    entities = {name for one in spec.features for name in views[one.view]["entities"]}
    statuses = {f"{one.view}__status" for one in spec.features}
    reserved = {"event_timestamp"} | statuses | {join_keys[name] for name in entities}
    names = [feature.partition(":")[2] for feature in features]
    return {
        "name": spec.name,
        "features": features,
        "full_feature_names": len(set(names)) < len(names) or not reserved.isdisjoint(names),
    }


def _unfit_projection(projection: Message, views: Mapping[str, _Document]) -> str:
    view = views.get(projection.view)
    if view is None:
        return f"its view {projection.view!r} is left out"
    if projection.join_key_map:
        return f"it reads view {projection.view!r} by another join key"
    if projection.version:
        return f"it asks for one version of view {projection.view!r}"
    known = {feature["name"] for feature in view["features"]}
    lost = [column.name for column in projection.columns if column.name not in known]
    return f"its feature {projection.view}:{lost[0]} is left out" if lost else ""
