"""Writers of the online store: materialization from Parquet, pushed rows, and readiness.

Ended at any point and run again, it comes to the same: what was written is written over with the
same, and the watermark, which says what need not be read again, is raised at the end only.
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
    """How far a view was materialized with its present schema.

    `newest` is the newest event time; values that were pushed since are not counted.
    """

    view: str
    status: FeatureStatus
    newest: datetime | None
    age_s: float | None
    ttl_s: float | None


def watermark_name(view: FeatureView) -> str:
    """What the store calls how far a view was materialized; another schema begins anew."""
    return f"{view.name}:{view.schema_hash.hex()}"


def service_readiness(
    service: FeatureService, store: OnlineStore, clock: Clock
) -> list[ViewReadiness]:
    """Each view of a service, in its order.

    Raises:
        UnavailableError: The store cannot be reached.
        FailedPreconditionError: It cannot be read; the message says how to mend it.
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


ROWS_AT_ONCE: Final = 10_000
OnProgress = Callable[[int, int], None]
"""Called with how many entities are written, and how many there are in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaterializeReport:
    """What came of it: `entities` were looked at, `written` were not older than what stood there.

    `since` and `until`: of which times rows were read, both included; None for all from the first.
    `newest`: the newest of them, which is where the next incremental run begins.
    """

    view: str
    entities: int
    written: int
    since: datetime | None
    until: datetime
    newest: datetime | None


def materialize(
    view: FeatureView,
    store: OnlineStore,
    *,
    until: datetime,
    incremental: bool = False,
    progress: OnProgress | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
) -> MaterializeReport:
    """Write the newest values that each entity had at `until`.

    Args:
        until: With a time zone; rows of later times are left out.
        incremental: Reads rows from the newest time that was written before, included. Rows that
            came later with an older time are then not seen; a run without this sees them.
        rows_at_once: How many go to the store in one write.

    Raises:
        InvalidArgumentError: `until` has no zone, or the source is not what the view says.
        UnavailableError: The store cannot be reached. Run the same again.
        FailedPreconditionError: It cannot be written; the message says how to mend it.
    """
    until_us = microseconds(until)
    watermark = watermark_name(view)
    since_us = store.watermark(watermark) if incremental else None
    # Rows of the same time as the last ones may have come since.
    rows = newest_rows(view, view.join_keys, since_us=since_us, until_us=until_us)
    layout = RecordLayout(view)
    written = 0
    for done in range(0, rows.height, rows_at_once):
        some = rows.slice(done, rows_at_once)
        keys = encode_keys(view, [some[name].to_list() for name in view.join_keys])
        records = layout.encode(some[TIME].to_numpy(), list(_columns(view, some)))
        written += store.write(view.name, keys, records)
        if progress is not None:
            progress(done + some.height, rows.height)
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
    # NumPy has no nulls of whole numbers: they would all become floats.
    nothing = False if datatype is Datatype.BOOL else 0
    return column.fill_null(nothing).to_numpy()


_SHOWN: Final = 60
_TOLD: Final = 20


def refusals(view: FeatureView, rows: Sequence[Mapping[str, object]]) -> dict[int, str]:
    """Which of `rows` cannot be pushed, by position, and all that is wrong with each."""
    found = {}
    for i, row in enumerate(rows):
        wrong = list(_wrong(view, row))
        if all(name in row for name in view.join_keys):
            try:
                encode_keys(view, [[row[name]] for name in view.join_keys])
            except InvalidArgumentError as error:
                wrong.append(str(error).replace("[0]:", ":", 1))
        if wrong:
            found[i] = "; ".join(wrong)
    return found


def push_rows(view: FeatureView, store: OnlineStore, rows: Sequence[Mapping[str, object]]) -> int:
    """Write rows; how many were not older than what stood there.

    Args:
        rows: Each with the view's join keys, its time column (a datetime with a zone) and all of
            its features, of which None is a missing value.

    Raises:
        InvalidArgumentError: With all that is wrong; nothing was written then.
        UnavailableError: The store cannot be reached.
        FailedPreconditionError: It cannot be written; the message says how to mend it.
    """
    wrong = [f"rows[{i}]: {said}" for i, row in enumerate(rows) for said in _wrong(view, row)]
    if wrong:
        rest = [f"and {len(wrong) - _TOLD} more"] if len(wrong) > _TOLD else []
        message = "\n  ".join([f"view '{view.name}': {wrong[0]}", *wrong[1:_TOLD], *rest])
        raise InvalidArgumentError(message)
    keys = encode_keys(view, [[row[name] for row in rows] for name in view.join_keys])
    times = [_microseconds(row[view.source.timestamp_field]) for row in rows]
    columns = [value_column(one.datatype, [row[one.name] for row in rows]) for one in view.features]
    records = RecordLayout(view).encode(np.array(times, dtype=np.int64), columns)
    return store.write(view.name, keys, records)


def _wrong(view: FeatureView, row: Mapping[str, object]) -> Iterator[str]:
    time = view.source.timestamp_field
    wanted = [*view.join_keys, time, *(feature.name for feature in view.features)]
    for name in wanted:
        if name not in row:
            yield f"{name!r} is missing"
    for name in row:
        if name not in wanted and name != view.source.created_field:
            yield f"{str(name)[:_SHOWN]!r} is no column of the view; it has: {', '.join(wanted)}"
    if time in row:
        try:
            _microseconds(row[time])
        except InvalidArgumentError as error:
            yield f"{time!r}: {error}"
    for feature in view.features:
        value = row.get(feature.name)
        wanted_value = None if value is None else misfit(feature.datatype, value)
        if wanted_value:
            shown = repr(value)[:_SHOWN]
            yield f"{feature.name!r} is {feature.datatype} and takes {wanted_value}, not {shown}"


def _microseconds(time: object) -> int:
    if not isinstance(time, datetime):
        raise InvalidArgumentError(f"{repr(time)[:_SHOWN]} is no datetime")
    return microseconds(time)
