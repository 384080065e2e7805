"""What was known about these entities at these times? Joins features to rows of the past.

A value that became true later than the row is invisible, and one older than its view's time to
live too: training sees what serving would have seen.
"""

from collections.abc import Mapping, Sequence

from headrace.core import Array, Datatype, InvalidArgumentError
from headrace.features.definitions import Feature, FeatureService, OnDemandView, Status
from headrace.features.frames import pl
from headrace.features.lookup_view import worst_statuses
from headrace.features.offline_known import STATUS, feature_column, known_as_of
from headrace.features.on_demand import OnDemandFunction
from headrace.features.on_demand_request import request_arrays
from headrace.features.records import objects
from headrace.features.source import polars_type


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
            made = _series(feature, computed[view.name][feature.name])
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
) -> Sequence[Status]:
    """How the inputs of an on-demand view were found: the worst of each row."""
    of_views = [[Status(s) for s in found[one.name][STATUS].to_list()] for one in view.views]
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


def _series(feature: Feature, values: Array) -> pl.Series:
    listed = values.tolist() if feature.datatype is Datatype.BYTES else values
    return pl.Series(feature.name, listed, polars_type(feature.datatype))


def _check_names(entities: pl.DataFrame, service: FeatureService) -> None:
    made = {column.name for column in service.columns} | {
        v.status_column for v in service.all_views
    }
    there = [name for name in entities.columns if name in made]
    if there:
        message = f"entity rows have columns that the join makes: {', '.join(there)}; rename them"
        raise InvalidArgumentError(message)
