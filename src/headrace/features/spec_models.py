"""Models of `features.yaml`: its parts and the meaning of each field."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field, Strict

from headrace.core.spec.base import SpecModel
from headrace.features.definitions import EVENT_TIMESTAMP, MaterializeSchedule

_NAME: Final = r"^[A-Za-z][A-Za-z0-9_-]{0,127}$"
# Columns of Parquet are called what their writers like; a colon stands between view and feature.
_COLUMN: Final = r"^[^\x00-\x1f\x7f:]{1,128}$"
MAX_CODE_CHARACTERS: Final = 1 << 17
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
    """One column of a view, or a value that a request brings and entity rows have in training."""

    name: _Column = Field(description="The source's column, or what a function calls it.")
    datatype: Literal["FP32", "FP64", "INT64", "BOOL", "BYTES"] = Field(
        description="As in the Open Inference Protocol; BYTES is text, or bytes."
    )
    default: bool | int | float | str | None = Field(
        default=None,
        description="Stands for a missing value. Null: NaN, 0, false, empty; a request has to "
        "bring such a column.",
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
    materialize: MaterializeSchedule | None = Field(
        default=None, description="Null: by hand, with `headrace features materialize`."
    )


class OnDemandViewSpec(SpecModel):
    """Features that a function makes of others, in training and in a request alike."""

    name: _Name = Field(description="Such as `ratios`; no feature view is called so.")
    function: str = Field(
        min_length=1,
        max_length=4096,
        description="`FILE.py:NAME`, relative to this file. It takes and gives a dict of NumPy "
        "arrays, one value a row. Its file is kept when it is applied, and runs as it was then.",
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
        description="What it gives; a default stands where an array is masked.",
    )
    full_feature_names: bool = Field(
        default=False,
        description="Calls the function's inputs `VIEW__FEATURE`, where names meet otherwise.",
    )
    code: str | None = Field(
        default=None,
        max_length=MAX_CODE_CHARACTERS,
        description="The text of the function's file. Null: it is read.",
    )


class FeatureServiceSpec(SpecModel):
    """What a model takes, in its order."""

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
        default=False, description="Calls columns `VIEW__FEATURE`, where names meet otherwise."
    )


class DefinitionsSpec(SpecModel):
    """The whole of `features.yaml`."""

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
        description="A repository of Feast's whose online store is read. Null: our own store.",
    )
