"""Pydantic models of `features.yaml`."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field, Strict

from headrace.core.spec.base import SpecModel
from headrace.features.definitions import EVENT_TIMESTAMP, MaterializeSchedule

_NAME: Final = r"^[A-Za-z][A-Za-z0-9_-]{0,127}$"
# Parquet allows any column name; a colon separates view and feature.
_COLUMN: Final = r"^[^\x00-\x1f\x7f:]{1,128}$"
MAX_CODE_CHARACTERS: Final = 1 << 17
_MAX_TTL_S: Final = 3_155_760_000.0  # 100 years

_Name = Annotated[str, Field(pattern=_NAME)]
_Column = Annotated[str, Field(pattern=_COLUMN)]


class EntitySpec(SpecModel):
    """The subject of features."""

    name: _Name = Field(description="Such as `customer`.")
    join_key: _Column | None = Field(
        default=None, description="The column that identifies one of them. Null: as `name`."
    )
    datatype: Literal["INT64", "BYTES"] = Field(
        default="BYTES", description="Of the join key: integers, or text."
    )


class FeatureSpec(SpecModel):
    """One column of a view, or of a request, which entity rows contain in training."""

    name: _Column = Field(description="The column in the source, or its name in a function.")
    datatype: Literal["FP32", "FP64", "INT64", "BOOL", "BYTES"] = Field(
        description="As in the Open Inference Protocol; BYTES is text, or bytes."
    )
    default: bool | int | float | str | None = Field(
        default=None,
        description="Replaces a missing value. Null: NaN, 0, false, empty; a request must "
        "contain such a column.",
    )


class SourceSpec(SpecModel):
    """The source of a view's values."""

    path: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="Parquet: a file, a directory or a pattern, relative to this file. Null: no "
        "source; the view serves pushed values or those of other writers, and is never joined.",
    )
    timestamp_field: _Column = Field(
        default=EVENT_TIMESTAMP, description="Event time of a row's values; with a time zone."
    )
    created_timestamp_column: _Column | None = Field(
        default=None,
        description="Decides between rows of the same entity and time: the later one counts.",
    )
    field_mapping: Mapping[_Column, _Column] = Field(
        default_factory=dict, description="A column's name in the file ▸ its name in the view."
    )
    naive_times: Literal["refuse", "utc"] = Field(
        default="refuse", description="How times without a time zone are treated."
    )


class FeatureViewSpec(SpecModel):
    """Features of one kind of entity, from one source."""

    name: _Name = Field(description="Such as `customer_stats`.")
    entities: Annotated[tuple[_Name, ...], Strict(strict=False)] = Field(
        min_length=1, max_length=8, description="Subject of the features; several for a pair."
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
        default="defaults", description="What a request gets for an entity without values."
    )
    on_stale: Literal["defaults", "reject", "flag"] = Field(
        default="defaults",
        description="The same for stale values; `flag` returns them with status STALE.",
    )
    materialize: MaterializeSchedule | None = Field(
        default=None, description="Null: only manually, with `headrace features materialize`."
    )


class OnDemandViewSpec(SpecModel):
    """Features that a function computes from others, in training and in requests alike."""

    name: _Name = Field(description="Such as `ratios`; must differ from all feature views.")
    function: str = Field(
        min_length=1,
        max_length=4096,
        description="`FILE.py:NAME`, relative to this file. It takes and returns a dict of NumPy "
        "arrays, one value per row. The file is stored when it is applied; that version runs.",
    )
    inputs: Annotated[tuple[Annotated[str, Field(max_length=300)], ...], Strict(strict=False)] = (
        Field(default=(), max_length=4096, description="`VIEW`, or `VIEW:FEATURE`.")
    )
    request_columns: Annotated[tuple[FeatureSpec, ...], Strict(strict=False)] = Field(
        default=(), max_length=4096
    )
    features: Annotated[tuple[FeatureSpec, ...], Strict(strict=False)] = Field(
        min_length=1,
        max_length=4096,
        description="Its output; a default replaces masked values.",
    )
    full_feature_names: bool = Field(
        default=False,
        description="Names the function's inputs `VIEW__FEATURE`, to avoid duplicates.",
    )
    code: str | None = Field(
        default=None,
        max_length=MAX_CODE_CHARACTERS,
        description="The text of the function's file. Null: read from the file.",
    )


class FeatureServiceSpec(SpecModel):
    """The inputs of a model, in its order."""

    name: _Name = Field(description="Such as `fraud`.")
    features: Annotated[tuple[Annotated[str, Field(max_length=300)], ...], Strict(strict=False)] = (
        Field(
            min_length=1,
            max_length=4096,
            description="`VIEW` for all of a view's features, or `VIEW:FEATURE`; also of on-demand "
            "views.",
        )
    )
    full_feature_names: bool = Field(
        default=False, description="Names columns `VIEW__FEATURE`, to avoid duplicates."
    )


class DefinitionsSpec(SpecModel):
    """The root of `features.yaml`."""

    version: Literal[1] = 1
    entities: Annotated[tuple[EntitySpec, ...], Strict(strict=False)] = Field(min_length=1)
    feature_views: Annotated[tuple[FeatureViewSpec, ...], Strict(strict=False)] = Field(
        min_length=1
    )
    on_demand_views: Annotated[tuple[OnDemandViewSpec, ...], Strict(strict=False)] = ()
    feature_services: Annotated[tuple[FeatureServiceSpec, ...], Strict(strict=False)] = ()
    feast_repo: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="A Feast repository whose online store is read. Null: Headrace's own store.",
    )
