"""Writers of the online store: materialization from Parquet, pushed rows, and readiness.

Interrupted at any point and repeated, a run gives the same result: rows are overwritten with equal
rows, and the watermark, which marks what need not be read again, is raised only at the end.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np

from headrace.core import Array, Clock, Datatype, InvalidArgumentError
from headrace.features.definitions import FeatureService, FeatureStatus, FeatureView
from headrace.features.online.store import OnlineStore
from headrace.features.records import RecordLayout, ValueColumn, encode_keys, objects
from headrace.features.source import TIME, newest_rows, pl
from headrace.features.values import microseconds, misfit, moment, value_column


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewReadiness:
    """How far a view was materialized with its current schema."""

    view: str

    status: FeatureStatus

    newest: datetime | None
    """The newest materialized event time; pushed values are not counted."""

    age_s: float | None
    """Age of `newest`."""

    ttl_s: float | None
    """The view's time to live."""


def watermark_name(view: FeatureView) -> str:
    """Return the name of a view's watermark in the store; a new schema starts a new watermark."""
    return f"{view.name}:{view.schema_hash.hex()}"


def service_readiness(
    service: FeatureService, store: OnlineStore, clock: Clock
) -> list[ViewReadiness]:
    """Return the readiness of each view of a service, in the service's order.

    Raises:
        UnavailableError: The store cannot be reached.
        FailedPreconditionError: The store cannot be read; the message contains the remedy.
    """
    return [_readiness(view, store, clock.now()) for view in service.views]


def _readiness(view: FeatureView, store: OnlineStore, now: float) -> ViewReadiness:
    watermark_us = store.watermark(watermark_name(view))
    newest = None if watermark_us is None else moment(watermark_us)
    age_s = None if newest is None else now - newest.timestamp()
    status = FeatureStatus.PRESENT
    if age_s is None:
        status = FeatureStatus.MISSING
    elif view.ttl_s is not None and age_s > view.ttl_s:
        status = FeatureStatus.STALE
    return ViewReadiness(
        view=view.name, status=status, newest=newest, age_s=age_s, ttl_s=view.ttl_s
    )


ROWS_PER_CHUNK: Final = 10_000
OnProgress = Callable[[int, int], None]
"""Called with the number of entities written, and of all entities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaterializeReport:
    """The result of a materialization."""

    view: str

    entities: int
    """Number of entities in the source."""

    written: int
    """Number of records that were not older than the stored ones."""

    since: datetime | None
    """Event time of the first rows read, inclusive; None: from the beginning."""

    until: datetime
    """Event time of the last rows read, inclusive."""

    newest: datetime | None
    """The newest event time, where the next incremental run begins."""


def materialize(
    view: FeatureView,
    store: OnlineStore,
    *,
    until: datetime,
    incremental: bool = False,
    progress: OnProgress | None = None,
    rows_per_write: int = ROWS_PER_CHUNK,
) -> MaterializeReport:
    """Write the newest values of each entity as of `until`.

    Args:
        until: With a time zone; rows with later event times are skipped.
        incremental: Reads rows from the newest event time written before, inclusive. Rows that
            arrived later with an older time are then missed; a full run includes them.
        rows_per_write: Rows per write to the store.

    Raises:
        InvalidArgumentError: `until` has no time zone, or the source does not match the view.
        UnavailableError: The store cannot be reached. The run can be repeated.
        FailedPreconditionError: The store cannot be written; the message contains the remedy.
    """
    until_us = microseconds(until)
    watermark = watermark_name(view)
    since_us = store.watermark(watermark) if incremental else None
    # Rows with the same time as the last ones may have arrived since.
    rows = newest_rows(view, view.join_keys, since_us=since_us, until_us=until_us)
    layout = RecordLayout(view)
    written = 0
    for done in range(0, rows.height, rows_per_write):
        batch = rows.slice(done, rows_per_write)
        keys = encode_keys(view, [batch[name].to_list() for name in view.join_keys])
        records = layout.encode(batch[TIME].to_numpy(), list(_columns(view, batch)))
        written += store.write(view.name, keys, records)
        if progress is not None:
            progress(done + batch.height, rows.height)
    newest_us = rows[TIME].max()
    if isinstance(newest_us, int):
        store.raise_watermark(watermark, newest_us)
    return MaterializeReport(
        view=view.name,
        entities=rows.height,
        written=written,
        since=None if since_us is None else moment(since_us),
        until=until,
        newest=moment(newest_us) if isinstance(newest_us, int) else None,
    )


def _columns(view: FeatureView, rows: pl.DataFrame) -> Iterator[ValueColumn]:
    for feature in view.features:
        column = rows[feature.name]
        yield ValueColumn(
            values=_array(feature.datatype, column), is_present=column.is_not_null().to_numpy()
        )


def _array(datatype: Datatype, column: pl.Series) -> Array:
    if datatype is Datatype.BYTES:
        return objects(column.to_list())
    # NumPy integers have no nulls: they would all become floats.
    nothing = False if datatype is Datatype.BOOL else 0
    return column.fill_null(nothing).to_numpy()


_SHOWN: Final = 60
_MAX_PROBLEMS: Final = 20


def refusals(view: FeatureView, rows: Sequence[Mapping[str, object]]) -> dict[int, str]:
    """Return the rows that cannot be pushed, by position, with all their problems."""
    refused = {}
    for i, row in enumerate(rows):
        problems = list(_problems(view, row))
        if all(name in row for name in view.join_keys):
            try:
                encode_keys(view, [[row[name]] for name in view.join_keys])
            except InvalidArgumentError as error:
                problems.append(str(error).replace("[0]:", ":", 1))
        if problems:
            refused[i] = "; ".join(problems)
    return refused


def push_rows(view: FeatureView, store: OnlineStore, rows: Sequence[Mapping[str, object]]) -> int:
    """Write rows; return how many were not older than the stored ones.

    Args:
        rows: Each with the view's join keys, its time column (a datetime with a time zone) and all
            of its features, where None is a missing value.

    Raises:
        InvalidArgumentError: Rows are invalid; lists all problems. Nothing was written.
        UnavailableError: The store cannot be reached.
        FailedPreconditionError: The store cannot be written; the message contains the remedy.
    """
    problems = [
        f"rows[{i}]: {problem}" for i, row in enumerate(rows) for problem in _problems(view, row)
    ]
    if problems:
        rest = (
            [f"and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
        )
        message = "\n  ".join(
            [f"view '{view.name}': {problems[0]}", *problems[1:_MAX_PROBLEMS], *rest]
        )
        raise InvalidArgumentError(message)
    keys = encode_keys(view, [[row[name] for row in rows] for name in view.join_keys])
    times = [_microseconds(row[view.source.timestamp_field]) for row in rows]
    columns = [
        value_column(feature.datatype, [row[feature.name] for row in rows])
        for feature in view.features
    ]
    records = RecordLayout(view).encode(np.array(times, dtype=np.int64), columns)
    return store.write(view.name, keys, records)


def _problems(view: FeatureView, row: Mapping[str, object]) -> Iterator[str]:
    time = view.source.timestamp_field
    expected_columns = [*view.join_keys, time, *(feature.name for feature in view.features)]
    for name in expected_columns:
        if name not in row:
            yield f"{name!r} is missing"
    for name in row:
        if name not in expected_columns and name != view.source.created_field:
            columns = ", ".join(expected_columns)
            yield f"{str(name)[:_SHOWN]!r} is not a column of the view; it has: {columns}"
    if time in row:
        try:
            _microseconds(row[time])
        except InvalidArgumentError as error:
            yield f"{time!r}: {error}"
    for feature in view.features:
        value = row.get(feature.name)
        expected = None if value is None else misfit(feature.datatype, value)
        if expected:
            shown = repr(value)[:_SHOWN]
            yield f"{feature.name!r} is {feature.datatype} and takes {expected}, not {shown}"


def _microseconds(time: object) -> int:
    if not isinstance(time, datetime):
        raise InvalidArgumentError(f"{repr(time)[:_SHOWN]} is not a datetime")
    return microseconds(time)
