"""Small definitions and tables that the tests of features share."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from headrace.core import Datatype
from headrace.features import (
    DataSource,
    Entity,
    Feature,
    FeatureService,
    FeatureView,
    MissingValuePolicy,
    ServiceColumn,
)

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
CUSTOMER = Entity(name="customer", join_key="customer_id", datatype=Datatype.INT64)
TIMES = pl.Datetime("us", "UTC")


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


def view(
    path: Path,
    *features: Feature,
    name: str = "stats",
    entities: tuple[Entity, ...] = (CUSTOMER,),
    ttl_s: float | None = 100.0,
    created: str = "",
    on_missing: MissingValuePolicy = MissingValuePolicy.DEFAULTS,
    on_stale: MissingValuePolicy = MissingValuePolicy.DEFAULTS,
) -> FeatureView:
    return FeatureView(
        name=name,
        entities=entities,
        features=features or (Feature(name="score", datatype=Datatype.FP64),),
        source=DataSource(path=path, created_field=created),
        ttl_s=ttl_s,
        on_missing=on_missing,
        on_stale=on_stale,
    )


def service(*views: FeatureView) -> FeatureService:
    columns = tuple(
        ServiceColumn(name=feature.name, view=one, feature=feature)
        for one in views
        for feature in one.features
    )
    return FeatureService(name="service", columns=columns)


def write(path: Path, **columns: object) -> None:
    """A Parquet file; `event_timestamp` in seconds after the tests' epoch."""
    times = columns.pop("event_timestamp")
    assert isinstance(times, list)
    frame = pl.DataFrame(columns).with_columns(
        pl.Series("event_timestamp", [None if t is None else at(t) for t in times], TIMES)
    )
    frame.write_parquet(path)


def rows(**columns: object) -> pl.DataFrame:
    """Entity rows; `event_timestamp` in seconds after the tests' epoch."""
    times = columns.pop("event_timestamp")
    assert isinstance(times, list)
    return pl.DataFrame(columns).with_columns(
        pl.Series("event_timestamp", [None if t is None else at(t) for t in times], TIMES)
    )
