"""What does `features.yaml` define? Reads it, and tells all mistakes at once.

Loaded by whoever reads the file; a replica that got its definitions does not pay for pydantic.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, Strict, ValidationError

from headrace.core import Datatype, FailedPreconditionError, InvalidArgumentError
from headrace.core.spec_base import SpecModel
from headrace.core.spec_mistakes import SpecError, mistakes_of, shown, with_line
from headrace.core.spec_yaml import MAX_BYTES, SpecMistake, read_yaml
from headrace.features.definitions import (
    EVENT_TIMESTAMP,
    DataSource,
    Definitions,
    Entity,
    Feature,
    FeatureService,
    FeatureView,
    Policy,
    ServiceColumn,
)
from headrace.features.spec_agreement import disagreements

_NAME: Final = r"^[A-Za-z][A-Za-z0-9_-]{0,127}$"
# Columns of Parquet are called what their writers like; a colon stands between view and feature.
_COLUMN: Final = r"^[^\x00-\x1f\x7f:]{1,128}$"
_MAX_TTL_S: Final = 3_155_760_000.0  # 100 years

_Name = Annotated[str, Field(pattern=_NAME)]
_Column = Annotated[str, Field(pattern=_COLUMN)]


class EntitySpec(SpecModel):
    """What features are known about."""

    name: _Name = Field(description="Such as `customer`.")
    join_key: _Column | None = Field(
        default=None, description="The column that names one of them. Null: as `name`."
    )
    datatype: Literal["INT64", "BYTES"] = Field(
        default="BYTES", description="Of the join key: whole numbers, or text."
    )


class FeatureSpec(SpecModel):
    """One column of a view."""

    name: _Column = Field(description="The source's column.")
    datatype: Literal["FP32", "FP64", "INT64", "BOOL", "BYTES"] = Field(
        description="As in the Open Inference Protocol; BYTES is text, or bytes."
    )
    default: bool | int | float | str | None = Field(
        default=None, description="Stands for a missing value. Null: NaN, 0, false, empty."
    )


class SourceSpec(SpecModel):
    """Where a view's values come from."""

    path: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="Parquet: a file, a directory or a pattern, relative to this file. Null: there "
        "is none; the view is served from what is pushed or what others write, and never joined.",
    )
    timestamp_field: _Column = Field(
        default=EVENT_TIMESTAMP, description="When a row's values became true; with a time zone."
    )
    created_timestamp_column: _Column | None = Field(
        default=None, description="Decides between rows of one entity and time: the later counts."
    )
    field_mapping: Mapping[_Column, _Column] = Field(
        default_factory=dict, description="A column's name in the file ▸ what the view calls it."
    )
    naive_times: Literal["refuse", "utc"] = Field(
        default="refuse", description="What times without a zone are taken for."
    )


class FeatureViewSpec(SpecModel):
    """Features of one kind of entity, from one source."""

    name: _Name = Field(description="Such as `customer_stats`.")
    entities: Annotated[tuple[_Name, ...], Strict(strict=False)] = Field(
        min_length=1, max_length=8, description="Whose features these are; several for a pair."
    )
    source: SourceSpec
    features: Annotated[tuple[FeatureSpec, ...], Strict(strict=False)] = Field(
        min_length=1, max_length=4096
    )
    ttl_s: float | None = Field(
        default=None,
        gt=0.0,
        le=_MAX_TTL_S,
        description="Older values are stale, in joins and when served. Null: never. Unit: s.",
    )
    on_missing: Literal["defaults", "reject"] = Field(
        default="defaults", description="What a request gets of an entity without values."
    )
    on_stale: Literal["defaults", "reject", "flag"] = Field(
        default="defaults",
        description="And of one with older values; `flag` gives them, and says so.",
    )


class FeatureServiceSpec(SpecModel):
    """What a model takes, in its order."""

    name: _Name = Field(description="Such as `fraud`.")
    features: Annotated[tuple[Annotated[str, Field(max_length=300)], ...], Strict(strict=False)] = (
        Field(
            min_length=1,
            max_length=4096,
            description="`VIEW` for all of a view's features, or `VIEW:FEATURE`.",
        )
    )
    full_feature_names: bool = Field(
        default=False, description="Calls columns `VIEW__FEATURE`, where names meet otherwise."
    )


class FeaturesSpec(SpecModel):
    """The whole of `features.yaml`."""

    version: Literal[1] = 1
    entities: Annotated[tuple[EntitySpec, ...], Strict(strict=False)] = Field(min_length=1)
    feature_views: Annotated[tuple[FeatureViewSpec, ...], Strict(strict=False)] = Field(
        min_length=1
    )
    feature_services: Annotated[tuple[FeatureServiceSpec, ...], Strict(strict=False)] = ()
    feast_repo: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="A repository of Feast's whose online store is read. Null: our own store.",
    )


def read_definitions(path: Path) -> Definitions:
    """What the file at `path` defines; sources are relative to its directory.

    Raises:
        SpecError: With every mistake, its place and line.
        FailedPreconditionError: It cannot be read.
    """
    return parse_definitions(read_text(path), base_dir=path.absolute().parent)


def parse_definitions(source: str | Mapping[str, Any], *, base_dir: Path) -> Definitions:
    """The definitions that `source` says, as YAML text or plain data.

    Raises:
        SpecError: With every mistake, its place, and its line if `source` is text.
    """
    return _definitions(checked(source), base_dir)


def read_text(path: Path) -> str:
    """The text of a file of definitions; FailedPreconditionError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path} is no UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise FailedPreconditionError(f"cannot read {path}: {error.strerror}") from error


def checked(source: str | Mapping[str, Any]) -> FeaturesSpec:
    """What `source` says, if it is right; see `parse_definitions`."""
    if isinstance(source, str):
        document = read_yaml(source)
        value, lines, mistakes = document.value, document.lines, document.mistakes
        if mistakes and value is None:
            raise SpecError(mistakes)
    else:
        value, lines, mistakes = source, {}, []
    if not isinstance(value, Mapping):
        message = f"has to be a mapping with 'entities' and 'feature_views', but is {shown(value)}"
        raise SpecError([*mistakes, SpecMistake(place="", message=message)])
    found = disagreements(value)
    spec: FeaturesSpec | None = None
    try:
        spec = FeaturesSpec.model_validate(value)
    except ValidationError as error:
        found = mistakes_of(error, FeaturesSpec) + found
    mistakes = [*mistakes, *(with_line(mistake, lines) for mistake in dict.fromkeys(found))]
    if mistakes or spec is None:
        raise SpecError(sorted(mistakes, key=lambda mistake: mistake.line or 0))
    return spec


def with_absolute_sources(spec: FeaturesSpec, base_dir: Path) -> FeaturesSpec:
    """The same, to be read from anywhere."""
    views = [
        view.model_copy(
            update={
                "source": view.source.model_copy(
                    update={"path": _absolute_text(view.source.path, base_dir)}
                )
            }
        )
        for view in spec.feature_views
    ]
    feast_repo = _absolute_text(spec.feast_repo, base_dir)
    return spec.model_copy(update={"feature_views": tuple(views), "feast_repo": feast_repo})


def _absolute_text(path: str | None, base_dir: Path) -> str | None:
    return None if path is None else str(_absolute(path, base_dir))


def _absolute(path: str, base_dir: Path) -> Path:
    return base_dir.absolute() / Path(path).expanduser()


def _definitions(spec: FeaturesSpec, base_dir: Path) -> Definitions:
    entities = {
        one.name: Entity(
            name=one.name, join_key=one.join_key or one.name, datatype=Datatype(one.datatype)
        )
        for one in spec.entities
    }
    views = {one.name: _view(one, entities, base_dir) for one in spec.feature_views}
    services = {
        one.name: FeatureService(name=one.name, columns=tuple(_columns(one, views)))
        for one in spec.feature_services
    }
    feast_repo = None if spec.feast_repo is None else _absolute(spec.feast_repo, base_dir)
    return Definitions(entities=entities, views=views, services=services, feast_repo=feast_repo)


def _view(spec: FeatureViewSpec, entities: Mapping[str, Entity], base_dir: Path) -> FeatureView:
    return FeatureView(
        name=spec.name,
        entities=tuple(entities[name] for name in spec.entities),
        features=tuple(_feature(one) for one in spec.features),
        source=DataSource(
            path=None if spec.source.path is None else _absolute(spec.source.path, base_dir),
            timestamp_field=spec.source.timestamp_field,
            created_field=spec.source.created_timestamp_column or "",
            renamed=tuple(spec.source.field_mapping.items()),
            is_naive_utc=spec.source.naive_times == "utc",
        ),
        ttl_s=spec.ttl_s,
        on_missing=Policy(spec.on_missing),
        on_stale=Policy(spec.on_stale),
    )


def _feature(spec: FeatureSpec) -> Feature:
    datatype, default = Datatype(spec.datatype), spec.default
    if isinstance(default, str):
        return Feature(name=spec.name, datatype=datatype, default=default.encode())
    if datatype in {Datatype.FP32, Datatype.FP64} and default is not None:
        default = float(default)
    return Feature(name=spec.name, datatype=datatype, default=default)


def _columns(spec: FeatureServiceSpec, views: Mapping[str, FeatureView]) -> Iterator[ServiceColumn]:
    for item in spec.features:
        name, _, wanted = item.partition(":")
        view = views[name]
        for feature in view.features:
            if not wanted or feature.name == wanted:
                shown_as = f"{name}__{feature.name}" if spec.full_feature_names else feature.name
                yield ServiceColumn(name=shown_as, view=view, feature=feature)
