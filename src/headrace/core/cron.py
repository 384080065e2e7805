"""Checks of cron lines and time zones. Only a caller that has a line loads cronsim."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_FIELDS = 5
_SHOWN = 60


def cron_mistake(cron: str) -> str:
    """Why it is no cron line, or one of no moment; empty if it is one."""
    from cronsim import CronSim, CronSimError  # noqa: PLC0415  # half of a command's start

    shown = f"'{cron[:_SHOWN]}'"
    if len(cron.split()) != _FIELDS:
        return f"{shown!r} needs five fields: minute, hour, day, month, day of the week"
    try:
        next(CronSim(cron, datetime.now(UTC)))
    except CronSimError as error:
        return f"{shown!r} is not a valid cron expression: {error}"
    except StopIteration:
        return f"{shown!r} never fires"
    return ""


def runs_once_a_day(cron: str) -> bool:
    """Whether no day has two moments of a cron line, the day that clocks go back included.

    On that day a line whose minute or hour begins with `*` runs at both passes of an hour.
    """
    from cronsim import CronSim  # noqa: PLC0415  # as above

    line = CronSim(cron, datetime.now(UTC))
    has_star = any(field.startswith("*") for field in cron.split()[:2])
    return not has_star and len(line.minutes) == len(line.hours) == 1


def zone_mistake(timezone: str) -> str:
    """Why it is no time zone; empty if it is one."""
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return (
            f"the time zone '{timezone[:_SHOWN]}' does not exist; use an IANA name such as "
            "Europe/Paris"
        )
    return ""


def check_schedule(cron: str, timezone: str) -> None:
    """Raise ValueError if one of them is none."""
    if why := cron_mistake(cron) or zone_mistake(timezone):
        raise ValueError(why)
