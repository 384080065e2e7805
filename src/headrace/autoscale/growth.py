"""What asks for more copies, schedules among it, and how many may be added in one step."""

import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim

from headrace.autoscale.look import Look, step_up
from headrace.autoscale.state import Reason, Wish
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


_EPSILON: Final = 1e-9


def growth_of(look: Look) -> Wish:
    """The most that anything asks for, within what one step may do; 0 if nothing asks."""
    wishes = [Wish(count=0, reason=Reason.STEADY), *_woken(look), *_loaded(look)]
    wishes = [_not_twice(wish, look) for wish in wishes]
    pressed = step_up(
        look.state, look.pressure, look.settings, starting=look.signals.starting, now=look.now
    )
    wishes.append(Wish(count=pressed, reason=Reason.PRESSURE, message=look.pressure.reason))
    most = max(wishes, key=lambda wish: wish.count)
    step = math.ceil(max(look.signals.ready, 1) * look.settings.max_scale_up_ratio)
    reach = max(step, look.current)
    if most.count <= reach:
        return most
    message = f"{most.message}; one step goes to {reach} at most"
    return Wish(count=reach, reason=most.reason, message=message)


def floor_of(look: Look) -> Wish:
    """The fewest that the settings ask for, whatever the load is."""
    settings = look.settings
    scheduled, line = scheduled_floor(settings.schedule, now=look.now)
    least = 0 if look.is_asleep else max(settings.min_replicas, 1)
    if scheduled > least:
        message = f"the schedule '{line}' asks for {scheduled}"
        return Wish(count=min(scheduled, look.cap), reason=Reason.SCHEDULE, message=message)
    return Wish(count=least, reason=Reason.MINIMUM, message=f"the minimum is {least}")


def _woken(look: Look) -> list[Wish]:
    held = look.signals.held
    if not held:
        return []
    copies = held / (look.settings.target_in_flight or math.inf)
    count = max(math.ceil(min(copies, look.cap)), 1)
    message = f"{held} requests wait for the first copy"
    return [Wish(count=count, reason=Reason.WOKEN, message=message)]


def _loaded(look: Look) -> list[Wish]:
    demand = look.demand
    if demand is None:
        return []
    wishes = [_wish(demand.grow, Reason.LOAD, f"on average ({demand.explanation})")]
    if look.is_panicking:
        wishes.append(_wish(demand.burst, Reason.BURST, f"right now ({demand.burst_explanation})"))
    return wishes


def _wish(copies: float, reason: Reason, why: str) -> Wish:
    message = f"the load needs at least {copies:.2f} copies {why}"
    return Wish(count=math.ceil(copies - _EPSILON), reason=reason, message=message)


def _not_twice(wish: Wish, look: Look) -> Wish:
    """`wish` without what the queue of a shortage adds to it while copies are starting.

    In-flight counts grow with every second in which the copies that were asked for are not there
    yet. So while some start, only more arrivals are a reason for more of them.
    """
    starting, current = look.signals.starting, look.current
    grows_with_queue = look.demand is not None and look.demand.by_in_flight
    if not starting or not grows_with_queue or wish.count <= current:
        return wish
    ratio = 1.0
    if look.arrivals is not None and look.state.raised_arrivals:
        ratio = max(look.arrivals / look.state.raised_arrivals, 1.0)
    count = math.ceil(min(wish.count, current * ratio - _EPSILON))
    if count > current:
        return msgspec.structs.replace(wish, count=count)
    message = f"{wish.message}; {starting} copies are starting"
    return Wish(count=count, reason=Reason.STARTING, message=message)
