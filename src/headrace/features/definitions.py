"""Entities, features, views and services, in Feast's words.

A feature view says where the features of an entity come from; a feature service lists what a model
takes, in the order in which it takes it. Both have a hash of their schema: what was stored or
trained with another one is never taken for this one.
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
"""The column of entity rows that says when their features have to be known."""
STATUS_SUFFIX: Final = "__status"
"""What follows a view's name in the column that says how its values were found."""
HASH_BYTES: Final = 8
_FORMAT: Final = 1
"""Of stored records; a new one makes all hashes new, so that older records are not misread."""

Value = bool | int | float | bytes
"""One value of a feature. None stands beside it for a missing one."""


class FeatureStatus(StrEnum):
    """How the values of one view were found for one row."""

    PRESENT = "PRESENT"
    STALE = "STALE"
    """There is a value, older than the view's time to live."""
    MISSING = "MISSING"
    """There is none, or one of another schema."""


class MissingValuePolicy(StrEnum):
    """What becomes of a row whose values are missing or stale."""

    DEFAULTS = "defaults"
    """Each feature takes its default, as if nothing were known."""
    REJECT = "reject"
    """The read fails, and says for which entity."""
    FLAG = "flag"
    """A stale value is given as it is, and its status tells. A missing one cannot be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """What features are known about: a customer, a card, a shop.

    `join_key` is the column that names one of them, INT64 or BYTES (text).
    """

    name: str
    join_key: str
    datatype: Datatype = Datatype.BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One column. `default` takes the place of a missing value; None takes NaN, 0, False, b""."""

    name: str
    datatype: Datatype
    default: Value | None = None

    @property
    def filling(self) -> Value:
        """What stands where nothing is known."""
        return _NOTHING[self.datatype] if self.default is None else self.default


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """Parquet: a file, a directory of files, or a pattern such as `/data/day=*/part.parquet`.

    `created_field` decides between rows of the same entity and time: the later one counts.
    `renamed` has pairs of a column's name in the file, and what the view calls it. Times without a
    zone are UTC's if `is_naive_utc`, and refused else.
    """

    path: Path | None
    """None: there is no file; the view's values can be served, but not joined."""
    timestamp_field: str = EVENT_TIMESTAMP
    created_field: str = ""
    renamed: tuple[tuple[str, str], ...] = ()
    is_naive_utc: bool = False


class MaterializeSchedule(SpecPart, frozen=True, kw_only=True):
    """When a running system materializes a view by itself: `every_s` or `cron`."""

    every_s: Annotated[float, Meta(ge=1.0, le=31_536_000.0)] | None = None
    """From the beginning of one run to that of the next. Unit: s."""
    cron: Annotated[str, FileOnly(null=True, max_length=200)] = ""
    """Five fields: `*/5 * * * *`."""
    timezone: Annotated[str, Meta(max_length=64)] = "UTC"
    """Of `cron`, such as Europe/Berlin."""
    timeout_s: Annotated[float, Meta(gt=0.0, le=604_800.0)] = 3600.0
    """A run that takes longer is ended."""
    max_memory_bytes: Annotated[int, Meta(ge=1 << 28)] = 4 << 30
    """One that takes more is ended. Unit: bytes."""

    def __post_init__(self) -> None:
        if (self.every_s is None) != bool(self.cron):
            msg = "says neither or both of `every_s` and `cron`; give one of them"
            raise ValueError(msg)
        if self.cron:
            check_schedule(self.cron, self.timezone)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureView:
    """Features of one kind of entity, from one source. Without `ttl_s` they never go stale.

    `on_missing` is DEFAULTS or REJECT.
    """

    name: str
    entities: tuple[Entity, ...]
    features: tuple[Feature, ...]
    source: DataSource
    ttl_s: float | None = None
    on_missing: MissingValuePolicy = MissingValuePolicy.DEFAULTS
    on_stale: MissingValuePolicy = MissingValuePolicy.DEFAULTS
    schedule: MaterializeSchedule | None = None

    @property
    def join_keys(self) -> tuple[str, ...]:
        """The columns that name an entity, in order."""
        return tuple(entity.join_key for entity in self.entities)

    @property
    def schema_hash(self) -> bytes:
        """Equal where records can be read as this view's; stable over processes."""
        return _view_hash(self)

    @property
    def status_column(self) -> str:
        """The column of a join that says how this view's values were found."""
        return f"{self.name}{STATUS_SUFFIX}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDemandInput:
    """A feature of a view that a function gets as `name`."""

    name: str
    view: FeatureView
    feature: Feature


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDemandView:
    """Features that a function makes of others, for training and in a request alike.

    `function` is `FILE.py:NAME`, and `source` the text of that file: exactly this text is run.
    `request` are columns that come with the request, and stand in the entity rows of training data;
    one without a default has to be given.
    """

    name: str
    function: str
    source: str
    inputs: tuple[OnDemandInput, ...]
    request: tuple[Feature, ...]
    features: tuple[Feature, ...]

    @property
    def views(self) -> tuple[FeatureView, ...]:
        """The views that it takes values of, in the order of its inputs."""
        return tuple(dict.fromkeys(one.view for one in self.inputs))

    @property
    def digest(self) -> str:
        """SHA-256 of the function's file."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def schema_hash(self) -> bytes:
        """Equal where the same function makes the same columns of the same inputs."""
        return _on_demand_hash(self)

    @property
    def status_column(self) -> str:
        """The column of a join that says how this view's inputs were found."""
        return f"{self.name}{STATUS_SUFFIX}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceColumn:
    """One feature as a service gives it, called `name`."""

    name: str
    view: FeatureView | OnDemandView
    feature: Feature


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureService:
    """What a model takes: columns in the order in which it takes them."""

    name: str
    columns: tuple[ServiceColumn, ...]

    @property
    def views(self) -> tuple[FeatureView, ...]:
        """The views that it reads, also for on-demand views, in the order of their first column."""
        found: dict[FeatureView, None] = {}
        for column in self.columns:
            one = column.view
            found |= dict.fromkeys(one.views if isinstance(one, OnDemandView) else (one,))
        return tuple(found)

    @property
    def on_demand_views(self) -> tuple[OnDemandView, ...]:
        """The on-demand views that it computes, in the order of their first column."""
        some = (column.view for column in self.columns)
        return tuple(dict.fromkeys(one for one in some if isinstance(one, OnDemandView)))

    @property
    def all_views(self) -> tuple[FeatureView | OnDemandView, ...]:
        """Those that it reads, then those that it computes."""
        return (*self.views, *self.on_demand_views)

    @property
    def request_columns(self) -> tuple[Feature, ...]:
        """What a request has to bring besides entities, in the order of the on-demand views."""
        return tuple(dict.fromkeys(one for view in self.on_demand_views for one in view.request))

    @property
    def entities(self) -> tuple[Entity, ...]:
        """The entities that a row has to name, in the order of the views."""
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
    """All that one `features.yaml` defines, by name, in its order.

    `feast_repo` is the repository of Feast's whose online store holds the values; None for our own.
    """

    entities: Mapping[str, Entity]
    views: Mapping[str, FeatureView]
    services: Mapping[str, FeatureService]
    on_demand_views: Mapping[str, OnDemandView] = field(default_factory=dict)
    feast_repo: Path | None = None

    def view(self, name: str) -> FeatureView:
        """The view of this name; NotFoundError says which there are."""
        found = self.views.get(name)
        if found is None:
            raise NotFoundError(_unknown("feature view", name, self.views))
        return found

    def service(self, name: str) -> FeatureService:
        """The service of this name; NotFoundError says which there are."""
        found = self.services.get(name)
        if found is None:
            raise NotFoundError(_unknown("feature service", name, self.services))
        return found


_NOTHING: Final[Mapping[Datatype, Value]] = {
    Datatype.FP32: float("nan"),
    Datatype.FP64: float("nan"),
    Datatype.INT64: 0,
    Datatype.BOOL: False,
    Datatype.BYTES: b"",
}


def _unknown(kind: str, name: str, known: Mapping[str, object]) -> str:
    return f"there is no {kind} {name[:200]!r}; there are: {', '.join(known) or 'none'}"


@cache
def _view_hash(view: FeatureView) -> bytes:
    entities = [[entity.name, entity.datatype.value] for entity in view.entities]
    features = [[feature.name, feature.datatype.value] for feature in view.features]
    return _hash([_FORMAT, view.name, entities, features])


@cache
def _on_demand_hash(view: OnDemandView) -> bytes:
    inputs = [[one.name, one.view.schema_hash.hex(), one.feature.name] for one in view.inputs]
    columns = [
        [[feature.name, feature.datatype.value] for feature in some]
        for some in (view.request, view.features)
    ]
    function = view.function.rpartition(":")[2]
    return _hash([_FORMAT, view.name, function, view.digest, inputs, columns])


def _hash(document: object) -> bytes:
    return hashlib.sha256(msgspec.json.encode(document)).digest()[:HASH_BYTES]
