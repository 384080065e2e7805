"""Brings the newest values of each entity from Parquet to an online store.

Ended at any point and run again, it comes to the same: what was written is written over with the
same, and the watermark, which says what need not be read again, is raised at the end only.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from headrace.core import Array, Datatype
from headrace.features.definitions import FeatureView
from headrace.features.frames import pl
from headrace.features.keys import encode_keys
from headrace.features.online import OnlineStore
from headrace.features.readiness import watermark_name
from headrace.features.records import RecordLayout, ValueColumn, objects
from headrace.features.source import CREATED, TIME, scan_source, telling
from headrace.features.times import microseconds, moment

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
    rows = _newest(view, since_us=since_us, until_us=until_us)
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


def _newest(view: FeatureView, *, since_us: int | None, until_us: int) -> pl.DataFrame:
    """The last row of each entity within these times."""
    order = [TIME, CREATED] if view.source.created_field else [TIME]
    time = pl.col(TIME)
    within = time <= until_us
    if since_us is not None:
        # Included: rows of the same time may have come since.
        within &= time >= since_us
    with telling(view):
        return (
            scan_source(view)
            .filter(within)
            .sort(order, maintain_order=True)
            .unique(view.join_keys, keep="last", maintain_order=True)
            .collect()
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
