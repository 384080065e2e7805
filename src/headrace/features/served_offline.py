"""Values of the offline store that served rows should have got.

Joined at the moment of each row, with the same time to live and the same policy of its views.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.core import Array, Datatype
from headrace.features.definitions import (
    EVENT_TIMESTAMP,
    FeatureService,
    FeatureStatus,
    FeatureView,
    MissingValuePolicy,
    OnDemandView,
)
from headrace.features.offline import (
    SEEN,
    STATUS,
    array_of,
    compute_on_demand,
    feature_column,
    known_as_of,
)
from headrace.features.served import Plain, ServedRow, value_of
from headrace.features.source import (
    CREATED,
    TIME,
    key_column,
    pl,
    polars_type,
    scan_source,
    telling,
)

_ROW: Final = "\0row"
_AFTER: Final = "\0after"
_NEVER: Final = -(1 << 62)

Times = Sequence[int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineRows:
    """A value for each served row.

    `columns` by the service's names, defaults where nothing is known. By view: `statuses`,
    `event_us` of what was found, `created_us`, when that came to the source, as far as it says so,
    and `newer_us`, the time of the first value after the one that was served, if there was one by
    then.
    """

    columns: Mapping[str, Array]
    statuses: Mapping[str, Sequence[FeatureStatus]]
    event_us: Mapping[str, Times]
    newer_us: Mapping[str, Times]
    created_us: Mapping[str, Times]


def offline_rows(rows: Sequence[ServedRow], service: FeatureService) -> OfflineRows:
    """What a join says of the moment at which each row was served.

    Raises:
        InvalidArgumentError: A source cannot be read, or is not what its view says.
        UnsupportedModelError: The function of an on-demand view cannot be loaded.
        RuntimeFailedError: It failed.
    """
    # Entity rows of a join at the moment when they were served.
    entity_rows = {
        entity.join_key: pl.Series(
            [row.keys[entity.join_key] for row in rows],
            dtype=pl.Int64 if entity.datatype is Datatype.INT64 else pl.String,
        )
        for entity in service.entities
    }
    moments = pl.Series([row.at_us for row in rows], dtype=pl.Int64)
    entity_rows[EVENT_TIMESTAMP] = moments.cast(pl.Datetime("us", "UTC"))
    for one in service.request_columns:
        values = values_of(one.datatype, [row.request[one.name] for row in rows])
        entity_rows[one.name] = pl.Series(values, dtype=polars_type(one.datatype))
    table = pl.DataFrame(entity_rows)
    found = known_as_of(table, service)
    computed = compute_on_demand(table, service, found)
    columns = {}
    for column in service.columns:
        view, feature = column.view, column.feature
        if isinstance(view, OnDemandView):
            columns[column.name] = computed[view.name][feature.name]
        else:
            is_flagged = view.on_stale is MissingValuePolicy.FLAG
            series = feature_column(feature, found[view.name], fill=True, stale=is_flagged)
            columns[column.name] = array_of(series)
    return OfflineRows(
        columns=columns,
        statuses={n: [FeatureStatus(s) for s in of[STATUS].to_list()] for n, of in found.items()},
        event_us={name: of[SEEN].to_list() for name, of in found.items()},
        newer_us={view.name: _newer(rows, table, view) for view in service.views},
        created_us={name: _created(of) for name, of in found.items()},
    )


def _created(found: pl.DataFrame) -> Times:
    """When the found rows came to their source; None where that is not said as a time."""
    dtype = found.schema.get(CREATED)
    if not isinstance(dtype, pl.Datetime) or dtype.time_zone is None:
        return [None] * found.height
    return found[CREATED].dt.epoch("us").to_list()


def _newer(rows: Sequence[ServedRow], table: pl.DataFrame, view: FeatureView) -> Times:
    """When the first value after the served one became true, if that was before it was served."""
    after = [row.event_us.get(view.name, _NEVER) + 1 for row in rows]
    keys = [key_column(entity) for entity in view.entities]
    asked = (
        table.select(*keys)
        .with_columns(pl.Series(_AFTER, after, pl.Int64))
        .with_row_index(_ROW)
        .sort(_AFTER)
    )
    with telling(view):
        known = scan_source(view).select(*view.join_keys, TIME).collect().sort(TIME)
    joined = asked.join_asof(
        known,
        left_on=_AFTER,
        right_on=TIME,
        by=list(view.join_keys),
        strategy="forward",
        coalesce=False,
        check_sortedness=False,  # both are; as in a join
    ).sort(_ROW)
    times: list[int | None] = joined[TIME].to_list()
    return [
        time if time is not None and time <= row.at_us else None
        for time, row in zip(times, rows, strict=True)
    ]


def values_of(datatype: Datatype, values: Sequence[Plain]) -> list[object]:
    """Values of lines as their datatype has them."""
    return [value_of(datatype, value) for value in values]
