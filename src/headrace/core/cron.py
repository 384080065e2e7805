"""Is that a cron line, and is that a time zone? cronsim is loaded by those only who have a line."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_FIELDS = 5
_SHOWN = 60


def cron_mistake(cron: str) -> str:
    """Why it is no cron line, or one of no moment; empty if it is one."""
    from cronsim import CronSim, CronSimError  # noqa: PLC0415  # half of a command's start

    shown = f"'{cron[:_SHOWN]}'"
    if len(cron.split()) != _FIELDS:
        return f"{shown} has not five fields: minute, hour, day, month, day of the week"
    try:
        next(CronSim(cron, datetime.now(UTC)))
    except CronSimError as error:
        return f"{shown} is no cron line: {error}"
    except StopIteration:
        return f"{shown} never comes"
    return ""


def zone_mistake(timezone: str) -> str:
    """Why it is no time zone; empty if it is one."""
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return f"there is no time zone '{timezone[:_SHOWN]}'; write one such as Europe/Paris"
    return ""


def check_schedule(cron: str, timezone: str) -> None:
    """Raise ValueError if one of them is none."""
    if why := cron_mistake(cron) or zone_mistake(timezone):
        raise ValueError(why)
