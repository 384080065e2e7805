"""How often is a view materialized by itself?"""

from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

from headrace.features.definitions import FeatureView

_RUNS: Final = 2.0


def usual_grace_s(view: FeatureView, now: float) -> float:
    """How long a new value may take to come to the online store: two runs; 0 without a schedule."""
    schedule = view.schedule
    if schedule is None:
        return 0.0
    if schedule.every_s is not None:
        return _RUNS * schedule.every_s
    from cronsim import CronSim  # noqa: PLC0415  # only those need it who have a line

    start = datetime.fromtimestamp(now, UTC).astimezone(ZoneInfo(schedule.timezone))
    moments = CronSim(schedule.cron, start)
    return _RUNS * (-next(moments).timestamp() + next(moments).timestamp())
