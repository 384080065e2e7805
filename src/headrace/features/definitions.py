"""Entities, features, views and services, with Feast's terms.

A feature view declares where the features of an entity come from; a feature service lists the
inputs of a model in their order. Both have a schema hash: data stored or a model trained with
another schema is never used with this one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from headrace.core import Datatype, NotFoundError
from headrace.core.cron import check_schedule
from headrace.core.spec.part import FileOnly, SpecPart

EVENT_TIMESTAMP: Final = "event_timestamp"
"""The column of entity rows with the time as of which features are joined."""
STATUS_SUFFIX: Final = "__status"
"""Suffix of a view's name in the column with the status of its values."""
HASH_BYTES: Final = 8
_FORMAT: Final = 1
"""Version of stored records, part of all hashes, so that older records are not misread."""

Value = bool | int | float | bytes
"""One value of a feature. None is a missing value."""


class FeatureStatus(StrEnum):
    """Freshness of the values of one view in one row."""

    PRESENT = "PRESENT"
    STALE = "STALE"
    """There is a value, older than the view's time to live."""
    MISSING = "MISSING"
    """There is no value, or the record has another schema."""


class MissingValuePolicy(StrEnum):
    """What a read returns for a row whose values are missing or stale."""

    DEFAULTS = "defaults"
    """Each feature takes its default, as if there were no value."""
    REJECT = "reject"
    """The read fails; the error names the entity."""
    FLAG = "flag"
    """A stale value is returned with status STALE. Not available for missing values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """The subject of features: a customer, a card, a shop."""

    name: str
    join_key: str
    """The column that identifies an entity, INT64 or BYTES (text)."""
    datatype: Datatype = Datatype.BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One column of a view."""

    name: str
    datatype: Datatype
    default: Value | None = None
    """Replaces a missing value; None means NaN, 0, False or b""."""

    @property
    def filling(self) -> Value:
        """The value that replaces a missing one."""
        return _NOTHING[self.datatype] if self.default is None else self.default


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """A Parquet source: a file, a directory, or a pattern such as `/data/day=*/part.parquet`."""

    path: Path | None
    """None: no file; the view's values can be served, but not joined."""
    timestamp_field: str = EVENT_TIMESTAMP
    created_field: str = ""
    """Column that decides between rows of the same entity and time: the later one counts."""

    renamed: tuple[tuple[str, str], ...] = ()
    """Pairs of a column's name in the file and in the view."""

    is_naive_utc: bool = False
    """Whether times without a time zone are UTC; otherwise they are refused."""


class MaterializeSchedule(SpecPart, frozen=True, kw_only=True):
    """When a running system materializes a view: `every_s` or `cron`."""

    every_s: Annotated[float, Meta(ge=1.0, le=31_536_000.0)] | None = None
    """Interval between the starts of two runs. Unit: s."""
    cron: Annotated[str, FileOnly(null=True, max_length=200)] = ""
    """Five fields: `*/5 * * * *`."""
    timezone: Annotated[str, Meta(max_length=64)] = "UTC"
    """Time zone of `cron`, such as Europe/Berlin."""
    timeout_s: Annotated[float, Meta(gt=0.0, le=604_800.0)] = 3600.0
    """A longer run is stopped."""
    max_memory_bytes: Annotated[int, Meta(ge=1 << 28)] = 4 << 30
    """A run that uses more memory is stopped. Unit: bytes."""

    def __post_init__(self) -> None:
        if (self.every_s is None) != bool(self.cron):
            msg = "needs exactly one of `every_s` and `cron`"
            raise ValueError(msg)
        if self.cron:
            check_schedule(self.cron, self.timezone)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureView:
    """Features of one kind of entity, from one source."""

    name: str
    entities: tuple[Entity, ...]
    features: tuple[Feature, ...]
    source: DataSource
    ttl_s: float | None = None
    """Older values are stale; None: never."""

    on_missing: MissingValuePolicy = MissingValuePolicy.DEFAULTS
    """DEFAULTS or REJECT."""

    on_stale: MissingValuePolicy = MissingValuePolicy.DEFAULTS
    schedule: MaterializeSchedule | None = None

    @property
    def join_keys(self) -> tuple[str, ...]:
        """The columns that identify an entity, in order."""
        return tuple(entity.join_key for entity in self.entities)

    @property
    def schema_hash(self) -> bytes:
        """Equal for views whose records are compatible; stable across processes."""
        return _view_hash(self)

    @property
    def status_column(self) -> str:
        """The column of a join with the status of this view's values."""
        return f"{self.name}{STATUS_SUFFIX}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDemandInput:
    """A feature of a view that a function receives as `name`."""

    name: str
    view: FeatureView
    feature: Feature


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDemandView:
    """Features that a function computes from others, in training and in requests alike."""

    name: str
    function: str
    """`FILE.py:NAME`."""

    source: str
    """The text of that file: exactly this text runs."""

    inputs: tuple[OnDemandInput, ...]

    request: tuple[Feature, ...]
    """Columns that come with the request, and are in the entity rows of training data. A column
    without a default is required."""
    features: tuple[Feature, ...]

    @property
    def views(self) -> tuple[FeatureView, ...]:
        """The views of its inputs, in the order of the inputs."""
        return tuple(dict.fromkeys(item.view for item in self.inputs))

    @property
    def digest(self) -> str:
        """SHA-256 of the function's file."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def schema_hash(self) -> bytes:
        """Equal where the same function computes the same columns from the same inputs."""
        return _on_demand_hash(self)

    @property
    def status_column(self) -> str:
        """The column of a join with the status of this view's inputs."""
        return f"{self.name}{STATUS_SUFFIX}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceColumn:
    """One feature of a service, named `name` in its output."""

    name: str
    view: FeatureView | OnDemandView
    feature: Feature


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureService:
    """The inputs of a model: columns in the order of the model's inputs."""

    name: str
    columns: tuple[ServiceColumn, ...]

    @property
    def views(self) -> tuple[FeatureView, ...]:
        """The views it reads, also for on-demand views, in the order of their first column."""
        views: dict[FeatureView, None] = {}
        for column in self.columns:
            view = column.view
            views |= dict.fromkeys(view.views if isinstance(view, OnDemandView) else (view,))
        return tuple(views)

    @property
    def on_demand_views(self) -> tuple[OnDemandView, ...]:
        """The on-demand views it computes, in the order of their first column."""
        some = (column.view for column in self.columns)
        return tuple(dict.fromkeys(view for view in some if isinstance(view, OnDemandView)))

    @property
    def all_views(self) -> tuple[FeatureView | OnDemandView, ...]:
        """The views it reads, then the views it computes."""
        return (*self.views, *self.on_demand_views)

    @property
    def request_columns(self) -> tuple[Feature, ...]:
        """The columns a request provides besides entities, in the order of the on-demand views."""
        return tuple(
            dict.fromkeys(column for view in self.on_demand_views for column in view.request)
        )

    @property
    def entities(self) -> tuple[Entity, ...]:
        """The entities that identify a row, in the order of the views."""
        return tuple(dict.fromkeys(e for view in self.views for e in view.entities))

    @property
    def schema_hash(self) -> str:
        """Equal where a model trained with one service can be served with the other."""
        columns = [
            [column.name, column.feature.name, column.feature.datatype.value]
            for column in self.columns
        ]
        views = [column.view.schema_hash.hex() for column in self.columns]
        return _hash([_FORMAT, columns, views]).hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class Definitions:
    """The content of one `features.yaml`, by name, in the order of the file."""

    entities: Mapping[str, Entity]
    views: Mapping[str, FeatureView]
    services: Mapping[str, FeatureService]
    on_demand_views: Mapping[str, OnDemandView] = field(default_factory=dict)
    feast_repo: Path | None = None
    """The Feast repository whose online store holds the values; None: Headrace's own store."""

    def view(self, name: str) -> FeatureView:
        """Return the view of this name; raise NotFoundError with the defined names."""
        view = self.views.get(name)
        if view is None:
            raise NotFoundError(_unknown("feature view", name, self.views))
        return view

    def service(self, name: str) -> FeatureService:
        """Return the service of this name; raise NotFoundError with the defined names."""
        service = self.services.get(name)
        if service is None:
            raise NotFoundError(_unknown("feature service", name, self.services))
        return service


_NOTHING: Final[Mapping[Datatype, Value]] = {
    Datatype.FP32: float("nan"),
    Datatype.FP64: float("nan"),
    Datatype.INT64: 0,
    Datatype.BOOL: False,
    Datatype.BYTES: b"",
}


def _unknown(kind: str, name: str, known: Mapping[str, object]) -> str:
    return f"{kind} {name[:200]!r} is not defined; defined: {', '.join(known) or 'none'}"


@cache
def _view_hash(view: FeatureView) -> bytes:
    entities = [[entity.name, entity.datatype.value] for entity in view.entities]
    features = [[feature.name, feature.datatype.value] for feature in view.features]
    return _hash([_FORMAT, view.name, entities, features])


@cache
def _on_demand_hash(view: OnDemandView) -> bytes:
    inputs = [
        [source.name, source.view.schema_hash.hex(), source.feature.name] for source in view.inputs
    ]
    columns = [
        [[feature.name, feature.datatype.value] for feature in some]
        for some in (view.request, view.features)
    ]
    function = view.function.rpartition(":")[2]
    return _hash([_FORMAT, view.name, function, view.digest, inputs, columns])


def _hash(document: object) -> bytes:
    return hashlib.sha256(msgspec.json.encode(document)).digest()[:HASH_BYTES]
