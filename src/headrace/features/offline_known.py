"""Which row of each view's source was the newest at the time of an entity row?

A value that became true later than the row is invisible.
"""

from collections.abc import Mapping
from typing import Final

from headrace.core import InvalidArgumentError
from headrace.features.definitions import (
    EVENT_TIMESTAMP,
    Feature,
    FeatureService,
    FeatureView,
    Status,
)
from headrace.features.frames import pl
from headrace.features.source import (
    CREATED,
    TIME,
    check_entities,
    key_column,
    polars_type,
    reason_of,
    scan_source,
    telling,
    time_column,
)

SEEN: Final = "\0seen"
"""The column of a found row's event time; null where nothing was known."""
STATUS: Final = "\0status"
_ROW: Final = "\0row"
_US: Final = 1_000_000


def known_as_of(entities: pl.DataFrame, service: FeatureService) -> Mapping[str, pl.DataFrame]:
    """For each view by name its features, `SEEN` and `STATUS`, a row for each entity row.

    Features are those of the row that was found, also of one that is stale.

    Raises:
        InvalidArgumentError: With all that is wrong with `entities`, or with a source.
    """
    check_entities(service.entities, EVENT_TIMESTAMP, entities)
    keys = [key_column(entity) for entity in service.entities]
    try:
        rows = entities.select(*keys, time_column(EVENT_TIMESTAMP)).with_row_index(_ROW).sort(TIME)
    except pl.exceptions.PolarsError as error:
        raise InvalidArgumentError(f"entity rows: {reason_of(error)}") from error
    return {view.name: _join(rows, view) for view in service.views}


def feature_column(feature: Feature, found: pl.DataFrame, *, fill: bool, stale: bool) -> pl.Series:
    """A feature's values: null, or its default if `fill`, where there are none.

    Args:
        stale: Whether those that are older than their view's time to live are given too.
    """
    there = [Status.PRESENT.value, *([Status.STALE.value] if stale else [])]
    value: pl.Expr = pl.when(pl.col(STATUS).is_in(there)).then(pl.col(feature.name))
    if fill:
        value = value.fill_null(pl.lit(feature.filling, dtype=polars_type(feature.datatype)))
    return found.select(value.alias(feature.name)).to_series()


def _join(rows: pl.DataFrame, view: FeatureView) -> pl.DataFrame:
    """The view's features and status for each of `rows`, in the order of `entities`."""
    known = _known(view, until_us=rows[TIME].max())
    joined = rows.join_asof(
        known,
        left_on=TIME,
        right_on=SEEN,
        by=list(view.join_keys),
        strategy="backward",
        check_sortedness=False,  # both are; Polars cannot tell within groups, and warns
    ).sort(_ROW)
    age_us = pl.col(TIME) - pl.col(SEEN)
    is_stale = pl.lit(value=False) if view.ttl_s is None else age_us > round(view.ttl_s * _US)
    status = (
        pl.when(pl.col(SEEN).is_null())
        .then(pl.lit(Status.MISSING.value))
        .when(is_stale)
        .then(pl.lit(Status.STALE.value))
        .otherwise(pl.lit(Status.PRESENT.value))
        .alias(STATUS)
    )
    return joined.with_columns(status)


def _known(view: FeatureView, *, until_us: object) -> pl.DataFrame:
    """What the source says up to a time, one row for each entity and time, by time."""
    order = [TIME, CREATED] if view.source.created_field else [TIME]
    with telling(view):
        return (
            scan_source(view)
            .filter(pl.col(TIME) <= pl.lit(until_us, dtype=pl.Int64))
            .sort(order, maintain_order=True)
            .unique([*view.join_keys, TIME], keep="last", maintain_order=True)
            .rename({TIME: SEEN})
            .collect()
        )
