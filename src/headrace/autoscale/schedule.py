"""How many copies does the calendar ask for right now?"""

import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim

from headrace.core.spec_scale import ScheduleSpec

_MINUTE_S: Final = 60.0


def scheduled_floor(hints: Iterable[ScheduleSpec], *, now: float) -> tuple[int, str]:
    """The largest minimum in force and the cron line that says so; 0 and "" if there is none.

    Args:
        now: Seconds since 1970. A hint holds from its moment, inclusive, for its duration.

    Raises:
        CronSimError, ZoneInfoNotFoundError: A hint is malformed; the spec refuses such.
    """
    floor, line = 0, ""
    for hint in hints:
        began = _last_moment(hint.cron, hint.timezone, int(now // _MINUTE_S))
        if now - began < hint.duration_s and hint.min_replicas > floor:
            floor, line = hint.min_replicas, hint.cron
    return floor, line


@lru_cache(maxsize=1024)
def _last_moment(cron: str, timezone: str, minute: int) -> float:
    """The newest moment of `cron` up to `minute` (minutes since 1970), in seconds since 1970."""
    # One second past the minute: going back, a moment at its very beginning is found.
    now = datetime.fromtimestamp(minute * _MINUTE_S, UTC) + timedelta(seconds=1)
    moments = CronSim(cron, now.astimezone(ZoneInfo(timezone)), reverse=True)
    newest = next(moments, None)
    return -math.inf if newest is None else newest.timestamp()
