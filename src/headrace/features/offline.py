"""What was known about these entities at these times? Joins features to rows of the past.

A value that became true later than the row is invisible, and one older than its view's time to
live too: training sees what serving would have seen.
"""

from typing import Final

from headrace.core import InvalidArgumentError
from headrace.features.definitions import (
    EVENT_TIMESTAMP,
    FeatureService,
    FeatureView,
    ServiceColumn,
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

_ROW: Final = "\0row"
_SEEN: Final = "\0seen"
_STATUS: Final = "\0status"
_US: Final = 1_000_000


def join_as_of(
    entities: pl.DataFrame, service: FeatureService, *, fill_defaults: bool = False
) -> pl.DataFrame:
    """For each entity row, the newest values known at its `event_timestamp`.

    Every row comes out once, in its own order, whatever is known about it and however often it is
    there. Of values of one entity and time, that with the later creation counts; without such a
    column, the one that stands later in the source.

    Args:
        entities: The service's join keys, `event_timestamp` with a time zone, and anything else.
        fill_defaults: Puts each feature's default where nothing is known, as serving does; else
            that is null.

    Returns:
        `entities`, then the service's columns in its order, then `VIEW__status` for each view.

    Raises:
        InvalidArgumentError: With all that is wrong with `entities`, or with a source.
    """
    check_entities(service.entities, EVENT_TIMESTAMP, entities)
    _check_names(entities, service)
    keys = [key_column(entity) for entity in service.entities]
    try:
        rows = entities.select(*keys, time_column(EVENT_TIMESTAMP)).with_row_index(_ROW).sort(TIME)
    except pl.exceptions.PolarsError as error:
        raise InvalidArgumentError(f"entity rows: {reason_of(error)}") from error
    found = {view.name: _join(rows, view) for view in service.views}
    columns = [
        _column(column, found[column.view.name], fill_defaults) for column in service.columns
    ]
    statuses = [found[v.name][_STATUS].alias(v.status_column) for v in service.views]
    return entities.hstack([*columns, *statuses])


def _join(rows: pl.DataFrame, view: FeatureView) -> pl.DataFrame:
    """The view's features and status for each of `rows`, in the order of `entities`."""
    known = _known(view, until_us=rows[TIME].max())
    joined = rows.join_asof(
        known,
        left_on=TIME,
        right_on=_SEEN,
        by=list(view.join_keys),
        strategy="backward",
        check_sortedness=False,  # both are; Polars cannot tell within groups, and warns
    ).sort(_ROW)
    age_us = pl.col(TIME) - pl.col(_SEEN)
    is_stale = pl.lit(value=False) if view.ttl_s is None else age_us > round(view.ttl_s * _US)
    status = (
        pl.when(pl.col(_SEEN).is_null())
        .then(pl.lit(Status.MISSING.value))
        .when(is_stale)
        .then(pl.lit(Status.STALE.value))
        .otherwise(pl.lit(Status.PRESENT.value))
        .alias(_STATUS)
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
            .rename({TIME: _SEEN})
            .collect()
        )


def _column(column: ServiceColumn, found: pl.DataFrame, fill: bool) -> pl.Series:  # noqa: FBT001  # as asked
    feature = column.feature
    is_present = pl.col(_STATUS) == Status.PRESENT.value
    value: pl.Expr = pl.when(is_present).then(pl.col(feature.name))
    if fill:
        value = value.fill_null(pl.lit(feature.filling, dtype=polars_type(feature.datatype)))
    return found.select(value.alias(column.name)).to_series()


def _check_names(entities: pl.DataFrame, service: FeatureService) -> None:
    made = {column.name for column in service.columns} | {v.status_column for v in service.views}
    there = [name for name in entities.columns if name in made]
    if there:
        message = f"entity rows have columns that the join makes: {', '.join(there)}; rename them"
        raise InvalidArgumentError(message)
