"""Point-in-time join of features to entity rows, in memory and for Parquet files.

A value whose event time is later than the row is invisible, and so is one older than its view's
time to live: training sees the values that serving would have seen.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from headrace.core import Array, Datatype, FailedPreconditionError, InvalidArgumentError
from headrace.features.definitions import (
    EVENT_TIMESTAMP,
    Feature,
    FeatureService,
    FeatureStatus,
    FeatureView,
    OnDemandView,
)
from headrace.features.lookup_view import worst_statuses
from headrace.features.on_demand import OnDemandFunction, request_arrays
from headrace.features.records import objects
from headrace.features.source import (
    TIME,
    UNREADABLE,
    check_entities,
    key_column,
    newest_rows,
    pl,
    polars_type,
    reason_of,
    time_column,
)

VALUE_TIME: Final = "\0seen"
"""The column with a joined row's event time; null if there was no value."""
STATUS: Final = "\0status"
_ROW: Final = "\0row"
_US: Final = 1_000_000


def known_as_of(entities: pl.DataFrame, service: FeatureService) -> Mapping[str, pl.DataFrame]:
    """Return by view name the features, `VALUE_TIME` and `STATUS`, one row per entity row.

    Features of stale rows are included.

    Raises:
        InvalidArgumentError: `entities` or a source is invalid; lists all problems.
    """
    check_entities(service.entities, EVENT_TIMESTAMP, entities)
    keys = [key_column(entity) for entity in service.entities]
    try:
        rows = entities.select(*keys, time_column(EVENT_TIMESTAMP)).with_row_index(_ROW).sort(TIME)
    except pl.exceptions.PolarsError as error:
        raise InvalidArgumentError(f"entity rows: {reason_of(error)}") from error
    return {view.name: _join(rows, view) for view in service.views}


def feature_column(feature: Feature, joined: pl.DataFrame, *, fill: bool, stale: bool) -> pl.Series:
    """Return the values of a feature: null, or its default if `fill`, where there is no value.

    Args:
        stale: Whether values older than their view's time to live are included.
    """
    statuses = [FeatureStatus.PRESENT.value, *([FeatureStatus.STALE.value] if stale else [])]
    value: pl.Expr = pl.when(pl.col(STATUS).is_in(statuses)).then(pl.col(feature.name))
    if fill:
        value = value.fill_null(pl.lit(feature.filling, dtype=polars_type(feature.datatype)))
    return joined.select(value.alias(feature.name)).to_series()


def _join(rows: pl.DataFrame, view: FeatureView) -> pl.DataFrame:
    """Return the view's features and status for each of `rows`, in the order of `entities`."""
    by = [*view.join_keys, TIME]
    feature_rows = newest_rows(view, by, until_us=rows[TIME].max()).rename({TIME: VALUE_TIME})
    joined = rows.join_asof(
        feature_rows,
        left_on=TIME,
        right_on=VALUE_TIME,
        by=list(view.join_keys),
        strategy="backward",
        check_sortedness=False,  # both are sorted; Polars cannot check it within groups, and warns
    ).sort(_ROW)
    age_us = pl.col(TIME) - pl.col(VALUE_TIME)
    is_stale = pl.lit(value=False) if view.ttl_s is None else age_us > round(view.ttl_s * _US)
    status = (
        pl.when(pl.col(VALUE_TIME).is_null())
        .then(pl.lit(FeatureStatus.MISSING.value))
        .when(is_stale)
        .then(pl.lit(FeatureStatus.STALE.value))
        .otherwise(pl.lit(FeatureStatus.PRESENT.value))
        .alias(STATUS)
    )
    return joined.with_columns(status)


def join_as_of(
    entities: pl.DataFrame, service: FeatureService, *, fill_defaults: bool = False
) -> pl.DataFrame:
    """Return for each entity row the newest values known at its `event_timestamp`.

        Every row is returned once and in order, also duplicates and rows without values. Of several
        values of one entity and time, the one created later counts; without such a column, the one
        later in the source. On-demand views are computed from the values that serving would have,
        with defaults for missing ones, independent of `fill_defaults`.

    Args:
        entities: The service's join keys and request columns, `event_timestamp` with a time zone,
            and anything else.
        fill_defaults: Returns each feature's default for missing values, as serving does; otherwise
            null.

    Returns:
        `entities`, then the service's columns in its order, then `VIEW__status` for each view.

    Raises:
        InvalidArgumentError: `entities` or a source is invalid; lists all problems.
        UnsupportedModelError: The function of an on-demand view cannot be loaded.
        RuntimeFailedError: The function failed.
    """
    _check_names(entities, service)
    joined = known_as_of(entities, service)
    computed = compute_on_demand(entities, service, joined)
    columns = []
    for column in service.columns:
        feature, view = column.feature, column.view
        if isinstance(view, OnDemandView):
            values = computed[view.name][feature.name]
            listed = values.tolist() if feature.datatype is Datatype.BYTES else values
            series = pl.Series(feature.name, listed, polars_type(feature.datatype))
        else:
            series = feature_column(feature, joined[view.name], fill=fill_defaults, stale=False)
        columns.append(series.alias(column.name))
    statuses = [joined[v.name][STATUS].alias(v.status_column) for v in service.views]
    for on_demand_view in service.on_demand_views:
        status = statuses_of(on_demand_view, joined, entities.height)
        statuses.append(
            pl.Series(on_demand_view.status_column, [s.value for s in status], pl.String)
        )
    return entities.hstack([*columns, *statuses])


def compute_on_demand(
    entities: pl.DataFrame, service: FeatureService, joined: Mapping[str, pl.DataFrame]
) -> dict[str, dict[str, Array]]:
    """Return the features of each on-demand view of a service, computed from its joined inputs."""
    raw = {column.name: _given(column, entities) for column in service.request_columns}
    try:
        request = request_arrays(
            service.request_columns,
            {name: values for name, values in raw.items() if values is not None},
            entities.height,
        )
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"entity rows: {error}") from error
    computed = {}
    for view in service.on_demand_views:
        inputs = {
            source.name: array_of(
                feature_column(source.feature, joined[source.view.name], fill=True, stale=False)
            )
            for source in view.inputs
        }
        inputs |= {column.name: request[column.name] for column in view.request}
        computed[view.name] = OnDemandFunction(view)(inputs, entities.height)
    return computed


def statuses_of(
    view: OnDemandView, joined: Mapping[str, pl.DataFrame], rows: int
) -> Sequence[FeatureStatus]:
    """Return the status of an on-demand view's inputs: the worst of each row."""
    statuses_by_view = [
        [FeatureStatus(s) for s in joined[source_view.name][STATUS].to_list()]
        for source_view in view.views
    ]
    return worst_statuses(statuses_by_view, rows)


def array_of(column: pl.Series) -> Array:
    """Return a column without nulls as a NumPy array; bytes as objects."""
    return objects(column.to_list()) if column.dtype == pl.Binary else column.to_numpy()


def _given(column: Feature, entities: pl.DataFrame) -> Sequence[object] | Array | None:
    """Return a request column's values in entity rows; unchanged if it is an array of its type."""
    if column.name not in entities.columns:
        return None
    series = entities[column.name]
    is_plain = series.dtype == polars_type(column.datatype) and not series.null_count()
    if is_plain and column.datatype is not Datatype.BYTES:
        return series.to_numpy()
    return series.to_list()


def _check_names(entities: pl.DataFrame, service: FeatureService) -> None:
    added = {column.name for column in service.columns} | {
        v.status_column for v in service.all_views
    }
    duplicates = [name for name in entities.columns if name in added]
    if duplicates:
        message = (
            f"entity rows have columns that the join adds: {', '.join(duplicates)}; rename them"
        )
        raise InvalidArgumentError(message)


def join_files(
    service: FeatureService, entities: Path, output: Path, *, fill_defaults: bool
) -> dict[str, Any]:
    """Write the joined rows to `output`; return the number of rows by status.

    Raises:
        InvalidArgumentError: `entities` cannot be read, or does not match the service.
        FailedPreconditionError: `output` cannot be written.
    """
    try:
        rows = pl.read_parquet(entities, glob=False)
    except UNREADABLE as error:
        message = f"{entities} cannot be read as Parquet: {reason_of(error)}"
        raise InvalidArgumentError(message) from error
    joined = join_as_of(rows, service, fill_defaults=fill_defaults)
    part = output.with_name(f".{output.name}.part")
    try:
        joined.write_parquet(part)
        part.replace(output)
    except UNREADABLE as error:
        part.unlink(missing_ok=True)
        message = f"{output} cannot be written: {reason_of(error)}"
        raise FailedPreconditionError(message) from error
    counts = {
        view.name: dict(joined[view.status_column].value_counts().sort("count").iter_rows())
        for view in service.all_views
    }
    return {"rows": joined.height, "output": str(output), "views": counts}
