"""When does a field of a record say that something happened?"""

import math
from datetime import datetime
from typing import Final

from headrace.core import InvalidArgumentError

LAST_S: Final = 253_402_300_800.0
"""The year 10000: no time is that late."""
_SHOWN: Final = 60


def unix_time(name: str, value: object) -> float:
    """The Unix time that field `name` holds: seconds, or ISO 8601 with a zone.

    Raises:
        InvalidArgumentError: It is neither, or not between 1970 and 10000.
    """
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value) if abs(value) < LAST_S else math.nan
    elif isinstance(value, datetime) and value.tzinfo is not None:
        number = value.timestamp()
    elif isinstance(value, str):
        number = _iso(value)
    if 0 <= number < LAST_S:
        return number
    shown = "null" if value is None else repr(value)[:_SHOWN]
    msg = f"'{name}' is a time: Unix seconds or ISO 8601 with a zone, not {shown}"
    raise InvalidArgumentError(msg)


def _iso(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return math.nan
    return math.nan if found.tzinfo is None else found.timestamp()
