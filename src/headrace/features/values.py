"""Conversion of Python values and times to datatypes of features."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np

from headrace.core import Datatype, InvalidArgumentError
from headrace.features.records import ValueColumn, objects

_INT64: Final = np.iinfo(np.int64)
_LARGEST_FP32: Final = float(np.finfo(np.float32).max)


def value_column(datatype: Datatype, values: Sequence[object]) -> ValueColumn:
    """Convert valid values to an array; None is a missing value."""
    is_present = np.array([value is not None for value in values], dtype=np.bool_)
    if datatype is Datatype.BYTES:
        as_bytes = [value.encode() if isinstance(value, str) else value for value in values]
        return ValueColumn(values=objects(as_bytes), is_present=is_present)
    filled = [0 if value is None else value for value in values]
    return ValueColumn(values=np.array(filled, dtype=datatype.dtype), is_present=is_present)


def misfit(datatype: Datatype, value: object) -> str:
    """Return the expected kind of value, if `value` does not fit; empty if it fits."""
    match datatype:
        case Datatype.BOOL:
            return "" if isinstance(value, bool | np.bool_) else "true or false"
        case Datatype.BYTES:
            return "" if _is_text(value) else "text (UTF-8) or bytes"
        case Datatype.INT64:
            return "" if _is_whole(value) else "64-bit integers"
        case _:
            largest = _LARGEST_FP32 if datatype is Datatype.FP32 else math.inf
            return "" if _is_number(value, largest) else "numbers in its range"


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return isinstance(value, bytes)
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_whole(value: object) -> bool:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        return False
    return bool(_INT64.min <= value <= _INT64.max)


def _is_number(value: object, largest: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    try:
        number = float(value)
    except OverflowError:
        return False
    return not math.isfinite(number) or abs(number) <= largest


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def microseconds(time: datetime) -> int:
    """Return microseconds since 1970; raise InvalidArgumentError without a time zone."""
    if time.utcoffset() is None:
        message = f"{time} has no time zone; write {time.isoformat()}+00:00 if it is UTC"
        raise InvalidArgumentError(message)
    return (time - _EPOCH) // _MICROSECOND


def moment(event_us: int) -> datetime:
    """Return the time of a record, in UTC."""
    return _EPOCH + timedelta(microseconds=event_us)
