"""Which moment is meant? Times of people have a zone, those of records are microseconds."""

from datetime import UTC, datetime, timedelta
from typing import Final

from headrace.core import InvalidArgumentError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def microseconds(time: datetime) -> int:
    """A time as records have it; InvalidArgumentError if it has no zone."""
    if time.utcoffset() is None:
        message = f"{time} has no time zone; write {time.isoformat()}+00:00 if it is UTC"
        raise InvalidArgumentError(message)
    return (time - _EPOCH) // _MICROSECOND


def moment(event_us: int) -> datetime:
    """The time of a record, in UTC."""
    return _EPOCH + timedelta(microseconds=event_us)
