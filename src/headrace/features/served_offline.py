"""Offline-store values that served rows should have had.

Joined as of the time of each row, with the views' time to live and policies.
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
    STATUS,
    VALUE_TIME,
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
    translate_errors,
)

_ROW: Final = "\0row"
_AFTER: Final = "\0after"
_NEVER: Final = -(1 << 62)

Times = Sequence[int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineRows:
    """The offline values of each served row."""

    columns: Mapping[str, Array]
    """By the service's column names; defaults where there is no value."""

    statuses: Mapping[str, Sequence[FeatureStatus]]
    """By view."""

    event_us: Mapping[str, Times]
    """Event time of the joined values, by view."""

    newer_us: Mapping[str, Times]
    """By view: event time of the first value after the served one, if it was before serving."""

    created_us: Mapping[str, Times]
    """By view: when the joined values arrived in the source, if the source records it."""


def offline_rows(rows: Sequence[ServedRow], service: FeatureService) -> OfflineRows:
    """Join the offline values as of the time at which each row was served.

    Raises:
        InvalidArgumentError: A source cannot be read, or does not match its view.
        UnsupportedModelError: The function of an on-demand view cannot be loaded.
        RuntimeFailedError: The function failed.
    """
    # Entity rows of a join as of the time of serving.
    entity_rows = {
        entity.join_key: pl.Series(
            [row.keys[entity.join_key] for row in rows],
            dtype=pl.Int64 if entity.datatype is Datatype.INT64 else pl.String,
        )
        for entity in service.entities
    }
    moments = pl.Series([row.at_us for row in rows], dtype=pl.Int64)
    entity_rows[EVENT_TIMESTAMP] = moments.cast(pl.Datetime("us", "UTC"))
    for request_column in service.request_columns:
        name, datatype = request_column.name, request_column.datatype
        values = values_of(datatype, [row.request[name] for row in rows])
        entity_rows[name] = pl.Series(values, dtype=polars_type(datatype))
    table = pl.DataFrame(entity_rows)
    joined = known_as_of(table, service)
    computed = compute_on_demand(table, service, joined)
    columns = {}
    for column in service.columns:
        view, feature = column.view, column.feature
        if isinstance(view, OnDemandView):
            columns[column.name] = computed[view.name][feature.name]
        else:
            is_flagged = view.on_stale is MissingValuePolicy.FLAG
            series = feature_column(feature, joined[view.name], fill=True, stale=is_flagged)
            columns[column.name] = array_of(series)
    return OfflineRows(
        columns=columns,
        statuses={
            n: [FeatureStatus(s) for s in view_rows[STATUS].to_list()]
            for n, view_rows in joined.items()
        },
        event_us={name: view_rows[VALUE_TIME].to_list() for name, view_rows in joined.items()},
        newer_us={view.name: _newer(rows, table, view) for view in service.views},
        created_us={name: _created(view_rows) for name, view_rows in joined.items()},
    )


def _created(joined: pl.DataFrame) -> Times:
    """Return when the joined rows arrived in their source; None if it does not record that."""
    dtype = joined.schema.get(CREATED)
    if not isinstance(dtype, pl.Datetime) or dtype.time_zone is None:
        return [None] * joined.height
    return joined[CREATED].dt.epoch("us").to_list()


def _newer(rows: Sequence[ServedRow], table: pl.DataFrame, view: FeatureView) -> Times:
    """Return the event time of the first value between the served one and the serving."""
    after = [row.event_us.get(view.name, _NEVER) + 1 for row in rows]
    keys = [key_column(entity) for entity in view.entities]
    lookups = (
        table.select(*keys)
        .with_columns(pl.Series(_AFTER, after, pl.Int64))
        .with_row_index(_ROW)
        .sort(_AFTER)
    )
    with translate_errors(view):
        source_rows = scan_source(view).select(*view.join_keys, TIME).collect().sort(TIME)
    joined = lookups.join_asof(
        source_rows,
        left_on=_AFTER,
        right_on=TIME,
        by=list(view.join_keys),
        strategy="forward",
        coalesce=False,
        check_sortedness=False,  # both are sorted; see `offline._join`
    ).sort(_ROW)
    times: list[int | None] = joined[TIME].to_list()
    return [
        time if time is not None and time <= row.at_us else None
        for time, row in zip(times, rows, strict=True)
    ]


def values_of(datatype: Datatype, values: Sequence[Plain]) -> list[object]:
    """Convert values of lines to their datatype."""
    return [value_of(datatype, value) for value in values]
