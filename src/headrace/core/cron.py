"""Validation of cron lines and time zones. cronsim is imported only to check a line."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_FIELDS = 5
_SHOWN = 60


def cron_mistake(cron: str) -> str:
    """Return why `cron` is not a cron line with a future time; empty if it is valid."""
    from cronsim import CronSim, CronSimError  # noqa: PLC0415  # half of a command's start time

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
    """Whether a cron line fires at most once a day, even on the day when clocks go back.

    On that day a line whose minute or hour begins with `*` fires in both passes of an hour.
    """
    from cronsim import CronSim  # noqa: PLC0415  # as above

    line = CronSim(cron, datetime.now(UTC))
    has_star = any(field.startswith("*") for field in cron.split()[:2])
    return not has_star and len(line.minutes) == len(line.hours) == 1


def zone_mistake(timezone: str) -> str:
    """Return why `timezone` is not a time zone; empty if it is valid."""
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return (
            f"the time zone '{timezone[:_SHOWN]}' does not exist; use an IANA name such as "
            "Europe/Paris"
        )
    return ""


def check_schedule(cron: str, timezone: str) -> None:
    """Raise ValueError if the cron line or the time zone is invalid."""
    if reason := cron_mistake(cron) or zone_mistake(timezone):
        raise ValueError(reason)
