"""Point-in-time join of features to entity rows, in memory and of Parquet files.

A value that became true later than the row is invisible, and one older than its view's time to
live too: training sees what serving would have seen.
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
    there = [FeatureStatus.PRESENT.value, *([FeatureStatus.STALE.value] if stale else [])]
    value: pl.Expr = pl.when(pl.col(STATUS).is_in(there)).then(pl.col(feature.name))
    if fill:
        value = value.fill_null(pl.lit(feature.filling, dtype=polars_type(feature.datatype)))
    return found.select(value.alias(feature.name)).to_series()


def _join(rows: pl.DataFrame, view: FeatureView) -> pl.DataFrame:
    """The view's features and status for each of `rows`, in the order of `entities`."""
    by = [*view.join_keys, TIME]
    known = newest_rows(view, by, until_us=rows[TIME].max()).rename({TIME: SEEN})
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
    """For each entity row, the newest values known at its `event_timestamp`.

    Every row comes out once, in its own order, whatever is known about it and however often it is
    there. Of values of one entity and time, that with the later creation counts; without such a
    column, the one that stands later in the source. On-demand views are computed of the values that
    serving would have: the defaults, where nothing is known, whatever `fill_defaults` says.

    Args:
        entities: The service's join keys and request columns, `event_timestamp` with a time zone,
            and anything else.
        fill_defaults: Puts each feature's default where nothing is known, as serving does; else
            that is null.

    Returns:
        `entities`, then the service's columns in its order, then `VIEW__status` for each view.

    Raises:
        InvalidArgumentError: With all that is wrong with `entities`, or with a source.
        UnsupportedModelError: The function of an on-demand view cannot be loaded.
        RuntimeFailedError: It failed.
    """
    _check_names(entities, service)
    found = known_as_of(entities, service)
    computed = compute_on_demand(entities, service, found)
    columns = []
    for column in service.columns:
        feature, view = column.feature, column.view
        if isinstance(view, OnDemandView):
            values = computed[view.name][feature.name]
            listed = values.tolist() if feature.datatype is Datatype.BYTES else values
            made = pl.Series(feature.name, listed, polars_type(feature.datatype))
        else:
            made = feature_column(feature, found[view.name], fill=fill_defaults, stale=False)
        columns.append(made.alias(column.name))
    statuses = [found[v.name][STATUS].alias(v.status_column) for v in service.views]
    for one in service.on_demand_views:
        status = statuses_of(one, found, entities.height)
        statuses.append(pl.Series(one.status_column, [s.value for s in status], pl.String))
    return entities.hstack([*columns, *statuses])


def compute_on_demand(
    entities: pl.DataFrame, service: FeatureService, found: Mapping[str, pl.DataFrame]
) -> dict[str, dict[str, Array]]:
    """The features of each on-demand view of a service, of what `found` has of its inputs."""
    given = {one.name: _given(one, entities) for one in service.request_columns}
    try:
        request = request_arrays(
            service.request_columns,
            {name: values for name, values in given.items() if values is not None},
            entities.height,
        )
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"entity rows: {error}") from error
    made = {}
    for view in service.on_demand_views:
        inputs = {
            one.name: array_of(
                feature_column(one.feature, found[one.view.name], fill=True, stale=False)
            )
            for one in view.inputs
        }
        inputs |= {one.name: request[one.name] for one in view.request}
        made[view.name] = OnDemandFunction(view)(inputs, entities.height)
    return made


def statuses_of(
    view: OnDemandView, found: Mapping[str, pl.DataFrame], rows: int
) -> Sequence[FeatureStatus]:
    """How the inputs of an on-demand view were found: the worst of each row."""
    of_views = [[FeatureStatus(s) for s in found[one.name][STATUS].to_list()] for one in view.views]
    return worst_statuses(of_views, rows)


def array_of(column: pl.Series) -> Array:
    """A column without nulls as NumPy has it; bytes as objects."""
    return objects(column.to_list()) if column.dtype == pl.Binary else column.to_numpy()


def _given(column: Feature, entities: pl.DataFrame) -> Sequence[object] | Array | None:
    """What entity rows say of a request column: as it is if that is an array of its type."""
    if column.name not in entities.columns:
        return None
    series = entities[column.name]
    is_plain = series.dtype == polars_type(column.datatype) and not series.null_count()
    if is_plain and column.datatype is not Datatype.BYTES:
        return series.to_numpy()
    return series.to_list()


def _check_names(entities: pl.DataFrame, service: FeatureService) -> None:
    made = {column.name for column in service.columns} | {
        v.status_column for v in service.all_views
    }
    there = [name for name in entities.columns if name in made]
    if there:
        message = f"entity rows have columns that the join makes: {', '.join(there)}; rename them"
        raise InvalidArgumentError(message)


def join_files(
    service: FeatureService, entities: Path, output: Path, *, fill_defaults: bool
) -> dict[str, Any]:
    """Write the joined rows to `output`; how many there are, and of which status.

    Raises:
        InvalidArgumentError: `entities` cannot be read, or is not what the service takes.
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
