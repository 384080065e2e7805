"""Writes values as they happen, row by row, without a source: all of them are right, or none is."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

import numpy as np

from headrace.core import InvalidArgumentError
from headrace.features.definitions import FeatureView
from headrace.features.keys import encode_keys
from headrace.features.online import OnlineStore
from headrace.features.records import RecordLayout
from headrace.features.times import microseconds
from headrace.features.values import misfit, value_column

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
